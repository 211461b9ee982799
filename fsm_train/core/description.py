"""What is known of callbacks before they run: what each does at which phase, and which cannot work together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence, Set
from difflib import SequenceMatcher
from itertools import combinations
from typing import Any

from .arguments import kind_of
from .callback import Callback, check_names
from .commands import WeighLoss
from .errors import ConflictError, WorkloadError
from .facts import known_at
from .joint_hyper import common_names
from .phase import BATCH_PHASES, CONSULTED, Flag, Phase
from .planned import schedule_notes
from .state import State
from .table import READABLE, term_name
from .transition import Command, is_useful


def check_callbacks(callbacks: Iterable[Callback[Any]]) -> tuple[Callback[Any], ...]:
    """The callbacks as a tuple, when nothing that they declare rules out that they work together.

    Raises:
        TypeError: something in the list is no callback.
        ValueError: two of them have the same name, or one may raise a flag only where it comes too late,
            or give a command only where nothing can come of it.
        ConflictError: two of them set the same hyper-parameter at the same phase, accumulate gradients, or give
            commands that only one may give.
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
        for kind in sorted(callback.commands or (), key=lambda kind: kind.__name__):
            if not any(is_useful(kind, phase) for phase in callback.at):
                where = ", ".join(phase.value for phase in kind.useful_at or ())
                raise ValueError(
                    f"callback {callback.name!r} gives the command {kind.__name__} where nothing can come of it: "
                    f"it has to be consulted at one of {where}"
                )
    for one, other in combinations(checked, 2):
        keys = common_names(one.sets or frozenset(), other.sets or frozenset())
        phases = [phase for phase in one.at if phase in other.at]
        if keys and phases:
            raise ConflictError(
                f"{one.name!r} and {other.name!r} both set {', '.join(keys)} at {phases[-1].value}: leave one out"
            )
        others = for_other_players(one, other)
        if not others and (phase := _contested_phase(one, other)):
            raise ConflictError(
                f"{one.name!r} and {other.name!r} both set hyper-parameters by a command at {phase.value}, so that the "
                "result would depend on which of them comes first: leave one out, make one of them (as torch's "
                "ChainedScheduler does), or give them a different order="
            )
        if not others and _both_accumulate(one, other):
            raise ConflictError(
                f"{one.name!r} and {other.name!r} both hold steps back and weigh the loss for them, so that each would "
                "weigh what the other weighed: leave one out, or give each its epochs, during(…, epochs=…)"
            )
        kinds = (one.commands or frozenset()) & (other.commands or frozenset())
        if alone := {kind.__name__: kind.instead for kind in kinds if kind.alone and not (others and _in_turn(kind))}:
            names = sorted(alone)
            raise ConflictError(
                f"{one.name!r} and {other.name!r} both give the command {' or '.join(names)}, "
                f"which only one callback of a run may: {alone[names[0]]}"
            )
    return checked


def for_other_players(one: Callback[Any], other: Callback[Any]) -> bool:
    """Whether the two are made for different players, in whose turns they act."""
    players = {one.params.get("player"), other.params.get("player")}
    return len(players) == 2 and None not in players


def _both_accumulate(one: Callback[Any], other: Callback[Any]) -> bool:
    """Whether both gather the gradients of several batches, and neither does so for a window of its own."""
    return all(
        callback.raises is not None
        and Flag.SKIP_STEP | Flag.SKIP_ZERO in callback.raises
        and WeighLoss in (callback.commands or ())
        and not {"epochs", "steps"} & callback.params.keys()
        for callback in (one, other)
    )


def _in_turn(kind: type[Command]) -> bool:
    """Whether a command of this type acts in a turn alone."""
    return kind.useful_at is not None and BATCH_PHASES.issuperset(kind.useful_at)


def check_commands(
    callback: Callback[Any], carries: Callable[[type[Command]], bool], refuses: Callable[[type[Command]], str]
) -> None:
    """Refuse a callback that declares commands which nothing carries out, or which cannot go with how one trains.

    Raises:
        ValueError: with how to register what carries it out.
        WorkloadError: with why it cannot go with how the workload trains.
    """
    for kind in sorted(callback.commands or (), key=lambda kind: kind.__name__):
        if not carries(kind):
            raise ValueError(
                f"callback {callback.name!r} gives the command {kind.__name__}, which nothing carries out: decorate a "
                f"function of (workload, command) with @carries_out({kind.__name__}), from fsm_train"
            )
        if why := refuses(kind):
            raise WorkloadError(f"callback {callback.name!r} gives the command {kind.__name__}, but {why}")


def check_monitors(callback: Callback[Any], names: Set[str] | None, has_valid: bool) -> None:
    """Refuse a callback that waits for a metric which will never be measured.

    Args:
        callback: with its `monitors`.
        names: of the metrics that there will be; None if that is not known, and nothing is refused.
        has_valid: whether there is validation data.

    Raises:
        LookupError: with the metrics that there will be, and a close one.
    """
    if names is None:
        return
    for monitor in sorted(callback.monitors):
        if _is_among(monitor, names):
            continue
        advice = ""
        if monitor.startswith("valid_") and not has_valid:
            advice = ". A valid_… metric needs validation data: give the workload some (valid=…)"
        elif close := _closest(monitor, names):
            advice = f". Is {close!r} meant?"
        raise LookupError(
            f"callback {callback.name!r} monitors {monitor!r}, which this training does not measure: "
            f"there will be {', '.join(_losses_first(names)) or 'none'}{advice}"
        )


def _closest(monitor: str, names: Iterable[str]) -> str:
    """The name that is most like the monitor, compared without train_ and valid_; "" if none is."""

    def likeness(name: str) -> tuple[bool, float, bool]:
        of_one = name[:2] == monitor[:2] == "va" and name.endswith(f"_{_stem(monitor)}")  # of several evaluations
        return of_one, SequenceMatcher(None, _stem(name), _stem(monitor)).ratio(), name[:2] == monitor[:2]

    closest = max(sorted(names), key=likeness, default="")
    of_one, ratio, _ = likeness(closest)
    return closest if of_one or ratio >= 0.5 else ""


def _stem(name: str) -> str:
    return name.removeprefix("train_").removeprefix("valid_").removeprefix("val_")


def _losses_first(names: Iterable[str]) -> list[str]:
    return sorted(names, key=lambda name: (not name.endswith("_loss"), name))


def _is_among(monitor: str, names: Set[str]) -> bool:
    return monitor in names or any(name.endswith("*") and monitor.startswith(name[:-1]) for name in names)


def _contested_phase(one: Callback[Any], other: Callback[Any]) -> Phase | None:
    """The last phase at which both set hyper-parameters by a command, with the same order; None if there is none.

    At SETUP they make their schedulers, of which one that follows a metric sets nothing yet.
    """
    if one.order != other.order or not (_sets_by_command(one) and _sets_by_command(other)):
        return None
    follows_a_metric = one.monitors or other.monitors
    shared = [phase for phase in one.at if phase in other.at and not (phase is Phase.SETUP and follows_a_metric)]
    return shared[-1] if shared else None


def _sets_by_command(callback: Callback[Any]) -> bool:
    return any(kind.changes_hyper for kind in callback.commands or ())


def notes(callbacks: Sequence[Callback[Any]]) -> list[str]:
    """What is allowed and seldom meant, as sentences: `describe` shows them, and a run logs them as warnings."""
    return [*hyper_overlaps(callbacks), *command_overlaps(callbacks)]


def command_overlaps(callbacks: Sequence[Callback[Any]]) -> list[str]:
    """A sentence for each two whose commands change the same thing, so that the result depends on which comes first."""
    found = []
    for one, other in combinations(callbacks, 2):
        for by_command, by_answer in ((one, other), (other, one)):
            if _sets_by_command(by_command) and by_answer.sets:
                found.append(
                    f"{by_command.name!r} sets hyper-parameters by a command, and {by_answer.name!r} sets "
                    f"{', '.join(sorted(by_answer.sets))}: what one sets lasts only until the other sets it"
                )
        shared = () if for_other_players(one, other) else one.at
        phase = next((phase for phase in shared if phase in other.at), None)
        both = {kind.acts_on for kind in one.commands or ()} & {kind.acts_on for kind in other.commands or ()}
        if phase is not None and one.order == other.order and (things := sorted(filter(None, both))):
            found.append(
                f"{one.name!r} and {other.name!r} both change the {', '.join(things)} at {phase.value}, in the order "
                "of the list: swapped, they give another result"
            )
    return found


def hyper_overlaps(callbacks: Sequence[Callback[Any]]) -> list[str]:
    """A sentence for each two that set one hyper-parameter at different phases."""
    return [
        f"{one.name!r} and {other.name!r} both set {', '.join(keys)}, at different phases: "
        "what one sets lasts only until the other sets it"
        for one, other in combinations(callbacks, 2)
        if (keys := common_names(one.sets or frozenset(), other.sets or frozenset()))
    ]


def whole_step_callbacks(callbacks: Iterable[Callback[Any]]) -> list[str]:
    """The names of those that want each step done as a whole: they give a command that is `whole_steps`."""
    return [callback.name for callback in callbacks if any(kind.whole_steps for kind in callback.commands or ())]


def watchers_before_loss(
    callbacks: Iterable[Callback[Any]], others: Iterable[tuple[str, Iterable[Phase]]] = ()
) -> list[str]:
    """The names of those that look between forward and loss, where a callback wants these done at once.

    Args:
        callbacks: those of a run.
        others: further watchers, by name, and the phases at which they look.
    """
    callbacks = tuple(callbacks)
    if not whole_step_callbacks(callbacks):
        return []
    watchers = (*((callback.name, callback.at) for callback in callbacks), *others)
    return [name for name, phases in watchers if Phase.LOSS_BEGIN in phases]


def describe(callbacks: Iterable[Callback[Any]], state: State | None = None) -> str:
    """Who is consulted when, what each may raise, set and command, in which order, and what it needs.

    With a note, which a run logs as a warning, where two set one hyper-parameter at different phases, or change the
    same thing by commands whose order is that of the list, and with a `state` where a schedule ends long before or
    after the plan.

    >>> from fsm_train.callbacks import clip_grad_norm, early_stopping
    >>> print(describe([early_stopping(), clip_grad_norm(1.0)]))
    step_begin
      clip_grad_norm   commands ClipGradNorm
    valid_end
      early_stopping   raises STOP_TRAINING
    epoch_end
      early_stopping   raises STOP_TRAINING

    Args:
        callbacks: those of a run.
        state: the one that the run will begin with, from `start`, `restore` or `extend`.

    Raises:
        TypeError, ValueError, ConflictError: as a run with these callbacks would.
    """
    checked = check_callbacks(callbacks)
    if state is not None and not isinstance(state, State):
        raise TypeError(
            f"describe takes a state beside the callbacks, but was given {kind_of(state)}: write "
            "describe(callbacks, start(work, epochs=…))"
        )
    lines: list[str] = []
    for phase in CONSULTED:
        here = sorted((c for c in checked if phase in c.at), key=lambda c: c.order)
        if here:
            lines += [phase.value, *(_line(callback, phase, here) for callback in here)]
    checked_notes = notes(checked) + ([] if state is None else schedule_notes(checked, state, state.workload))
    lines += [f"note: {note}" for note in checked_notes]
    return "\n".join(lines) or "no callback is consulted"


def _line(callback: Callback[Any], phase: Phase, here: Sequence[Callback[Any]]) -> str:
    width = max(len(other.name) for other in here)
    flags = [flag for flag in callback.raises or Flag.NONE if phase in READABLE[flag]]
    needs = [name for name in sorted(callback.needs) if phase in (known_at(name) or CONSULTED)]
    kinds = sorted(kind.__name__ for kind in callback.commands or () if is_useful(kind, phase))
    silent = callback.raises is None and callback.sets is None and callback.commands is None
    parts = [
        f"raises {', '.join(term_name(flag) for flag in flags)}" if flags else "",
        f"sets {', '.join(sorted(callback.sets))}" if callback.sets else "",
        f"commands {', '.join(kinds)}" if kinds else "",
        f"needs {', '.join(needs)}" if needs else "",
        f"every {callback.every}" if callback.every > 1 else "",
        f"order {callback.order}" if callback.order else "",
        "says nothing of what it does" if silent else "",
    ]
    return f"  {callback.name:<{width}}   {'; '.join(filter(None, parts))}".rstrip()
