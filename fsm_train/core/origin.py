"""Where a callback comes from: the call of a factory, or a name in a module. It is pickled and logged as that.

Rule of this file: a callback is only said to come from a call or a name that gives the same function and fields.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import attrs


class Made(Protocol):
    """What this file reads of a `Callback`."""

    @property
    def name(self) -> str: ...
    @property
    def decide(self) -> Callable[..., Any]: ...
    @property
    def params(self) -> Mapping[str, object]: ...
    @property
    def factory(self) -> str: ...


def call_factory(make: Callable[..., Any], params: Mapping[str, object], name: str) -> Any:
    """The callback of this name that the factory makes with the `params` of an earlier one.

    `params` hold a variadic parameter such as `*facts` as one tuple, which is spread again here.

    Raises:
        TypeError, ValueError: the factory refuses them.
    """
    left = dict(params)
    parameters = inspect.signature(make).parameters.values()
    variadic = any(p.kind is p.VAR_POSITIONAL and left.get(p.name) for p in parameters)
    args: list[object] = []
    for parameter in parameters:
        by_position = parameter.kind is parameter.POSITIONAL_ONLY or (
            variadic and parameter.kind is parameter.POSITIONAL_OR_KEYWORD
        )
        if parameter.name == "name" and parameter.kind is not parameter.VAR_POSITIONAL:
            left.setdefault("name", name)
        if by_position and parameter.name in left:
            args.append(left.pop(parameter.name))
        elif parameter.kind is parameter.VAR_POSITIONAL:
            spread: Any = left.pop(parameter.name, ())
            args.extend(spread)
    callback = make(*args, **left)
    return callback if callback.name == name else attrs.evolve(callback, name=name)


def recipe_of(callback: Made) -> tuple[Any, ...] | None:
    """What `__reduce__` answers for a callback that a call or a name gives again; None for another one.

    Fields that `attrs.evolve` changed afterwards are changed again.
    """
    recipe, origin = _origin(callback)
    if origin is None or _code(origin.decide) is not _code(callback.decide):
        return None
    names = [field.name for field in attrs.fields(type(origin)) if field.eq]
    values = {name: (getattr(callback, name), getattr(origin, name)) for name in names}
    if changed := {name: own for name, (own, made) in values.items() if own != made}:
        return _evolved, (origin, changed)
    return recipe


def _origin(callback: Made) -> tuple[tuple[Any, ...], Any]:
    """The call or the name that the callback came from, and what it gives now; None if it gives nothing."""
    if callback.factory:
        call = (resolve(callback.factory), dict(callback.params), callback.name)
        try:
            return (call_factory, call), call_factory(*call)
        except Exception:  # there is no such factory, or it refuses these settings
            return (), None
    function = inspect.unwrap(callback.decide)
    path = f"{getattr(function, '__module__', '')}.{getattr(function, '__qualname__', '')}"
    found = resolve(path)
    return (resolve, (path,)), found if type(found) is type(callback) else None


def _evolved(callback: Any, changes: Mapping[str, object]) -> Any:
    return attrs.evolve(callback, **changes)


def resolve(path: str) -> Any:
    """What stands under this name, module and all, at the top level of a module; None if nothing does."""
    for module, names in _splits(path):
        try:
            found: Any = importlib.import_module(module)
        except ImportError:
            continue
        for name in names:
            found = getattr(found, name, None)
        return found
    return None


def _splits(path: str) -> Iterator[tuple[str, list[str]]]:
    """The ways to read a dotted path as a module and names in it, the longest module first."""
    parts = path.split(".")
    for i in range(len(parts) - 1, 0, -1):
        yield ".".join(parts[:i]), parts[i:]


def _code(decide: Callable[..., Any]) -> Any:
    """The code of the function that was decorated; the function itself if it has none."""
    function = inspect.unwrap(decide)
    return getattr(function, "__code__", function)
