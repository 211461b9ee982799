"""One consultation of a callback: its response, and what else it did."""

from __future__ import annotations

import copy
import dis
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import attrs

from ..core.callback import Callback
from ..core.errors import FactError
from ..core.state import State
from ..core.transition import UNCHANGED, Transition
from ..core.values import Facts, FrozenMap, Metrics, unsaveable
from . import hidden_state
from .differences import fingerprint, same
from .side_effects import SideEffect, generators, watched


@attrs.frozen
class Failure:
    """The error that a callback raised instead of answering.

    Attributes:
        kind: the name of the error's class.
        text: its message, without addresses in memory.
        error: the error itself; not compared.
        deliberate: whether a `raise` statement of the callback's own package raised it, and it is no
            AssertionError; not compared.
    """

    kind: str
    text: str
    error: Exception = attrs.field(eq=False)
    deliberate: bool = attrs.field(eq=False)


Response = Transition | None | Failure
"""What a consultation gives: an answer, no answer, or an error."""

Missing = Literal["fact", "metric", "hyper"]


@attrs.define
class Observations:
    """What a callback did beside answering.

    Attributes:
        facts: names of the facts that it read, or looked for with `get` or `in`.
        metrics: the same, of metrics.
        hyper: the same, of hyper-parameters.
        memories: names of other callbacks whose memory it read; "" for the mapping as a whole.
        side_effects: what it did that a pure function does not do.
        hidden_changes: what changed in its closure, defaults, attributes or globals.
        changed_generators: the global random generators that it changed.
        inputs_changed: whether it changed the state or its memory.
        second_response: its response to an equal state, after the first.
        active: whether it is running now; only reads in that time are noted.
    """

    facts: set[str] = attrs.Factory(set)
    metrics: set[str] = attrs.Factory(set)
    hyper: set[str] = attrs.Factory(set)
    memories: set[str] = attrs.Factory(set)
    side_effects: list[SideEffect] = attrs.Factory(list)
    hidden_changes: list[str] = attrs.Factory(list)
    changed_generators: list[str] = attrs.Factory(list)
    inputs_changed: bool = False
    second_response: Response = None
    active: bool = False


@attrs.frozen
class Consultation:
    """One call of a callback's function.

    Attributes:
        state: the state that it was given.
        memory: the memory that it was given.
        response: what it returned or raised.
        observations: what else it did; empty if it was not observed.
    """

    state: State
    memory: object
    response: Response
    observations: Observations = attrs.Factory(Observations)

    @property
    def error(self) -> Exception | None:
        """The error that it raised, if it raised one."""
        return self.response.error if isinstance(self.response, Failure) else None

    @property
    def answer(self) -> Transition:
        """The Transition that it returned; an empty one if it returned something else or raised."""
        return self.response if isinstance(self.response, Transition) else _EMPTY


_EMPTY = Transition()


def ask(decide: Callable[..., Any], state: Any, memory: object) -> Response:
    """Call the function, and return its answer or its error."""
    try:
        return decide(state, memory)  # type: ignore[no-any-return]
    except Exception as error:
        return Failure(type(error).__name__, _ADDRESS.sub("", str(error)), error, _is_deliberate(error, decide))


_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


def same_response(a: Response, b: Response) -> bool:
    """Whether two responses are the same answer to the last bit, or the same error."""
    if isinstance(a, Failure) or isinstance(b, Failure):
        return a == b
    return same(a, b)


def ask_and_observe(
    callback: Callback[Any], decide: Callable[..., Any], state: State, memory: object
) -> tuple[Response, Observations]:
    """Call the function, and return its response and what else it did."""
    seen = Observations()
    tracked = _tracked(state, callback.name, seen)
    equal = copy.copy(state)
    inputs = _inputs(tracked, memory)
    hidden_before, generators_before = hidden_state.snapshot(decide), generators()
    with watched(seen.side_effects):
        seen.active = True
        response = ask(decide, tracked, memory)
        seen.active = False
    for name, now in generators().items():
        if name in generators_before and now != generators_before[name]:
            seen.changed_generators.append(name)
    seen.hidden_changes = list(hidden_state.changes(hidden_before, hidden_state.snapshot(decide)))
    seen.inputs_changed = _inputs(tracked, memory) != inputs
    if not isinstance(response, Failure):
        seen.second_response = ask(decide, equal, memory)
    return response, seen


def _inputs(state: State, memory: object) -> object:
    """The identity of each field of the state, and the contents of its mappings and of the memory."""
    parts = [id(getattr(state, field)) for field in _FIELDS]
    return parts, fingerprint((state.facts, state.metrics, state.hyper, state.memory, memory))


_FIELDS = tuple(field.name for field in attrs.fields(State))


def _is_deliberate(error: Exception, decide: Callable[..., object]) -> bool:
    """Whether a `raise` statement in the callback's own package, or in this one, raised it."""
    if isinstance(error, AssertionError) or error.__traceback__ is None:
        return False
    last = error.__traceback__
    while last.tb_next is not None:
        last = last.tb_next
    raised = dis.opname[last.tb_frame.f_code.co_code[last.tb_lasti]] == "RAISE_VARARGS"
    module = str(last.tb_frame.f_globals.get("__name__", ""))
    home = (getattr(decide, "__module__", "") or "").split(".")[0]
    return raised and module.split(".")[0] in (home, "fsm_train")


class _TrackedMap(FrozenMap[str, Any]):
    """A mapping that calls `on_read` with each key that is read or looked for."""

    __slots__ = ("on_read",)
    on_read: Callable[[str], None]

    def __getitem__(self, key: str) -> Any:
        self.on_read(key)
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        self.on_read(key)
        return super().get(key, default)

    def __contains__(self, key: object) -> bool:
        self.on_read(str(key))
        return super().__contains__(key)

    __hash__ = FrozenMap.__hash__


class _TrackedFacts(_TrackedMap, Facts):
    __slots__ = ()


class _TrackedMetrics(_TrackedMap, Metrics):
    __slots__ = ()


class _TrackedMemories(_TrackedMap):
    """The memories by name. Iterating over them or counting them reads those of other callbacks too."""

    __slots__ = ()

    def __iter__(self) -> Iterator[str]:
        self.on_read("")
        return super().__iter__()

    def __len__(self) -> int:
        self.on_read("")
        return super().__len__()

    def keys(self) -> Any:
        self.on_read("")
        return super().keys()

    def values(self) -> Any:
        self.on_read("")
        return super().values()

    def items(self) -> Any:
        self.on_read("")
        return super().items()


def _tracked(state: State, name: str, seen: Observations) -> State:
    """An equal state that notes what is read of it."""
    tracked = copy.copy(state)

    def track(field: str, kind: type[_TrackedMap], note: Callable[[str], None]) -> None:
        mapping = kind(getattr(state, field))
        mapping.on_read = lambda key: note(key) if seen.active else None
        object.__setattr__(tracked, field, mapping)

    track("facts", _TrackedFacts, seen.facts.add)
    track("metrics", _TrackedMetrics, seen.metrics.add)
    track("hyper", _TrackedMap, seen.hyper.add)
    track("memory", _TrackedMemories, lambda key: None if key == name else seen.memories.add(key))
    return tracked


def missing_name(consultation: Consultation) -> tuple[Missing, str] | None:
    """The name that the callback looked for in vain before it raised, and of what kind it is."""
    response, seen, state = consultation.response, consultation.observations, consultation.state
    if not isinstance(response, Failure):
        return None
    if isinstance(response.error, FactError):
        return "fact", str(response.error)
    for kind, names, there in (("metric", seen.metrics, state.metrics), ("hyper", seen.hyper, state.hyper)):
        for name in sorted(names - there.keys()):
            return kind, name  # type: ignore[return-value]
    return None


def saveable_memories(consultations: Sequence[Consultation]) -> Iterator[tuple[Consultation, object]]:
    """Each memory in the answers that can be saved."""
    for consultation in consultations:
        memory = consultation.answer.memory
        if memory is not UNCHANGED and unsaveable(memory) is None:
            yield consultation, memory
