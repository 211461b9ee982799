"""A batch that a callback leaves out is in no mean, no metric and no buffer: as if the loader never gave it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import nn

from fsm_train import Callback, Flag, Phase, Scripted, State, Supervised, Transition, Workload, on, replay, run, start
from fsm_train.callbacks import accumulate, ema, mixed_precision, record, skip_nonfinite
from fsm_train.supervised.buffers import Buffers
from fsm_train.testing import simulate

Batch = tuple[torch.Tensor, torch.Tensor]


def good_batches(number: int = 4) -> list[Batch]:
    torch.manual_seed(1)
    return [(torch.randn(8, 4), torch.randn(8, 1)) for _ in range(number)]


BAD = (torch.full((8, 4), math.nan), torch.zeros(8, 1))


class Seen:
    """A metric with update, compute and reset."""

    def __init__(self) -> None:
        self.reset()

    def update(self, output: torch.Tensor, target: torch.Tensor) -> None:
        self.values.append(float(output.sum()))

    def compute(self) -> float:
        return sum(self.values)

    def reset(self) -> None:
        self.values: list[float] = []


def batch_norm() -> nn.Module:
    return nn.BatchNorm1d(8)


class Counting(nn.Module):
    """Replaces its buffers by others, one of them None at first, and grows one that is saved."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("running", torch.zeros(8))
        self.register_buffer("latest", None)
        self.register_buffer("bank", torch.zeros(0, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.running = 0.9 * self.running + 0.1 * x.detach().mean(0)
            self.latest = x.detach().mean(0)
            self.bank = torch.cat([self.bank, self.latest[None]])
        return x + self.running + self.bank.sum(0)


def spectral() -> nn.Module:
    return nn.utils.parametrizations.spectral_norm(nn.Linear(8, 8))


class CentredLoss(nn.Module):
    """A loss that keeps the mean of its targets in a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("centre", torch.zeros(()))

    def forward(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        self.centre.mul_(0.9).add_(0.1 * (target - output).detach().mean())
        return (output - target - self.centre).square().mean()


def training(batches: Sequence[Batch], middle: Callable[[], nn.Module], loss: Callable[[], nn.Module]) -> Supervised:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), middle(), nn.Linear(8, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    metrics: dict[str, Any] = {"mean": lambda output, target: output.mean(), "seen": Seen()}
    return Supervised(model, optimizer, loss(), batches, good_batches(2), metrics=metrics)


def values(work: Supervised) -> list[torch.Tensor]:
    """Weights and buffers of the model, which has its average at the end if there is one, and of the loss."""
    return [value for module in work.modules.values() for value in module.state_dict().values()]


def skips(phase: Phase, flag: Flag, when: Callable[[State], bool]) -> Callback[Any]:
    @on(phase)
    def skips(state: State) -> Transition | None:
        return Transition(flags=flag) if when(state) else None

    return skips


def test_skipped_batch_leaves_no_trace() -> None:
    """skip_nonfinite leaves out a batch with a NaN: the history and the weights are those without it."""

    def train(batches: Sequence[Batch]) -> tuple[State, nn.Module]:
        work = training(batches, batch_norm, nn.MSELoss)
        return run(start(work, epochs=2), [skip_nonfinite()]), work.model

    good = good_batches(3)
    with_it, model = train([good[0], BAD, *good[1:]])
    without, same = train(good)

    assert with_it.history == without.history
    assert all(map(torch.equal, model.state_dict().values(), same.state_dict().values()))


@pytest.mark.parametrize(
    ("phase", "flag"),
    [
        (Phase.BATCH_BEGIN, Flag.SKIP_BATCH),
        (Phase.BATCH_BEGIN, Flag.SKIP_BACKWARD),
        (Phase.LOSS_BEGIN, Flag.SKIP_BATCH),
        (Phase.LOSS_BEGIN, Flag.SKIP_BACKWARD),
        (Phase.LOSS_END, Flag.SKIP_BATCH),
        (Phase.LOSS_END, Flag.SKIP_BACKWARD),
    ],
)
@pytest.mark.parametrize("middle", [batch_norm, Counting, spectral], ids=lambda each: each.__name__)
@pytest.mark.parametrize("place", [0, 2, 4])
def test_skip_is_as_if_the_batch_had_never_been(
    phase: Phase, flag: Flag, middle: Callable[[], nn.Module], place: int
) -> None:
    """Wherever it is raised, and whatever buffers the forward pass and the loss change, in place or by new ones."""
    good = good_batches()
    ours = training([*good[:place], BAD, *good[place:]], middle, CentredLoss)
    theirs = training(good, middle, CentredLoss)

    finals = [
        run(start(ours, epochs=2), [skips(phase, flag, lambda state: state.batch == place)]),
        run(start(theirs, epochs=2)),
    ]

    assert finals[0].history == finals[1].history
    assert all(map(torch.equal, values(ours), values(theirs)))


@pytest.mark.parametrize(
    "others",
    [
        lambda: [accumulate(2)],
        lambda: [accumulate(3)],
        lambda: [ema(0.9)],
        lambda: [record("loss", "grad_norm")],
        lambda: [mixed_precision("bfloat16")],
        lambda: [mixed_precision("float16"), accumulate(2)],
    ],
    ids=["accumulate", "window over the batch", "ema", "watched", "bfloat16", "float16"],
)
def test_other_callbacks_do_not_see_it_either(others: Callable[[], list[Callback[Any]]]) -> None:
    """Windows, averages with their buffers, the gradient scaler: all as without the batch."""
    good = good_batches()
    ours = training([good[0], BAD, *good[1:], BAD], batch_norm, CentredLoss)
    theirs = training(good, batch_norm, CentredLoss)

    finals = [run(start(work, epochs=2), [skip_nonfinite(gradients=False), *others()]) for work in (ours, theirs)]

    assert finals[0].history == finals[1].history
    assert finals[0].step == finals[1].step
    assert all(map(torch.equal, values(ours), values(theirs)))


def test_every_batch_left_out_leaves_no_loss() -> None:
    """An epoch of which nothing was kept has no training metrics, and batch norm's statistics stay as they were."""
    work = training([BAD, BAD], batch_norm, nn.MSELoss)
    before = [value.clone() for value in values(work)]

    final = run(start(work, epochs=1), [skip_nonfinite()])

    assert not [name for name in final.metrics if name.startswith("train_")]
    assert all(map(torch.equal, values(work), before))


def test_simulated_mean_is_without_it() -> None:
    """A simulation leaves out what a training would."""
    final = simulate([skip_nonfinite()], batches=3, loss=[1.0, math.nan, 2.0], epochs=1)

    assert final.metrics["train_loss"] == 1.5


def test_log_of_it_replays(tmp_path: Any) -> None:
    """The course of a training with skips is followed as ever."""
    good = good_batches()
    work = training([good[0], BAD, *good[1:]], batch_norm, nn.MSELoss)
    run(start(work, epochs=2), [skip_nonfinite(), accumulate(2)], log=tmp_path / "run.jsonl")

    assert replay(tmp_path / "run.jsonl", [skip_nonfinite(), accumulate(2)]).ok


def test_workload_of_ones_own_need_not_know_of_it() -> None:
    """The protocol has a discard that does nothing."""
    done = Workload.discard(Scripted())  # type: ignore[func-returns-value]

    assert done is None


class Rotary(nn.Module):
    """Notes beside its buffer, which is a cache and not saved, how long it is."""

    def __init__(self) -> None:
        super().__init__()
        self.length = 2
        self.register_buffer("table", torch.arange(2.0), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if len(x) > self.length:
            self.length = len(x)
            self.register_buffer("table", torch.arange(float(len(x))), persistent=False)
        return x + self.table[: len(x)]


def test_cache_that_grew_stays() -> None:
    """What a module notes of its cache is in no buffer, and must go on to fit."""
    module = Rotary()
    kept = Buffers([module])
    kept.keep()
    module(torch.zeros(5))
    kept.put_back()

    assert module(torch.zeros(4)).tolist() == [0, 1, 2, 3]


def test_buffers_are_copied_once_and_put_back_as_often_as_asked() -> None:
    """Also where one is a view that cannot be written, not initialized yet, resized, or there is none at all."""
    module = nn.Module()
    module.register_buffer("row", torch.zeros(1).expand(4))
    module.register_buffer("lazy", nn.UninitializedBuffer())
    module.register_buffer("count", torch.zeros(2))
    kept = Buffers([module, nn.Linear(1, 1)])
    for number in range(3):
        module.count.fill_(number)
        kept.keep()
        module.count.fill_(9.0)
        kept.put_back()
        assert module.count.tolist() == [number, number]
    module.count.resize_(3).fill_(5.0)
    kept.keep()
    module.count.zero_()
    kept.put_back()
    assert module.count.tolist() == [5.0] * 3

    none = Buffers([nn.Linear(1, 1)])
    none.keep()
    none.put_back()
