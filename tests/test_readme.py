"""What the README shows is what happens."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import torch

import fsm_train.callbacks
from fsm_train import Callback
from fsm_train.core.diagram import mermaid
from fsm_train.testing import check_callback

README = Path(__file__).parents[1] / "README.md"


def test_code_in_the_readme_runs() -> None:
    """All Python blocks, as a reader would try them in one session; and what is shown as a callback is a good one."""
    torch.manual_seed(0)
    session: dict[str, object] = {}
    blocks = re.findall(r"^```python\n(.*?)^```", README.read_text(), re.DOTALL | re.MULTILINE)

    for block in blocks:
        exec(block, session)

    assert len(blocks) >= 5
    shown = [value for value in session.values() if isinstance(value, Callback)]
    assert len(shown) >= 5
    for callback in shown:
        check_callback(callback, examples=20)


def test_diagram_in_the_readme_is_that_of_the_table() -> None:
    """The machine that is drawn is the one that runs; `python -m tests.test_readme` draws it anew."""
    assert _drawn() in README.read_text()


def test_readme_lists_the_library() -> None:
    """Each callback stands in the table, linked to its file, with the first sentence of its docstring."""
    rows = [_row(name) for name in sorted(fsm_train.callbacks.__all__)]

    for name in fsm_train.callbacks.__all__:
        assert f"\ndef {name}(" in (README.parent / _file_of(name)).read_text()
    assert [row for row in rows if row not in README.read_text()] == []


def _row(name: str) -> str:
    factory, where = getattr(fsm_train.callbacks, name), _file_of(name)
    effect = " ".join((inspect.getdoc(factory) or "").split("\n\n")[0].split()).replace("|", "\\|")
    return f"| [`{name}`]({where}) | {effect} |"


def _file_of(name: str) -> Path:
    """Where the factory is written, and not what is around it."""
    factory = inspect.unwrap(getattr(fsm_train.callbacks, name))
    return Path(inspect.getsourcefile(factory) or "").relative_to(README.parent)


def _drawn() -> str:
    return f"<!-- machine -->\n```mermaid\n{mermaid()}\n```\n<!-- /machine -->"


def _redraw() -> None:
    text = README.read_text()
    text = re.sub(r"<!-- machine -->.*<!-- /machine -->", lambda _: _drawn(), text, flags=re.DOTALL)
    rows = "\n".join(_row(name) for name in sorted(fsm_train.callbacks.__all__))
    text = re.sub(r"(\| callback \| effect \|\n\|---\|---\|\n)(\|[^\n]*\n)*", lambda m: m[1] + rows + "\n", text)
    README.write_text(text)


if __name__ == "__main__":
    _redraw()
