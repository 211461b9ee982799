"""The table, drawn: what is shown is what runs."""

from __future__ import annotations

from collections.abc import Iterable

from .phase import FINAL, Junction, Phase
from .table import TABLE, Edge, term_name


def mermaid(table: Iterable[Edge] = TABLE) -> str:
    """A Mermaid state diagram of the table; an arrow is labelled with [guard] and operations."""
    arrows: dict[tuple[str, str, str], list[str]] = {}
    for edge in table:
        operations = ", ".join(operation.value for operation in edge.operations)
        guard = " and ".join(map(term_name, edge.guard))
        arrows.setdefault((edge.source.name, edge.target.name, operations), []).append(guard)

    lines = ["stateDiagram-v2", f"    [*] --> {Phase.READY.name}"]
    lines += [f"    state {junction.name} <<choice>>" for junction in Junction if junction is not Junction.RESUMED]
    for (source, target, operations), guards in arrows.items():
        guard = f"[{' or '.join(guards)}]" if all(guards) else ""
        label = " ".join(filter(None, (guard, operations)))
        lines.append(f"    {source} --> {target}" + f" : {label}" * bool(label))
    lines += [f"    {phase.name} --> [*]" for phase in FINAL]
    return "\n".join(lines)


def text(table: Iterable[Edge] = TABLE) -> str:
    """The table as it is read, a row a line."""
    rows = [f"{'from':<18} {'guard':<34} {'operations':<16} to", *map(str, table)]
    return "\n".join(row.rstrip() for row in rows)
