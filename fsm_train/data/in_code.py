"""What the code of the layers leads to: class attributes, variables of functions, and the global names in them.

Rule of this file: it only looks. Nothing is called, and no property is read.
"""

from __future__ import annotations

import dis
import functools
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from pathlib import PurePath
from types import CodeType, FunctionType, ModuleType
from typing import Any

from torch import nn

from .layers import Layer, children_of, is_layer

MOST_IN_CODE = 1000
"""The objects that are looked at in code, the nearer ones: a search of more takes longer than a short epoch."""

_INSTALLED = {"site-packages", "dist-packages"}


def in_code(layers: Sequence[Layer], is_wanted: Callable[[object], bool]) -> list[Layer]:
    """The objects that the code of these layers leads to, and that are none of them, each once, the nearer ones first.

    They are the methods, what these and other functions name or hold, class attributes, and what can be reached from
    them. Only the code of the program itself is followed: in that of an installed package, or of Python, is looked for
    what is wanted alone, which is not looked into.
    """
    seen = {id(layer.part) for layer in layers}
    found: list[Layer] = []
    to_visit = deque(layers)
    while to_visit and len(found) < MOST_IN_CODE:
        layer = to_visit.popleft()
        children = () if isinstance(layer.part, type) else children_of(layer.part)  # of layers: classes
        for name, part in chain(_held_by_code(layer.part, is_wanted), children):
            if id(part) not in seen and _is_followed(part):
                seen.add(id(part))
                found.append(new := Layer(f"{layer.path}{name}", part))
                to_visit.append(new)
    return found


def kinds_of(part: object) -> tuple[type, ...]:
    """The classes whose attributes and methods are those of an object, or of a module's parts; torch's are left out."""
    kinds: list[Any] = [part if isinstance(part, type) else type(part)]
    if isinstance(part, nn.Module):
        kinds = [*dict.fromkeys(map(type, part.modules()))]
    return tuple(dict.fromkeys(base for kind in kinds for base in own_kinds(kind)))


@functools.lru_cache(maxsize=1024)
def own_kinds(kind: Any) -> tuple[type, ...]:
    """The class and its bases, without those of torch and of Python itself."""
    return tuple(base for base in kind.__mro__ if base.__module__.partition(".")[0] not in ("torch", "builtins"))


def names_used(function: FunctionType) -> Iterator[tuple[str, dict[str, Any]]]:
    """The global names in a function, each with the variables of its module; those in other modules of its program too.

    In code that is not the program's they may be names of attributes as well.
    """
    variables = function.__globals__
    if not is_own(function.__module__ or ""):
        yield from ((name, variables) for name in _all_names_in(function.__code__))
        return
    for name, *attributes in _global_names_in(function.__code__):
        there = variables
        yield name, there
        for attribute in attributes:
            module = there.get(name)
            if not isinstance(module, ModuleType) or not is_own(module.__name__):
                break
            name, there = attribute, vars(module)
            yield name, there


def function_in(member: object) -> object:
    """The function behind a property, a static method and the like; else what is given."""
    for name in ("__func__", "fget", "func", "__wrapped__"):
        inner = getattr(member, name, None) if isinstance(member, _WRAPPERS) else None
        if isinstance(inner, FunctionType):
            return inner
    return member


_WRAPPERS = (
    *(property, staticmethod, classmethod, functools.cached_property, functools.partialmethod),
    type(functools.lru_cache(lambda: None)),
)


@functools.lru_cache(maxsize=1024)
def is_own(module: str) -> bool:
    """Whether a module is one of the program: not of Python, not installed, and not of this package.

    >>> is_own("__main__"), is_own("random"), is_own("torch.nn")
    (True, False, False)
    """
    root = module.partition(".")[0]
    if root == "__main__":
        return True
    if root in sys.stdlib_module_names or root == "fsm_train":
        return False
    file = getattr(sys.modules.get(root), "__file__", None)
    return not (_INSTALLED & {*PurePath(file or "").parts})


def functions_of(part: object) -> Iterator[FunctionType]:
    """The functions whose names are used where this part is: itself, or methods that are no layers of their own."""
    if isinstance(part, FunctionType):
        yield part
        return
    for kind in kinds_of(part):
        if not is_own(kind.__module__):
            members = map(function_in, vars(kind).values())
            yield from (function for function in members if isinstance(function, FunctionType))


def _held_by_code(part: object, is_wanted: Callable[[object], bool]) -> Iterator[tuple[str, Any]]:
    """What the classes of an object, or the names in a function, lead to, with the text that follows its path."""
    for function in functions_of(part):
        own = is_own(function.__module__ or "")
        for name, there in names_used(function):
            if name in there and (own or is_wanted(there[name])):
                yield f".{name}", there[name]
    if isinstance(part, FunctionType):
        return
    for kind in kinds_of(part):
        own = is_own(kind.__module__)
        for name, member in vars(kind).items():
            inner = function_in(member)
            if isinstance(inner, FunctionType):
                if own:
                    yield "", inner  # so that what a method names has the path of an attribute
            elif not name.startswith("__") and (own or is_wanted(member)):
                yield f".{name}", member


def _is_followed(part: object) -> bool:
    if isinstance(part, type):
        return is_own(part.__module__)
    return is_layer(part) and type(part).__module__.partition(".")[0] != "fsm_train"  # a whole training hangs on it


@functools.lru_cache(maxsize=1024)
def _all_names_in(code: CodeType) -> tuple[str, ...]:
    inner = [_all_names_in(constant) for constant in code.co_consts if isinstance(constant, CodeType)]
    return (*code.co_names, *(name for names in inner for name in names))


@functools.lru_cache(maxsize=1024)
def _global_names_in(code: CodeType) -> tuple[tuple[str, ...], ...]:
    """The global names in a code object, each with the names of the attributes that are read right from there."""
    found: list[list[str]] = []
    follows = False
    for instruction in dis.get_instructions(code):
        if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            found.append([instruction.argval])
            follows = True
        elif follows and instruction.opname in ("LOAD_ATTR", "LOAD_METHOD"):
            found[-1].append(instruction.argval)
        else:
            follows = False
    inner = [_global_names_in(constant) for constant in code.co_consts if isinstance(constant, CodeType)]
    return tuple(dict.fromkeys((*map(tuple, found), *(names for each in inner for names in each))))
