"""What is known of callbacks before they run: what each does at which phase, and which cannot work together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import combinations
from typing import Any

from .callback import Callback, check_names
from .errors import ConflictError
from .facts import KNOWN_AT
from .phase import CONSULTED, Flag, Phase
from .planned import schedule_notes
from .state import State
from .table import READABLE, term_name
from .transition import Command


def check_callbacks(callbacks: Iterable[Callback[Any]]) -> tuple[Callback[Any], ...]:
    """The callbacks as a tuple, when nothing that they declare rules out that they work together.

    Raises:
        TypeError: something in the list is no callback.
        ValueError: two of them have the same name, or one may raise a flag only where it comes too late.
        ConflictError: two of them set the same hyper-parameter at the same phase, or give commands
            that only one may give.
    """
    checked = check_names(callbacks)
    for callback in checked:
        for flag in callback.raises or Flag.NONE:
            if not set(READABLE[flag]).intersection(callback.at):
                where = ", ".join(phase.value for phase in READABLE[flag])
                raise ValueError(
                    f"callback {callback.name!r} raises {flag.name} where nothing reads it any more: "
                    f"it has to be consulted at one of {where}"
                )
    for one, other in combinations(checked, 2):
        keys = sorted((one.sets or frozenset()) & (other.sets or frozenset()))
        phases = [phase for phase in one.at if phase in other.at]
        if keys and phases:
            raise ConflictError(
                f"{one.name!r} and {other.name!r} both set {', '.join(keys)} at {phases[-1].value}: leave one out"
            )
        kinds = (one.commands or frozenset()) & (other.commands or frozenset())
        if alone := sorted(kind.__name__ for kind in kinds if kind.alone):
            raise ConflictError(
                f"{one.name!r} and {other.name!r} both give the command {' or '.join(alone)}, "
                "which only one callback of a run may: leave one out"
            )
    return checked


def check_commands(callback: Callback[Any], carries: Callable[[type[Command]], bool]) -> None:
    """Refuse a callback that declares commands which nothing carries out.

    Raises:
        ValueError: with how to register what carries it out.
    """
    for kind in sorted(callback.commands or (), key=lambda kind: kind.__name__):
        if not carries(kind):
            raise ValueError(
                f"callback {callback.name!r} gives the command {kind.__name__}, which nothing carries out: decorate a "
                f"function of (workload, command) with @carries_out({kind.__name__}), from fsm_train"
            )


def hyper_overlaps(callbacks: Sequence[Callback[Any]]) -> list[str]:
    """What is allowed and seldom meant: a sentence for each two that set one hyper-parameter at different phases."""
    return [
        f"{one.name!r} and {other.name!r} both set {', '.join(keys)}, at different phases: "
        "what one sets lasts only until the other sets it"
        for one, other in combinations(callbacks, 2)
        if (keys := sorted((one.sets or frozenset()) & (other.sets or frozenset())))
    ]


def whole_step_callbacks(callbacks: Iterable[Callback[Any]]) -> list[str]:
    """The names of those that want each step done as a whole: they give a command that is `whole_steps`."""
    return [callback.name for callback in callbacks if any(kind.whole_steps for kind in callback.commands or ())]


def watchers_inside_step(
    callbacks: Iterable[Callback[Any]], others: Iterable[tuple[str, Iterable[Phase]]] = ()
) -> list[str]:
    """The names of those that look inside each step, where a callback wants it done as a whole.

    Args:
        callbacks: those of a run.
        others: further watchers, by name, and the phases at which they look.
    """
    callbacks = tuple(callbacks)
    if not whole_step_callbacks(callbacks):
        return []
    watchers = (*((callback.name, callback.at) for callback in callbacks), *others)
    return [name for name, phases in watchers if not INSIDE_A_STEP.isdisjoint(phases)]


INSIDE_A_STEP = frozenset({Phase.LOSS_BEGIN, Phase.LOSS_END, Phase.BACKWARD_END, Phase.STEP_BEGIN, Phase.STEP_END})


def describe(callbacks: Iterable[Callback[Any]], state: State | None = None) -> str:
    """Who is consulted when, what each may raise, set and command, in which order, and what it needs.

    With a note, which a run logs as a warning, where two set one hyper-parameter at different phases, and with a
    `state` where a schedule ends long before or after the plan.

    >>> from fsm_train.callbacks import clip_grad_norm, early_stopping
    >>> print(describe([early_stopping(), clip_grad_norm(1.0)]))
    step_begin
      clip_grad_norm   commands ClipGradNorm
    epoch_end
      early_stopping   raises STOP_TRAINING

    Args:
        callbacks: those of a run.
        state: the one that the run will begin with, from `start`, `restore` or `extend`.

    Raises:
        TypeError, ValueError, ConflictError: as a run with these callbacks would.
    """
    checked = check_callbacks(callbacks)
    lines: list[str] = []
    for phase in CONSULTED:
        here = sorted((c for c in checked if phase in c.at), key=lambda c: c.order)
        if here:
            lines += [phase.value, *(_line(callback, phase, here) for callback in here)]
    notes = hyper_overlaps(checked) + ([] if state is None else schedule_notes(checked, state))
    lines += [f"note: {note}" for note in notes]
    return "\n".join(lines) or "no callback is consulted"


def _line(callback: Callback[Any], phase: Phase, here: Sequence[Callback[Any]]) -> str:
    width = max(len(other.name) for other in here)
    flags = [flag for flag in callback.raises or Flag.NONE if phase in READABLE[flag]]
    needs = [name for name in sorted(callback.needs) if phase in KNOWN_AT.get(name, CONSULTED)]
    silent = callback.raises is None and callback.sets is None and callback.commands is None
    parts = [
        f"raises {', '.join(term_name(flag) for flag in flags)}" if flags else "",
        f"sets {', '.join(sorted(callback.sets))}" if callback.sets else "",
        f"commands {', '.join(sorted(kind.__name__ for kind in callback.commands))}" if callback.commands else "",
        f"needs {', '.join(needs)}" if needs else "",
        f"every {callback.every}" if callback.every > 1 else "",
        f"order {callback.order}" if callback.order else "",
        "says nothing of what it does" if silent else "",
    ]
    return f"  {callback.name:<{width}}   {'; '.join(filter(None, parts))}".rstrip()
