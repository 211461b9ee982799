"""A replay sees: each planted fault is found at the first line where it shows, and what is unchanged never differs."""

from __future__ import annotations

import itertools
import math
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import orjson
import pytest

from fsm_train import (
    Callback,
    ClipGradNorm,
    Flag,
    LogError,
    Phase,
    Recorded,
    Scripted,
    State,
    Transition,
    WorkloadError,
    extend,
    iterate,
    on,
    replay,
    run,
    start,
    what_if,
)
from fsm_train.callbacks import accumulate, clip_grad_norm, early_stopping, schedule
from fsm_train.commands import KeepWeights
from fsm_train.schedules import absolute

from .log_files import LOSSES, Lines, forged, index, library, lines_of, logged, smoothed, workload, write


def test_an_unchanged_log_agrees_to_the_last_state(tmp_path: Path) -> None:
    """Made from the header or given, the callbacks decide what they decided."""
    path = tmp_path / "run.jsonl"
    final = logged(path)

    for callbacks in (None, library()):
        again = replay(path, callbacks)
        assert (again.ok, again.divergence, again.lines) == (True, None, len(lines_of(path)) - 1)
        assert again.state == attrs.evolve(final, workload=None)
        assert again.state.history == final.history


# ------------------------------------------------------------------------- callbacks that changed

Change = Callable[[list[Callback[Any]]], list[Callback[Any]]]


def _replace(name: str, *others: Callback[Any]) -> Change:
    return lambda callbacks: [*(c for c in callbacks if c.name != name), *others]


def _stop_sooner(state: State, seen: Any) -> Transition | None:
    return Transition(flags=Flag.STOP_TRAINING) if state.epoch == 2 else None


CHANGED: dict[str, tuple[Change, str, int, Callable[[Any], bool]]] = {
    "a smaller patience": (
        _replace("early_stopping", early_stopping(patience=1)),
        "early_stopping",
        2,
        lambda decided: decided["flags"] == "STOP_TRAINING",
    ),
    "a larger patience": (
        _replace("early_stopping", early_stopping(patience=4)),
        "early_stopping",
        7,
        lambda decided: "flags" not in decided,
    ),
    "another monitor": (
        _replace("early_stopping", early_stopping("train_loss")),
        "early_stopping",
        0,
        lambda decided: decided is None,
    ),
    "another clipping": (
        _replace("clip_grad_norm", clip_grad_norm(2.0)),
        "clip_grad_norm",
        0,
        lambda decided: decided["commands"][0]["max_norm"] == 2.0,
    ),
    "another window": (
        _replace("accumulate", accumulate(3)),
        "accumulate",
        0,
        lambda decided: decided["commands"][0]["share"] == 1 / 3,
    ),
    "another schedule": (
        _replace("schedule", schedule(lr=absolute(0.2))),
        "schedule",
        0,
        lambda decided: decided["hyper"]["lr"] == 0.2,
    ),
    "a callback that is missing": (_replace("clip_grad_norm"), "clip_grad_norm", 0, lambda decided: decided is None),
    "a callback that is new": (
        lambda callbacks: [*callbacks, Callback("new", (Phase.EPOCH_END,), _stop_sooner)],
        "new",
        2,
        lambda decided: decided == {"flags": "STOP_TRAINING"},
    ),
    "a callback that is new, where nobody looked": (
        lambda callbacks: [*callbacks, Callback("new", (Phase.BATCH_BEGIN,), _stop_sooner)],
        "new",
        2,
        lambda decided: decided == {"flags": "STOP_TRAINING"},
    ),
}


@pytest.mark.parametrize("fault", CHANGED)
def test_a_changed_callback_is_found_and_named(fault: str, tmp_path: Path) -> None:
    """The first decision that differs is shown with callback, phase, counters, what is recorded and what decided."""
    change, name, epoch, decided = CHANGED[fault]
    path = tmp_path / "run.jsonl"
    logged(path)

    found = replay(path, change(library())).divergence

    assert found is not None
    assert (found.callback, found.epoch) == (name, epoch)
    assert decided(found.decided)
    line = lines_of(path)[found.line - 1]
    assert (line["epoch"], line["batch"], line["step"]) == (found.epoch, found.batch, found.step)
    if line["event"] == found.phase and found.what == "answer":
        assert line.get("answers", {}).get(name) == found.recorded
    for part in (f"line {found.line}", f"epoch {found.epoch}, batch {found.batch}", "recorded", "decided", name):
        assert part in str(found)


def _with(decide: Callable[[State, Any], Transition | None]) -> list[Callback[Any]]:
    return [Callback("impure", (Phase.BATCH_END,), decide, 0.0)]


def test_a_callback_that_reads_the_clock_is_found(tmp_path: Path) -> None:
    """What depends on when it is asked is decided otherwise when it is asked again."""
    callbacks = _with(lambda state, _: Transition(memory=time.time()))
    logged(tmp_path / "run.jsonl", callbacks)

    found = replay(tmp_path / "run.jsonl", callbacks).divergence

    assert found is not None
    assert (found.callback, found.phase, found.iteration) == ("impure", "batch_end", 1)


def test_a_callback_with_hidden_state_is_found(tmp_path: Path) -> None:
    """What it keeps outside of its memory is not as it was when the training is replayed."""
    count = itertools.count()
    callbacks = _with(lambda state, _: Transition(memory=next(count)))
    logged(tmp_path / "run.jsonl", callbacks)

    found = replay(tmp_path / "run.jsonl", callbacks).divergence

    assert found is not None
    assert (found.recorded, found.decided["memory"] > 0) == ({"memory": 0}, True)


def test_a_callback_that_draws_from_the_global_generator_is_found(tmp_path: Path) -> None:
    """Chance that does not come from the state cannot come again."""
    callbacks = _with(lambda state, _: Transition(memory=random.random()))
    logged(tmp_path / "run.jsonl", callbacks)

    found = replay(tmp_path / "run.jsonl", callbacks).divergence

    assert found is not None
    assert found.callback == "impure"


def test_a_callback_that_raises_now_is_found(tmp_path: Path) -> None:
    """An exception where there was an answer is a difference, and says what was raised."""
    broken = False

    @on(Phase.BATCH_END, memory=0)
    def fragile(state: State, times: int) -> Transition:
        if broken and times == 2:
            raise ZeroDivisionError("now it does")
        return Transition(memory=times + 1)

    logged(tmp_path / "run.jsonl", [fragile])
    broken = True
    found = replay(tmp_path / "run.jsonl", [fragile]).divergence

    assert found is not None
    assert (found.callback, found.iteration, found.recorded) == ("fragile", 3, {"memory": 3})
    assert found.decided == "raised: now it does"


def test_a_callback_that_does_not_raise_any_more_is_found(tmp_path: Path) -> None:
    """That a callback failed is a decision of its code, and not a fact."""
    broken = True

    @on(Phase.BATCH_END)
    def fragile(state: State) -> None:
        if broken and state.iteration == 6:
            raise ZeroDivisionError("then it did")

    with pytest.raises(Exception, match="then it did"):
        logged(tmp_path / "run.jsonl", [fragile])
    assert replay(tmp_path / "run.jsonl", [fragile]).ok
    broken = False
    found = replay(tmp_path / "run.jsonl", [fragile]).divergence

    assert found is not None
    assert (found.phase, found.what, found.iteration) == ("teardown", "error", 6)
    assert "then it did" in str(found.recorded)


def test_the_order_of_commands_is_a_decision(tmp_path: Path) -> None:
    """Two commands in another order are found."""

    def clips(*norms: float) -> list[Callback[Any]]:
        commands = tuple(map(ClipGradNorm, norms))
        return [Callback("clip", (Phase.STEP_BEGIN,), lambda state, _: Transition(commands=commands))]

    logged(tmp_path / "run.jsonl", clips(1.0, 2.0))
    found = replay(tmp_path / "run.jsonl", clips(2.0, 1.0)).divergence

    assert found is not None
    assert [command["max_norm"] for command in found.decided["commands"]] == [2.0, 1.0]


# ---------------------------------------------------------------------------- logs that were changed


def _last_bit(value: float) -> float:
    return math.nextafter(value, math.inf)


def _set(event: str, nth: int, path: str, value: object) -> Callable[[Lines], int]:
    """Set what stands at a path such as "facts.loss" in the n-th line of a phase; returns the line's number."""

    def change(lines: Lines) -> int:
        i = index(lines, event, nth)
        *parents, last = path.split(".")
        place: Any = lines[i]
        for parent in parents:
            place = place[int(parent)] if isinstance(place, list) else place[parent]
        key: Any = int(last) if isinstance(place, list) else last
        place[key] = value(place[key]) if callable(value) else value
        return i + 1

    return change


def _drop(event: str, nth: int) -> Callable[[Lines], int]:
    def change(lines: Lines) -> int:
        i = index(lines, event, nth)
        del lines[i]
        return i + 1

    return change


def _drop_epoch(lines: Lines) -> int:
    first, following = index(lines, "epoch_begin", 2), index(lines, "epoch_begin", 3)
    del lines[first:following]
    return first + 1


def _exchange(lines: Lines) -> int:
    one, other = index(lines, "step_begin", 2), index(lines, "step_begin", 2) + 1
    lines[one], lines[other] = lines[other], lines[one]
    return one + 1


def _jump(lines: Lines) -> int:
    first, last = index(lines, "batch_end", 9), index(lines, "epoch_end", 5)
    del lines[first:last]
    return first + 1


def _repeat(lines: Lines) -> int:
    i = index(lines, "batch_end", 5)
    lines.insert(i, dict(lines[i]))
    return i + 2


def _cut_off_end(lines: Lines) -> int:
    i = index(lines, "epoch_end", 8)
    del lines[i + 1 :]
    return i + 1


FORGED: dict[str, tuple[Callable[[Lines], int], str]] = {
    "a loss changed in its last bit": (_set("batch_end", 7, "facts.loss", _last_bit), "smoothed"),
    "a metric changed in its last bit": (_set("valid_end", 2, "metrics.valid_loss", _last_bit), "early_stopping"),
    "a best metric changed": (_set("epoch_end", 1, "metrics.train_loss", 9.0), "metrics"),
    "a batch of another size": (_set("loss_end", 3, "course.0.0", 31), "accumulate"),
    "one batch more": (_set("loss_end", 3, "course.0.1", 2), "course"),
    "a step that was held back": (_set("step_end", 2, "course", [["held back", 1]]), "step"),
    "a signal that never came": (_set("batch_end", 3, "course", [["SIGTERM", 1]]), "phase"),
    "a flag removed": (_set("loss_end", 3, "answers.accumulate", lambda answer: {**answer, "flags": ""}), "accumulate"),
    "a flag of the state removed": (_set("loss_end", 3, "flags", "SKIP_STEP"), "flags"),
    "another factor": (_set("step_begin", 3, "answers.schedule.hyper.lr", 0.05), "schedule"),
    "another rate": (_set("batch_end", 5, "hyper.lr", 0.05), "hyper"),
    "a counter changed": (_set("batch_end", 5, "samples", 1), "samples"),
    "an answer removed": (_set("valid_end", 2, "answers", {}), "early_stopping"),
    "an answer invented": (_set("batch_end", 2, "answers.other", {"flags": "STOP_TRAINING"}), "other"),
    "another reason": (_set("epoch_end", 8, "reason", "because"), "reason"),
    "a line dropped": (_drop("batch_end", 6), "smoothed"),
    "an epoch dropped": (_drop_epoch, "epoch"),
    "a forged jump": (_jump, "smoothed"),
    "a line repeated": (_repeat, "phase"),
    "an end that is missing, and one more step": (_set("done", 1, "step", 99), "step"),
}


@pytest.mark.parametrize("fault", FORGED)
def test_a_forged_log_is_found(fault: str, tmp_path: Path) -> None:
    """With numbers and digests that fit, the first line where the fault shows is found all the same."""
    path = tmp_path / "run.jsonl"
    callbacks = [*library(), smoothed, _at_step_end]
    logged(path, callbacks)
    change, what = FORGED[fault]
    where: list[int] = []
    forged(path, lambda lines: where.append(change(lines)))

    found = replay(path, callbacks).divergence

    assert found is not None
    assert what in (found.callback, found.what)
    assert found.line in (where[0], where[0] + 1)


@on(Phase.STEP_END)
def _at_step_end(state: State) -> None:
    """Looks, and has nothing to say."""


FORGED_HEADERS: dict[str, tuple[str, object, str, int]] = {
    "another patience": ("callbacks.3.params.patience", 2, "early_stopping", 3),
    "another monitor": ("callbacks.3.params.monitor", "train_loss", "early_stopping", 0),
    "another window": ("callbacks.0.params.every", 3, "accumulate", 0),
    "another clipping": ("callbacks.1.params.max_norm", 1.5, "clip_grad_norm", 0),
    "another schedule": ("callbacks.2.params.lr.last.length", 41, "schedule", 2),
    "a shorter plan": ("start.plan.epochs", 5, "phase", 5),
    "another rate to begin with": ("start.hyper.lr", 0.2, "schedule", 0),
}


@pytest.mark.parametrize("fault", FORGED_HEADERS)
def test_a_forged_header_is_found(fault: str, tmp_path: Path) -> None:
    """What the header says of plan and settings is what is replayed, and found where the decisions are others."""
    setting, value, what, epoch = FORGED_HEADERS[fault]
    path = tmp_path / "run.jsonl"
    logged(path)
    forged(path, _set("header", 1, setting, value))

    found = replay(path).divergence

    assert found is not None
    assert what in (found.callback, found.what)
    assert found.epoch == epoch


CLUMSY: dict[str, tuple[Callable[[Lines], int], str]] = {
    "a fact changed in its last bit": (_set("batch_end", 7, "facts.loss", _last_bit), "its digest does not fit"),
    "a NaN replaced by null": (_set("batch_end", 7, "facts.loss", None), "its digest does not fit"),
    "a flag removed": (_set("loss_end", 3, "flags", ""), "its digest does not fit"),
    "a line dropped": (_drop("batch_end", 6), "a gap in the log"),
    "an epoch dropped": (_drop_epoch, "a gap in the log"),
    "two lines exchanged": (_exchange, "a gap in the log"),
    "a line repeated": (_repeat, "a repeat in the log"),
    "a forged jump": (_jump, "a gap in the log"),
}


@pytest.mark.parametrize("fault", CLUMSY)
def test_a_change_by_hand_is_found_while_reading(fault: str, tmp_path: Path) -> None:
    """Who changes a log without making numbers and digests fit is found at that line, whatever it changes."""
    path = tmp_path / "run.jsonl"
    logged(path, [*library(), smoothed])
    lines = lines_of(path)
    change, sentence = CLUMSY[fault]
    where = change(lines)
    write(path, lines)

    with pytest.raises(LogError, match=sentence) as caught:
        replay(path, [*library(), smoothed])
    assert caught.value.line == where


def test_a_line_that_cannot_be_read_is_an_error_wherever_it_stands(tmp_path: Path) -> None:
    """Its number is said, by a replay and by a what-if, and nothing is decided from it."""
    path = tmp_path / "run.jsonl"
    logged(path, [*library(), smoothed], epochs=1)
    whole = path.read_bytes().splitlines(keepends=True)
    for i in range(1, len(whole) - 1):
        path.write_bytes(b"".join([*whole[:i], b"}\n", *whole[i + 1 :]]))
        for ask in (lambda: replay(path, [*library(), smoothed]), lambda: what_if(path, [*library(), smoothed])):
            with pytest.raises(LogError) as caught:
                ask()
            assert caught.value.line == i + 1


def test_a_nan_replaced_by_null_is_found_also_when_digests_fit(tmp_path: Path) -> None:
    """Null is no number: the line is named."""
    path = tmp_path / "run.jsonl"
    logged(path, [smoothed])
    forged(path, _set("batch_end", 7, "facts.loss", None))

    with pytest.raises(LogError, match="its facts is .*None.*, and not of the form that a log has"):
        replay(path, [smoothed])


# ------------------------------------------------------------------------ ends of every kind


class _Fails(Scripted):
    """Raises in one operation, at the fifth batch."""

    def __init__(self, where: str, error: BaseException) -> None:
        super().__init__(batches=4, valid_loss=LOSSES)
        self._calls = 0
        method = getattr(self, where)

        def fail(*arguments: Any) -> Any:
            self._calls += 1
            if self._calls == 5:
                raise error
            return method(*arguments)

        setattr(self, where, fail)


@pytest.mark.parametrize("error", [RuntimeError("broken"), KeyboardInterrupt(), ValueError("a: b\nc")])
@pytest.mark.parametrize("where", ["fetch", "forward", "loss", "step", "zero", "open", "measure", "carry_out", "read"])
def test_a_training_that_failed_is_replayed_to_where_it_failed(
    where: str, error: BaseException, tmp_path: Path
) -> None:
    """Where it failed is a fact; what was decided before, and at TEARDOWN, is decided again."""

    @on(Phase.TEARDOWN, Phase.BATCH_END, memory=0, needs={"loss"})
    def watch(state: State, times: int) -> Transition:
        return Transition(memory=times + 1, commands=(KeepWeights("w"),))

    path = tmp_path / "run.jsonl"
    with pytest.raises(type(error)):
        run(start(_Fails(where, error), epochs=8), [watch], log=path)

    again = replay(path, [watch])

    assert again.ok
    assert again.state.error.startswith(type(error).__name__)
    assert lines_of(path)[-1]["event"] == "failed"


@pytest.mark.parametrize("where", ["prepare", "finish"])
def test_a_training_that_failed_at_either_end_is_replayed(where: str, tmp_path: Path) -> None:
    """Before anything was decided, and after everything was."""
    path, work = tmp_path / "run.jsonl", workload()

    def fail(state: State) -> None:
        raise RuntimeError("broken")

    setattr(work, where, fail)
    with pytest.raises(RuntimeError, match="broken"):
        run(start(work, epochs=2), [smoothed], log=path)

    again = replay(path, [smoothed])

    assert again.ok
    assert (again.state.phase is Phase.TEARDOWN) == (where == "finish")


@pytest.mark.parametrize("conflict", [False, True])
def test_a_callback_that_was_not_consulted_before_the_failure_is_no_difference(conflict: bool, tmp_path: Path) -> None:
    """A fact could not be measured there; that the callback would have failed too, the training never learnt."""

    @on(Phase.BATCH_END, needs={"loss"})
    def picky(state: State) -> Transition | None:
        if state.iteration == 2 and not conflict:
            raise ValueError("not this one")
        return Transition(hyper={"lr": 0.25}) if state.iteration == 2 else None

    @on(Phase.BATCH_END)
    def other(state: State) -> Transition | None:
        return Transition(hyper={"lr": 0.5}) if state.iteration == 2 else None

    path = tmp_path / "run.jsonl"
    with pytest.raises(WorkloadError, match="the script of loss"):
        run(start(Scripted(batches=2, loss=[1.0]), epochs=1), [picky, other], log=path)

    assert [line["batch"] for line in lines_of(path) if line["event"] == "batch_end"] == [1]
    assert replay(path, [picky, other]).ok


def test_the_last_line_of_a_failed_training_is_checked_in_form(tmp_path: Path) -> None:
    """What is decided at TEARDOWN is decided about what stands there, so that has to be numbers."""
    path = tmp_path / "run.jsonl"
    with pytest.raises(RuntimeError):
        run(start(_Fails("loss", RuntimeError("broken")), epochs=8), [], log=path)
    forged(path, _set("teardown", 1, "samples", None))

    with pytest.raises(LogError, match="its samples is None, and not of the form") as caught:
        replay(path, [])
    assert caught.value.line == len(lines_of(path)) - 1


def test_the_last_line_of_a_failed_training_counts_from_zero(tmp_path: Path) -> None:
    """The state at TEARDOWN is made of it."""
    path = tmp_path / "run.jsonl"
    with pytest.raises(RuntimeError):
        run(start(_Fails("loss", RuntimeError("broken")), epochs=8), [], log=path)
    forged(path, _set("teardown", 1, "samples", -1))

    with pytest.raises(LogError, match="samples=-1: a state counts from 0"):
        replay(path, [])


class _Interrupted(Scripted):
    """Is asked to leave at the second call of one operation."""

    def __init__(self, where: str) -> None:
        super().__init__(batches=4, valid_loss=LOSSES)
        calls = itertools.count(1)

        operation = getattr(self, where)

        def interrupted(*arguments: object) -> None:
            operation(*arguments)
            if next(calls) == 2:
                self.interrupt = "SIGTERM"

        setattr(self, where, interrupted)


def _interrupted(path: Path, where: str = "forward") -> State:
    return run(start(_Interrupted(where), epochs=8), log=path)


@pytest.mark.parametrize("where", ["forward", "evaluate"])
def test_a_line_that_is_damaged_behind_a_signal_is_found(where: str, tmp_path: Path) -> None:
    """Where nothing is asked of the recorded world any more, the lines are read, and checked, all the same."""
    path = tmp_path / "run.jsonl"
    suspended = _interrupted(path, where)
    assert suspended.phase is Phase.SUSPENDED
    run(suspended, log=path)
    assert replay(path, []).ok
    lines = lines_of(path)
    second = index(lines, "header", 2)
    lines[second]["start"]["samples"] += 1
    write(path, lines)

    for ask in (lambda: replay(path, []), lambda: what_if(path, [])):
        with pytest.raises(LogError, match="its digest does not fit") as caught:
            ask()
        assert caught.value.line == second + 1


def test_a_signal_that_is_taken_out_is_found(tmp_path: Path) -> None:
    """Without it the training would have gone on, to a batch that the log does not have."""
    path = tmp_path / "run.jsonl"
    _interrupted(path)
    i = index(lines_of(path), "teardown")
    assert lines_of(path)[i]["course"][-1] == ["SIGTERM", 1]
    forged(path, lambda lines: lines[i]["course"].pop())

    found = replay(path, []).divergence

    assert found is not None
    assert (found.line, found.what, found.recorded, found.decided) == (i + 1, "phase", "teardown", "a batch")


def test_lines_after_the_end_are_found(tmp_path: Path) -> None:
    """A training that is done has no second end."""
    path = tmp_path / "run.jsonl"
    logged(path, [])
    forged(path, lambda lines: lines.extend([dict(lines[-2]), dict(lines[-1])]))

    found = replay(path, []).divergence

    assert found is not None
    assert (found.line, found.what, found.recorded, found.decided) == (
        len(lines_of(path)) - 1,
        "phase",
        "teardown",
        "the end",
    )


def test_answers_without_number_are_replayed(tmp_path: Path) -> None:
    """Another answer at each of many batches; only a few of them are kept at a time."""
    path = tmp_path / "run.jsonl"

    @on(Phase.BATCH_END, memory=0)
    def counts(state: State, times: int) -> Transition:
        return Transition(memory=times + 1)

    run(start(Scripted(batches=300), epochs=1), [counts], log=path)

    assert replay(path, [counts]).state.memory["counts"] == 300


def test_what_was_decided_at_the_end_of_a_failed_training_is_checked_too(tmp_path: Path) -> None:
    """Another answer at TEARDOWN is found, also when it was an error that led there."""

    def tidy(memory: int) -> Callback[Any]:
        return Callback("tidy", (Phase.TEARDOWN,), lambda state, _: Transition(memory=memory), 0)

    path = tmp_path / "run.jsonl"
    with pytest.raises(RuntimeError):
        run(start(_Fails("loss", RuntimeError("broken")), epochs=8), [tidy(1)], log=path)

    found = replay(path, [tidy(2)]).divergence

    assert found is not None
    assert (found.phase, found.callback, found.recorded, found.decided) == (
        "teardown",
        "tidy",
        {"memory": 1},
        {"memory": 2},
    )


def test_a_training_that_was_left_is_replayed_to_where_it_was_left(tmp_path: Path) -> None:
    """Leaving `iterate` early is an end like others."""
    path = tmp_path / "run.jsonl"
    states = iterate(start(workload(), epochs=8), [smoothed], log=path)
    for _ in range(6):
        next(states)
    states.close()  # type: ignore[attr-defined]

    assert replay(path, [smoothed]).ok
    assert lines_of(path)[-1]["error"] == "GeneratorExit: "


def test_a_log_without_its_end_agrees_as_far_as_it_goes(tmp_path: Path) -> None:
    """A killed process leaves a log that can be replayed to its last line."""
    path = tmp_path / "run.jsonl"
    logged(path, [smoothed])
    lines = lines_of(path)
    for count in range(1, len(lines)):
        write(path, lines[:count])
        again = replay(path, [smoothed])
        assert (again.ok, again.lines) == (True, count - 1)


def test_suspensions_and_extensions_are_replayed_as_one_training(tmp_path: Path) -> None:
    """Each call of run goes on from the state that the one before led to."""

    @on(Phase.BATCH_END, memory=0)
    def pauses(state: State, times: int) -> Transition:
        return Transition(memory=times + 1, flags=Flag.SUSPEND if times % 3 == 1 else Flag.NONE)

    path = tmp_path / "run.jsonl"
    state = start(workload(), epochs=2)
    while state.phase is not Phase.DONE:
        state = run(state, [pauses], log=path)
    final = run(extend(state, epochs=1), [pauses], log=path)

    again = replay(path, [pauses])

    assert again.ok
    assert again.state.iteration == final.iteration
    assert again.state.memory == final.memory
    assert sum(line["event"] == "header" for line in lines_of(path)) > 3


def test_a_state_that_was_changed_between_two_calls_is_found(tmp_path: Path) -> None:
    """A training that goes on from something else than the log led to is found at the header, with what differs."""
    path, work = tmp_path / "run.jsonl", workload()
    state = run(start(work, epochs=2), [smoothed], log=path)
    metrics = dict(state.metrics)
    run(extend(attrs.evolve(state, metrics={"train_loss": 0.5}), epochs=1), [smoothed], log=path)

    found = replay(path, [smoothed]).divergence

    assert found is not None
    assert (found.phase, found.what) == ("header", "metrics")
    assert (found.recorded, found.decided) == ({"train_loss": 0.5}, metrics)


def test_a_memory_that_was_changed_between_two_calls_is_found(tmp_path: Path) -> None:
    """So with the memory of a callback, which is named."""
    path, work = tmp_path / "run.jsonl", workload()
    state = run(start(work, epochs=2), [smoothed], log=path)
    run(extend(attrs.evolve(state, memory={"smoothed": (7.0, 7.0)}), epochs=1), [smoothed], log=path)

    found = replay(path, [smoothed]).divergence

    assert found is not None
    assert (found.callback, found.what, found.recorded) == ("smoothed", "memory", [7.0, 7.0])


def test_a_log_that_does_not_lead_to_where_it_goes_on_says_so(tmp_path: Path) -> None:
    """A gap between two calls of run is no replay that agrees."""
    path, work = tmp_path / "run.jsonl", workload()
    state = run(start(work, epochs=1), [smoothed], log=path)
    state = run(extend(state, epochs=1), [smoothed])  # this one is not logged
    run(extend(state, epochs=1), [smoothed], log=path)

    found = replay(path, [smoothed]).divergence

    assert found is not None
    assert (found.what, found.epoch) == ("gap", 2)


def test_a_training_that_was_logged_from_its_middle_is_replayed_from_there(tmp_path: Path) -> None:
    """The header has all of the control state, memories that are records among it."""
    work = workload()
    state = run(start(work, epochs=3), library())
    final = run(extend(state, epochs=3), library(), log=tmp_path / "run.jsonl")

    again = replay(tmp_path / "run.jsonl")

    assert again.ok
    assert again.state == attrs.evolve(final, workload=None)


def test_callbacks_that_are_not_of_the_library_have_to_be_given(tmp_path: Path) -> None:
    """The sentence names the one that cannot be made, and says what to do."""
    path = tmp_path / "run.jsonl"
    logged(path, [*library(), smoothed])

    with pytest.raises(LogError, match="callback 'smoothed' cannot be made from the log: it is not of the library"):
        replay(path)


def test_a_setting_that_is_code_is_never_run(tmp_path: Path) -> None:
    """A function among the settings is written as text, and what is text is not made again."""
    path = tmp_path / "run.jsonl"
    logged(path, [schedule(lr=lambda step: 0.1)])

    assert lines_of(path)[0]["callbacks"][0]["params"]["lr"]["$repr"].startswith("<function")
    with pytest.raises(LogError, match="callback 'schedule' cannot be made from the log: .*was written as text"):
        replay(path)


def test_a_renamed_callback_of_the_library_is_made_with_its_name(tmp_path: Path) -> None:
    """`name=` is no setting, but comes again."""
    path = tmp_path / "run.jsonl"
    logged(path, [early_stopping(patience=2, name="first"), early_stopping("train_loss", name="second")])

    assert replay(path).ok


def test_a_replay_is_a_run_on_a_workload(tmp_path: Path) -> None:
    """`Recorded` is given to `run` like any other, and ends in the same state."""
    path = tmp_path / "run.jsonl"
    final = logged(path)

    again = run(Recorded(path).start(), library())

    assert again == final


def test_a_recorded_training_says_when_it_is_asked_for_more(tmp_path: Path) -> None:
    """Without the callback that stopped it, it comes to where the log knows no further."""
    path = tmp_path / "run.jsonl"
    logged(path, [early_stopping(patience=1)])

    with pytest.raises(LogError, match="a batch would come next, but in the log it is the end of the log"):
        run(Recorded(path).start())


def test_a_recorded_training_says_when_something_else_comes(tmp_path: Path) -> None:
    """A validation where the log has the next batch of an epoch is out of step, and the sentence says what is there."""
    path = tmp_path / "run.jsonl"
    logged(path, [])

    @on(Phase.EPOCH_BEGIN)
    def skip(state: State) -> Transition:
        return Transition(flags=Flag.STOP_EPOCH | Flag.SKIP_VALID)

    with pytest.raises(LogError, match="the metrics would come next, but in the log it is a batch of 32"):
        run(Recorded(path).start(), [skip])


def test_the_end_of_the_data_is_no_metric(tmp_path: Path) -> None:
    """A training that closes an epoch one batch early finds that the data end first."""
    path = tmp_path / "run.jsonl"
    logged(path, [])

    @on(Phase.BATCH_END)
    def leave(state: State) -> Transition | None:
        return Transition(flags=Flag.STOP_EPOCH | Flag.SKIP_VALID) if state.batch == 4 else None

    recorded = Recorded(path)
    assert recorded.has_valid
    with pytest.raises(LogError, match="the metrics would come next, but in the log it is the end of the data"):
        run(recorded.start(), [leave])


def test_a_recorded_training_cannot_be_put_back(tmp_path: Path) -> None:
    """A log is read in one direction."""
    path = tmp_path / "run.jsonl"
    logged(path, [])
    recorded = Recorded(path)

    for method in (recorded.snapshot, lambda: recorded.put_back(None)):
        with pytest.raises(LogError, match="cannot be put back"):
            method()


def test_a_log_without_a_further_call_has_no_further_start(tmp_path: Path) -> None:
    """Asking for more calls of run than there are is an error."""
    logged(tmp_path / "run.jsonl", [])
    recorded = Recorded(tmp_path / "run.jsonl")
    recorded.start()

    with pytest.raises(LogError, match="no further call of run"):
        recorded.start()


def test_a_log_without_a_header_is_no_training() -> None:
    """Entries that begin somewhere else are refused."""
    with pytest.raises(LogError, match="begins with a header"):
        Recorded(iter(()))


def test_replayed_json_is_small(tmp_path: Path) -> None:
    """A divergence can be written as JSON as it is."""
    path = tmp_path / "run.jsonl"
    logged(path)

    found = replay(path, [*library()[:3], early_stopping(patience=1)]).divergence

    assert found is not None
    assert orjson.loads(orjson.dumps(attrs.asdict(found)))["callback"] == "early_stopping"


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("samples", None, "its start.samples is None, and not of the form"),
        ("resume_at", "nowhere", "its start.resume_at is 'nowhere', and not of the form"),
        ("plan", {}, "its start.plan is {}, and not of the form"),
    ],
)
def test_a_start_that_cannot_be_made_again_is_an_error(key: str, value: object, sentence: str, tmp_path: Path) -> None:
    """With the line of the header, and what is wrong in it."""
    path = tmp_path / "run.jsonl"
    logged(path, [])
    forged(path, lambda lines: lines[0]["start"].update({key: value}))

    with pytest.raises(LogError, match=sentence):
        replay(path, [])


def test_a_log_that_goes_on_after_its_end_is_found(tmp_path: Path) -> None:
    """A batch that is not in the log any more is asked for where a line comes without one."""
    path = tmp_path / "run.jsonl"
    logged(path, [], epochs=2)
    forged(path, lambda lines: lines[index(lines, "valid_end", 2)].update(course=[[32, 1]]))

    found = replay(path, []).divergence

    assert found is not None
    assert (found.what, found.epoch) == ("course", 1)


def test_the_package_says_what_it_does_not_have() -> None:
    """A name that is nowhere is an AttributeError, also where names are loaded late."""
    import fsm_train.eventlog

    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        fsm_train.eventlog.nonsense  # noqa: B018
