"""Callbacks: what one is, and how it is asked.

A callback is a pure function with declarations: at which phases it is consulted, which facts it
`needs`, and its initial memory. It is given the state (and its memory, if it has one) and answers
with a `Transition`, or None when it has nothing to say.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from os import PathLike, fspath
from typing import Any, Generic, ParamSpec, Protocol, TypeVar, cast, overload

import attrs

from .errors import CallbackError
from .phase import BATCH_PHASES, CONSULTED, EPOCH_PHASES, Flag, Phase
from .state import Draft, State
from .transition import Command, Transition
from .values import EMPTY, FrozenMap, record_classes, types_in, unsaveable

M = TypeVar("M")
M_contra = TypeVar("M_contra", contravariant=True)
M_co = TypeVar("M_co", covariant=True)
P = ParamSpec("P")


def _phases(at: object) -> tuple[Phase, ...]:
    phases = tuple(at) if isinstance(at, Iterable) and not isinstance(at, str) else (at,)
    for phase in phases:
        if not isinstance(phase, Phase):
            known = {p.value: p.name for p in CONSULTED}
            advice = f"write Phase.{known[phase]}" if phase in known else "the phases are " + ", ".join(known)
            raise TypeError(f"{phase!r} is no phase: {advice}")
    return tuple(dict.fromkeys(phases))


def _facts(needs: object) -> frozenset[str]:
    names = tuple(needs) if isinstance(needs, Iterable) and not isinstance(needs, str) else (None,)
    if not all(isinstance(name, str) for name in names):
        raise TypeError(f"needs={needs!r}: give a set of names of facts, for example {{'loss'}}")
    return frozenset(cast("tuple[str, ...]", names))


def _keys(sets: Iterable[str] | None) -> frozenset[str] | None:
    return None if sets is None else frozenset(sets)


def _kinds(commands: Iterable[type[Command]] | None) -> frozenset[type[Command]] | None:
    return None if commands is None else frozenset(commands)


@attrs.frozen
class Callback(Generic[M_co]):
    """A pure function that is consulted at some phases, and what it declares.

    >>> from fsm_train.callbacks import early_stopping
    >>> callback = early_stopping(patience=5)
    >>> callback.name, callback.at, callback.params["patience"]
    ('early_stopping', (<Phase.EPOCH_END: 'epoch_end'>,), 5)

    Attributes:
        name: under which it has its memory and answers in the log; unique in a run.
        at: the phases at which it is consulted.
        decide: the pure function, of the state and the callback's memory.
        memory: its memory before it was ever consulted: an immutable value that survives JSON. Records
            come back from a checkpoint or a log if they are of a class that is in the initial memory,
            or in the type of the function's second parameter.
        needs: the facts it reads that cost something to measure.
        every: it is consulted only when the number of finished batches (at EPOCH_BEGIN, EPOCH_END,
            VALID_BEGIN and VALID_END: of epochs) is a multiple of this. It does not apply outside
            of epochs, from SETUP to TRAIN_BEGIN and from TRAIN_END to TEARDOWN.
        order: commands of a phase are carried out in ascending order; nothing else depends on it.
        params: what it was made with: logged and shown.
        raises: the flags it may raise; None if it does not say.
        sets: the hyper-parameters it may set; None if it does not say.
        commands: the types of command it may give; None if it does not say. What a callback
            declares here is shown by `describe`, checked against the others and the workload before
            a run, and an answer that goes beyond it is an error.
        factory: the name of the factory that made it with these `params`, with its module; or "".
    """

    name: str = attrs.field(validator=attrs.validators.instance_of(str))
    at: tuple[Phase, ...] = attrs.field(converter=_phases)
    decide: Callable[[State, Any], Transition | None] = attrs.field(eq=False, repr=False)
    memory: M_co = attrs.field(default=cast("M_co", None))
    needs: frozenset[str] = attrs.field(default=frozenset(), converter=_facts)
    every: int = 1
    order: int = 0
    params: Mapping[str, object] = attrs.field(default=EMPTY, converter=FrozenMap)
    raises: Flag | None = None
    sets: frozenset[str] | None = attrs.field(default=None, converter=_keys)
    commands: frozenset[type[Command]] | None = attrs.field(default=None, converter=_kinds)
    factory: str = ""

    def __attrs_post_init__(self) -> None:
        if not self.name:
            raise ValueError("a callback without a name: pass name=")
        if not any(phase in CONSULTED for phase in self.at):
            raise ValueError(
                f"callback {self.name!r} would never be consulted: name at least one of the phases "
                + ", ".join(phase.name for phase in CONSULTED)
            )
        if isinstance(self.every, bool) or not isinstance(self.every, int) or self.every < 1:
            raise ValueError(f"callback {self.name!r}: every={self.every!r}, but it counts batches or epochs from 1")
        if not callable(self.decide):
            raise TypeError(f"callback {self.name!r}: decide={self.decide!r} is not a function")
        if why := unsaveable(self.memory):
            raise TypeError(f"callback {self.name!r}: {why}")

    def __call__(self, state: State, memory: object = None) -> Transition | None:
        """What the callback decides about this state, to try it out.

        Its memory is `memory` if one is given, else the one in the state, else its initial memory.
        """
        if memory is None:
            memory = state.memory.get(self.name, self.memory)
        return self.decide(state, memory)


def memory_classes(callback: Callback[Any]) -> dict[str, type]:
    """The attrs classes, by name, of the records that a callback may remember.

    They are those in its initial memory, and those that the type of its function's second parameter
    speaks of: `best: Best | None`.
    """
    declared: tuple[type, ...] = ()
    parameters = tuple(inspect.signature(callback.decide).parameters.values())
    if len(parameters) > 1 and parameters[1].annotation is not inspect.Parameter.empty:
        function = callback.decide
        names = dict(getattr(function, "__globals__", {}))
        if inspect.isfunction(function):
            names |= inspect.getclosurevars(function).nonlocals  # a class that is made where the callback is
        declared = types_in(parameters[1].annotation, names)
    return record_classes((callback.memory, *declared))


class _OfState(Protocol):
    __name__: str

    def __call__(self, state: State, /) -> Transition | None: ...


class _OfStateAndMemory(Protocol[M_contra]):
    __name__: str

    def __call__(self, state: State, memory: M_contra, /) -> Transition | None: ...


class _On(Protocol):
    def __call__(self, function: _OfState, /) -> Callback[None]: ...


class _OnWithMemory(Protocol[M_co]):
    def __call__(self, function: _OfStateAndMemory[M_co], /) -> Callback[M_co]: ...


@overload
def on(
    *phases: Phase,
    needs: Iterable[str] = ...,
    every: int = ...,
    order: int = ...,
    name: str | None = ...,
    raises: Flag | None = ...,
    sets: Iterable[str] | None = ...,
    commands: Iterable[type[Command]] | None = ...,
) -> _On: ...
@overload
def on(
    *phases: Phase,
    memory: M,
    needs: Iterable[str] = ...,
    every: int = ...,
    order: int = ...,
    name: str | None = ...,
    raises: Flag | None = ...,
    sets: Iterable[str] | None = ...,
    commands: Iterable[type[Command]] | None = ...,
) -> _OnWithMemory[M]: ...
def on(
    *phases: Phase,
    memory: Any = None,
    needs: Iterable[str] = (),
    every: int = 1,
    order: int = 0,
    name: str | None = None,
    raises: Flag | None = None,
    sets: Iterable[str] | None = None,
    commands: Iterable[type[Command]] | None = None,
) -> Any:
    """Make a callback of a function of the state, or of the state and its memory.

    >>> from fsm_train import Flag, Phase, Transition, on
    >>> @on(Phase.EPOCH_END)
    ... def stop_when_good(state):
    ...     if state.metrics["valid_accuracy"] > 0.99:
    ...         return Transition(flags=Flag.STOP_TRAINING, reason="good enough")

    Args:
        phases: when it is consulted. A function for several phases tells them apart by `match state.phase`.
        memory: the initial memory of a function with two parameters.
        needs: the facts it reads that cost something to measure.
        every: consult it only each so many batches, or epochs.
        order: the place of its commands among those of others.
        name: how it is called; the function's name if nothing is said.
        raises: the flags it may raise, if it wants to say so.
        sets: the hyper-parameters it may set, if it wants to say so.
        commands: the types of command it may give, if it wants to say so.

    Raises:
        TypeError: something is not a phase, the memory cannot be saved, or the function does not
            take the state, or the state and a memory.
    """
    if len(phases) == 1 and callable(phases[0]) and not isinstance(phases[0], Phase):
        raise TypeError("on is given the phases first: @on(Phase.EPOCH_END)")

    def decorate(function: Callable[..., Transition | None]) -> Callback[Any]:
        called = name or function.__name__
        parameters = [
            p
            for p in inspect.signature(function).parameters.values()
            if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) and p.default is p.empty
        ]
        if len(parameters) not in (1, 2):
            raise TypeError(
                f"callback {called!r} is a function of (state) or of (state, memory), not of {len(parameters)}"
            )
        if len(parameters) == 1 and memory is not None:
            raise TypeError(
                f"callback {called!r} has a memory, but its function has no parameter for it: (state, memory)"
            )
        decide = function if len(parameters) == 2 else _ignoring_memory(function)
        return Callback(called, phases, decide, memory, needs, every, order, EMPTY, raises, sets, commands)

    return decorate


def _ignoring_memory(function: Callable[..., Transition | None]) -> Callable[[State, object], Transition | None]:
    @functools.wraps(function)
    def decide(state: State, memory: object) -> Transition | None:
        return function(state)

    return decide


def factory(make: Callable[P, Callback[M]]) -> Callable[P, Callback[M]]:
    """Let the callbacks that `make` makes record the arguments they were made with as `params`.

    A `name` among the arguments becomes the callback's name.

    >>> from fsm_train import Flag
    >>> @factory
    ... def stop_below(loss):
    ...     @on(Phase.EPOCH_END)
    ...     def stop_below(state):
    ...         if state.metrics["train_loss"] < loss:
    ...             return Transition(flags=Flag.STOP_TRAINING)
    ...     return stop_below
    >>> stop_below(0.1).params
    {'loss': 0.1}
    """
    signature = inspect.signature(make)

    @functools.wraps(make)
    def made(*args: P.args, **kwargs: P.kwargs) -> Callback[M]:
        callback = make(*args, **kwargs)
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        params = dict(bound.arguments)
        for parameter in signature.parameters.values():
            if parameter.kind is parameter.VAR_KEYWORD:
                params.update(params.pop(parameter.name))
            elif parameter.kind is parameter.VAR_POSITIONAL:
                params[parameter.name] = tuple(params[parameter.name])
        # A path is recorded as text, which a log can hold and make the callback of again.
        params = {key: fspath(value) if isinstance(value, PathLike) else value for key, value in params.items()}
        name = params.pop("name", None) or callback.name
        return attrs.evolve(
            callback, name=cast("str", name), params=params, factory=f"{make.__module__}.{make.__qualname__}"
        )

    return made


def is_due(callback: Callback[Any], phase: Phase, at: Draft) -> bool:
    """Whether the callback's `every` lets it be consulted this time, at one of its phases."""
    if phase in BATCH_PHASES:
        return at.iteration % callback.every == 0
    return phase not in EPOCH_PHASES or at.epoch % callback.every == 0


def callback_error(callback: Callback[Any], state: State, message: str) -> CallbackError:
    """The error that says what this callback did wrong, and when."""
    return CallbackError(
        message,
        callback=callback.name,
        phase=state.phase,
        epoch=state.epoch,
        batch=state.batch,
        iteration=state.iteration,
        step=state.step,
    )


def check_names(callbacks: Iterable[Callback[Any]]) -> tuple[Callback[Any], ...]:
    """The callbacks as a tuple, when they are callbacks and their names are unique.

    Raises:
        TypeError: something in the list is no callback.
        ValueError: two of them have the same name.
    """
    checked = tuple(callbacks)
    names: set[str] = set()
    for callback in checked:
        if not isinstance(callback, Callback):
            hint = " (call it: it is a factory)" if callable(callback) else ""
            raise TypeError(f"{callback!r} is no callback{hint}: decorate a function with @on(Phase.…)")
        if callback.name in names:
            raise ValueError(
                f"two callbacks are called {callback.name!r}, and would share one memory: pass name= to one of them"
            )
        names.add(callback.name)
    return checked
