"""One time that a callback is asked, with notes taken of everything it does."""

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
from . import hidden, watching
from .differences import fingerprint, same


@attrs.frozen
class Raised:
    """A callback raised instead of answering.

    Attributes:
        error: what it raised.
        deliberate: whether it says so in its own words: by a `raise` of its own that is no assertion.
    """

    kind: str
    text: str  # without addresses in memory
    error: Exception = attrs.field(eq=False)
    deliberate: bool = attrs.field(eq=False)


Outcome = Transition | None | Raised
Missing = Literal["fact", "metric", "hyper"]


@attrs.define
class Notes:
    """What a callback did beside answering.

    Attributes:
        facts: the facts that it read, or asked for with get or in.
        metrics: the same, of the metrics.
        hyper: the same, of the hyper-parameters.
        memories: the names of others whose memory it read.
        deeds: what it did that a pure function does not do.
        hidden: what changed in its closure, defaults, attributes or globals.
        generators: the global random generators that it changed.
        inputs: whether it changed the state or its memory.
        again: what it answered to an equal state, asked once more.
        listening: whether it is being asked just now, so that what is read is read by it.
    """

    facts: set[str] = attrs.Factory(set)
    metrics: set[str] = attrs.Factory(set)
    hyper: set[str] = attrs.Factory(set)
    memories: set[str] = attrs.Factory(set)
    deeds: list[watching.Deed] = attrs.Factory(list)
    hidden: list[str] = attrs.Factory(list)
    generators: list[str] = attrs.Factory(list)
    inputs: bool = False
    again: Outcome = None
    listening: bool = False


@attrs.frozen
class Consultation:
    """One time that a callback was asked."""

    state: State
    memory: object
    outcome: Outcome
    notes: Notes = attrs.Factory(Notes)

    @property
    def raised(self) -> Exception | None:
        """What it raised, if it did."""
        return self.outcome.error if isinstance(self.outcome, Raised) else None

    @property
    def answer(self) -> Transition:
        """What it said; nothing if it raised or said something else."""
        return self.outcome if isinstance(self.outcome, Transition) else _NOTHING


_NOTHING = Transition()


def ask_plainly(decide: Callable[..., Any], state: Any, memory: object) -> Outcome:
    """What the function answers, or how it raises."""
    try:
        return decide(state, memory)  # type: ignore[no-any-return]
    except Exception as error:
        return Raised(type(error).__name__, _ADDRESS.sub("", str(error)), error, _is_deliberate(error, decide))


_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


def alike(a: Outcome, b: Outcome) -> bool:
    """Whether two outcomes are the same: the same answer to the last bit, or the same error."""
    if isinstance(a, Raised) or isinstance(b, Raised):
        return a == b
    return same(a, b)


def ask_closely(
    callback: Callback[Any], decide: Callable[..., Any], state: State, memory: object
) -> tuple[Outcome, Notes]:
    """What the function answers, or how it raises, and what else it does."""
    notes = Notes()
    shown = _noting(state, callback.name, notes)
    equal = copy.copy(state)
    inputs = _inputs(shown, memory)
    kept, generators = hidden.snapshot(decide), watching.generators()
    with watching.watched(notes.deeds):
        notes.listening = True
        outcome = ask_plainly(decide, shown, memory)
        notes.listening = False
    after = watching.generators()
    notes.generators = [name for name in after if name in generators and after[name] != generators[name]]
    notes.hidden = list(hidden.changes(kept, hidden.snapshot(decide)))
    notes.inputs = _inputs(shown, memory) != inputs
    if not isinstance(outcome, Raised):
        notes.again = ask_plainly(decide, equal, memory)
    return outcome, notes


def _inputs(state: State, memory: object) -> object:
    """What the state and the memory are made of: the same objects, and in mappings and memories the same values."""
    parts = [id(getattr(state, field)) for field in _FIELDS]
    return parts, fingerprint((state.facts, state.metrics, state.hyper, state.memory, memory))


_FIELDS = tuple(field.name for field in attrs.fields(State))


def _is_deliberate(error: Exception, decide: Callable[..., object]) -> bool:
    """Whether it was raised by a `raise` in the callback's own package, or by a check of this one."""
    if isinstance(error, AssertionError) or error.__traceback__ is None:
        return False
    last = error.__traceback__
    while last.tb_next is not None:
        last = last.tb_next
    raised = dis.opname[last.tb_frame.f_code.co_code[last.tb_lasti]] == "RAISE_VARARGS"
    module = str(last.tb_frame.f_globals.get("__name__", ""))
    home = (getattr(decide, "__module__", "") or "").split(".")[0]
    return raised and module.split(".")[0] in (home, "fsm_train")


class _Noting(FrozenMap[str, Any]):
    """A mapping that notes which of its keys are asked for."""

    __slots__ = ("asked",)
    asked: Callable[[str], None]

    def __getitem__(self, key: str) -> Any:
        self.asked(key)
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        self.asked(key)
        return super().get(key, default)

    def __contains__(self, key: object) -> bool:
        self.asked(str(key))
        return super().__contains__(key)

    __hash__ = FrozenMap.__hash__


class _NotingFacts(_Noting, Facts):
    __slots__ = ()


class _NotingMetrics(_Noting, Metrics):
    __slots__ = ()


class _NotingMemories(_Noting):
    """Whoever goes through all memories, or counts them, asks for those of others too."""

    __slots__ = ()

    def __iter__(self) -> Iterator[str]:
        self.asked("")
        return super().__iter__()

    def __len__(self) -> int:
        self.asked("")
        return super().__len__()

    def keys(self) -> Any:
        self.asked("")
        return super().keys()

    def values(self) -> Any:
        self.asked("")
        return super().values()

    def items(self) -> Any:
        self.asked("")
        return super().items()


def _noting(state: State, name: str, notes: Notes) -> State:
    """An equal state that notes what is read of it."""
    shown = copy.copy(state)

    def put(field: str, kind: type[_Noting], asked: Callable[[str], None]) -> None:
        mapping = kind(getattr(state, field))
        mapping.asked = lambda key: asked(key) if notes.listening else None
        object.__setattr__(shown, field, mapping)

    put("facts", _NotingFacts, notes.facts.add)
    put("metrics", _NotingMetrics, notes.metrics.add)
    put("hyper", _Noting, notes.hyper.add)
    put("memory", _NotingMemories, lambda asked: None if asked == name else notes.memories.add(asked))
    return shown


def missing(consultation: Consultation) -> tuple[Missing, str] | None:
    """What the callback asked for in vain just before it raised, if that is why."""
    raised, notes, state = consultation.outcome, consultation.notes, consultation.state
    if not isinstance(raised, Raised):
        return None
    if isinstance(raised.error, FactError):
        return "fact", str(raised.error)
    for kind, asked, there in (("metric", notes.metrics, state.metrics), ("hyper", notes.hyper, state.hyper)):
        for name in sorted(asked - there.keys()):
            return kind, name  # type: ignore[return-value]
    return None


def memories(consultations: Sequence[Consultation]) -> Iterator[tuple[Consultation, object]]:
    """Each memory that was answered and can be kept."""
    for consultation in consultations:
        memory = consultation.answer.memory
        if memory is not UNCHANGED and unsaveable(memory) is None:
            yield consultation, memory
