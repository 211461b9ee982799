"""The operations of training: a pass over the data, and the steps in it.

Rule of this file: each method does one operation and decides nothing. With no callbacks the operations are those of
the five-line loop, in its order, so that the weights are the same to the last bit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch

from ..core.errors import WorkloadError
from ..core.laps import Lap, take_laps
from ..core.phase import Flag, Operation
from ..core.state import State
from ..core.table import Outcome
from ..data.generators import Generators
from ..data.layers import set_epoch
from ..data.loaders import persistent_workers_running, start_pass, with_inner
from ..data.pass_start import at_pass_start, is_sequence
from ..data.position import BatchStart, EpochStart
from ..data.prefetch import prefetched
from ..data.sources import Sources
from ..worlds.registry import handler_of
from .arguments import explain_loss
from .closures import Closure
from .evaluations import check_averages
from .loss_parts import NO_PARTS, separate
from .own_backward import Backward, check_made, run_backward
from .rank_weight import check_can_weigh, weigh_rank
from .validation import Validating
from .whole_step import CALLED, WHOLE_STEP, hold_loss, train_piece, whole_laps, whole_steps

_END = object()


class Stepping(Validating):
    """A training that takes steps: what `Supervised` does between EPOCH_BEGIN and EPOCH_END."""

    _minimized: torch.Tensor  # of the last backward, detached, with penalties

    def open(self, state: State) -> None:
        train = self.train
        # What is saved of a training that fails may be from before the first batch, to which all generators belong.
        everything = self.failure_may_be_saved or self.notes_batch_starts
        roots = self.searched() if everything or not is_sequence(train) else {"train": train}
        self.read_parameters()
        found = self.reached.search(**roots)
        if set_epoch(train, state.epoch, found.of_train):
            found = self.reached.search(**roots)
        self.train_meters.reset()
        self._batches_fetched = 0
        self.use_training_modes()
        if self.carried_over.weights:
            self.carried_over.check_kept(self.modules)
        if self.evaluations and Flag.SKIP_VALID not in state.flags:  # in a learning-rate test nobody keeps an average
            check_averages(self.evaluations, self.carried_over.averages)
        self._buffers = self.new_buffers()
        own = (layer.part for layer in found.own_generators)
        self.epoch_start = EpochStart(
            Generators.now(own) if everything else at_pass_start(train, own),
            train=persistent_workers_running(train),
            valid=persistent_workers_running(with_inner(self.valid)) if self.evaluations else None,
            sources=Sources.now(train, found.changing),
        )
        self.epoch_began = state.iteration
        self._batches = prefetched(self._copier, train, start_pass(train))

    def fetch(self) -> float | None:
        self._loss = self.output = None  # what a sensor sees is of this batch, or nothing
        self.stepped = self._buffers.kept = False
        window = self.window
        if window.share or window.weight != 1.0 or window.penalty is not None:
            window.begin_batch()
        if self.for_each_evaluation:
            self.for_each_evaluation.clear()
        if self.notes_batch_starts and self.epoch_start is not None:
            self.batch_start = BatchStart.now(self._batches_fetched, self.train, self.epoch_start)
            self._buffers.keep()  # also for a whole step, in which `forward` does not
        batch = next(self._batches, _END)
        if batch is _END:
            self.inputs = self.target = None
            if self._batches_fetched == 0:
                raise WorkloadError(
                    "train gave no batch in this epoch: it is empty, or its __iter__ starts no new pass each time"
                )
            return None
        self._batches_fetched += 1
        size: float
        if (
            (type(batch) is tuple or type(batch) is list)
            and len(batch) == 2
            and type(inputs := batch[0]) is type(target := batch[1]) is torch.Tensor
            and inputs.ndim
            and target.ndim
            and (size := inputs.size(0)) == target.size(0)
            and self._split is None
            and self._samples is None
            and not self._moves
        ):  # what `_take` does with two tensors
            self.inputs, self.target, self.batch_size = inputs, target, size
            self.mix, self.loss_parts = None, NO_PARTS
        else:
            size = self._take(batch)
        if self.shards:
            self.keep_batch()
        return size

    def loss(self) -> None:
        if self.calls_as_given and self.precision is None and self.mix is None and self.custom_backward is None:
            loss_fn = self.loss_fn
            loss, self.loss_parts = loss_fn(self.output, self.target), NO_PARTS
            if type(loss) is torch.Tensor and self.loss_checked:
                self._for_backward, self._loss = loss, loss.detach()
                return
            loss, self.loss_parts = separate(loss)
            hold_loss(self, loss)
            return
        hold_loss(self, self.compute_loss())

    def set_rank_weight(self, weight: float) -> None:
        check_can_weigh(self, weight)
        self.rank_weight = weight

    def discard(self) -> None:
        """Leave the batch out: put the buffers back, and forget the graph. Random numbers that it drew stay drawn."""
        self.put_back_buffers()
        self._for_backward = self._parts_for_backward = None
        self.reshard()

    def backward(self) -> None:
        loss = self._for_backward
        assert loss is not None
        window = self.window
        if window.divided_by != 1.0:
            window.undo_mean(self.gradients())
        if self.custom_backward is not None:
            self._own_backward(self.custom_backward, loss, window.weight)
        else:
            if self.rank_weight != 1.0:
                loss = weigh_rank(self, loss)
            if self.precision is not None:
                loss = self.precision.scale(loss, self.gradients())
            try:
                if self.micro_batches is not None:
                    self.micro_batches.backward(self, loss)
                else:
                    loss.backward()  # type: ignore[no-untyped-call]
            except RuntimeError as error:
                explain_loss(loss, error)
                raise
        if self.gives_closure:
            self._minimized = loss.detach()
        self._for_backward = None
        assert self._loss is not None
        if self.batch_size:
            meters = self.train_meters
            if self.calls_as_given and not meters.metrics and not self.loss_parts:
                meters.loss.add(self._loss, self.batch_size)
            else:
                self.meter(meters, self._loss)
        else:  # which other ranks have a batch for that counts
            self.put_back_buffers()
        if self.ranks is not None:
            self.ranks.unreduced = True
        window.shares += window.share
        window.batches += 1
        window.share, window.weight, window.penalty = 0.0, 1.0, None
        self.gradients.known_norm = None

    def _own_backward(self, backward: Backward, loss: torch.Tensor, weight: float) -> None:
        """The user's backward of the batch under way, with its weight and scale on what it adds to the gradients."""
        scale = None
        if self.precision is not None and self.precision.scaler is not None:
            scale = self.precision.scale(torch.ones((), device=self.device), self.gradients())
        parts, self._parts_for_backward = self._parts_for_backward, None
        losses = loss if parts is None else {**parts, "loss": loss}
        trained = [parameter for parameter in self.parameters if parameter.requires_grad]
        run_backward(backward, losses, trained, weight, scale)
        check_made(trained)

    def unscale(self) -> None:
        """Make the gradients those of the step: of all ranks, without a scaler's scale, the mean over their window."""
        if self.ranks is not None:
            self.ranks.reduce(self)
        if self.precision is not None:
            self.precision.unscale(self.optimizer, self.gradients())
        if self.window.shares not in (0.0, 1.0):
            self.window.apply_mean(self.gradients())
        self.gradients.known_norm = None

    def step(self) -> bool:
        if self.gives_closure:
            self._step_with_closure()
            self.stepped = True
        elif self.precision is None or self.precision.scaler is None:
            (self.optimizer.step if self.whole_step is None else self.whole_step.take_step)()
            self.stepped = True
        else:
            self.stepped = self.precision.step(self.optimizer)
        return self.stepped

    def _step_with_closure(self) -> None:
        if self.window.batches > 1 or self._loss is None:  # there is none where the data are over
            raise WorkloadError(
                "gradients of earlier batches wait for this step, but the optimizer evaluates the batch under way "
                "again, by a closure: skip no step without zeroing (Flag.SKIP_ZERO)"
            )
        parameters = dict.fromkeys(p for module in self.modules.values() for p in module.parameters())
        shown = self.output, self.loss_parts  # of the evaluation that is measured
        optimizer: Any = self.optimizer  # torch says that a closure gives a float; its optimizers take the tensor too
        try:
            optimizer.step(Closure(parameters, self._minimized, self._evaluate_again))
        finally:
            self.output, self.loss_parts = shown
        self.gradients.changed()

    def _evaluate_again(self) -> torch.Tensor:
        """Forward, loss and backward of the batch under way, with what callbacks did to its loss and gradients."""
        self.optimizer.zero_grad()
        doing, self.doing = self.doing, Operation.STEP  # so that the buffers from before the batch stay kept
        self.forward()
        self.doing = doing
        self._for_backward = self.compute_loss()
        for command in self.for_each_evaluation:
            if command.acts_on != "gradients":
                handler_of(type(command))(self, command)
        loss = self._for_backward
        if self.custom_backward is not None:
            self._own_backward(self.custom_backward, loss, 1.0)
        else:
            loss.backward()  # type: ignore[no-untyped-call]
        self._for_backward = None
        self.gradients.changed()
        for command in self.for_each_evaluation:
            if command.acts_on == "gradients":
                handler_of(type(command))(self, command)
        return loss.detach()

    def zero(self) -> None:
        self.optimizer.zero_grad()
        if self.precision is not None:
            self.precision.zero()
        self.window.clear()

    def measure(self, state: State) -> Mapping[str, float]:
        self.inputs = self.target = self.output = None
        metrics = self.train_meters.results()
        self.train_meters.reset()
        return metrics

    # ---------------------------------------------------------------------------- whole steps

    def fused(self, operations: tuple[Operation, ...]) -> Callable[[], Outcome] | None:
        """One implementation of a whole step, or of its beginning; none for a subclass that overrides an operation.

        One that overrides what operations call has it called.
        """
        if operations[:2] != WHOLE_STEP[:2]:
            return None
        overridden = any(getattr(type(self), op.value) is not getattr(Stepping, op.value) for op in WHOLE_STEP)
        if overridden:
            return None
        if operations == WHOLE_STEP:
            return self._whole_step if self._calls_as_given() else self.step_in_general
        if self.whole_step is not None:
            return partial(train_piece, self, operations)
        return None

    def laps(self, operations: tuple[Operation, ...]) -> Callable[[Lap], None] | None:
        """Whole steps in a row; none for a subclass that overrides an operation."""
        step = self.fused(operations) if operations == WHOLE_STEP else None
        if step is None or type(self).fetch is not Stepping.fetch:
            return None
        if step == self._whole_step:
            return partial(whole_laps, self)
        return partial(take_laps, fetch=self.fetch, step=step, leaves=lambda: self.interrupt is not None)

    _whole_step = whole_steps  # as a method: a call of one makes no frame of C

    def _calls_as_given(self) -> bool:
        return all(getattr(type(self), name) is getattr(Stepping, name) for name in CALLED)

    def step_in_general(self) -> bool:
        """Do the operations of a step in one call where possible, otherwise one by one. Whether it took the step."""
        fast = self.whole_step
        if fast is not None and self.mix is None and not self.window.shares and not self.one_by_one and fast.can_run():
            self.note_step(fast.run())
            return True
        for operation in WHOLE_STEP:
            self.doing = operation
            getattr(self, operation.value)()
        self.doing = None
        return self.stepped
