"""The parts of a training at work: what commands, sensors and whole steps find in a `Supervised`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn

from ..checkpoints.saves import Saves
from ..core.phase import Operation
from ..core.state import Hyper, State
from ..core.transition import Command
from ..data.batches import Forward, Split, apply_split, call, check_loader, check_loss, pair, to_device
from ..data.compiled import uncompiled
from ..data.counting import Samples, count
from ..data.fingerprint import fingerprint
from ..data.position import BatchStart, EpochStart, SuspendPoint
from ..data.prefetch import copier_for
from ..data.sources import Sources
from .arguments import check_arguments, check_data, check_depends, check_function, device_of, takes_target
from .buffers import Buffers
from .carried_over import CarriedOver, Stateful
from .closures import gives_closure
from .evaluations import BoundEvaluation, Valid, as_given, bind, loaders_of, records_of
from .freezing import FrozenParameters
from .joint_optimizer import OptimizerLike, each_of, join
from .loss_parts import NO_PARTS, LossFn, Parts
from .meters import AnyMetric, Meters, check_metrics
from .micro_batches import MicroBatches
from .mixing import Mix
from .modules import ModulesIn, modules_of
from .numbers import check_numbers, set_own
from .own_backward import Backward
from .parallel import Parallel, Ranks, join_ranks
from .param_groups import Members, check_groups, check_parameters, read_groups, stepped_parameters, write_groups
from .precision import Precision
from .surroundings import Surroundings
from .training_modes import TrainingModes
from .whole_step_protocol import WholeStep
from .window import Gradients, Window


class Training(Surroundings, TrainingModes):
    """A model, an optimizer, a loss and data, with the batch under way: what commands and sensors get.

    `Supervised` adds the operations of the machine. A command changes a training through the methods here
    and through those attributes that say so; it reads the others. Sensors only read. The model, the batch
    and the loss are on `device`.

    Attributes:
        model: the module that is trained; of a compiled one, the one that it was compiled from. Commands may change its
            weights in place.
        wrapped_model: what forward calls: the model as it was given, compiled say, in its parallel wrapper if there is
            one. Set by `call_through`.
        wrapper: makes `wrapped_model` from that; None without a wrapper. Set by `call_through`.
        optimizer: steps the parameters. Its hyper-parameters are set with `set_hyper`. Of several that step together
            it does what one does, and gives each by name, `optimizer["muon"]`.
        loss_fn: of (output, target), a scalar tensor: the mean over the batch; or a mapping with it as "loss".
        train: the training data, an iterable of batches.
        valid: the validation data; a mapping from names where there are several evaluations; or None.
        evaluations: what a validation measures.
        device: of the model and of every batch.
        custom_backward: the user's function of (loss, parameters) in place of loss.backward(), or None.
        custom_forward: the user's function of (model, inputs) or of (model, inputs, target), or None.
        extra: by name, further parts that belong in a checkpoint.
        numbers: by name, the user's own: read in the loss and the model. Set with `set_hyper`.
        parameters: those of the optimizer: the model's in the model's order, then the loss's. Read anew when a call of
            `run` or an epoch begins, and after each command that `changes_hyper`.
        gradients: call it for the list of their gradients; `gradients.norm()` is the common norm, a scalar
            tensor. A command that changes a gradient in place calls `gradients.changed()`.

        inputs: of the batch under way, as the data gives them. Commands may replace them before forward.
        target: of the batch under way. Commands may replace it before the loss.
        output: of the model for `inputs`, set by forward.
        loss_parts: what the loss of the batch under way gave beside "loss", by name, detached scalars.
        batch_size: what the batch under way counts: its samples, or what `samples` gives.
        mix: how the loss of a mixed batch is computed, or None. Commands may set it; a fetch clears it.
        gives_closure: whether the step of the optimizer is given a closure, which evaluates the batch again.
        for_each_evaluation: the commands that are carried out again then.
        parallel: how several processes train this model, as it was given; None if that was left out.
        ranks: these processes; None if this one trains alone.
        window: the shares of the batches whose gradients wait for a step. Changed by `weigh_loss` and the operations.
        rank_weight: what the loss of this batch is multiplied by for backward, beside other ranks. Set by `Agreed`.
        train_meters: train_loss and the train metrics of this epoch so far.

        state: the State in which the present command is carried out, or a sensor measures. Set by the interpreter.
        precision: autocast and gradient scaler; None for the model's own precision. Commands may set it.
        whole_step: a compiled or captured step; None for eager steps. Commands may set it.
        micro_batches: how a batch is computed in pieces; None for a whole one. Commands may set it.
        frozen_parameters: the patterns of frozen parameters. Commands call its methods.
        carried_over: what outlasts a call of `run` beside model and optimizer: averages, copies of weights,
            schedulers. Commands change what is theirs; a new training starts with a new one.
        structure_changes: the commands that have changed what the model consists of since this was made, in order.

        epoch_start: what the pass over the training data follows from; None before the first epoch.
        suspended_at: where the training was suspended or ended, between two calls of `run`; otherwise None.
        data_fingerprint: what the loaders were when this was made, as far as one can tell without reading them.
        sources_when_made: the states of the layers of the training data when this was made.
        loss_checked: whether the first loss of this call of `run` was checked.
        doing: the operation under way within a whole step; None outside.
        stepped: whether the batch under way took its step.
        notes_batch_starts: whether `batch_start` is noted before each batch is fetched. Commands may set it.
        batch_start: what the batch under way follows from; None if that is not noted.
        interrupt: the name of a signal that asks to suspend, set by signal handlers; otherwise None.
        failure_may_be_saved: whether a callback of this call of run may save what is left where the training fails.
        saves: the folders that this call of run writes checkpoints to, and what became of each save.
        said: what is to be noted of this call of run, in words. Commands may add to it.
        summary_logged: whether the summary of this training was logged.
    """

    doing: Operation | None = None
    failure_may_be_saved = True
    evaluations: tuple[BoundEvaluation, ...] = ()
    _evaluation: BoundEvaluation | None = None  # the one under way

    def __init__(
        self,
        model: nn.Module,
        optimizer: OptimizerLike | Mapping[str, OptimizerLike],
        loss_fn: LossFn,
        train: Iterable[Any],
        valid: Valid | None,
        *,
        metrics: Mapping[str, AnyMetric] | None,
        device: torch.device | str | None,
        forward: Forward | None,
        split: Split | None,
        samples: Samples | None,
        extra: Mapping[str, Stateful] | None,
        ahead: bool | None,
        closure: bool = False,
        numbers: Mapping[str, float] | None = None,
        backward: Backward | None = None,
        parallel: Parallel | None = None,
    ) -> None:
        check_arguments(model, optimizer, loss_fn)
        self.optimizer = join(optimizer)
        self.numbers = check_numbers(numbers, read_groups(self.optimizer))
        self.gives_closure = gives_closure(self.optimizer, closure)
        check_data("train", train, tensors=split is not None)
        check_parameters(model, self.optimizer, loss_fn)
        self._forward_takes_target = forward is not None and takes_target(forward)
        forward_takes = ("model", "inputs", "target") if self._forward_takes_target else ("model", "inputs")
        for name, function, parameters in (
            *(("forward", forward, forward_takes), ("split", split, ("batch",))),
            ("samples", samples, ("inputs", "target")),
        ):
            if function is not None:
                check_function(name, function, *parameters)
        self.parallel = parallel
        self.ranks: Ranks | None = join_ranks(parallel, next(model.parameters()).device if device is None else device)
        if device is not None:
            model.to(device_of(device) if self.ranks is None else self.ranks.device(device_of(device)))
        self._given_model = model
        self.model = uncompiled(model)
        self.wrapped_model: nn.Module = model
        self.wrapper: Callable[[nn.Module], nn.Module] | None = None
        self.loss_fn = loss_fn
        self.train = check_loader(train, "train")
        self.device = next(model.parameters()).device
        self.whole_step: WholeStep | None = None
        self.parameters: list[nn.Parameter] = []
        self.gradients = Gradients(self.parameters)
        self._members = Members()
        self._groups_read = len(self.optimizer.param_groups)
        self.read_parameters()
        self.custom_forward = forward
        self.custom_backward = backward
        self._split = split
        self._samples = samples
        self._moves = self.device.type != "cpu"
        self._copier = copier_for(self.device, ahead, self.train, split)
        self._buffers = self.new_buffers()  # as they were before the batch under way

        self.inputs: Any = None
        self.target: Any = None
        self.output: Any = None
        self.batch_size: float = 0
        self.mix: Mix | None = None
        self.loss_parts: Parts = NO_PARTS
        self._loss: torch.Tensor | None = None  # detached, for facts and meters
        self._for_backward: torch.Tensor | None = None  # the loss with its graph, weighted, with penalties
        self._parts_for_backward: Mapping[str, Any] | None = None  # the same for `custom_backward`
        self.window = Window()
        self.rank_weight = 1.0
        self.stepped = False
        self.for_each_evaluation: list[Command] = []

        checked, shared = check_metrics(metrics or {}), self._shared()
        self._metrics = checked
        self.train_meters = Meters("train", checked, self.device, shared)
        self.valid = valid
        self.data_fingerprint = fingerprint(**self._roots())
        self.sources_when_made = Sources.now(self.train)
        self._batches: Iterator[Any] = iter(())  # the pass over train that is under way
        self._batches_fetched = 0  # of that pass
        self.epoch_start: EpochStart | None = None
        self.epoch_began = -1  # the iteration in which it was noted

        self.structure_changes: list[Command] = []
        self.state: State | None = None
        self.precision: Precision | None = None
        self.micro_batches: MicroBatches | None = None
        self.frozen_parameters = FrozenParameters(self.model, self.optimizer)
        self.carried_over = CarriedOver()
        self._undo = ExitStack()
        self.loss_checked = False
        self.notes_batch_starts = False
        self.batch_start: BatchStart | None = None
        self.extra = dict(extra or {})
        self.suspended_at: SuspendPoint | None = None
        self.interrupt: str | None = None
        self.saves = Saves()
        self.said: list[str] = []
        self.summary_logged = False

    @property
    def valid(self) -> Valid | None:
        """The validation data; a mapping from names where there are several evaluations; or None."""
        return as_given({each.name: each.loader for each in self.evaluations})

    @valid.setter
    def valid(self, valid: Valid | None) -> None:
        records = records_of(valid)
        loaders = loaders_of(records, self.train, tensors=self._split is not None)
        self.evaluations = bind(records, loaders, self._metrics, self.device, self._shared())

    @property
    def modules(self) -> Mapping[str, nn.Module]:
        """What is trained: "model", and "loss" for a loss that is a module or holds one."""
        return modules_of(*self.searched_for_modules())

    def searched_for_modules(self) -> tuple[nn.Module, object]:
        """The model, and where modules beside it are looked for."""
        return self.model, self.loss_fn

    def hyper(self) -> Mapping[str, Hyper]:
        """The hyper-parameters of the optimizer: one value, or a tuple of one per parameter group; and `numbers`.

        Of several optimizers those that all have, and by its name those of each: `muon.momentum`.
        """
        self._groups_read = len(self.optimizer.param_groups)
        return {**read_groups(self.optimizer), **self.numbers}

    def read_parameters(self) -> None:
        """Read which parameters the optimizer has, since groups may be added and parameters exchanged."""
        if not self._members.are_of(self.optimizer):
            self._members = Members.of(self.optimizer)
            self.parameters = self.gradients.parameters = stepped_parameters(self.model, self.optimizer)
            self.gradients.changed()
            if self.whole_step is not None:
                self.whole_step.mark_stale()

    def set_hyper(self, changes: Mapping[str, Hyper]) -> None:
        """Set the named hyper-parameters, which exist, in the optimizer or among `numbers`. No others are written.

        Raises:
            WorkloadError: the optimizer has not as many parameter groups as when they were read.
        """
        check_groups(self.optimizer, self._groups_read)
        if self.numbers:
            changes = set_own(self.numbers, changes)
        write_groups(self.optimizer, changes)
        if self.whole_step is not None:
            self.whole_step.mark_stale()

    def call(self, inputs: Any, target: Any = None) -> Any:
        """The output of the model, called as in this training: through the wrapper and the user's `forward`.

        The target is for a `forward` that takes one.
        """
        model = self.wrapped_model if self.ranks is None or self.trains_this_batch else self._given_model
        forward, takes_target, evaluation = self.custom_forward, self._forward_takes_target, self._evaluation
        if evaluation is not None and evaluation.settings.forward is not None:
            forward, takes_target = evaluation.settings.forward, evaluation.forward_takes_target
        if forward is not None:
            return forward(model, inputs, target) if takes_target else forward(model, inputs)
        return model(inputs) if type(inputs) is torch.Tensor else call(model, inputs)

    @property
    def trains_this_batch(self) -> bool:
        """Whether a backward follows, for which a wrapper makes ready: not in an evaluation."""
        return self._evaluation is None and torch.is_grad_enabled()

    @property
    def one_by_one(self) -> bool:
        """Whether a step takes more than the five-line loop: its operations are not done in one call."""
        own = self.gives_closure or self.custom_backward is not None or self.rank_weight != 1.0
        own = own or self.micro_batches is not None
        return own or (self.ranks is not None and self.ranks.reduces(self))

    @property
    def _forward_in_use(self) -> Forward | None:
        """The user's function for the batch under way: that of the evaluation, or of the training."""
        own = None if self._evaluation is None else self._evaluation.settings.forward
        return self.custom_forward if own is None else own

    def call_through(self, wrapper: Callable[[nn.Module], nn.Module] | None) -> None:
        """Call the model through this wrapper from now on, or directly with None. `model` itself stays."""
        given = self._given_model
        self.wrapper, self.wrapped_model = wrapper, given if wrapper is None else wrapper(given)

    def add_to_loss(self, penalty: torch.Tensor) -> None:
        """Add a scalar tensor to the loss for backward. The measured loss stays without it."""
        assert self._for_backward is not None
        self._for_backward = self._for_backward + penalty

    def weigh_loss(self, share: float) -> None:
        """Give this batch a share, from 0, of the gradient of the accumulation window."""
        assert self._for_backward is not None
        self.window.share = self.window.weight = share
        if self.custom_backward is None:  # one of the user's own has its gradients weighed
            self._for_backward = self._for_backward * share

    def undo_at_finish(self, undo: Callable[[], None]) -> None:
        """Call this function when this call of `run` ends, however it ends. The latest is called first."""
        self._undo.callback(undo)

    def check_first_loss(self, loss: torch.Tensor) -> None:
        """Check the loss, which is the first of this call of `run`.

        Raises:
            WorkloadError: it is no scalar tensor, requires no gradient, or depends on none of the parameters.
        """
        check_loss(loss)
        if self.custom_backward is None:
            by = self.parameters if self.micro_batches is None else self.micro_batches.leaves
            check_depends(loss, [*by, *self.parameters])
        self.loss_checked = True

    @property
    def is_metered(self) -> bool:
        """Whether the training metrics may have the batch under way."""
        return self._loss is not None and self._for_backward is None

    def new_buffers(self) -> Buffers:
        """For the buffers of `modules`, which are looked for where they are kept first: a whole step keeps none."""
        return Buffers(ModulesIn(*self.searched_for_modules()))

    def put_back_buffers(self) -> bool:
        """Put the buffers back to before the forward pass of the batch under way. False if they were not kept."""
        if self._buffers.kept:
            self._buffers.put_back()
        return self._buffers.kept

    def note_step(self, loss: torch.Tensor) -> None:
        """Note the results of a whole step that took a step: its detached loss, a scalar; `output` is set."""
        self._loss, self.stepped = loss, True
        self.gradients.changed()
        try:
            self.meter(self.train_meters, loss)
        except Exception:
            self.doing = Operation.BACKWARD  # whose part the metrics are
            raise

    def meter(self, meters: Meters, loss: torch.Tensor | None) -> None:
        """Add the batch under way to these meters, with its detached loss, a scalar; None without one."""
        if loss is not None:
            meters.loss.add(loss, self.batch_size)
        if meters.metrics:
            meters.add_metrics(self.output, self.target, self.batch_size)
        if self.loss_parts:
            meters.add_parts(self.loss_parts, self.batch_size)

    def drop_autograd_graph(self) -> None:
        """Release what autograd keeps of the step before, which may belong to another CUDA stream."""
        self.output = self._for_backward = None

    def _shared(self) -> dict[int, object]:
        """By id, what a metric may hold and is not the metric's own: the model, the loss, the optimizer, the data."""
        given = self._given_model, self.loss_fn
        modules = [m for part in given if isinstance(part, nn.Module) for m in part.modules()]
        tensors = [t for module in modules for t in (*module.parameters(recurse=False), *module.buffers(recurse=False))]
        loaders = [self.train, *(self.valid.values() if isinstance(self.valid, Mapping) else [self.valid])]
        datasets = [loader.dataset for loader in loaders if hasattr(loader, "dataset")]
        optimizers = each_of(self.optimizer).values()
        return {id(part): part for part in (*modules, *tensors, *loaders, *datasets, self.optimizer, *optimizers)}

    def training_inputs(self) -> Iterable[Any]:
        """The inputs of each training batch that counts, in a pass of its own, which replaces the batch under way."""
        for batch in self.train:
            if self._take(batch):
                yield self.inputs

    def _take(self, batch: Any) -> float:
        """Make this the batch under way; what it counts."""
        inputs, target = pair(batch) if self._split is None else apply_split(batch, self._split)
        # Counted before it moves, so that a count that looks into tensors does not wait for the device.
        size = count(inputs, target, self._samples, by_position=self._forward_in_use is None)
        if self._moves:
            inputs, target = to_device((inputs, target), self.device)
        self.inputs, self.target, self.mix, self.loss_parts = inputs, target, None, NO_PARTS
        self.batch_size = size
        return size
