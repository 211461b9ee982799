"""A plan with a time limit: added up over resumes, known to schedules, and decided again by a replay."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest
import torch
from torch import nn

from fsm_train import Flag, Phase, Plan, State, Supervised, extend, replay, restore, run, start, what_if
from fsm_train.callbacks import checkpoint, during, schedule, suspend_after
from fsm_train.callbacks.scheduling import finished_share
from fsm_train.callbacks.time_limit import NAME, time_limit, with_time_limit
from fsm_train.checkpoints.state_json import control_of, state_of
from fsm_train.eventlog import read_log
from fsm_train.eventlog.forms import _is_plan
from fsm_train.schedules import absolute, one_cycle
from fsm_train.testing import at, check_callback
from fsm_train.worlds.scripted import Scripted
from tests.how_long import of_all


def ticking(start: int = 0, pace: float = 1.0) -> Callable[[State], float]:
    """A clock that goes on each time it is read."""
    ticks = itertools.count(start)
    return lambda state: pace * next(ticks)


def by_batches(state: State) -> float:
    """A clock that goes on by ten seconds a batch."""
    return 10.0 * state.iteration


def test_batch_under_way_is_the_last_and_the_epoch_is_validated(tmp_path: Path) -> None:
    """As with max_steps; the reason says it, and the log replays, with the callbacks given or not."""
    log = tmp_path / "run.jsonl"
    work = Scripted(batches=4, valid_loss=0.5, elapsed=by_batches)
    final = run(start(work, seconds=55), log=log)

    assert (final.iteration, final.epoch, final.elapsed) == (6, 2, 60.0)
    assert (final.phase, final.metrics["valid_loss"]) == (Phase.DONE, 0.5)
    assert final.reason == "plan.seconds: 60.0 of 55.0 seconds are over"
    assert replay(log).ok
    assert replay(log, []).ok
    assert what_if(log, []).state.iteration == 6
    (header,) = [line for line in read_log(log) if hasattr(line, "plan")]
    assert header.plan == Plan(seconds=55)


def test_whichever_limit_is_reached_first_ends_the_training() -> None:
    """The time beside epochs and steps."""
    for limits, iterations in (({"epochs": 1}, 4), ({"max_steps": 3}, 3), ({"epochs": 9}, 6)):
        assert run(start(Scripted(batches=4, elapsed=by_batches), seconds=60, **limits)).iteration == iterations


def test_plan_without_seconds_is_as_it_was() -> None:
    """No callback, no fact, no field in a log or a checkpoint."""
    state = start(Scripted(), epochs=1)
    stretched = schedule(by="training", lr=lambda share: 1.0)
    assert with_time_limit([stretched], state.plan) == (stretched,)
    assert repr(state.plan) == "Plan(epochs=1, max_steps=None, seed=None)"
    assert "seconds" not in orjson.loads(control_of(state))["plan"]
    assert NAME not in run(state).memory


def test_checkpoint_and_log_hold_the_limit() -> None:
    """And one of before, which has none, is read."""
    state = start(Scripted(), epochs=3, seconds=7.5)
    assert state_of(control_of(run(state))).plan == state.plan
    assert repr(state.plan) == "Plan(epochs=3, max_steps=None, seed=None, seconds=7.5)"
    plan = {"epochs": None, "max_steps": None, "seed": None}
    assert [_is_plan({**plan, "seconds": s}) for s in (1, 2.5, None, 0, -1.0, "1", True)] == [True] * 2 + [False] * 5
    assert _is_plan({**plan, "epochs": 1})


def test_extended_by_seconds_goes_on() -> None:
    """By so many more than the plan had, or than have passed where it had none."""
    final = run(start(Scripted(batches=4, elapsed=by_batches), seconds=40))
    assert final.iteration == 4
    assert run(extend(final, seconds=30)).iteration == 7
    of_epochs = run(start(Scripted(batches=4, elapsed=by_batches), epochs=1))
    assert extend(of_epochs, epochs=9, seconds=30).plan == Plan(epochs=10, seconds=70.0)
    with pytest.raises(ValueError, match="all 40 seconds of the plan are over: extend with seconds= as well"):
        extend(final, epochs=3)
    with pytest.raises(ValueError, match="seconds=-1"):
        extend(final, seconds=-1)


def test_training_of_which_the_time_is_over_takes_no_batch() -> None:
    """Suspended after its last second, it ends where it is taken up."""
    callback = time_limit(seconds=5)
    answer = callback(at(Phase.TRAIN_BEGIN, facts={"elapsed": 5.0}))
    assert answer is not None
    assert answer.flags is Flag.STOP_TRAINING
    assert callback(at(Phase.TRAIN_BEGIN, facts={"elapsed": 4.9})) is None


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf"), "60", True])
def test_time_that_is_none_is_refused(seconds: Any) -> None:
    """By the plan, when it is made."""
    with pytest.raises((TypeError, ValueError), match="seconds="):
        start(Scripted(), epochs=1, seconds=seconds)


@pytest.mark.long
def test_it_passes_the_checks_of_any_callback() -> None:
    """It is pure, and its time is a fact."""
    check_callback(time_limit(seconds=3), examples=of_all(200, few=12))


# ------------------------------------------------------------------------------------- schedules


def test_schedule_stretches_over_the_time(tmp_path: Path) -> None:
    """The share is that of the time at each step; a replay decides the same rates."""
    log = tmp_path / "run.jsonl"
    rates: list[float] = []

    def rate(share: float) -> float:
        rates.append(share)
        return 1.0 - share / 2

    run(
        start(Scripted(batches=5, elapsed=by_batches), seconds=100),
        [schedule(by="training", lr=absolute(rate))],
        log=log,
    )
    assert rates == pytest.approx([i / 10 for i in range(10)])
    first, rates[:] = [*rates], []
    assert replay(log, [schedule(by="training", lr=absolute(rate))]).ok
    assert rates == first


def test_schedule_stretches_over_the_nearest_limit() -> None:
    """Of epochs, steps and seconds the one of which the largest share is over."""
    plan = Plan(epochs=10, max_steps=50, seconds=100)
    now = at(Phase.STEP_BEGIN, plan=plan, batches_per_epoch=10, epoch=1, batch=0, step=10, facts={"elapsed": 60.0})
    assert finished_share(now) == (60_000, 100_000)
    assert finished_share(at(Phase.STEP_BEGIN, plan=plan, step=40, facts={"elapsed": 60.0})) == (40, 50)
    assert finished_share(at(Phase.STEP_BEGIN, plan=Plan(seconds=1), facts={"elapsed": 9.0})) == (1000, 1000)
    assert finished_share(at(Phase.SETUP, plan=Plan(seconds=8))) == (0, 8000)


@pytest.mark.parametrize("wrapped", [False, True])
def test_what_stretches_is_told_the_time(wrapped: bool) -> None:
    """Also inside of a window; one_cycle takes the time as its length."""
    stretched: Any = schedule(by="training", lr=one_cycle(10))
    given = during(stretched, epochs=(0, 9)) if wrapped else stretched
    by_step = schedule(lr=lambda step: 1.0, name="by step")
    told, other, limit = with_time_limit([given, by_step], Plan(seconds=60))
    assert (told.needs, other, limit.name) == ({"elapsed"}, by_step, NAME)
    final = run(start(Scripted(batches=4, elapsed=by_batches), seconds=60), [given])
    assert 0 < final.step_hyper["lr"] < 0.1


# ------------------------------------------------------------------------------------- on torch


def test_resumed_training_adds_its_time_up(tmp_path: Path) -> None:
    """From files, at each batch: the time of all calls counts; weights are those of a loop of as many steps."""

    def training() -> tuple[nn.Module, Supervised]:
        torch.manual_seed(0)
        model = nn.Linear(3, 1)
        batches = [(torch.randn(4, 3), torch.randn(4, 1)) for _ in range(3)]
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        return model, Supervised(model, optimizer, nn.MSELoss(), batches)

    _, work = training()
    callbacks = [suspend_after(seconds=1e-9), checkpoint(tmp_path / "saved")]
    state, calls = start(work, seconds=0.5), 0
    while (state := run(state, callbacks, log=tmp_path / "run.jsonl")).phase is Phase.SUSPENDED:
        calls += 1
        model, work = training()
        before = state.elapsed
        state = restore(tmp_path / "saved", work)
        assert 0 < state.elapsed <= before

    assert calls > 1
    assert state.elapsed >= 0.5
    assert NAME in state.reason
    assert replay(tmp_path / "run.jsonl").ok
    plain, again = training()
    for epoch in range(state.epoch):
        for inputs, target in [*again.train][: state.iteration - 3 * epoch]:
            again.optimizer.zero_grad()
            nn.functional.mse_loss(plain(inputs), target).backward()  # type: ignore[no-untyped-call]
            again.optimizer.step()
    assert all(map(torch.equal, model.parameters(), plain.parameters()))
