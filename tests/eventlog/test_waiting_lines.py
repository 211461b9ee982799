"""Lines are encoded together: what is in the log is the same, and what a kill takes is bounded."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any

import pytest

from fsm_train import EventLog, Flag, Phase, Scripted, State, Transition, on, read_log, replay, run, start
from fsm_train.eventlog import writer

from .log_files import library, lines_of, logged, smoothed, workload


def test_lines_that_are_encoded_together_are_those_that_each_alone_would_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the byte, with answers, facts, courses and an end."""
    logged(tmp_path / "together.jsonl", library())
    monkeypatch.setattr(writer, "LINES_AT_ONCE", 1)
    logged(tmp_path / "alone.jsonl", library())

    assert (tmp_path / "together.jsonl").read_bytes() == (tmp_path / "alone.jsonl").read_bytes()


@pytest.mark.parametrize("length", [0, 5_000, 100_000])
def test_a_kill_takes_no_more_than_64_kib_of_lines(length: int, tmp_path: Path) -> None:
    """Of short lines many wait for each other, of long ones few or none; one alone may be longer than that."""
    path, on_disk = tmp_path / "run.jsonl", []

    @on(Phase.BATCH_END, memory="")
    def note(state: State, before: str) -> Transition:
        on_disk.append(path.stat().st_size)  # what a kill would leave, before the line of this batch is given
        return Transition(memory=f"{state.iteration}".rjust(length))

    run(start(Scripted(batches=300), epochs=1), [note], log=path)

    ends = list(itertools.accumulate(map(len, path.read_bytes().splitlines(keepends=True))))
    missing = [end - size for end, size in zip(ends[2:], on_disk, strict=False)]
    assert max(missing) < (1 << 16) + length
    assert replay(path, [note]).ok


class _Interrupted(EventLog):
    """Ctrl-C comes while the line of the 11th batch is made, the first time."""

    came = False

    def _facts_of(self, state: State) -> Any:
        if state.iteration == 11 and not self.came:
            self.came = True
            raise KeyboardInterrupt
        return super()._facts_of(state)


def test_an_interrupt_while_lines_are_encoded_loses_none_of_them(tmp_path: Path) -> None:
    """Those that were not encoded yet are written when the log is closed."""

    @on(Phase.BATCH_END)
    def look(state: State) -> None:
        """Looks, so that there is a line."""

    path = tmp_path / "run.jsonl"
    with pytest.raises(KeyboardInterrupt):
        run(start(Scripted(batches=40), epochs=1), [look], log=_Interrupted(path))

    lines = [line["iteration"] for line in lines_of(path) if line["event"] == "batch_end"]
    assert lines == list(range(1, len(lines) + 1))
    assert len(lines) > 11
    assert len(list(read_log(path))) == len(lines_of(path))


class _WrongAtTheEleventh(Scripted):
    """Measures something that is no number."""

    @property
    def sensors(self) -> Set[str]:
        return {"odd"}

    def read(self, names: Set[str], state: State) -> Mapping[str, Any]:
        return {"odd": "text" if state.iteration == 11 else 1.0}


def test_a_line_that_cannot_be_made_takes_none_of_those_before_it(tmp_path: Path) -> None:
    """It is one warning, the training goes on, and the file ends with the line before."""

    @on(Phase.BATCH_END, needs={"odd"})
    def look(state: State) -> None:
        """Looks, so that there is a line."""

    path = tmp_path / "run.jsonl"
    with pytest.warns(RuntimeWarning, match="odd is 'text', which is no real number"):
        final = run(start(_WrongAtTheEleventh(batches=40), epochs=1), [look], log=path)

    assert (final.iteration, len(final.notes)) == (40, 1)
    assert lines_of(path)[-1]["iteration"] == 10
    assert len(list(read_log(path))) == len(lines_of(path))


def test_an_answer_is_written_as_it_was_given(tmp_path: Path) -> None:
    """Also where a callback that is not pure changes it before the lines are encoded."""
    from fsm_train.core.transition import Command

    class Listed(Command):
        """A command that can be written to, against the rules."""

        def __init__(self) -> None:
            self.batches: list[int] = []

        def __repr__(self) -> str:
            return f"Listed({self.batches})"

    listed = Listed()

    @on(Phase.BATCH_END)
    def changes_its_answer(state: State) -> Transition:
        listed.batches.append(state.iteration)
        return Transition(commands=(listed,))

    path = tmp_path / "run.jsonl"
    run(start(workload(), epochs=1), [changes_its_answer, smoothed], log=path)

    first = next(line for line in lines_of(path) if line["event"] == "batch_end")
    assert first["answers"]["changes_its_answer"]["commands"] == [{"$repr": "Listed([1])"}]


def test_more_kept_answers_than_are_remembered_are_encoded_anew(tmp_path: Path) -> None:
    """A callback that reads the epoch has an answer of its own in each, at most batches that which is kept."""

    @on(Phase.BATCH_END, memory=0, reads={"epoch"}, raises=Flag.NONE, sets=(), commands=())
    def remembers(state: State, before: int) -> Transition:
        return Transition(memory=state.epoch + 1)

    path = tmp_path / "run.jsonl"
    run(start(Scripted(batches=4), epochs=80), [remembers], log=path)

    lines = [line for line in lines_of(path) if line["event"] == "batch_end"]
    assert [line["answers"]["remembers"]["memory"] for line in lines] == [1 + i // 4 for i in range(320)]
    assert replay(path, [remembers]).ok
