"""A mutant for each check: a callback that fails this check and no other."""

from __future__ import annotations

import os
import random
import socket
import time
from pathlib import Path
from typing import Any

import attrs

from fsm_train import Callback, ClipGradNorm, Command, Flag, Phase, State, Transition, on


@on(Phase.EPOCH_END)
def answers_a_flag(state: State) -> Any:
    return Flag.STOP_TRAINING if state.epoch == 2 else None


@on(Phase.BATCH_END)
def raises_too_late(state: State) -> Transition | None:
    return Transition(flags=Flag.SKIP_STEP) if state.batch == 2 else None


@on(Phase.EPOCH_BEGIN)
def sets_another_name(state: State) -> Transition:
    return Transition(hyper={"learning_rate": 0.1})


class ClipTo(Command):
    def __init__(self, value: float) -> None:
        self.value = value


@on(Phase.STEP_BEGIN)
def asks_with_an_object(state: State) -> Transition:
    return Transition(commands=(ClipTo(1.0),))


@on(Phase.STEP_BEGIN, raises=Flag.NONE, sets=(), commands=())
def answers_more_than_declared(state: State) -> Transition:
    return Transition(commands=(ClipGradNorm(1.0),))


@on(Phase.EPOCH_END)
def writes_into_the_metrics(state: State) -> None:
    dict.__setitem__(state.metrics, "epochs", state.epoch)  # type: ignore[arg-type]


def keeps_a_list() -> Callback[None]:
    seen: list[int] = []

    @on(Phase.EPOCH_END)
    def keeps_a_list(state: State) -> None:
        seen.append(state.epoch)

    return keeps_a_list


@on(Phase.EPOCH_END, memory=())
def remembers_a_list(state: State, seen: tuple[int, ...]) -> Transition:
    return Transition(memory=[*seen, state.epoch])


@attrs.frozen(eq=False)
class Count:
    value: int = 0


@on(Phase.EPOCH_END, memory=Count())
def remembers_what_does_not_compare(state: State, seen: Count) -> Transition | None:
    return Transition(memory=Count(2)) if seen.value < 2 else None


@attrs.frozen
class Doubled:
    value: int = attrs.field(default=0, converter=lambda value: 2 * value)


@on(Phase.EPOCH_END, memory=Doubled())
def remembers_what_cannot_be_made_again(state: State, seen: Doubled) -> Transition | None:
    return Transition(memory=Doubled(1)) if seen.value < 1 else None


@on(Phase.EPOCH_END)
def looks_at_the_clock(state: State) -> None:
    time.monotonic()


@on(Phase.EPOCH_END)
def draws_and_puts_back(state: State) -> None:
    before = random.getstate()
    random.random()
    random.setstate(before)


@on(Phase.EPOCH_END)
def looks_for_a_file(state: State) -> None:
    Path("stop").exists()


@on(Phase.EPOCH_END)
def opens_a_socket(state: State) -> None:
    socket.socket().close()


@on(Phase.EPOCH_END)
def asks_the_environment(state: State) -> None:
    os.environ.get("STOP")


@on(Phase.EPOCH_END)
def seeds_everything(state: State) -> None:
    random.seed(state.epoch)


@on(Phase.BATCH_END)
def asks_for_nothing(state: State) -> Transition | None:
    return Transition(flags=Flag.STOP_EPOCH) if state.facts.get("loss", 0.0) > 5 else None


@on(Phase.EPOCH_END)
def takes_zero_for_missing(state: State) -> Transition | None:
    enough = state.metrics.get("valid_accuracy", 0.0) > 0.9
    return Transition(flags=Flag.STOP_TRAINING) if enough else None


@on(Phase.EPOCH_END)
def goes_by_address(state: State) -> Transition:
    return Transition(reason=str(id(state)))


@on(Phase.EPOCH_END)
def goes_by_the_seed(state: State) -> Transition:
    return Transition(reason=str(random.getstate()[1][1]))


@on(Phase.SETUP, Phase.EPOCH_END, memory=0)
def resets_at_setup(state: State, epochs: int) -> Transition:
    return Transition(memory=0 if state.phase is Phase.SETUP else epochs + 1)


@on(Phase.EPOCH_END)
def counts_the_others(state: State) -> Transition | None:
    return Transition(reason="alone") if len(state.memory) == 1 else None


@on(Phase.EPOCH_BEGIN)
def halves_one_rate(state: State) -> Transition:
    return Transition(hyper={"lr": state.hyper["lr"] / 2})  # type: ignore[operator]


@on(Phase.BATCH_END, reads={"epoch"})
def reads_more_than_declared(state: State) -> Transition | None:
    return Transition(flags=Flag.STOP_EPOCH) if state.batch == 2 else None


@on(Phase.EPOCH_END)
def lists_a_set(state: State) -> Transition:
    return Transition(reason=" ".join({"loss", "rate", "norm"}))


@on(Phase.EPOCH_END)
def counts_to_many(state: State) -> None:
    sum(range(200_000))


MUTANTS: dict[str, Callback[Any]] = {
    "answers_with_transitions": answers_a_flag,
    "flags_are_read": raises_too_late,
    "keys_exist": sets_another_name,
    "commands_are_records": asks_with_an_object,
    "honours_declarations": answers_more_than_declared,
    "leaves_inputs_alone": writes_into_the_metrics,
    "keeps_nothing_hidden": keeps_a_list(),
    "memory_is_immutable": remembers_a_list,
    "memory_compares": remembers_what_does_not_compare,
    "memory_survives_json": remembers_what_cannot_be_made_again,
    "reads_no_clock": looks_at_the_clock,
    "draws_by_state": draws_and_puts_back,
    "opens_no_files": looks_for_a_file,
    "uses_no_network": opens_a_socket,
    "reads_no_environment": asks_the_environment,
    "leaves_generators_alone": seeds_everything,
    "needs_what_it_reads": asks_for_nothing,
    "names_missing_metrics": takes_zero_for_missing,
    "answers_the_same_twice": goes_by_address,
    "same_on_every_rank": goes_by_the_seed,
    "goes_on_as_before": resets_at_setup,
    "ignores_other_callbacks": counts_the_others,
    "handles_parameter_groups": halves_one_rate,
    "reads_what_it_declares": reads_more_than_declared,
    "same_in_new_process": lists_a_set,
    "is_fast": counts_to_many,
}
