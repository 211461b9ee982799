"""Which workloads are in use: one run of them and of their model at a time, and an evaluation only beside one.

It knows too which run is inside which.

Rule of this file: a claim is a fact about this process. Nothing here touches a workload, but for its `interrupt`.
"""

from __future__ import annotations

import contextlib
import gc
import threading
from collections.abc import Callable, Iterator
from typing import Any

import attrs

from .arguments import is_model
from .errors import WorkloadError
from .phase import Phase, Place
from .state import State

VALIDATING = frozenset({Phase.VALID_BEGIN, Phase.VALID_BATCH_BEGIN, Phase.VALID_BATCH_END})
"""The phases at which a validation is under way."""


@attrs.frozen(eq=False)
class Claim:
    """Someone's use of a workload, or of the model of one.

    Attributes:
        of: the workload or model; it is held here, so that its id stays its own.
        what: "a run" or "an evaluation".
        thread: the thread that began it.
        place: where the run stands, once it does; None of an evaluation.
        now: the state of the run at this moment, once there is one; None of an evaluation.
        hears: whether it is a workload, which can be told of a signal.
    """

    of: Any
    what: str
    thread: int
    place: Callable[[], Place | None] | None = None
    now: Callable[[], State | None] | None = None
    hears: bool = True


_claims: dict[int, list[Claim]] = {}
_lock = threading.RLock()


@contextlib.contextmanager
def run_under_way(
    workload: object, place: Callable[[], Place | None], now: Callable[[], State | None]
) -> Iterator[None]:
    """Claim the workload and its model for a run, until this context ends.

    Raises:
        WorkloadError: a run or an evaluation of it is under way, or a run of another workload with the same model.
    """
    thread, model = threading.get_ident(), getattr(workload, "model", None)
    with contextlib.ExitStack() as claims:
        claims.enter_context(_claimed(Claim(workload, "a run", thread, place, now), refuse_if_in_use))
        if is_model(model):
            claims.enter_context(_claimed(Claim(model, "a run", thread, place, hears=False), _refuse_model))
        yield


@contextlib.contextmanager
def evaluation_under_way(workload: object) -> Iterator[bool]:
    """Claim the workload for an evaluation; gives whether a run of it is under way, whose batch must be left alone.

    Raises:
        WorkloadError: a validation or another evaluation of it is under way, or a run in another thread.
    """
    claim = Claim(workload, "an evaluation", threading.get_ident())
    with _claimed(claim, _refuse_evaluation):
        yield len(_claims[id(workload)]) > 1


def refuse_if_in_use(workload: object) -> None:
    """Refuse a workload of which a run or an evaluation is under way, or a run of another one with its model.

    Raises:
        WorkloadError: with what to do about it.
    """
    if id(workload) in _claims:
        gc.collect()  # a loop over iterate that was dropped ends its run when it is collected
    for claim in _claims.get(id(workload), ()):
        raise WorkloadError(
            f"{claim.what} of this workload is under way{_where(claim)}, and a workload does one thing at a time. "
            "Let it end first (a loop over iterate that was left early ends with its close()), or make a second "
            "workload, with a model and loaders of its own"
        )
    _refuse_model(getattr(workload, "model", None))


def _refuse_model(model: object) -> None:
    if id(model) in _claims:
        gc.collect()
    for claim in _claims.get(id(model), ()):
        raise WorkloadError(
            f"a run of another workload with this model is under way{_where(claim)}, and both would change weights, "
            "gradients and modes. Let it end first (a loop over iterate that was left early ends with its close()), or "
            "give this workload a copy of the model, and an optimizer of that"
        )


def state_under_way(*workloads: object) -> State | None:
    """The state of this moment in the run of one of these workloads; None if there is no such run."""
    with _lock:
        claims = [claim for workload in workloads for claim in _claims.get(id(workload), ())]
    return next((claim.now() for claim in claims if claim.now is not None), None)


def hand_on(workload: Any, signal: str) -> None:
    """Let a signal that came to the run of this workload count for each run that it is inside of, too.

    A run is inside of those that this thread began before it and that have not ended: they wait for it, in a
    command, a metric, a sink, or in the body of a loop over `iterate`.
    """
    if not getattr(workload, "hands_on_signals", True):
        return
    with _lock:
        for claim, *_ in _claims.values():  # in the order in which they began
            if claim.of is workload:
                break
            if claim.place is not None and claim.thread == threading.get_ident() and claim.hears:
                claim.of.interrupt = claim.of.interrupt or signal


def _refuse_evaluation(workload: object) -> None:
    for claim in _claims.get(id(workload), ()):
        if claim.place is None or claim.thread != threading.get_ident():
            refuse_if_in_use(workload)
        elif claim.place() in VALIDATING:
            raise WorkloadError(
                f"a validation of this workload is under way{_where(claim)}: evaluate at another phase, such as "
                "VALID_END or EPOCH_END, or give the metric to the workload (metrics=…)"
            )


@contextlib.contextmanager
def _claimed(claim: Claim, check: Callable[[object], None]) -> Iterator[None]:
    with _lock:
        check(claim.of)
        _claims.setdefault(id(claim.of), []).append(claim)
    try:
        yield
    finally:
        with _lock:
            claims = _claims[id(claim.of)]
            claims.remove(claim)
            if not claims:
                del _claims[id(claim.of)]


def _where(claim: Claim) -> str:
    if claim.thread != threading.get_ident():
        return " in another thread"
    place = None if claim.place is None else claim.place()
    return f", at {place.value}" if isinstance(place, Phase) else ""
