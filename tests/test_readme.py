"""What the READMEs show is what happens. `python -m tests.test_readme` writes their tables and the diagram again."""

from __future__ import annotations

import ast
import contextlib
import inspect
import io
import re
from pathlib import Path

import pytest
import torch

import fsm_train.callbacks
from fsm_train import Callback, Flag, Phase
from fsm_train.cli import main
from fsm_train.core.diagram import mermaid
from fsm_train.core.facts import KNOWN_AT
from fsm_train.core.guards import steps_reached
from fsm_train.core.phase import CONSULTED, Operation
from fsm_train.core.rounds import Look, round_of
from fsm_train.core.table import WITHOUT_TURNS
from fsm_train.testing import check_callback
from tests.generated import marked, write_block

ROOT = Path(__file__).parents[1]
ROOMS = ("fsm_train", "examples", "tests", "property_tests")
README = ROOT / "README.md"
MACHINE = ROOT / "fsm_train" / "core" / "README.md"
SUPERVISED = ROOT / "fsm_train" / "supervised" / "README.md"
LIBRARY = ROOT / "fsm_train" / "callbacks" / "README.md"
PICTURE = ROOT / ".github" / "machine.svg"
GALLERY = ROOT / "examples" / "README.md"
READMES = [README, *(path for room in ROOMS for path in sorted((ROOT / room).rglob("README.md")))]
PROSE = [*READMES, ROOT / "CHANGELOG.md", ROOT / ".github" / "CONTRIBUTING.md"]


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


def code_in(path: Path) -> list[str]:
    """The Python blocks of a README."""
    return re.findall(r"^```python\n(.*?)^```", path.read_text(), re.DOTALL | re.MULTILINE)


def test_each_promise_has_its_test() -> None:
    """The tests that `tests/README.md` names for the promises of the README exist under these names."""
    table = (ROOT / "tests" / "README.md").read_text().partition("## Which test holds which promise")[2]
    tests = re.findall(r"^\| .* \| `([\w/]+\.py)(?:::(\w+))?` \|$", table.partition("\n## ")[0], re.MULTILINE)

    assert len(tests) > 20
    for path, name in tests:
        assert not name or f"def {name}(" in (ROOT / path).read_text(), f"{path}::{name}"
        assert (ROOT / path).is_file()


@pytest.mark.unmeasured
@pytest.mark.parametrize("path", [path for path in READMES if code_in(path)], ids=named)
def test_code_in_a_readme_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All Python blocks, as a reader would try them in one session; and what is shown as a callback is a good one."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    session: dict[str, object] = {}

    for block in code_in(path):
        exec(block, session)

    for callback in session.values():
        if isinstance(callback, Callback):
            check_callback(callback, examples=20)


def test_readme_is_read_in_one_sitting() -> None:
    """The first README has at most 200 lines, and shows a callback, its test and a training."""
    assert len(README.read_text().splitlines()) <= 200
    assert len(code_in(README)) >= 4
    assert sum(block.count("@on(") for path in READMES for block in code_in(path)) >= 5


@pytest.mark.parametrize("path", PROSE, ids=named)
def test_links_lead_somewhere(path: Path) -> None:
    """Each link to a file of the repository finds it, and each link to a heading finds the heading."""
    lost = []
    for target, _, anchor in re.findall(r"\]\((?!https?:)([^)#]*)(#([^)]*))?\)", path.read_text()):
        file = (path.parent / target).resolve() if target else path
        if not file.exists() or (anchor and anchor not in headings(file)):
            lost.append(target + anchor)

    assert lost == []


def headings(path: Path) -> set[str]:
    """The anchors that GitHub gives to the headings of a file."""
    texts = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in texts}


def test_contributing_names_files_that_exist() -> None:
    """The tables of what to change where name files of the package, of the tests and of the examples."""
    text = (ROOT / ".github" / "CONTRIBUTING.md").read_text()
    files = sorted(set(re.findall(r"`([\w/.]+\.(?:py|md))`", text)))

    assert len(files) > 10
    assert [file for file in files if not any((ROOT / place / file).exists() for place in ("fsm_train", ""))] == []


def test_loop_is_that_which_is_compiled() -> None:
    """The round that is shown is written of the table that runs."""
    assert marked("round", a_round()) in MACHINE.read_text()


def test_diagram_is_that_of_the_table() -> None:
    """The machine that is drawn is the one that runs."""
    assert marked("machine", drawn()) in MACHINE.read_text()


def test_phases_and_flags_are_listed() -> None:
    """Each phase has a row with the facts that are known there, and each flag has a row."""
    phases, flags = MACHINE.read_text().split("\n## Flags\n")
    facts = {
        phase.name: ", ".join(f"`{fact}`" for fact, at in KNOWN_AT.items() if phase in at and fact != "batch_size")
        for phase in CONSULTED
    }

    assert dict(re.findall(r"^\| `([A-Z_]+)` \| [^|]+ \| ([^|]+) \|$", phases, re.MULTILINE)) == facts
    assert [flag.name for flag in Flag if f"\n| `{flag.name}` | " not in flags] == []


def test_gallery_lists_the_examples() -> None:
    """Each script has its row; and what other libraries' names are translated to are phases and flags that exist."""
    text = GALLERY.read_text()
    scripts = {path.name for path in GALLERY.parent.glob("*.py")}
    translated = set(re.findall(r"`([A-Z]+_[A-Z_]+)`", text))

    assert set(re.findall(r"^\| \[`(\w+\.py)`\]", text, re.MULTILINE)) == scripts
    assert translated - Flag.__members__.keys() <= Phase.__members__.keys()


def test_readme_lists_the_library() -> None:
    """Each callback stands in the first README; in the table linked to its file, with how its docstring begins."""
    rows = [callback_row(name) for name in sorted(fsm_train.callbacks.__all__)]

    for name in fsm_train.callbacks.__all__:
        assert f"\ndef {name}(" in (ROOT / file_of(name)).read_text()
    assert [row for row in rows if row not in LIBRARY.read_text()] == []
    assert [name for name in fsm_train.callbacks.__all__ if f"`{name}`" not in README.read_text()] == []


def callback_row(name: str) -> str:
    factory, where = getattr(fsm_train.callbacks, name), file_of(name)
    effect = " ".join((inspect.getdoc(factory) or "").split("\n\n")[0].split()).replace("|", "\\|")
    return f"| [`{name}`]({where.name}) | {effect} |"


def file_of(name: str) -> Path:
    """Where the factory is written, and not what is around it."""
    factory = inspect.unwrap(getattr(fsm_train.callbacks, name))
    return Path(inspect.getsourcefile(factory) or "").relative_to(ROOT)


@pytest.mark.parametrize("path", [MACHINE, SUPERVISED], ids=named)
def test_a_large_room_lists_its_files(path: Path) -> None:
    """Each file stands in the README of its room with how its docstring begins."""
    assert marked("files", listed(path)) in path.read_text()


@pytest.mark.parametrize("room", ["checkpoints", "data", "diagnosis", "eventlog", "sinks", "view", "worlds"])
def test_a_small_room_says_what_is_in_each_file(room: str) -> None:
    """The table of files in its README leaves none out."""
    text = (ROOT / "fsm_train" / room / "README.md").read_text()

    assert [path.name for path in files_beside(ROOT / "fsm_train" / room / "README.md") if path.name not in text] == []


def listed(path: Path) -> str:
    """The table of the files beside a README, by how their docstrings begin."""
    sentences = {
        file.name: " ".join((ast.get_docstring(ast.parse(file.read_text())) or "").split("\n\n")[0].split())
        for file in files_beside(path)
    }
    rows = "\n".join(f"| [`{name}`]({name}) | {sentence} |" for name, sentence in sentences.items())
    return f"| file | what is in it |\n|---|---|\n{rows}"


def files_beside(readme: Path) -> list[Path]:
    return [path for path in sorted(readme.parent.glob("*.py")) if path.name != "__init__.py"]


def test_picture_is_that_of_the_machine() -> None:
    """What the README shows is what `fsm-train graph` prints today, with the callbacks of the example."""
    assert PICTURE.read_text() == picture()
    assert f'<img src="{PICTURE.relative_to(ROOT)}"' in README.read_text()


def picture() -> str:
    """The output of the command that the README's picture is made with."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert main(["graph", "--format", "svg", "--callbacks", "examples.digits:callbacks"]) == 0
    return printed.getvalue()


def drawn() -> str:
    return f"```mermaid\n{mermaid()}\n```"


def a_round() -> str:
    """The round for one callback without a memory at BATCH_END, where a step is one call."""
    settled = frozenset({**WITHOUT_TURNS, steps_reached: False}.items())
    step = tuple(Operation(name) for name in ("forward", "loss", "backward", "unscale", "step", "zero"))
    looks = frozenset({(Phase.BATCH_END, Look((False,)))})
    found = round_of(frozenset({Phase.BATCH_END}), settled, looks, frozenset({step}))
    return f"```text\n{found.text}```"


def write_generated() -> None:
    """Write the diagram, the tables of files and that of callbacks into their READMEs, and the picture."""
    PICTURE.write_text(picture())
    write_block(MACHINE, "machine", drawn())
    write_block(MACHINE, "round", a_round())
    for readme in (MACHINE, SUPERVISED):
        write_block(readme, "files", listed(readme))
    rows = "\n".join(callback_row(name) for name in sorted(fsm_train.callbacks.__all__))
    table = r"(\| callback \| effect \|\n\|---\|---\|\n)(\|[^\n]*\n)*"
    LIBRARY.write_text(re.sub(table, lambda match: match[1] + rows + "\n", LIBRARY.read_text()))


if __name__ == "__main__":
    write_generated()
