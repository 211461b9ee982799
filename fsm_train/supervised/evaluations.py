"""Evaluations: what a validation measures, on which data and with which weights.

Rule of this file: an evaluation is a record, which is checked when it is made. When and how it is carried out is in
`validation.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import Enum
from typing import Any, Literal, TypeAlias

import attrs
import torch
from torch.utils.data import DataLoader

from ..core.checks import NO_TEXT, check_count, is_text
from ..core.errors import WorkloadError
from ..data.batches import Forward, check_loader
from ..data.known_sizes import known_sizes
from ..data.loaders import own_pass
from .arguments import check_data, check_function, check_loss_fn, takes_target
from .averages import Average
from .loss_parts import LossFn, may_have_parts
from .meters import AnyMetric, Meters, check_metrics


class AsInTraining(Enum):
    """What a setting of an evaluation is if it is left out: what the training has."""

    AS_IN_TRAINING = "the training's"

    def __repr__(self) -> str:
        return f"<{self.value}>"


AS_IN_TRAINING = AsInTraining.AS_IN_TRAINING
_Training: TypeAlias = Literal[AsInTraining.AS_IN_TRAINING]
Metrics = Mapping[str, AnyMetric]


@attrs.frozen(eq=False)
class Evaluation:
    """What a validation measures on some data: given as `valid` to `Supervised`, alone or several in a mapping.

    With valid={"clean": clean, "noisy": Evaluation(noisy, every=5)} the metrics are valid_clean_loss,
    valid_noisy_loss, and so on; of one alone they are valid_loss, valid_accuracy, … All evaluations that are due belong
    to one validation of the machine, in their order. Each gives the same numbers whether or not others go before it:
    the random generators are put back in between, and when all are over.

    >>> Evaluation([(1, 2)], loss_fn=None, every=5)
    Evaluation(list, loss_fn=None, metrics=<the training's>, forward=None, weights='own', every=5, seed=None)

    Args:
        data: batches of the same form as those of the training.
        loss_fn: of (output, target), a scalar tensor, in the place of the training's; None measures no loss.
        metrics: by name, in the place of the training's, as `Supervised` takes them. Those of an evaluation alone
            are not measured on training data.
        forward: of (model, inputs) or (model, inputs, target), the output, in the place of the training's; None for
            the training's.
        weights: "own", the model's own weights, also while `ema` or `swa` validates with an average; or the name of an
            average that a callback keeps. Before its first update an average is the own weights. After the last step
            the own weights are those that the training ended with.
        every: it is carried out at each so-many-th validation of the training, the first at number `every`. At
            others it measures nothing, and its metrics are not there. `evaluate` carries it out each time.
        seed: of all random generators when it begins: the same draws in each validation, also by workers: where those
            of a loader are persistent, others are started for it. None goes on from where the training is.

    Raises:
        WorkloadError: the loss or forward is of another kind.
        TypeError: the metrics are no mapping from names.
        ValueError: weights, every or seed is no such value.
    """

    data: Iterable[Any] = attrs.field(repr=False)
    loss_fn: LossFn | _Training | None = attrs.field(default=AS_IN_TRAINING, kw_only=True)
    metrics: Metrics | _Training = attrs.field(default=AS_IN_TRAINING, kw_only=True)
    forward: Forward | None = attrs.field(default=None, kw_only=True)
    weights: str = attrs.field(default="own", kw_only=True)
    every: int = attrs.field(default=1, kw_only=True)
    seed: int | None = attrs.field(default=None, kw_only=True)
    forward_takes_target: bool = attrs.field(default=False, init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        if self.loss_fn is not None and self.loss_fn is not AS_IN_TRAINING:
            check_loss_fn(self.loss_fn)
        if self.metrics is not AS_IN_TRAINING:
            check_metrics(self.metrics)
        if self.forward is not None:
            takes_target_too = takes_target(self.forward)
            object.__setattr__(self, "forward_takes_target", takes_target_too)
            check_function("forward", self.forward, "model", "inputs", *(["target"] if takes_target_too else []))
        if not isinstance(self.weights, str) or not self.weights:
            raise ValueError(f"weights={self.weights!r}: 'own', or the name of an average, such as 'ema'")
        if self.weights == "model":
            raise ValueError("weights='model': write weights='own' for the model's own weights")
        check_count("every", self.every, least=1)
        if self.seed is not None:
            check_count("seed", self.seed)

    def __repr__(self) -> str:
        settings = ", ".join(f"{f.name}={getattr(self, f.name)!r}" for f in attrs.fields(Evaluation)[1:] if f.init)
        return f"Evaluation({type(self.data).__name__}, {settings})"


Valid: TypeAlias = Iterable[Any] | Evaluation | Mapping[str, Iterable[Any] | Evaluation]
"""What `Supervised` takes as `valid`."""


@attrs.frozen(eq=False)
class BoundEvaluation:
    """An evaluation of one training, with what it measures into.

    Attributes:
        name: in the mapping; "" of one alone.
        prefix: of the names of its metrics: "valid", or "valid_" with its name in the mapping.
        argument: how it was given, for errors: "valid", or "valid['noisy']".
        loader: its data.
        settings: the record.
        weights: those of the record; None for those that the model has.
        meters: its loss and its metrics.
    """

    name: str
    prefix: str
    argument: str
    loader: Iterable[Any]
    settings: Evaluation
    weights: str | None
    meters: Meters

    @property
    def forward_takes_target(self) -> bool:
        """Whether a forward of its own is one of (model, inputs, target)."""
        return self.settings.forward_takes_target

    @property
    def has_loss(self) -> bool:
        return self.settings.loss_fn is not None

    def loss_fn(self, of_training: LossFn) -> LossFn:
        """The loss function; only where it `has_loss`."""
        own = self.settings.loss_fn
        return of_training if own is None or own is AS_IN_TRAINING else own

    def names(self, of_training: LossFn | None = None) -> frozenset[str]:
        """The names of its metrics, as `Meters.names` has them; with parts, if the loss of the training is given."""
        parts = of_training is not None and self.has_loss and may_have_parts(self.loss_fn(of_training))
        return self.meters.names(parts=parts) - (frozenset() if self.has_loss else {f"{self.prefix}_loss"})

    def is_due(self, number: int) -> bool:
        """Whether it is carried out at the validation of this number, from 1."""
        return number % self.settings.every == 0


def records_of(valid: Valid | None) -> dict[str, tuple[Evaluation, str | None]]:
    """By name, each evaluation with its weights: "" is one alone, and None are the weights that the model has.

    A plain loader is evaluated with the weights that the model has then, which may be those of an average. Beside an
    evaluation that names an average, it is the one with the own weights.

    Raises:
        WorkloadError: a mapping is empty, or several evaluations are in a list.
        TypeError, ValueError: a name is no text.
    """
    if valid is None:
        return {}
    if _is_list_of_evaluations(valid):
        raise WorkloadError(
            f"valid is a {type(valid).__name__} of evaluations, and not of batches: name them in a mapping, "
            "valid={'clean': …, 'noisy': …}"
        )
    if not isinstance(valid, Mapping):
        return {"": (valid, valid.weights) if isinstance(valid, Evaluation) else (Evaluation(valid), None)}
    if not valid:
        raise WorkloadError("valid is a mapping without evaluations: leave valid out for a training without validation")
    for name in valid:
        if not isinstance(name, str):
            raise TypeError(f"valid has the key {name!r}: names are strings, valid={{'clean': loader}}")
        if not is_text(name) or not name:
            raise ValueError(f"valid has the name {name!r}: {NO_TEXT if name else 'give it one, such as clean'}")
    side_by_side = any(isinstance(given, Evaluation) and given.weights != "own" for given in valid.values())
    of_loaders = "own" if side_by_side else None
    return {
        name: (given, given.weights) if isinstance(given, Evaluation) else (Evaluation(given), of_loaders)
        for name, given in valid.items()
    }


def _is_list_of_evaluations(valid: object) -> bool:
    if not isinstance(valid, (list, tuple)) or type(valid) not in (list, tuple):
        return False  # the __iter__ of a subclass may do anything
    return any(isinstance(each, (Evaluation, DataLoader)) for each in valid)


def loaders_of(
    records: Mapping[str, tuple[Evaluation, str | None]], train: Iterable[Any], *, tensors: bool
) -> dict[str, Iterable[Any]]:
    """By name, the data of each evaluation, whose passes leave the one over the training data alone.

    Raises:
        WorkloadError: it gives no batches.
    """
    loaders = {}
    for name, (record, _) in records.items():
        check_data(_argument(name), record.data, tensors=tensors)
        loader = own_pass(train, check_loader(record.data, _argument(name)))
        assert loader is not None
        loaders[name] = loader
    return loaders


def bind(
    records: Mapping[str, tuple[Evaluation, str | None]],
    loaders: Mapping[str, Iterable[Any]],
    metrics: Metrics,
    device: torch.device,
    shared: Mapping[int, object],
) -> tuple[BoundEvaluation, ...]:
    """The evaluations of a training with these metrics.

    Raises:
        WorkloadError: a metric of one is called as a metric of another one.
    """
    bound: list[BoundEvaluation] = []
    for name, (record, weights) in records.items():
        own = metrics if record.metrics is AS_IN_TRAINING else check_metrics(record.metrics)
        prefix = f"valid_{name}" if name else "valid"
        meters = Meters(prefix, own, device, shared)
        bound.append(BoundEvaluation(name, prefix, _argument(name), loaders[name], record, weights, meters))
        for other in bound[:-1]:
            for twice in sorted(other.names() & bound[-1].names()):
                raise WorkloadError(
                    f"{other.argument} and {bound[-1].argument} both measure {twice}: give one of them another name"
                )
    return tuple(bound)


def as_given(loaders: Mapping[str, Iterable[Any]]) -> Iterable[Any] | Mapping[str, Iterable[Any]] | None:
    """The loader of one alone, a mapping of several, or None."""
    return loaders.get("", loaders or None)


def _argument(name: str) -> str:
    return f"valid[{name!r}]" if name else "valid"


def sizes_of_validation(evaluations: Sequence[BoundEvaluation]) -> tuple[int, float, float] | None:
    """The `known_sizes` of a validation: of one evaluation that is carried out each time; None of others."""
    if len(evaluations) != 1 or evaluations[0].settings.every != 1:
        return None
    return known_sizes(evaluations[0].loader)


def check_averages(evaluations: Iterable[BoundEvaluation], averages: Mapping[str, Average]) -> None:
    """Refuse evaluations with an average that no callback keeps.

    Raises:
        WorkloadError: with the averages that there are.
    """
    for each in evaluations:
        if each.weights not in (None, "own", *averages):
            there_are = ", ".join(map(repr, averages)) or "none"
            raise WorkloadError(
                f"{each.argument} is with weights={each.weights!r}, but no callback keeps an average of this name: "
                f"there are {there_are}. Give run the callback, such as ema(name={each.weights!r})"
            )


def use_weights(averages: Mapping[str, Average], weights: str) -> list[Average]:
    """Give the model these weights; the averages that it had, for `use_again`."""
    before = [average for average in averages.values() if average.in_use]
    use_again(averages, [averages[weights]] if weights in averages else [])
    return before


def use_again(averages: Mapping[str, Average], wanted: list[Average]) -> None:
    """Give the model the own weights, or those of the averages."""
    for average in averages.values():
        if average not in wanted:
            average.use(False)
    for average in wanted:
        average.use(True)


def own_parts(evaluations: Iterable[BoundEvaluation]) -> Iterator[tuple[str, object]]:
    """The functions that evaluations have of their own, by the path of each."""
    for each in evaluations:
        if each.has_loss and each.settings.loss_fn is not AS_IN_TRAINING:
            yield f"{each.argument}.loss_fn", each.settings.loss_fn
        if each.settings.forward is not None:
            yield f"{each.argument}.forward", each.settings.forward
