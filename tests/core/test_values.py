"""Immutable values: what may be kept, and what cannot be written to."""

from __future__ import annotations

import copy
import pickle

import attrs
import numpy as np
import pytest

from fsm_train import Phase, Plan, State
from fsm_train.core.values import FrozenMap, frozen_map, record_classes, same_numbers, unsaveable


@attrs.frozen
class Kept:
    best: float = 0.0
    inner: Kept | None = None


@attrs.define
class Writable:
    value: int = 0


@attrs.define
class Checked:
    """Writing to it goes through a method that attrs makes, and is possible all the same."""

    value: int = attrs.field(default=0, validator=attrs.validators.instance_of(int))


@attrs.define
class Converted:
    value: int = attrs.field(default=0, converter=int)


class Thawed(Kept):
    """A frozen record that a class derived from it lets be written to."""

    def __setattr__(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)


@pytest.mark.parametrize("record", [Writable(), Checked(), Converted(), Thawed()], ids=lambda r: type(r).__name__)
def test_a_record_that_can_be_written_to_is_no_memory(record: object) -> None:
    """Whatever attrs does on the way of a write: what matters is whether it is refused."""
    name = type(record).__name__

    assert unsaveable(record) == f"memory is a {name}, which can be written to: decorate it with attrs.frozen"
    assert str(unsaveable((1, record))).startswith(f"memory[1] is a {name}, which can be written to")


@pytest.mark.parametrize("value", [None, True, 1, 0.5, "x", (), (1, ("x", Kept())), Kept(1.0, Kept())], ids=repr)
def test_what_survives_is_a_memory(value: object) -> None:
    """Numbers, strings, tuples and frozen records of them."""
    assert unsaveable(value) is None


def test_advice_for_a_number_is_a_type_that_holds_it() -> None:
    """Of a complex one there is none."""
    assert str(unsaveable(np.float32(1.5))).endswith("write float(…) around it")
    assert str(unsaveable(np.bool_(True))).endswith("write bool(…) around it")
    assert str(unsaveable(1j)).endswith("use numbers, strings, tuples and frozen attrs records of them")


def test_numbers_are_the_same_by_name_and_nan_is_nan() -> None:
    """As metrics are compared that come from somewhere else."""
    nan, other = float("nan"), -float("nan")

    assert same_numbers({"a": 1.0, "b": nan}, {"b": other, "a": 1})
    for different in ({"a": 1.0}, {"a": 1.0, "b": 2.0}, {"a": 1.0, "c": nan}, {"a": nan, "b": nan}):
        assert not same_numbers({"a": 1.0, "b": nan}, different)


def test_a_frozen_mapping_is_its_own_copy() -> None:
    """It cannot be told from one, and comes back from a file as one that is frozen."""
    mapping = FrozenMap(lr=0.1)

    assert copy.copy(mapping) is mapping
    assert copy.deepcopy(mapping) is mapping
    again = pickle.loads(pickle.dumps(mapping))
    assert (again, hash(again)) == (mapping, hash(mapping))
    with pytest.raises(TypeError, match="part of an immutable record"):
        again["lr"] = 0.2


def test_a_state_is_made_with_mappings() -> None:
    """Something else in the place of one is refused by name of what it is."""
    with pytest.raises(TypeError, match="a mapping was expected, not 3"):
        State(Phase.READY, Plan(epochs=1), metrics=3)  # type: ignore[arg-type]


def test_records_are_found_where_they_may_come_to_be() -> None:
    """Also of a class that so far only an annotation names."""
    assert record_classes((1, Kept())) == {"Kept": Kept}
    assert record_classes(Holder()) == {"Holder": Holder, "Kept": Kept}
    assert record_classes(Heir()) == {"Heir": Heir, "Kept": Kept}
    assert record_classes(Holder) == {"Holder": Holder, "Kept": Kept}
    assert record_classes(None) == {}


def test_annotations_of_a_type_checker_only_are_passed_over() -> None:
    """What they name is not there when the program runs."""

    @attrs.frozen
    class Typed:
        seen: Unknown = None  # type: ignore[name-defined]  # noqa: F821
        kept: Kept | None = None

    assert record_classes(Typed()) == {"Typed": Typed, "Kept": Kept}


@attrs.frozen
class Holder:
    kept: tuple[Kept, ...] = ()


@attrs.frozen
class Heir(Holder):
    more: int = 0


def test_what_is_no_mapping_is_not_made_one() -> None:
    """It is shown as it was given."""
    with pytest.raises(TypeError, match="a mapping was expected, not 3"):
        frozen_map(3)  # type: ignore[arg-type]
