"""A replay that parses no more of a line than it must says what it says of one that is read as a whole."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import orjson
import pytest

from fsm_train import Callback, LogError, Phase, Recorded, Scripted, State, Transition, on, replay, run, start
from fsm_train.callbacks import accumulate, early_stopping, record, reduce_on_plateau
from fsm_train.eventlog import checker, log_lines
from fsm_train.eventlog.checker import LineChecker
from fsm_train.eventlog.entries import entries
from fsm_train.eventlog.entry import LazyEntry
from fsm_train.eventlog.lines import digest, line_of, with_digest
from fsm_train.eventlog.log_lines import OTHERWISE_WRITTEN, LogLines
from fsm_train.eventlog.replayer import _Replay
from tests.how_long import of_all, step_through

from .log_files import library, logged, smoothed, various_logs
from .mutations import first_difference

FEW = 150
MUTATIONS = of_all(5_000, few=FEW)


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Sequence[Path]:
    """With what can be in one."""
    return various_logs(tmp_path_factory.mktemp("logs"))


def _given(patience: int) -> list[Callback[Any]]:
    *others, _ = library()
    return [*others, early_stopping("valid_loss", patience=patience), smoothed, record("loss"), reduce_on_plateau()]


def outcome(path: Path, callbacks: list[Callback[Any]] | None) -> list[object]:
    """What a replay says, or the error."""
    try:
        replayed = replay(path, callbacks)
    except (LogError, ArithmeticError, LookupError, AssertionError) as error:  # those after the first: of a mutant
        return [repr(error)]
    last = replayed.state
    return [replayed.ok, replayed.lines, str(replayed.divergence), repr(line_of(last, {})), repr(last.memory)]


def told_apart(path: Path, logs: Sequence[Path], mutations: int) -> int | None:
    """The first mutation of a log that the two ways replay differently; None if there is none."""

    def question(draw: random.Random) -> Callable[[], object]:
        return partial(outcome, path, draw.choice((None, _given(3), _given(1))))

    return first_difference(path, logs, "_lazy_entry", question, mutations)


@pytest.mark.long
def test_a_mutated_log_is_replayed_as_one_that_is_read_as_a_whole(logs: Sequence[Path], tmp_path: Path) -> None:
    """The same agreement, the same difference, or the same fault in the same words."""
    assert told_apart(tmp_path / "run.jsonl", logs, MUTATIONS) is None


def _passes_any(self: LogLines, state: State, answers: object) -> bool:
    """A mutant of `pass_if_written`, which compares the phase alone."""
    entry = self.next_line()
    if type(entry) is not LazyEntry or entry.event != state.phase.value:
        return False
    self.pass_line()
    return True


MUTANTS: dict[str, tuple[object, str, object]] = {
    "leaves lines that were read unchecked": (LogLines, "open_lines", lambda self: None),
    "takes any line of a phase": (LogLines, "pass_if_written", _passes_any),
    "finds the line of a state by its phase": (log_lines, "begins_as", lambda *_: True),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_lazy_replay_that_takes_too_much_is_found(
    mutant: str, logs: Sequence[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mutations get to each of its checks."""
    monkeypatch.setattr(*MUTANTS[mutant])

    assert told_apart(tmp_path / "run.jsonl", logs, FEW) is not None


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """Two batches, which are watched at their end, and held to be one step."""
    path = tmp_path / "run.jsonl"
    run(start(Scripted(batches=2, loss=[0.5, 0.25]), epochs=1), [accumulate(2), smoothed], log=path)
    return path


def is_lazy(path: Path) -> list[str]:
    """The events of the lines that are not read as a whole."""
    return [entry.event for entry in entries(path, LineChecker(path, lazy=True)) if type(entry) is LazyEntry]


def rewritten(path: Path, change: Callable[[bytes], bytes]) -> None:
    """Change the JSON of each line, and make its digest fit."""
    before, lines = "", []
    for raw in path.read_bytes().splitlines(keepends=True):
        body = change(raw[: raw.rindex(b',"digest"')] + raw[raw.rindex(b',"event"') : -1])
        before = digest(before, body)
        lines.append(with_digest(body, before, orjson.loads(body)["event"]))
    path.write_bytes(b"".join(lines))


def as_a_whole(path: Path, monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """What a replay says that is not lazy."""
    with monkeypatch.context() as context:
        context.setattr(LineChecker, "_lazy_entry", lambda *_: None)
        return outcome(path, [accumulate(2), smoothed])


def test_a_line_is_lazy_that_is_within_a_batch(log: Path) -> None:
    """All others have what a replay needs of them."""
    assert is_lazy(log) == ["loss_end", "batch_end", "loss_end", "batch_end"]


def test_each_byte_of_a_lazy_line_is_checked(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is another one, the line is refused as one that is read as a whole."""
    whole = log.read_bytes()
    lines = whole.splitlines(keepends=True)
    begin = sum(map(len, lines[:4]))
    assert b"batch_end" in lines[4]
    for at in range(begin, begin + len(lines[4]), step_through(few=3)):
        for byte in (ord("x"), ord('"')):
            log.write_bytes(whole[:at] + bytes([byte]) + whole[at + 1 :])
            assert outcome(log, [accumulate(2), smoothed]) == as_a_whole(log, monkeypatch), at


def test_a_course_elsewhere_in_a_line_is_followed(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No version of this library writes it so; it is found when the line is compared, and the log read once more."""
    rewritten(
        log, lambda body: body.replace(b',"course":[[32,1]]', b"").replace(b',"facts"', b',"course":[[32,1]],"facts"')
    )
    rewritten(log, lambda body: body if b"loss_end" in body else body.replace(b'"course":[[32,1]],', b""))

    said = as_a_whole(log, monkeypatch)
    assert said[0] is True
    assert outcome(log, [accumulate(2), smoothed]) == said


def test_facts_behind_the_event_are_those_of_the_line(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a key that comes twice JSON has the last; no logger writes it so, but whoever makes digests fit can."""
    before, lines = "", []
    for raw in log.read_bytes().splitlines():
        head, event = raw[: raw.rindex(b',"digest"')], raw[raw.rindex(b',"event"') :]
        if b"batch_end" in event:
            event = event[:-1] + b',"facts":{"loss":{"$float":"nan"}}}'
        before = digest(before, head + event)
        lines.append(b'%b,"digest":"%b"%b\n' % (head, before.encode(), event))
    log.write_bytes(b"".join(lines))

    assert is_lazy(log) == ["loss_end", "loss_end"]
    assert outcome(log, [accumulate(2), smoothed]) == as_a_whole(log, monkeypatch)
    assert outcome(log, [accumulate(2), smoothed])[0] is False


def test_what_is_written_otherwise_is_read_as_a_whole_before_long(tmp_path: Path) -> None:
    """A number can be written in many ways, and lines that have to be parsed anyway are not looked at twice."""
    logged(path := tmp_path / "run.jsonl", [smoothed])
    rewritten(path, lambda body: body.replace(b'"hyper":{"lr":0.1}', b'"hyper":{"lr":1.0e-1}'))
    recorded = Recorded(path, lazy=True)
    state = recorded.start()

    assert replay(path, [smoothed]).ok
    assert _lines_of_a_replay(recorded, state) > 2 * OTHERWISE_WRITTEN
    assert recorded._checker is not None
    assert not recorded._checker.lazy


def _lines_of_a_replay(recorded: Recorded, state: State) -> int:
    call = _Replay(recorded, state, (smoothed,))
    assert call.first_divergence() is None
    return call.lines


def test_more_endings_than_are_kept_are_parsed_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As of batches that each count something else."""
    monkeypatch.setattr(checker, "MOST_TAILS", 2)
    path = tmp_path / "run.jsonl"
    run(start(Scripted(batches=9, batch_size=lambda state: 1 + state.batch), epochs=2), [smoothed], log=path)

    assert is_lazy(path) == ["batch_end"] * 18
    assert replay(path, [smoothed]).ok


def test_a_line_with_many_brackets_is_read_as_a_whole(tmp_path: Path) -> None:
    """It can be too deep, which is not to be seen from outside."""

    @on(Phase.BATCH_END, memory=())
    def remembers(state: State, before: tuple[object, ...]) -> Transition:
        return Transition(memory=tuple((i,) for i in range(100 * state.iteration)))

    path = tmp_path / "run.jsonl"
    run(start(Scripted(batches=4), epochs=1), [remembers], log=path)

    assert is_lazy(path) == ["batch_end"] * 2
    assert replay(path, [remembers]).ok
