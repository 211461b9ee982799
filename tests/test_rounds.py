"""Where a training goes around as a round does, and what is seen of it; the law is in the property tests."""

from __future__ import annotations

import itertools
import sys
import traceback
import weakref
from collections.abc import Callable, Mapping, Sequence
from types import FrameType
from typing import Any
from unittest import mock

import attrs
import pytest
import torch

from fsm_train import (
    CallbackError,
    Command,
    Flag,
    Phase,
    Scripted,
    Sink,
    State,
    Supervised,
    Transition,
    cursor,
    on,
    rounds,
    run,
    start,
)
from fsm_train.callbacks import accumulate, clip_grad_norm
from fsm_train.core.callback import Callback
from fsm_train.core.failing import whole_state
from fsm_train.core.phase import BATCH_FLAGS, CONSULTED, TURN_PHASES, Operation
from fsm_train.core.rounds import Look, round_of
from fsm_train.core.table import READABLE, WITHOUT_TURNS
from fsm_train.core.under_way import state_under_way
from tests.diabetes_training import batches, net, sgd
from tests.models import same_weights

IN_USE = rounds.NEEDED

INSIDE = tuple(phase for phase in CONSULTED if phase in TURN_PHASES)


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounds from the first batch on."""
    monkeypatch.setattr(rounds, "NEEDED", 0)


def gone_around(
    callbacks: Sequence[Callback[Any]], *, batches: int = 20, sinks: Sequence[Any] = (), **script: Any
) -> int:
    """How often a round was begun in two epochs."""
    begun: list[object] = []
    go_around = cursor.Cursor.go_around
    counting = mock.patch.object(
        cursor.Cursor, "go_around", lambda self: (gone := go_around(self)) and not begun.append(gone)
    )
    with counting:
        run(start(Scripted(batches=batches, **script), epochs=2), callbacks, sinks=sinks)
    return len(begun)


class Told(Sink):
    """Is told of the end of each batch, with its loss."""

    at = (Phase.BATCH_END,)
    needs = frozenset({"loss"})

    def see(self, state: State, answers: Mapping[str, Transition]) -> None:
        assert "loss" in state.facts


@attrs.frozen
class Heavy(Command):
    """A command that holds something."""

    what: int


def silent(*phases: Phase, every: int = 1) -> Callback[None]:
    return on(*phases, name="silent", every=every)(lambda state: None)


def test_an_epoch_is_one_batch_and_then_one_round() -> None:
    """Wherever somebody looks who asks for nothing."""
    assert gone_around([silent(*INSIDE)]) == 2
    for phase in INSIDE:
        assert gone_around([silent(phase)]) == 2


def test_what_was_foreseen_does_not_end_a_round() -> None:
    """Accumulation raises flags at each second batch: the first time ends the round, and never again."""
    assert 2 <= gone_around([accumulate(2)]) <= 2 + 2


def test_so_much_is_foreseen_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who raises other flags each time makes no endless text: what is not foreseen ends each round."""
    flags = [Flag.SKIP_STEP | Flag.SKIP_ZERO, Flag.SKIP_STEP, Flag.SKIP_ZERO, Flag.NONE]

    @on(Phase.LOSS_BEGIN)
    def raising(state: State) -> Transition:
        return Transition(flags=flags[state.iteration % 4])

    assert 2 <= gone_around([raising], batches=30) <= 2 + 3
    monkeypatch.setattr(rounds, "MOST_TAILS", 1)
    assert gone_around([raising], batches=30) >= 10


def test_a_round_ends_where_somebody_else_is_due() -> None:
    """Beside somebody who looks at each batch: the tenth batch, with both, is a round of its own."""
    b = on(Phase.LOSS_END, name="b", every=10)(lambda state: None)
    an_epoch = ["to the tenth batch", "with b", "to the twentieth", "to the end of the data"]
    assert gone_around([silent(Phase.BATCH_END), b]) == 2 * len(an_epoch)


def test_who_is_due_where_a_round_ends_is_asked_there() -> None:
    """Beside somebody who looks at each batch: the end of each third, and the end of each fifth."""
    ends: list[tuple[str, int]] = []
    noting = [
        on(Phase.BATCH_END, name=name, every=every)(lambda state, name=name: ends.append((name, state.iteration)))
        for name, every in (("third", 3), ("fifth", 5))
    ]
    assert gone_around([silent(Phase.LOSS_END), *noting]) > 2
    assert ends == [(name, i) for i in range(1, 41) for name, every in (("third", 3), ("fifth", 5)) if i % every == 0]


def test_a_fact_and_a_sink_are_part_of_a_round() -> None:
    """What is measured, and whom to tell, is found out at each look; with players it is walked."""
    needing = on(Phase.LOSS_END, name="needing", needs={"loss"})(lambda state: None)
    assert gone_around([needing]) == 2
    assert gone_around([needing], sinks=[Told()]) == 2
    assert gone_around([silent(Phase.LOSS_END)], players={"a": 1, "b": 1}) == 0


def test_a_traceback_through_a_round_shows_its_lines() -> None:
    """As one of a file does."""

    @on(Phase.LOSS_END)
    def failing(state: State) -> None:
        if state.iteration == 5:
            raise ValueError("five")

    with pytest.raises(CallbackError) as caught:
        run(start(Scripted(batches=10), epochs=1), [failing])
    assert "answer = ask_LOSS_END_0(state)" in "".join(traceback.format_exception(caught.value))


def test_short_runs_write_nothing_down(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes a millisecond or two, which is more than a hundred batches gain."""
    monkeypatch.setattr(rounds, "NEEDED", IN_USE)
    with mock.patch.object(rounds.Rounds, "_written", side_effect=AssertionError):
        run(start(Scripted(batches=rounds.NEEDED), epochs=1), [silent(*INSIDE)])
        with pytest.raises(AssertionError):
            run(start(Scripted(batches=rounds.NEEDED + 2), epochs=1), [silent(*INSIDE)])


def test_a_state_that_nobody_keeps_is_shown_again() -> None:
    """One object for all looks of a round; a new one after somebody has kept it."""
    seen: list[int] = []

    @on(*INSIDE)
    def looking(state: State) -> None:
        seen.append(id(state.__dict__))

    run(start(Scripted(batches=50), epochs=1), [looking])
    assert len(set(seen[7 * 2 :])) == 1


def test_who_asks_where_the_training_is_changes_nothing() -> None:
    """The state of this moment, asked for while a callback looks, is another one."""
    work = Scripted(batches=20)

    @on(*INSIDE)
    def asking(state: State) -> None:
        facts = state.facts
        now = state_under_way(work)
        assert now is not None
        assert now.phase is state.phase
        assert state.facts is facts

    run(start(work, epochs=2), [asking])


def test_a_state_that_is_referred_to_weakly_is_not_shown_again() -> None:
    """Nobody keeps it, but who looks at it later sees its own moment, or nothing."""
    seen: list[bool] = []
    before: list[weakref.ref[State]] = []

    @on(*INSIDE)
    def looking(state: State) -> None:
        seen.extend(each() is state for each in before)
        before[:] = [weakref.ref(state)]

    run(start(Scripted(batches=5), epochs=1), [looking])
    assert seen == [False] * (7 * 5 - 1)


@pytest.mark.parametrize("needed", [0, 10**6])
def test_what_a_command_holds_is_not_held_after_its_batch(needed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody needs an answer any more once it is carried out."""
    monkeypatch.setattr(rounds, "NEEDED", needed)
    monkeypatch.setattr(Scripted, "carry_out", lambda self, command, state: None)
    given: weakref.WeakSet[Heavy] = weakref.WeakSet()
    left: list[int] = []

    @on(Phase.LOSS_END)
    def giving(state: State) -> Transition:
        left.append(len(given))
        given.add(command := Heavy(state.iteration))
        return Transition(commands=(command,))

    run(start(Scripted(batches=20), epochs=1), [giving])
    assert left == [0] * 20


def test_a_debugger_that_leaves_changes_no_state_that_is_kept() -> None:
    """While it looks at a round it refers to all that is in there, and afterwards to none of what is new."""
    kept: list[tuple[State, object]] = []

    def tracing(frame: FrameType, event: str, arg: object) -> Any:
        assert frame.f_locals is not None
        return tracing

    @on(Phase.LOSS_END, Phase.BATCH_END)
    def keeping(state: State) -> None:
        if state.iteration in (0, 8):
            sys.settrace(before if state.iteration else tracing)
        if state.iteration > 8:
            kept.append((state, vars(state)))

    before = sys.gettrace()
    try:
        run(start(Scripted(batches=20), epochs=1), [keeping])
    finally:
        sys.settrace(before)
    assert [state.iteration for state, _ in kept if state.phase is Phase.LOSS_END] == [*range(9, 20)]


def test_each_set_of_places_has_its_round() -> None:
    """All that stands between two batches is known as text, whoever looks where, and whatever is raised there."""
    for watched in itertools.chain.from_iterable(itertools.combinations(INSIDE, n) for n in range(len(INSIDE) + 1)):
        looks = frozenset((phase, Look((True, False), keeps=phase is Phase.LOSS_END)) for phase in watched)
        tails = frozenset((phase, flag) for phase in watched for flag in BATCH_FLAGS if phase in READABLE[flag])
        settled = frozenset(WITHOUT_TURNS.items())
        assert round_of(frozenset(watched), settled, looks, frozenset(), tails).code


def test_what_is_foreseen_at_each_place_is_no_long_text() -> None:
    """Where a flag is up already, it is not foreseen that it is raised again, or that it falls."""

    def lines(*tails: tuple[Phase, Flag]) -> int:
        looks = frozenset((phase, Look((False,))) for phase in INSIDE)
        return round_of(
            frozenset(INSIDE), frozenset(WITHOUT_TURNS.items()), looks, frozenset(), frozenset(tails)
        ).text.count("\n")

    before_the_end = [phase for phase in INSIDE if phase is not Phase.BATCH_END]
    each = [(phase, Flag.SKIP_ZERO) for phase in before_the_end]
    assert lines(*each) < (len(each) + 1) * lines()
    assert lines((Phase.BATCH_BEGIN, Flag.SKIP_STEP), (Phase.LOSS_BEGIN, Flag.SKIP_ZERO)) < 3 * lines()


@pytest.mark.parametrize("every", [1, 2, 3])
def test_real_training_in_rounds_has_the_same_bits(every: int) -> None:
    """With gradients over several batches, clipped before the step, and a look at each of them."""
    found = []
    for needed in (0, 10**6):
        torch.manual_seed(0)
        model = net()
        work = Supervised(model, sgd(model), torch.nn.MSELoss(), batches(8, 8, 5, 6, 8, 3))
        with mock.patch.object(rounds, "NEEDED", needed):
            final = run(
                start(work, epochs=3, seed=1), [accumulate(every), clip_grad_norm(0.5), silent(Phase.BATCH_END)]
            )
        found.append((final, model))
    assert found[0][0] == found[1][0]
    assert same_weights(found[0][1], found[1][1])


@pytest.mark.parametrize("needed", [0, 5, 10**6])
def test_replaced_method_is_that_of_the_next_run(needed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whenever rounds are written down: each method is looked up once in a run."""
    monkeypatch.setattr(rounds, "NEEDED", needed)
    steps: list[int] = []
    work = Scripted(batches=20)

    @on(Phase.LOSS_BEGIN)
    def replacing(state: State) -> Transition | None:
        if state.iteration == 2:
            monkeypatch.setattr(work, "step", lambda: not steps.append(state.iteration))
        return Transition(flags=Flag.SKIP_STEP) if state.iteration == 9 else None

    run(start(work, epochs=1), [replacing])
    assert not steps
    run(start(work, epochs=1), [replacing])
    assert len(steps) == 19


# ------------------------------------------------------------------------------------------ what fails in one


def last_words(callbacks: Sequence[Callback[Any]], **script: Any) -> tuple[str, list[str], object]:
    """The error of a training that fails in its twelfth batch, its notes, and what the failure says was under way."""
    seen: list[object] = []

    @on(Phase.TEARDOWN)
    def torn_down(state: State) -> None:
        assert state.failure is not None
        seen.append((state.failure.phase, state.failure.doing, state.failure.deciding))

    with pytest.raises((CallbackError, OSError, KeyboardInterrupt)) as caught:
        run(start(Scripted(batches=20, **script), epochs=1), [*callbacks, torn_down])
    return str(caught.value), getattr(caught.value, "__notes__", []), seen[0]


def breaks(error: BaseException) -> Callable[[State], float]:
    def measured(state: State) -> float:
        if state.iteration == 11:
            raise error
        return 0.5

    return measured


@pytest.mark.parametrize("needed", [0, 10**6])
def test_an_operation_that_fails_says_where(needed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same as outside of rounds."""
    monkeypatch.setattr(rounds, "NEEDED", needed)
    message, notes, under_way = last_words([silent(Phase.BATCH_BEGIN)], loss=breaks(OSError("broken")))
    assert message == "broken"
    assert notes[0].startswith("Raised by loss, after loss_begin of epoch 0, batch 11, step 11")
    assert under_way == (Phase.LOSS_BEGIN, Operation.LOSS, False)


@pytest.mark.parametrize("needed", [0, 10**6])
def test_a_callback_that_fails_is_named(needed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same as outside of rounds; KeyboardInterrupt is no error of a callback."""
    monkeypatch.setattr(rounds, "NEEDED", needed)
    for error in (ValueError("odd"), KeyboardInterrupt("stop")):
        failing = Callback("failing", (Phase.LOSS_END,), lambda state, memory, e=error: breaks(e)(state) and None)
        message, _, under_way = last_words([failing])
        assert ("'failing'" in message) == isinstance(error, Exception)
        assert under_way == (Phase.LOSS_END, None, True)


@pytest.mark.parametrize("needed", [0, 10**6])
def test_flags_that_fell_are_not_at_the_last_boundary(needed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of a batch fall on leaving its end, also where nobody answers afterwards."""
    monkeypatch.setattr(rounds, "NEEDED", needed)
    flags: list[Flag] = []

    @on(Phase.LOSS_BEGIN)
    def skipping(state: State) -> Transition | None:
        return Transition(flags=Flag.SKIP_STEP) if state.iteration in (2, 5, 8) else None

    @on(Phase.TEARDOWN)
    def looking_back(state: State) -> None:
        flags.append(state.failure.boundary.flags)

    last_words([skipping, looking_back], loss=breaks(OSError("broken")))
    assert flags == [Flag.NONE]


@pytest.mark.parametrize("needed", [0, 10**6])
def test_a_signal_between_two_batches_is_none_of_an_operation(needed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The batch is over, whatever was done last in it, and is not counted again where the training resumes."""
    monkeypatch.setattr(rounds, "NEEDED", needed)
    resumed: list[State] = []
    note_boundary = cursor.Cursor.note_boundary

    def interrupted(self: cursor.Cursor) -> None:
        note_boundary(self)
        if self.draft.iteration == 11:
            raise KeyboardInterrupt

    @on(Phase.STEP_BEGIN, memory=0)
    def remembering(state: State, memory: int) -> Transition:
        return Transition(memory=memory + 1)

    @on(Phase.TEARDOWN)
    def looking_back(state: State) -> None:
        resumed.append(whole_state(state)[0])

    monkeypatch.setattr(cursor.Cursor, "note_boundary", interrupted)
    _, _, under_way = last_words([remembering, looking_back])
    assert under_way == (Phase.BATCH_END, None, False)
    assert (resumed[0].iteration, resumed[0].samples) == (11, 11 * 32)
