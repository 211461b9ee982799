"""Generators that no attribute leads to: those of classes, of functions, and of what their code names."""

from __future__ import annotations

import collections
import functools
import random
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import RandomSampler

from fsm_train import Supervised
from fsm_train.data.generators import generators_of
from fsm_train.data.in_code import MOST_IN_CODE, in_code
from fsm_train.data.layers import Layer
from fsm_train.data.reached import Reached

RNG = random.Random(0)
HOLDERS = {"rng": [RNG]}


class Chance:
    """Named by others, and holds a generator."""

    rng = RNG


def names_a_holder() -> float:
    return HOLDERS["rng"][0].random()


def names_a_class() -> float:
    return Chance.rng.random()


def calls_a_function() -> float:
    return names_a_holder()


def has_an_inner_one() -> Callable[[], float]:
    return lambda: RNG.random()


def reads_an_attribute(data: Any) -> Any:
    return data.RNG, data.HOLDERS  # of these names there are global variables, which are not meant


@functools.lru_cache
def is_cached() -> float:
    return RNG.random()


def _class(**members: Any) -> type:
    return type("Data", (), {"__module__": __name__, **members})


def _slotted() -> Any:
    class Slotted:
        __slots__ = ("__rng",)

        def __init__(self) -> None:
            self.__rng = RNG

    return Slotted()


def _attribute() -> Any:
    def function() -> None: ...

    function.rng = RNG  # type: ignore[attr-defined]
    return function


class _Dict(dict[str, Any]):
    """A dict with attributes."""


def _dict() -> Any:
    held = _Dict()
    held.rng = RNG  # type: ignore[attr-defined]
    return held


def _part_of_a_model() -> nn.Module:
    class Noise(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + RNG.random()

    return nn.Sequential(nn.Linear(1, 1), Noise())


def _hidden_in_a_model() -> nn.Module:
    class Noise(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self._rng = RNG

    return nn.Sequential(Noise())


PLACES: dict[str, Callable[[], Any]] = {
    "a class": lambda: _class(rng=RNG)(),
    "a list of a class": lambda: _class(rngs=[RNG])(),
    "an object of a class": lambda: _class(inner=Chance())(),
    "a class that is held": lambda: [Chance],
    "a property": lambda: _class(noise=property(lambda self: RNG.random()))(),
    "a static method": lambda: _class(noise=staticmethod(names_a_holder))(),
    "a cached function": lambda: _class(noise=is_cached)(),
    "a default argument": lambda: lambda rng=RNG: rng.random(),
    "a default argument by name": lambda: lambda *, rng=RNG: rng.random(),
    "an attribute of a function": _attribute,
    "a slot with a name of its class": _slotted,
    "an attribute of a dict": _dict,
    "a mapping": lambda: collections.UserDict(rng=RNG),
    "a deque": lambda: collections.deque([RNG]),
    "a method of a generator": lambda: RNG.random,
    "a global holder": lambda: names_a_holder,
    "a global class": lambda: names_a_class,
    "a function that is called": lambda: calls_a_function,
    "a function inside": lambda: has_an_inner_one,
    "a part of a model": _part_of_a_model,
    "a private attribute of a part of a model": _hidden_in_a_model,
}


@pytest.mark.parametrize("place", PLACES)
def test_a_generator_is_found(place: str) -> None:
    """Wherever the code of the data leads to it."""
    assert [layer.part for layer in generators_of(train=PLACES[place]())] == [RNG]


def test_a_generator_in_another_module_of_the_program_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also through a module in a module, but not in one that is installed."""
    inner: Any = types.ModuleType("theirs.inner")
    outer: Any = types.ModuleType("theirs")
    inner.rng, outer.inner = RNG, inner
    monkeypatch.setitem(sys.modules, "theirs", outer)
    monkeypatch.setitem(globals(), "theirs", outer)

    def draws() -> Any:
        return theirs.inner.rng.random()  # type: ignore[name-defined]  # noqa: F821

    assert [layer.path for layer in generators_of(train=draws)] == ["train.rng"]


def test_what_an_attribute_is_called_leads_nowhere() -> None:
    """Only names that a function reads as variables are followed."""
    assert generators_of(train=reads_an_attribute) == []


def test_code_of_others_is_not_followed() -> None:
    """In it only generators are found that it names itself: not a whole package, and no training."""
    theirs = types.FunctionType(names_a_holder.__code__, {"HOLDERS": HOLDERS, "__name__": "orjson"})
    work = Supervised(net := nn.Linear(1, 1), torch.optim.SGD(net.parameters()), nn.MSELoss(), [(1, 1)])
    installed = type("Theirs", (), {"__module__": "orjson", "holder": [RNG], "look": theirs})

    for part in (theirs, RandomSampler([1]), installed(), _class(work=[work], kind=dict)()):
        assert generators_of(train=part) == []
    assert [layer.part for layer in in_code([Layer("train", _class(work=work)())], callable)] == []


def test_a_generator_that_code_of_others_names_is_found() -> None:
    """In a class or a function of an installed package."""
    named = types.FunctionType((lambda: RNG.random()).__code__, {"RNG": RNG, "__name__": "orjson"})
    installed = type("Theirs", (), {"__module__": "orjson", "rng": (other := random.Random(1)), "look": named})

    assert [layer.part for layer in generators_of(train=named)] == [RNG]
    assert [layer.part for layer in generators_of(train=installed())] == [RNG, other]


def test_each_generator_has_a_path_of_its_own() -> None:
    """An attribute, an attribute of the class and a global variable of one name are three."""

    def noise(self: Any, rng: Any = random.Random(2)) -> Any:  # noqa: B008
        return rng.random()

    data = _class(rng=random.Random(1), noise=noise)()
    kept: Iterator[Any] = iter([data])
    found = generators_of(train=next(kept), valid=[random.Random(3)])

    assert [layer.path for layer in found] == ["valid[0]", "train.rng", "train.rng#1"]
    assert len({id(layer.part) for layer in found}) == 3


def test_in_a_large_program_the_nearest_are_looked_at_and_once() -> None:
    """So that an epoch takes no longer than in a small one; what is near is still noticed where it changes."""
    names: dict[str, Any] = {"__name__": __name__}
    last = MOST_IN_CODE + 500
    lines = "\n".join(f"def f{i}(): return f{i + 1}()" for i in range(last))
    exec(f"def f{last}(): return 1\n{lines}\ndef begin(): return f0(), rng.random()", names)
    reached = Reached()

    for _ in range(2):
        search = reached.search(train=names["begin"])
        assert len(search.in_code) == MOST_IN_CODE
        assert search.own_generators == []
    assert reached.search(train=names["begin"]) is search
    names["rng"] = RNG
    assert [layer.part for layer in reached.generators_of(train=names["begin"])] == [RNG]
