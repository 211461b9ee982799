"""Which weights to keep: the best in memory, and checkpoints on disk.

Rule of this file: which checkpoint is written, and which are dropped, is decided here, by pure functions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from os import PathLike

import attrs

from ..core.arguments import check_path
from ..core.callback import Callback, on, strict_factory
from ..core.checks import check_bool, check_count, check_folder, check_positive_or_inf
from ..core.commands import KeepWeights, NoteBatchStarts, RestoreWeights, SaveCheckpoint
from ..core.facts import UNDER_WAY, UNSAVED
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
        before: the files before the last save, which are those that there are if it failed; None once that is known.
    """

    files: tuple[tuple[str, float], ...] = ()
    steps: int = 0
    seconds: float = 0.0
    before: tuple[tuple[str, float], ...] | None = None


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
    last: int = 2,
    on_failure: bool = False,
    beside: bool = False,
    name: str = "checkpoint",
) -> Callback[Kept]:
    """Write checkpoints into a folder, and keep the best or the last of them.

    Without a monitor: at EPOCH_END every `every_epochs`, of which the last `keep` stay.

    With a monitor: where it is measured, so that the weights in a checkpoint are those that had the score. That
    is VALID_END for a `valid_…`, in the middle of an epoch as well, and EPOCH_END for others (and for a `valid_…` that
    a workload of one's own measures then). The best `keep` stay, which are called epoch-…; one that is not strictly
    better than the worst of them is written to resume from, as step-…. A metric that is not finite counts as the
    worst; an epoch without a measurement has no checkpoint. `load_weights` loads the best, with the weights that had
    the metric, such as the average of `ema`.

    In addition at BATCH_END every `every_steps` or `every_seconds`, always at SUSPEND, and at TEARDOWN of a training
    that failed (`on_failure`), which resumes at the end of its last whole batch: the weights are saved as the failure
    left them, and the notes of the restored state say what is not exactly as it was.

    Whatever they were written for, the newest `last` stay, so that the training can be resumed from nearby even if a
    file is damaged: one such callback keeps the best and the last. One of a failure replaces no other. A save that
    fails is a warning and a note on the last state; what it would have replaced stays.

    >>> from fsm_train import Phase
    >>> from fsm_train.testing import at, drive
    >>> losses = enumerate((2.0, 1.0, 3.0, 4.0))
    >>> curve = [at(Phase.VALID_END, epoch=i, step=i, batches_over=True, valid_loss=loss) for i, loss in losses]
    >>> for answer in drive(checkpoint("runs", monitor="valid_loss", keep=1), curve):
    ...     print([(command.name, command.drop) for command in answer.commands])
    [('epoch-00001', ())]
    [('epoch-00002', ())]
    [('step-00000002', ('epoch-00001',))]
    [('step-00000003', ())]

    Args:
        folder: where they are written; made if it is not there. A run locks it, and is refused while another writes
            to it.
        every_epochs: epochs from one checkpoint to the next; None for none at the end of epochs. With a
            monitor, what is measured in other epochs is passed over; None passes over nothing.
        every_steps: optimizer steps from one further checkpoint to the next.
        every_seconds: seconds of training from the last checkpoint to a further one.
        monitor: the metric by which checkpoints are ranked.
        mode: "min" if smaller is better, "max" if larger is. None finds it out by the name (…loss, …error,
            …accuracy, …f1, …) and refuses a name that does not say it.
        keep: how many of the best stay, or without a monitor of the last epochs.
        last: how many of the newest stay in any case. With 0 only those stay to resume from that are between epochs,
            until the next is written, and with a monitor nothing but the best is written.
        on_failure: whether to write one when the training fails, or a loop over `iterate` is left early. The random
            generators are noted before each batch for it, which takes some tens of microseconds. Several ranks, which
            no longer meet then, write none.
        beside: whether they are written beside the training, of copies of all tensors, which take their memory once
            more meanwhile. A crash before the end of that leaves those that were there. One that is due at BATCH_END
            while the last one is not on disk yet is written as soon as that is. Where the training is suspended or
            fails, it is not left before all is on disk.
        name: of the callback.

    Raises:
        ValueError: the direction is not known, or the folder cannot be one; or, before the first batch, there will be
            no such metric, or another callback writes to this folder.
    """
    for setting, value, least in (
        ("every_epochs", every_epochs, 1),
        ("every_steps", every_steps, 1),
        ("keep", keep, 1),
        ("last", last, 0),
    ):
        if value is not None:
            check_count(setting, value, least=least)
    check_bool("on_failure", on_failure)
    check_bool("beside", beside)
    if every_seconds is not None:
        check_positive_or_inf("every_seconds", every_seconds)
    if every_epochs is None and every_steps is None and every_seconds is None:
        raise ValueError("checkpoint when? give every_epochs, every_steps, or every_seconds")
    if monitor is not None or mode is not None:
        check_monitor("valid_loss" if monitor is None else monitor, mode)
    check_path(folder, "folder", "checkpoint('checkpoints')")
    folder = check_folder("folder", folder)
    phases = [*(checked_at(monitor) if monitor else (Phase.EPOCH_END,)), Phase.SUSPEND, Phase.TEARDOWN]
    if every_steps is not None or every_seconds is not None:
        phases.append(Phase.BATCH_END)
    unsaved = f"{UNSAVED}{name}"
    if on_failure:
        phases.append(Phase.SETUP)

    @on(
        *phases,
        name=name,
        memory=Kept(),
        needs={unsaved} if every_seconds is None else {unsaved, "elapsed"},
        commands={SaveCheckpoint, NoteBatchStarts} if on_failure else {SaveCheckpoint},
        monitors=() if monitor is None else {monitor},
        writes_to={folder},
    )
    def checkpoint(state: State, believed: Kept) -> Transition | None:
        if state.phase is Phase.SETUP:
            return Transition(commands=(NoteBatchStarts(),))
        became = state.facts.get(unsaved, 0.0)
        if became == UNDER_WAY:  # at BATCH_END alone: elsewhere its end is waited for
            return None
        saved = _on_disk(believed, failed=became > 0.0)
        due = _due(state, saved)
        if due is None:
            return None if saved is believed else Transition(memory=saved)
        file, score, steps = due
        files = (*(other for other in saved.files if other[0] != file), (file, score))
        stay = {name for name, _ in files}
        if state.phase is not Phase.TEARDOWN:  # what a failure left may be worth less than what is there
            stay = _to_stay(files, keep, last, ranked=monitor is not None)
        drop = tuple(other for other, _ in files if other not in stay)
        ranked_by = monitor if file.startswith("epoch") else None
        seconds = 0.0 if every_seconds is None else state.facts["elapsed"]
        memory = Kept(tuple(other for other in files if other[0] in stay), steps, seconds, before=saved.files)
        command = SaveCheckpoint(folder, file, drop, ranked_by, mode or "min", name, beside)
        return Transition(commands=(command,), memory=memory)

    def _due(state: State, saved: Kept) -> tuple[str, float, int] | None:
        """The name and the score of the checkpoint that is due here, and how many times `every_steps` had passed."""
        steps = 0 if every_steps is None else state.step // every_steps
        if state.phase is Phase.TEARDOWN and not (on_failure and state.error and state.iteration):
            return None
        if state.phase in (Phase.SUSPEND, Phase.TEARDOWN):
            why = "suspended" if state.phase is Phase.SUSPEND else "failed"
            return f"step-{state.step:08d}-{why}", -math.inf, saved.steps
        if state.phase is Phase.BATCH_END:
            over = every_seconds is not None and state.facts["elapsed"] - saved.seconds >= every_seconds
            return (f"step-{state.step:08d}", -math.inf, steps) if steps > saved.steps or over else None
        candidate = _candidate(state, monitor, mode, every_epochs)
        if candidate is None:
            return None
        file, score = candidate
        if monitor is None or _is_among_best(score, saved.files, keep):
            return file, score, saved.steps
        if (file, score) in saved.files or not last:
            return None
        return f"step-{state.step:08d}", -math.inf, saved.steps

    return checkpoint


def _on_disk(believed: Kept, *, failed: bool) -> Kept:
    """What there is, if the last save failed or not."""
    if not failed or believed.before is None:
        return believed
    return attrs.evolve(believed, files=believed.before, before=None)


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


def _best(files: Sequence[tuple[str, float]], keep: int) -> list[tuple[str, float]]:
    """The best of those that have a score, the best first; of several that are equally good, the newer ones."""
    ranked = [file for file in reversed(files) if file[0].startswith("epoch")]
    return sorted(ranked, key=lambda file: -file[1])[:keep]


def _is_among_best(score: float, files: Sequence[tuple[str, float]], keep: int) -> bool:
    best = _best(files, keep)
    return len(best) < keep or score > best[-1][1]


def _to_stay(files: Sequence[tuple[str, float]], keep: int, last: int, *, ranked: bool) -> set[str]:
    """The names of those that stay; the last of the files is the one that is written now."""
    epochs = [file for file in files if file[0].startswith("epoch")]
    kept = _best(files, keep) if ranked else epochs[-keep:]
    return {name for name, _ in (*kept, *files[-max(last, 1) :])}
