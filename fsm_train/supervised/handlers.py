"""How each command is carried out on the real model and optimizer.

One function per command, registered under the command's type. A command of one's own is a frozen
record that inherits from `Command`, and a function registered here with `@carries_out`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import nn

from ..checkpoints.api import save
from ..core import commands as c
from ..core.errors import WorkloadError
from ..core.transition import Command
from ..data.generators import Generators, generators_of
from .averages import Average, copied, refit_batch_norm
from .compilation import compiled_step
from .mixing import cut_mix, mix_up
from .precision import Precision

if TYPE_CHECKING:
    from .workload import Supervised

C = TypeVar("C", bound=Command)

_EFFECTS: dict[type[Command], Callable[[Supervised, Any], None]] = {}


def carries_out(kind: type[C]) -> Callable[[Callable[[Supervised, C], None]], Callable[[Supervised, C], None]]:
    """Register the decorated function of (workload, command) as what carries out commands of this type.

    >>> import attrs
    >>> @attrs.frozen
    ... class ScaleGradients(Command):
    ...     factor: float
    >>> @carries_out(ScaleGradients)
    ... def scale_gradients(work, command):
    ...     for parameter in work.parameters:
    ...         parameter.grad *= command.factor
    """

    def register(effect: Callable[[Supervised, C], None]) -> Callable[[Supervised, C], None]:
        _EFFECTS[kind] = effect
        return effect

    return register


def is_registered(kind: type[Command]) -> bool:
    return kind in _EFFECTS


def effect_of(kind: type[Command]) -> Callable[[Supervised, Any], None]:
    """The function that carries out commands of this type.

    Raises:
        WorkloadError: none was registered.
    """
    try:
        return _EFFECTS[kind]
    except KeyError:
        raise WorkloadError(
            f"nothing is registered that carries out the command {kind.__name__}: decorate a function of "
            f"(workload, command) with @carries_out({kind.__name__}), from fsm_train"
        ) from None


# ------------------------------------------------------------------------------- the gradient


@carries_out(c.ClipGradNorm)
def clip_grad_norm(work: Supervised, command: c.ClipGradNorm) -> None:
    norm = work.gradients.norm(command.norm_type)
    nn.utils.clip_grads_with_norm_(work.parameters, command.max_norm, norm)
    work.gradients.changed()


@carries_out(c.ClipGradValue)
def clip_grad_value(work: Supervised, command: c.ClipGradValue) -> None:
    nn.utils.clip_grad_value_(work.parameters, command.value)
    work.gradients.changed()


@carries_out(c.AddGradNoise)
def add_grad_noise(work: Supervised, command: c.AddGradNoise) -> None:
    generator = torch.Generator(work.device).manual_seed(command.seed)
    for gradient in work.gradients():
        noise = torch.empty_like(gradient).normal_(0.0, command.std, generator=generator)
        gradient.add_(noise)
    work.gradients.changed()


@carries_out(c.WeighLoss)
def weigh_loss(work: Supervised, command: c.WeighLoss) -> None:
    work.weigh_loss(command.share)


@carries_out(c.AddPenalty)
def add_penalty(work: Supervised, command: c.AddPenalty) -> None:
    trainable = [parameter for parameter in work.parameters if parameter.requires_grad]
    if command.l1:
        work.add_to_loss(command.l1 * torch.stack([parameter.abs().sum() for parameter in trainable]).sum())
    if command.l2:
        work.add_to_loss(command.l2 * torch.stack([parameter.square().sum() for parameter in trainable]).sum())


# ----------------------------------------------------------------------------------- the batch


@carries_out(c.MixUp)
def mixup(work: Supervised, command: c.MixUp) -> None:
    _refuse_second_mix(work)
    work.inputs, work.mix = mix_up(work.inputs, work.batch_size, work.device, command)


@carries_out(c.CutMix)
def cutmix(work: Supervised, command: c.CutMix) -> None:
    _refuse_second_mix(work)
    work.inputs, work.mix = cut_mix(work.inputs, work.batch_size, work.device, command)


def _refuse_second_mix(work: Supervised) -> None:
    if work.mix is not None:
        raise WorkloadError("this batch is mixed already: let only one of mixup and cutmix be consulted for a batch")


# ------------------------------------------------------------------------- how the model computes


@carries_out(c.UseMixedPrecision)
def use_mixed_precision(work: Supervised, command: c.UseMixedPrecision) -> None:
    if work.precision is not None:
        raise WorkloadError("mixed precision is in use already: leave one of the two callbacks out")
    work.precision = precision = Precision(work.device, command, work.kept.scaler)

    def undo() -> None:
        precision.go_on(work.gradients())  # those of a window that is left open
        work.precision, work.kept.scaler = None, precision.state()

    work.undo_at_finish(undo)


@carries_out(c.UseParallel)
def use_parallel(work: Supervised, command: c.UseParallel) -> None:
    if command.kind == "data_parallel":
        work.call_through(nn.DataParallel)
    elif torch.distributed.is_available() and torch.distributed.is_initialized():
        ids = [work.device] if work.device.type == "cuda" else None
        work.call_through(lambda model: nn.parallel.DistributedDataParallel(model, device_ids=ids))
    else:
        raise WorkloadError('"ddp" needs a process group: call torch.distributed.init_process_group(…) first')
    work.undo_at_finish(lambda: work.call_through(None))


@carries_out(c.UseCompiledStep)
def use_compiled_step(work: Supervised, command: c.UseCompiledStep) -> None:
    work.compiled = compiled_step(work, command.mode, command.backend)

    def undo() -> None:
        work.compiled = None

    work.undo_at_finish(undo)


@carries_out(c.Freeze)
def freeze(work: Supervised, command: c.Freeze) -> None:
    work.frozen.add(command.pattern)
    work.undo_at_finish(work.frozen.clear)
    work.call_through(work.wrapper)  # a parallel wrapper reduces the gradients that there were when it was made


@carries_out(c.Unfreeze)
def unfreeze(work: Supervised, command: c.Unfreeze) -> None:
    work.frozen.remove(command.pattern)
    work.call_through(work.wrapper)


# ------------------------------------------------------------------------------ sets of weights


@carries_out(c.KeepAverage)
def keep_average(work: Supervised, command: c.KeepAverage) -> None:
    average = work.kept.averages.get(command.name)
    if average is None:
        average = work.kept.averages[command.name] = Average(work.model, command.decay)
        if saved := work.kept.saved_averages.pop(command.name, None):
            average.load(saved)
    average.go_on()
    work.undo_at_finish(lambda: average.use(False))


@carries_out(c.UpdateAverage)
def update_average(work: Supervised, command: c.UpdateAverage) -> None:
    work.kept.averages[command.name].update()


@carries_out(c.UseAverage)
def use_average(work: Supervised, command: c.UseAverage) -> None:
    for name, other in work.kept.averages.items():
        if command.on and other.in_use and name != command.name:
            raise WorkloadError(f"{name!r} and {command.name!r} both validate with their average: leave one out")
    work.kept.averages[command.name].use(command.on)


@carries_out(c.FinishAverage)
def finish_average(work: Supervised, command: c.FinishAverage) -> None:
    average = work.kept.averages[command.name]
    if not average.begun:
        return
    average.finish()
    if command.batch_norm:
        before = Generators.now(generators_of(work.train))
        refit_batch_norm(work.model, work.call, work.passes_over_train())
        before.put_back()


@carries_out(c.KeepWeights)
def keep_weights(work: Supervised, command: c.KeepWeights) -> None:
    averages = {name: copied(average.averaged.state_dict()) for name, average in work.kept.averages.items()}
    work.kept.weights[command.name] = copied(work.model.state_dict()), averages


@carries_out(c.RestoreWeights)
def restore_weights(work: Supervised, command: c.RestoreWeights) -> None:
    weights, averages = work.kept.weights[command.name]
    work.model.load_state_dict(weights)
    for name, average in averages.items():
        work.kept.averages[name].averaged.load_state_dict(average)


# ------------------------------------------------------------------------- torch's own schedulers


@carries_out(c.UseScheduler)
def use_scheduler(work: Supervised, command: c.UseScheduler) -> None:
    if command.name not in work.kept.schedulers:
        scheduler = work.kept.schedulers[command.name] = command.make(work.optimizer)
        if saved := work.kept.saved_schedulers.pop(command.name, None):
            scheduler.load_state_dict(saved)
            assert work.state is not None
            work.set_hyper(work.state.hyper)  # making one sets its first rate


@carries_out(c.StepScheduler)
def step_scheduler(work: Supervised, command: c.StepScheduler) -> None:
    scheduler = work.kept.schedulers[command.name]
    scheduler.step() if command.metric is None else scheduler.step(command.metric)


# --------------------------------------------------------------------------------- checkpoints


@carries_out(c.SaveCheckpoint)
def save_checkpoint(work: Supervised, command: c.SaveCheckpoint) -> None:
    save(work, command)
