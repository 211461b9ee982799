"""The interpreter against the pure fold: a state machine test to subclass.

The fold walks the table with `choose` and `advance`, one edge after the other, and decides with `consult`
and `decide`; all it is told are what the operations answered and which facts were measured. The
interpreter fuses edges, keeps counters in place and makes states only where somebody looks. Both must come
by the same states, by way of the same operations.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Mapping, Sequence
from typing import Any, cast

import attrs
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from hypothesis.strategies import SearchStrategy

from ..core.callback import Callback
from ..core.facts import measurable
from ..core.fold import advance, arrived_at, choose
from ..core.merge import consult, decide
from ..core.phase import CONSULTED, FINAL, Flag, Operation, Phase, Place
from ..core.runs import extend, failed, interrupted, ready
from ..core.state import Plan, State
from ..core.table import Outcome, reads
from ..core.transition import Command, Transition
from ..core.values import Facts, FrozenMap
from ..core.workload import Workload
from ..interpreter import iterate, start
from ..worlds.proxy import WorkloadProxy
from ..worlds.scripted import Scripted
from . import strategies as our
from .differences import differences
from .simulation import SimulatedError

_OPERATIONS = {operation.value: operation for operation in Operation}


class MachineModel(RuleBasedStateMachine):
    """Drives a workload with drawn answers, interrupts, failures and resumptions, beside the pure fold.

    Subclass it for your own workload, commands or callbacks, and let pytest find its `TestCase`:

    ```python
    class MyModel(MachineModel):
        def workload(self):
            return MyWorkload(...)

        def commands(self):
            return st.builds(MyCommand, st.floats(0, 1))

    TestMyModel = MyModel.TestCase
    ```

    >>> from hypothesis.stateful import run_state_machine_as_test
    >>> class MyModel(MachineModel):
    ...     def workload(self):
    ...         return Scripted(batches=3)
    >>> TestMyModel = MyModel.TestCase  # pytest finds it
    """

    def workload(self) -> Workload:
        """A new workload, small enough to be trained some hundred times a second."""
        return Scripted(batches=2, valid_batches=1, valid_loss=1.0)

    def commands(self) -> SearchStrategy[Command]:
        """Commands that the workload can carry out at any phase."""
        return st.nothing()

    def callbacks(self) -> Sequence[Callback[Any]]:
        """Further callbacks to take part, beside the one whose answers are drawn."""
        return ()

    def plans(self) -> SearchStrategy[Plan]:
        """The plans to train by."""
        return our.plans(max_epochs=2, max_steps=4)

    def check(self, state: State) -> None:
        """What else holds in every state that is reached; raises if it does not."""

    # ------------------------------------------------------------------------------------- rules

    @initialize(data=st.data(), watched=st.sets(st.sampled_from(CONSULTED), min_size=1))
    def begin(self, data: st.DataObject, watched: set[Phase]) -> None:
        self.answer = self.data = None
        drawn: Callback[Any] = Callback("drawn", tuple(phase for phase in CONSULTED if phase in watched), self._drawn)
        self.everybody = (drawn, *self.callbacks())
        self._start(data.draw(self.plans(), "plan"))

    @precondition(lambda self: self.under_way)
    @rule(data=st.data())
    def go_on(self, data: st.DataObject) -> None:
        """To the next phase where somebody is consulted, with an answer that is drawn there."""
        self.data = data
        self._next()

    @precondition(lambda self: self.under_way)
    @rule(times=st.integers(1, 20))
    def go_on_quietly(self, times: int) -> None:
        """Through several phases, without an answer."""
        self.data = None
        for _ in range(times):
            if self.under_way:
                self._next()

    @precondition(lambda self: self.under_way)
    @rule()
    def interrupt(self) -> None:
        """A signal comes in; the machine leaves where it may."""
        self.work.interrupt = self.interrupted = "a signal"

    @precondition(lambda self: self.under_way and self.fold.phase not in (Phase.READY, Phase.TEARDOWN))
    @rule()
    def fail(self) -> None:
        """Something goes wrong while nobody is asked."""
        self.data = self.answer = None
        error = SimulatedError("as planned")
        self.fold = failed(self.fold, error)
        self.work.clear()
        try:
            self.states.throw(error)
        except SimulatedError:
            pass
        else:
            raise AssertionError("the interpreter swallowed an error")  # pragma: no cover - it does not
        assert list(self.work.done)[-1:] == [(Operation.FINISH, None)], f"nothing was undone: {self.work.done}"
        self.under_way = False

    @precondition(lambda self: not self.under_way)
    @rule()
    def call_again(self) -> None:
        """Another call of run: a suspended training goes on, a finished one is extended, after a failure one begins."""
        match self.fold.phase:
            case Phase.SUSPENDED:
                self._enter(self.state)
            case Phase.DONE:
                self._enter(extend(self.state, epochs=1, max_steps=1))
            case _:
                self._start(self.fold.plan)

    @invariant()
    def own_laws(self) -> None:
        """What the subclass checks."""
        self.check(self.state)

    # ------------------------------------------------------------------------------ both, in step

    answer: Transition | None  # of the drawn callback, at this phase
    data: st.DataObject | None  # where it is drawn from
    everybody: tuple[Callback[Any], ...]
    state: State  # the interpreter's
    states: Generator[State]
    fold: State
    place: Place  # where the fold is
    under_way: bool

    def _start(self, plan: Plan) -> None:
        self.work = _ObservedWorkload(self.workload())
        work = self.work.as_workload()
        self._enter(start(work, epochs=plan.epochs, max_steps=plan.max_steps, seed=plan.seed))

    def _enter(self, state: State) -> None:
        self.state = state
        self.interrupted = ""
        self.work.interrupt = None
        self.fold = ready(state)
        self.fold = attrs.evolve(
            self.fold, memory=FrozenMap({**{c.name: c.memory for c in self.everybody}, **self.fold.memory})
        )
        self.place = self.fold.phase
        self.states = cast("Generator[State]", iterate(state, self.everybody))
        self.under_way = True

    def _drawn(self, state: State, memory: object) -> Transition | None:
        """The answer of the drawn callback: drawn when the interpreter asks, and repeated to the fold."""
        if self.data is not None:
            hyper = tuple(state.hyper)
            asked_for = Flag.SUSPEND | (Flag.VALIDATE if state.has_valid else Flag.NONE)
            some = our.transitions(state.phase, hyper=hyper, commands=self.commands(), asked_for=asked_for)
            self.answer = self.data.draw(st.none() | some, state.phase.name)
            self.data = None
        return self.answer

    def _next(self) -> None:
        self.answer = None
        self.work.clear()
        self.state = next(self.states)
        self._follow()
        found = list(differences(self.fold, self.state, exactly=False))
        assert not found, f"the fold (left) and the interpreter (right) differ at {self.state.phase.value}: {found}"
        assert not self.work.done, f"the interpreter did more than the table says: {list(self.work.done)}"
        if self.state.phase in FINAL:
            assert list(self.states) == []
            self.under_way = False

    def _follow(self) -> None:
        """The fold, as far as the interpreter has come: to the next place where somebody is consulted."""
        while True:
            if self.interrupted and Flag.SUSPEND in reads(self.place):
                self.fold, self.interrupted = interrupted(self.fold, self.interrupted), ""
            edge = choose(self.place, self.fold.flags, self.fold)
            outcomes = [self.work.outcome(operation) for operation in edge.operations]
            place = arrived_at(edge, self.fold.resume_at)
            resumes = place is not edge.target
            self.fold, self.place = advance(self.fold, edge, outcomes), place
            if place in FINAL:
                return
            if isinstance(place, Phase) and not resumes and self._asked(place):
                return

    def _asked(self, phase: Phase) -> bool:
        """Let the fold decide at this phase; false if nobody is consulted there."""
        here = [callback for callback in self.everybody if phase in callback.at]
        if not here:
            return False
        needs = measurable(frozenset().union(*(c.needs for c in here)), phase, self.work.sensors)
        facts = self.work.facts(needs)
        self.fold = attrs.evolve(self.fold, facts=Facts({"batch_size": self.fold.fetched, **facts}))
        answers = consult(here, self.fold)
        positions = {callback.name: i for i, callback in enumerate(self.everybody)}
        self.fold, decision = decide(self.fold, answers, positions)
        wanted = list(decision.commands)
        changed = any(command.changes_hyper is not False for command in wanted)
        if changed:  # to what, only the workload knows
            self.fold = attrs.evolve(self.fold, hyper=FrozenMap(self.work.hyper()))
        assert self.work.commands == wanted, f"{self.work.commands} were carried out, not {wanted}"
        if decision.hyper:
            now = {name: self.work.hyper()[name] for name in decision.hyper}
            assert changed or now == {name: self.fold.hyper[name] for name in decision.hyper}, (
                "hyper-parameters were not set"
            )
        return True

    def teardown(self) -> None:
        """Leave the training in good order, so that the workload can undo what it put in place."""
        if getattr(self, "under_way", False):
            self.data = self.answer = None
            self.states.close()


class _ObservedWorkload(WorkloadProxy):
    """A workload whose answers are written down for the fold."""

    def __init__(self, workload: Workload) -> None:
        super().__init__(workload)
        self.done: deque[tuple[Operation, Outcome]] = deque()
        self.commands: list[Command] = []
        self.read_facts: list[Mapping[str, float]] = []

    def clear(self) -> None:
        self.done.clear()
        self.commands.clear()
        self.read_facts.clear()

    def outcome(self, operation: Operation) -> Outcome:
        """What the operation answered, which must have been the next."""
        assert self.done, f"the table says {operation.value}, which the interpreter did not do"
        done, outcome = self.done.popleft()
        assert done is operation, f"the table says {operation.value}, and the interpreter did {done.value}"
        return self.hyper() if operation is Operation.FINISH else outcome

    def facts(self, needs: Any) -> Mapping[str, float]:
        """The facts that were measured, which must be those that somebody needs."""
        if not needs:
            return {}
        measured = self.read_facts.pop()
        assert measured.keys() <= needs, f"{set(measured)} were measured, but only {set(needs)} needed"
        return measured

    def carry_out(self, command: Command, state: State) -> None:
        self.commands.append(command)
        self.wrapped.carry_out(command, state)

    def read(self, names: Any, state: State) -> Mapping[str, float]:
        self.read_facts.append(self.wrapped.read(names, state))
        return self.read_facts[-1]

    def __getattr__(self, name: str) -> Any:
        found = super().__getattr__(name)
        if name not in _OPERATIONS:
            return found

        def done(*args: object) -> object:
            outcome = found(*args)
            self.done.append((_OPERATIONS[name], outcome))
            return outcome

        return done
