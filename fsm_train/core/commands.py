"""The commands of the library: effects as data, which can be compared, logged and replayed.

Rule of this file: records with checks. `supervised/handlers.py` carries the commands out on a real model;
a command for which random numbers are drawn there holds their seed. Those that say how the model computes are in
`computing.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Literal

import attrs

from .checks import fraction, not_negative, positive
from .command_kinds import BATCH_IS_NEW, BATCHES_FOLLOW, GRADIENT_IS_THERE, LOSS_IS_THERE, LeavesOptimizer
from .computing import DetectAnomaly as DetectAnomaly
from .computing import UseCompiledStep as UseCompiledStep
from .computing import UseMicroBatches as UseMicroBatches
from .computing import UseMixedPrecision as UseMixedPrecision
from .computing import UseParallel as UseParallel
from .phase import Phase
from .transition import Command

_ONE_VALIDATES = (
    "the model has one average in its validations and at its end. Leave one out, or let it keep its average beside the "
    "model, as ema(…, validate=False) does"
)


# ------------------------------------------------------------------------------- the gradient


@attrs.frozen
class ClipGradNorm(LeavesOptimizer):
    """Scale all gradients, or those of the parameters that match, so that their common norm is at most `max_norm`.

    >>> ClipGradNorm(1.0)
    ClipGradNorm(max_norm=1.0, norm_type=2.0)

    Attributes:
        max_norm: what the norm may be at most.
        norm_type: the p of the p-norm.
        pattern: of the names of the parameters, with * and ?; None for all of them.
    """

    max_norm: float = attrs.field(validator=positive)
    norm_type: float = 2.0
    pattern: str | None = None
    acts_on: ClassVar[str] = "gradients"
    each_evaluation: ClassVar[bool] = True
    useful_at: ClassVar[tuple[Phase, ...]] = GRADIENT_IS_THERE

    def __repr__(self) -> str:
        pattern = "" if self.pattern is None else f", pattern={self.pattern!r}"
        return f"ClipGradNorm(max_norm={self.max_norm!r}, norm_type={self.norm_type!r}{pattern})"


@attrs.frozen
class ClipGradValue(LeavesOptimizer):
    """Bring each element of the gradients to between -value and value.

    >>> ClipGradValue(0.5)
    ClipGradValue(value=0.5)
    """

    value: float = attrs.field(validator=positive)
    acts_on: ClassVar[str] = "gradients"
    each_evaluation: ClassVar[bool] = True
    useful_at: ClassVar[tuple[Phase, ...]] = GRADIENT_IS_THERE


@attrs.frozen
class AddGradNoise(LeavesOptimizer):
    """Add normally distributed noise with this standard deviation to the gradients.

    >>> AddGradNoise(std=0.01, seed=0)
    AddGradNoise(std=0.01, seed=0)
    """

    std: float = attrs.field(validator=not_negative)
    seed: int
    acts_on: ClassVar[str] = "gradients"
    each_evaluation: ClassVar[bool] = True
    useful_at: ClassVar[tuple[Phase, ...]] = GRADIENT_IS_THERE


@attrs.frozen
class WeighLoss(LeavesOptimizer):
    """Weight the gradient of this batch by `share`.

    The loss that goes into backward is multiplied by it; the loss that is measured is not. Before a step, the gradients
    are divided by the sum of the shares of its batches. So the gradient is the weighted mean also if the shares do not
    add up to one: in a leftover window, or with a batch skipped. `by` names the fact of which it is the share. On
    several ranks the loss of each weighs by what it measured of that itself. `by` is not compared.

    >>> WeighLoss(0.25)  # one of four batches of equal size
    WeighLoss(share=0.25)
    """

    share: float = attrs.field(validator=not_negative)
    by: str = attrs.field(default="batch_size", eq=False, repr=False)
    useful_at: ClassVar[tuple[Phase, ...]] = LOSS_IS_THERE


@attrs.frozen
class AddPenalty(LeavesOptimizer):
    """Add l1 * sum |w| + l2 * sum w ** 2, over trainable parameters, to the loss that goes into backward.

    >>> AddPenalty(l2=1e-4)
    AddPenalty(l1=0.0, l2=0.0001)
    """

    l1: float = attrs.field(default=0.0, validator=not_negative)
    l2: float = attrs.field(default=0.0, validator=not_negative)
    each_evaluation: ClassVar[bool] = True
    useful_at: ClassVar[tuple[Phase, ...]] = LOSS_IS_THERE


# ----------------------------------------------------------------------------------- the batch


@attrs.frozen
class MixUp(LeavesOptimizer):
    """Mix each sample of the batch with another: `weight` of itself, and the rest of its partner.

    The loss is the mean, with the same weights, of the losses for both targets. The partners are a
    permutation drawn from `seed`.

    >>> MixUp(weight=0.7, seed=0)
    MixUp(weight=0.7, seed=0)
    """

    weight: float = attrs.field(validator=fraction)
    seed: int
    alone: ClassVar[bool] = True
    useful_at: ClassVar[tuple[Phase, ...]] = BATCH_IS_NEW


@attrs.frozen
class CutMix(LeavesOptimizer):
    """Replace a box of each image by that of its partner, and weight the losses for both targets by area.

    `weight` is the fraction of the image that stays; the middle of the box is at (`x`, `y`), as
    fractions of width and height. The partners are a permutation drawn from `seed`.

    >>> CutMix(weight=0.75, x=0.5, y=0.5, seed=0)  # a quarter of the image, in its middle
    CutMix(weight=0.75, x=0.5, y=0.5, seed=0)
    """

    weight: float = attrs.field(validator=fraction)
    x: float = attrs.field(validator=fraction)
    y: float = attrs.field(validator=fraction)
    seed: int
    alone: ClassVar[bool] = True
    useful_at: ClassVar[tuple[Phase, ...]] = BATCH_IS_NEW


# ------------------------------------------------------------------------------ what is trained


@attrs.frozen
class Freeze(LeavesOptimizer):
    """Freeze the parameters whose names match this pattern: no gradient, no weight decay.

    With `train_bn=False` the batch norms whose parameters are all frozen like this keep their statistics: they are in
    eval mode meanwhile. `temporary` says that an `Unfreeze` is to follow, so that a parameter that could not be
    trained then is known at once.

    >>> Freeze("encoder.*", train_bn=False)
    Freeze(pattern='encoder.*', train_bn=False, temporary=False)
    """

    pattern: str
    train_bn: bool = True
    temporary: bool = False

    def of_player(self, player: str) -> Freeze:
        return attrs.evolve(self, pattern=f"{player}.{self.pattern}")


@attrs.frozen
class Unfreeze(LeavesOptimizer):
    """Undo `Freeze` of this pattern.

    >>> Unfreeze("encoder.*")
    Unfreeze(pattern='encoder.*')
    """

    pattern: str

    def of_player(self, player: str) -> Unfreeze:
        return attrs.evolve(self, pattern=f"{player}.{self.pattern}")


# ------------------------------------------------------------------------------ sets of weights


@attrs.frozen
class KeepAverage(LeavesOptimizer):
    """Create the average of this name if there is none: exponential with a `decay`, else the plain mean.

    Floating buffers are averaged too with `buffers="average"`; otherwise each update copies the buffers. With turns
    it is the average of the models of all players, or of the one that `player` names.

    >>> KeepAverage("ema", decay=0.999)
    KeepAverage(name='ema', decay=0.999, buffers='copy', player='')
    """

    name: str
    decay: float | None = attrs.field(default=None, validator=attrs.validators.optional(fraction))
    buffers: Literal["copy", "average"] = "copy"
    player: str = ""

    def of_player(self, player: str) -> KeepAverage:
        return attrs.evolve(self, player=player)


@attrs.frozen
class UpdateAverage(LeavesOptimizer):
    """Update the average of this name with the current weights; the first update copies them.

    A `decay` is that of this update, in place of the average's own.

    >>> UpdateAverage("ema")
    UpdateAverage(name='ema', decay=None)
    """

    name: str
    decay: float | None = attrs.field(default=None, validator=attrs.validators.optional(fraction))


@attrs.frozen
class UseAverage(LeavesOptimizer):
    """Swap the average of this name in for the weights, or, with on=False, out again. Idempotent.

    >>> UseAverage("ema", on=True)
    UseAverage(name='ema', on=True)
    """

    name: str
    on: bool
    alone: ClassVar[bool] = True
    instead: ClassVar[str] = _ONE_VALIDATES


@attrs.frozen
class FinishAverage(LeavesOptimizer):
    """Replace the weights by the average of this name; with `batch_norm`, compute its batch-norm statistics.

    It is carried out after the other commands of its phase, which may restore another average.

    >>> FinishAverage("swa", batch_norm=True)
    FinishAverage(name='swa', batch_norm=True)
    """

    name: str
    batch_norm: bool = False
    last: ClassVar[bool] = True
    alone: ClassVar[bool] = True
    instead: ClassVar[str] = _ONE_VALIDATES


@attrs.frozen
class KeepWeights(LeavesOptimizer):
    """Keep a copy of the weights and averages, in memory, under this name.

    >>> KeepWeights("best")
    KeepWeights(name='best')
    """

    name: str


@attrs.frozen
class RestoreWeights(LeavesOptimizer):
    """Restore the weights and averages that `KeepWeights` copied under this name.

    >>> RestoreWeights("best")
    RestoreWeights(name='best')
    """

    name: str


@attrs.frozen
class SaveCheckpoint(LeavesOptimizer):
    """Write a checkpoint of this name into the folder; once it is on disk, remove those in `drop`.

    It is carried out after all other commands of its phase, so that it saves what they change. With a `monitor` the
    manifest records its value, its mode, and which weights it was measured with: "model", or the name of an average.
    `load_weights` finds the best by that.

    If the disk refuses, that is a warning and a note, and nothing is removed. A callback that needs the fact
    `unsaved:NAME` is told if the checkpoint that it asked for last, with `by="NAME"`, could not be written.

    With `beside` it is written beside the training, of copies of all tensors, which take their memory once more until
    it is on disk. That is waited for where the fact is asked for at the end of a validation, an epoch or the
    training, before the next one into the folder, and at the end of the run.

    >>> command = SaveCheckpoint("checkpoints", "epoch-3", drop=("epoch-1",), monitor="valid_loss")
    >>> command.name, command.drop, command.by
    ('epoch-3', ('epoch-1',), 'checkpoint')
    """

    folder: str
    name: str
    drop: tuple[str, ...] = ()
    monitor: str | None = None
    mode: Literal["min", "max"] = "min"
    by: str = "checkpoint"
    beside: bool = False
    last: ClassVar[bool] = True


@attrs.frozen
class NoteBatchStarts(LeavesOptimizer):
    """Note before each batch what it follows from, such as all random generators, until the call of `run` ends.

    A checkpoint of a training that fails then resumes exactly before the batch that failed. It costs some tens of
    microseconds a batch.

    >>> NoteBatchStarts()
    NoteBatchStarts()
    """

    useful_at: ClassVar[tuple[Phase, ...]] = BATCHES_FOLLOW


# ------------------------------------------------------------------------- torch's own schedulers


@attrs.frozen
class UseScheduler(Command):
    """Create the scheduler of this name if there is none: `make` makes it of the (named) optimizer (of the player).

    >>> import torch
    >>> UseScheduler("halve", lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)).name
    'halve'
    """

    name: str
    make: Callable[[Any], Any]
    optimizer: str | None = None
    player: str = ""

    def of_player(self, player: str) -> UseScheduler:
        return attrs.evolve(self, player=player)


@attrs.frozen
class StepScheduler(Command):
    """Call `step` of the scheduler of this name, with the metric if it takes one.

    >>> StepScheduler("plateau", metric=0.5)
    StepScheduler(name='plateau', metric=0.5)
    """

    changes_hyper: ClassVar[bool | None] = True

    name: str
    metric: float | None = None
