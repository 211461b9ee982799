"""Any interruption, any source of data: what is resumed is the undisturbed training, or notes say what is not."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fsm_train import restore, run, start
from fsm_train.data import generators, position
from fsm_train.data.reached import Reached
from fsm_train.data.sources import Sources
from tests.guarantees.test_resuming import SOURCES, leave_at, workload

EPOCHS, BATCHES = 2, 4


def resumed_is_undisturbed_or_noted(name: str, places: list[int]) -> None:
    """Leave at each of these places, restore in a new workload, and compare the batches with the undisturbed ones.

    Raises:
        AssertionError: others came, and nothing was said.
    """
    whole: list[Any] = []
    seen: list[Any] = []
    run(start(workload(SOURCES[name], whole), epochs=EPOCHS, seed=0))
    state = start(workload(SOURCES[name], seen), epochs=EPOCHS, seed=0)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "to continue in the middle")
        for place in places:
            run(state, [leave_at(place, Path(folder))])
            torch.rand(1)
            state = restore(folder, workload(SOURCES[name], seen))
        final = run(state)
    assert seen == whole or final.notes


@given(
    st.sampled_from(sorted(SOURCES)),
    st.sets(st.integers(1, EPOCHS * BATCHES - 1), min_size=1, max_size=3).map(sorted),
)
def test_resumed_is_undisturbed_or_noted(name: str, places: list[int]) -> None:
    """Whatever the batches depend on, and however often the training is left."""
    resumed_is_undisturbed_or_noted(name, places)


def _torch_only(_: Reached, **roots: object) -> list[Any]:
    return [layer for layer in generators.generators_of(**roots) if isinstance(layer.part, torch.Generator)]


def _never(*_: object, **__: object) -> None: ...


def _at_the_end(loader: Any, batches: int, at_start: Any, then: Any, at_first: Any = None) -> Iterator[Any]:
    then.put_back()
    return position._skip_in_sampler(loader, batches, then, at_first)


BUGS: dict[str, tuple[Any, str, Callable[..., Any], str]] = {
    "only torch's generators are saved": (Reached, "generators_of", _torch_only, "random.Random in a sampler"),
    "numbers of a sampler are forgotten": (Sources, "put_back", _never, "a sampler that counts its passes"),
    "the pass starts from later generators": (position, "fast_forward", _at_the_end, "a shuffling DataLoader"),
    "generators are not put back": (generators.Generators, "put_back", _never, "random.Random in a dataset"),
}


@pytest.mark.parametrize("bug", BUGS)
def test_planted_bugs_are_caught(bug: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The law has teeth: each of these would change the batches without a word."""
    owner, name, broken, source = BUGS[bug]
    monkeypatch.setattr(owner, name, broken)

    with pytest.raises(AssertionError):
        resumed_is_undisturbed_or_noted(source, [6])
