"""The table, drawn: what is shown is what runs."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Set

from .phase import FINAL, Junction, Phase, Place
from .table import ROWS, TABLE, Edge, term_name

NOBODY: Mapping[str, Collection[str]] = {}


def mermaid(table: Iterable[Edge] = TABLE, consulted: Mapping[str, Collection[str]] = NOBODY) -> str:
    """A Mermaid state diagram of the table; an arrow is labelled with [guard] and operations.

    Args:
        table: the rows to draw.
        consulted: by the name of a phase, who is consulted there; shown as a note.
    """
    rows = tuple(table)
    junctions = [j for j in Junction if j is not Junction.RESUMED and any(j in (e.source, e.target) for e in rows)]
    lines = ["stateDiagram-v2", f"    [*] --> {Phase.READY.name}"]
    lines += [f"    state {junction.name} <<choice>>" for junction in junctions]
    for source, target, label in _labelled(rows):
        lines.append(f"    {source.name} --> {target.name}" + f" : {label}" * bool(label))
    lines += [f"    {phase.name} --> [*]" for phase in FINAL]
    lines += [f"    note right of {name} : {', '.join(names)}" for name, names in consulted.items()]
    return "\n".join(lines)


def dot(table: Iterable[Edge] = TABLE, consulted: Mapping[str, Collection[str]] = NOBODY) -> str:
    """The same for Graphviz: boxes are phases, diamonds junctions, and who is consulted stands in the box."""
    rows = tuple(table)
    lines = ["digraph machine {", "    node [shape=box]"]
    for place in dict.fromkeys(place for edge in rows for place in (edge.source, edge.target)):
        shape = ["shape=diamond"] if isinstance(place, Junction) else ["peripheries=2"] if place in FINAL else []
        who = consulted.get(place.name, ())
        names = [f"label={_quoted(chr(10).join((place.name, *who)))}"] if who else []
        lines += [f"    {place.name} [{', '.join((*shape, *names))}]"] * bool(shape or names)
    for source, target, label in _labelled(rows):
        lines.append(f"    {source.name} -> {target.name}" + f" [label={_quoted(label)}]" * bool(label))
    return "\n".join([*lines, "}"])


def text(table: Iterable[Edge] = TABLE, consulted: Mapping[str, Collection[str]] = NOBODY) -> str:
    """The table as it is read, a row a line; then who is consulted where."""
    rows = [f"{'from':<18} {'guard':<34} {'operations':<16} to", *map(str, table)]
    who = [f"{name:<18} {', '.join(names)}" for name, names in consulted.items()]
    return "\n".join(row.rstrip() for row in (*rows, *([""] if who else []), *who))


def contracted(watched: Set[Place]) -> tuple[Edge, ...]:
    """The machine as those see it who watch these places: an edge where it can go from one to the next of them."""
    kept = {*watched, Phase.READY, *FINAL}
    edges = []
    for source in (place for place in ROWS if place in kept):
        ahead, seen = [edge.target for edge in ROWS[source]], set[Place]()
        while ahead:
            place = ahead.pop(0)
            if place not in seen:
                seen.add(place)
                ahead += [] if place in kept else [edge.target for edge in ROWS[place]]
        edges += [Edge(source, (), (), place) for place in ROWS if place in seen and place in kept]
    return tuple(edges)


def arrows(table: Iterable[Edge]) -> list[tuple[Place, Place, str, str]]:
    """Source, target, guard in brackets and operations; rows with the same operations are one arrow."""
    found: dict[tuple[Place, Place, str], list[str]] = {}
    for edge in table:
        operations = ", ".join([*(o.value for o in edge.operations), *(f"raise {f.name}" for f in edge.raises)])
        guard = " and ".join(map(term_name, edge.guard))
        found.setdefault((edge.source, edge.target, operations), []).append(guard)
    return [
        (source, target, f"[{' or '.join(guards)}]" if all(guards) else "", operations)
        for (source, target, operations), guards in found.items()
    ]


def _labelled(table: Iterable[Edge]) -> list[tuple[Place, Place, str]]:
    """Source, target and label."""
    return [
        (source, target, " ".join(filter(None, (guard, operations))))
        for source, target, guard, operations in arrows(table)
    ]


def _quoted(label: str) -> str:
    escaped = label.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'
