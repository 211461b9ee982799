"""The commands that say how the model computes, from SETUP until TEARDOWN.

Rule of this file: none of them changes what a training means, but for rounding.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import attrs

from .checks import positive
from .command_kinds import BATCHES_FOLLOW, LeavesOptimizer
from .phase import Phase


@attrs.frozen
class UseMixedPrecision(LeavesOptimizer):
    """Compute forward and loss in half precision, with a gradient scaler for float16, until TEARDOWN.

    >>> UseMixedPrecision("bfloat16").dtype
    'bfloat16'

    Attributes:
        dtype: "bfloat16" or "float16".
        initial_scale: the factor of the loss at first, for float16.
        growth_interval: the steps in a row, none of them held back, after which that factor doubles.
    """

    dtype: Literal["bfloat16", "float16"]
    initial_scale: float = attrs.field(default=2.0**16, validator=positive)
    growth_interval: int = 2000
    alone: ClassVar[bool] = True
    useful_at: ClassVar[tuple[Phase, ...]] = BATCHES_FOLLOW


@attrs.frozen
class UseParallel(LeavesOptimizer):
    """Call the model through a parallel wrapper, until TEARDOWN.

    >>> UseParallel("ddp")
    UseParallel(kind='ddp')
    """

    kind: Literal["data_parallel", "ddp"]
    alone: ClassVar[bool] = True
    useful_at: ClassVar[tuple[Phase, ...]] = BATCHES_FOLLOW


@attrs.frozen
class UseCompiledStep(LeavesOptimizer):
    """Train steps compiled or captured, as far as no callback is consulted in them, until TEARDOWN.

    >>> UseCompiledStep("default")
    UseCompiledStep(mode='default', backend='inductor')
    """

    mode: str
    backend: str = "inductor"
    alone: ClassVar[bool] = True
    whole_steps: ClassVar[bool] = True
    useful_at: ClassVar[tuple[Phase, ...]] = BATCHES_FOLLOW


@attrs.frozen
class DetectAnomaly(LeavesOptimizer):
    """Let torch remember which forward operation each gradient is of, and raise for one that is NaN, until TEARDOWN.

    >>> DetectAnomaly()
    DetectAnomaly(check_nan=True)
    """

    check_nan: bool = True
    alone: ClassVar[bool] = True
    useful_at: ClassVar[tuple[Phase, ...]] = BATCHES_FOLLOW


@attrs.frozen
class UseMicroBatches(LeavesOptimizer):
    """Compute each batch in pieces, with the gradient of the whole one, until TEARDOWN.

    >>> UseMicroBatches(16)
    UseMicroBatches(size=16)

    Attributes:
        size: the most samples of a piece; None for whole batches until memory runs out, and then for halves.
    """

    size: int | None = None
    alone: ClassVar[bool] = True
    useful_at: ClassVar[tuple[Phase, ...]] = BATCHES_FOLLOW
