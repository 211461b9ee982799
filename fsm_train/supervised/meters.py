"""Means and metrics of an epoch, collected on the device and read once."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

import torch

from ..core.arguments import kind_of
from ..core.errors import WorkloadError
from ..data.batches import in_words
from ..data.generators import Generators
from .arguments import check_named

Measure = Callable[[Any, Any], "torch.Tensor | float"]


@runtime_checkable
class Metric(Protocol):
    """A metric that is updated batch by batch, as torchmetrics has them."""

    def update(self, output: Any, target: Any, /) -> None: ...
    def compute(self) -> Any: ...
    def reset(self) -> None: ...


class Mean:
    """The weighted mean of scalar tensors, which stay on their device until the mean is read.

    Adding a scalar appends it to a list: no kernel is launched, and nothing waits for the device. Every
    BLOCK scalars are stacked into one tensor, so that memory does not grow by an allocation a batch.
    """

    BLOCK = 1024

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self._latest: list[torch.Tensor] = []
        self._blocks: list[torch.Tensor] = []
        self._weights: list[int] = []

    def add(self, value: torch.Tensor, weight: int) -> None:
        self._latest.append(value)
        self._weights.append(weight)
        if len(self._latest) == self.BLOCK:
            self._blocks.append(torch.stack(self._latest).float())
            self._latest = []

    def result(self) -> float | None:
        """The mean, summed exactly in double precision; None if nothing was added."""
        if not self._weights:
            return None
        blocks = [*self._blocks, torch.stack(self._latest).float()] if self._latest else self._blocks
        values: list[float] = [value for block in blocks for value in block.tolist()]
        total = sum(self._weights)
        products = [value * weight for value, weight in zip(values, self._weights, strict=True)]
        return (math.fsum(products) if all(map(math.isfinite, products)) else sum(products)) / total

    def state(self) -> list[Any]:
        return [torch.stack(self._latest) if self._latest else None, list(self._blocks), list(self._weights)]

    def load_state(self, state: list[Any]) -> None:
        """What was added before stays a block of its own, wherever it was loaded to: nobody knows where the rest is."""
        latest, blocks, weights = state
        self._latest = []
        self._blocks = [*blocks] if latest is None else [*blocks, latest.float()]
        self._weights = list(weights)


class FunctionMetric:
    """The mean over samples of a function of (output, target).

    Attributes:
        function: returns the mean over one batch, a number or a scalar tensor.
        mean: over the batches so far, weighted by their samples.
    """

    def __init__(self, function: Measure) -> None:
        self.function = function
        self.mean = Mean()

    def add(self, output: Any, target: Any, samples: int) -> None:
        value = self.function(output, target)
        if value.dim() != 0 if isinstance(value, torch.Tensor) else not _is_scalar(value):
            raise WorkloadError(
                f"the metric returned {in_words(value)}: return a number or a scalar tensor, such as the mean over "
                "the batch"
            )
        self.mean.add(value.detach() if isinstance(value, torch.Tensor) else torch.tensor(float(value)), samples)

    def results(self, name: str) -> Iterator[tuple[str, float]]:
        result = self.mean.result()
        if result is not None:
            yield name, result

    def reset(self) -> None:
        self.mean.reset()

    def state(self) -> Any:
        return self.mean.state()

    def load_state(self, state: Any) -> None:
        self.mean.load_state(state)


class ObjectMetric:
    """A metric with update, compute and reset. If it computes a mapping, each key is a metric of its own.

    Attributes:
        metric: a copy of the user's, since train and valid data have one each.
        updated: whether it got a batch since the last reset.
        checked: whether what it computes was looked at.
    """

    def __init__(self, metric: Metric, device: torch.device) -> None:
        self.metric = copy.deepcopy(metric)
        self.device = device
        self._move()
        self.updated = False
        self.checked = not hasattr(metric, "_update_count")  # computing early does no harm to those of torchmetrics

    def _move(self) -> None:
        if hasattr(self.metric, "to"):
            self.metric = self.metric.to(self.device)

    def add(self, output: Any, target: Any, samples: int) -> None:
        self.metric.update(output, target)
        self.updated = True
        if not self.checked:
            self.check_result()

    def check_result(self) -> None:
        """Refuse a metric that computes something else than numbers, at its first batch and not after an epoch.

        Raises:
            WorkloadError: with what it computes.
        """
        self.checked = True
        before = Generators.now(())  # some draw samples
        try:
            with warnings.catch_warnings(action="ignore"):
                computed = self.metric.compute()
        except Exception:
            return  # one batch is too little for it
        finally:
            before.put_back()
        for value in computed.values() if isinstance(computed, Mapping) else (computed,):
            _as_float(value)

    def results(self, name: str) -> Iterator[tuple[str, float]]:
        if not self.updated:
            return
        computed = self.metric.compute()
        if isinstance(computed, Mapping):
            yield from ((f"{name}_{key}", _as_float(value)) for key, value in computed.items())
        else:
            yield name, _as_float(computed)

    def reset(self) -> None:
        self.metric.reset()
        self.updated = False

    def state(self) -> Any:
        """Its state_dict, where torchmetrics saves persistent states only; None if it has none."""
        if not hasattr(self.metric, "state_dict"):
            return None
        if hasattr(self.metric, "persistent"):
            self.metric.persistent(True)
        return [self.updated, getattr(self.metric, "_update_count", 0), dict(self.metric.state_dict())]

    def load_state(self, state: Any) -> None:
        if state is None:
            return
        self.updated, count, values = state
        if hasattr(self.metric, "persistent"):
            self.metric.persistent(True)
            self.metric._update_count = count  # type: ignore[attr-defined]
        self.metric.load_state_dict(values)  # type: ignore[attr-defined]
        self._move()  # torchmetrics takes the tensors that it is given, wherever they are


def _is_scalar(value: Any) -> bool:
    """Whether it is a single number: of Python, NumPy or torch."""
    size = getattr(value, "size", 1)  # of a tensor a method, of an array a number
    return hasattr(value, "__float__") and (value.numel() if callable(size) else size) == 1


def _as_float(computed: Any) -> float:
    if not _is_scalar(computed):
        raise WorkloadError(
            f"compute() returned {in_words(computed)}: let it return a number, such as the mean over the classes, or a "
            "mapping from names to numbers"
        )
    return float(computed)


class Meters:
    """The loss and the metrics of train or valid data.

    Attributes:
        split: "train" or "valid", the prefix of the names.
        loss: the mean over samples.
        metrics: by name without the prefix.
    """

    def __init__(self, split: str, metrics: Mapping[str, Measure | Metric], device: torch.device) -> None:
        self.split = split
        self.loss = Mean()
        self.metrics: dict[str, FunctionMetric | ObjectMetric] = {
            name: ObjectMetric(metric, device) if isinstance(metric, Metric) else FunctionMetric(metric)
            for name, metric in metrics.items()
        }

    def add(self, loss: torch.Tensor, output: Any, target: Any, samples: int) -> None:
        self.loss.add(loss, samples)
        if self.metrics:
            name = ""
            try:
                with torch.no_grad():
                    for name in self.metrics:
                        self.metrics[name].add(output, target, samples)
            except Exception as error:
                error.add_note(
                    f"Raised by the metric {name!r} on {self.split} data, given {in_words(output)} as the output and "
                    f"{in_words(target)} as the target."
                )
                raise

    def results(self) -> dict[str, float]:
        """The metrics by name, such as valid_loss, without those that got no value."""
        loss = self.loss.result()
        results = {} if loss is None else {f"{self.split}_loss": loss}
        name = ""
        try:
            for name, metric in self.metrics.items():
                results.update(metric.results(f"{self.split}_{name}"))
        except Exception as error:
            error.add_note(f"Raised by the metric {name!r}, by its compute, on {self.split} data.")
            raise
        return results

    def names(self) -> frozenset[str]:
        """The names that `results` may have. One with an asterisk is that of an object, which may compute a mapping."""
        names = {f"{self.split}_loss"}
        for name, metric in self.metrics.items():
            names.add(f"{self.split}_{name}")
            if isinstance(metric, ObjectMetric):
                names.add(f"{self.split}_{name}_*")
        return frozenset(names)

    def reset(self) -> None:
        self.loss.reset()
        for metric in self.metrics.values():
            metric.reset()

    def state(self) -> tuple[dict[str, Any], list[str]]:
        """What was collected so far, and the names of the metrics that have no state_dict."""
        states = {name: metric.state() for name, metric in self.metrics.items()}
        unsaved = [name for name, state in states.items() if state is None]
        return {"loss": self.loss.state(), "metrics": states}, unsaved

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.loss.load_state(state["loss"])
        for name, metric in self.metrics.items():
            if name in state["metrics"]:
                metric.load_state(state["metrics"][name])


def check_metrics(metrics: Mapping[str, Measure | Metric]) -> Mapping[str, Measure | Metric]:
    """The metrics, if each is one.

    Raises:
        TypeError: one is neither a function nor an object with update, compute and reset.
        ValueError: one is called "loss", which is measured anyway.
    """
    check_named("metrics", metrics, "'accuracy': accuracy", "output", "target")
    for name, metric in metrics.items():
        if not isinstance(metric, Metric) and not callable(metric):
            raise TypeError(
                f"the metric {name!r} is {kind_of(metric)}: give a function of (output, target), "
                "or an object with update, compute and reset"
            )
        if name == "loss":
            raise ValueError("a metric cannot be called 'loss': train_loss and valid_loss are measured anyway")
    return dict(metrics)
