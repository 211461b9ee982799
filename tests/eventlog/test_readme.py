"""The README of the event log: its tables have each key, and its code reads a log."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import orjson

import fsm_train.eventlog
from fsm_train import Scripted, extend, read_log, run, start
from fsm_train.encoding import _DECODERS
from fsm_train.eventlog.lines import HEADER_KEYS, KEYS

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
    assert described == {path.name for path in folder.glob("*.py")} - {"__init__.py", "errors.py"}


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
