"""Ends that are known beforehand: targets, steps, seconds, batches; and what is only recorded."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fsm_train import Flag, Phase, State, Transition, extend, on, replay, run, start
from fsm_train.callbacks import accumulate, limit, record, stop_after, stop_at, suspend_after, validate_every
from fsm_train.testing import at, drive, simulate
from fsm_train.worlds.scripted import Scripted
from tests.diabetes_training import batches, looking, trained
from tests.models import same_weights

NAN = math.nan


# ---------------------------------------------------------------------------------------- stop_at


@pytest.mark.parametrize(
    ("monitor", "target", "settings", "curve", "epochs"),
    [
        ("valid_accuracy", 0.9, {}, [0.5, 0.89, 0.9, 1.0], 3),
        ("valid_loss", 0.2, {}, [0.5, 0.2, 0.1], 2),
        ("valid_f1", 0.9, {}, [0.5, 0.95], 2),
        ("valid_bleu", 30.0, {"mode": "max"}, [10.0, 20.0, 25.0], 3),
        ("valid_time", 30.0, {"mode": "min"}, [40.0, 20.0, 25.0], 2),
        ("valid_loss", 0.2, {}, [NAN, 0.5, NAN], 3),
    ],
)
def test_target_stops(monitor: str, target: float, settings: Any, curve: list[float], epochs: int) -> None:
    """The first value that reaches the target is the last; which way is better is known for the usual names."""
    assert simulate([stop_at(monitor, target, **settings)], **{monitor: curve}).epoch == epochs


def test_target_is_named_in_the_reason() -> None:
    """What was measured, and what was wanted."""
    final = simulate([stop_at("valid_loss", 0.25)], valid_loss=[0.5, 1 / 7])

    assert final.reason == "stop_at: valid_loss is 0.142857, the target was 0.25"


def test_epoch_without_validation_is_no_check() -> None:
    """Validating every second epoch is no missing metric."""

    @on(Phase.EPOCH_BEGIN)
    def every_second_epoch(state: State) -> Transition | None:
        return Transition(flags=Flag.SKIP_VALID) if state.epoch % 2 == 0 else None

    final = simulate([stop_at("valid_loss", 0.2), every_second_epoch], epochs=9, valid_loss=[0.5, 0.3, 0.2])
    assert final.epoch == 6
    with pytest.raises(LookupError, match="monitors 'valid_f1', which this training does not measure"):
        simulate([stop_at("valid_f1", 0.2)], valid_loss=[0.5])


# ------------------------------------------------------------------------- stop_after, suspend_after


def test_steps_stop_at_that_step() -> None:
    """Under accumulation too, where the last step may be that of a leftover window."""
    plain = simulate([stop_after(steps=5)], batches=4, epochs=9)
    leftover = simulate([stop_after(steps=3), accumulate(4)], batches=10, epochs=9)

    assert (plain.step, plain.iteration, plain.reason) == (5, 5, "stop_after: 5 steps were taken")
    assert (leftover.step, leftover.iteration) == (3, 10)


def test_steps_held_back_are_none() -> None:
    """What a gradient scaler held back does not count."""
    assert simulate([stop_after(steps=2)], batches=9, stepped=[1, 0, 0, 1]).iteration == 4


def test_seconds_stop_at_the_end_of_the_batch() -> None:
    """Or of the epoch, if they went by in its validation."""
    during = simulate([stop_after(seconds=60)], batches=9, elapsed=lambda state: 25.0 * state.iteration)
    validating = {"elapsed": lambda state: 50.0 + 50.0 * (state.phase is Phase.EPOCH_END), "valid_loss": [1.0] * 3}
    after = simulate([stop_after(seconds=60)], batches=2, **validating)

    assert (during.iteration, during.reason) == (3, "stop_after: 75.0 seconds are over")
    assert (after.iteration, after.epoch) == (2, 1)


def test_either_of_steps_and_seconds_stops() -> None:
    """Whichever comes first."""
    both = stop_after(steps=5, seconds=60)

    assert simulate([both], batches=9, elapsed=lambda state: 25.0 * state.iteration).step == 3
    assert simulate([both], batches=9, elapsed=0.0).step == 5


def test_extended_training_that_had_its_steps_is_over() -> None:
    """Steps that were taken before count: no further one is."""
    final = simulate([stop_after(steps=3)], batches=9)
    again = run(extend(final, epochs=1), [stop_after(steps=3)])

    assert (again.step, again.reason) == (3, "stop_after: 3 steps were taken")


def test_suspending_counts_from_the_beginning_of_the_call() -> None:
    """Each slice has its own seconds; the training continues where it was."""
    callbacks = [suspend_after(seconds=60)]
    first = simulate(callbacks, batches=9, elapsed=lambda state: 25.0 * state.iteration)
    second = run(first, callbacks)
    last = run(second, callbacks)

    assert [(s.phase, s.iteration) for s in (first, second, last)] == [
        (Phase.SUSPENDED, 3),
        (Phase.SUSPENDED, 6),
        (Phase.SUSPENDED, 9),
    ]
    assert run(last, callbacks).phase is Phase.DONE
    assert first.reason == "suspend_after: 75.0 seconds are over"


def test_suspending_within_a_validation() -> None:
    """A validation does not have to be waited for."""
    clock = {"elapsed": lambda state: 100.0 * (state.phase is Phase.VALID_BATCH_END)}
    final = simulate([suspend_after(seconds=60)], valid_batches=4, valid_loss=[1.0], **clock)

    assert (final.phase, final.valid_batch) == (Phase.SUSPENDED, 1)


# --------------------------------------------------------------------------------- validate_every


def validated_at(callbacks: list[Any], **settings: Any) -> list[int]:
    """The steps at which was validated."""
    look, steps = looking(Phase.VALID_END, lambda state: state.step)
    simulate([*callbacks, look], valid_loss=1.0, **settings)
    return steps


@pytest.mark.parametrize(
    ("steps", "batches", "callbacks", "at_steps"),
    [
        (4, 8, [], [4, 8, 12, 16]),
        (3, 8, [], [3, 6, 8, 9, 12, 15, 16]),
        (100, 8, [], [8, 16]),
        (2, 8, [accumulate(3)], [2, 3, 4, 6]),
        (3, 8, [accumulate(3)], [3, 6]),
    ],
)
def test_validation_each_so_many_steps(steps: int, batches: int, callbacks: list[Any], at_steps: list[int]) -> None:
    """And at the end of each epoch; never twice for the same weights, nor twice for one multiple."""
    assert validated_at([validate_every(steps=steps), *callbacks], batches=batches, epochs=2) == at_steps


def test_first_validation_is_before_the_first_step() -> None:
    """With first=True there is one at step 0, once in a training: one that is extended begins with no other."""
    assert validated_at([validate_every(steps=4, first=True)], batches=8, epochs=1) == [0, 4, 8]
    callback = validate_every(steps=4, first=True)
    assert callback(at(Phase.TRAIN_BEGIN)) == Transition(flags=Flag.VALIDATE)
    assert callback(at(Phase.TRAIN_BEGIN, iteration=8)) is None


def test_validating_in_between_changes_nothing() -> None:
    """The weights are those without it, and the metric at the end is of the end."""
    often = trained([validate_every(steps=1)], valid=batches(5, 5, skip=30), epochs=2)
    never = trained([], epochs=2)

    assert same_weights(often.model, never.model)
    assert often.final.history[0].keys() == {"train_loss", "valid_loss"}


# ------------------------------------------------------------------------------------------- limit


def test_limits_are_of_each_epoch_and_each_validation() -> None:
    """So many batches each, and the rest is left out."""
    look, counts = looking(Phase.VALID_END, lambda state: (state.batch, state.valid_batch))
    final = simulate([limit(batches=2, valid_batches=3), look], batches=9, valid_batches=5, valid_loss=[1.0, 1.0])

    assert counts == [(2, 3), (2, 3)]
    assert (final.epoch, final.iteration) == (2, 4)


def test_limited_training_is_that_on_fewer_batches() -> None:
    """Weights, metrics and the leftover window of the first batches alone."""
    data, valid = batches(8, 8, 8, 6), batches(5, 5, 5, skip=30)

    few = trained([limit(batches=3, valid_batches=2), accumulate(2)], data, valid=valid, epochs=2)
    all_there_are = trained([accumulate(2)], data[:3], valid=valid[:2], epochs=2)

    assert same_weights(few.model, all_there_are.model)
    assert few.final.history == all_there_are.final.history


# ------------------------------------------------------------------------------------------ record


@pytest.mark.parametrize(
    ("facts", "phases"),
    [
        (("loss",), (Phase.BATCH_END,)),
        (("stepped", "loss"), (Phase.STEP_END, Phase.BATCH_END)),
        (("grad_norm", "tokens"), (Phase.STEP_BEGIN, Phase.BATCH_END)),
    ],
)
def test_facts_are_asked_for_where_they_are_known(facts: tuple[str, ...], phases: tuple[Phase, ...]) -> None:
    """Inside a step only what is known nowhere else; nothing is ever answered."""
    callback = record(*facts, every=5)

    assert (callback.at, callback.needs, callback.every) == (phases, set(facts), 5)
    assert drive(callback, [at(phase) for phase in phases]) == [Transition()] * len(phases)


def test_recorded_facts_are_measured() -> None:
    """Whoever looks at that phase finds them in the state, each so many batches."""
    look, seen = looking(Phase.BATCH_END, lambda state: state.facts.get("loss"))

    ours = trained([record("loss", every=2), look], batches(8, 8, 6))

    model = nn.Linear(10, 1)
    model.load_state_dict(trained([], batches(8)).model.state_dict())
    inputs, target = batches(8, 8, 6)[1]
    with torch.no_grad():
        assert seen[1] == nn.functional.mse_loss(model(inputs), target).item()
    assert [value is None for value in seen] == [True, False, True]
    assert ours.final.memory["record"] is None


# ---------------------------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: stop_at("valid_temperature", 1.0), "is smaller or larger better for 'valid_temperature'"),
        (lambda: stop_at("valid_loss", NAN), "target=nan: a target is a number"),
        (lambda: stop_at("valid_loss", "0.1"), "target='0.1'"),  # type: ignore[arg-type]
        (lambda: stop_at("valid_loss", 0.1, mode="down"), "mode='down'"),  # type: ignore[arg-type]
        (lambda: stop_at("", 0.1), "monitor='': name a metric"),
        (lambda: stop_at(0.1, 0.1), "monitor=0.1: name a metric"),  # type: ignore[arg-type]
        (lambda: stop_after(), "stop_after what"),
        (lambda: stop_after(steps=0), "steps=0: it is a whole number from 1"),
        (lambda: stop_after(seconds=0), "seconds=0: it is a positive number"),
        (lambda: suspend_after(seconds=NAN), "seconds=nan"),
        (lambda: suspend_after(seconds=True), "seconds=True"),
        (lambda: validate_every(steps=0), "steps=0"),
        (lambda: validate_every(steps=1, first=1), "first=1"),  # type: ignore[arg-type]
        (lambda: limit(), "limit what"),
        (lambda: limit(batches=0), "batches=0: it is a whole number from 1"),
        (lambda: limit(valid_batches=-1), "valid_batches=-1"),
        (lambda: record(), "record what"),
        (lambda: record("loss", every=0), "every=0"),
    ],
)
def test_settings_are_checked_when_made(make: Callable[[], object], sentence: str) -> None:
    """Nonsense is refused on the spot."""
    with pytest.raises(ValueError, match=sentence):
        make()


@pytest.mark.parametrize(
    ("callback", "name", "params"),
    [
        (
            stop_at("valid_loss", 1, name="good"),
            "good",
            {"monitor": "valid_loss", "target": 1, "mode": "min"},
        ),
        (stop_after(steps=3), "stop_after", {"steps": 3, "seconds": None}),
        (suspend_after(seconds=3.5), "suspend_after", {"seconds": 3.5}),
        (validate_every(steps=3, name="often"), "often", {"steps": 3, "first": False}),
        (limit(batches=3), "limit", {"batches": 3, "valid_batches": None}),
        (record("loss", "stepped"), "record", {"facts": ("loss", "stepped"), "every": 1}),
    ],
)
def test_settings_are_recorded(callback: Any, name: str, params: dict[str, Any]) -> None:
    """What each was made with, and under which name."""
    assert (callback.name, callback.params) == (name, params)


def test_slices_shorter_than_a_validation_get_on(tmp_path: Path) -> None:
    """A validation that was suspended is finished by the next call, which ends at the batch after it; logs replay."""
    work = Scripted(batches=2, valid_batches=5, valid_loss=[3.0, 2.0, 1.0], elapsed=_ticking())
    state = start(work, epochs=3)
    log, calls = tmp_path / "run.jsonl", 0
    while (state := run(state, [suspend_after(seconds=2.5)], log=log)).phase is Phase.SUSPENDED and calls < 20:
        calls += 1

    assert state.phase is Phase.DONE
    assert [metrics["valid_loss"] for metrics in state.history] == [3.0, 2.0, 1.0]
    assert replay(log).ok


def _ticking() -> Callable[[State], float]:
    """A clock that goes on by a second each time it is read."""
    ticks = itertools.count()
    return lambda state: float(next(ticks))
