"""Callbacks for one player: consulted in its turns, with its steps and its hyper-parameters."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fsm_train import Callback, Phase, Scripted, State, Transition, callbacks, describe, on, replay, run, start
from fsm_train.callbacks.players import of_player
from fsm_train.commands import Freeze, KeepAverage, Unfreeze, UseScheduler
from fsm_train.core.errors import CallbackError, ConflictError
from fsm_train.core.planned import planned_length, schedule_notes
from fsm_train.core.state import Plan
from fsm_train.schedules import absolute, cosine, linear, warmup
from fsm_train.testing import at, check_callback, simulate

TURNS = {"D": 1, "G": 2}


def scheduler(optimizer: Any) -> Any:
    raise AssertionError("made by the workload, and there is none here")


FOR_G: list[Callable[[], Callback[Any]]] = [
    lambda: callbacks.accumulate(2, player="G"),
    lambda: callbacks.clip_grad_norm(1.0, player="G"),
    lambda: callbacks.clip_grad_value(0.5, player="G"),
    lambda: callbacks.cutmix(0.5, player="G"),
    lambda: callbacks.ema(0.9, every=2, player="G"),
    lambda: callbacks.freeze("encoder.*", until_epoch=2, player="G"),
    lambda: callbacks.grad_noise(0.1, decay=0.55, player="G"),
    lambda: callbacks.mixup(0.4, player="G"),
    lambda: callbacks.record("loss", every=2, player="G"),
    lambda: callbacks.reduce_on_plateau(patience=0, player="G"),
    lambda: callbacks.schedule(lr=warmup(2).then(cosine(6)), player="G"),
    lambda: callbacks.schedule(by="epoch", momentum=absolute(cosine(3)), player="G"),
    lambda: callbacks.skip_nonfinite(limit=2, player="G"),
    lambda: callbacks.stop_after(steps=3, player="G"),
    lambda: callbacks.stop_on_nonfinite(player="G"),
    lambda: callbacks.swa(1, player="G"),
    lambda: callbacks.torch_scheduler(scheduler, by="epoch", monitor="valid_loss", player="G"),
    lambda: callbacks.validate_every(steps=2, player="G"),
    lambda: callbacks.weight_penalty(l1=0.1, player="G"),
]


@pytest.mark.unmeasured
@pytest.mark.parametrize("make", FOR_G, ids=lambda make: make().name)
def test_they_keep_the_laws(make: Callable[[], Callback[Any]]) -> None:
    """In drawn trainings with turns: pure, resumed, with two groups, beside others. One is pickled as its call."""
    callback = make()

    if callback.name != "swa_G":  # which is expected to fail one, if enough trainings are drawn
        check_callback(callback, examples=15)
    assert pickle.loads(pickle.dumps(callback)).params == callback.params
    assert callback.params["player"] == "G"
    assert callback.name.endswith("_G")


def test_a_schedule_counts_the_steps_of_its_player() -> None:
    """G steps at each second batch: after ten batches its schedule is at five, and D has its own rate."""
    final = simulate([callbacks.schedule(lr=linear(1.0, 0.0, 10), player="G")], batches=10, players=TURNS)

    assert final.steps_of("G") == 5
    assert final.hyper["G.lr"] == pytest.approx(0.1 * (1 - 4 / 10))
    assert final.hyper["D.lr"] == 0.1


def test_several_schedules_go_side_by_side() -> None:
    """Each sets its own, under a name of its own; one for both is by their full names."""
    rates = [callbacks.schedule(lr=linear(1.0, 0.0, 10), player=player) for player in TURNS]
    assert [rate.name for rate in rates] == ["schedule_D", "schedule_G"]
    final = simulate(rates, batches=10, players=TURNS)
    assert final.hyper["D.lr"] == pytest.approx(0.1 * (1 - 9 / 10))

    both = callbacks.schedule(**{"D.lr": linear(1.0, 0.0, 20)})
    final = simulate([both], batches=10, players=TURNS)
    assert final.hyper["D.lr"] < 0.1


def test_a_schedule_over_the_training_knows_the_plan_of_all() -> None:
    """by="training" stretches over the batches, or over the steps of all players."""
    shrinking = callbacks.schedule(lr=linear(1.0, 0.0, 1), by="training", player="G")

    assert simulate([shrinking], batches=10, players=TURNS).hyper["G.lr"] == pytest.approx(0.1 * (1 - 9 / 10))
    final = simulate([shrinking], batches=10, max_steps=15, players=TURNS)
    assert final.hyper["G.lr"] == pytest.approx(0.1 * (1 - 14 / 15))


def test_it_is_consulted_in_the_turns_of_its_player_alone() -> None:
    """And every so-many-th of them, though these are at other batches."""
    seen: list[tuple[str, int]] = []

    @on(Phase.LOSS_END, Phase.BATCH_END, Phase.EPOCH_END, every=2)
    def look(state: State) -> None:
        seen.append((state.phase.value, state.iteration))

    simulate([of_player(look, "G")], epochs=2, batches=4, players=TURNS)
    assert seen == [("loss_end", 1), ("batch_end", 2), ("loss_end", 5), ("batch_end", 6), ("epoch_end", 8)]


def test_what_it_asks_for_is_its_players() -> None:
    """An average, a scheduler, a pattern of parameters."""

    def asked(callback: Callback[Any], state: State) -> Any:
        answer = callback(state)
        assert answer is not None
        return answer.commands[0]

    begins = at(Phase.SETUP, players=TURNS)
    assert asked(callbacks.ema(0.9, player="G"), begins) == KeepAverage("ema_G", 0.9, player="G")
    assert asked(callbacks.torch_scheduler(scheduler, player="G"), begins) == UseScheduler(
        "torch_scheduler_G", scheduler, player="G"
    )
    frozen = callbacks.freeze("encoder.*", until_epoch=2, player="G")
    assert asked(frozen, begins) == Freeze("G.encoder.*", temporary=True)
    assert asked(frozen, at(Phase.EPOCH_BEGIN, epoch=2, players=TURNS)) == Unfreeze("G.encoder.*")
    assert frozen.name == "freeze encoder.*_G"


def test_a_player_that_is_not_there_is_an_error() -> None:
    """In a training without turns too, where the callback would otherwise never be consulted."""
    for players in (None, {"D": 1}):
        with pytest.raises(CallbackError, match="there is no player 'G'"):
            simulate([callbacks.clip_grad_norm(1.0, player="G")], players=players)
    with pytest.raises(TypeError, match="names are strings"):
        callbacks.clip_grad_norm(1.0, player=3)  # type: ignore[arg-type]


def test_callbacks_of_different_players_do_not_contend() -> None:
    """Two clippings, two schedulers and two mixups are each in turns of their own."""
    both: list[Callback[Any]] = []
    for player in TURNS:
        both += [
            callbacks.clip_grad_norm(1.0, player=player),
            callbacks.torch_scheduler(scheduler, player=player),
            callbacks.mixup(player=player),
        ]
    assert "in the order of the list" not in str(describe(both))
    with pytest.raises(ConflictError, match="which only one callback of a run may"):
        describe([callbacks.ema(0.9, player=player) for player in TURNS])
    describe([callbacks.ema(0.9, player="D", validate=False), callbacks.ema(0.9, player="G")])


@pytest.mark.parametrize("sizes", [(4, 7, 2), (8, 8, 8)])
def test_windows_of_several_players_are_weighed_apart(sizes: tuple[int, ...]) -> None:
    """`accumulate` without a player keeps the first batch of each one's window: they begin at different batches."""
    memory = []

    @on(Phase.BATCH_END)
    def look(state: State) -> None:
        memory.append(dict(state.memory["accumulate"]))

    work = Scripted(batches=3, batch_size=list(sizes), players=TURNS)
    run(start(work, epochs=1), [callbacks.accumulate(2), look])
    assert memory == [{"D": sizes[0]}] * 2 + [{"D": sizes[0], "G": sizes[1]}, {"D": sizes[2], "G": sizes[1]}]


def test_accumulate_may_come_later() -> None:
    """A window that was begun without it has shares of the size 1."""
    callback = callbacks.accumulate(2)
    state = at(Phase.LOSS_END, players=TURNS, player="G", pending=1)

    answer = callback(state, (("D", 4.0),))
    assert answer is not None
    assert answer.commands[0].share == 16.0


def test_the_planned_steps_of_a_player_are_known() -> None:
    """A schedule that is too short or long for them is said; where they are not known, nothing is."""
    state = at(Phase.READY, plan=Plan(epochs=3), batches_per_epoch=10, players={"D": 1, "G": 5})
    short = callbacks.schedule(lr=cosine(3), player="G")

    assert [note.split(" but the plan")[0] for note in schedule_notes([short], state)] == [
        "schedule_G: lr=cosine(3) ends after 3 steps,"
    ]
    assert schedule_notes([callbacks.schedule(lr=cosine(6), player="G")], state) == []
    assert schedule_notes([short, callbacks.accumulate(2, player="G")], state) == []
    assert schedule_notes([callbacks.schedule(lr=cosine(3), player="E")], state) == []
    assert schedule_notes([callbacks.schedule(lr=cosine(3))], state) == []
    assert schedule_notes([short], at(Phase.READY, plan=Plan(epochs=3), players={"D": 1, "G": 5})) == []
    assert planned_length(state, [callbacks.limit(batches=4)]).iteration == 12


def test_a_log_of_them_is_replayed(tmp_path: Path) -> None:
    """From its header, which says whose they are."""
    work = Scripted(batches=5, players=TURNS, loss=1.0, valid_loss=[2.0, 3.0, 4.0])
    used = [
        callbacks.accumulate(2, player="D"),
        callbacks.schedule(lr=cosine(8), player="G"),
        callbacks.reduce_on_plateau(patience=0, player="D"),
        callbacks.skip_nonfinite(player="G"),
    ]
    final = run(start(work, epochs=3), used, log=tmp_path / "run.jsonl")

    assert final.hyper["D.lr"] == pytest.approx(0.001)
    replayed = replay(tmp_path / "run.jsonl")
    assert replayed.ok, replayed.divergence


def test_without_a_player_they_are_recorded_as_before() -> None:
    """The params have no player, as in logs of earlier versions."""
    assert "player" not in callbacks.accumulate(4).params
    assert callbacks.clip_grad_norm(1.0, name="mine", player="G").name == "mine"


def test_a_number_of_all_is_not_scheduled_for_one_player() -> None:
    """The schedule says so, since it was made to set what the player has."""
    callback = callbacks.schedule(kl=linear(1.0, 0.0, 4), player="G")
    with pytest.raises(CallbackError, match="'kl' is no hyper-parameter of the player 'G': set one of the whole"):
        simulate([callback], players={"G": 1}, hyper={"kl": 1.0, "G.lr": 0.5})


def test_one_of_several_optimizers_of_a_player_is_scheduled() -> None:
    """With both names: G.muon.lr; what all optimizers of the player share follows."""
    callback = callbacks.schedule(lr=linear(1.0, 0.0, 4), optimizer="muon", player="G")
    hyper = {"G.lr": (0.5, 0.1), "G.muon.lr": 0.5, "G.adamw.lr": 0.1, "D.lr": 0.2}

    final = simulate([callback], players={"D": 1, "G": 1}, hyper=hyper, epochs=1, batches=3)

    assert callback.name == "schedule_muon_G"
    assert callback.sets == {"G.muon.lr"}
    assert dict(final.hyper) == {**hyper, "G.lr": (0.25, 0.1), "G.muon.lr": 0.25}


def test_what_it_sets_beside_its_own_keeps_its_name() -> None:
    """A number that is nobody's is seen and set as it is."""

    @on(Phase.STEP_BEGIN)
    def callback(state: State) -> Transition:
        return Transition(hyper={"kl": state.hyper["kl"] / 2, "lr": state.hyper["lr"] / 2})

    final = simulate([of_player(callback, "G")], players={"G": 1}, hyper={"kl": 1.0, "G.lr": 0.5})
    assert dict(final.hyper) == {"kl": 0.5, "G.lr": 0.25}


def test_it_can_be_for_a_part_of_the_training(tmp_path: Path) -> None:
    """`during` around it is still for its player, also in a replay from the header."""
    early = callbacks.during(callbacks.schedule(lr=linear(1.0, 0.0, 10), player="G"), epochs=(0, 1))
    work = Scripted(batches=4, players=TURNS)
    final = run(start(work, epochs=3), [early], log=tmp_path / "run.jsonl")

    assert final.hyper["G.lr"] == pytest.approx(0.1 * (1 - 1 / 10))
    assert early.sets == {"G.lr"}
    assert replay(tmp_path / "run.jsonl").ok
