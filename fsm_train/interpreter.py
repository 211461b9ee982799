"""The interpreter: how a call of `run` or `iterate` begins and ends. The loop in it is `Cursor.walk`, in `cursor.py`.

Rule of this file: it decides nothing itself. What one call of `run` takes over from another is in `core/runs.py`.
It knows no torch: what is done is done by the workload.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterable, Iterator
from os import PathLike
from typing import TYPE_CHECKING, Any

from .callbacks.time_limit import with_time_limit
from .core.arguments import check_workload, takes_by_name
from .core.callback import Callback, as_phases
from .core.description import check_callbacks
from .core.phase import Phase
from .core.planned import schedule_notes
from .core.runs import first_state, ready, with_hyper, with_late_signal, with_memories
from .core.state import Plan, State, replaced
from .core.under_way import hand_on, refuse_if_in_use, run_under_way
from .core.workload import Workload, workload_of
from .cursor import Cursor
from .signals import interrupts, noted_outside
from .sinks.base import Sink, check_sinks
from .watch import Watch, of_rank

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
        (last,) = _train(state, work, callbacks, log, sinks, (), stepwise=False)
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
        yield from _train(state, work, callbacks, log, sinks, at, stepwise=True)
    finally:
        work.interrupt = None  # what was asked of this call is not asked of the next


def run_to_its_end(state: State, callbacks: Iterable[Callback[Any]]) -> State:
    """As `run`, for a training that is of no use if it is suspended: inside of a run, signals are for that one."""
    if not noted_outside():
        return run(state, callbacks)
    (last,) = deque(iterate(state, callbacks), maxlen=1)
    return last


def run_without_signals(state: State, callbacks: Iterable[Callback[Any]], sinks: Iterable[Sink]) -> State:
    """As `run`, of a world that no signal is for. A sink can raise GeneratorExit, as leaving `iterate` does."""
    work = workload_of(state, "run")
    refuse_if_in_use(work)
    try:
        (last,) = _train(state, work, callbacks, None, sinks, (), stepwise=False)
    finally:
        work.interrupt = None
    return last


def _train(
    state: State,
    work: Workload,
    callbacks: Iterable[Callback[Any]],
    log: EventLog | str | PathLike[str] | None,
    sinks: Iterable[Sink],
    at: Iterable[Phase],
    *,
    stepwise: bool,
) -> Iterator[State]:
    """What `iterate` says, with an interrupt left where it is if nothing could act on it.

    Without `stepwise`, only the last state is yielded.
    """
    callbacks = with_time_limit(check_callbacks(callbacks), state.plan)
    shared = work.across_ranks(callbacks)
    watch = Watch(callbacks, of_rank(shared.rank, check_sinks(sinks), log), as_phases(at), shared)
    state, warnings = with_memories(ready(state, watch.callbacks), watch.callbacks)
    state, changes = with_hyper(state, shared.hyper(), watch.callbacks)
    state = replaced(state, {"batches_per_epoch": getattr(shared, "batches_per_epoch", None)})
    for warning in (*warnings, *changes, *schedule_notes(watch.callbacks, state, shared)):
        _logger.warning("%s", warning)
    cursor: Cursor | None = None
    with (
        run_under_way(work, lambda: cursor.place if cursor else None, lambda: cursor.now() if cursor else None),
        shared.reserve(watch.folders),
        watch.wrapped(shared, state) as wrapped,
    ):
        cursor = Cursor(state, wrapped, watch, work)
        try:
            watch.open_sinks(cursor.state)
            while cursor.walk(stepwise):
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
    last = replaced(cursor.now(), {"workload": work, "elapsed": elapsed, "notes": notes})
    yield _with_late_signal(last, shared.interrupt)


def _with_late_signal(last: State, signal: str | None) -> State:
    noted = with_late_signal(last, signal)
    if noted.notes != last.notes:
        _logger.warning("%s", noted.notes[-1])
    return noted
