"""A log that is read ahead says what it says, and where it is damaged."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest

from fsm_train import LogError, replay
from fsm_train.callbacks import early_stopping
from fsm_train.eventlog.ahead import LINES_AHEAD, read_ahead
from fsm_train.eventlog.entries import entries
from fsm_train.eventlog.entry import Entry, entry_of

from .log_files import library, logged


def test_lines_come_as_they_are(tmp_path: Path) -> None:
    """All of them, in their order, also where there are more than are read at once."""
    logged(path := tmp_path / "run.jsonl", library())
    numbers = [entry.number for entry in entries(path)]

    assert [entry.number for entry in read_ahead(entries(path))] == numbers
    assert len(numbers) > 2 * LINES_AHEAD
    assert list(read_ahead(iter(()))) == []


@pytest.mark.parametrize("good", [0, 1, LINES_AHEAD, LINES_AHEAD + 5])
def test_an_error_comes_after_the_lines_before_it(good: int) -> None:
    """As if each line was read when it is asked for."""

    def lines() -> Iterator[Entry]:
        for number in range(good):
            yield entry_of(number, {"seq": number, "event": "setup", "digest": ""})
        raise LogError("damaged", path="run.jsonl", line=good + 1)

    given = read_ahead(lines())
    assert [entry.number for entry in islice(given, good)] == list(range(good))
    with pytest.raises(LogError, match="damaged"):
        next(given)


def test_what_differs_before_a_damaged_line_is_found_before_it(tmp_path: Path) -> None:
    """A replay that stops at a difference does not get to the damage, which is a few lines later."""
    logged(path := tmp_path / "run.jsonl", [early_stopping(patience=3)])
    *lines, _ = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines, b"{}\n", b"no json\n", lines[-1]]))

    divergence = replay(path, [early_stopping(patience=0)]).divergence
    assert divergence is not None
    assert divergence.line < len(lines)
    with pytest.raises(LogError, match="no JSON"):
        replay(path, [early_stopping(patience=3)])
