"""Laws of optimizers and of means: calls of run in a row are one plain loop, and a mean is one pass over all."""

from __future__ import annotations

import copy
import inspect
import math
import tempfile
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import nn

from fsm_train import Flag, Phase, State, Supervised, Transition, extend, on, replay, restore, run, start
from fsm_train.callbacks import checkpoint, schedule
from fsm_train.core.state import hyper_read
from fsm_train.schedules import constant
from fsm_train.supervised import means
from fsm_train.supervised.means import Mean
from fsm_train.supervised.param_groups import write_groups


class Counting(torch.optim.Optimizer):
    """Keeps an estimate and a whole number in its groups, as Prodigy, D-Adaptation and schedule-free do."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {"lr": 1, "d": 1e-3, "k": 0, "limit": math.inf, "scale": torch.tensor(0.1)})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            group["d"] *= 1.1
            group["k"] += 1
            group["scale"].mul_(1.01)
            for p in group["params"]:
                p -= group["lr"] * group["d"] * group["scale"] * p.grad


OTHERS = {"Optimizer", "LBFGS", "SparseAdam"}  # the base class; a closure; sparse gradients
KINDS = [
    *(kind for name, kind in vars(torch.optim).items() if inspect.isclass(kind) and name not in OTHERS),
    Counting,
]
EPOCHS, LEAVE = 3, 2


def training(kind: Callable[..., torch.optim.Optimizer], groups: int, whole: bool) -> Supervised:
    """A small training; with `groups` of parameters, and rates that are whole numbers if `whole`."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 1, bias=False))
    parts = [{"params": list(layer.parameters())} for layer in model]
    optimizer = kind(parts if groups == 2 else list(model.parameters()))
    for group in optimizer.param_groups if whole else ():
        group["lr"] = 1
    generator = torch.Generator().manual_seed(1)
    data = [(torch.randn(4, 3, generator=generator), torch.randn(4, 1, generator=generator)) for _ in range(2)]
    return Supervised(model, optimizer, nn.MSELoss(), data)


def outcome(work: Supervised) -> list[Any]:
    """The weights, and every number in the groups."""
    groups = copy.deepcopy(work.optimizer.state_dict()["param_groups"])
    return [*(p.detach().clone() for p in work.model.parameters()), *(v for g in groups for v in g.values())]


def same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    return type(one) is type(other) and repr(one) == repr(other)


@on(Phase.EPOCH_END)
def leave(state: State) -> Transition | None:
    return Transition(flags=Flag.SUSPEND) if state.epoch == LEAVE else None


@given(kind=st.sampled_from(KINDS), groups=st.sampled_from([1, 2]), whole=st.booleans(), scheduled=st.booleans())
@example(kind=Counting, groups=2, whole=True, scheduled=True)
def test_calls_of_run_in_a_row_are_one_plain_loop(kind: Any, groups: int, whole: bool, scheduled: bool) -> None:
    """Extended, and through a checkpoint: weights and groups are those of the loop, and the log is replayed."""
    plain, extended, resumed = (training(kind, groups, whole) for _ in range(3))
    for inputs, target in [*plain.train] * EPOCHS:
        plain.loss_fn(plain.model(inputs), target).backward()  # type: ignore[no-untyped-call]
        plain.optimizer.step()
        plain.optimizer.zero_grad()
    if scheduled:  # sets the rate to what it is, as a float
        for group in plain.optimizer.param_groups:
            if not isinstance(group["lr"], torch.Tensor):
                group["lr"] = float(group["lr"])
    callbacks = [schedule(lr=constant(1.0))] if scheduled else []
    with tempfile.TemporaryDirectory() as folder:
        log = f"{folder}/run.jsonl"
        state = run(start(extended, epochs=LEAVE), callbacks, log=log)
        final = run(extend(state, epochs=EPOCHS - LEAVE), callbacks, log=log)
        again = replay(log, callbacks)
        run(start(training(kind, groups, whole), epochs=EPOCHS), [*callbacks, leave, checkpoint(f"{folder}/saved")])
        run(restore(f"{folder}/saved", resumed), [*callbacks, leave, checkpoint(f"{folder}/saved")])

    for work in (extended, resumed):
        assert all(map(same, outcome(plain), outcome(work)))
    assert again.divergence is None
    assert repr(dict(again.state.hyper)) == repr(dict(final.hyper))


def test_writing_all_numbers_back_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """A planted bug: setting one number writes the others too, as they were when they were read."""

    class Broken(Supervised):
        def hyper(self) -> Mapping[str, Any]:
            self.read_before = dict(super().hyper())
            return self.read_before

        def set_hyper(self, changes: Mapping[str, Any]) -> None:
            write_groups(self.optimizer, {**self.read_before, **changes})

    monkeypatch.setattr(f"{__name__}.Supervised", Broken)
    with pytest.raises(AssertionError):
        test_calls_of_run_in_a_row_are_one_plain_loop()


# -------------------------------------------------------------------------------------------- means

NUMBERS = st.one_of(
    st.floats(-1e200, 1e200, allow_subnormal=False).filter(lambda x: x == 0 or abs(x) > 1e-200),
    st.floats(-10, 10, width=32, allow_subnormal=False),
    st.integers(-(2**53), 2**53),
)


@given(batches=st.lists(st.tuples(NUMBERS, st.integers(1, 10_000)), min_size=1, max_size=40))
@example(batches=[(0.1, 3), (0.7, 1)])
@example(batches=[(1 / 3, 3), (-1.0, 1)])
@example(batches=[(1.0, 3), (1e-16, 7), (-1.0, 3)])
@example(batches=[(1 / 3, 3), (-1 / 3, 3), (1e-30, 1)])
def test_a_mean_is_one_pass_over_all_samples(batches: list[tuple[float, int]]) -> None:
    """To the last bit: the exact sum of each value, as often as it has samples, is rounded once, then divided."""
    mean = Mean()
    for value, samples in batches:
        mean.add(torch.tensor(value, dtype=torch.int64 if isinstance(value, int) else torch.float64), samples)
    exact = sum(Fraction(value) * samples for value, samples in batches)

    assert mean.result() == float(exact) / sum(samples for _, samples in batches)


@pytest.mark.parametrize("planted", ["rounded products", "single precision"])
def test_a_mean_that_rounds_on_the_way_is_caught(monkeypatch: pytest.MonkeyPatch, planted: str) -> None:
    """Planted bugs: products are rounded before they are added; values are rounded to single precision."""
    if planted == "rounded products":
        monkeypatch.setattr(means, "_halves", lambda number: (number,))
    else:
        right = means._on_cpu
        monkeypatch.setattr(means, "_on_cpu", lambda blocks: right([block.float() for block in blocks]))
    with pytest.raises(AssertionError):
        test_a_mean_is_one_pass_over_all_samples()


# ------------------------------------------------------------------------- reading hyper-parameters

VALUES = st.floats(allow_nan=True) | st.tuples(st.floats(), st.floats()) | st.floats(width=32)
HYPER = st.dictionaries(st.sampled_from(["lr", "d", "k"]), VALUES)


@given(before=HYPER, now=HYPER)
def test_what_was_read_is_read_again_the_same(before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Reading twice is reading once, so that a replay may read what the training has read already."""
    read = hyper_read(before, now)

    assert repr(dict(hyper_read(before, read))) == repr(dict(read))
    assert hyper_read(read, now) is read
    assert read.keys() == now.keys()
