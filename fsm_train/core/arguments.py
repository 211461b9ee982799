"""What the entry points are given: each looks at it, and an error shows the call to write.

Rule of this file: values are recognised by what they have, so that nothing but the core is imported. An error says
what was given, to which call, and what to write instead.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator
from os import PathLike
from typing import Any, TypeGuard

from .state import State


def kind_of(value: object) -> str:
    """What a value is, in words.

    >>> kind_of(3), kind_of(int), kind_of(len), kind_of(None)
    ('an int', 'the class int', 'the function len', 'None')
    """
    if value is None:
        return "None"
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if inspect.isroutine(value):
        return f"the function {value.__name__}"
    name = type(value).__name__
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"


def is_path(value: object) -> TypeGuard[str | PathLike[str]]:
    return isinstance(value, (str, PathLike))


def is_workload(value: object) -> bool:
    """Whether it is an object that carries out the operations of a training."""
    return not isinstance(value, type) and hasattr(value, "carry_out") and hasattr(value, "has_valid")


def is_model(value: object) -> bool:
    """Whether it is a torch.nn.Module, or the like."""
    return not isinstance(value, type) and hasattr(value, "parameters") and hasattr(value, "forward")


def check_state(value: object, call: str) -> None:
    """Refuse what is no State, where `call` is given one.

    Raises:
        TypeError: with the call to write.
    """
    if isinstance(value, State):
        return
    if is_workload(value):
        advice = f"write {call}(start(work, epochs=…), …)"
    elif is_model(value):
        advice = (
            "make a workload of the model, and a state of that: work = Supervised(model, optimizer, loss_fn, train), "
            f"{call}(start(work, epochs=…), …)"
        )
    elif is_path(value):
        advice = f"for a checkpoint write {call}(restore({str(value)!r}, work), …)"
    elif isinstance(value, Iterator):
        advice = "loop over what iterate(…) gives, and take the last state"
    else:
        advice = f"write {call}(start(work, epochs=…), …)"
    raise TypeError(f"{call} takes the state of a training first, but was given {kind_of(value)}: {advice}")


def check_workload(value: object, call: str) -> None:
    """Refuse what is no workload, where `call` is given one.

    Args:
        value: what was given.
        call: how the call is written, with {} where the workload stands, such as "start({}, epochs=…)".

    Raises:
        TypeError: with the call to write.
    """
    if is_workload(value):
        return
    name = call.partition("(")[0]
    if isinstance(value, State):
        advice = f"a state has its workload with it outside of a run: write {call.format('state.workload')}"
    elif is_path(value):
        advice = f"the path of a checkpoint belongs to restore: restore({str(value)!r}, work)"
    else:
        advice = (
            f"make one: work = Supervised(model, optimizer, loss_fn, train, valid), and write {call.format('work')}"
        )
    raise TypeError(f"{name} takes a workload, but was given {kind_of(value)}: {advice}")


def as_list(value: Any, argument: str, call: str, *, single: bool = False) -> tuple[Any, ...]:
    """The items of an argument that takes several; what is no collection is refused.

    Args:
        value: what was given.
        argument: its name, which is what the items are.
        call: an item of it as one writes it, such as "progress()".
        single: whether it is an item itself, and may be iterable too.

    Raises:
        TypeError: it is a single item, a text, a mapping, or cannot be iterated.
        ValueError: it is an iterator without items, as one that was used before is.
    """
    if single or not isinstance(value, Iterable) or isinstance(value, (str, bytes, dict)):
        raise TypeError(
            f"{argument} is {kind_of(value)}: give a list of {argument}, also for a single one ([{call}]) or none ([])"
        )
    items = tuple(value)
    if not items and isinstance(value, Iterator):
        raise ValueError(
            f"{argument} is {kind_of(value)} that gives nothing: it can be used once only. Give a list of {argument}"
        )
    return items
