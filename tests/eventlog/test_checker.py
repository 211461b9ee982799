"""The short way through the check of a line takes what the long one takes, and refuses nothing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from fsm_train import LogError
from fsm_train.eventlog import checker, forms
from fsm_train.eventlog.checker import LineChecker
from fsm_train.eventlog.entries import entries
from tests.how_long import of_all

from .log_files import various_logs
from .mutations import first_difference

FEW = 300
MUTATIONS = of_all(5_000, few=FEW)


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Sequence[Path]:
    """With what can be in one."""
    return various_logs(tmp_path_factory.mktemp("logs"))


def read(path: Path) -> tuple[list[list[Any]], str]:
    """Each part of each line up to the first fault, and the fault."""
    seen: list[list[Any]] = []
    try:
        for entry in entries(path):
            seen.append([repr(getattr(entry, name)) for name in entry.__slots__])  # noqa: PERF401  those before a fault
    except (LogError, TypeError) as error:  # a TypeError of a mutant
        return seen, repr(error)
    return seen, ""


def told_apart(path: Path, logs: Sequence[Path], mutations: int) -> int | None:
    """The first mutation that the two ways read differently; None if there is none."""
    return first_difference(path, logs, "_plain_entry", lambda draw: lambda: read(path), mutations)


@pytest.mark.long
def test_the_short_way_reads_what_the_long_one_reads(logs: Sequence[Path], tmp_path: Path) -> None:
    """Of a mutated log the same lines, and the same fault in the same words."""
    assert told_apart(tmp_path / "run.jsonl", logs, MUTATIONS) is None


MUTANTS: dict[str, tuple[str, object]] = {
    "takes any value": ("is_plain_inside", lambda line: True),
    "takes any type": ("is_plain", lambda line: (*line,) in forms._PLAIN),
    "takes any move": ("_PLAIN_AFTER", dict.fromkeys(checker.EVENTS, checker.EVENTS - {"header", "history"})),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_short_way_that_takes_too_much_is_found(
    mutant: str, logs: Sequence[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mutations get to each of its checks."""
    monkeypatch.setattr(checker, *MUTANTS[mutant])

    assert told_apart(tmp_path / "run.jsonl", logs, FEW) is not None


def test_almost_all_lines_take_the_short_way(logs: Sequence[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Only headers and the last lines of a run do not, or reading would be slow without a word."""
    long: list[str] = []
    whole = LineChecker._check_any

    def noted(self: LineChecker, number: int, raw: bytes, line: dict[str, Any]) -> Any:
        long.append(line["event"])
        return whole(self, number, raw, line)

    monkeypatch.setattr(LineChecker, "_check_any", noted)
    for path in logs:
        read(path)

    assert set(long) <= {"header", "setup", "epoch_begin", "train_end", "teardown", "done", "suspend", "suspended"}
    assert len(long) < 30
