"""What the entry points are given: each looks at it, and an error shows the call to write.

Rule of this file: values are recognised by what they have, so that nothing but the core is imported. An error says
what was given, to which call, and what to write instead.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Iterator
from os import PathLike
from typing import Any, ParamSpec, TypeGuard, TypeVar

from .phase import Phase
from .state import State
from .transition import Command, Transition

P = ParamSpec("P")
R = TypeVar("R")


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
    spelt = name[:2].isupper() and name[0] in "AEFHILMNORSX"  # read letter by letter: an SGD
    return f"{'an' if spelt or name[0].lower() in 'aeio' or name == 'ndarray' else 'a'} {name}"


def is_path(value: object) -> TypeGuard[str | PathLike[str]]:
    return isinstance(value, (str, PathLike))


def is_iterable(value: object) -> TypeGuard[Iterable[Any]]:
    """Whether it gives items. A tensor without a dimension has the method for it, which raises."""
    return isinstance(value, Iterable) and getattr(value, "ndim", 1) != 0


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


def takes_by_name(function: Callable[P, R]) -> Callable[P, R]:
    """Let a function say in a sentence which arguments it takes by name, where one is given by position.

    >>> @takes_by_name
    ... def train(workload, *, epochs=1, seed=0): ...
    >>> train("mine", 5)
    Traceback (most recent call last):
        ...
    TypeError: train takes 1 argument by position, and the others by name: write train(work, epochs=5)
    """
    signature = inspect.signature(function)
    most = _most_by_position(signature)

    @functools.wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        if len(args) > most:
            check_by_position(function.__qualname__, signature, args, kwargs)
        return function(*args, **kwargs)

    return checked


def _most_by_position(signature: inspect.Signature) -> float:
    """How many arguments may stand by position."""
    kinds = [each.kind for each in signature.parameters.values()]
    any_number = inspect.Parameter.VAR_POSITIONAL in kinds
    return float("inf") if any_number else kinds.count(inspect.Parameter.POSITIONAL_OR_KEYWORD)


def check_by_position(name: str, signature: inspect.Signature, args: tuple[object, ...], kwargs: Iterable[str]) -> None:
    """Refuse arguments that stand by position where they are taken by name.

    Args:
        name: of the function; of a class with its `__init__`.
        signature: of the function.
        args: what stands by position.
        kwargs: the names of the others.

    Raises:
        TypeError: with the call to write.
    """
    if len(args) <= _most_by_position(signature):
        return
    parameters = signature.parameters.values()
    positions = [each.name for each in parameters if each.kind is each.POSITIONAL_OR_KEYWORD]
    beyond = args[len(positions) :]
    free = [each.name for each in parameters if each.kind is each.KEYWORD_ONLY and each.name not in kwargs]
    shown = ["work" if position == "workload" else position for position in positions if position != "self"]
    by_name = [f"{key}={_in_a_call(value)}" for key, value in zip(free, beyond, strict=False)]
    over = len(beyond) - len(free)
    more = f", and {over} more fit{'s' * (over == 1)} nowhere" if over > 0 else ""
    written = ", ".join([*shown, *by_name, *(f"{key}=…" for key in kwargs if key not in positions)])
    called, plural = name.removesuffix(".__init__"), "s" * (len(shown) != 1)
    raise TypeError(
        f"{called} takes {len(shown)} argument{plural} by position, and the others by name: "
        f"write {called}({written}){more}"
    )


def _in_a_call(value: object) -> str:
    return f"{value!r:.40}" if isinstance(value, (str, int, float)) else "…"


def check_path(value: object, argument: str, write: str) -> None:
    """Refuse what is no path.

    Args:
        value: what was given.
        argument: what it was given as, such as "log".
        write: how it is written.

    Raises:
        TypeError: with what was given.
    """
    if not is_path(value):
        found = (
            f"an open file ({value.name!r})" if hasattr(value, "write") and hasattr(value, "name") else kind_of(value)
        )
        raise TypeError(f"{argument} is {found}, not a path: write {write}")


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
    if single or not is_iterable(value) or isinstance(value, (str, bytes, dict)):
        raise TypeError(
            f"{argument} is {kind_of(value)}: give a list of {argument}, also for a single one ([{call}]) or none ([])"
        )
    items = tuple(value)
    if not items and isinstance(value, Iterator):
        raise ValueError(
            f"{argument} is {kind_of(value)} that gives nothing: it can be used once only. Give a list of {argument}"
        )
    return items


def no_callback(thing: Any) -> str:
    """That something which stands among callbacks is none, and what to write instead."""
    return f"{_shown(thing)} is no callback{_instead_of_callback(thing)}"


def _instead_of_callback(thing: Any) -> str:
    if hasattr(thing, "see") and hasattr(thing, "at"):
        return f" but a sink: give it as sinks=[{'…' if not isinstance(thing, type) else thing.__name__ + '()'}]"
    if isinstance(thing, (list, tuple)):
        return f" but {kind_of(thing)} of them: unpack it with a star, as in [*some, early_stopping()]"
    name = getattr(thing, "__name__", type(thing).__name__)
    if any(hasattr(thing, member) for member in ("get_last_lr", "last_epoch", "num_bad_epochs")):
        return (
            f" but a scheduler: write torch_scheduler(lambda optimizer: {name}(optimizer, …)), or schedule(lr=…) with "
            "one of fsm_train.schedules"
        )
    if hasattr(thing, "param_groups") or is_model(thing) or is_workload(thing):
        return ": model and optimizer belong to Supervised(model, optimizer, loss_fn, train), and that to start(…)"
    if isinstance(thing, (Command, Transition)):
        return ", it is what one returns: write a function of the state that returns it, with @on(Phase.…)"
    if hooks := [hook for hook in _HOOKS if hasattr(thing, hook)]:
        return f": its {hooks[0]} becomes a function of the state with @on(Phase.{_HOOKS[hooks[0]].name})"
    if callable(thing) and not _takes_state(thing):
        return " (call it: it is a factory): decorate a function with @on(Phase.…)"
    advice = "leave it out of the list" if thing is None else "decorate a function with @on(Phase.…)"
    return f": {advice}"


def _shown(thing: Any) -> str:
    return f"{thing!r:.80}" if isinstance(thing, (str, int, float, Command, Transition)) else kind_of(thing)


def _takes_state(function: Callable[..., object]) -> bool:
    code = getattr(function, "__code__", None)
    return code is not None and "state" in code.co_varnames[: code.co_argcount]


_HOOKS = {
    "on_train_epoch_end": Phase.EPOCH_END,
    "on_epoch_end": Phase.EPOCH_END,
    "on_validation_end": Phase.VALID_END,
    "on_train_batch_end": Phase.BATCH_END,
    "after_epoch": Phase.EPOCH_END,
    "after_batch": Phase.BATCH_END,
    "on_step_end": Phase.STEP_END,
    "on_train_end": Phase.TRAIN_END,
}
"""Hooks of the callbacks of other libraries, and the phases that they are."""
