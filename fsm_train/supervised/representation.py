"""How a `Supervised` looks in a terminal and in a notebook. No loader is iterated for it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ..core.joint_hyper import without_shared
from ..core.representation import html_table, properties
from ..core.state import Hyper
from ..data.batches import number_of_batches
from .advice import sizes
from .joint_optimizer import JointOptimizer, kinds_of
from .training import Training


def as_text(work: Training, measures: Iterable[str], sensors: Iterable[str]) -> str:
    return properties(type(work).__name__, _parts(work, measures, sensors))


def as_html(work: Training, measures: Iterable[str], sensors: Iterable[str]) -> str:
    return html_table(type(work).__name__, _parts(work, measures, sensors))


def _parts(work: Training, measures: Iterable[str], sensors: Iterable[str]) -> list[tuple[str, str]]:
    """What the training consists of, by the names of the settings; those that were left out are left out."""
    hyper = ", ".join(f"{name} {_number(value)}" for name, value in without_shared(work.hyper()).items())
    several = isinstance(work.optimizer, JointOptimizer)
    named = {"metrics": work.train_meters.metrics, "measures": measures, "sensors": sensors, "extra": work.extra}
    return [
        ("model", f"{type(work.model).__name__} of {sizes(work)}"),
        ("optimizer", f"{kinds_of(work.optimizer)}; {hyper}" if several else f"{kinds_of(work.optimizer)}, {hyper}"),
        ("loss_fn", getattr(work.loss_fn, "__name__", type(work.loss_fn).__name__)),
        ("train", _loader(work.train)),
        *((each.argument, _loader(each.loader)) for each in work.evaluations),
        *((setting, ", ".join(names)) for setting, names in named.items() if names),
        ("device", str(work.device)),
    ]


def _number(value: Hyper) -> str:
    return f"{value:g}" if isinstance(value, float) else f"({', '.join(f'{each:g}' for each in value)})"


def _loader(loader: Iterable[Any]) -> str:
    kind, count = type(loader).__name__, number_of_batches(loader)
    return kind if count is None else f"{kind} of {count:,} batch{'es' * (count != 1)}"
