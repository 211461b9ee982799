"""What happened in a training, in order: to print, compare and assert on.

Rule of this file: a trace watches, and influences nothing. It is a sink, so it sees each phase after the
callbacks have answered. It wraps the workload, so it sees each operation and each command when it is
carried out.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from typing import Any, Literal, cast

import attrs

from ..core.callback import Callback
from ..core.phase import CONSULTED, FINAL, Operation, Phase
from ..core.state import State
from ..core.table import term_name
from ..core.transition import UNCHANGED, Command, Transition
from ..core.workload import Workload
from ..wording import short_number
from ..worlds.proxy import WorkloadProxy

EventKind = Literal["phase", "answer", "command", "operation"]
_OPERATIONS = frozenset(operation.value for operation in Operation)
_PHASES: tuple[Phase, ...] = (*CONSULTED, *FINAL)


@attrs.frozen
class Event:
    """One thing that happened.

    >>> from fsm_train.testing import simulate
    >>> trace = Trace()
    >>> final = simulate([], trace=trace)
    >>> trace.events[0].kind, trace.events[0].name
    ('operation', 'prepare')

    Attributes:
        kind: "phase" (it was reached), "answer" (of a callback), "command" or "operation" (it was carried out).
        name: value of the phase or operation, name of the callback, or name of the command's class.
        state: the state at the phase, after its answers; of an operation the last state before it.
        said: the answer or the command; None for a phase or an operation.
    """

    kind: EventKind
    name: str
    state: State | None
    said: Transition | Command | None = None

    def __str__(self) -> str:
        if self.kind == "phase":
            assert self.state is not None
            return _phase_line(self.state)
        if isinstance(self.said, Transition):
            return f"    {self.name}: {summary(self.said)}"
        return f"        ! {self.said}" if self.kind == "command" else f"        → {self.name}"


class Trace:
    """Everything that happened in a training, in one or several calls of `run`.

    Give an empty one to `simulate`. For a training with another workload, wrap that:
    `run(start(trace.watching(work), epochs=1), callbacks, sinks=[trace])`.

    >>> from fsm_train.callbacks import clip_grad_norm
    >>> from fsm_train.testing import simulate
    >>> trace = Trace()
    >>> final = simulate([clip_grad_norm(1.0)], batches=2, trace=trace)
    >>> trace.assert_order("clip_grad_norm", before="step")
    >>> print(trace)
    → prepare
    setup               epoch 0  batch 0  step 0
    ...
    step_begin          epoch 0  batch 1  step 1  pending 1
        clip_grad_norm: ClipGradNorm(max_norm=1.0, norm_type=2.0)
            ! ClipGradNorm(max_norm=1.0, norm_type=2.0)
            → step
    step_end            epoch 0  batch 1  step 2
    ...

    Attributes:
        on: whether it adds events.
    """

    at: Sequence[Phase] = _PHASES
    needs: Set[str] = frozenset()
    interval = 0.0
    draws = False

    def __init__(self) -> None:
        self.on = True
        self._events: list[Event] = []
        self._carried_out: list[Command] = []  # since the last phase that `see` was given

    # ------------------------------------------------------------------------------- as a sink

    def open(self, state: State, callbacks: Sequence[Callback[Any]]) -> None:
        """Does nothing: the events of a second call of `run` follow those of the first."""

    def see(self, state: State, answers: Mapping[str, Transition]) -> None:
        if not self.on:
            return
        self._events.append(Event("phase", state.phase.value, state))
        self._events += [Event("answer", name, state, answer) for name, answer in answers.items()]
        self._events += self._commands(state)
        self._carried_out.clear()

    def close(self) -> None:
        """Does nothing."""

    # --------------------------------------------------------- between interpreter and workload

    def watching(self, work: Workload) -> Workload:
        """The workload, wrapped so that its operations and commands become events."""
        return _TracedWorkload(work, self).as_workload()

    def _note(self, operation: str) -> None:
        if self.on:
            self._events.append(Event("operation", operation, next((e.state for e in reversed(self._events)), None)))

    def _commands(self, state: State | None) -> list[Event]:
        return [Event("command", type(command).__name__, state, command) for command in self._carried_out]

    # ----------------------------------------------------------------------------- to be asked

    @property
    def events(self) -> tuple[Event, ...]:
        """All events, in order."""
        # `see` is not called for a phase in which an operation or command raised.
        return (*self._events, *self._commands(self._events[-1].state if self._events else None))

    @property
    def states(self) -> tuple[State, ...]:
        """The state at each phase, after the answers."""
        return tuple(event.state for event in self._events if event.kind == "phase" and event.state is not None)

    @property
    def final(self) -> State:
        """The state at the last phase.

        Raises:
            ValueError: the trace is empty.
        """
        if not self.states:
            raise ValueError("this trace is empty: give it to simulate(…, trace=trace) first")
        return self.states[-1]

    @property
    def phases(self) -> tuple[Phase, ...]:
        return tuple(state.phase for state in self.states)

    @property
    def operations(self) -> tuple[str, ...]:
        """The operations that were carried out, by name."""
        return tuple(event.name for event in self._events if event.kind == "operation")

    @property
    def commands(self) -> tuple[Command, ...]:
        """The commands that were carried out."""
        return tuple(cast("Command", event.said) for event in self.events if event.kind == "command")

    def answers(self, name: str) -> tuple[tuple[State, Transition], ...]:
        """The answers of the callback of this name, each with the state of that phase after the answers."""
        return tuple(
            (cast("State", event.state), cast("Transition", event.said))
            for event in self._events
            if event.kind == "answer" and event.name == name
        )

    def assert_order(self, first: str | enum.Enum | type[Command], *, before: str | enum.Enum | type[Command]) -> None:
        """Check that between two events `before`, and before the first one, an event `first` happened.

        Args:
            first: a phase, an operation, a command's class, or the name of one or of a callback.
            before: the same.

        Raises:
            AssertionError: it did not, or one of the two never happened. The message shows the events until then.
        """
        names = [_name(thing) for thing in (first, before)]
        happened = [event.name for event in self.events]
        for name in names:
            if name not in happened:
                there_are = ", ".join(dict.fromkeys(happened)) or "nothing"
                raise AssertionError(f"{name!r} never happened in this trace; what did: {there_are}")
        due = False
        for position, event in enumerate(self.events):
            if event.name == names[0]:
                due = True
            elif event.name == names[1]:
                if not due:
                    shown = "\n".join(map(str, self.events[max(0, position - _SHOWN) : position + 1]))
                    raise AssertionError(f"{names[1]!r} happened without {names[0]!r} before it:\n{shown}")
                due = False

    def __iter__(self) -> Iterator[Event]:
        return iter(self.events)

    def __len__(self) -> int:
        return len(self.events)

    def __str__(self) -> str:
        lines: list[str] = []
        before: EventKind | None = None
        for event in self.events:
            if event.kind == before == "operation":
                lines[-1] += f", {event.name}"
            else:
                lines.append(str(event))
            before = event.kind
        return "\n".join(lines).strip()

    def __repr__(self) -> str:
        last = f", the last at {self.final.phase.value}" if self.states else ""
        return f"<Trace of {len(self)} events{last}>"


_SHOWN = 12


class _TracedWorkload(WorkloadProxy):
    """A workload whose operations and commands a trace notes."""

    def __init__(self, workload: Workload, trace: Trace) -> None:
        super().__init__(workload)
        self._trace = trace

    def carry_out(self, command: Command, state: State) -> None:
        if self._trace.on:
            self._trace._carried_out.append(command)
        self.wrapped.carry_out(command, state)

    def __getattr__(self, name: str) -> Any:
        found = super().__getattr__(name)
        return self._noted(name, found) if name in _OPERATIONS else found

    def _noted(self, name: str, operation: Callable[..., object]) -> Callable[..., object]:
        def noted(*args: object) -> object:
            self._trace._note(name)
            return operation(*args)

        return noted


def _name(thing: str | enum.Enum | type[Command]) -> str:
    return str(thing.value) if isinstance(thing, enum.Enum) else thing if isinstance(thing, str) else thing.__name__


def _phase_line(state: State) -> str:
    parts = [f"epoch {state.epoch}", f"batch {state.batch}", f"step {state.step}"]
    parts += [f"pending {state.pending}"] * bool(state.pending)
    parts += [f"valid_batch {state.valid_batch}"] * (state.phase.value.startswith("valid_batch"))
    parts += [f"{name} {short_number(value, 6)}" for name, value in state.facts.items() if name != "batch_size"]
    parts += [term_name(state.flags)] * bool(state.flags)
    return f"{state.phase.value:<18}  " + "  ".join(parts)


def summary(answer: Transition) -> str:
    """An answer, on one line.

    >>> from fsm_train import Flag
    >>> summary(Transition(flags=Flag.STOP_TRAINING, hyper={"lr": 0.1}, reason="enough"))
    'raises STOP_TRAINING, sets lr to 0.1, because: enough'
    """
    parts = [f"raises {term_name(answer.flags)}"] * bool(answer.flags)
    parts += [f"sets {name} to {short_number(value, 6)}" for name, value in answer.hyper.items()]
    parts += [str(command) for command in answer.commands]
    parts += [f"remembers {answer.memory!r}"] if answer.memory is not UNCHANGED else []
    parts += [f"because: {answer.reason}"] * bool(answer.reason)
    return ", ".join(parts) or "nothing"
