"""The loss and the metrics of an epoch or a validation, by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ..core.arguments import kind_of
from ..core.errors import WorkloadError
from ..data.batches import in_words
from .arguments import check_named
from .function_metrics import FunctionMetric, Measure
from .means import Mean
from .object_metrics import NOT_SHARED, Metric, ObjectMetric
from .over_all import GatheredMetric, OverAll
from .real_numbers import add_new

AnyMetric = Measure | Metric | OverAll


class Meters:
    """The loss and the metrics of train or valid data.

    Attributes:
        split: "train" or "valid", the prefix of the names.
        loss: the mean over samples.
        parts: of a loss by parts, the same means by name.
        metrics: by name without the prefix.
    """

    def __init__(
        self,
        split: str,
        metrics: Mapping[str, AnyMetric],
        device: torch.device,
        shared: Mapping[int, object] = NOT_SHARED,
    ) -> None:
        self.split = split
        self.loss = Mean()
        self.parts: dict[str, Mean] = {}
        self.metrics = {name: _collector(name, metric, device, shared) for name, metric in metrics.items()}

    def add(self, loss: torch.Tensor | None, output: Any, target: Any, samples: float) -> None:
        if loss is not None:
            self.loss.add(loss, samples)
        if self.metrics:
            self.add_metrics(output, target, samples)

    def add_metrics(self, output: Any, target: Any, samples: float) -> None:
        """Add a batch to the metrics, of which there are some."""
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

    def add_parts(self, parts: Mapping[str, torch.Tensor], samples: float) -> None:
        """Add the parts of a batch's loss: scalars, by name.

        Raises:
            WorkloadError: one has the name of a metric.
        """
        for name, value in parts.items():
            if name not in self.parts:
                if name in self.metrics:
                    raise WorkloadError(
                        f"loss_fn returned a part {name!r}, and a metric has this name: rename one of them"
                    )
                self.parts[name] = Mean()
            self.parts[name].add(value, samples)

    def results(self) -> dict[str, float]:
        """The metrics by name, such as valid_loss, without those that got no value."""
        loss = self.loss.result()
        results = {} if loss is None else {f"{self.split}_loss": loss}
        if self.parts:
            parts = {f"{self.split}_{name}": part.result() for name, part in self.parts.items()}
            results |= {name: mean for name, mean in parts.items() if mean is not None}
        if not self.metrics:
            return results
        name = ""
        try:
            for name, metric in self.metrics.items():
                add_new(results, metric.results(f"{self.split}_{name}"), f"the metric {name!r}")
        except Exception as error:
            error.add_note(f"Raised by the metric {name!r}, {self.metrics[name].when}, on {self.split} data.")
            raise
        return results

    def names(self, *, parts: bool) -> frozenset[str]:
        """The names that `results` may have. One with an asterisk stands for several, if a mapping is computed.

        Args:
            parts: whether the loss may have parts, which can have any name.
        """
        names = {f"{self.split}_loss", *([f"{self.split}_*"] if parts else [])}
        for name, metric in self.metrics.items():
            names.add(f"{self.split}_{name}")
            if metric.may_be_several:
                names.add(f"{self.split}_{name}_*")
        return frozenset(names)

    def reset(self) -> None:
        self.loss.reset()
        self.parts.clear()
        for metric in self.metrics.values():
            metric.reset()

    def state(self) -> tuple[dict[str, Any], list[str]]:
        """What was collected so far, and what could not be saved of it, each with the metric's name."""
        states = {name: metric.state() for name, metric in self.metrics.items()}
        unsaved = [
            f"{name}: {what}"
            for name, state in states.items()
            if isinstance(state, dict)
            for what in state.pop("unsaved", ())
        ]
        parts = {name: part.state() for name, part in self.parts.items()}
        return {"loss": self.loss.state(), "parts": parts, "metrics": states}, unsaved

    def load_state(self, state: Mapping[str, Any]) -> list[str]:
        """Restore what was collected. What differs, each with the metric's name."""
        self.loss.load_state(state["loss"])
        self.parts = {name: Mean() for name in state.get("parts", {})}
        for name, part in self.parts.items():
            part.load_state(state["parts"][name])
        different = []
        for name, metric in self.metrics.items():
            if name not in state["metrics"]:
                different.append(f"{name}: nothing of it was saved")
                continue
            try:
                metric.load_state(state["metrics"][name])
            except Exception as error:  # a metric refuses in its own way
                different.append(f"{name}: {error}")
        return different


def _collector(
    name: str, metric: AnyMetric, device: torch.device, shared: Mapping[int, object]
) -> FunctionMetric | ObjectMetric | GatheredMetric:
    if isinstance(metric, OverAll):
        return GatheredMetric(name, metric.function)
    return ObjectMetric(name, metric, device, shared) if isinstance(metric, Metric) else FunctionMetric(name, metric)


def check_metrics(metrics: Mapping[str, AnyMetric]) -> Mapping[str, AnyMetric]:
    """The metrics, if each is one.

    Raises:
        TypeError: one is neither a function nor an object with update, compute and reset.
        ValueError: one is called "loss", which is measured anyway.
    """
    check_named("metrics", metrics, "'accuracy': accuracy", "output", "target")
    for name, metric in metrics.items():
        if not isinstance(metric, (Metric, OverAll)) and not callable(metric):
            raise TypeError(
                f"the metric {name!r} is {kind_of(metric)}: give a function of (output, target), "
                "or an object with update, compute and reset"
            )
        if name == "loss":
            raise ValueError("a metric cannot be called 'loss': train_loss and valid_loss are measured anyway")
    return dict(metrics)
