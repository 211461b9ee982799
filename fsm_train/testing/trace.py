"""What happened in a training, in order: to be printed, compared, and asserted on.

Rule of this file: a trace watches and influences nothing. It is a sink, so it sees each phase after
the callbacks have answered, and it stands between the interpreter and the workload, so it sees each
operation and each command when it is carried out.
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

Kind = Literal["phase", "answer", "command", "operation"]
_OPERATIONS = frozenset(operation.value for operation in Operation)
_PHASES: tuple[Phase, ...] = (*CONSULTED, *FINAL)


@attrs.frozen
class Event:
    """One thing that happened.

    Attributes:
        kind: a phase was reached, a callback answered, a command or an operation was carried out.
        name: the phase's or operation's value, the callback's name, or the command's class.
        state: the state at the phase, after its answers; for an operation that of the phase before it.
        said: the answer or the command.
    """

    kind: Kind
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
    """Everything that happened in a training, or in several calls of `run`, one after the other.

    Give an empty one to `simulate`. For a training with another workload, put it in between:
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
        on: whether it still takes notes.
    """

    at: Sequence[Phase] = _PHASES
    needs: Set[str] = frozenset()
    interval = 0.0

    def __init__(self) -> None:
        self.on = True
        self._events: list[Event] = []
        self._carried_out: list[Command] = []  # those of the phase under way, which is seen when it is over

    # ------------------------------------------------------------------------------- as a sink

    def open(self, state: State, callbacks: Sequence[Callback[Any]]) -> None:
        """Nothing to do: a further call of `run` is written below the one before."""

    def see(self, state: State, answers: Mapping[str, Transition]) -> None:
        if not self.on:
            return
        self._events.append(Event("phase", state.phase.value, state))
        self._events += [Event("answer", name, state, answer) for name, answer in answers.items()]
        self._events += self._commands(state)
        self._carried_out.clear()

    def close(self) -> None:
        """Nothing to do."""

    # --------------------------------------------------------- between interpreter and workload

    def watching(self, work: Workload) -> Workload:
        """The workload, with its operations and commands noted here."""
        return cast("Workload", _Watched(work, self))

    def _note(self, operation: str) -> None:
        if self.on:
            self._events.append(Event("operation", operation, next((e.state for e in reversed(self._events)), None)))

    def _commands(self, state: State | None) -> list[Event]:
        return [Event("command", type(command).__name__, state, command) for command in self._carried_out]

    # ----------------------------------------------------------------------------- to be asked

    @property
    def events(self) -> tuple[Event, ...]:
        """What happened, in order."""
        # The commands of a phase in which something raised were never followed by a look of the sink.
        return (*self._events, *self._commands(self._events[-1].state if self._events else None))

    @property
    def states(self) -> tuple[State, ...]:
        """The state at each phase, after the answers."""
        return tuple(event.state for event in self._events if event.kind == "phase" and event.state is not None)

    @property
    def final(self) -> State:
        """The last state there is.

        Raises:
            ValueError: nothing has happened yet.
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
        """What the callback of this name said, each time with the state of that phase after it."""
        return tuple(
            (cast("State", event.state), cast("Transition", event.said))
            for event in self._events
            if event.kind == "answer" and event.name == name
        )

    def assert_order(self, first: str | enum.Enum | type[Command], *, before: str | enum.Enum | type[Command]) -> None:
        """Check that each `before` was preceded by a `first` that came after the last `before`.

        Args:
            first: the name of a callback that answered, of a command's class, of a phase or of an operation.
            before: the same.

        Raises:
            AssertionError: it was not so, or one of the two never happened. The trace is shown up to there.
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
        before: Kind | None = None
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


class _Watched:
    """A workload that tells the trace what it does."""

    def __init__(self, work: Workload, trace: Trace) -> None:
        self._work = work
        self._trace = trace

    @property
    def interrupt(self) -> str | None:
        return self._work.interrupt

    @interrupt.setter
    def interrupt(self, name: str | None) -> None:
        self._work.interrupt = name

    def carry_out(self, command: Command, state: State) -> None:
        if self._trace.on:
            self._trace._carried_out.append(command)
        self._work.carry_out(command, state)

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._work, name)
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
    """What a callback said, on one line.

    >>> from fsm_train import Flag
    >>> summary(Transition(flags=Flag.STOP_TRAINING, hyper={"lr": 0.1}, reason="enough"))
    'raises STOP_TRAINING, sets lr to 0.1, because: enough'
    """
    said = [f"raises {term_name(answer.flags)}"] * bool(answer.flags)
    said += [f"sets {name} to {short_number(value, 6)}" for name, value in answer.hyper.items()]
    said += [str(command) for command in answer.commands]
    said += [f"remembers {answer.memory!r}"] if answer.memory is not UNCHANGED else []
    said += [f"because: {answer.reason}"] * bool(answer.reason)
    return ", ".join(said) or "nothing"
