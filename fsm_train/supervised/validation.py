"""The operations of a validation, and the computing that it shares with training.

Rule of this file: a validation changes nothing of the training but the metrics.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import AbstractContextManager
from functools import partial
from types import MappingProxyType
from typing import Any

import attrs
import torch
from torch import nn

from ..core.errors import WorkloadError
from ..core.phase import Phase
from ..core.runs import stopped_at_its_begin
from ..core.state import State
from ..data.batches import apply_split, check_scalar, pair
from ..data.counting import count
from ..data.first_look import first_look
from ..data.generators import seed_all, seed_of_rank, seed_own
from ..data.loaders import set_persistent_workers, start_pass, with_inner, with_new_workers
from ..data.prefetch import prefetched
from ..data.sharded import has_no_part
from .averages import Average
from .buffers import Buffers
from .evaluations import BoundEvaluation, check_averages, own_parts, use_again, use_weights
from .loss_parts import NO_PARTS, may_have_parts, separate
from .measures import Taken, take
from .metrics_so_far import results_so_far
from .micro_batches import Call
from .modules import modules_of
from .other_data import evaluate_on
from .real_numbers import add_new
from .sharded_model import sharded_parts
from .snapshot import ValidationGuard
from .training import Training

_END = object()


@attrs.define(eq=False)
class Validation:
    """A validation that is under way.

    Attributes:
        due: the evaluations that are still to come in it.
        number: which one of the training it is, from 1; None for one outside of it, as by `evaluate`.
        metrics: of the evaluations that are over.
        measured_by: by their prefixes, the weights of those that say which.
        batches: the pass of the evaluation under way; None before the first one.
        counted: how many of its batches count.
        size: what they count together.
        weights: of each metric of the evaluations that are over, what their batches counted.
        exchanged: the averages that the model had before it got the weights of this evaluation; None before that.
    """

    due: deque[BoundEvaluation]
    number: int | None
    metrics: dict[str, float] = attrs.field(factory=dict)
    measured_by: dict[str, str] = attrs.field(factory=dict)
    weights: dict[str, float] = attrs.field(factory=dict)
    size: float = 0
    batches: Iterator[Any] | None = None
    counted: int = 0
    exchanged: list[Average] | None = None


class Validating(Training):
    """A training that can be validated: what `Supervised` does between VALID_BEGIN and VALID_END."""

    calls_as_given = False  # in a call of run: whether no subclass overrides what the operations call
    grad_in_valid: bool = False  # whether gradients are on in validations
    shards: Sequence[Any] = ()  # of a sharded model, the parts that are gathered by themselves
    _last_batch: tuple[Any, Any] | None = None  # inputs and target, of a sharded model
    _validation: Validation | None = None  # the one under way
    _validation_guard: ValidationGuard | None = None  # of the same

    _measures: Mapping[str, Taken] = MappingProxyType({})
    _metric_weights: Mapping[str, float] = MappingProxyType({})  # of the validation that was measured last

    def _metric_names(self) -> Set[str]:
        """The names of all metrics; one with an asterisk stands for all that begin like it."""
        names = self.train_meters.names(parts=may_have_parts(self.loss_fn))
        measures = {f"valid_{name}{more}" for name in self._measures for more in ("", "_*")}
        return names.union(measures, *(each.names(self.loss_fn) for each in self.evaluations))

    def forward(self) -> None:
        """Set `output`. In training, the buffers are kept in case the batch is left out."""
        alone = self.doing is None  # in a whole step nothing can leave the batch out
        if alone and self._evaluation is None and torch.is_grad_enabled():
            self._buffers.keep()
        inputs = self.inputs
        if (
            self.calls_as_given
            and type(inputs) is torch.Tensor
            and self.custom_forward is None
            and self.precision is None
            and self.micro_batches is None
            and self.ranks is None
            and self._evaluation is None
        ):
            model = self.wrapped_model  # what `call` would call
            self.output = model(inputs)
            return
        if self.ranks is not None and self.trains_this_batch:
            self.ranks.share_buffers_of_window(self)
        call: Call = self.call
        if self.micro_batches is not None and self.trains_this_batch:
            call = partial(self.micro_batches.forward, self, call)
        if self.precision is None:
            self.output = call(self.inputs, self.target)
            return
        with self.precision.compute():
            self.output = call(self.inputs, self.target)

    def compute_loss(self) -> torch.Tensor:
        """The loss of the batch under way, with its graph, in the precision of the training; sets `loss_parts`."""
        loss_fn: Callable[[Any, Any], Any] = self.loss_fn
        if self.mix is not None:
            loss_fn = partial(self.mix.loss, loss_fn)
        elif self._evaluation is not None:
            loss_fn = self._evaluation.loss_fn(loss_fn)
        if self.precision is None:
            loss = loss_fn(self.output, self.target)
        else:
            with self.precision.compute():
                loss = loss_fn(self.output, self.target)
        if type(loss) is torch.Tensor and self.custom_backward is None:
            self.loss_parts = NO_PARTS
            return loss
        separated, self.loss_parts = separate(loss, several=self.custom_backward is not None)
        if self.custom_backward is not None:
            self._parts_for_backward = loss if isinstance(loss, Mapping) and self._evaluation is None else None
        return separated  # type: ignore[no-any-return]  # the user's: what it is is looked at by who computes it

    def look_at_valid(self) -> None:
        """Refuse validation batches that cannot be used, where one can be looked at."""
        for each in self.evaluations:
            by_position = self.custom_forward is None and each.settings.forward is None
            with first_look(each.loader) as batch:
                if batch is None:
                    continue
                try:
                    parts = pair(batch) if self._split is None else apply_split(batch, self._split)
                    if self._samples is None:
                        count(*parts, by_position=by_position)
                except WorkloadError as error:
                    raise WorkloadError(f"{each.argument}: {error}") from error

    def open_valid(self, state: State) -> None:
        """Begin a validation, with the first of the evaluations that are due in it."""
        if self.ranks is not None:
            self.ranks.share_buffers(self)
        self.find_shards()
        check_averages(self.evaluations, self.carried_over.averages)
        self.carried_over.check_kept(self.modules)
        modules = {**self.modules, **self._modules_of_evaluations()}
        self._validation_guard = ValidationGuard.of(modules, self.loader_generators(), self.valid)
        number = self._number_of_validation(state)
        due = (each for each in self.evaluations if number is None or each.is_due(number))
        self._validation = Validation(due=deque(due), number=number)
        for module in modules.values():
            module.eval()
        self._open_evaluation()

    def _number_of_validation(self, state: State) -> int | None:
        """Which validation of the training begins, from 1; None for one by `evaluate`, which carries out all.

        A second one after the same batch has the number of the first: it is there only if that one measured nothing,
        or for the step of the leftover window.
        """
        if state.phase is Phase.VALID_BEGIN:  # the machine opens a validation on the way to this phase
            return None
        number, iteration = self.carried_over.validations
        return number if iteration == state.iteration else number + 1

    def _modules_of_evaluations(self) -> Mapping[str, nn.Module]:
        """The modules of losses that evaluations have of their own."""
        losses = [function for name, function in own_parts(self.evaluations) if name.endswith(".loss_fn")]
        modules = modules_of(self.model, losses)
        return {f"valid {name}": module for name, module in modules.items() if name != "model"}

    def _open_evaluation(self) -> None:
        """Begin the next evaluation that is due. It draws what it would draw if it were alone."""
        validation = self._validation
        assert validation is not None
        assert self._validation_guard is not None
        self._evaluation = each = validation.due.popleft() if validation.due else None
        if each is None:
            return
        if validation.batches is not None:
            self._validation_guard.generators.put_back()
        loader = each.loader
        if each.settings.seed is not None:
            loader = with_new_workers(loader)
            seed = seed_of_rank(each.settings.seed, 0 if self.ranks is None else self.ranks.rank)
            seed_all(seed)
            seed_own(self.loader_generators(), seed)
        each.meters.reset()
        validation.batches = prefetched(self._copier, loader, start_pass(loader))
        validation.counted = validation.size = 0

    def fetch_valid(self) -> float | None:
        self.output = self._loss = None
        validation = self._validation
        assert validation is not None
        while self._evaluation is not None:
            self._use_weights(self._evaluation, validation)
            # Not by its truth: the iterator of a DataLoader over a stream has a length that raises.
            batch = _END if validation.batches is None else next(validation.batches, _END)
            if batch is not _END:
                size = self._take(batch)
                self.keep_batch()
                validation.counted += size > 0
                validation.size += size
                return size
            if not validation.due:
                return None  # `measure_valid` ends the last one
            self._close_evaluation(validation, stopped=False)
            self._open_evaluation()
        return None

    def _use_weights(self, evaluation: BoundEvaluation, validation: Validation) -> None:
        """Give the model the weights of the evaluation. Callbacks have exchanged them by then, at VALID_BEGIN."""
        if evaluation.weights is not None and validation.exchanged is None:
            validation.exchanged = use_weights(self.carried_over.averages, evaluation.weights)
            self._mark_stale()

    def _put_weights_back(self) -> None:
        if self._validation is not None and self._validation.exchanged is not None:
            use_again(self.carried_over.averages, self._validation.exchanged)
            self._validation.exchanged = None
            self._mark_stale()

    def _mark_stale(self) -> None:
        if self.whole_step is not None:
            self.whole_step.mark_stale()

    def evaluate(self) -> None:
        evaluation = self._evaluation
        assert evaluation is not None
        with torch.set_grad_enabled(self.grad_in_valid):
            self.forward()
            if evaluation.has_loss:
                loss = self.compute_loss()
                if not isinstance(loss, torch.Tensor) or loss.dim() != 0:
                    check_scalar(loss)
                self._loss = loss.detach()
            self.meter(evaluation.meters, self._loss)
        self.reshard()

    def find_shards(self) -> None:
        """Note which parts of the model are sharded, and leave each rank its share of them alone."""
        self.shards = sharded_parts(self.model)
        self.reshard()

    def reshard(self) -> None:
        """Leave each rank its share alone: after a forward pass without a backward some of the model is still gathered.

        What is gathered does not change with the shares, and is no parameter of the optimizer.
        """
        for part in self.shards:
            part.reshard()

    def keep_batch(self) -> None:
        """Keep the batch under way of a sharded model, to stand by with."""
        if self.shards:
            self._last_batch = self.inputs, self.target

    def stand_by(self) -> None:
        """Take part where the other ranks gather a sharded model to evaluate their batch: with this rank's last one.

        Raises:
            WorkloadError: this rank has had no batch.
        """
        if not self.shards:
            return
        if self._last_batch is None:
            raise WorkloadError(
                "this rank has no batch to evaluate, and the others need it to gather a sharded model: give each rank "
                "at least one batch"
            )
        shown, buffers = (self.inputs, self.target, self.output), Buffers(self.modules.values())
        buffers.keep()
        self.inputs, self.target = self._last_batch
        try:
            with torch.set_grad_enabled(self.grad_in_valid):
                self.forward()
        finally:
            buffers.put_back()
            self.inputs, self.target, self.output = shown
        self.reshard()

    def _close_evaluation(self, validation: Validation, *, stopped: bool) -> None:
        """Measure the evaluation under way, and give the model its weights back.

        Raises:
            WorkloadError: it had no batch, and was not stopped before it could have one.
        """
        evaluation = self._evaluation
        if evaluation is None:
            return
        stands_by = not validation.counted and self.ranks is not None and has_no_part(evaluation.loader)
        results = {} if stands_by else evaluation.meters.results()
        add_new(validation.metrics, results.items(), evaluation.argument)
        validation.weights |= dict.fromkeys(results, validation.size)
        if not validation.counted and not stopped and not stands_by:
            raise WorkloadError(
                f"{evaluation.argument} gave no batch that counts: it is empty, its __iter__ starts no new pass each "
                "time, or samples= counts 0 for each of its batches"
            )
        if evaluation.weights is not None:
            validation.measured_by[evaluation.prefix] = self.carried_over.weights_in_use()
        evaluation.meters.reset()
        self._evaluation = None
        self._put_weights_back()

    def measure_valid(self, state: State) -> Mapping[str, float]:
        """The metrics of the validation; in the middle of an epoch also those of its training batches so far."""
        validation = self._validation
        assert validation is not None
        self._close_evaluation(validation, stopped=stopped_at_its_begin(state))
        if self._measures and (validation.metrics or validation.counted):  # it was not stopped before its first batch
            take(self, self._measures, validation.metrics)
        self.end_validation()
        self._metric_weights = validation.weights
        self.carried_over.note_measured(validation.measured_by)
        if validation.number is not None:
            self.carried_over.validations = validation.number, state.iteration
        in_the_middle = state.batch > 0 and not state.batches_over
        so_far = results_so_far(self.train_meters) if in_the_middle else {}
        return {**so_far, **validation.metrics}

    def measure_nothing(self, state: State) -> None:
        """End a validation without a batch. Measures of a sharded model are taken for the others, and forgotten."""
        if self.shards and self._measures:
            self._evaluation = None
            self._put_weights_back()
            take(self, self._measures, {})
        self.abandon(state)

    def abandon(self, state: State) -> None:
        """Restore everything as if this validation had not started."""
        guard = self._validation_guard
        self.end_validation()
        if guard is not None:
            set_persistent_workers(with_inner(self.valid), guard.workers)

    def abandon_validation(self, state: State) -> None:
        """Abandon the validation that is under way, if one is."""
        if self._validation_guard is not None:
            self.abandon(state)

    def evaluate_on(self, data: Any) -> AbstractContextManager[None]:
        return evaluate_on(self, data)

    def end_validation(self) -> None:
        """Restore weights, modes and generators, so that validating does not change the training."""
        self.reshard()  # what a measure has gathered
        self._put_weights_back()
        for each in self.evaluations:
            each.meters.reset()
        self._validation = self._evaluation = None
        self._loss = self.inputs = self.target = self.output = None
        if self._validation_guard is not None:
            self._validation_guard.put_back()
            self._validation_guard = None
