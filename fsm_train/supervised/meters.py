"""Means and metrics of an epoch, collected on the device and read once."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn

from ..core.arguments import kind_of
from ..core.checks import NO_TEXT, is_text
from ..core.errors import WorkloadError
from ..data.batches import in_words
from ..data.generators import Generators
from ..data.sources import own_state
from .arguments import check_named
from .object_state import Restorer, Saver
from .real_numbers import as_float, is_real_scalar

NOT_SHARED: Mapping[int, object] = MappingProxyType({})


Measure = Callable[[Any, Any], "torch.Tensor | float"]


@runtime_checkable
class Metric(Protocol):
    """A metric that is updated batch by batch, as torchmetrics has them."""

    def update(self, output: Any, target: Any, /) -> None: ...
    def compute(self) -> Any: ...
    def reset(self) -> None: ...


class Mean:
    """The weighted mean of scalar tensors, which stay on their device, in their type, until the mean is read.

    Adding a scalar appends it to a list: no kernel is launched, and nothing waits for the device. Every
    BLOCK scalars of one type are stacked into one tensor, so that memory does not grow by an allocation a batch.
    """

    BLOCK = 1024

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self._latest: list[torch.Tensor] = []
        self._blocks: list[torch.Tensor] = []
        self._weights: list[float] = []

    def add(self, value: torch.Tensor, weight: float) -> None:
        latest = self._latest
        if latest and (value.dtype is not latest[0].dtype or value.device != latest[0].device):
            self._stack()  # each block has one type: a common one would round
            latest = self._latest
        latest.append(value)
        self._weights.append(weight)
        if len(latest) == self.BLOCK:
            self._stack()

    def _stack(self) -> None:
        if self._latest:
            self._blocks.append(torch.stack(self._latest))
            self._latest = []

    def result(self) -> float | None:
        """The mean in double precision, of a sum that is exact; None if nothing was added."""
        if not self._weights:
            return None
        self._stack()
        return weighted_mean(_on_cpu(self._blocks), self._weights)

    def state(self) -> list[Any]:
        return [torch.stack(self._latest) if self._latest else None, list(self._blocks), list(self._weights)]

    def load_state(self, state: list[Any]) -> None:
        """What was added before stays a block of its own, wherever it was loaded to."""
        latest, blocks, weights = state
        self._latest, self._blocks = [], [*blocks, *([] if latest is None else [latest])]
        self._weights = list(weights)


def _on_cpu(blocks: Sequence[torch.Tensor]) -> list[float]:
    """The numbers of all blocks, one transfer a block. No number is rounded."""
    return [value for block in blocks for value in block.tolist()]


def weighted_mean(values: Sequence[float], weights: Sequence[float]) -> float:
    """The mean of the values, each as often as its weight says, as if all were added in one pass without rounding.

    >>> weighted_mean([0.1, 0.7], [3, 1])
    0.25

    Args:
        values: finite or not.
        weights: not negative, as many as values, and not all 0.
    """
    total = math.fsum(weights)
    if not all(map(math.isfinite, values)):
        return sum(value * weight for value, weight in zip(values, weights, strict=True)) / total
    shift = 128 if max(map(abs, values)) > 2.0**800 else 0  # or products would not fit
    halves = {weight: _halves(math.ldexp(weight, -shift)) for weight in set(weights)}
    pairs = zip(values, weights, strict=True)
    products = (v * w for value, weight in pairs for v in _halves(value) for w in halves[weight])
    return math.ldexp(math.fsum(products) / total, shift)


def _halves(number: float) -> tuple[float, ...]:
    """Numbers of at most 26 bits each that add up to this one: products of two of them are exact."""
    mantissa, exponent = math.frexp(number)
    high = math.ldexp(float(round(mantissa * 0x4000000)), exponent - 26)
    return (high,) if high == number else (high, number - high)


class FunctionMetric:
    """The mean over samples of a function of (output, target).

    Attributes:
        name: of the metric, for errors.
        function: returns the mean over one batch, a number or a scalar tensor.
        mean: over the batches so far, weighted by their samples.
    """

    def __init__(self, name: str, function: Measure) -> None:
        self.name = name
        self.function = function
        self.mean = Mean()

    def add(self, output: Any, target: Any, samples: float) -> None:
        value = self.function(output, target)
        if getattr(value, "dim", int)() != 0 or not is_real_scalar(value):
            raise WorkloadError(
                f"the metric {self.name!r} returned {in_words(value)}: return a real number or a scalar tensor, such "
                "as the mean over the batch"
            )
        self.mean.add(value.detach() if isinstance(value, torch.Tensor) else _as_tensor(value), samples)

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


def _as_tensor(number: float) -> torch.Tensor:
    return torch.tensor(float(number), dtype=torch.float64, device="cpu")  # not each device has float64


class ObjectMetric:
    """A metric with update, compute and reset. If it computes a mapping, each key is a metric of its own.

    Attributes:
        name: of the metric, for errors.
        metric: a copy of the user's, since train and valid data have one each.
        shared: by id, what it may hold and is not its own, such as the model: not copied, and not saved with it.
        updated: whether it got a batch since the last reset.
        checked: whether what it computes was looked at.
    """

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
        list(self._numbers(self.name, computed))

    def results(self, name: str) -> Iterator[tuple[str, float]]:
        if self.updated:
            yield from self._numbers(name, self.metric.compute())

    def _numbers(self, name: str, computed: Any) -> Iterator[tuple[str, float]]:
        if isinstance(computed, Mapping):
            parts = {f"{name}_{key}": value for key, value in computed.items()}
        else:
            parts = {name: computed}
        for part, value in parts.items():
            if not is_text(part):
                raise WorkloadError(f"compute() of the metric {self.name!r} returned the name {part!r}: {NO_TEXT}")
            if not is_real_scalar(value):
                raise WorkloadError(
                    f"compute() of the metric {self.name!r} returned {in_words(value)} for {part!r}: let it return a "
                    "real number, such as the mean over the classes, or a mapping from names to numbers"
                )
            yield part, as_float(value)

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


class Meters:
    """The loss and the metrics of train or valid data.

    Attributes:
        split: "train" or "valid", the prefix of the names.
        loss: the mean over samples.
        metrics: by name without the prefix.
    """

    def __init__(
        self,
        split: str,
        metrics: Mapping[str, Measure | Metric],
        device: torch.device,
        shared: Mapping[int, object] = NOT_SHARED,
    ) -> None:
        self.split = split
        self.loss = Mean()
        self.metrics: dict[str, FunctionMetric | ObjectMetric] = {
            name: ObjectMetric(name, metric, device, shared)
            if isinstance(metric, Metric)
            else FunctionMetric(name, metric)
            for name, metric in metrics.items()
        }

    def add(self, loss: torch.Tensor | None, output: Any, target: Any, samples: float) -> None:
        if loss is not None:
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
        """What was collected so far, and what could not be saved of it, each with the metric's name."""
        states = {name: metric.state() for name, metric in self.metrics.items()}
        unsaved = [
            f"{name}: {what}"
            for name, state in states.items()
            if isinstance(state, dict)
            for what in state.pop("unsaved")
        ]
        return {"loss": self.loss.state(), "metrics": states}, unsaved

    def load_state(self, state: Mapping[str, Any]) -> list[str]:
        """Restore what was collected. What differs, each with the metric's name."""
        self.loss.load_state(state["loss"])
        different = []
        for name, metric in self.metrics.items():
            if name not in state["metrics"]:
                different.append(f"{name}: nothing of it was saved")
                continue
            try:
                metric.load_state(state["metrics"][name])
            except (WorkloadError, TypeError, ValueError, AttributeError) as error:
                different.append(f"{name}: {error}")
        return different


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
