"""What can be reached from the data and beside it: searched for once, and again only where what is held has changed.

Rule of this file: what it gives is what `layers_of` and `generators_of` would find now.
"""

from __future__ import annotations

import functools
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from itertools import chain, compress
from operator import is_, itemgetter
from types import CellType, FunctionType, ModuleType
from typing import Any

from torch import nn

from .generators import generators_among, is_generator, own_ones
from .in_code import functions_of, in_code, kinds_of, names_used
from .layers import LARGEST, MOST, Layer, holders_of, is_layer, layers_of, names_in_module, slots_of
from .sources import changing_layers

_ALWAYS_COMPARED = (tuple, type, ModuleType)
_OFTEN = 4  # times that it is noted what objects hold


class Reached:
    """The layers that can be reached from some objects, for one who asks at each epoch.

    Until it forgets them, or finds others, it holds the objects that it found.

    >>> from torch.utils.data import DataLoader
    >>> loader, reached = DataLoader([1.0, 2.0]), Reached()
    >>> _, layers = reached.layers_of(train=loader), reached.layers_of(train=loader)
    >>> reached.layers_of(train=loader) is layers
    True
    >>> loader.dataset.append([])
    >>> [layer.path for layer in reached.layers_of(train=loader)][-2:]
    ['train.collate_fn', 'train.dataset[2]']
    """

    def __init__(self) -> None:
        self._searches: dict[tuple[str, ...], Search] = {}
        self._traced = Counter[tuple[str, ...]]()

    def layers_of(self, **roots: object) -> list[Layer]:
        """What `layers_of` finds."""
        return self.search(**roots).layers

    def generators_of(self, **roots: object) -> list[Layer]:
        """What `generators_of` finds."""
        return self.search(**roots).own_generators

    def forget(self) -> None:
        self._searches.clear()
        self._traced.clear()

    def search(self, **roots: object) -> Search:
        """What a search from these objects finds now."""
        search = self._searches.get(names := tuple(roots))
        if search is None or not search.holds(roots):
            # The first one may be the only one, of a run of one epoch. To note what is held takes longer than a search,
            # and what has changed a few times, as a list that a dataset appends to, changes again.
            traced = search is not None and self._traced[names] < _OFTEN
            self._traced[names] += traced
            search = self._searches[names] = Search(roots, search, traced=traced)
        return search


class Search:
    """What a search found, and what the objects on its way held.

    Of what they held, layers, tuples, classes and modules are compared by identity, and all else by its type: whether
    an object is a layer or a generator is a matter of its type. A list without layers that has grown before must have
    none still.

    Args:
        roots: where the search begins, by the beginnings of the paths.
        before: the search before from roots of these names; None for the first one.
        traced: whether to note what the objects hold.

    Attributes:
        layers: what was found.
        of_train: those that can be reached from the root "train" alone.
        in_code: what their code leads to beside.
        generators: those among both.
        own_generators: those of them that are not of the whole process.
        changing: those of the loader "train" whose state may change, as `Sources.now` takes them.
    """

    def __init__(self, roots: Mapping[str, object], before: Search | None = None, *, traced: bool) -> None:
        self.layers = layers_of(**roots)
        self._roots = roots
        self._lists: list[list[Any]] = []
        self._loose: list[list[Any]] = []  # those without layers, which grow
        self._lengths: list[object] = []
        self._traced = traced and len(self.layers) < MOST
        if self._traced:
            self._trace(roots, set() if before is None else before.growing())

    @functools.cached_property
    def of_train(self) -> list[Layer]:
        return self.layers if len(self._roots) == 1 else layers_of(train=self._roots["train"])

    @functools.cached_property
    def in_code(self) -> list[Layer]:
        return in_code(self.layers, is_generator)

    @functools.cached_property
    def generators(self) -> list[Layer]:
        return generators_among([*self.layers, *self.in_code])

    @functools.cached_property
    def own_generators(self) -> list[Layer]:
        return own_ones(self.generators)

    @functools.cached_property
    def changing(self) -> list[Layer]:
        return changing_layers(self._roots["train"], self.of_train)

    def growing(self) -> set[int]:
        """The ids of the lists that have another length than when they were noted, now or before."""
        grown = [each for each, length in zip(self._lists, self._lengths, strict=False) if list.__len__(each) != length]
        return {*map(id, grown), *map(id, self._loose)}

    def _trace(self, roots: Mapping[str, object], growing: set[int]) -> None:
        """Note what the objects hold that were found."""
        self._dicts: list[dict[Any, Any]] = []
        self._picks: list[tuple[Callable[[Any], Iterable[object]], dict[str, Any]]] = []  # of modules: what is searched
        self._long: list[Any] = []  # lists, dicts and deques that are too long to be searched
        self._cells: list[CellType] = []
        self._slots: list[tuple[object, str]] = []
        self._queues: list[deque[Any]] = []
        everything = [*self.layers, *self.in_code]
        for layer in everything:
            if isinstance(layer.part, nn.Module):
                self._hold_modules(layer.part)
                continue
            if isinstance(layer.part, FunctionType):
                self._slots += [(layer.part, "__defaults__"), (layer.part, "__kwdefaults__")]
            for holder in holders_of(layer.part):
                if id(holder) in growing and not _has_layers(holder):
                    self._loose.append(holder)
                else:
                    self._hold(holder, limited=holder is layer.part)
        kinds = dict.fromkeys(kind for layer in everything for kind in kinds_of(layer.part))
        self._members = [vars(kind) for kind in kinds]
        functions = dict.fromkeys(function for layer in everything for function in functions_of(layer.part))
        named = ((there, name) for function in functions for name, there in names_used(function))
        self._globals = [*{(id(there), name): (there, name) for there, name in named}.values()]

        values = self._values(roots)
        compared = {*map(id, self._compared_ones())}
        self._is_compared = [id(value) in compared or isinstance(value, _ALWAYS_COMPARED) for value in values]
        self._compared = [*compress(values, self._is_compared)]
        self._types = [*map(type, values)]
        self._keys, self._lengths = self._all_keys(), self._all_lengths()

    def _hold(self, holder: Any, *, limited: bool) -> None:
        if isinstance(holder, CellType):
            self._cells.append(holder)
        elif isinstance(holder, dict):
            (self._long if limited and _is_long(holder) else self._dicts).append(holder)
        elif isinstance(holder, list):
            (self._long if _is_long(holder) else self._lists).append(holder)
        elif isinstance(holder, deque):
            (self._long if _is_long(holder) else self._queues).append(holder)
        else:
            self._slots += [(holder, name) for name in slots_of(holder)]

    def _hold_modules(self, root: nn.Module) -> None:
        for module in root.modules():
            self._hold(module._modules, limited=False)
            variables = vars(module)
            names = ["_modules", *names_in_module(module)]  # the others are torch's own, and no children
            pick = itemgetter(*names, "_modules")  # two names at least, so that it gives a tuple
            self._picks.append((pick, variables))

    def _compared_ones(self) -> Iterable[object]:
        """The objects that must be the same ones: what is searched, and what classes have."""
        everything = [*self.layers, *self.in_code]
        yield from (layer.part for layer in everything)
        for layer in everything:
            if isinstance(layer.part, FunctionType):
                yield layer.part.__kwdefaults__
            if isinstance(layer.part, nn.Module):
                for module in layer.part.modules():
                    yield from (module, module._modules)
        yield from (value for members in self._members for value in members.values() if is_layer(value))

    def holds(self, roots: Mapping[str, object]) -> bool:
        """Whether a search from these, which have the same names, would find the same."""
        if not self._traced or self._all_lengths() != self._lengths:
            return False
        if self._keys and self._all_keys() != self._keys:
            return False
        values = self._values(roots)  # as many as before
        if [*map(type, values)] != self._types or (self._loose and any(map(_has_layers, self._loose))):
            return False
        return all(map(is_, compress(values, self._is_compared), self._compared))

    def _values(self, roots: Mapping[str, object]) -> list[object]:
        """All that is held: a loop for each kind, since an epoch begins with it."""
        values = [*roots.values(), *chain.from_iterable(map(list.__iter__, self._lists))]
        if self._dicts:
            values += chain.from_iterable(map(dict.values, self._dicts))
        for pick, variables in self._picks:
            values += pick(variables)
        for members in self._members:
            values += members.values()
        if self._globals:
            values += [there.get(name) for there, name in self._globals]
        if self._slots:
            values += [getattr(part, name, None) for part, name in self._slots]
        for queue in self._queues:
            values += deque.__iter__(queue)
        if self._cells:
            values += map(_contents, self._cells)
        return values

    def _all_keys(self) -> list[object]:
        variables = (each for _, each in self._picks)
        return [*chain.from_iterable(map(dict.__iter__, chain(self._dicts, variables)))]

    def _all_lengths(self) -> list[object]:
        """How much is held where; of what is long, whether it still is."""
        lengths: list[object] = [*map(list.__len__, self._lists), *map(dict.__len__, self._dicts)]
        lengths += chain(map(len, self._members), map(deque.__len__, self._queues))
        if self._long:
            lengths += map(_is_long, self._long)
        return lengths


def _is_long(holder: Any) -> bool:
    """Whether it has too many items to be searched."""
    kind: Any = next(kind for kind in (list, dict, deque) if isinstance(holder, kind))
    return bool(kind.__len__(holder) > LARGEST)  # and not that of a subclass


def _has_layers(held: list[Any]) -> bool:
    """Whether a list holds layers, and is not too long to be searched."""
    return list.__len__(held) <= LARGEST and any(map(is_layer, list.__iter__(held)))


def _contents(cell: CellType) -> object:
    try:
        return cell.cell_contents
    except ValueError:  # the variable has no value yet
        return CellType
