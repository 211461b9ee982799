"""Which weights and which files are kept: decided purely, and the weights brought back for real."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fsm_train import CallbackError, Flag, Phase, State, Transition, on, run, start
from fsm_train.callbacks import accumulate, checkpoint, ema, restore_best, swa
from fsm_train.core.commands import KeepWeights, RestoreWeights, SaveCheckpoint
from fsm_train.testing import at, drive, simulate
from tests.diabetes_training import batches, looking, net, trained, weights_of, workload

NAN, INF = math.nan, math.inf
DATA, VALID = batches(8, 8, 8, 6), batches(5, 5, skip=30)

# ------------------------------------------------------------------------------------- restore_best


@pytest.mark.parametrize(
    ("given", "curve", "kept"),
    [
        ({}, [2.0, 1.0, 1.5, 1.0, 0.9], [0, 1, 4]),
        ({"mode": "max"}, [2.0, 1.0, 2.5], [0, 2]),
        ({"min_delta": 0.5}, [2.0, 1.5, 1.4, 0.75], [0, 2, 3]),
        ({}, [NAN, 2.0, -INF, NAN, 1.0], [1, 4]),
    ],
)
def test_copies_are_made_of_the_best(given: Any, curve: list[float], kept: list[int]) -> None:
    """When the metric is better than ever; what is not finite never is."""
    answers = drive(restore_best(**given), [at(Phase.VALID_END, valid_loss=value) for value in curve])

    assert [i for i, answer in enumerate(answers) if answer.commands == (KeepWeights("restore_best"),)] == kept


def test_best_is_put_back_at_the_end() -> None:
    """With its value as the reason; nothing where there was none."""
    best = restore_best(name="best")

    assert best(at(Phase.TRAIN_END), 0.25) == Transition(
        commands=(RestoreWeights("best"),), reason="valid_loss was 0.25"
    )
    assert best(at(Phase.TRAIN_END), None) is None


def test_validation_that_measured_nothing_is_no_check() -> None:
    """But a metric that is never there is an error."""
    assert drive(restore_best(), [at(Phase.VALID_END)]) == [Transition()]
    with pytest.raises(CallbackError, match="no metric 'valid_f1' to monitor"):
        drive(restore_best("valid_f1"), [at(Phase.VALID_END, valid_loss=1.0)])


def best_of(work: Any, callbacks: list[Any]) -> list[tuple[float, Any]]:
    """The metric and the own weights at the end of each epoch."""
    look, seen = looking(Phase.EPOCH_END, lambda s: (s.metrics["valid_loss"], weights_of(work.model)), order=-100)
    run(start(work, epochs=6), [*callbacks, look])
    return seen


def test_weights_at_the_end_are_those_of_the_best_epoch() -> None:
    """To the last bit, although the training went on (here, to smaller losses)."""
    work = workload(DATA, model=net(), valid=VALID)
    seen = best_of(work, [restore_best(mode="max")])

    best = max(seen, key=lambda each: each[0])
    assert best[0] != seen[-1][0]
    assert weights_of(work.model).equal(best[1])


def test_best_goes_on_over_a_suspension() -> None:
    """What was the best before it still is after it."""
    best = restore_best(mode="max")
    once = workload(DATA, model=net(), valid=VALID)
    best_of(once, [best])
    work = workload(DATA, model=net(), valid=VALID)

    @on(Phase.BATCH_END)
    def leave(state: State) -> Transition | None:
        return Transition(flags=Flag.SUSPEND) if state.iteration == 18 else None

    run(run(start(work, epochs=6), [best, leave]), [best])

    assert weights_of(work.model).equal(weights_of(once.model))


@pytest.mark.parametrize("average", [ema(0.7), swa(0)])
@pytest.mark.parametrize("valid", [VALID, None])
@pytest.mark.parametrize("mode", ["max", "min"])
def test_averages_are_brought_back_with_the_weights(average: Any, valid: Any, mode: Any) -> None:
    """The model ends with the average as it was after the best epoch, the first as well as the last one."""
    monitor = "valid_loss" if valid else "train_loss"
    look, metrics = looking(Phase.EPOCH_END, lambda state: state.metrics[monitor])
    given: Any = {"valid": valid}
    ours = trained([restore_best(monitor, mode=mode), average, look], DATA, model=net(), epochs=6, **given)

    best = metrics.index(max(metrics) if mode == "max" else min(metrics)) + 1
    assert best < 6 if mode == "max" else best > 1
    until_then = trained([average], DATA, model=net(), epochs=best, **given)
    assert ours.weights.equal(until_then.weights)


def test_best_epoch_before_the_first_average_has_its_own_weights() -> None:
    """An average that was not begun when the best weights were kept is none to end with (the train loss only falls)."""
    work = workload(DATA, model=net(), valid=VALID)
    seen = best_of(work, [restore_best("train_loss", mode="max"), swa(3)])

    assert weights_of(work.model).equal(seen[0][1])


# --------------------------------------------------------------------------------------- checkpoint


def written(callback: Any, states: list[State]) -> tuple[list[str], list[str]]:
    """The names that were written, in order, and those that are there at the end."""
    names, there = [], []
    for answer in drive(callback, states):
        for command in answer.commands:
            assert isinstance(command, SaveCheckpoint)
            names.append(command.name)
            there = [name for name in there if name not in (*command.drop, command.name)] + [command.name]
            assert set(command.drop).isdisjoint({command.name})
    return names, there


def epochs(curve: list[float]) -> list[State]:
    return [at(Phase.EPOCH_END, epoch=i + 1, valid_loss=value) for i, value in enumerate(curve)]


def validations(curve: list[float]) -> list[State]:
    """The validations at the end of these epochs."""
    return [at(Phase.VALID_END, epoch=i, batches_over=True, valid_loss=value) for i, value in enumerate(curve)]


VALUES = st.sampled_from([NAN, INF, -INF, -1.0, 0.0, 1.0, 2.0, 3.0])


@settings(deadline=None)
@given(curve=st.lists(VALUES, max_size=12), keep=st.integers(1, 4), mode=st.sampled_from(["min", "max"]))
def test_top_k_is_that_of_lightning(curve: list[float], keep: int, mode: Any) -> None:
    """Written while there are fewer, then when strictly better than the worst; NaN the worst, the oldest goes first."""
    expected_writes, best = [], []
    for i, value in enumerate(curve):
        score = -INF if not math.isfinite(value) else (-value if mode == "min" else value)
        if len(best) == keep:
            worst = min(best, key=lambda kept: (kept[0], kept[1]))
            if score <= worst[0]:
                continue
            best.remove(worst)
        best.append((score, i))
        expected_writes.append(f"epoch-{i + 1:05d}")

    callback = checkpoint("runs", monitor="valid_loss", keep=keep, mode=mode, last=0)
    names, there = written(callback, validations(curve))

    assert names == expected_writes
    assert there == [f"epoch-{i + 1:05d}" for _, i in best]


def test_without_a_monitor_the_last_stay() -> None:
    """Every so many epochs."""
    names, there = written(checkpoint("runs", every_epochs=2, keep=2), epochs([1.0] * 9))

    assert names == [f"epoch-{i:05d}" for i in (2, 4, 6, 8)]
    assert there == ["epoch-00006", "epoch-00008"]


def batch_ends(*steps: int, seconds: float = 0.0) -> list[State]:
    elapsed = [{"elapsed": seconds * (i + 1)} for i in range(len(steps))]
    return [at(Phase.BATCH_END, step=step, facts=fact) for step, fact in zip(steps, elapsed, strict=True)]


def test_every_so_many_steps() -> None:
    """Once each, under accumulation too; the last stays, beside those of the epochs."""
    callback = checkpoint("runs", every_steps=2, keep=1)
    states = [*batch_ends(0, 1, 1, 2, 2, 3, 5, 5), *epochs([1.0]), *batch_ends(6)]
    names, there = written(callback, states)

    assert names == ["step-00000002", "step-00000005", "epoch-00001", "step-00000006"]
    assert there == ["epoch-00001", "step-00000006"]


def test_every_so_many_seconds() -> None:
    """Since the last one that was written, whatever it was written for."""
    callback = checkpoint("runs", every_epochs=1, every_seconds=60)
    between = written(callback, batch_ends(1, 2, 3, 4, 5, 6, 7, seconds=25))[0]
    epoch_at_70 = at(Phase.EPOCH_END, epoch=1, facts={"elapsed": 70.0})
    after_an_epoch = written(
        callback, [*batch_ends(1, 2, seconds=25), epoch_at_70, *batch_ends(0, 0, 0, 4, 5, 6, seconds=25)]
    )

    assert between == ["step-00000003", "step-00000006"]
    assert after_an_epoch[0] == ["epoch-00001", "step-00000006"]
    assert callback.needs == {"elapsed", "unsaved:checkpoint"}


def test_either_of_steps_and_seconds() -> None:
    """Whichever is over first."""
    callback = checkpoint("runs", every_epochs=None, every_steps=4, every_seconds=60)
    epoch_end = at(Phase.EPOCH_END, epoch=1, facts={"elapsed": 70.0})

    assert written(callback, batch_ends(1, 2, 3, 4, 5, 6, seconds=25))[0] == [
        "step-00000003",
        "step-00000004",
    ]
    assert drive(callback, [epoch_end]) == [Transition()]


def test_a_suspended_training_is_always_written() -> None:
    """To go on from; it is one of the newest two, and stays until two others are there."""
    callback = checkpoint("runs", every_steps=3, monitor="valid_loss", keep=1)
    suspended = at(Phase.SUSPEND, step=5)
    names, there = written(callback, [*validations([1.0]), *batch_ends(3), suspended])
    later = written(callback, [*validations([1.0]), *batch_ends(3), suspended, *batch_ends(6)])

    assert names == ["epoch-00001", "step-00000003", "step-00000005-suspended"]
    assert there == ["epoch-00001", "step-00000003", "step-00000005-suspended"]
    assert later[1] == ["epoch-00001", "step-00000005-suspended", "step-00000006"]


@pytest.mark.parametrize(
    ("last", "there"), [(0, ["step-00000003"]), (1, ["step-00000004"]), (2, ["step-00000003", "step-00000004"])]
)
def test_an_epoch_that_is_not_among_the_best_is_there_to_resume_from(last: int, there: list[str]) -> None:
    """Unless nothing but the best is wanted: then it leaves the last step's there."""
    callback = checkpoint("runs", every_steps=3, monitor="valid_loss", keep=1, last=last)
    worse = at(Phase.VALID_END, epoch=1, step=4, batches_over=True, valid_loss=2.0)

    assert written(callback, [*validations([1.0]), *batch_ends(3), worse])[1] == ["epoch-00001", *there]


@given(
    kinds=st.lists(st.sampled_from(["epoch", "step", "suspend"]), min_size=1, max_size=12),
    scores=st.lists(VALUES, min_size=12, max_size=12),
    failing=st.sets(st.integers(0, 11)),
    keep=st.integers(1, 3),
    last=st.integers(0, 3),
    monitor=st.sampled_from([None, "valid_loss"]),
)
def test_memory_is_what_is_on_disk(
    kinds: list[str], scores: list[float], failing: set[int], keep: int, last: int, monitor: str | None
) -> None:
    """Whatever is measured and whichever saves fail: the memory counts the files that there are.

    The newest `last` of those that were written are there, and the best `keep` that were measured and written.
    """
    callback = checkpoint("runs", every_steps=1, monitor=monitor, keep=keep, last=last)
    memory, outcome = callback.memory, {}
    written: list[str] = []  # on disk, in order
    there: list[str] = []
    for i, kind in enumerate(kinds):
        phase = {"step": Phase.BATCH_END, "suspend": Phase.SUSPEND}.get(
            kind, Phase.VALID_END if monitor else Phase.EPOCH_END
        )
        state = at(phase, epoch=i, step=i + 1, batches_over=True, valid_loss=scores[i], facts=outcome)
        answer = callback(state, memory)
        if answer is None:
            continue
        memory = memory if answer.memory is None else answer.memory
        for command in answer.commands:
            assert isinstance(command, SaveCheckpoint)
            outcome = {"unsaved:checkpoint": 1.0} if i in failing else {}
            if i not in failing:
                assert {*command.drop} <= {*there}
                there = [name for name in there if name not in (*command.drop, command.name)] + [command.name]
                written = [name for name in written if name != command.name] + [command.name]
    answer = callback(at(Phase.TEARDOWN, facts=outcome), memory)
    memory = memory if answer is None else answer.memory
    assert [name for name, _ in memory.files] == there
    assert {*written[len(written) - last :]} <= {*there}
    assert len(there) >= min(len(written), last)
    assert len([name for name in there if name.startswith("epoch")]) <= keep + last


def test_same_moment_is_written_once() -> None:
    """Suspended twice at the same step, the second takes the first one's place."""
    suspended = at(Phase.SUSPEND, step=5)

    assert written(checkpoint("runs"), [suspended, suspended])[1] == ["step-00000005-suspended"]


def test_validation_that_measured_nothing_has_no_checkpoint() -> None:
    """There is no score to rank it by."""
    ends = [
        at(Phase.VALID_END, epoch=i, batches_over=True, **values) for i, values in enumerate(({}, {"valid_loss": 5.0}))
    ]

    assert written(checkpoint("runs", monitor="valid_loss", keep=2), ends)[0] == ["epoch-00002"]


def test_files_go_into_the_folder(tmp_path: Path) -> None:
    """Which may be a path."""
    (command,) = drive(checkpoint(tmp_path), epochs([1.0]))[0].commands

    assert command == SaveCheckpoint(str(tmp_path), "epoch-00001")


def test_simulated_training_writes_its_last_epoch() -> None:
    """With accumulation and early ends the counters are those of the state."""
    final = simulate([checkpoint("runs"), accumulate(2)], batches=3, epochs=4)

    assert [name for name, _ in final.memory["checkpoint"].files] == [f"epoch-{i:05d}" for i in (2, 3, 4)]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: restore_best(""), "monitor='': name a metric"),
        (lambda: restore_best(min_delta=-1), "min_delta=-1"),
        (lambda: restore_best(mode="best"), "mode='best'"),  # type: ignore[arg-type]
        (lambda: checkpoint("runs", every_epochs=0), "every_epochs=0: it is a whole number from 1"),
        (lambda: checkpoint("runs", every_steps=0), "every_steps=0"),
        (lambda: checkpoint("runs", keep=0), "keep=0"),
        (lambda: checkpoint("runs", every_seconds=0), "every_seconds=0: it is a positive number"),
        (lambda: checkpoint("runs", every_epochs=None), "checkpoint when"),
        (lambda: checkpoint("runs", monitor=""), "monitor='': name a metric"),
        (lambda: checkpoint("runs", mode="best"), "mode='best'"),  # type: ignore[arg-type]
    ],
)
def test_settings_are_checked_when_made(make: Callable[[], object], sentence: str) -> None:
    """Nonsense is refused on the spot."""
    with pytest.raises(ValueError, match=sentence):
        make()


def test_settings_are_recorded() -> None:
    """What they were made with, and under which name."""
    best, files = restore_best(name="best"), checkpoint("runs", keep=1)

    assert (best.name, best.params) == ("best", {"monitor": "valid_loss", "mode": "min", "min_delta": 0.0})
    assert (files.name, files.params) == (
        "checkpoint",
        {
            "folder": "runs",
            "every_epochs": 1,
            "every_steps": None,
            "every_seconds": None,
            "monitor": None,
            "mode": None,
            "keep": 1,
            "last": 2,
            "on_failure": False,
            "beside": False,
        },
    )
