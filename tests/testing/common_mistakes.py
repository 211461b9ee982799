"""Ten callbacks with mistakes that people make.

Each is made by a function, since some of them are refused when they are made.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Any

from fsm_train import Callback, Flag, Phase, State, Transition, on


def counter_in_a_closure() -> Callback[Any]:
    bad = 0

    @on(Phase.EPOCH_END)
    def stop_after_three(state: State) -> Transition | None:
        nonlocal bad
        bad += state.metrics["valid_loss"] > 1
        return Transition(flags=Flag.STOP_TRAINING) if bad >= 3 else None

    return stop_after_three


def clock() -> Callback[Any]:
    began = time.time()

    @on(Phase.BATCH_END)
    def stop_after_an_hour(state: State) -> Transition | None:
        return Transition(flags=Flag.STOP_TRAINING) if time.time() - began > 3600 else None

    return stop_after_an_hour


def list_as_memory() -> Callback[Any]:
    @on(Phase.EPOCH_END, memory=[])
    def keep_losses(state: State, losses: list[float]) -> None:
        losses.append(state.metrics["valid_loss"])

    return keep_losses


def mutated_dict() -> Callback[Any]:
    @on(Phase.EPOCH_BEGIN)
    def halve(state: State) -> Transition:
        hyper: Any = state.hyper
        hyper["lr"] /= 2
        return Transition(hyper=hyper)

    return halve


def loss_without_asking() -> Callback[Any]:
    @on(Phase.LOSS_END)
    def skip_outliers(state: State) -> Transition | None:
        return Transition(flags=Flag.SKIP_BACKWARD) if state.facts["loss"] > 100 else None

    return skip_outliers


def chance() -> Callback[Any]:
    @on(Phase.BATCH_BEGIN)
    def skip_some(state: State) -> Transition | None:
        return Transition(flags=Flag.SKIP_BATCH) if random.random() < 0.1 else None

    return skip_some


def flag_too_late() -> Callback[Any]:
    @on(Phase.BATCH_END, needs={"loss"})
    def skip_bad_loss(state: State) -> Transition | None:
        return Transition(flags=Flag.SKIP_BACKWARD) if state.facts.get("loss", 0.0) > 5 else None

    return skip_bad_loss


def order_of_a_set() -> Callback[Any]:
    watched = {"valid_loss", "valid_error", "train_loss"}

    @on(Phase.EPOCH_END)
    def stop_on_first_bad(state: State) -> Transition | None:
        for name in watched:
            if state.metrics[name] > 2:
                return Transition(flags=Flag.STOP_TRAINING, reason=f"{name} is too high")
        return None

    return stop_on_first_bad


def depends_on_another() -> Callback[Any]:
    @on(Phase.EPOCH_END)
    def warn_before_stopping(state: State) -> Transition | None:
        stopping: Any = state.memory["early_stopping"]
        return Transition(reason="nearly there") if stopping.bad == 2 else None

    return warn_before_stopping


def swallows_the_missing_metric() -> Callback[Any]:
    @on(Phase.EPOCH_END)
    def good_enough(state: State) -> Transition | None:
        try:
            return Transition(flags=Flag.STOP_TRAINING) if state.metrics["valid_acuracy"] > 0.9 else None
        except KeyError:
            return None

    return good_enough


MISTAKES: dict[Callable[[], Callback[Any]], tuple[str, str]] = {
    counter_in_a_closure: ("keeps_nothing_hidden", "it changed the variable 'bad'.*declare memory= at @on"),
    clock: ("reads_no_clock", r"it reads a clock: time.time\n.*declare needs={'elapsed'}"),
    list_as_memory: ("memory", "memory is a list .*: use a tuple"),
    mutated_dict: ("leaves_inputs_alone", "it tried to write to what it was given.*answer with new values"),
    loss_without_asking: ("needs_what_it_reads", "it reads the fact 'loss' without needs={'loss'}.*Declare each fact"),
    chance: ("draws_by_state", r"it draws from a global random generator: random.random\n.*state.random\(name\)"),
    flag_too_late: (
        "flags_are_read",
        "it raised SKIP_BACKWARD at BATCH_END, where nothing reads it any more.*LOSS_END",
    ),
    order_of_a_set: ("same_in_new_process", "in a fresh process it answers otherwise.*in sorted order"),
    depends_on_another: ("ignores_other_callbacks", "it reads the memory of 'early_stopping'.*own memory only"),
    swallows_the_missing_metric: (
        "names_missing_metrics",
        "without the metric 'valid_acuracy' it continues without a word.*misspelt name",
    ),
}
"""By mistake the check that finds it (or the argument that is refused), and a pattern of the message."""
