"""The README of the event log: its tables have each key, and its code reads a log."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

import orjson
import pytest

import fsm_train.eventlog
from examples import what_if
from fsm_train import EventLog, Phase, Scripted, State, extend, read_log, replay, run, start
from fsm_train.cli import main
from fsm_train.encoding import _DECODERS
from fsm_train.eventlog.lines import HEADER_KEYS, KEYS, SCHEMA

from .log_files import smoothed
from .make_golden import GOLDEN

README = (Path(fsm_train.eventlog.__file__).parent / "README.md").read_text(encoding="utf-8")


def _keys(section: str) -> set[str]:
    """The keys in the first column of the first table in a section."""
    table = README.split(f"\n## {section}\n")[1].split("\n| key | value |\n")[1].split("\n\n")[0]
    return {key for row in table.splitlines() for key in re.findall(r"`(\w+)`", row.split("|")[1])}


def test_each_key_is_described() -> None:
    """Those of a line and those of a header, and no others."""
    assert _keys("A line") == KEYS
    assert _keys("The header") == HEADER_KEYS
    assert all(f'{{"{key}":' in README for key in _DECODERS)


def test_the_example_is_a_line_of_a_log() -> None:
    """It stands in a golden log."""
    (example,) = re.findall(r"```json\n(.*)\n```", README)

    assert example in (GOLDEN / "library-1.jsonl").read_text(encoding="utf-8").splitlines()


def test_each_file_is_described() -> None:
    """Those of the folder, and no others."""
    table = README.split("\n| file | what is in it |\n")[1].split("\n\n")[0]
    described = {name for row in table.splitlines() for name in re.findall(r"`(\w+\.py)`", row.split("|")[1])}

    folder = Path(fsm_train.eventlog.__file__).parent
    assert described == {path.name for path in folder.glob("*.py")} - {"__init__.py"}


def test_its_code_reads_a_log(tmp_path: Path) -> None:
    """It gives the lines that count of a log with superseded ones."""
    path = tmp_path / "run.jsonl"
    first = run(start(Scripted(batches=2, valid_loss=1.0), epochs=1), [smoothed], log=path)
    second = run(extend(first, epochs=1), [smoothed], log=path)
    run(extend(first, epochs=2), [smoothed], log=path)
    run(extend(second, epochs=1), [smoothed], log=path)
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    names: dict[str, Any] = {}
    exec(code, names)

    lines = names["read"](path)

    assert [line["seq"] for line in lines] == [record.seq for record in read_log(path)]
    assert len(lines) < len(orjson.loads(b"[%b]" % b",".join(path.read_bytes().splitlines())))


def test_there_is_a_golden_log_of_each_schema() -> None:
    """From the first on, as far as the name of the file says it and its header."""
    headers = [orjson.loads(path.read_bytes().splitlines()[0]) for path in GOLDEN.glob("*.jsonl")]
    assert {*range(1, SCHEMA + 1)} <= {header["schema"] for header in headers}


def test_a_course_is_what_came_from_the_world(tmp_path: Path) -> None:
    """Run-length encoded: batches by what they count, the end of the data, a step held back, a signal."""
    path = tmp_path / "run.jsonl"

    class World(Scripted):
        def step(self, state: State | None = None) -> bool:
            steps.append(super().step(state))
            self.interrupt = "SIGTERM" if len(steps) == 5 else None
            return len(steps) != 2

    steps: list[bool] = []
    sizes = [32, 32, 29]
    work = World(batches=3, batch_size=lambda state: sizes[state.batch])
    suspended = run(start(work, epochs=2, seed=0), log=path)
    final = run(suspended, log=path)

    assert (suspended.phase, suspended.iteration, final.phase) == (Phase.SUSPENDED, 5, Phase.DONE)
    course = [pair for line in path.read_bytes().splitlines() for pair in orjson.loads(line).get("course", ())]
    first_epoch = [[32, 2], ["held back", 1], [29, 1], [None, 1]]
    assert course == [*first_epoch, [32, 2], ["SIGTERM", 1], [29, 1], [None, 1]]
    assert replay(path, []).ok


class Events(list[dict[str, Any]]):
    """A logger that keeps its events."""

    def info(self, event: str, **keys: Any) -> None:
        self.append({"event": event, **keys})


def test_a_digest_of_lines_through_another_logger_is_of_sorted_keys() -> None:
    """As orjson writes them, the digest of the line before first; by that a reader can check them without the bytes."""
    events = Events()
    run(start(Scripted(batches=2, valid_loss=1.0), epochs=2), [smoothed], log=EventLog(events))

    before = ""
    for event in events:
        body = orjson.dumps({k: v for k, v in event.items() if k != "digest"}, option=orjson.OPT_SORT_KEYS)
        assert event["digest"] == hashlib.blake2b(before.encode() + body, digest_size=6).hexdigest()
        before = event["digest"]
    assert len(events) > 8


def _shape(text: str) -> str:
    """The text without its numbers and bars, which depend on the processor, and without the spaces that align them."""
    return re.sub(r" +", " ", re.sub(r"[▁-█]", "▁", re.sub(r"\d+(\.\d+)?(e-\d+)?", "0", text)))


def test_what_the_commands_print_is_what_it_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of the trainings of `examples/what_if.py`; rows that are left out there stand for any."""
    monkeypatch.chdir(tmp_path)
    for patience in (3, 10):
        what_if.train(patience, Path(f"patience-{patience}.jsonl"))
    shown = re.findall(r"^\$ fsm-train (.*)\n((?:.*\n)*?)```", README, re.MULTILINE)

    assert [command.split()[0] for command, _ in shown] == ["show", "what-if", "diff"]
    for command, text in shown:
        main(command.split())
        pattern = r"(?:.*\n)*".join(map(re.escape, _shape(text).split(" ...\n")))
        assert re.fullmatch(pattern, _shape(capsys.readouterr().out)), command
