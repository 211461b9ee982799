"""Metrics that are objects, updated batch by batch and asked at the epoch's end.

Rule of this file: the user's object is copied, and what it shares with the training is not.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn

from ..data.generators import Generators
from ..data.sources import own_state
from .object_state import Restorer, Saver
from .real_numbers import named_numbers

NOT_SHARED: Mapping[int, object] = MappingProxyType({})


@runtime_checkable
class Metric(Protocol):
    """A metric that is updated batch by batch, as torchmetrics has them."""

    def update(self, output: Any, target: Any, /) -> None: ...
    def compute(self) -> Any: ...
    def reset(self) -> None: ...


class ObjectMetric:
    """A metric with update, compute and reset. If it computes a mapping, each key is a metric of its own.

    Attributes:
        name: of the metric, for errors.
        metric: a copy of the user's, since train and valid data have one each.
        shared: by id, what it may hold and is not its own, such as the model: not copied, and not saved with it.
        updated: whether it got a batch since the last reset.
        checked: whether what it computes was looked at.
    """

    when = "by its compute"
    may_be_several = True

    def __init__(
        self, name: str, metric: Metric, device: torch.device, shared: Mapping[int, object] = NOT_SHARED
    ) -> None:
        self.name = name
        self.metric = _copy_of(metric, shared)
        self.shared = shared
        self.device = device
        self._move()
        self.updated = False
        self.checked = not hasattr(metric, "_update_count")  # those of torchmetrics have no effect elsewhere

    def _move(self) -> None:
        if hasattr(self.metric, "to"):
            self.metric = self.metric.to(self.device)

    def add(self, output: Any, target: Any, samples: float) -> None:
        self.metric.update(output, target)
        self.updated = True
        if not self.checked:
            self.check_result()

    def check_result(self) -> None:
        """Refuse a metric that computes something else than numbers, at its first batch and not after an epoch.

        A copy computes: some, such as MinMaxMetric, remember what they computed.

        Raises:
            WorkloadError: with what it computes.
        """
        self.checked = True
        before = Generators.now(())  # some draw samples
        try:
            with warnings.catch_warnings(action="ignore"):
                computed = _copy_of(self.metric, self.shared).compute()
        except Exception:
            return  # one batch is too little for it
        finally:
            before.put_back()
        list(named_numbers(self.name, computed, f"compute() of the metric {self.name!r}"))

    def results(self, name: str) -> Iterator[tuple[str, float]]:
        if self.updated:
            yield from named_numbers(name, self.metric.compute(), f"compute() of the metric {self.name!r}")

    def reset(self) -> None:
        self.metric.reset()
        self.updated = False

    def state(self) -> dict[str, Any]:
        """What it collected: its state_dict, or for a module and an object without one its attributes."""
        own = None if isinstance(self.metric, nn.Module) else own_state(self.metric)
        if own is not None:
            return {"updated": self.updated, "own": own, "unsaved": []}
        saver = Saver(self.shared)
        return {"updated": self.updated, "attributes": saver.save(self.metric), "unsaved": saver.unsaved}

    def load_state(self, state: Any) -> None:
        """Restore what `state` gave.

        Raises:
            WorkloadError: the metric is of another structure than the one that was saved.
        """
        if isinstance(state, dict):
            self.updated = state["updated"]
            if "own" in state:
                self.metric.load_state_dict(state["own"])  # type: ignore[attr-defined]
            else:
                Restorer(self.device).restored(self.metric, state["attributes"])
        elif state is not None:  # of an earlier version
            self.updated, count, values = state
            if hasattr(self.metric, "persistent"):
                self.metric.persistent(True)
                self.metric._update_count = count  # type: ignore[attr-defined]
            self.metric.load_state_dict(values)  # type: ignore[attr-defined]
            self._move()  # torchmetrics takes the tensors that it is given, wherever they are


def _copy_of(metric: Metric, shared: Mapping[int, object]) -> Metric:
    """A copy of the metric that holds the same model, optimizer and data as this one.

    Raises:
        TypeError: it cannot be copied.
    """
    try:
        return copy.deepcopy(metric, dict(shared))
    except Exception as error:
        raise TypeError(
            f"the metric {type(metric).__name__} cannot be copied, but train and valid data have one each "
            f"({type(error).__name__}: {error}): define __deepcopy__, or give a function of (output, target)"
        ) from error
