"""Metrics that are no mean over batches: a function of all outputs and targets of an epoch or a validation.

Rule of this file: what is gathered is on the CPU and belongs to nobody else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import attrs
import torch

from ..checkpoints.writing import find_unsafe
from ..core.arguments import kind_of
from ..core.errors import WorkloadError
from ..data.batches import in_words, map_tensors
from .arguments import check_call
from .joining import join
from .real_numbers import named_numbers


@attrs.frozen
class OverAll:
    """A function that is asked once, with all outputs and targets. Made by `over_all`."""

    function: Callable[[Any, Any], Any]


def over_all(function: Callable[[Any, Any], Any]) -> OverAll:
    """A metric that is measured over all outputs and targets at once, such as an area under a curve.

    They are gathered on the CPU, detached, and joined along their first dimension; scalars are stacked. Tuples and
    mappings are joined part by part. Lists, and tuples of mappings or texts, have an item for each sample: they become
    one list. Tensors that differ in their dtype or behind the first dimension, and anything else, become a list with an
    item for each batch.

    On training data an epoch is gathered, as the outputs were in training. What is gathered is a part of a checkpoint
    in the middle of an epoch, in which a container of another class than tuple, list or dict is saved as one of these.

    Of several ranks each asks it of its own share, and the metric is the mean of their answers, by what their batches
    counted: of an area under a curve it is not that of all data. A warning says so.

    >>> from fsm_train import Supervised, run, start
    >>> def spread(output, target):
    ...     return (output - target).max() - (output - target).min()
    >>> model = torch.nn.Linear(1, 1, bias=False)
    >>> batches = [(torch.zeros(2, 1), torch.zeros(2, 1)), (torch.zeros(2, 1), torch.ones(2, 1))]
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> work = Supervised(
    ...     model, optimizer, torch.nn.MSELoss(), batches, batches, metrics={"spread": over_all(spread)}
    ... )
    >>> run(start(work, epochs=1)).metrics["valid_spread"]
    1.0

    Args:
        function: of (output, target), a real number or a mapping from names to numbers, each a metric of its own.

    Raises:
        TypeError: it is no function.
        WorkloadError: it takes other arguments.
    """
    if isinstance(function, type) or not callable(function):
        raise TypeError(f"over_all({kind_of(function)}): give a function of (output, target)")
    check_call("the function of over_all", function, "output", "target")
    return OverAll(function)


class GatheredMetric:
    """The outputs and targets so far, and the function that is asked at the end.

    Attributes:
        name: of the metric, for errors.
        function: of all outputs and all targets.
        outputs, targets: one for each batch.
    """

    when = "asked over all outputs and targets"
    may_be_several = True

    def __init__(self, name: str, function: Callable[[Any, Any], Any]) -> None:
        self.name = name
        self.function = function
        self.reset()

    def reset(self) -> None:
        self.outputs: list[Any] = []
        self.targets: list[Any] = []

    def add(self, output: Any, target: Any, samples: float) -> None:
        self.outputs.append(map_tensors(output, _own_copy))
        self.targets.append(map_tensors(target, _own_copy))

    def results(self, name: str) -> Iterator[tuple[str, float]]:
        if not self.outputs:
            return
        output, target = join(self.outputs, as_batch_of="outputs"), join(self.targets, as_batch_of="targets")
        try:
            with torch.no_grad():
                answer = self.function(output, target)
        except Exception as error:
            error.add_note(f"It was given {in_words(output)} as all outputs and {in_words(target)} as all targets.")
            raise
        yield from named_numbers(name, answer, f"the metric {self.name!r}")

    def state(self) -> dict[str, Any]:
        """What was gathered, if a checkpoint can hold it."""
        gathered = {"outputs": _plain(self.outputs), "targets": _plain(self.targets)}
        unsafe = find_unsafe(gathered)
        return {"unsaved": [unsafe]} if unsafe else {**gathered, "unsaved": []}

    def load_state(self, state: Any) -> None:
        """Restore what `state` gave.

        Raises:
            WorkloadError: it is of another kind of metric, or could not be saved.
        """
        self.reset()
        if not isinstance(state, Mapping) or not {"outputs", "targets"} <= state.keys():
            raise WorkloadError("what it had gathered was not saved")
        self.outputs = [map_tensors(output, _own_copy) for output in state["outputs"]]
        self.targets = [map_tensors(target, _own_copy) for target in state["targets"]]


def _own_copy(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().to("cpu", copy=True)


def _plain(value: Any) -> Any:
    """The value with its containers as a tuple, list or dict."""
    if isinstance(value, Mapping):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, tuple):
        return tuple(map(_plain, value))
    return [_plain(part) for part in value] if isinstance(value, list) else value
