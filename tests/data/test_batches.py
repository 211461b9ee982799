"""Batches of any nesting: taken apart, moved, compared, and given to the model."""

from __future__ import annotations

import types
from collections import OrderedDict, namedtuple
from typing import Any

import pytest
import torch
from torch import nn

from fsm_train.data.batches import call, map_tensors, structure, tensors, to_device

Point = namedtuple("Point", ["x", "y"])
ONE, TWO = torch.ones(2, 3), torch.ones(2, dtype=torch.int64)


class Answer(OrderedDict[str, Any]):
    """A mapping whose items are attributes too, as the outputs of some models are."""

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(key, value)
        self.__dict__[key] = value


NESTED = [
    (ONE, [ONE]),
    ((ONE, [TWO, {"mask": ONE}]), [ONE, TWO, ONE]),
    (Point(ONE, {"a": TWO}), [ONE, TWO]),
    (types.MappingProxyType({"a": ONE, "b": "text"}), [ONE]),
    (Answer(logits=ONE, rest=[TWO, None]), [ONE, TWO]),
    (("text", 3), []),
]


@pytest.mark.parametrize(("value", "inside"), NESTED)
def test_tensors_are_found_in_order(value: Any, inside: list[torch.Tensor]) -> None:
    """In tuples, lists and mappings; what is none of these has none."""
    assert [id(tensor) for tensor in tensors(value)] == [id(tensor) for tensor in inside]


@pytest.mark.parametrize(("value", "inside"), NESTED)
def test_tensors_are_changed_where_they_are(value: Any, inside: list[torch.Tensor]) -> None:
    """The nesting stays, the value itself is not written to, and what is no tensor is the same."""
    changed = map_tensors(value, lambda tensor: tensor + 1)

    assert [tensor.tolist() for tensor in tensors(changed)] == [(tensor + 1).tolist() for tensor in inside]
    assert [id(tensor) for tensor in tensors(value)] == [id(tensor) for tensor in inside]
    assert type(changed) is (dict if isinstance(value, types.MappingProxyType) else type(value))


def test_mapping_that_is_more_stays_what_it_is() -> None:
    """Its attributes follow its items."""
    changed = map_tensors(Answer(logits=ONE), lambda tensor: 2 * tensor)

    assert changed.logits is changed["logits"]
    assert changed.logits.sum() == 12


def test_moving_asks_what_can_move_itself() -> None:
    """A batch with a `to` of its own is moved by that; tensors in a nesting each by theirs."""

    class Graph:
        def to(self, device: torch.device) -> str:
            return f"on {device}"

    meta = torch.device("meta")
    assert to_device(Graph(), meta) == "on meta"
    inputs, rest = to_device((ONE, {"a": TWO, "b": "text"}), meta)
    assert (inputs.device, rest["a"].device, rest["b"]) == (meta, meta, "text")


@pytest.mark.parametrize(
    "other",
    [
        (ONE[:1], {"a": TWO, "b": 3}),
        (ONE.double(), {"a": TWO, "b": 3}),
        (ONE.to("meta"), {"a": TWO, "b": 3}),
        (ONE, {"c": TWO, "b": 3}),
        (ONE, {"a": TWO, "b": 4}),
        [ONE, {"a": TWO, "b": 3}],
        (ONE, {"a": TWO, "b": None}),
    ],
)
def test_form_tells_batches_apart(other: Any) -> None:
    """By shape, type, device, nesting and what is no tensor; not by the numbers in tensors."""
    value = (ONE, {"a": TWO, "b": 3})

    assert structure(value) == structure((ONE + 1, {"a": TWO * 2, "b": 3}))
    assert structure(value) != structure(other)


def test_form_of_what_hides_tensors_is_refused() -> None:
    """Nobody knows what is in it."""
    with pytest.raises(TypeError, match="the batch holds a object, which may have tensors in it"):
        structure([ONE, object()])


def test_inputs_of_a_type_of_ones_own_are_given_as_they_are() -> None:
    """A model that takes a graph, say, gets it."""

    class Model(nn.Module):
        def forward(self, graph: object) -> object:
            return graph

    graph = object()
    assert call(Model(), graph) is graph
