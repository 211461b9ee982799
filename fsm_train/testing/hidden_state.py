"""The state that a function has beside its arguments: closures, defaults, attributes, globals.

Rule of this file: look into what the function's own package defines, and into nothing of other packages (the
standard library, installed packages, this one's core).
"""

from __future__ import annotations

import contextlib
import contextvars
import copy
import functools
import gc
import random
import sys
import types
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Set
from typing import Any, cast

import attrs

Path = tuple[str, ...]
_ATOMS = (bool, int, float, complex, str, bytes, type(None), type(Ellipsis))
_CACHED = "the cached result "
_CONTAINERS = (list, dict, set, deque, bytearray)
_MAX_VALUES = 2_000
_MAX_DEPTH = 8


def snapshot(function: Callable[..., object]) -> dict[Path, object]:
    """Everything that the function can change and read in a later call, by its path.

    At most 2,000 values are visited, eight levels deep.
    """
    while "__wrapped__" in vars(function) and _is_of_core(function):
        function = function.__wrapped__  # type: ignore[attr-defined]
    return dict(_Walk(_package_of(function)).of(function, ()))


def _is_of_core(function: Callable[..., object]) -> bool:
    """Whether it is the wrapper that `on` puts around a function."""
    return str(getattr(function, "__globals__", {}).get("__name__", "")).startswith("fsm_train.core")


def changes(before: Mapping[Path, object], after: Mapping[Path, object]) -> Iterator[str]:
    """A description of each path whose value changed."""
    for path in dict.fromkeys((*before, *after)):
        if before.get(path) != after.get(path) and not _is_newly_cached(path, before, after):
            yield " of ".join(reversed(path)) + _from_to(before.get(path), after.get(path))


def _is_newly_cached(path: Path, before: Mapping[Path, object], after: Mapping[Path, object]) -> bool:
    """Whether it is of a result that a cache has on one side alone: to remember a result is no change."""
    for depth, part in enumerate(path, 1):
        if part.startswith(_CACHED) and (path[:depth] not in before or path[:depth] not in after):
            return True
    return False


def _from_to(before: object, after: object) -> str:
    shown = [repr(token[1]) for token in (before, after) if isinstance(token, tuple) and len(token) == 2]
    return f", from {shown[0]:.60} to {shown[1]:.60}" if len(shown) == 2 else ""


def _package_of(function: Callable[..., object]) -> str:
    """The top-level package that defines the function; inside this package, the module."""
    module: str = getattr(function, "__module__", None) or ""
    return module if module.startswith("fsm_train") else module.split(".")[0]


class _Walk:
    """One walk over everything that can be reached from a function."""

    def __init__(self, package: str) -> None:
        self.package = package
        self.seen: set[int] = set()
        self.values_left = _MAX_VALUES

    def of(self, value: object, path: Path) -> Iterator[tuple[Path, object]]:
        self.values_left -= 1
        if self.values_left < 0 or len(path) > _MAX_DEPTH:
            return
        kind = type(value)
        if kind in _ATOMS:
            yield path, (kind.__name__, repr(value) if isinstance(value, (float, complex)) else value)
            return
        if id(value) in self.seen:
            return
        self.seen.add(id(value))
        if isinstance(value, types.FunctionType):
            if self._is_own(value):
                yield from self._function(value, path)
        elif isinstance(value, type):
            yield path, id(value)
            if self._is_own(value):
                for name, own in vars(value).items():
                    own = getattr(own, "__func__", getattr(own, "fget", own))  # of a class or static method, a property
                    if isinstance(own, types.FunctionType) or not (name.startswith("__") or callable(own)):
                        yield from self.of(own, (*path, f"attribute {name!r}"))
        elif isinstance(value, types.ModuleType):
            return
        else:
            yield path, id(value)
            yield from self._contents(value, path)
            if self._is_own(type(value)):
                yield from self.of(type(value), (*path, "its class"))

    def _is_own(self, thing: types.FunctionType | type) -> bool:
        module = thing.__module__ or ""
        return module == self.package or module.split(".")[0] == self.package

    def _function(self, function: types.FunctionType, path: Path) -> Iterator[tuple[Path, object]]:
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            try:
                yield from self.of(cell.cell_contents, (*path, f"the variable {name!r}"))
            except ValueError:  # the cell is empty: the variable was never assigned
                yield (*path, f"the variable {name!r}"), None
        for value in (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()):
            yield from self.of(value, (*path, "a default argument"))
        for name, value in vars(function).items():
            if name != "__wrapped__":
                yield from self.of(value, (*path, f"the attribute {name!r} of the function"))
        names = tuple(dict.fromkeys(global_names(function.__code__)))
        for name in names:
            if name in function.__globals__:
                value = function.__globals__[name]
                yield from self.of(value, (*path, f"the global {name!r}"))
                yield from self._named(value, (*names, *_texts(function.__code__)), (*path, f"the global {name!r}"))

    def _named(self, value: object, names: tuple[str, ...], path: Path) -> Iterator[tuple[Path, object]]:
        """The attributes of a module, and of a class of another package, that the function may name."""
        if isinstance(value, types.ModuleType) or (isinstance(value, type) and not self._is_own(value)):
            for name in names:
                if name in vars(value):
                    attribute = vars(value)[name]
                    yield from self.of(attribute, (*path, f"attribute {name!r}"))
                    if attribute is not value and len(path) < _MAX_DEPTH:
                        yield from self._named(attribute, names, (*path, f"attribute {name!r}"))

    def _contents(self, value: Any, path: Path) -> Iterator[tuple[Path, object]]:
        if isinstance(value, dict):
            for key, item in value.items():
                yield from self.of(item, (*path, f"item {key!r:.40}"))
        elif isinstance(value, (list, tuple, deque)):
            for i, item in enumerate(value):
                yield from self.of(item, (*path, f"item {i}"))
        elif isinstance(value, Set):
            yield (*path, "its members"), frozenset(map(repr, value))
        elif isinstance(value, random.Random):
            yield (*path, "its state"), value.getstate()
        elif isinstance(value, types.GeneratorType):
            yield (*path, "its position"), None if value.gi_frame is None else value.gi_frame.f_lasti
            for name, local in (value.gi_frame.f_locals if value.gi_frame else {}).items():
                yield from self.of(local, (*path, f"its {name!r}"))
        elif isinstance(value, functools.partial):
            for part in (value.func, value.args, value.keywords):
                yield from self.of(part, (*path, "a part of it"))
        elif isinstance(value, functools._lru_cache_wrapper):
            yield from self._cached(value, path)
        else:
            yield from (((*path, what), content) for what, content in _unseen(value))
            if hasattr(value, "__next__"):
                for part in gc.get_referents(value):  # what cycle, enumerate or zip iterates over
                    if hasattr(part, "__next__"):
                        yield from self.of(part, (*path, "what it iterates over"))
        for name, attribute in _attributes(value):
            yield from self.of(attribute, (*path, f"attribute {name!r}"))

    def _cached(self, function: Any, path: Path) -> Iterator[tuple[Path, object]]:
        """The results that a `functools.lru_cache` holds, as far as they can be changed."""
        for held in gc.get_referents(function):  # the dictionary of its results, or the results themselves
            for result in list(held.values()) if type(held) is dict else (held,):
                if isinstance(result, _CONTAINERS):
                    yield from self.of(result, (*path, f"{_CACHED}{id(result)}"))


def _unseen(value: Any) -> Iterator[tuple[str, object]]:
    """What no attribute shows of the objects of C code that have a state."""
    if hasattr(value, "__next__") and not hasattr(value, "getvalue"):
        yield "its position", (repr(value), getattr(value, "__length_hint__", int)())
    elif isinstance(value, bytearray):
        yield "its position", bytes(value)
    elif isinstance(value, contextvars.ContextVar):
        yield "its value", repr(value.get(None))
    elif hasattr(value, "getvalue") and hasattr(value, "tell") and not value.closed:  # StringIO, BytesIO
        yield "its text", (value.tell(), value.getvalue())
    elif hasattr(value, "untyped_storage"):
        yield "its numbers", _numbers(value)
    elif hasattr(value, "tobytes"):  # an array of NumPy, or of the standard library
        yield "its numbers", hash(value.tobytes())
    elif hasattr(value, "bit_generator"):  # a generator of NumPy
        yield "its state", repr(value.bit_generator.state)
    elif hasattr(value, "get_state") and hasattr(value, "manual_seed"):  # a generator of torch
        yield "its state", hash(value.get_state().numpy().tobytes())


def _numbers(tensor: Any) -> object:
    """The numbers of a tensor of torch, which this half of the package does not import."""
    try:
        as_bytes = tensor.detach().cpu().reshape(-1).contiguous().view(sys.modules["torch"].uint8)
        return hash(as_bytes.numpy().tobytes())
    except (RuntimeError, NotImplementedError, TypeError):  # a sparse or a meta tensor
        return tensor._version


def _attributes(value: object) -> Iterator[tuple[str, object]]:
    yield from list(getattr(value, "__dict__", {}).items())
    for kind in type(value).__mro__:
        slots = kind.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if hasattr(value, name) and not name.startswith("__"):
                yield name, getattr(value, name)


def global_names(code: types.CodeType) -> Iterator[str]:
    """The names that the code, and the functions defined in it, may read from the globals."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from global_names(constant)


def _texts(code: types.CodeType) -> Iterator[str]:
    """The strings in the code that may be names of attributes, for getattr and setattr."""
    return (text for text in code.co_consts if isinstance(text, str) and text.isidentifier())


def fresh(function: Callable[..., Any]) -> Callable[..., Any]:
    """A copy of the function with its own closure, as in a new process.

    So one run does not see what another changed. What cannot be copied is shared.
    """
    return cast("Callable[..., Any]", _Copy().of(function))


@attrs.define
class _Copy:
    copies: dict[int, Any] = attrs.Factory(dict)  # of functions and cells, by the id of the original
    memo: dict[int, Any] = attrs.Factory(dict)  # of deepcopy: what two places share stays shared

    def of(self, value: Any) -> Any:
        if isinstance(value, types.FunctionType):
            return self._function(value)
        try:
            return copy.deepcopy(value, self.memo)
        except Exception:
            return value

    def _function(self, function: types.FunctionType) -> types.FunctionType:
        if id(function) in self.copies:
            return self.copies[id(function)]  # type: ignore[no-any-return]
        originals = function.__closure__ or ()
        new = [original for original in originals if id(original) not in self.copies]
        self.copies |= {id(original): types.CellType() for original in new}
        cells = tuple(self.copies[id(original)] for original in originals)
        copied = types.FunctionType(
            function.__code__, function.__globals__, function.__name__, self.of(function.__defaults__), cells
        )
        self.copies[id(function)] = copied
        copied.__kwdefaults__ = self.of(function.__kwdefaults__)
        copied.__module__, copied.__qualname__ = function.__module__, function.__qualname__
        copied.__dict__.update({name: self.of(value) for name, value in vars(function).items()})
        for original in new:
            with contextlib.suppress(ValueError):  # the cell is empty
                self.copies[id(original)].cell_contents = self.of(original.cell_contents)
        return copied
