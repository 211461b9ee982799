"""How the model computes: in half precision, in pieces, through a parallel wrapper, or looked at for NaN.

All begin at SETUP of every call of `run`, and end at TEARDOWN, also after a failure.
"""

from __future__ import annotations

from typing import Literal

from ..core.callback import Callback, always, strict_factory
from ..core.checks import check_bool, check_choice, check_count
from ..core.computing import DetectAnomaly, UseMicroBatches, UseMixedPrecision, UseParallel
from ..core.phase import Phase


@strict_factory
def mixed_precision(
    dtype: Literal["bfloat16", "float16"] = "bfloat16",
    *,
    initial_scale: float = 2.0**16,
    growth_interval: int = 2000,
    name: str = "mixed_precision",
) -> Callback[None]:
    """Compute forward and loss in half precision; for float16 with a gradient scaler. On CPU too.

    At SETUP. The fact `stepped` is 0 for a step that the scaler skips. Such a step does not count in
    `state.step`, so schedules by step do not advance. Gradients are unscaled before STEP_BEGIN:
    clipping sees their true size. Micikevicius et al., "Mixed Precision Training" (2018).

    >>> from fsm_train import Phase
    >>> from fsm_train.testing import at
    >>> mixed_precision("float16")(at(Phase.SETUP)).commands
    (UseMixedPrecision(dtype='float16', initial_scale=65536.0, growth_interval=2000),)

    Args:
        dtype: "bfloat16" has the range of float32 and needs no scaler; "float16" is more exact.
        initial_scale: the factor of the loss at first.
        growth_interval: the number of steps in a row, none skipped by the scaler, after which the factor doubles.
    """
    check_choice("dtype", dtype, ("bfloat16", "float16"))
    check_count("growth_interval", growth_interval, least=1)
    return always(name, Phase.SETUP, UseMixedPrecision(dtype, initial_scale, growth_interval))


@strict_factory
def parallel(kind: Literal["data_parallel", "ddp"] = "data_parallel", *, name: str = "parallel") -> Callback[None]:
    """Train on several devices: call the model through torch's DataParallel or DistributedDataParallel.

    At SETUP, before all others. The model itself is not replaced: only calls of it go through the wrapper.

    "ddp" does what `Supervised(…, parallel="ddp")` does: the processes that torchrun started, or that formed a process
    group, train one model and decide alike, and each reads its share of the data, `sharded(loader)`. One process
    without a group is refused; so is `restore` in several, which knows no callbacks. The setting of `Supervised`
    allows both.

    >>> from fsm_train import Phase
    >>> from fsm_train.testing import at
    >>> parallel("ddp")(at(Phase.SETUP)).commands
    (UseParallel(kind='ddp'),)

    Args:
        kind: "data_parallel" for one process with several devices, "ddp" for one process per device.
    """
    check_choice("kind", kind, ("data_parallel", "ddp"))
    return always(name, Phase.SETUP, UseParallel(kind), order=-100)


@strict_factory
def detect_anomaly(*, check_nan: bool = True, name: str = "detect_anomaly") -> Callback[None]:
    """Find the operation whose gradient fails: its error shows where the forward pass called it.

    At SETUP, through `torch.autograd.set_detect_anomaly`, which is put back at TEARDOWN. It is slow, and so is for
    finding a fault alone; the weights are the same with it. Under a gradient scaler a NaN is usual in the first steps.

    >>> from fsm_train import Phase
    >>> from fsm_train.testing import at
    >>> detect_anomaly()(at(Phase.SETUP)).commands
    (DetectAnomaly(check_nan=True),)

    Args:
        check_nan: whether a gradient that is NaN is an error at once, also where nothing fails.
    """
    check_bool("check_nan", check_nan)
    return always(name, Phase.SETUP, DetectAnomaly(check_nan))


@strict_factory
def micro_batches(size: int | None = None, *, name: str = "micro_batches") -> Callback[None]:
    """Compute each batch in pieces, for a model that is too large for a whole one; the gradient stays the same.

    At SETUP. The output is computed piece by piece without a graph, the loss over the whole batch, and then forward and
    backward again for each piece, which costs a second forward pass. Callbacks see one batch, one loss and one step.
    The loss need not be a mean over samples. Batch norm does see the pieces, which is said once. Gao et al., "Scaling
    Deep Contrastive Learning Batch Size under Memory Limited Setup" (2021).

    With None a batch is whole, until memory runs out: then the pieces are halved, for this batch and all that follow,
    with a warning and a note in the last state. A dropout of the batch in which that happens may be drawn anew.

    >>> from fsm_train import Phase
    >>> from fsm_train.testing import at
    >>> micro_batches(16)(at(Phase.SETUP)).commands
    (UseMicroBatches(size=16),)

    Args:
        size: the most samples of a piece: tensors of the inputs are cut along their first dimension.
    """
    if size is not None:
        check_count("size", size, least=1)
    return always(name, Phase.SETUP, UseMicroBatches(size))
