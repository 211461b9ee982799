"""The operations of a validation, and the computing that it shares with training.

Rule of this file: a validation changes nothing of the training but the metrics.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set
from contextlib import AbstractContextManager, nullcontext
from types import MappingProxyType
from typing import Any

import torch

from ..core.errors import WorkloadError
from ..core.runs import stopped_at_its_begin
from ..core.state import State
from ..data.batches import apply_split, check_scalar, pair
from ..data.counting import count
from ..data.first_look import first_look
from ..data.loaders import set_persistent_workers, start_pass
from ..data.prefetch import prefetched
from .loss_parts import may_have_parts, separate
from .measures import Taken, take
from .other_data import evaluate_on
from .snapshot import ValidationGuard
from .training import Training

_END = object()


class Validating(Training):
    """A training that can be validated: what `Supervised` does between VALID_BEGIN and VALID_END."""

    _valid_batches: Iterator[Any] = iter(())  # the pass over valid that is under way
    _validation_guard: ValidationGuard | None = None  # of the validation that is under way

    _measures: Mapping[str, Taken] = MappingProxyType({})

    def _metric_names(self) -> Set[str]:
        """The names of all metrics; one with an asterisk stands for all that begin like it."""
        parts = may_have_parts(self.loss_fn)
        names = self.train_meters.names(parts=parts)
        if self.valid is None:
            return names
        measures = {f"valid_{name}{more}" for name in self._measures for more in ("", "_*")}
        return names | self._valid_meters.names(parts=parts) | measures

    def forward(self) -> None:
        """Set `output`. In training, the buffers are kept in case the batch is left out."""
        if self.doing is None and torch.is_grad_enabled():  # in a whole step nothing can leave the batch out
            self._buffers.keep()
        if self.precision is None:
            self.output = self.call(self.inputs, self.target)
        else:
            with self.precision.compute():
                self.output = self.call(self.inputs, self.target)

    def compute_loss(self) -> torch.Tensor:
        """The loss of the batch under way, with its graph, in the precision of the training; sets `loss_parts`."""
        with nullcontext() if self.precision is None else self.precision.compute():
            if self.mix is not None:
                loss = self.mix.loss(self.loss_fn, self.output, self.target)
            else:
                loss = self.loss_fn(self.output, self.target)
        separated, self.loss_parts = separate(loss)
        return separated  # type: ignore[no-any-return]  # the user's: what it is is looked at by who computes it

    def look_at_valid(self) -> None:
        """Refuse validation batches that cannot be used, where one can be looked at."""
        with first_look(self.valid) as batch:
            if batch is None:
                return
            try:
                parts = pair(batch) if self._split is None else apply_split(batch, self._split)
                if self._samples is None:
                    count(*parts, by_position=self.custom_forward is None)
            except WorkloadError as error:
                raise WorkloadError(f"valid: {error}") from error

    def open_valid(self, state: State) -> None:
        assert self.valid is not None
        modules = self.modules
        self.carried_over.check_kept(modules)
        self._validation_guard = ValidationGuard.of(modules, self.loader_generators(), self.valid)
        self._valid_meters.reset()
        for module in modules.values():
            module.eval()
        self._valid_batches = prefetched(self._copier, self.valid, start_pass(self.valid))

    def fetch_valid(self) -> float | None:
        self.output = self._loss = None
        batch = next(self._valid_batches, _END)
        return None if batch is _END else self._take(batch)

    def evaluate(self) -> None:
        with torch.no_grad():
            self.forward()
            loss = self.compute_loss()
            if not isinstance(loss, torch.Tensor) or loss.dim() != 0:
                check_scalar(loss)
            self._loss = loss.detach()
            self.meter(self._valid_meters, self._loss)

    def measure_valid(self, state: State) -> Mapping[str, float]:
        metrics = self._valid_meters.results()
        if metrics and self._measures:
            metrics |= take(self, self._measures)
        self.end_validation()
        self.carried_over.note_measured()
        if not metrics and not stopped_at_its_begin(state):
            raise WorkloadError(
                "valid gave no batch that counts: it is empty, its __iter__ starts no new pass each time, "
                "or samples= counts 0 for each of its batches"
            )
        return metrics

    def abandon(self, state: State) -> None:
        """Restore everything as if this validation had not started."""
        guard = self._validation_guard
        self.end_validation()
        if guard is not None:
            set_persistent_workers(self.valid, guard.workers)

    def abandon_validation(self, state: State) -> None:
        """Abandon the validation that is under way, if one is."""
        if self._validation_guard is not None:
            self.abandon(state)

    def evaluate_on(self, data: Any) -> AbstractContextManager[None]:
        return evaluate_on(self, data)

    def end_validation(self) -> None:
        """Restore modes and generators, so that validating does not change the training."""
        self._valid_meters.reset()
        self._valid_batches = iter(())
        self._loss = self.inputs = self.target = self.output = None
        if self._validation_guard is not None:
            self._validation_guard.put_back()
            self._validation_guard = None
