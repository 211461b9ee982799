"""Players that take turns: the record, and trainings without a model that take them."""

from __future__ import annotations

import pickle
from typing import Any

import pytest

from fsm_train import Callback, Flag, Phase, Scripted, Transition, on, run, start
from fsm_train.callbacks import accumulate, validate_every
from fsm_train.core.failing import whole_state
from fsm_train.core.phase import Operation
from fsm_train.core.state import Plan, State
from fsm_train.core.turns import NO_PLAYERS, Players, check_player_name
from fsm_train.testing import at, simulate
from fsm_train.testing.trace import Trace

D_AND_G = {"D": 1, "G": 2}


def seen_at(*phases: Phase) -> Callback[Any]:
    """A callback that remembers where it was consulted."""

    @on(*phases, memory=(), name="seen")
    def seen(state: State, before: tuple[Any, ...]) -> Transition:
        return Transition(memory=(*before, (state.player, state.turn, state.batch, state.pending)))

    return seen


def raising(phase: Phase, flag: Flag, player: str) -> Callback[Any]:
    @on(phase, name="raising", raises=flag)
    def callback(state: State) -> Transition | None:
        return Transition(flags=flag) if state.player == player else None

    return callback


# ------------------------------------------------------------------------------------ the record


@pytest.mark.parametrize(
    ("players", "message"),
    [
        ({"D": 2, "G": 5}, "'D': 2, 'G': 5}: no player plays at each batch"),
        ({"D": 0}, "every of player 'D'=0: it is a whole number from 1"),
        ({"": 1}, "the player '': give it a name"),
        ({"a.b": 1}, "the player 'a.b': a name has no dot"),
        ({"\udcff": 1}, "half of a pair of UTF-16"),
    ],
)
def test_players_that_cannot_play_are_refused(players: dict[str, int], message: str) -> None:
    """A batch without a turn, a number that is none, a name that could not stand in D.lr: before a training."""
    with pytest.raises(ValueError, match=message):
        start(Scripted(players=players), epochs=1)


def test_names_are_strings() -> None:
    """Any other key of the mapping is an error that shows one."""
    with pytest.raises(TypeError, match="the player 3: names are strings, such as 'D'"):
        check_player_name(3)


def test_without_players_nothing_is_there() -> None:
    """The record of a workload without turns is false, empty, and knows no player."""
    assert Players.of({}) is NO_PLAYERS
    assert (bool(NO_PLAYERS), [*NO_PLAYERS], at(Phase.LOSS_END).player) == (False, [], "")
    with pytest.raises(LookupError, match="no player 'G': there are none: this training has no turns"):
        at(Phase.LOSS_END).steps_of("G")


def test_a_player_that_is_not_there_is_named_with_those_that_are() -> None:
    """A misspelt name is an error that names the others."""
    players = Players.of(D_AND_G)

    with pytest.raises(LookupError, match="there is no player 'g': there are 'D', 'G'"):
        players.pending_of("g", pending=0)
    assert (players.turns_until("D", 5), players.turns_until("G", 5)) == (5, 2)


def test_a_state_says_whose_turn_it_is() -> None:
    """In short, too."""
    state = at(Phase.STEP_BEGIN, players={"D": 1, "G": 1}, player="G", turn=1)

    assert (state.player, state.turn, [*state.players]) == ("G", 1, ["D", "G"])
    assert repr(state).startswith("State(step_begin: epoch=0, batch=0, step=0; G; lr=0.1")
    assert pickle.loads(pickle.dumps(state)) == state
    with pytest.raises(LookupError, match="no player 'E'"):
        at(Phase.STEP_BEGIN, players={"D": 1}, player="E")


def test_draws_differ_from_turn_to_turn() -> None:
    """Two turns of a batch without a step in between draw differently; one turn draws the same again."""
    states = [at(Phase.LOSS_END, players={"D": 1, "G": 1}, player=p, turn=t) for p, t in (("D", 0), ("G", 1), ("D", 0))]

    one, two, three = (state.random("noise").random() for state in states)
    assert (one == three, one == two) == (True, False)


# --------------------------------------------------------------------------------- whole trainings


def test_players_take_turns_at_a_batch() -> None:
    """Each batch is fetched once, and each player that is due walks through it."""
    final = simulate([seen_at(Phase.BATCH_BEGIN)], batches=4, players=D_AND_G)

    turns = [("D", 0, 0, 0), ("D", 0, 1, 0), ("G", 1, 1, 0), ("D", 0, 2, 0), ("D", 0, 3, 0), ("G", 1, 3, 0)]
    assert final.memory["seen"] == tuple(turns)
    assert (final.batch, final.iteration, final.samples) == (4, 4, 128)
    assert (final.step, final.steps_of("D"), final.steps_of("G")) == (6, 4, 2)
    assert dict(final.hyper) == {"D.lr": 0.1, "G.lr": 0.1}


def test_operations_are_those_of_alternation_by_hand() -> None:
    """A batch, then the five-line loop of each player."""
    trace = Trace()
    simulate([], batches=1, players={"D": 1, "G": 1}, trace=trace)

    loop = ["forward", "loss", "backward", "unscale", "step", "zero"]
    done = [str(what) for what in trace.operations]
    assert [name for name in done if name in {"fetch", "turn", *loop}] == ["fetch", *["turn", *loop] * 2, "fetch"]


def test_losses_are_measured_for_each_player() -> None:
    """train_D_loss is the mean of D's turns alone."""
    work = Scripted(batches=2, players={"D": 1, "G": 2}, loss=lambda state: 1.0 if state.player == "D" else 3.0)
    final = run(start(work, epochs=1))

    assert dict(final.metrics) == {"train_D_loss": 1.0, "train_G_loss": 3.0}
    assert work.metric_names == {"train_D_loss", "train_G_loss"}


def test_each_player_accumulates_for_itself() -> None:
    """A window of one player stays open while another one plays, and both leave one over at the end."""
    final = simulate([accumulate(2), seen_at(Phase.BACKWARD_END)], batches=3, players={"D": 1, "G": 1})

    assert [pending for *_, pending in final.memory["seen"]] == [1, 1, 2, 2, 1, 1]
    assert (final.step, final.steps_of("D"), final.steps_of("G"), final.pending) == (4, 2, 2, 0)


def test_a_flag_of_a_turn_ends_with_it() -> None:
    """SKIP_STEP in the turn of D holds no step of G back."""
    final = simulate([raising(Phase.LOSS_END, Flag.SKIP_STEP, "D")], batches=3, players={"D": 1, "G": 1})

    assert (final.steps_of("D"), final.steps_of("G")) == (0, 3)


def test_an_epoch_that_ends_between_turns_leaves_the_others_out() -> None:
    """STOP_EPOCH after the turn of D: no turn of G, and the batch counts."""
    final = simulate([raising(Phase.BATCH_END, Flag.STOP_EPOCH, "D")], batches=3, epochs=2, players={"D": 1, "G": 1})

    assert (final.iteration, final.samples, final.steps_of("D"), final.steps_of("G")) == (2, 64, 2, 0)


def test_the_plan_counts_the_steps_of_all() -> None:
    """max_steps=3 of two players ends in the middle of the second batch."""
    final = simulate([], batches=9, max_steps=3, players={"D": 1, "G": 1})

    assert (final.step, final.steps_of("D"), final.steps_of("G"), final.iteration) == (3, 2, 1, 2)


def test_a_window_that_is_left_over_is_not_stepped_beyond_the_plan() -> None:
    """D takes the last step of the plan, and G has a window open: it is dropped."""

    @on(Phase.LOSS_END)
    def hold(state: State) -> Transition | None:
        return Transition(flags=Flag.SKIP_STEP | Flag.SKIP_ZERO) if state.player == "G" else None

    final = simulate([hold], batches=9, max_steps=2, players={"G": 1, "D": 1})
    assert (final.step, final.steps_of("D"), final.steps_of("G"), final.players.waiting) == (2, 2, 0, (0, 0))
    assert simulate([hold], batches=2, epochs=1, players={"G": 1, "D": 1}).steps_of("G") == 1


def test_a_batch_that_weighs_nothing_is_left_out_of_each_turn() -> None:
    """Nobody trains with it."""
    final = simulate([], batches=3, batch_size=[4, 0, 4], players={"D": 1, "G": 1})

    assert (final.step, final.iteration, final.samples) == (4, 3, 8)


def test_a_validation_between_turns_changes_nothing_of_the_batch() -> None:
    """It has its own batches; the turn of G after it is at the batch of D."""
    sizes: list[float] = []

    @on(Phase.BATCH_BEGIN)
    def look(state: State) -> None:
        sizes.append(state.facts["batch_size"])

    final = simulate(
        [validate_every(steps=1), look],
        batches=2,
        batch_size=[4, 7],
        valid_batches=3,
        valid_loss=lambda state: 1.0 + state.step,
        players={"D": 1, "G": 1},
    )
    assert sizes == [4, 4, 7, 7]
    assert (final.samples, final.iteration, final.step, final.metrics["valid_loss"]) == (11, 2, 4, 5.0)


def test_metrics_so_far_are_there_between_the_turns_of_the_first_batch() -> None:
    """A validation after D's first turn tells its loss; G has none yet."""
    seen = []

    @on(Phase.VALID_END)
    def look(state: State) -> None:
        seen.append(dict(state.metrics))

    simulate([validate_every(steps=1), look], valid_loss=1.0, loss=2.0, players={"D": 1, "G": 1})
    assert seen[0] == {"train_D_loss": 2.0, "valid_loss": 1.0}


@pytest.mark.parametrize("step", range(1, 5))
def test_suspended_between_turns_it_resumes_there(step: int) -> None:
    """The turn after it is that of the next player, at the same batch."""
    settings: Any = {"epochs": 1, "batches": 2, "players": {"D": 1, "G": 1}}
    settings["loss"] = lambda state: state.random("loss").random()
    suspended = simulate([], interrupt_at=lambda state: state.step == step, **settings)

    assert suspended.phase is Phase.SUSPENDED
    assert run(suspended) == simulate([], **settings)


@pytest.mark.parametrize(("player", "batch", "place"), [("G", 0, Phase.BATCH_END), ("G", 1, Phase.BATCH_END)])
def test_a_training_that_fails_in_a_turn_is_whole_before_it(player: str, batch: int, place: Phase) -> None:
    """What the turns before did is kept, in the first batch of a training too; the turn that failed comes again."""

    class Failing(Scripted):
        def loss(self, state: State | None = None) -> None:
            assert state is not None
            if (state.players.player, state.batch) == (player, batch):
                raise OSError("broken")
            super().loss(state)

        @property
        def informed(self) -> frozenset[Operation]:
            return frozenset({*super().informed, Operation.LOSS})

    states = []

    @on(Phase.TEARDOWN)
    def look(state: State) -> None:
        states.append(state)

    with pytest.raises(OSError, match="broken"):
        run(start(Failing(batches=2, players={"D": 1, "G": 1}), epochs=1), [look])
    whole, _ = whole_state(states[0])
    assert (whole.resume_at, whole.batch, whole.step) == (place, batch, 2 * batch + 1)
    assert (whole.players.player, whole.players.coming, whole.players.steps) == ("D", ("G",), (batch + 1, batch))


def test_a_state_takes_a_mapping_of_players() -> None:
    """As `start` does, for a test."""
    assert State(Phase.READY, Plan(epochs=1), players=D_AND_G).players == Players.of(D_AND_G)
