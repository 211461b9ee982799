"""How each command of the library is carried out on the real model and optimizer: a function each.

`SaveCheckpoint` stands in `checkpoints/api.py`.
"""

from __future__ import annotations

import math

import attrs
import torch
from torch import nn
from torch.nn.parameter import is_lazy

from ..core import commands as c
from ..core.arguments import kind_of
from ..core.errors import WorkloadError
from ..data.generators import Generators
from ..data.sources import Sources
from ..worlds.registry import carries_out_by_default
from .averages import Average, refit_batch_norm
from .closures import refuse_scaler
from .compilation import compiled_step
from .in_step import in_step
from .joint_optimizer import JointOptimizer, each_of, named_optimizer
from .kept_weights import KeptWeights
from .micro_batches import MicroBatches
from .mixing import cut_mix, mix_up
from .modules import Modes
from .player import modules_of_player
from .precision import Precision
from .reduction import average_statistics
from .shares import alike, differentiable, is_shared, local, normal_like
from .training import Training
from .window import norm_of

# ------------------------------------------------------------------------------- the gradient


@carries_out_by_default(c.ClipGradNorm, needs_state=False)
def clip_grad_norm(work: Training, command: c.ClipGradNorm) -> None:
    gradients, parameters = work.gradients, work.parameters
    if command.pattern is None:
        norm = gradients.norm(command.norm_type)
    else:
        parameters = gradients.matching(work.model, command.pattern)
        norm = norm_of([p.grad for p in parameters if p.grad is not None], command.norm_type)
    if work.precision is not None and work.precision.scaler is not None and isinstance(work.optimizer, JointOptimizer):
        # The scaler holds back those alone whose gradients are not finite: a NaN must not reach the others by the norm.
        norm = norm.nan_to_num(nan=math.inf, posinf=math.inf)
    for each in alike(parameters):
        nn.utils.clip_grads_with_norm_(each, command.max_norm, norm)
    gradients.changed()


@carries_out_by_default(c.ClipGradValue, needs_state=False)
def clip_grad_value(work: Training, command: c.ClipGradValue) -> None:
    with torch.no_grad():
        for parameter in work.parameters:
            if parameter.grad is not None and parameter.grad.is_sparse:
                parameter.grad = parameter.grad.coalesce()  # its elements are the sums of what it holds now
                parameter.grad.values().clamp_(-command.value, command.value)
            elif is_shared(parameter) and parameter.grad is not None:
                local(parameter.grad).clamp_(-command.value, command.value)
    rest = [p for p in work.parameters if not _has_sparse_gradient(p) and not is_shared(p)]
    if rest:
        nn.utils.clip_grad_value_(rest, command.value)
    work.gradients.changed()


def _has_sparse_gradient(parameter: nn.Parameter) -> bool:
    return parameter.grad is not None and parameter.grad.is_sparse


@carries_out_by_default(c.AddGradNoise, needs_state=False)
def add_grad_noise(work: Training, command: c.AddGradNoise) -> None:
    generator = torch.Generator(work.device).manual_seed(command.seed)
    for parameter in work.parameters:
        if _has_sparse_gradient(parameter):
            parameter.grad = parameter.grad.coalesce()  # type: ignore[union-attr]
        gradient = parameter.grad
        if gradient is not None:
            elements = gradient.values() if gradient.is_sparse else gradient  # what a sparse one lacks stays as it is
            local(elements).add_(normal_like(elements, command.std, generator))
    work.gradients.changed()


@carries_out_by_default(c.WeighLoss, needs_state=False)
def weigh_loss(work: Training, command: c.WeighLoss) -> None:
    work.weigh_loss(command.share)


@carries_out_by_default(c.AddPenalty, needs_state=False)
def add_penalty(work: Training, command: c.AddPenalty) -> None:
    trainable = [parameter for parameter in work.parameters if parameter.requires_grad and not is_lazy(parameter)]
    penalties, own = [], [differentiable(parameter) for parameter in trainable]
    if command.l1:
        penalties.append(command.l1 * torch.stack([parameter.abs().sum() for parameter in own]).sum())
    if command.l2:
        penalties.append(command.l2 * torch.stack([_real(parameter).square().sum() for parameter in own]).sum())
    for penalty in penalties:
        work.add_to_loss(penalty)  # of shares only its gradient is right, and nothing else of it is used
        if any(map(is_shared, trainable)):
            work.window.penalty = penalty if work.window.penalty is None else work.window.penalty + penalty


def _real(parameter: torch.Tensor) -> torch.Tensor:
    """The squares of real and imaginary parts add up to that of the absolute value."""
    return torch.view_as_real(parameter) if parameter.is_complex() else parameter


# ----------------------------------------------------------------------------------- the batch


@carries_out_by_default(c.MixUp)
def mixup(work: Training, command: c.MixUp) -> None:
    _refuse_second_mix(work)
    work.inputs, work.mix = mix_up(work.inputs, work.device, command)


@carries_out_by_default(c.CutMix)
def cutmix(work: Training, command: c.CutMix) -> None:
    _refuse_second_mix(work)
    work.inputs, work.mix = cut_mix(work.inputs, work.device, command)


def _refuse_second_mix(work: Training) -> None:
    if work.mix is not None:
        raise WorkloadError("this batch is mixed already: let only one of mixup and cutmix be consulted for a batch")


# ------------------------------------------------------------------------- how the model computes


@carries_out_by_default(c.UseMixedPrecision)
def use_mixed_precision(work: Training, command: c.UseMixedPrecision) -> None:
    if work.precision is not None:
        raise WorkloadError("mixed precision is in use already: leave one of the two callbacks out")
    if work.gives_closure and command.dtype == "float16":
        raise refuse_scaler()
    work.precision = precision = Precision(work.device, command, work.carried_over.scaler)

    def undo() -> None:
        precision.rescale(work.gradients())  # their window may still be open
        work.precision, work.carried_over.scaler = None, precision.state()

    work.undo_at_finish(undo)


@carries_out_by_default(c.UseParallel)
def use_parallel(work: Training, command: c.UseParallel) -> None:
    if work.ranks is not None:
        if command.kind == "data_parallel":
            raise WorkloadError("parallel= of the workload says how it is wrapped: leave parallel() out")
        return  # as the workload was prepared
    if command.kind == "ddp" and work.custom_backward is not None:
        raise WorkloadError(
            "DistributedDataParallel averages gradients while loss.backward() makes them, which a backward of your own "
            "(backward=…) replaces: average them in it"
        )
    if command.kind == "data_parallel":
        work.call_through(nn.DataParallel)
    elif torch.distributed.is_available() and torch.distributed.is_initialized():
        ids = [work.device] if work.device.type == "cuda" else None
        work.call_through(lambda model: nn.parallel.DistributedDataParallel(model, device_ids=ids))
    else:
        raise WorkloadError(
            '"ddp" needs a process group: call torch.distributed.init_process_group(…) first, or write Supervised(…, '
            'parallel="ddp"), which forms one under torchrun, and trains alone under python'
        )
    work.undo_at_finish(lambda: work.call_through(None))


@carries_out_by_default(c.UseMicroBatches)
def use_micro_batches(work: Training, command: c.UseMicroBatches) -> None:
    work.micro_batches = MicroBatches(command.size, work.said)

    def undo() -> None:
        work.micro_batches = None

    work.undo_at_finish(undo)


@carries_out_by_default(c.UseCompiledStep)
def use_compiled_step(work: Training, command: c.UseCompiledStep) -> None:
    work.whole_step = compiled_step(work, command.mode, command.backend)

    def undo() -> None:
        work.whole_step = None

    work.undo_at_finish(undo)


@carries_out_by_default(c.DetectAnomaly)
def detect_anomaly(work: Training, command: c.DetectAnomaly) -> None:
    before = torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled()
    torch.autograd.set_detect_anomaly(True, command.check_nan)
    work.undo_at_finish(lambda: torch.autograd.set_detect_anomaly(*before))  # type: ignore[arg-type]


@carries_out_by_default(c.Freeze)
def freeze(work: Training, command: c.Freeze) -> None:
    work.undo_at_finish(work.frozen_parameters.clear)
    work.frozen_parameters.add(command)
    work.call_through(work.wrapper)  # a wrapper knows only the parameters that required a gradient when it was made


@carries_out_by_default(c.Unfreeze)
def unfreeze(work: Training, command: c.Unfreeze) -> None:
    work.frozen_parameters.remove(command.pattern)
    work.call_through(work.wrapper)


# ------------------------------------------------------------------------------ sets of weights


@carries_out_by_default(c.KeepAverage)
def keep_average(work: Training, command: c.KeepAverage) -> None:
    average = work.carried_over.averages.get(command.name)
    if average is None:
        average = work.carried_over.averages[command.name] = Average(
            command.name, modules_of_player(work.modules, command.player), command.decay
        )
        if saved := work.carried_over.saved_averages.pop(command.name, None):
            average.load(saved)
    average.decay, average.averages_buffers = command.decay, command.buffers == "average"
    average.restore_own()
    work.undo_at_finish(lambda: average.use(False))


@carries_out_by_default(c.UpdateAverage)
def update_average(work: Training, command: c.UpdateAverage) -> None:
    work.carried_over.averages[command.name].update(command.decay)


@carries_out_by_default(c.UseAverage)
def use_average(work: Training, command: c.UseAverage) -> None:
    for name, other in work.carried_over.averages.items():
        if command.on and other.in_use and name != command.name:
            raise WorkloadError(
                f"{name!r} and {command.name!r} both validate with their average: leave one out, or let it keep its "
                "average beside the model, as ema(…, validate=False) does"
            )
    work.carried_over.averages[command.name].use(command.on)


@carries_out_by_default(c.FinishAverage)
def finish_average(work: Training, command: c.FinishAverage) -> None:
    average = work.carried_over.averages[command.name]
    if not average.started:
        return
    average.finish()
    if command.batch_norm:
        before, sources = Generators.now(work.loader_generators()), Sources.now(work.train)
        modes = Modes.of(work.model)
        work.use_training_modes()
        try:
            across_ranks = None if work.ranks is None else average_statistics
            inputs = in_step(work, work.training_inputs())
            refit_batch_norm(work.model, lambda each: work.call(each, work.target), inputs, across_ranks)
        finally:  # a training that fails here can be gone on with
            modes.put_back()
            before.put_back()
            sources.put_back(work.train)


@carries_out_by_default(c.KeepWeights)
def keep_weights(work: Training, command: c.KeepWeights) -> None:
    work.carried_over.weights[command.name] = KeptWeights.of(work.modules, work.carried_over.averages)


@carries_out_by_default(c.RestoreWeights)
def restore_weights(work: Training, command: c.RestoreWeights) -> None:
    kept = work.carried_over.weights[command.name]
    kept.check(command.name, work.modules)
    kept.put_back(work.modules, work.carried_over.averages)


@carries_out_by_default(c.NoteBatchStarts)
def note_batch_starts(work: Training, command: c.NoteBatchStarts) -> None:
    def undo() -> None:
        work.notes_batch_starts, work.batch_start = False, None

    work.notes_batch_starts = True
    if (start := work.epoch_start) is not None:  # of the batches to come in an epoch under way, all of them are noted
        everything = start.generators.completed(Generators.now(work.loader_generators()))
        work.epoch_start = attrs.evolve(start, generators=everything)
    work.undo_at_finish(undo)


# ------------------------------------------------------------------------- torch's own schedulers


@carries_out_by_default(c.UseScheduler)
def use_scheduler(work: Training, command: c.UseScheduler) -> None:
    if command.name not in work.carried_over.schedulers:
        before = work.hyper()
        given = work.optimizer if command.optimizer is None else named_optimizer(work.optimizer, command.optimizer)
        scheduler = command.make(given)
        if not hasattr(scheduler, "step"):
            raise WorkloadError(
                f"make of {command.name!r} returned {kind_of(scheduler)}: let it return the scheduler, as in "
                "lambda optimizer: StepLR(optimizer, 30)"
            )
        of = getattr(scheduler, "optimizer", given)
        if of is not given and not any(of.param_groups is each.param_groups for each in each_of(given).values()):
            raise WorkloadError(
                f"the {type(scheduler).__name__} of {command.name!r} is one of another optimizer, so it would set "
                "nothing here: let make use what it is given, as in lambda optimizer: StepLR(optimizer, 30)"
            )
        work.carried_over.schedulers[command.name] = scheduler
        if saved := work.carried_over.saved_schedulers.pop(command.name, None):
            scheduler.load_state_dict(saved)
            made = work.hyper()  # a scheduler sets its first rate when it is made
            work.set_hyper({name: value for name, value in before.items() if made[name] != value})


@carries_out_by_default(c.StepScheduler)
def step_scheduler(work: Training, command: c.StepScheduler) -> None:
    scheduler = work.carried_over.schedulers[command.name]
    try:
        scheduler.step() if command.metric is None else scheduler.step(command.metric)
    except Exception as error:
        of = getattr(scheduler, "optimizer", work.optimizer)
        made_for, groups = len(getattr(scheduler, "base_lrs", ())), len(of.param_groups)
        if made_for in (0, groups):
            raise
        raise WorkloadError(
            f"the {type(scheduler).__name__} of {command.name!r} was made for {made_for} parameter groups, and the "
            f"optimizer has {groups}: it has no rate for a group that is added later. fsm_train.callbacks.schedule "
            "has: the group's own, times the schedule"
        ) from error
