"""How a record or a workload looks in a terminal and in a notebook: text and tables that fit a screen of 80 by 24.

Rule of this file: strings from values. Everything that goes into HTML is escaped.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

WIDTH, HEIGHT = 80, 24


class Html(str):
    """Text that is HTML already, such as a drawing: it is not escaped."""

    __slots__ = ()


def cut(line: str, width: int = WIDTH) -> str:
    """The line, or its beginning and an ellipsis where it is wider than `width` characters.

    >>> cut("a long line", 7)
    'a long…'
    """
    return line if len(line) <= width else line[: width - 1].rstrip() + "…"


def middle_out(lines: Sequence[str], height: int = HEIGHT - 2) -> list[str]:
    """The lines, or where there are more than `height`, the first and the last of them.

    >>> middle_out("abcdefg", 5)
    ['a', 'b', '… 3 more …', 'f', 'g']
    """
    if len(lines) <= height:
        return list(lines)
    first, last = height // 2, (height - 1) // 2
    return [*lines[:first], f"… {len(lines) - first - last} more …", *lines[-last:]]


def properties(name: str, values: Iterable[tuple[str, object]]) -> str:
    """What a thing consists of, a line for each part.

    >>> print(properties("Pair", [("first", 1), ("second", "two")]))
    Pair(
      first: 1
      second: two
    )
    """
    lines = (cut(f"  {part}: {' '.join(str(value).split())}") for part, value in values)
    return "\n".join([f"{name}(", *middle_out(list(lines), HEIGHT - 4), ")"])


def html_table(caption: str, rows: Iterable[Sequence[object]], head: Sequence[object] = ()) -> str:
    """A table in HTML. The first cell of each row is its heading, and the last one fills the row.

    >>> html_table("Pair", [("first", "<1>")])
    '<table><caption>Pair</caption><tr><th>first</th><td>&lt;1&gt;</td></tr></table>'
    """
    first = "".join(f"<th>{_cell(cell)}</th>" for cell in head)
    rows = list(rows)
    columns = max(map(len, rows), default=1)
    body = []
    for name, *cells in rows:
        filled = [f"<td>{_cell(cell)}</td>" for cell in cells]
        if cells and len(cells) + 1 < columns:
            filled[-1] = f'<td colspan="{columns - len(cells)}">{_cell(cells[-1])}</td>'
        body.append(f"<tr><th>{_cell(name)}</th>{''.join(filled)}</tr>")
    header = f"<tr>{first}</tr>" if head else ""
    return f"<table><caption>{_cell(caption)}</caption>{header}{''.join(body)}</table>"


def _cell(value: object) -> str:
    return value if isinstance(value, Html) else escape(str(value))
