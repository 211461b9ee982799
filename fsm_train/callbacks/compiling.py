"""Whole training steps, compiled: possible because the machine knows at which phases callbacks are consulted."""

from __future__ import annotations

from typing import Literal, get_args

from ..core.callback import Callback, always, strict_factory
from ..core.commands import UseCompiledStep
from ..core.phase import Phase

CompileMode = Literal["graph", "default", "reduce-overhead", "max-autotune"]


@strict_factory
def compile_step(
    mode: CompileMode = "default", *, backend: str = "inductor", name: str = "compile_step"
) -> Callback[None]:
    """Train each step in one go, captured as a CUDA graph or through torch.compile.

    At SETUP. "graph" captures forward, loss, backward and step once, and replays them on batches of
    the same shape: a small network, whose time goes into launching kernels, is trained several times
    as fast. The other modes are those of torch.compile, for forward and loss, and for the step of the
    optimizer. Results are those of the eager way up to rounding.

    Where a callback or sink looks inside a step, it is trained in two pieces: what comes before it, and
    the optimizer's step. Beside `clip_grad_norm`, at STEP_BEGIN, forward, loss and backward are captured,
    or compiled, and the step is eager with "graph". Beside `accumulate`, at LOSS_END, forward and loss are
    compiled, and a graph has nothing to do, of which one warning is given; so it is at LOSS_BEGIN, between
    forward and loss, with any mode, and beside any such callback with the modes that use CUDA graphs of
    torch.compile. A single step is eager, with one warning per reason, for a batch of another shape, under
    a gradient scaler, and with "graph" also under a parallel wrapper or while gradients wait for the step.
    Mixed batches are eager. Numbers such as a learning rate are compiled in, unless the
    optimizer holds them as tensors: set them by="epoch".

    >>> from fsm_train import Phase
    >>> from fsm_train.testing import at
    >>> compile_step("graph")(at(Phase.SETUP)).commands
    (UseCompiledStep(mode='graph', backend='inductor'),)

    Args:
        mode: "graph", or a mode of torch.compile.
        backend: that of torch.compile, for mode "default"; for example "aot_eager", to find out which part fails.
    """
    if not isinstance(mode, str) or mode not in get_args(CompileMode):
        raise ValueError(f"mode={mode!r}: one of {', '.join(map(repr, get_args(CompileMode)))}")
    if not isinstance(backend, str):
        raise TypeError(f"backend={backend!r}: give the name of a backend of torch.compile")
    if backend != "inductor" and mode != "default":
        raise ValueError(f"backend={backend!r} goes with mode='default': the mode {mode!r} is one of inductor's")
    return always(name, Phase.SETUP, UseCompiledStep(mode, backend))
