"""Callbacks: the record of one, and the decorators that make it of a function.

A callback is a pure function with declarations: at which phases it is consulted, which facts it
`needs`, and its initial memory. It gets the state (and its memory, if it has one) and answers with a
`Transition`, or None for nothing.

Rule of this file: what is wrong with a declaration is refused when the callback is made.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from os import PathLike, fspath
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, SupportsIndex, cast

import attrs

from .arguments import as_list, check_by_position, is_iterable, no_callback
from .checks import NO_TEXT, is_text, is_whole
from .declarations import as_commands, as_folders, as_monitors, as_needs, as_reads, as_sets
from .errors import CallbackError
from .origin import recipe_of
from .phase import BATCH_PHASES, CONSULTED, EPOCH_PHASES, Flag, Phase
from .state import Draft, State
from .transition import Command, Transition
from .values import EMPTY, FrozenMap, record_classes, types_in, unsaveable

if TYPE_CHECKING:
    from typing_extensions import TypeVar  # with the default that `typing` has from Python 3.13 on

    M = TypeVar("M", default=None)
else:
    from typing import TypeVar

    M = TypeVar("M")

M_co = TypeVar("M_co", covariant=True)
P = ParamSpec("P")

Decide = Callable[[State], Transition | None]
"""The function of a callback without a memory."""

DecideWithMemory = Callable[[State, M], Transition | None]
"""The function of a callback with a memory of type M."""

_NO_MEMORY: Any = None


def as_phases(phases: object) -> tuple[Phase, ...]:
    """One phase or several as a tuple, each once.

    Raises:
        TypeError: something is no phase.
    """
    several = tuple(phases) if is_iterable(phases) and not isinstance(phases, str) else (phases,)
    for phase in several:
        if not isinstance(phase, Phase):
            known = {p.value: p.name for p in CONSULTED}
            named = isinstance(phase, str) and phase in known
            advice = f"write Phase.{known[phase]}" if named else "the phases are " + ", ".join(known)
            raise TypeError(f"{phase!r} is no phase: {advice}")
    return tuple(dict.fromkeys(several))


@attrs.frozen
class Callback(Generic[M_co]):
    """A pure function that is consulted at some phases, and what it declares.

    >>> from fsm_train.callbacks import early_stopping
    >>> callback = early_stopping("train_loss", patience=5)
    >>> callback.name, callback.at, callback.params["patience"]
    ('early_stopping', (<Phase.EPOCH_END: 'epoch_end'>,), 5)

    Attributes:
        name: the key of its memory in the state, and of its answers in the log; unique in a run.
        at: the phases at which it is consulted.
        decide: the pure function, of the state and the callback's memory.
        memory: its initial memory: an immutable value that survives JSON. A record in a memory is read
            from a checkpoint or a log if its class is in the initial memory, or in the type of the
            function's second parameter.
        needs: the facts it reads that cost something to measure.
        every: it is consulted only when the number of finished batches (at EPOCH_BEGIN, EPOCH_END,
            VALID_BEGIN and VALID_END: of epochs) is a multiple of this. It does not apply outside
            of epochs, from SETUP to TRAIN_BEGIN and from TRAIN_END to TEARDOWN.
        order: commands of a phase are carried out in ascending order; nothing else depends on it.
        params: the arguments of its factory: logged and shown.
        raises: the flags it may raise; None if that is not declared.
        sets: the hyper-parameters it may set; None if that is not declared.
        commands: the types of command it may give; None if that is not declared. These three are shown
            by `describe` and checked against the other callbacks and the workload before a run; an
            answer beyond them is an error.
        factory: the name of the factory that made it with these `params`, with its module; or "".
        monitors: the metrics that it waits for. A run refuses one that will never be measured before the
            first batch.
        writes_to: the folders that its commands write checkpoints to. A run makes them and locks them before the
            first batch, and refuses one that cannot be written to or that another run writes to.
        reads: what of the state its answer depends on, beside the phase, the flags and its memory: any of "epoch",
            "pending", "batch_size" and "batches_over", or nothing. Where all callbacks of a phase declare it, they are
            asked once for each combination of values, and the decision is kept. None if that is not declared.

    It can be pickled, for a pool of processes, if its factory or the callback itself stands at the top level
    of a module; a setting that is a function has to stand there too.
    """

    name: str = attrs.field(validator=attrs.validators.instance_of(str))
    at: tuple[Phase, ...] = attrs.field(converter=as_phases)
    decide: Callable[[State, Any], Transition | None] = attrs.field(eq=False, repr=False)
    memory: M_co = attrs.field(default=cast("M_co", None))
    needs: frozenset[str] = attrs.field(default=frozenset(), converter=as_needs)
    every: int = 1
    order: int = 0
    params: Mapping[str, object] = attrs.field(default=EMPTY, converter=FrozenMap)
    raises: Flag | None = None
    sets: frozenset[str] | None = attrs.field(default=None, converter=as_sets)
    commands: frozenset[type[Command]] | None = attrs.field(default=None, converter=as_commands)
    factory: str = ""
    monitors: frozenset[str] = attrs.field(default=frozenset(), converter=as_monitors)
    writes_to: frozenset[str] = attrs.field(default=frozenset(), converter=as_folders)
    reads: frozenset[str] | None = attrs.field(default=None, converter=as_reads, eq=False)  # says of `decide`

    def __attrs_post_init__(self) -> None:
        if not self.name:
            raise ValueError("a callback without a name: pass name=")
        if not is_text(self.name):
            raise ValueError(f"a callback has the name {self.name!r}: {NO_TEXT}")
        if not any(phase in CONSULTED for phase in self.at):
            raise ValueError(
                f"callback {self.name!r} would never be consulted: name at least one of the phases "
                + ", ".join(phase.name for phase in CONSULTED)
            )
        if not is_whole(self.every, least=1):
            raise ValueError(f"callback {self.name!r}: every={self.every!r}, but it counts batches or epochs from 1")
        if not callable(self.decide):
            raise TypeError(f"callback {self.name!r}: decide={self.decide!r} is not a function")
        if why := unsaveable(self.memory):
            raise TypeError(f"callback {self.name!r}: {why}")

    def __call__(self, state: State, memory: object = None) -> Transition | None:
        """Its answer to this state, to try it out.

        Its memory is `memory` if one is given, else the one in the state, else its initial memory.
        """
        if memory is None:
            memory = state.memory.get(self.name, self.memory)
        return self.decide(state, memory)

    def __copy__(self) -> Callback[M_co]:
        return self

    def __deepcopy__(self, memo: object) -> Callback[M_co]:
        return self

    def __reduce_ex__(self, protocol: SupportsIndex) -> str | tuple[Any, ...]:
        """Pickle the call or the name that gives this callback; the function itself only if there is neither."""
        return recipe_of(self) or object.__reduce_ex__(self, protocol)


def memory_classes(callback: Callback[Any]) -> dict[str, type]:
    """The attrs classes, by name, of the records that may be in a callback's memory.

    They are those in its initial memory, and those in the type of its function's second parameter, such
    as `best: Best | None`.
    """
    declared: tuple[type, ...] = ()
    parameters = tuple(inspect.signature(callback.decide).parameters.values())
    if len(parameters) > 1 and parameters[1].annotation is not inspect.Parameter.empty:
        function = inspect.unwrap(callback.decide)
        names = dict(getattr(function, "__globals__", {}))
        if inspect.isfunction(function):
            names |= inspect.getclosurevars(function).nonlocals  # a class that is local to the factory
        declared = types_in(parameters[1].annotation, names)
    return record_classes((callback.memory, *declared))


def on(
    *phases: Phase,
    memory: M = _NO_MEMORY,
    needs: Iterable[str] = (),
    every: int = 1,
    order: int = 0,
    name: str | None = None,
    raises: Flag | None = None,
    sets: Iterable[str] | None = None,
    commands: Iterable[type[Command]] | None = None,
    monitors: Iterable[str] = (),
    writes_to: Iterable[str] = (),
    reads: Iterable[str] | None = None,
) -> Callable[[Decide | DecideWithMemory[M]], Callback[M]]:
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
        every: consult it only at multiples of this number of batches, or of epochs.
        order: the place of its commands among those of others.
        name: the callback's name; by default that of the function.
        raises: the flags it may raise. None, here and in the next two, leaves it undeclared.
        sets: the hyper-parameters it may set.
        commands: the types of command it may give.
        monitors: the metrics that it waits for; one that will never be measured is refused before the
            first batch.
        writes_to: the folders that its commands write checkpoints to; locked for this run before the first batch.
        reads: what its answer depends on, beside the phase, the flags and its memory: any of "epoch", "pending",
            "batch_size", "batches_over"; () for nothing. It need not be asked twice then. None leaves it undeclared.

    Raises:
        TypeError: something is not a phase, the memory cannot be saved, or the function does not
            take the state, or the state and a memory.
        ValueError: no phase is one at which callbacks are consulted, or `every` is below 1.
    """
    if len(phases) == 1 and callable(phases[0]) and not isinstance(phases[0], Phase):
        raise TypeError("on is given the phases first: @on(Phase.EPOCH_END)")

    def decorate(function: Callable[..., Transition | None]) -> Callback[M]:
        callback_name = name or str(getattr(function, "__name__", ""))
        parameters = [
            p
            for p in inspect.signature(function).parameters.values()
            if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) and p.default is p.empty
        ]
        if len(parameters) not in (1, 2):
            raise TypeError(
                f"callback {callback_name!r} is a function of (state) or of (state, memory), not of {len(parameters)}"
            )
        if len(parameters) == 1 and memory is not None:
            raise TypeError(
                f"callback {callback_name!r} has a memory, but its function has no parameter for it: (state, memory)"
            )
        decide = function if len(parameters) == 2 else _ignoring_memory(function)
        declared = EMPTY, raises, sets, commands
        return Callback(
            callback_name,
            phases,
            decide,
            memory,
            needs,
            every,
            order,
            *declared,
            monitors=monitors,
            writes_to=writes_to,
            reads=reads,
        )

    return decorate


def _ignoring_memory(function: Callable[..., Transition | None]) -> Callable[[State, object], Transition | None]:
    @functools.wraps(function)
    def decide(state: State, memory: object) -> Transition | None:
        return function(state)

    decide._without_memory = decide, function  # type: ignore[attr-defined]
    return decide


def of_state_alone(callback: Callback[Any]) -> Decide | None:
    """The function of the state that a callback without a memory was made of; None for any other.

    >>> @on(Phase.BATCH_END)
    ... def look(state):
    ...     return None
    >>> of_state_alone(look) is look.decide.__wrapped__
    True
    """
    made, function = getattr(callback.decide, "_without_memory", (None, None))
    return function if made is callback.decide else None  # functools.wraps gives it to what is around it too


def factory(make: Callable[P, Callback[M]]) -> Callable[P, Callback[M]]:
    """Record the arguments of `make` as the `params` of each callback that it makes.

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
        check_by_position(make.__qualname__, signature, args, kwargs)
        callback = make(*args, **kwargs)
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        params = dict(bound.arguments)
        for parameter in signature.parameters.values():
            if parameter.kind is parameter.VAR_KEYWORD:
                params.update(params.pop(parameter.name))
            elif parameter.kind is parameter.VAR_POSITIONAL:
                params[parameter.name] = tuple(params[parameter.name])
        # A path is recorded as text: a log can hold that, and the callback can be made of it again.
        params = {key: fspath(value) if isinstance(value, PathLike) else value for key, value in params.items()}
        name = params.pop("name", None) or callback.name
        return attrs.evolve(
            callback, name=cast("str", name), params=params, factory=f"{make.__module__}.{make.__qualname__}"
        )

    return made


def strict_factory(make: Callable[P, Callback[M]]) -> Callable[P, Callback[M]]:
    """As `factory`, for callbacks that declare all that they do, such as those of the library.

    A declaration that is left out means nothing, and not undeclared: raises=Flag.NONE, sets=(),
    commands=(). The name None, or an empty one, means the default name in the signature of `make`.
    """

    @functools.wraps(make)
    def made(*args: P.args, **kwargs: P.kwargs) -> Callback[M]:
        if not isinstance(name := kwargs.get("name"), (str, type(None))):
            raise TypeError(f"name={name!r}: the name of a callback is a text")
        if not name:
            kwargs.pop("name", None)
        callback = make(*args, **kwargs)
        return attrs.evolve(
            callback,
            raises=callback.raises or Flag.NONE,
            sets=callback.sets or (),
            commands=callback.commands or (),
        )

    return factory(made)


def always(name: str, phase: Phase, command: Command, *, order: int = 0) -> Callback[None]:
    """The callback that gives the same command each time it is consulted, at one phase."""
    answer = Transition(commands=(command,))

    @on(phase, name=name, order=order, raises=Flag.NONE, sets=(), commands={type(command)}, reads=())
    def always(state: State) -> Transition:
        return answer

    return always


def is_due(callback: Callback[Any], phase: Phase, at: Draft) -> bool:
    """Whether the callback's `every` allows it to be consulted with these counters, at one of its phases."""
    if phase in BATCH_PHASES:
        return at.iteration % callback.every == 0
    return phase not in EPOCH_PHASES or at.epoch % callback.every == 0


def callback_error(callback: Callback[Any], state: State, message: str) -> CallbackError:
    """The error for what this callback did wrong at this state."""
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
    """The callbacks as a tuple, checked to be callbacks with unique names.

    Raises:
        TypeError: something in the list is no callback.
        ValueError: two of them have the same name.
    """
    checked = as_list(callbacks, "callbacks", "early_stopping()", single=isinstance(callbacks, Callback))
    names: set[str] = set()
    for callback in checked:
        if not isinstance(callback, Callback):
            raise TypeError(no_callback(callback))
        if callback.name in names:
            raise ValueError(
                f"two callbacks are called {callback.name!r}, and would share one memory: pass name= to one of them"
            )
        names.add(callback.name)
    return checked
