"""The interpreter: the one loop, in which pure and impure lines alternate.

measure → decide → do → record. Rule of this file: it decides nothing itself. Where to go is in the table,
what to do in the answers of the callbacks, and what one call of `run` takes over from another in
`core/runs.py`. It knows no torch: what is done is done by the workload.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Set
from os import PathLike
from typing import TYPE_CHECKING, Any, cast

import attrs

from .callbacks.time_limit import with_time_limit
from .core.arguments import check_workload, takes_by_name
from .core.callback import Callback, as_phases
from .core.description import check_callbacks
from .core.errors import CallbackError
from .core.failing import Boundary, Failure, advice_on, after_failure, where
from .core.fuse import NOTHING_SETTLED, Path, all_effects, fused_paths
from .core.merge import consult, decide
from .core.phase import FINAL, Flag, Junction, Operation, Phase, Place
from .core.planned import schedule_notes
from .core.runs import failed, first_state, interrupted, ready, with_hyper, with_late_signal, with_memories
from .core.state import Draft, Plan, State, hyper_read, replaced
from .core.table import RESUMES_AT, ROWS, WITHOUT_TURNS, Outcome, Predicate, reads
from .core.transition import Command
from .core.turns import Players
from .core.under_way import hand_on, refuse_if_in_use, run_under_way
from .core.values import NO_FACTS, Facts, batch_size_alone
from .core.workload import Workload, workload_of
from .signals import interrupts, noted_outside
from .sinks.base import Sink, check_sinks
from .watch import Watch, Watched, of_rank

if TYPE_CHECKING:
    from .eventlog.writer import EventLog

_logger = logging.getLogger("fsm_train")


@takes_by_name
def start(
    workload: Workload,
    *,
    epochs: int | None = None,
    max_steps: int | None = None,
    seed: int | None = None,
    seconds: float | None = None,
) -> State:
    """The state of a training that has not begun.

    >>> from fsm_train.worlds.scripted import Scripted
    >>> start(Scripted(), epochs=3, seed=0).plan
    Plan(epochs=3, max_steps=None, seed=0)

    Args:
        workload: what is to be trained.
        epochs: passes over the training data.
        max_steps: optimizer steps; the training ends with whichever limit is reached first.
        seed: seeds the generators of Python, NumPy and torch at its begin; None leaves them as they are.
        seconds: of training, added up over calls of `run`; the batch under way is finished, and the epoch validated.

    Raises:
        TypeError, ValueError: it is no workload, no limit is given, or one of the numbers makes no sense.
    """
    check_workload(workload, "start({}, epochs=…)")
    return first_state(workload, Plan(epochs, max_steps, seed, seconds))


@takes_by_name
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
        state: from `start`, or one that an earlier `run` returned: a suspended training resumes
            where it was, a finished one if its plan is larger now (`extend`).
        callbacks: pure functions that decide what happens; their order does not matter.
        log: where to write the event log, or an `EventLog` with settings. A log that is there is
            continued: a training that resumes supersedes what comes after the point where it resumes.
        sinks: watch, and influence nothing.

    Returns:
        A state at DONE, or at SUSPENDED after SIGTERM, the first Ctrl-C or the flag SUSPEND. Its
        `notes` say what went wrong beside the training, such as a log that could not be written, or a signal
        that came too late. A signal that comes while another run is inside of this one (in a command, a metric,
        a sink) suspends both.

    Raises:
        TypeError: the state, a callback, a sink or the log is something else. The message shows the call to write.
        CallbackError: a callback raised, or answered something that is no answer.
        ConflictError: two callbacks set a hyper-parameter to different values.
        WorkloadError: another run of this workload is under way.
        Exception: what the model, the optimizer, the loss or the data raised, with a note that
            says when.
    """
    refuse_if_in_use(work := workload_of(state, "run"))
    with interrupts(work) as signals:
        (last,) = deque(_train(state, work, callbacks, log, sinks, ()), maxlen=1)
    return _with_late_signal(last, signals.too_late)


@takes_by_name
def iterate(
    state: State,
    callbacks: Iterable[Callback[Any]] = (),
    *,
    log: EventLog | str | PathLike[str] | None = None,
    sinks: Iterable[Sink] = (),
    at: Iterable[Phase] = (),
) -> Iterator[State]:
    """Train step by step: yield the state where a callback was consulted, at the phases in `at`, and the last one.

    What `run` does, for a notebook or a loop of one's own, without touching signal handlers.
    Leaving the loop early ends the training as a failure does: TEARDOWN is consulted and what was
    put in place is undone. Until then another run of this workload is refused; `evaluate` is not. A signal that
    a run in the body of the loop acts on suspends the loop too.

    >>> from fsm_train.worlds.scripted import Scripted
    >>> for state in iterate(start(Scripted(), epochs=2), at=[Phase.EPOCH_END]):
    ...     print(state.phase.value, state.epoch)
    epoch_end 1
    epoch_end 2
    done 2
    """
    refuse_if_in_use(work := workload_of(state, "iterate"))
    try:
        yield from _train(state, work, callbacks, log, sinks, at)
    finally:
        work.interrupt = None  # what was asked of this call is not asked of the next


def run_to_its_end(state: State, callbacks: Iterable[Callback[Any]]) -> State:
    """As `run`, for a training that is of no use if it is suspended: inside of a run, signals are for that one."""
    if not noted_outside():
        return run(state, callbacks)
    (last,) = deque(iterate(state, callbacks), maxlen=1)
    return last


def _train(
    state: State,
    work: Workload,
    callbacks: Iterable[Callback[Any]],
    log: EventLog | str | PathLike[str] | None,
    sinks: Iterable[Sink],
    at: Iterable[Phase],
) -> Iterator[State]:
    """What `iterate` says, with an interrupt left where it is if nothing could act on it."""
    callbacks = with_time_limit(check_callbacks(callbacks), state.plan)
    shared = work.across_ranks(callbacks)
    watch = Watch(callbacks, of_rank(shared.rank, check_sinks(sinks), log), as_phases(at), shared)
    state, warnings = with_memories(ready(state, watch.callbacks), watch.callbacks)
    state, changes = with_hyper(state, shared.hyper(), watch.callbacks)
    state = attrs.evolve(state, batches_per_epoch=getattr(shared, "batches_per_epoch", None))
    for warning in (*warnings, *changes, *schedule_notes(watch.callbacks, state, shared)):
        _logger.warning("%s", warning)
    with (
        run_under_way(work, lambda: cursor.place),
        shared.reserve(watch.folders),
        watch.wrapped(shared, state) as wrapped,
    ):
        cursor = _Cursor(state, wrapped, watch, work)
        try:
            watch.open_sinks(cursor.state)
            while cursor.place not in FINAL:
                cursor.cross()
                try:
                    looked = cursor.look()
                except BaseException:
                    cursor.deciding = True
                    raise
                if looked:
                    yield cursor.state
        except BaseException as error:
            cursor.fail(error)
            raise
        finally:
            cursor.drop_cached_paths()
            if shared.interrupt is not None:
                hand_on(work, shared.interrupt)
    elapsed = shared.read({"elapsed"}, cursor.now()).get("elapsed", 0.0)
    notes = watch.notes((*state.notes, *shared.notes))
    last = attrs.evolve(cursor.now(), workload=work, elapsed=elapsed, notes=notes)
    yield _with_late_signal(last, shared.interrupt)


def _with_late_signal(last: State, signal: str | None) -> State:
    noted = with_late_signal(last, signal)
    if noted.notes != last.notes:
        _logger.warning("%s", noted.notes[-1])
    return noted


class _BoundPath:
    """A path through the table, with the methods of the workload that carry it out."""

    __slots__ = (
        *("flags", "last_phase", "moves", "next_paths", "path", "predicate", "resumes", "target", "watched"),
        "leaves_boundary",
    )

    def __init__(self, path: Path, cursor: _Cursor) -> None:
        self.path = path
        self.predicate: Predicate | None
        (self.predicate,) = path.predicates or (None,)  # no row has more than one
        self.moves = [(op, cursor.method(op) if op else None, effect) for op, effect in path.moves]
        fused = cursor.work.fused(tuple(op for op, _ in path.moves if op))
        if fused is not None:
            effects = tuple(effect for _, effect in path.moves if effect)
            self.moves = [(path.moves[0][0], fused, all_effects(effects))]
        self.flags = path.flags
        self.target = path.target
        self.last_phase = next((e.target for e in reversed(path.edges) if isinstance(e.target, Phase)), None)
        self.resumes = path.target is Junction.RESUMED
        self.leaves_boundary = path.edges[0].source in RESUMES_AT
        self.next_paths = cursor.paths_by_place[path.target]
        self.watched = cursor.watch.at.get(path.target)


class _Cursor:
    """Where a training is, and how it advances to the next watched place.

    Attributes:
        state: the last one that was made. What changes from batch to batch is newer in the draft.
        place, flags: where the machine stands, and what is raised. They are newer here than in the draft.
        draft: all else; its phase is the last one that was passed.
        watched: the observers of this place; None if there are none.
        doing: the operation under way.
        passed: the last phase before an operation that failed.
        deciding: whether it failed while callbacks were consulted, or what they asked for was done.
        boundary, commands: the last place where the training could have been left, and what was carried out since.
    """

    def __init__(self, state: State, work: Workload, watch: Watch, unwrapped: Workload) -> None:
        self.work = work
        self.unwrapped = unwrapped
        self.watch = watch
        self.paths_by_place: dict[Place, dict[Flag, list[_BoundPath]]] = {place: {} for place in ROWS}
        self.state = state
        self.draft: Draft = state.draft()
        self.flags = state.flags
        self.doing: Operation | None = None
        self.passed: Phase | None = None
        self.deciding = False
        self.boundary: tuple[State, Flag, int, bool, Players] | None = None
        self.commands: list[Command] = []
        self.stand_at(state.phase)

    def stand_at(self, place: Place) -> None:
        self.place = place
        self.watched: Watched | None = self.watch.at.get(place)
        self.paths_here = self.paths_by_place[place]  # the paths from this place, by the flags that are raised

    def now(self, facts: Facts = NO_FACTS) -> State:
        """The state of this moment."""
        phase = self.place if isinstance(self.place, Phase) else self.draft.phase
        return self.draft.state(phase, self.flags, facts)

    def take_over(self, state: State) -> None:
        """Continue from this state, which a pure function made of the one before."""
        self.state, self.flags, self.draft = state, state.flags, state.draft()

    def method(self, operation: Operation) -> Callable[[], Outcome]:
        """The workload's method for this operation, given the state if it wants it."""
        if operation is Operation.FINISH:
            return self.finish
        method: Callable[..., Outcome] = getattr(self.work, operation.value)
        return (lambda: method(self.now())) if operation in self.work.informed else method

    def finish(self) -> Outcome:
        """Finish; the hyper-parameters are the outcome, since the optimizer may have changed them itself."""
        self.work.finish(self.now())
        return hyper_read(self.draft.hyper, self.work.hyper())

    def cross(self) -> None:
        """Advance to the next watched place, or to the next branch that depends on the state."""
        if self.work.interrupt is not None and Flag.SUSPEND in reads(self.place):
            self.take_over(interrupted(self.now(), self.work.interrupt))
            hand_on(self.unwrapped, self.work.interrupt)
            self.work.interrupt = None
        draft = self.draft
        paths = self.paths_here.get(self.flags)
        if paths is None:
            settled = NOTHING_SETTLED if draft.players else WITHOUT_TURNS
            found = fused_paths(self.place, self.flags, self.watch.at.keys(), settled)
            self.paths_here[self.flags] = paths = [_BoundPath(path, self) for path in found]
        for path in paths:  # the last one always holds
            if path.predicate is None or path.predicate(draft):
                break
        resume_at = draft.resume_at
        if path.leaves_boundary:
            self.boundary = self.state, self.flags, draft.pending, draft.batches_over, draft.players
            if self.commands:
                self.commands.clear()
        try:
            for self.doing, do, effect in path.moves:
                outcome = None if do is None else do()
                if effect is not None:
                    effect(draft, outcome)
        except BaseException:
            self.doing = self.work.doing or self.doing
            self.passed = path.path.phase_before(self.doing) or draft.phase
            raise
        self.doing = None
        if path.last_phase is not None:
            draft.phase = path.last_phase
        self.place, self.flags, self.paths_here, self.watched = path.target, path.flags, path.next_paths, path.watched
        if path.resumes:
            assert resume_at is not None
            self.stand_at(resume_at)
            self.watched = None  # as if never left: no callback is consulted

    def look(self) -> bool:
        """At a watched place: measure, decide, do, record. Returns whether a callback was consulted."""
        watched = self.watched
        if watched is None:
            return False
        callbacks, sinks, needs = watched.due(self.draft) if watched.selective else watched.callbacks_only
        if not (callbacks or sinks or watched.yields):
            return False
        self.state = self.measured(needs)
        answers = consult(callbacks, self.state)
        if answers:
            before, (state, decision) = self.state, decide(self.state, answers, self.watch.positions)
            if state is not before:
                draft = self.draft
                self.state, self.flags = state, state.flags
                draft.hyper, draft.memory, draft.reason = state.hyper, state.memory, state.reason
            if decision.hyper:
                self.work.set_hyper(decision.hyper)
            for command in decision.commands:
                self.commands.append(command)
                self.work.carry_out(command, self.state)
                if command.changes_hyper is not False:
                    self.draft.hyper = hyper_read(self.state.hyper, self.work.hyper())
                    self.state = replaced(self.state, {"hyper": self.draft.hyper})
        for sink in sinks:
            sink.tell("see", self.state, {callback.name: answer for callback, answer in answers})
        return bool(callbacks) or watched.yields

    def measured(self, needs: Set[str]) -> State:
        """The state of this moment, with the facts that observers need."""
        phase = cast("Phase", self.place)  # a junction has no observers
        if not needs:  # which is so where the training has ended: the last state has no facts, watched or not
            facts = NO_FACTS if phase in FINAL else batch_size_alone(self.draft.fetched)
            return self.draft.state(phase, self.flags, facts)
        state = self.draft.state(phase, self.flags, facts := Facts(batch_size=self.draft.fetched))
        # No one else has them yet, and a second state would cost a microsecond.
        dict.update(facts, self.work.read(needs, state))
        return state

    def fail(self, error: BaseException) -> None:
        """Leave in good order: tear down as the table says, and let the error say where it was."""
        if not isinstance(error, (CallbackError, GeneratorExit)):
            error.add_note(where(self.now(), self.doing, self.passed) + advice_on(error, self.doing))
        place: Place
        place, looks = after_failure(self.place, self.doing)
        self.take_over(failed(now := self.now(), error, self.failure(now)))
        while True:
            self.stand_at(place)
            try:
                if looks:
                    self.look()
                if self.place in FINAL:
                    return
                self.cross()
                place, looks = self.place, True
            except Exception as another:
                error.add_note(f"And while this training was torn down: {type(another).__name__}: {another}")
                place, looks = after_failure(self.place, self.doing)

    def failure(self, now: State) -> Failure:
        """Where this failed."""
        boundary = Boundary(*self.boundary) if self.boundary else None
        phase = (self.passed if self.doing else None) or now.phase
        return Failure(phase, self.doing, self.deciding, now, boundary, tuple(self.commands))

    def drop_cached_paths(self) -> None:
        """Forget the paths: they reference the workload, and would keep the model alive."""
        for paths in self.paths_by_place.values():
            paths.clear()
