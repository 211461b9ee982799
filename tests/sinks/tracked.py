"""A training that several tests of trackers write, interrupted or not."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from math import inf, nan
from pathlib import Path
from typing import Any

from fsm_train import Callback, Flag, Phase, Scripted, State, Transition, on, run, start
from fsm_train.callbacks import early_stopping, record, schedule, validate_every
from fsm_train.schedules import linear
from fsm_train.sinks import Sink

VALID_LOSSES = (0.5, nan, 0.25, inf, 0.2, 0.1)
SEEN = {"facts": ("loss", "grad_norm"), "every": 2, "hyper": ("lr", "momentum")}
"""What the sinks of the tests are given; `callbacks` let the log have the same."""

EXPORTED = ["--facts", "loss,grad_norm", "--every", "2", "--hyper", "lr,momentum"]
"""The same as options of `fsm-train export`."""


def workload(**more: Any) -> Scripted:
    """Measurements that depend on the place in the training alone; a validation now and then gives no finite number."""
    return Scripted(
        batches=4,
        loss=lambda state: 1 / (1 + state.iteration),
        train_loss=lambda state: 1 / (1 + state.iteration),
        grad_norm=lambda state: 2.0 + state.step,
        valid_loss=lambda state: VALID_LOSSES[state.iteration // 3 % len(VALID_LOSSES)],
        hyper={"lr": (0.1, 0.2), "momentum": 0.9},
        **more,
    )


@on(Phase.BATCH_END, sets={"momentum"})
def calms_down(state: State) -> Transition:
    """Sets a number after the step for which the one before was used."""
    return Transition(hyper={"momentum": (90 - state.iteration) / 100})


def callbacks() -> list[Callback[Any]]:
    return [
        schedule(lr=linear(1.0, 0.5, 12)),
        validate_every(steps=3),
        calms_down,
        record("loss", "grad_norm", every=2),
        early_stopping("valid_loss", patience=99, on_nonfinite="wait"),
    ]


def suspends(*iterations: int) -> Callback[Any]:
    """Suspends after these batches."""

    @on(Phase.BATCH_END, name="suspends")
    def suspends(state: State) -> Transition | None:
        if state.iteration in iterations:
            return Transition(flags=Flag.SUSPEND, reason="time is up")
        return None

    return suspends


@on(Phase.LOSS_END, name="breaks")
def breaks(state: State) -> None:
    """Fails in the second epoch."""
    if state.iteration == 5:
        raise RuntimeError("out of luck")


def whole(*sinks: Sink, log: Path | None = None, further: Sequence[Callback[Any]] = (), epochs: int = 3) -> State:
    """The training in one piece."""
    return run(start(workload(), epochs=epochs, seed=0), [*callbacks(), *further], sinks=sinks, log=log)


def in_pieces(make_sink: Callable[[], Sink], log: Path | None = None, batches: int = 5) -> State:
    """The same, suspended after so many batches and after 9, and then resumed once more from where it was at first."""
    first = run(start(workload(), epochs=3, seed=0), [*callbacks(), suspends(batches)], sinks=[make_sink()], log=log)
    assert first.phase is Phase.SUSPENDED
    again = copy.deepcopy(first)  # with a workload that stands where it stood
    run(first, [*callbacks(), suspends(9)], sinks=[make_sink()], log=log)
    return run(again, callbacks(), sinks=[make_sink()], log=log)
