"""A callback asked as on several ranks."""

from __future__ import annotations

import os
import random
import sys

import numpy as np
import pytest
import torch

from fsm_train import Callback, Flag, Phase, State, Transition, on
from fsm_train.testing import CallbackCheckError, at, check_callback
from fsm_train.testing.as_rank import as_rank, first_difference
from fsm_train.testing.consultation import Consultation


def asked(callback: Callback[None], epochs: int = 3) -> object:
    """The first difference between ranks, for a callback at EPOCH_END."""
    return first_difference(callback, [Consultation(at(Phase.EPOCH_END, epoch=i), None, None) for i in range(epochs)])


def failed_checks(callback: Callback[None]) -> list[str]:
    with pytest.raises(CallbackCheckError) as caught:
        check_callback(callback, examples=10)
    return list(caught.value.report.failed)


def answering(text: str) -> Transition:
    return Transition(reason=text)


@pytest.mark.parametrize("name", ["RANK", "LOCAL_RANK", "SLURM_PROCID"])
def test_answer_by_the_number_of_the_rank_is_found(name: str) -> None:
    """It reads the environment too, which is a finding of its own."""

    @on(Phase.BATCH_END)
    def stops_first_rank(state: State) -> Transition | None:
        return Transition(flags=Flag.STOP_EPOCH) if os.environ.get(name) == "0" else None

    assert failed_checks(stops_first_rank) == ["reads_no_environment", "same_on_every_rank"]


@pytest.mark.parametrize(
    "draw",
    [random.random, lambda: random.getstate()[1], lambda: np.random.rand(), lambda: torch.rand(1).item()],
    ids=["random", "state", "numpy", "torch"],
)
def test_answer_by_a_global_generator_is_found(draw: object) -> None:
    """Each rank seeds its own, for dropout and augmentation."""

    @on(Phase.EPOCH_END)
    def draws(state: State) -> Transition:
        return answering(repr(draw()))  # type: ignore[operator]

    assert asked(draws)


def test_generator_of_the_state_draws_the_same_on_all_ranks() -> None:
    """It depends on the plan's seed and the counters."""

    @on(Phase.EPOCH_END)
    def draws(state: State) -> Transition:
        return Transition(reason=repr(state.random("mine").random()))  # new processes are asked, without torch

    assert asked(draws) is None
    assert "same_on_every_rank" in check_callback(draws, examples=10).passed


def test_what_differs_on_one_rank_too_is_no_difference_of_ranks() -> None:
    """Another check finds it."""

    @on(Phase.EPOCH_END)
    def by_address(state: State) -> Transition:
        return answering(str(id(state)))

    assert asked(by_address) is None


def test_everything_is_put_back() -> None:
    """The environment, also where a variable was there before, and the generators."""
    os.environ["RANK"] = "7"
    os.environ.pop("WORLD_SIZE", None)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # type: ignore[index]
    try:
        with as_rank(1):
            drawn = random.random(), np.random.rand(), torch.rand(1).item()
            assert (os.environ["RANK"], os.environ["WORLD_SIZE"]) == ("1", "2")
        with as_rank(1):
            assert drawn == (random.random(), np.random.rand(), torch.rand(1).item())
        assert (os.environ["RANK"], os.environ.get("WORLD_SIZE")) == ("7", None)
    finally:
        del os.environ["RANK"]
    after = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # type: ignore[index]
    assert after == before


def test_nothing_is_imported_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Generators of packages that are not there cannot be drawn from."""
    monkeypatch.delitem(sys.modules, "numpy.random")
    monkeypatch.delitem(sys.modules, "torch")

    with as_rank(1):
        first = random.random()
    with as_rank(1):
        assert random.random() == first
    assert "torch" not in sys.modules
