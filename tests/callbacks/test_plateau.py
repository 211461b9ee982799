"""Lowering the rate on a plateau, beside torch's own scheduler."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fsm_train import Flag, Phase, Transition, on
from fsm_train.callbacks import reduce_on_plateau
from fsm_train.testing import at, drive, simulate

NAN, INF = math.nan, math.inf


def rates(callback: Any, curve: list[float], rate: Any = 1.0) -> list[Any]:
    """The rate after each check of the curve."""
    found, memory = [], callback.memory
    for value in curve:
        answer = callback(at(Phase.VALID_END, valid_loss=value, lr=rate), memory)
        rate, memory = answer.hyper.get("lr", rate), answer.memory
        found.append(rate)
    return found


def test_flat_metric_is_reduced_as_torch_does() -> None:
    """With patience 2 the fourth of four equal values reduces, and then each third."""
    assert rates(reduce_on_plateau(patience=2), [1.0] * 8) == pytest.approx([1, 1, 1, 0.1, 0.1, 0.1, 0.01, 0.01])


def test_it_says_why() -> None:
    """The answer that reduces names the evidence."""
    answers = drive(reduce_on_plateau(patience=0, factor=0.5), [at(Phase.VALID_END, valid_loss=2.0)] * 2)

    assert answers[1].hyper == {"lr": 0.05}
    assert answers[1].reason == "valid_loss has not improved on 2.0 for 1 validation"


EIGHTHS = st.integers(-16, 16).map(lambda n: n / 8)


@settings(deadline=None)
@given(
    mode=st.sampled_from(["min", "max"]),
    curve=st.data(),
    factor=st.sampled_from([0.1, 0.5, 0.9]),
    patience=st.integers(0, 3),
    cooldown=st.integers(0, 3),
    min_delta=st.sampled_from([0.0, 0.125, 0.5]),
    min_lr=st.sampled_from([0.0, 0.01, 0.3]),
)
def test_it_is_torchs_scheduler(mode: Any, curve: st.DataObject, min_lr: float, **others: Any) -> None:
    """On any sequence, NaN and the worst infinity included, each group's rate is exactly torch's."""
    bad = [NAN, INF if mode == "min" else -INF]
    values = curve.draw(st.lists(EIGHTHS | st.sampled_from(bad), max_size=25))
    groups = [{"params": nn.Parameter(torch.zeros(1)), "lr": lr} for lr in (1.0, 0.2)]
    optimizer = torch.optim.SGD(groups)
    threshold = others["min_delta"]
    theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer,
        mode=mode,
        threshold=threshold,
        threshold_mode="abs",
        min_lr=min_lr,
        eps=0.0,
        **{name: others[name] for name in ("factor", "patience", "cooldown")},
    )
    expected = []
    for value in values:
        theirs.step(value)
        expected.append(tuple(group["lr"] for group in optimizer.param_groups))

    assert rates(reduce_on_plateau(mode=mode, min_lr=min_lr, **others), values, (1.0, 0.2)) == expected


def test_rate_below_the_least_is_left_alone() -> None:
    """min_lr is no floor that lifts a rate which is lower already."""
    assert rates(reduce_on_plateau(patience=0, min_lr=0.5), [1.0] * 3, (1.0, 0.2)) == [(1.0, 0.2), *[(0.5, 0.2)] * 2]


def test_epoch_without_validation_is_no_check() -> None:
    """Neither patience nor cooldown run on in it, from the first epoch on."""

    @on(Phase.EPOCH_BEGIN)
    def every_second_epoch(state: Any) -> Transition | None:
        return Transition(flags=Flag.SKIP_VALID) if state.epoch % 2 == 0 else None

    callbacks = [reduce_on_plateau(patience=1), every_second_epoch]
    final = simulate(callbacks, epochs=6, valid_loss=[1.0, 1.0, 1.0], hyper={"lr": 1.0})
    earlier = simulate(callbacks, epochs=5, valid_loss=[1.0, 1.0], hyper={"lr": 1.0})

    assert (earlier.hyper["lr"], final.hyper["lr"]) == (1.0, 0.1)


def test_missing_monitor_lists_what_there_is() -> None:
    """A metric that will not be there is refused before the first batch."""
    with pytest.raises(
        LookupError,
        match="monitors 'valid_f1', which this training does not measure: there will be train_loss, valid_loss",
    ):
        simulate([reduce_on_plateau("valid_f1")], valid_loss=[1.0])


@pytest.mark.parametrize(
    ("nonsense", "sentence"),
    [
        ({"factor": 1.0}, "factor=1.0: a rate is reduced by a factor between 0 and 1"),
        ({"factor": 0.0}, "factor=0.0"),
        ({"patience": -1}, "patience=-1: it is a whole number from 0"),
        ({"cooldown": 1.5}, "cooldown=1.5: it is a whole number from 0"),
        ({"min_delta": -0.1}, "min_delta=-0.1: an improvement is a number from 0"),
        ({"min_delta": INF}, "min_delta=inf"),
        ({"min_lr": -0.1}, "min_lr=-0.1: a rate is a number from 0"),
        ({"min_lr": NAN}, "min_lr=nan"),
        ({"mode": "best"}, "mode='best'"),
        ({"monitor": ""}, "monitor='': name a metric"),
    ],
)
def test_settings_are_checked_when_made(nonsense: dict[str, Any], sentence: str) -> None:
    """Nonsense is refused on the spot."""
    make: Callable[..., Any] = reduce_on_plateau
    with pytest.raises(ValueError, match=sentence):
        make(**nonsense)


def test_settings_are_recorded() -> None:
    """What it was made with is kept, defaults included."""
    callback = reduce_on_plateau(factor=0.5, name="slower")

    assert callback.name == "slower"
    assert callback.params == {
        "monitor": "valid_loss",
        "factor": 0.5,
        "patience": 10,
        "min_delta": 0.0,
        "mode": "min",
        "cooldown": 0,
        "min_lr": 0.0,
    }
