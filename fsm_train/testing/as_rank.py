"""A callback asked as it would be on one of several ranks: what is a rank's own differs, and the state does not.

Rule of this file: what is set for the time of a question is as before afterwards. Nothing is patched.
"""

from __future__ import annotations

import contextlib
import copy
import os
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ..core.callback import Callback
from . import hidden_state
from .consultation import Consultation, Response, ask, same_response

RANKS = 2
_OF_RANK = ("RANK", "LOCAL_RANK", "GROUP_RANK", "SLURM_PROCID", "SLURM_LOCALID", "OMPI_COMM_WORLD_RANK")
_OF_WORLD = ("WORLD_SIZE", "LOCAL_WORLD_SIZE", "SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE")


def first_difference(
    callback: Callback[Any], consultations: Sequence[Consultation]
) -> tuple[Consultation, Response, Response] | None:
    """The first of these consultations that has another answer on the second rank, with the answers of both.

    What differs on one and the same rank too, when it is asked twice, says nothing of ranks.
    """
    kept: list[object] = []  # equal states at different addresses, so that a new one is at none of them
    first, again, second = (_answers(callback, consultations, rank, kept) for rank in (0, 0, 1))
    for c, *answers in zip(consultations, first, again, second, strict=True):
        if same_response(answers[0], answers[1]) and not same_response(answers[0], answers[2]):
            return c, answers[0], answers[2]
    return None


def _answers(
    callback: Callback[Any], consultations: Sequence[Consultation], rank: int, kept: list[object]
) -> list[Response]:
    decide = hidden_state.fresh(callback.decide)
    states = [copy.copy(c.state) for c in consultations]
    kept.append(states)
    with as_rank(rank):
        return [ask(decide, state, c.memory) for state, c in zip(states, consultations, strict=True)]


@contextlib.contextmanager
def as_rank(rank: int) -> Iterator[None]:
    """Until the context ends, the environment is that of this rank, and the global generators are seeded by it.

    >>> before = os.environ.get("RANK")
    >>> with as_rank(1):
    ...     os.environ["RANK"], os.environ["WORLD_SIZE"]
    ('1', '2')
    >>> os.environ.get("RANK") == before
    True
    """
    values = dict.fromkeys(_OF_RANK, str(rank)) | dict.fromkeys(_OF_WORLD, str(RANKS))
    before = {name: os.environ.get(name) for name in values}
    put_back = [restore for seed, restore in _generators()]
    try:
        os.environ.update(values)
        for seed, _ in _generators():
            seed(rank)
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        for restore in put_back:
            restore()


def _generators() -> Iterator[tuple[Callable[[int], object], Callable[[], object]]]:
    """Of each global generator what seeds it, and what puts it back as it is now.

    NumPy and torch are looked at only if they are imported already.
    """
    state = random.getstate()
    yield random.seed, lambda: random.setstate(state)
    if (numpy_random := sys.modules.get("numpy.random")) is not None:
        of_numpy = numpy_random.get_state()
        yield numpy_random.seed, lambda: numpy_random.set_state(of_numpy)
    torch = sys.modules.get("torch")
    if torch is not None and hasattr(torch, "get_rng_state"):
        of_torch = torch.get_rng_state()
        yield torch.random.default_generator.manual_seed, lambda: torch.set_rng_state(of_torch)
