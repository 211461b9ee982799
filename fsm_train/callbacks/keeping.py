"""Which weights to keep: the best in memory, and checkpoints on disk.

Rule of this file: which checkpoint is written, and which are dropped, is decided here, by pure functions.
"""

from __future__ import annotations

import math
from os import PathLike, fspath

import attrs

from ..core.callback import Callback, on, strict_factory
from ..core.checks import check_count, check_positive_or_inf
from ..core.commands import KeepWeights, NoteBatchStarts, RestoreWeights, SaveCheckpoint
from ..core.phase import Phase
from ..core.state import State
from ..core.transition import Transition
from .directions import Direction
from .monitoring import check_monitor, checked_at, infers_mode, is_better, monitored, short


@infers_mode
@strict_factory
def restore_best(
    monitor: str = "valid_loss", *, mode: Direction | None = None, min_delta: float = 0.0, name: str = "restore_best"
) -> Callback[float | None]:
    """End the training with the weights that had the best metric.

    Weights, and averages of them if there are any, are copied where the metric is measured (a `valid_…` at
    VALID_END, in the middle of an epoch as well, another one at EPOCH_END) when it is better than before, and
    put back at TRAIN_END. A value that is not finite is never the best. A loss that is a module is put back too,
    and buffers outside the state_dict. A command that changes the structure of the model is an error then,
    unless the copies can follow it, as they follow torch.nn.utils.prune.

    >>> from fsm_train import Phase
    >>> from fsm_train.testing import at, drive
    >>> curve = [at(Phase.VALID_END, valid_loss=loss) for loss in (2.0, 1.0, 1.5)]
    >>> [len(answer.commands) for answer in drive(restore_best(), curve)]
    [1, 1, 0]

    Args:
        monitor: the metric to watch.
        mode: "min" if smaller is better, "max" if larger is. None finds it out by the name (…loss, …error,
            …accuracy, …f1, …) and refuses a name that does not say it.
        min_delta: how much better a value must be to count, in the metric's own unit.
        name: of the callback, and of the weights that it keeps.

    Raises:
        ValueError: the direction is not known; or, before the first batch, there will be no such metric.
    """
    check_monitor(monitor, mode, min_delta)
    never: float | None = None

    @on(
        *(*checked_at(monitor), Phase.TRAIN_END),
        memory=never,
        order=10,  # after the commands of others, so that what they change is in the copy
        commands={KeepWeights, RestoreWeights},
        monitors={monitor},
    )
    def restore_best(state: State, best: float | None) -> Transition | None:
        if state.phase is Phase.TRAIN_END:
            if best is None:
                return None
            return Transition(commands=(RestoreWeights(name),), reason=f"{monitor} was {short(best)}")
        value = monitored(state, monitor)
        if value is None or not is_better(value, best, mode, min_delta):
            return None
        return Transition(commands=(KeepWeights(name),), memory=value)

    return restore_best


@attrs.frozen
class Kept:
    """The checkpoints that there are. Logs and checkpoints hold this record under its class's name.

    Attributes:
        files: each with its name and score, in the order in which they were written.
        steps: how many times `every_steps` had passed at the last save.
        seconds: of training, at the last save.
    """

    files: tuple[tuple[str, float], ...] = ()
    steps: int = 0
    seconds: float = 0.0


@infers_mode
@strict_factory
def checkpoint(
    folder: str | PathLike[str],
    *,
    every_epochs: int | None = 1,
    every_steps: int | None = None,
    every_seconds: float | None = None,
    monitor: str | None = None,
    mode: Direction | None = None,
    keep: int = 3,
    on_failure: bool = False,
    name: str = "checkpoint",
) -> Callback[Kept]:
    """Write checkpoints into a folder, and keep the best or the last of them.

    Without a monitor: at EPOCH_END every `every_epochs`, of which the last `keep` stay.

    With a monitor: where it is measured, so that the weights in a checkpoint are those that had the score. That
    is VALID_END for a `valid_…`, in the middle of an epoch as well, and EPOCH_END for others (and for a `valid_…` that
    a workload of one's own measures then). The best `keep`
    stay: once there are `keep`, another is written only if it is strictly better than the worst, which is
    dropped. A metric that is not finite counts as the worst; an epoch without a measurement has no checkpoint.
    `load_weights` loads the best, with the weights that had the metric, such as the average of `ema`.

    In addition at BATCH_END every `every_steps` or `every_seconds`, and always at SUSPEND: these serve to
    resume from, and each is dropped when the next checkpoint is written. So does the one at TEARDOWN of a training
    that failed (`on_failure`), which resumes at the end of its last whole batch, and drops no other. The weights
    are saved as the failure left them; the notes of the restored state say what is not exactly as it was.

    >>> from fsm_train import Phase
    >>> from fsm_train.testing import at, drive
    >>> losses = enumerate((2.0, 1.0, 3.0))
    >>> curve = [at(Phase.VALID_END, epoch=i, batches_over=True, valid_loss=loss) for i, loss in losses]
    >>> for answer in drive(checkpoint("runs", monitor="valid_loss", keep=1), curve):
    ...     print([(command.name, command.drop) for command in answer.commands])
    [('epoch-00001', ())]
    [('epoch-00002', ('epoch-00001',))]
    []

    Args:
        folder: where they are written; made if it is not there.
        every_epochs: epochs from one checkpoint to the next; None for none at the end of epochs. With a
            monitor, what is measured in other epochs is passed over; None passes over nothing.
        every_steps: optimizer steps from one further checkpoint to the next.
        every_seconds: seconds of training from the last checkpoint to a further one.
        monitor: the metric by which checkpoints are ranked.
        mode: "min" if smaller is better, "max" if larger is. None finds it out by the name (…loss, …error,
            …accuracy, …f1, …) and refuses a name that does not say it.
        keep: the number of checkpoints that stay, beside one to resume from.
        on_failure: whether to write one when the training fails, or a loop over `iterate` is left early. The random
            generators are noted before each batch for it, which takes some tens of microseconds.

    Raises:
        ValueError: the direction is not known; or, before the first batch, there will be no such metric.
    """
    for setting, value in (("every_epochs", every_epochs), ("every_steps", every_steps), ("keep", keep)):
        if value is not None:
            check_count(setting, value, least=1)
    if every_seconds is not None:
        check_positive_or_inf("every_seconds", every_seconds)
    if every_epochs is None and every_steps is None and every_seconds is None:
        raise ValueError("checkpoint when? give every_epochs, every_steps, or every_seconds")
    if monitor is not None or mode is not None:
        check_monitor("valid_loss" if monitor is None else monitor, mode)
    folder = fspath(folder)
    phases = [*(checked_at(monitor) if monitor else (Phase.EPOCH_END,)), Phase.SUSPEND]
    if every_steps is not None or every_seconds is not None:
        phases.append(Phase.BATCH_END)
    if on_failure:
        phases += [Phase.SETUP, Phase.TEARDOWN]

    @on(
        *phases,
        memory=Kept(),
        needs=() if every_seconds is None else {"elapsed"},
        commands={SaveCheckpoint, NoteBatchStarts} if on_failure else {SaveCheckpoint},
        monitors=() if monitor is None else {monitor},
    )
    def checkpoint(state: State, saved: Kept) -> Transition | None:
        if state.phase is Phase.SETUP:
            return Transition(commands=(NoteBatchStarts(),))
        if state.phase is Phase.TEARDOWN and not (state.error and state.iteration):
            return None
        seconds = 0.0 if every_seconds is None else state.facts["elapsed"]
        steps, ranked_by = saved.steps, None
        if state.phase in (Phase.VALID_END, Phase.EPOCH_END):
            candidate = _candidate(state, monitor, mode, every_epochs)
            if candidate is None:
                return None
            (file, score), ranked_by = candidate, monitor
            drop = _to_drop(score, saved.files, keep, ranked=monitor is not None)
            if drop is None or (state.phase is Phase.VALID_END and candidate in saved.files):
                return None
        elif state.phase in (Phase.SUSPEND, Phase.TEARDOWN):
            why = "suspended" if state.phase is Phase.SUSPEND else "failed"
            file, score, drop = f"step-{state.step:08d}-{why}", -math.inf, ()
        else:
            steps = 0 if every_steps is None else state.step // every_steps
            if steps <= saved.steps and (every_seconds is None or seconds - saved.seconds < every_seconds):
                return None
            file, score, drop = f"step-{state.step:08d}", -math.inf, ()
        if state.phase is not Phase.TEARDOWN:  # what a failure left may be worth less than what is there
            drop = (*(other for other, _ in saved.files if other.startswith("step") and other != file), *drop)
        others = tuple((other, its_score) for other, its_score in saved.files if other not in (file, *drop))
        return Transition(
            commands=(SaveCheckpoint(folder, file, drop, ranked_by, mode or "min"),),
            memory=Kept((*others, (file, score)), steps, seconds),
        )

    return checkpoint


def _candidate(
    state: State, monitor: str | None, mode: Direction | None, every_epochs: int | None
) -> tuple[str, float] | None:
    """The name and the score of a checkpoint at this measurement or end of an epoch; None if none is due.

    A larger score is better, and -inf is the worst.
    """
    within = state.phase is Phase.VALID_END
    epoch = state.epoch + within  # the epoch under way, counted from 1
    if epoch % (every_epochs or 1) or (every_epochs is None and monitor is None):
        return None
    name = (
        f"epoch-{state.epoch:05d}-step-{state.step:08d}" if within and not state.batches_over else f"epoch-{epoch:05d}"
    )
    if monitor is None:
        return name, 0.0
    value = monitored(state, monitor)
    if value is None:
        return None
    if not math.isfinite(value):
        return name, -math.inf
    return name, -value if mode == "min" else value


def _to_drop(score: float, files: tuple[tuple[str, float], ...], keep: int, *, ranked: bool) -> tuple[str, ...] | None:
    """The checkpoints of epochs to drop for one with this score; None if that one is not to be written."""
    epochs = [file for file in files if file[0].startswith("epoch")]
    if len(epochs) < keep:
        return ()
    # Of several that are equally bad, `min` takes the oldest.
    worst = min(epochs, key=lambda file: file[1]) if ranked else epochs[0]
    return None if ranked and not score > worst[1] else (worst[0],)
