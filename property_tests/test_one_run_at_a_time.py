"""Any interleaving: a second run is refused and the first ends as if alone; an evaluation leaves no trace anywhere."""

from __future__ import annotations

import contextlib
import itertools
import random
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from fsm_train import State, Supervised, WorkloadError, evaluate, find_lr, interpreter, iterate, lr_finder, run, start
from fsm_train.core import under_way
from fsm_train.core.phase import CONSULTED
from fsm_train.core.under_way import VALIDATING
from property_tests.test_real_model import same_weights

EPOCHS = 2


def workload() -> Supervised:
    """Shuffled, with dropout and batch norm, and a part in eval mode."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(1, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.BatchNorm1d(4), nn.Linear(4, 1))
    model[3].eval()
    rows = TensorDataset(torch.arange(12.0)[:, None] / 12, torch.ones(12, 1))
    loader = DataLoader(rows, 4, shuffle=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    return Supervised(model, optimizer, nn.MSELoss(), loader, DataLoader(rows, 6))


def sharing(work: Supervised) -> Supervised:
    """Another workload with the same model."""
    optimizer = torch.optim.SGD(work.model.parameters(), lr=0.1)
    return Supervised(work.model, optimizer, nn.MSELoss(), work.train)


def first_of_a_loop(state: State) -> State:
    return next(iterate(state, at=CONSULTED))


def draws() -> list[Any]:
    """What the generators give next. It is taken without taking it."""
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()
    drawn = [torch.rand(2).tolist(), random.random(), float(np.random.rand())]
    torch.set_rng_state(before[0])
    random.setstate(before[1])
    np.random.set_state(before[2])
    return drawn


# ------------------------------------------------------------------------------- a second run

BEGIN: Mapping[str, Callable[[State], object]] = {"run": run, "iterate": first_of_a_loop, "find_lr": find_lr}
Attempt = tuple[int, str, bool]
"""After how many phases a second run is begun, how, and whether by another workload with the same model."""

ATTEMPTS = st.lists(st.tuples(st.integers(0, 18), st.sampled_from(sorted(BEGIN)), st.booleans()), max_size=3)


def second_is_refused_and_first_is_whole(attempts: Sequence[Attempt]) -> None:
    alone, work = workload(), workload()
    expected = run(start(alone, epochs=EPOCHS, seed=0))
    other = sharing(work)
    loop = iterate(start(work, epochs=EPOCHS, seed=0), at=CONSULTED)
    for phases, begin, shares in attempts:
        state = deque(itertools.islice(loop, 1 + phases), maxlen=1)[0]
        refused = False
        try:
            BEGIN[begin](start(other if shares else work, epochs=1))
        except WorkloadError as error:
            refused = "is under way" in str(error)
        assert refused, f"{begin} began beside a run at {state.phase.value}"
    *_, final = loop

    assert final.history == expected.history
    assert same_weights(work.model, alone.model)


@settings(max_examples=6)  # each refusal collects garbage, which takes its time
@given(ATTEMPTS)
def test_a_second_run_is_refused_and_the_first_is_as_if_alone(attempts: Sequence[Attempt]) -> None:
    """Wherever it is tried, however often, whatever begins it, also through another workload with the same model."""
    second_is_refused_and_first_is_whole(attempts)


def nothing_is_claimed(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(interpreter, "run_under_way", lambda work, *_: contextlib.nullcontext())


def the_model_is_not_claimed(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(under_way, "is_model", lambda model: False)


def the_model_is_looked_at_late(patch: pytest.MonkeyPatch) -> None:
    """When the second run begins, and not before: find_lr puts back by then what it found."""
    patch.setattr(lr_finder, "refuse_if_in_use", lambda work: None)


def a_refusal_ends_the_first(patch: pytest.MonkeyPatch) -> None:
    """As if the second had been let in far enough to open the data."""
    right = under_way.refuse_if_in_use

    def open_and_refuse(work: Any) -> None:
        if id(work) in under_way._claims:
            work.train_meters.reset()
        right(work)

    patch.setattr(interpreter, "refuse_if_in_use", open_and_refuse)


@pytest.mark.parametrize(
    ("bug", "attempts"),
    [
        (nothing_is_claimed, [(1, "iterate", False)]),
        (the_model_is_not_claimed, [(1, "iterate", True)]),
        (the_model_is_looked_at_late, [(4, "find_lr", True)]),
        (a_refusal_ends_the_first, [(12, "run", False)]),
    ],
)
def test_a_planted_bug_of_claims_is_caught(
    bug: Callable[[pytest.MonkeyPatch], None], attempts: list[Attempt], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The law has teeth, and holds without the bug."""
    second_is_refused_and_first_is_whole(attempts)
    bug(monkeypatch)

    with pytest.raises((AssertionError, RuntimeError)):
        second_is_refused_and_first_is_whole(attempts)


# ------------------------------------------------------------------------------- an evaluation


def seen(work: Supervised) -> list[Any]:
    """Modes, weights and buffers, the batch under way, and what the generators give next."""
    values = (work.inputs, work.target, work.output, *work.model.state_dict().values())
    modes = [part.training for part in work.model.modules()]
    return [modes, draws(), work.batch_size, *(None if value is None else value.tolist() for value in values)]


def evaluation_leaves_no_trace(places: frozenset[int]) -> None:
    """Evaluate at these places of the training, counted in phases."""
    alone, work = workload(), workload()
    expected = run(start(alone, epochs=EPOCHS, seed=0))
    for place, state in enumerate(iterate(start(work, epochs=EPOCHS, seed=0), at=CONSULTED)):
        if place not in places or state.phase in VALIDATING:
            continue
        before = seen(work)
        assert evaluate(work).keys() == {"valid_loss"}
        assert seen(work) == before

    assert state.history == expected.history
    assert same_weights(work.model, alone.model)


@given(st.frozensets(st.integers(0, 70), max_size=8))
def test_an_evaluation_at_any_place_leaves_no_trace(places: frozenset[int]) -> None:
    """Weights, modes, generators and the batch under way are as before, and the training ends as without it."""
    evaluation_leaves_no_trace(places)


@pytest.mark.parametrize("forgotten", ["the batch", "the generators", "the modes"])
def test_an_evaluation_that_leaves_a_trace_is_caught(forgotten: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The law has teeth: each of these is caught, and without it the law holds."""
    places = frozenset(range(70))
    evaluation_leaves_no_trace(places)
    right = Supervised.set_aside
    if forgotten == "the batch":
        monkeypatch.setattr(Supervised, "set_aside", lambda work: contextlib.nullcontext())
    elif forgotten == "the generators":

        @contextlib.contextmanager
        def drawing(work: Supervised) -> Any:
            with right(work):
                yield
            torch.rand(1)

        monkeypatch.setattr(Supervised, "set_aside", drawing)
    else:

        @contextlib.contextmanager
        def in_train_mode(work: Supervised) -> Any:
            with right(work):
                yield
            work.model.train()

        monkeypatch.setattr(Supervised, "set_aside", in_train_mode)

    with pytest.raises(AssertionError):
        evaluation_leaves_no_trace(places)
