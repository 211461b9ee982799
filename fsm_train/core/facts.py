"""Which facts there are, where each can be known, and who needs which.

They are measured by `Supervised.read` and, in simulations, `Scripted.read`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Set

from .phase import CONSULTED, Phase

KNOWN_AT: Mapping[str, frozenset[Phase]] = {
    "batch_size": frozenset(CONSULTED),
    "loss": frozenset(
        {
            Phase.LOSS_END,
            Phase.BACKWARD_END,
            Phase.STEP_BEGIN,
            Phase.STEP_END,
            Phase.BATCH_END,
            Phase.VALID_BATCH_END,
        }
    ),
    "grad_norm": frozenset({Phase.STEP_BEGIN}),
    "stepped": frozenset({Phase.STEP_END}),
    "elapsed": frozenset(CONSULTED),
}
"""The facts that every workload can measure, and where.

`batch_size` (what the batch fetched last counts: its samples, or what `samples=` gives) is always there.
`loss` is that of the batch, unscaled, and missing where a batch was skipped before it was computed.
`grad_norm` is the common norm of all gradients, unscaled and before clipping. `stepped` is 1.0, or 0.0
when a gradient scaler held the step back. `elapsed` is in seconds, added up over the calls of `run` that went before.
"""


UNSAVED = "unsaved:"
"""Begins the fact that a save failed; the name of who asked for it, `SaveCheckpoint.by`, follows.

`unsaved:checkpoint` is 1.0 if the checkpoint that `checkpoint` asked for last could not be written, and missing if it
was, or if none was asked for. It is known at each phase. While one is written beside the training it is `UNDER_WAY`
within a batch or a validation; at the end of a validation, of an epoch and of the training its end is waited for.
"""
UNDER_WAY = 0.5
"""The value of an `unsaved:…` of which the end is not known yet. Of several ranks the largest value is that of all."""


def known_at(name: str) -> frozenset[Phase] | None:
    """Where this fact can be known; None if it is none that every workload can measure.

    >>> known_at("stepped"), known_at("depth")
    (frozenset({<Phase.STEP_END: 'step_end'>}), None)
    """
    return frozenset(CONSULTED) if name.startswith(UNSAVED) else KNOWN_AT.get(name)


def asked_at(name: str) -> Phase:
    """Where one asks for a fact only to note it: at BATCH_END, or the only phase at which it is known.

    >>> asked_at("loss"), asked_at("grad_norm")
    (<Phase.BATCH_END: 'batch_end'>, <Phase.STEP_BEGIN: 'step_begin'>)
    """
    phases = known_at(name) or ()
    return next(iter(phases)) if len(phases) == 1 else Phase.BATCH_END


HYPER = ("lr", "momentum", "weight_decay", "beta1", "beta2")
"""The usual hyper-parameters. An optimizer may have others."""


def is_metric(name: str) -> bool:
    """Whether this is how a metric is called: train_… or valid_…"""
    return name.startswith(("train_", "valid_", "val_", "test_"))


def metric_name(name: str) -> str:
    """The name with the prefix valid_ that this package uses."""
    return f"valid_{name.removeprefix('val_')}" if name.startswith("val_") else name


def unknown_fact(name: str, known: Iterable[str]) -> str:
    """Where to find what was asked for with `needs`, if it is no fact; "" where that is not known."""
    if is_metric(name):
        return f'a metric needs no asking: read state.metrics["{metric_name(name)}"]'
    if name in HYPER:
        return f'a hyper-parameter needs no asking: read state.hyper["{name}"]'
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"did you mean {close[0]!r}?" if close else ""


def check_needs(who: str, needs: Iterable[str], at: Iterable[Phase], sensors: Set[str]) -> None:
    """Refuse to need a fact that does not exist, or that cannot be known wherever one is consulted.

    Raises:
        ValueError: with the facts that there are, or the phases at which this one is known.
    """
    phases = tuple(at)
    for name in sorted(needs):
        if name in sensors:
            continue
        if (where_known := known_at(name)) is None:
            known = sorted({*KNOWN_AT, *sensors})
            there_are = ", ".join(known)
            hint = unknown_fact(name, known) or "a workload adds others with sensors={…}"
            raise ValueError(
                f"{who} needs the fact {name!r}, which this workload does not measure: there are {there_are}; {hint}"
            )
        if not where_known.intersection(phases):
            where = ", ".join(phase.value for phase in Phase if phase in where_known)
            asked = ", ".join(phase.value for phase in phases)
            raise ValueError(f"{who} needs the fact {name!r} at {asked}, but it is known only at {where}")


def measurable(needs: Set[str], phase: Phase, sensors: Set[str]) -> frozenset[str]:
    """Those of the needed facts that have to be measured at this phase."""
    return frozenset(
        name for name in needs if name != "batch_size" and (name in sensors or phase in (known_at(name) or ()))
    )
