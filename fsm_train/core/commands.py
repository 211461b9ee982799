"""The commands of the library: effects as data, which can be compared, logged and replayed.

Rule of this file: records with checks. `supervised/` carries the commands out on a real model; a
command for which random numbers are drawn there holds their seed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Literal

import attrs

from .checks import fraction, not_negative, positive
from .transition import Command

# ------------------------------------------------------------------------------- the gradient


@attrs.frozen
class ClipGradNorm(Command):
    """Scale all gradients so that their common norm is at most `max_norm`.

    >>> ClipGradNorm(1.0)
    ClipGradNorm(max_norm=1.0, norm_type=2.0)
    """

    max_norm: float = attrs.field(validator=positive)
    norm_type: float = 2.0
    acts_on: ClassVar[str] = "gradients"


@attrs.frozen
class ClipGradValue(Command):
    """Bring each element of the gradients to between -value and value.

    >>> ClipGradValue(0.5)
    ClipGradValue(value=0.5)
    """

    value: float = attrs.field(validator=positive)
    acts_on: ClassVar[str] = "gradients"


@attrs.frozen
class AddGradNoise(Command):
    """Add normally distributed noise with this standard deviation to the gradients.

    >>> AddGradNoise(std=0.01, seed=0)
    AddGradNoise(std=0.01, seed=0)
    """

    std: float = attrs.field(validator=not_negative)
    seed: int
    acts_on: ClassVar[str] = "gradients"


@attrs.frozen
class WeighLoss(Command):
    """Weight the gradient of this batch by `share`.

    The loss that goes into backward is multiplied by it; the loss that is measured is not. Before a
    step, the gradients are divided by the sum of the shares of its batches. So the gradient is the
    weighted mean also if the shares do not add up to one: in a leftover window, or with a batch skipped.

    >>> WeighLoss(0.25)  # one of four batches of equal size
    WeighLoss(share=0.25)
    """

    share: float = attrs.field(validator=not_negative)


@attrs.frozen
class AddPenalty(Command):
    """Add l1 * sum |w| + l2 * sum w ** 2, over trainable parameters, to the loss that goes into backward.

    >>> AddPenalty(l2=1e-4)
    AddPenalty(l1=0.0, l2=0.0001)
    """

    l1: float = attrs.field(default=0.0, validator=not_negative)
    l2: float = attrs.field(default=0.0, validator=not_negative)


# ----------------------------------------------------------------------------------- the batch


@attrs.frozen
class MixUp(Command):
    """Mix each sample of the batch with another: `weight` of itself, and the rest of its partner.

    The loss is the mean, with the same weights, of the losses for both targets. The partners are a
    permutation drawn from `seed`.

    >>> MixUp(weight=0.7, seed=0)
    MixUp(weight=0.7, seed=0)
    """

    weight: float = attrs.field(validator=fraction)
    seed: int
    alone: ClassVar[bool] = True


@attrs.frozen
class CutMix(Command):
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


# ------------------------------------------------------------------------- how the model computes


@attrs.frozen
class UseMixedPrecision(Command):
    """Compute forward and loss in half precision, with a gradient scaler for float16, until TEARDOWN.

    >>> UseMixedPrecision("bfloat16").dtype
    'bfloat16'
    """

    dtype: Literal["bfloat16", "float16"]
    initial_scale: float = attrs.field(default=2.0**16, validator=positive)
    growth_interval: int = 2000
    alone: ClassVar[bool] = True


@attrs.frozen
class UseParallel(Command):
    """Call the model through a parallel wrapper, until TEARDOWN.

    >>> UseParallel("ddp")
    UseParallel(kind='ddp')
    """

    kind: Literal["data_parallel", "ddp"]
    alone: ClassVar[bool] = True


@attrs.frozen
class UseCompiledStep(Command):
    """Train steps in which no callback is consulted compiled or captured, until TEARDOWN.

    >>> UseCompiledStep("default")
    UseCompiledStep(mode='default', backend='inductor')
    """

    mode: str
    backend: str = "inductor"
    alone: ClassVar[bool] = True
    whole_steps: ClassVar[bool] = True


@attrs.frozen
class Freeze(Command):
    """Freeze the parameters whose names match this pattern: no gradient, no weight decay.

    >>> Freeze("encoder.*")
    Freeze(pattern='encoder.*')
    """

    pattern: str


@attrs.frozen
class Unfreeze(Command):
    """Undo `Freeze` of this pattern.

    >>> Unfreeze("encoder.*")
    Unfreeze(pattern='encoder.*')
    """

    pattern: str


# ------------------------------------------------------------------------------ sets of weights


@attrs.frozen
class KeepAverage(Command):
    """Create the average of this name if there is none: exponential with a `decay`, else the plain mean.

    >>> KeepAverage("ema", decay=0.999)
    KeepAverage(name='ema', decay=0.999)
    """

    name: str
    decay: float | None = attrs.field(default=None, validator=attrs.validators.optional(fraction))
    alone: ClassVar[bool] = True


@attrs.frozen
class UpdateAverage(Command):
    """Update the average of this name with the current weights; the first update copies them.

    >>> UpdateAverage("ema")
    UpdateAverage(name='ema')
    """

    name: str


@attrs.frozen
class UseAverage(Command):
    """Swap the average of this name in for the weights, or, with on=False, out again. Idempotent.

    >>> UseAverage("ema", on=True)
    UseAverage(name='ema', on=True)
    """

    name: str
    on: bool


@attrs.frozen
class FinishAverage(Command):
    """Replace the weights by the average of this name; with `batch_norm`, compute its batch-norm statistics.

    It is carried out after the other commands of its phase, which may restore another average.

    >>> FinishAverage("swa", batch_norm=True)
    FinishAverage(name='swa', batch_norm=True)
    """

    name: str
    batch_norm: bool = False
    last: ClassVar[bool] = True


@attrs.frozen
class KeepWeights(Command):
    """Keep a copy of the weights and averages, in memory, under this name.

    >>> KeepWeights("best")
    KeepWeights(name='best')
    """

    name: str


@attrs.frozen
class RestoreWeights(Command):
    """Restore the weights and averages that `KeepWeights` copied under this name.

    >>> RestoreWeights("best")
    RestoreWeights(name='best')
    """

    name: str


@attrs.frozen
class SaveCheckpoint(Command):
    """Write a checkpoint of this name into the folder; once it is on disk, remove those in `drop`.

    It is carried out after all other commands of its phase, so that it saves what they change.

    >>> SaveCheckpoint("checkpoints", "epoch-3", drop=("epoch-1",))
    SaveCheckpoint(folder='checkpoints', name='epoch-3', drop=('epoch-1',))
    """

    folder: str
    name: str
    drop: tuple[str, ...] = ()
    last: ClassVar[bool] = True


# ------------------------------------------------------------------------- torch's own schedulers


@attrs.frozen
class UseScheduler(Command):
    """Create the scheduler of this name if there is none: `make` makes it of the optimizer.

    >>> import torch
    >>> UseScheduler("halve", lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)).name
    'halve'
    """

    name: str
    make: Callable[[Any], Any]
    changes_hyper: ClassVar[bool] = True


@attrs.frozen
class StepScheduler(Command):
    """Call `step` of the scheduler of this name, with the metric if it takes one.

    >>> StepScheduler("plateau", metric=0.5)
    StepScheduler(name='plateau', metric=0.5)
    """

    name: str
    metric: float | None = None
    changes_hyper: ClassVar[bool] = True
