"""Accumulation: several small batches give the gradient of one large one."""

from __future__ import annotations

import functools
from collections.abc import Mapping

from ..core.callback import Callback, on
from ..core.checks import check_bool, check_count
from ..core.commands import WeighLoss
from ..core.phase import Flag, Phase
from ..core.state import State
from ..core.transition import UNCHANGED, Transition
from .players import player_factory

Firsts = float | tuple[tuple[str, float], ...]
"""The size of the first batch of the window under way; with turns, that of each player, by its name."""


def _noted(firsts: Firsts, player: str, size: float) -> Firsts:
    if not player:
        return size
    return tuple({**dict(firsts if isinstance(firsts, tuple) else ()), player: size}.items())


@player_factory
def accumulate(
    every: int | Mapping[int, int],
    *,
    drop_last: bool = False,
    weight: str = "batch_size",
    player: str | None = None,
    name: str = "accumulate",
) -> Callback[Firsts]:
    """Take one optimizer step per `every` batches, with the gradient of the one batch that is their union.

    Each batch is weighted by its size, so the gradient is that of the union (to rounding) for batches
    of unequal size too, for a leftover window at the end of an epoch, and with a batch skipped inside
    a window. The loss is to be a mean over the batch. Windows do not cross epochs.

    At LOSS_END, where the loss is weighted and the step is skipped until the window is full. A batch that
    weighs 0 is left out there, by SKIP_BACKWARD.

    >>> from fsm_train.testing import simulate
    >>> simulate([accumulate(4)], batches=10, epochs=1).step  # 4 + 4 + the leftover 2
    3

    Args:
        every: batches per step; or that number from each epoch on, such as {0: 1, 5: 4}.
        drop_last: drop a leftover window instead of taking a step for it.
        weight: the fact that gives the weight of a batch. For a loss that is a mean over tokens it is their
            number, which a sensor measures, or which `Supervised(samples=…)` gives as `batch_size`. A batch
            that weighs 0 is left out.
        player: in a training with turns, the player that it is for; None for all.
    """
    check_bool("drop_last", drop_last)
    if not isinstance(weight, str):
        raise TypeError(f"weight={weight!r}: name a fact, such as 'batch_size'")
    from_epoch = dict(every) if isinstance(every, Mapping) else {0: every}
    for epoch, batches in from_epoch.items():
        check_count("the epoch in every", epoch)
        check_count("every", batches, least=1)
    if 0 not in from_epoch:
        raise ValueError(f"every={every!r}: say how many batches a step has from epoch 0 on")

    @functools.lru_cache(maxsize=1)
    def batches_per_step(epoch: int) -> int:
        return from_epoch[max(first for first in from_epoch if first <= epoch)]

    @functools.lru_cache  # most batches of a training have the same answer
    def answer(size: float, first: float, batches: int, memory: object, full: bool) -> Transition:
        # Relative to the first batch of the window, so that shares are near 1 / every: with the sizes
        # themselves as shares, a loss in half precision overflows.
        return Transition(
            flags=Flag.NONE if full else Flag.SKIP_STEP | Flag.SKIP_ZERO,
            memory=memory,
            commands=(WeighLoss(size / (first * batches), by=weight),),
        )

    initial: Firsts = 1.0
    phases = (Phase.LOSS_END, Phase.STEP_BEGIN) if drop_last else (Phase.LOSS_END,)
    reads = {"pending", "batch_size", *["epoch"] * (len(from_epoch) > 1), *["batches_over"] * drop_last}

    @on(
        *phases,
        memory=initial,
        needs={weight} - {"batch_size"},
        raises=Flag.SKIP_STEP | Flag.SKIP_ZERO | Flag.SKIP_BACKWARD,
        commands={WeighLoss},
        reads=reads if weight == "batch_size" else None,
    )
    def accumulate(state: State, firsts: Firsts) -> Transition | None:
        if state.phase is Phase.STEP_BEGIN:
            return Transition(flags=Flag.SKIP_STEP) if state.draining else None
        batches = batches_per_step(state.epoch)
        if batches == 1:
            return None

        size = state.facts[weight]
        if size == 0:  # 0 times NaN is NaN, and a mean over nothing is NaN
            return Transition(flags=Flag.SKIP_BACKWARD)
        full = state.pending + 1 >= batches
        if state.pending == 0:
            return answer(size, size, batches, _noted(firsts, state.player, size), full)
        first = dict(firsts).get(state.player, 1.0) if isinstance(firsts, tuple) else firsts
        return answer(size, first, batches, UNCHANGED, full)

    return accumulate
