"""Limits that are known beforehand: how long to train, how often to validate, what to record."""

from __future__ import annotations

import math

from ..core.callback import Callback, on, strict_factory
from ..core.checks import check_bool, check_count, check_number, check_positive_or_inf
from ..core.facts import asked_at
from ..core.phase import Flag, Junction, Phase
from ..core.state import State
from ..core.transition import Transition
from .directions import Direction
from .monitoring import check_monitor, checked, checked_at, infers_mode, short
from .players import player_factory


@infers_mode
@strict_factory
def stop_at(monitor: str, target: float, *, mode: Direction | None = None, name: str = "stop_at") -> Callback[None]:
    """Stop the training when a metric has reached its target.

    Each measurement is one check: a `valid_…` at VALID_END, in the middle of an epoch as well, another
    metric at EPOCH_END. An epoch without a measurement is no check.

    >>> from fsm_train.testing import simulate
    >>> simulate([stop_at("valid_accuracy", 0.98)], valid_accuracy=[0.9, 0.985, 0.99]).reason
    'stop_at: valid_accuracy is 0.985, the target was 0.98'

    Args:
        monitor: the metric to watch.
        target: the value to reach.
        mode: "min" if smaller is better, "max" if larger is. None finds it out by the name (…loss, …error,
            …accuracy, …f1, …) and refuses a name that does not say it.

    Raises:
        ValueError: the direction is not known; or, before the first batch, there will be no such metric.
    """
    check_monitor(monitor, mode)
    check_number("target", target, lambda x: x <= math.inf, "a target is a number")

    @on(*checked_at(monitor), raises=Flag.STOP_TRAINING, monitors={monitor})
    def stop_at(state: State) -> Transition | None:
        value = checked(state, monitor)
        if value is None or not (value <= target if mode == "min" else value >= target):
            return None
        return Transition(
            flags=Flag.STOP_TRAINING, reason=f"{monitor} is {short(value)}, the target was {short(target)}"
        )

    return stop_at


@player_factory
def stop_after(
    *, steps: int | None = None, seconds: float | None = None, player: str | None = None, name: str = "stop_after"
) -> Callback[None]:
    """Stop the training after a number of optimizer steps, or of seconds.

    Steps are counted at STEP_END, that of a leftover window included (and at TRAIN_BEGIN, for a
    training that is extended). Seconds are checked at BATCH_END and EPOCH_END; they are seconds of
    training, summed over the calls of `run`.

    >>> from fsm_train.testing import simulate
    >>> simulate([stop_after(steps=3)], epochs=9).reason
    'stop_after: 3 steps were taken'

    Args:
        steps: optimizer steps.
        seconds: of training.
        player: in a training with turns, the player that it is for; None for all.
    """
    if steps is None and seconds is None:
        raise ValueError("stop_after what? give steps=, seconds=, or both")
    phases: tuple[Phase, ...] = ()
    if steps is not None:
        check_count("steps", steps, least=1)
        phases += (Phase.TRAIN_BEGIN, Phase.STEP_END)
    if seconds is not None:
        check_positive_or_inf("seconds", seconds)
        phases += (Phase.BATCH_END, Phase.EPOCH_END)
    needs = () if seconds is None else {"elapsed"}

    @on(*phases, needs=needs, raises=Flag.STOP_TRAINING)
    def stop_after(state: State) -> Transition | None:
        if steps is not None and state.step >= steps:
            return Transition(flags=Flag.STOP_TRAINING, reason=f"{state.step} steps were taken")
        if seconds is not None and state.facts["elapsed"] >= seconds:
            return Transition(flags=Flag.STOP_TRAINING, reason=f"{short(state.facts['elapsed'])} seconds are over")
        return None

    return stop_after


@strict_factory
def suspend_after(*, seconds: float, name: str = "suspend_after") -> Callback[float | tuple[float, int]]:
    """Suspend the training when this call of `run` has taken `seconds`: for time slices of a job scheduler.

    At SETUP, where the clock of this call starts, and at BATCH_END and VALID_BATCH_END. A validation that is suspended
    starts again from its first batch. It is suspended once: a call that begins with it lets it finish, so that slices
    that are shorter than a validation get on, and suspends at the next BATCH_END.

    >>> from fsm_train.testing import simulate
    >>> final = simulate([suspend_after(seconds=60)], batches=9, elapsed=lambda state: 25.0 * state.iteration)
    >>> final.iteration, final.reason
    (3, 'suspend_after: 75.0 seconds are over')

    Args:
        seconds: since the call of `run` began.
    """
    check_positive_or_inf("seconds", seconds)

    begins: float | tuple[float, int] = 0.0

    @on(
        *(Phase.SETUP, Phase.BATCH_END, Phase.VALID_BATCH_END),
        memory=begins,
        needs={"elapsed"},
        raises=Flag.SUSPEND,
    )
    def suspend_after(state: State, clock: float | tuple[float, int]) -> Transition | None:
        elapsed = state.facts["elapsed"]
        if state.phase is Phase.SETUP:
            starts_again = state.resume_at is Junction.VALID_ABANDONED
            return Transition(memory=(elapsed, state.iteration) if starts_again else elapsed)
        since, to_finish = clock if isinstance(clock, tuple) else (clock, None)
        if elapsed - since < seconds or (state.phase is Phase.VALID_BATCH_END and state.iteration == to_finish):
            return None
        return Transition(flags=Flag.SUSPEND, reason=f"{short(elapsed - since)} seconds are over")

    return suspend_after


@player_factory
def validate_every(
    *, steps: int, first: bool = False, player: str | None = None, name: str = "validate_every"
) -> Callback[int]:
    """Validate every `steps` optimizer steps, also in the middle of an epoch.

    At BATCH_END, and with `first` at TRAIN_BEGIN. The validation at the end of an epoch counts too: no weights are
    validated twice.

    >>> from fsm_train.testing import simulate
    >>> final = simulate([validate_every(steps=4)], batches=8, epochs=1, valid_loss=[3.0, 2.0])
    >>> final.metrics["valid_loss"]  # after steps 4 and 8; the end of the epoch needs no third time
    2.0

    Args:
        steps: optimizer steps from one validation to the next.
        first: whether to validate before the first step too.
        player: in a training with turns, the player that it is for; None for all.
    """
    check_count("steps", steps, least=1)
    check_bool("first", first)
    begin = (Phase.TRAIN_BEGIN,) if first else ()

    @on(*begin, Phase.BATCH_END, Phase.VALID_END, memory=0, raises=Flag.VALIDATE)
    def validate_every(state: State, times: int) -> Transition | None:
        if state.phase is Phase.TRAIN_BEGIN:  # comes again in a training that is extended
            return Transition(flags=Flag.VALIDATE) if state.iteration == 0 else None
        if state.step // steps <= times:
            return None
        flags = Flag.VALIDATE if state.phase is Phase.BATCH_END else Flag.NONE
        return Transition(flags=flags, memory=state.step // steps)

    return validate_every


@strict_factory
def limit(*, batches: int | None = None, valid_batches: int | None = None, name: str = "limit") -> Callback[None]:
    """End each epoch, and each validation, after a number of batches.

    At BATCH_END and VALID_BATCH_END. For a dry run of everything: `limit(batches=2, valid_batches=2)`
    and epochs=1.

    >>> from fsm_train.testing import simulate
    >>> simulate([limit(batches=2)], batches=100, epochs=3).iteration
    6

    Args:
        batches: training batches per epoch.
        valid_batches: batches per validation. Of several evaluations it ends all that are still to come in it.
    """
    for setting, most in (("batches", batches), ("valid_batches", valid_batches)):
        if most is not None:
            check_count(setting, most, least=1)
    limits = {
        phase: (most, flag)
        for phase, most, flag in (
            (Phase.BATCH_END, batches, Flag.STOP_EPOCH),
            (Phase.VALID_BATCH_END, valid_batches, Flag.STOP_VALID),
        )
        if most is not None
    }
    if not limits:
        raise ValueError("limit what? give batches=, valid_batches=, or both")

    @on(*limits, raises=Flag.STOP_EPOCH | Flag.STOP_VALID)
    def limit(state: State) -> Transition | None:
        most, flag = limits[state.phase]
        done = state.batch if state.phase is Phase.BATCH_END else state.valid_batch
        return Transition(flags=flag) if done >= most else None

    return limit


@player_factory
def record(*facts: str, every: int = 1, player: str | None = None, name: str = "record") -> Callback[None]:
    """Ask for facts, so that the log holds them; decide nothing.

    At BATCH_END, where asking does not interrupt a step; but grad_norm at STEP_BEGIN and stepped at
    STEP_END, the only phases at which they are known.

    >>> record("loss", "grad_norm", every=50).at
    (<Phase.STEP_BEGIN: 'step_begin'>, <Phase.BATCH_END: 'batch_end'>)

    Args:
        *facts: the names of facts.
        every: ask only at multiples of this number of batches.
        player: in a training with turns, the player that it is for; None for all.
    """
    if not all(isinstance(fact, str) for fact in facts):
        raise TypeError(f"facts={facts!r}: give the names one by one, as in record('loss', …)")
    if not facts:
        raise ValueError("record what? for example record('loss')")
    check_count("every", every, least=1)
    phases = sorted({asked_at(fact) for fact in facts}, key=list(Phase).index)

    @on(*phases, needs=facts, every=every, reads=())
    def record(state: State) -> None:
        return None

    return record
