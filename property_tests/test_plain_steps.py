"""Laws of what is done in few calls where nothing special is asked for: it is what is done in general."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fsm_train import Supervised, WorkloadError
from fsm_train.data.batches import pair
from fsm_train.data.counting import count
from fsm_train.supervised.means import Mean
from tests.diabetes_training import batches, net, sgd

shapes = st.lists(st.integers(0, 3), max_size=3).map(tuple)
plain = shapes.map(torch.zeros)
parts = st.one_of(
    *(plain, plain, st.none(), st.lists(plain, max_size=2), st.dictionaries(st.sampled_from("ab"), plain, max_size=2)),
    plain.map(nn.Parameter),
)
any_batch = st.one_of(st.tuples(parts, parts), st.lists(parts, max_size=3), st.dictionaries(st.text(), parts), parts)


def supervised(kind: type[Supervised] = Supervised, **settings: Any) -> Supervised:
    torch.manual_seed(0)
    model = net()
    return kind(model, sgd(model), nn.MSELoss(), batches(8, 8, 5, 6), **settings)


# ------------------------------------------------------------------------------------------ a batch


@given(any_batch)
def test_batch_is_a_pair_and_counts_what_it_counts(batch: Any) -> None:
    """Also where two tensors disagree, where one has no dimension, and where there are not two: the same sentence."""

    def taken() -> tuple[Any, Any, float]:
        work = supervised()
        size = work._take(batch)
        assert size == work.batch_size
        return work.inputs, work.target, size

    def in_general() -> tuple[Any, Any, float]:
        inputs, target = pair(batch)
        return inputs, target, count(inputs, target)

    outcomes: list[Any] = []
    for of in (taken, in_general):
        try:
            inputs, target, size = of()
            outcomes.append((id(inputs), id(target), size))
        except WorkloadError as error:
            outcomes.append(str(error))
    assert outcomes[0] == outcomes[1]


# ------------------------------------------------------------------------------------- what is measured

types = st.sampled_from([torch.float32, torch.float32, torch.float64, torch.bfloat16])
numbers = st.lists(st.tuples(st.floats(-4, 4, width=16), types, st.integers(1, 5)), max_size=9)


@given(numbers, st.integers(0, 9), st.integers(1, 4))
def test_mean_keeps_the_type_of_each_number(given_numbers: list[Any], saved_after: int, block: int) -> None:
    """Nothing is rounded to a common type, in blocks of whatever size, saved and loaded in between or not."""
    mean = Mean()
    mean.BLOCK = block  # type: ignore[misc]
    for number, (value, dtype, weight) in enumerate(given_numbers):
        if number == saved_after:
            other = Mean()
            other.load_state(mean.state())
            mean = other
        mean.add(torch.tensor(value, dtype=dtype) / 3, weight)

    expected = [(torch.tensor(value, dtype=dtype) / 3).item() for value, dtype, _ in given_numbers]
    assert mean.values() == expected
    assert mean.state()[2] == [weight for _, _, weight in given_numbers]
