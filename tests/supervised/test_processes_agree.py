"""Processes on gloo that train one model: what they exchange, what they disagree on, and how they leave together."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
import torch.distributed as dist
from torch.utils.data import DataLoader, TensorDataset

from fsm_train import Callback, Evaluation, Flag, Phase, State, Supervised, Transition, on, run, start
from fsm_train.callbacks import accumulate, clip_grad_norm, compile_step, early_stopping, record, skip_nonfinite
from fsm_train.testing import differences
from fsm_train.worlds.disagreement import DisagreementError
from tests.diabetes_training import batches, weights_of, workload
from tests.forked import LIMIT, forked
from tests.how_long import of_all
from tests.supervised.test_parallel import shares

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="this torch has no torch.distributed")

BATCHES, EPOCHS = 4, 2


def loader(rank: int, batches_of_rank: int, skip: int = 0, **settings: Any) -> DataLoader[Any]:
    """Batches of eight patients for each of two ranks."""
    ((inputs, target),) = batches(16 * batches_of_rank, skip=skip)
    return DataLoader(TensorDataset(inputs[rank::2], target[rank::2]), batch_size=8, **settings)


def even(rank: int, **settings: Any) -> Supervised:
    return workload(loader(rank, BATCHES), valid=loader(rank, 2, skip=64), **settings)


# ------------------------------------------------------------------------------------ what is exchanged


@pytest.mark.parametrize(
    ("callbacks", "of_facts"),
    [
        ([], 0),
        ([early_stopping(patience=9)], 0),
        ([skip_nonfinite()], 2 * BATCHES * EPOCHS),  # the loss, and the norm of the gradient
        ([record("loss", every=2)], BATCHES * EPOCHS // 2),
        ([accumulate(2)], 0),
    ],
    ids=["none", "of metrics", "of facts", "of some facts", "windows"],
)
def test_ranks_exchange_as_often_as_is_needed(tmp_path: Path, callbacks: list[Callback[Any]], of_facts: int) -> None:
    """With even shares nothing for a batch, but where a callback needs a fact of it."""

    def work(rank: int) -> int:
        settings = {"kind": "ddp", "interrupts_every": 1000}
        model = even(rank, parallel=settings)
        run(start(model, epochs=EPOCHS, seed=0), callbacks)
        assert model.ranks is not None
        return model.ranks.agreed(model).exchanges  # type: ignore[attr-defined, no-any-return]

    of_a_run = 1 + 1 + 1 + 1  # made, prepare, finish, the seconds that it took
    of_an_epoch = 2 + 2  # open and measure, of the data and of the validation
    assert forked(2, tmp_path, work) == [of_a_run + EPOCHS * of_an_epoch + of_facts] * 2


def test_sizes_of_a_validation_are_known_of_one_evaluation() -> None:
    """That comes in each validation, and counts its batches as torch stacks them."""
    data = loader(0, 2)
    assert even(0).known_valid_sizes == (2, 8, 8)
    assert workload(valid={"a": data, "b": data}).known_valid_sizes is None
    assert workload(valid={"a": Evaluation(data, every=2)}).known_valid_sizes is None
    assert workload(valid=data, samples=lambda inputs, target: 1).known_valid_sizes is None
    assert workload(valid=list(data)).known_valid_sizes is None
    assert workload().known_valid_sizes is None


# ------------------------------------------------------------------------------------ disagreements


def own_rate(rank: int) -> Callback[Any]:
    @on(Phase.BATCH_END, name="own")
    def own(state: State) -> Transition | None:
        return Transition(hyper={"lr": 0.1 / (1 + rank)}) if state.step == 2 else None

    return own


def own_memory(rank: int) -> Callback[Any]:
    @on(Phase.EPOCH_END, name="own", memory=0)
    def own(state: State, before: int) -> Transition:
        return Transition(memory=before + 7 + rank)

    return own


def own_flag(rank: int) -> Callback[Any]:
    @on(Phase.EPOCH_END, name="own")
    def own(state: State) -> Transition | None:
        return Transition(flags=Flag.STOP_TRAINING) if rank else None

    return own


def own_metric(rank: int) -> Callback[Any]:
    """One that decides by a number that it has from elsewhere."""

    @on(Phase.VALID_END, name="own", memory=0.0)
    def own(state: State, best: float) -> Transition:
        return Transition(memory=state.metrics["valid_loss"] * (1 + rank))

    return own


DISAGREEMENTS: dict[str, tuple[Callable[[int], Callback[Any]] | None, str, str]] = {
    "rate": (own_rate, "epoch", "the ranks decided differently. hyper lr: 0.1 on rank 0, 0.05 on rank 1"),
    "memory": (own_memory, "epoch", "the ranks decided differently. memory own: 7 on rank 0, 8 on rank 1"),
    "metric": (own_metric, "epoch", "the ranks decided differently. memory own: "),
    "flag": (
        own_flag,
        "epoch",
        "at the begin of a pass over the training data on rank 0, at the end of a run on rank 1",
    ),
    "epochs": (None, "epoch", '"epochs":3'),
    "phase": (own_rate, "phase", "the ranks decided differently. hyper lr: 0.1 on rank 0, 0.05 on rank 1"),
}


@pytest.mark.parametrize("what", DISAGREEMENTS)
def test_a_disagreement_is_named_on_all_ranks(tmp_path: Path, what: str) -> None:
    """With the field, whose it is, and the value on each rank, within seconds; compared by phase, at once."""
    own, agree, said = DISAGREEMENTS[what]

    def work(rank: int) -> Any:
        began = time.monotonic()
        model = even(rank, parallel={"agree": agree})
        try:
            run(start(model, epochs=3 + (rank if own is None else 0), seed=0), [] if own is None else [own(rank)])
        except DisagreementError as error:
            return str(error), error.__notes__, time.monotonic() - began
        return "", [], 0.0

    (one, where, seconds), (other, _, as_many) = forked(2, tmp_path, work)
    assert one == other
    assert said in one
    if agree == "phase":
        assert "after batch_end of epoch 0, batch 2, step 2" in where[0]
    assert max(seconds, as_many) < LIMIT / 3


# ------------------------------------------------------------------------------------ signals


def at_its_begin(do: Callable[[], object]) -> Callback[Any]:
    """Do this when a run begins, and not before: a signal that comes before it is the program's own."""

    @on(Phase.SETUP, name="begins")
    def begins(state: State) -> None:
        do()

    return begins


@pytest.mark.long
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("who", [(0,), (1,), (0, 1)], ids=["first", "second", "both"])
def test_processes_leave_together_whenever_a_signal_comes(tmp_path: Path, who: tuple[int, ...], workers: int) -> None:
    """In training and in validations, with workers and without: at the same step, with the same weights; resumed."""
    trials = of_all(17, few=2)  # 100 signals in all

    def work(rank: int) -> list[Any]:
        train = loader(rank, BATCHES, num_workers=workers, shuffle=True)
        model = workload(train, valid=loader(rank, 2, skip=64, num_workers=workers), parallel="ddp")
        state, found, delays = start(model, epochs=10**6, seed=0), [], random.Random(rank)
        signal.signal(signal.SIGTERM, lambda *_: None)  # one that comes after the other rank's has suspended both
        for _ in range(trials):
            timer = threading.Timer(delays.uniform(0.0, 0.2), os.kill, (os.getpid(), signal.SIGTERM))
            state = run(state, [at_its_begin(timer.start if rank in who else lambda: None)])
            if rank in who:
                timer.join()
            found.append((attrs.evolve(state, workload=None), weights_of(model.model).clone()))
        return found

    one, other = forked(2, tmp_path, work)
    assert len(one) == len(other) == trials
    for (state, weights), (as_state, as_weights) in zip(one, other, strict=True):
        assert state.phase is Phase.SUSPENDED
        assert not list(differences(state, as_state))
        assert torch.equal(weights, as_weights)


# ------------------------------------------------------------------------------------ compiled steps


@pytest.mark.long(alone=True)
@pytest.mark.filterwarnings("ignore")  # of what inductor itself uses
@pytest.mark.parametrize("callbacks", [[], [clip_grad_norm(1.0)]], ids=["whole", "in pieces"])
def test_compiled_steps_of_ranks_are_those_of_eager_ones(tmp_path: Path, callbacks: list[Callback[Any]]) -> None:
    """To rounding, and to the last bit on both ranks; a leftover batch, which weighs otherwise, included."""

    def work(rank: int) -> list[torch.Tensor]:
        found = []
        for compiled in ([], [compile_step("default")]):
            model = workload(shares(rank, 8, 8, 7), parallel="ddp")
            run(start(model, epochs=2, seed=0), [*compiled, *callbacks])
            found.append(weights_of(model.model))
        return found

    (eager, compiled), (_, other) = forked(2, tmp_path, work, limit=300)  # which compiles
    assert torch.equal(compiled, other)
    torch.testing.assert_close(compiled, eager, rtol=0, atol=1e-6)
