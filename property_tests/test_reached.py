"""What can be reached from the data: a search that is made only where something changed finds what a new one finds."""

from __future__ import annotations

import functools
import random
from collections import Counter, deque
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader

from fsm_train.data.generators import generators_of
from fsm_train.data.layers import LARGEST, layers_of
from fsm_train.data.reached import Reached, Search

drawn_from: object = random.Random(0)
named: object = None
deeper: object = None
elsewhere: Any = None


class Slotted:
    __slots__ = ("inside",)


class Dataset:
    """Holds something in each way in which an object can be held."""

    def __init__(self) -> None:
        hidden: Any = [1]
        self.rows: list[Any] = [1.0, 2.0]
        self.table: dict[Any, Any] = {"a": [0]}
        self.pair: tuple[Any, ...] = (1, [2])
        self.slots = Slotted()
        self.partial = functools.partial(divmod, self.rows, b=self.table)
        self.module = nn.Sequential(nn.Linear(1, 1), nn.Sequential(nn.Dropout()))
        self.first: Any = 1
        self.second: Any = "text"

        def function() -> object:
            return hidden, named

        def fill(value: object) -> None:
            nonlocal hidden
            hidden = value

        def empty() -> None:
            nonlocal hidden
            del hidden

        def with_defaults(first: object = 1, *, second: object = 2) -> None: ...

        self.with_defaults: Any = with_defaults
        self.queue = deque[Any]([1])
        self.counter = Counter[str]()
        self.function, self._fill, self._empty = function, fill, empty
        self.method = self.__len__

    def __len__(self) -> int:
        return 2

    def __getitem__(self, i: int) -> Any:
        return drawn_from, called()


def _of_globals(name: str) -> Callable[[Dataset, Any], object]:
    return lambda data, value: globals().update({name: value})


_method = Dataset.__getitem__


def _other_method(data: Dataset, value: Any) -> None:
    setattr(Dataset, "__getitem__", lambda self, i: named)  # noqa: B010  mypy refuses to have it assigned


def called() -> object:
    return deeper, elsewhere.deepest


def _set_noise(value: Any) -> None:
    """Give the class a method around this value."""
    setattr(Dataset, "noise", lambda self: value)  # noqa: B010


def _set_module(value: Any) -> None:
    module: Any = ModuleType("property_tests.elsewhere")
    module.deepest = value
    globals().update(elsewhere=module)


def _holding(value: Any) -> nn.Module:
    module: Any = nn.Dropout()
    module.inside = value
    return module  # type: ignore[no-any-return]


def _set_extra(module: Any, value: Any) -> None:
    module._modules.pop("extra", None)  # which torch lets nothing but a module replace
    module.extra = value


CHANGES: dict[str, Callable[[Dataset, Any], object]] = {
    "an item more": lambda data, value: data.rows.append(value),
    "an item less": lambda data, value: data.rows and data.rows.pop(),
    "another item": lambda data, value: data.rows.__setitem__(slice(0, 1), [value]),
    "a long list": lambda data, value: data.rows.extend([0.0] * LARGEST),
    "a short list": lambda data, value: data.rows.clear(),
    "a key": lambda data, value: data.table.__setitem__(len(data.table), value),
    "a key less": lambda data, value: data.table and data.table.popitem(),
    "another key": lambda data, value: data.table and data.table.update(z=data.table.popitem()[1]),
    "an attribute": lambda data, value: setattr(data, "first", value),
    "another attribute": lambda data, value: setattr(data, f"a{len(vars(data))}", value),
    "attributes in another order": lambda data, value: vars(data).update(first=vars(data).pop("first")),
    "a tuple": lambda data, value: setattr(data, "pair", (value, data.rows)),
    "a slot": lambda data, value: setattr(data.slots, "inside", value),
    "a closure": lambda data, value: data._fill(value),
    "an empty closure": lambda data, value: (data._fill(0), data._empty()),
    "a global of a method": _of_globals("drawn_from"),
    "a global of a function": _of_globals("named"),
    "another method": _other_method,
    "an attribute of a module": lambda data, value: _set_extra(data.module[0], value),
    "a module": lambda data, value: data.module.append(nn.Dropout()),
    "other modules": lambda data, value: setattr(data.module[1], "_modules", {"0": _holding(value)}),
    "an attribute of the class": lambda data, value: setattr(Dataset, "shared", value),
    "the variable of a method": lambda data, value: _set_noise(value),
    "a property": lambda data, value: setattr(Dataset, "seen", property(lambda self: value)),
    "a default": lambda data, value: setattr(data.with_defaults, "__defaults__", (value,)),
    "a default by name": lambda data, value: data.with_defaults.__kwdefaults__.update(second=value),
    "other defaults by name": lambda data, value: setattr(data.with_defaults, "__kwdefaults__", {"second": value}),
    "an attribute of a function": lambda data, value: setattr(data.with_defaults, "noted", value),
    "an item of a deque": lambda data, value: data.queue.append(value),
    "another item of a deque": lambda data, value: data.queue.__setitem__(0, value),
    "a long deque": lambda data, value: data.queue.extend([0.0] * LARGEST),
    "an attribute of a dict": lambda data, value: setattr(data.counter, "noted", value),
    "a global of a function that is called": _of_globals("deeper"),
    "a variable of a module": lambda data, value: setattr(elsewhere, "deepest", value),
    "another module": lambda data, value: _set_module(value),
    "a class": lambda data, value: setattr(data, "first", type("Kind", (), {"__module__": __name__, "inside": value})),
    "nothing": lambda data, value: None,
}
VALUES: Sequence[Callable[[], Any]] = (
    *(lambda: 1, lambda: None, lambda: "text", lambda: torch.zeros(1), lambda: [random.Random(1)], dict, list),
    *(lambda: (1.0, torch.zeros(1)), lambda: (1.0, random.Random(2)), lambda: (), lambda: ((1.0,), [])),
    *(lambda: random.Random(0), torch.Generator, lambda: np.random.default_rng(0), Slotted, nn.Tanh, lambda: [[[]]]),
)
changes = st.lists(st.tuples(st.sampled_from([*CHANGES]), st.sampled_from(VALUES)), max_size=12)


@given(changes, st.booleans())
@example([("other defaults by name", lambda: [random.Random(1)])], False)
@example([("an attribute", lambda: (1.0, 2.0)), ("an attribute", lambda: (1.0, random.Random(2)))], False)
def test_a_search_that_is_not_made_again_finds_the_same(steps: Sequence[tuple[str, Any]], loader: bool) -> None:
    """Layers and generators, with their paths, after each change of what holds them."""
    globals().update(drawn_from=random.Random(0), named=None, deeper=None)
    _set_module(None)
    setattr(Dataset, "__getitem__", _method)  # noqa: B010
    for name in ("shared", "noise", "seen"):
        setattr(Dataset, name, None)
    data, reached = Dataset(), Reached()
    train: object = DataLoader(data) if loader else data  # type: ignore[arg-type]
    roots = {"train": train, "valid": [data], "forward": None}
    for name, value in (("nothing", int), *steps):
        CHANGES[name](data, value())
        for _ in range(2):
            assert _words(reached.layers_of(**roots)) == _words(layers_of(**roots)), name
            assert _words(reached.generators_of(**roots)) == _words(generators_of(**roots)), name
            assert _words(reached.layers_of(train=train)) == _words(layers_of(train=train)), name


def _words(layers: Sequence[Any]) -> list[tuple[str, int]]:
    return [(layer.path, id(layer.part)) for layer in layers]


@given(st.sampled_from([[1.0, 2.0], [random.Random(0)], nn.Linear(1, 1), Dataset(), print]))
def test_what_stays_the_same_is_searched_once(root: object) -> None:
    """Other numbers of the same kind change nothing of what is a layer."""
    reached = Reached()
    for _ in range(2):
        found = reached.layers_of(train=root)
    if isinstance(root, Dataset):
        root.first = 7
    if isinstance(root, list):
        root[0] = root[0] if isinstance(root[0], random.Random) else 3.0

    assert reached.layers_of(train=root) is found
    assert reached.layers_of(train=[root]) != found
    reached.forget()
    assert reached.layers_of(train=root) is not found


class Watching(list[Any]):
    """A list of batches that notes what it gives, and can reach what notes it."""

    def __init__(self, batches: Sequence[Any]) -> None:
        super().__init__(batches)
        self.times: list[float] = []
        self.pairs: list[tuple[float, float]] = []


def test_a_list_without_layers_may_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers, and tuples of them, are added at each epoch: after a few there is no search, until a layer is added."""
    made = []
    searched = Search.__init__
    monkeypatch.setattr(
        Search, "__init__", lambda search, *args, **kwargs: (made.append(1), searched(search, *args, **kwargs))[1]
    )
    data, reached = Watching([(torch.zeros(1), torch.zeros(1))]), Reached()
    for epoch in range(2 * LARGEST):
        data.times.append(0.5)
        data.pairs += [(0.5, 1.0)] * 3
        assert _words(reached.layers_of(train=data)) == _words(layers_of(train=data))
        if epoch == 4:
            assert len(made) == 3

    assert len(made) <= 4  # `times` was noted as a list that grows when it was short
    for value in (random.Random(0), [], (1.0, [2.0])):
        data.times[:] = [1.0, value]
        assert _words(reached.layers_of(train=data)) == _words(layers_of(train=data))
        assert len(layers_of(train=data)) > 3


def test_what_changes_each_time_is_noted_a_few_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """From then on it is searched alone, and found as ever."""
    noted = []
    monkeypatch.setattr(Search, "_trace", lambda search, roots, growing: noted.append(search))
    monkeypatch.setattr(Search, "holds", lambda search, roots: False)
    data, reached = Dataset(), Reached()
    for _ in range(10):
        data.rows.append([])
        assert _words(reached.layers_of(train=data)) == _words(layers_of(train=data))
    assert len(noted) == 4
    reached.forget()
    for _ in range(2):
        reached.layers_of(train=data)
    assert len(noted) == 5
