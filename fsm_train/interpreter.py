"""The interpreter: the one loop, in which pure and impure lines alternate.

measure → decide → do → record. It decides nothing itself: where to go stands in the table, what to
do in the answers of the callbacks. It knows no torch: what is done is done by the workload.
"""

from __future__ import annotations

import functools
import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from os import PathLike
from typing import TYPE_CHECKING, Any, cast

import attrs

from .core.callback import Callback, memory_classes
from .core.description import check_callbacks
from .core.errors import CallbackError
from .core.fuse import Way, ways
from .core.merge import consult, decide
from .core.phase import FINAL, MEASURES, Flag, Junction, Operation, Phase, Place
from .core.state import Counters, Plan, State, counters_of, failed, ready, state_at
from .core.table import ROWS, Effect, Outcome, Predicate, reads, with_metrics
from .core.values import NO_FACTS, Facts, FrozenMap, SavedMemory
from .core.workload import Workload
from .signals import interrupts
from .sinks.base import Sink
from .watch import Watch, Watched

if TYPE_CHECKING:
    from .eventlog.writer import EventLog

_logger = logging.getLogger("fsm_train")


def start(
    workload: Workload, *, epochs: int | None = None, max_steps: int | None = None, seed: int | None = None
) -> State:
    """The state of a training that has not begun.

    >>> from fsm_train.worlds.scripted import Scripted
    >>> state = start(Scripted(), epochs=3, seed=0)
    >>> state.phase, state.plan
    (<Phase.READY: 'ready'>, Plan(epochs=3, max_steps=None, seed=0))

    Args:
        workload: what is to be trained.
        epochs: passes over the training data.
        max_steps: optimizer steps; the training ends with whichever of the two is reached first.
        seed: seeds the generators of Python, NumPy and torch when the training begins; None
            leaves them as they are.

    Raises:
        ValueError: neither epochs nor max_steps is given, or one of the numbers makes no sense.
    """
    return State(
        Phase.READY,
        Plan(epochs, max_steps, seed),
        hyper=workload.hyper(),
        has_valid=workload.has_valid,
        workload=workload,
    )


def run(
    state: State,
    callbacks: Iterable[Callback[Any]] = (),
    *,
    log: EventLog | str | PathLike[str] | None = None,
    sinks: Iterable[Sink] = (),
) -> State:
    """Train, and return the last state.

    >>> from fsm_train.callbacks import early_stopping
    >>> from fsm_train.worlds.scripted import Scripted
    >>> work = Scripted(valid_loss=[1.0, 0.5, 0.75])
    >>> final = run(start(work, epochs=20), [early_stopping(patience=1)])
    >>> final.phase, final.epoch, final.metrics["valid_loss"]
    (<Phase.DONE: 'done'>, 3, 0.75)

    Args:
        state: from `start`, or one that an earlier `run` returned: a suspended training goes on
            where it was, a finished one if its plan is larger now (`extend`).
        callbacks: pure functions that decide what happens; their order does not matter.
        log: where to write the event log, or an `EventLog` with settings. A log that is there is
            continued: a training that goes on supersedes what comes after the point it goes on from.
        sinks: watch, and influence nothing.

    Returns:
        A state at DONE, or at SUSPENDED after SIGTERM, the first Ctrl-C or the flag SUSPEND. Its
        `notes` say what went wrong beside the training, such as a log that could not be written.

    Raises:
        CallbackError: a callback raised, or answered something that is no answer.
        ConflictError: two callbacks set a hyper-parameter to different values.
        Exception: what the model, the optimizer, the loss or the data raised, with a note that
            says when.
    """
    with interrupts(_workload_of(state)):
        (last,) = deque(iterate(state, callbacks, log=log, sinks=sinks), maxlen=1)
    return last


def evaluate(workload: Workload) -> Mapping[str, float]:
    """Validate once, and return the metrics: valid_loss, valid_accuracy, …

    The model is as before afterwards, module by module, and so are the random generators.

    >>> from fsm_train.worlds.scripted import Scripted
    >>> evaluate(Scripted(valid_loss=0.25, valid_accuracy=0.9))
    {'valid_loss': 0.25, 'valid_accuracy': 0.9}

    Raises:
        ValueError: the workload has no validation data.
    """
    if not workload.has_valid:
        raise ValueError("there is no validation data: give the workload some (valid=…)")
    state = attrs.evolve(start(workload, epochs=0), phase=Phase.VALID_BEGIN, workload=None)
    workload.open_valid(state)
    try:
        while workload.fetch_valid() is not None:
            workload.evaluate()
    except BaseException:
        workload.abandon(state)
        raise
    return FrozenMap(workload.measure_valid(state))


def iterate(
    state: State,
    callbacks: Iterable[Callback[Any]] = (),
    *,
    log: EventLog | str | PathLike[str] | None = None,
    sinks: Iterable[Sink] = (),
    at: Iterable[Phase] = (),
) -> Iterator[State]:
    """Train step by step: yield the state at each phase where a callback was consulted, and the last one.

    What `run` does, for a notebook or a loop of one's own, without touching signal handlers.
    Leaving the loop early ends the training as a failure does: TEARDOWN is consulted and what was
    put in place is undone.

    >>> from fsm_train.worlds.scripted import Scripted
    >>> for state in iterate(start(Scripted(), epochs=2), at=[Phase.EPOCH_END]):
    ...     print(state.phase.value, state.epoch)
    epoch_end 1
    epoch_end 2
    done 2

    Args:
        at: further phases to yield the state at.
    """
    work = _workload_of(state)
    watch = Watch(check_callbacks(callbacks), (*sinks, *_event_log(log)), tuple(at), work)
    state = _with_memories(ready(state), watch.callbacks)
    course = _Course(state, watch.wrap_workload(work, state), watch)
    try:
        watch.tell_all("open", course.state, watch.callbacks)
        while course.place not in FINAL:
            course.cross()
            if course.look():
                yield course.state
    except BaseException as error:
        course.fail(error)
        raise
    finally:
        watch.tell_all("close")
        course.let_go()
    elapsed = work.read({"elapsed"}, course.now()).get("elapsed", 0.0)
    yield attrs.evolve(course.now(), workload=work, elapsed=elapsed, notes=watch.notes(state.notes))


class _Bound:
    """A way through the table, with the methods of the workload that carry it out."""

    __slots__ = ("flags", "holds", "measures", "moves", "onward", "resumes", "target", "watched")

    def __init__(self, way: Way, course: _Course) -> None:
        self.holds: Predicate | None
        (self.holds,) = way.predicates or (None,)  # no row has more than one
        self.moves = [(op, course.method(op) if op else None, effect) for op, effect in way.moves]
        in_one_go = course.work.fused(tuple(op for op, _ in way.moves if op))
        if in_one_go is not None:
            effects = tuple(effect for _, effect in way.moves if effect)
            self.moves = [(way.moves[0][0], in_one_go, _all_effects(effects))]
        self.measures = next((op for op, _ in way.moves if op in MEASURES), None)
        self.flags = way.flags
        self.target = way.target
        self.resumes = way.target is Junction.RESUMED
        self.onward = course.onward[way.target]
        self.watched = course.watch.at.get(way.target)


class _Course:
    """Where a training is, and how it gets from there to the next place that somebody watches."""

    def __init__(self, state: State, work: Workload, watch: Watch) -> None:
        self.state = state  # the last one that was made; what changes from batch to batch is newer here:
        self.place: Place = state.phase
        self.flags = state.flags
        self.counters = counters_of(state)
        self.work = work
        self.watch = watch
        self.watched: Watched | None = None  # who watches this place
        self.onward: dict[Place, dict[Flag, list[_Bound]]] = {place: {} for place in ROWS}
        self.ahead = self.onward[self.place]  # the ways from this place, by the flags that are raised
        self.doing: Operation | None = None  # the operation under way

    def now(self, facts: Facts = NO_FACTS) -> State:
        """The state of this moment."""
        phase = self.place if isinstance(self.place, Phase) else self.state.phase
        return state_at(phase, self.counters, self.flags, facts, self.state)

    def method(self, operation: Operation) -> Callable[[], Outcome]:
        """The workload's method for this operation, given the state if it wants it."""
        method: Callable[..., Outcome] = getattr(self.work, operation.value)
        return (lambda: method(self.now())) if operation in self.work.informed else method

    def cross(self) -> None:
        """Go on as far as nobody watches and no counter decides: choose the way, and walk it."""
        if self.work.interrupt is not None and Flag.SUSPEND in reads(self.place):
            self.suspend()
        found = self.ahead.get(self.flags)
        if found is None:
            found = [_Bound(way, self) for way in ways(self.place, self.flags, self.watch.at.keys())]
            self.ahead[self.flags] = found
        counters = self.counters
        for way in found:  # the last one always holds
            if way.holds is None or way.holds(counters):
                break
        resume_at, outcome = counters.resume_at, None
        for self.doing, do, effect in way.moves:
            if do is not None:
                outcome = do()
            if effect is not None:
                effect(counters, outcome)
        self.doing = None
        self.place, self.flags, self.ahead, self.watched = way.target, way.flags, way.onward, way.watched
        if way.measures is not None:
            self.state = with_metrics(self.now(), way.measures, cast("Mapping[str, float]", outcome))
        elif way.resumes:
            assert resume_at is not None
            self.place, self.ahead = resume_at, self.onward[resume_at]  # as if never left: nobody is consulted

    def suspend(self) -> None:
        """Somebody outside asks to leave, here where the table lets one leave."""
        self.flags |= Flag.SUSPEND
        reason = "; ".join(filter(None, (self.state.reason, f"interrupted by {self.work.interrupt}")))
        self.state = attrs.evolve(self.state, reason=reason)
        self.work.interrupt = None

    def look(self) -> bool:
        """Where somebody watches: measure, decide, do, record. Whether a callback was consulted."""
        watched = self.watched
        if watched is None:
            return False
        callbacks, sinks, needs = watched.due(self.counters) if watched.selective else watched.everyone
        if not (callbacks or sinks or watched.yields):
            return False
        self.state = self.measured(needs)
        answers = consult(callbacks, self.state)
        if answers:
            self.state, decision = decide(self.state, answers, self.watch.positions)
            self.flags = self.state.flags
            if decision.hyper:
                self.work.set_hyper(decision.hyper)
            for command in decision.commands:
                self.work.carry_out(command, self.state)
                if command.changes_hyper:
                    self.state = attrs.evolve(self.state, hyper=self.work.hyper())
        for sink in sinks:
            sink.tell("see", self.state, {callback.name: answer for callback, answer in answers})
        return bool(callbacks) or watched.yields

    def measured(self, needs: Set[str]) -> State:
        """The state of this moment, with the facts that somebody needs."""
        if not needs:  # which is so where the training has ended: the last state has no facts, seen or not
            return self.now(NO_FACTS if self.place in FINAL else _only_the_size(self.counters.fetched))
        state = self.now(facts := Facts(batch_size=self.counters.fetched))
        dict.update(facts, self.work.read(needs, state))  # nobody else has them yet, and a state costs a microsecond
        return state

    def fail(self, error: BaseException) -> None:
        """Leave in good order: TEARDOWN is consulted, everything undone, and the error says where it was."""
        if not isinstance(error, (CallbackError, GeneratorExit)):
            error.add_note(_where(self.now(), self.work.doing or self.doing))
        torn_down, finished = self.place is Phase.TEARDOWN, self.doing is Operation.FINISH
        self.state = failed(self.now(), error)
        self.flags, self.counters = Flag.NONE, counters_of(self.state)
        leaving = (
            (Phase.TEARDOWN, self.look, torn_down),
            (Phase.TEARDOWN, self.cross, finished),
            (Phase.FAILED, self.look, False),
        )
        for self.place, leave, done in leaving:
            self.ahead, self.watched = self.onward[self.place], self.watch.at.get(self.place)
            try:
                if not done:
                    leave()
            except Exception as another:
                error.add_note(f"And while this training was torn down: {type(another).__name__}: {another}")

    def let_go(self) -> None:
        """Forget the ways, which hold on to this course and its workload: a model is to go with its last user."""
        for ways_by_flags in self.onward.values():
            ways_by_flags.clear()


def _workload_of(state: State) -> Workload:
    if state.workload is None:
        raise ValueError(
            "this state has no workload: a run begins with start(workload, …), or with what an earlier run returned"
        )
    return state.workload


def _event_log(log: EventLog | str | PathLike[str] | None) -> tuple[Sink, ...]:
    if log is None:
        return ()
    from .eventlog.writer import EventLog  # it brings structlog along, which a run without a log does without

    return (log if isinstance(log, EventLog) else EventLog(log),)


def _with_memories(state: State, callbacks: Sequence[Callback[Any]]) -> State:
    """The state with the initial memory of each callback that has none in it yet.

    Memories from a file are made again here, where their callbacks are known. Resuming with other
    callbacks than were saved is allowed, and said.
    """
    memory = {callback.name: state.memory.get(callback.name, callback.memory) for callback in callbacks}
    saved = {name for name, value in state.memory.items() if isinstance(value, SavedMemory)}
    if saved:
        afresh, left = sorted(memory.keys() - state.memory.keys()), sorted(saved - memory.keys())
        if afresh:
            _logger.warning("not in the checkpoint, begins with its initial memory: %s", ", ".join(afresh))
        if left:
            _logger.warning("in the checkpoint, but no callback of this run: %s", ", ".join(left))
    again = {
        c.name: m.decode_with(memory_classes(c)) for c in callbacks if isinstance(m := memory[c.name], SavedMemory)
    }
    return attrs.evolve(state, memory=FrozenMap({**state.memory, **memory, **again}))


@functools.lru_cache
def _only_the_size(samples: int) -> Facts:
    return Facts(batch_size=samples)


def _all_effects(effects: Sequence[Effect]) -> Effect:
    def effect(at: Counters, outcome: Outcome) -> None:
        for each in effects:
            each(at, outcome)

    return effect


def _where(state: State, doing: Operation | None) -> str:
    what = f"by {doing.value}, after {state.phase.value}" if doing else f"at {state.phase.value}"
    return (
        f"Raised {what} of epoch {state.epoch}, batch {state.batch}, step {state.step}. "
        "Model and optimizer are as this left them; start(workload, …) begins a new training with them."
    )
