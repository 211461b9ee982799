"""A training takes no more memory because it is longer, but for the metrics of its epochs."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from fsm_train import Callback, Phase, Scripted, Supervised, Transition, Workload, on, run, start
from fsm_train.callbacks import record
from fsm_train.core.phase import BATCH_PHASES
from tests.how_long import SHARE, of_all

KIB = 1024


def supervised(batches: int) -> Workload:
    model = nn.Linear(2, 1)
    data = [(torch.ones(2, 2), torch.zeros(2, 1))] * batches
    return Supervised(model, torch.optim.SGD(model.parameters(), lr=0.1), nn.MSELoss(), data)


def scripted(batches: int) -> Workload:
    return Scripted(batches=batches, loss=0.5)


def count(state: Any, memory: int) -> Transition:
    """Remembers something new each time, so that what is kept of it is never the same."""
    return Transition(memory=memory + 1)


CALLBACKS: dict[str, Callable[[], list[Callback[Any]]]] = {
    "none": list,
    "those that declare what they read": lambda: [
        on(Phase.BATCH_BEGIN, Phase.LOSS_END, reads={"pending"}, name="declares")(lambda state: None),
        record("loss"),
    ],
    "one that declares it, and remembers": lambda: [on(Phase.BATCH_END, memory=0, reads=())(count)],
    "one that looks at each phase of a batch": lambda: [on(*BATCH_PHASES, name="looks")(lambda state: None)],
    "one now and then": lambda: [on(Phase.BATCH_BEGIN, Phase.BATCH_END, memory=0, every=7)(count)],
}


@on(Phase.EPOCH_BEGIN, name="collect", every=5)
def collect(state: Any) -> None:
    """What waits to be collected is no part of the question. Not pure: it stands for a longer training."""
    gc.collect()


def most_in_use(train: Callable[[], object]) -> int:
    """The most bytes that Python's objects took while this was done, beyond those before."""
    gc.collect()
    tracemalloc.start()
    try:
        train()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.long
@pytest.mark.parametrize("callbacks", CALLBACKS.values(), ids=CALLBACKS.keys())
@pytest.mark.parametrize("make", [scripted, supervised])
def test_steps_take_no_memory(make: Callable[[int], Workload], callbacks: Callable[[], list[Callback[Any]]]) -> None:
    """More epochs have the same peak; with FSM_TRAIN_LONG=1, of half an hour, they are a million steps on a script."""
    all_of_it = SHARE == 1 and make is scripted

    def trained(epochs: int) -> int:
        work = make(500 if all_of_it else 200 if make is scripted else 30)
        return most_in_use(lambda: run(start(work, epochs=epochs), [*callbacks(), collect]))

    trained(1)  # caches of the process are filled
    many = 2000 if all_of_it else 12
    # What a thread of an earlier test still does is counted too, once; what steps keep is there each time.
    assert any(trained(many) < trained(4) + 16 * KIB + 400 * many for _ in range(3))


@pytest.mark.long
def test_an_epoch_takes_the_memory_of_its_metrics() -> None:
    """What is kept of each is a record of two numbers in the history; with FSM_TRAIN_LONG=1 of 100,000 epochs."""

    def trained(epochs: int) -> int:
        work = Scripted(batches=1, loss=0.5, valid_loss=lambda state: 1.0 / (1 + state.epoch))
        return most_in_use(lambda: run(start(work, epochs=epochs), [record("loss")]))

    trained(100)
    few, many = 100, of_all(100_000, 1000)
    assert any(trained(many) - trained(few) < 400 * (many - few) for _ in range(3))
