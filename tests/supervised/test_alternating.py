"""Models that take turns, against alternation by hand: equal to the last bit, also when killed between turns."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fsm_train import (
    Alternating,
    Callback,
    CheckpointError,
    Evaluation,
    Flag,
    Phase,
    Player,
    State,
    Transition,
    WorkloadError,
    evaluate,
    on,
    predict,
    replay,
    restore,
    run,
    start,
)
from fsm_train.callbacks import checkpoint, compile_step, mixed_precision, mixup, parallel, validate_every
from fsm_train.checkpoints.api import read
from fsm_train.checkpoints.choice import candidates
from fsm_train.commands import SaveCheckpoint, UseMixedPrecision
from tests.models import digits, equal, five_lines
from tests.players_training import ActorCritic, Gan, adam, bce, by_hand, follow, gan, real_digits, suspending

MakeTraining = Callable[[], tuple[Any, Alternating, list[Callback[Any]]]]


def dcgan() -> tuple[Any, Alternating, list[Callback[Any]]]:
    of = gan()
    return of, of.dcgan(), []


def wgan() -> tuple[Any, Alternating, list[Callback[Any]]]:
    of = gan()
    return of, of.wgan(), []


def actor_critic() -> tuple[Any, Alternating, list[Callback[Any]]]:
    of = ActorCritic()
    return of, of.alternating(), [follow]


def plain(make: MakeTraining) -> list[torch.Tensor]:
    of, _, _ = make()
    if make is dcgan:
        by_hand(of, real_digits(), of.real_and_fake, of.fooled)
    elif make is wgan:
        by_hand(of, real_digits(16, 96), of.critic, of.praised, every=5)
    else:
        of.by_hand()
    return of.weights()


every_kind = pytest.mark.parametrize("make", [dcgan, wgan, actor_critic])


@every_kind
def test_turns_are_alternation_by_hand(make: MakeTraining, tmp_path: Path) -> None:
    """The same weights and statistics to the last bit; the log is replayed."""
    of, work, callbacks = make()
    final = run(start(work, epochs=2, seed=0), callbacks, log=tmp_path / "run.jsonl")

    assert equal(of.weights(), plain(make))
    assert final.step == sum(final.players.steps)
    assert replay(tmp_path / "run.jsonl", callbacks).ok


@pytest.mark.unmeasured
@every_kind
@pytest.mark.parametrize("step", [1, 6, 7, 9])
def test_a_training_that_is_killed_between_turns_is_the_same(make: MakeTraining, step: int, tmp_path: Path) -> None:
    """Objects that are all new go on with the next player, at the same batch, which had noise in it."""
    _, work, callbacks = make()
    callbacks = [*callbacks, checkpoint(tmp_path / "saved"), suspending(step)]
    suspended = run(start(work, epochs=2, seed=0), callbacks, log=tmp_path / "run.jsonl")
    assert suspended.phase is Phase.SUSPENDED

    of, work, _ = make()
    torch.manual_seed(99)
    final = run(restore(tmp_path / "saved", work), callbacks, log=tmp_path / "run.jsonl")
    assert final.notes == ()
    assert equal(of.weights(), plain(make))
    assert replay(tmp_path / "run.jsonl", callbacks).ok


def test_a_training_that_is_suspended_after_each_turn_is_the_same() -> None:
    """In one process, with other random numbers drawn in between."""
    of, work, _ = dcgan()

    @on(Phase.BATCH_END)
    def always(state: State) -> Transition:
        return Transition(flags=Flag.SUSPEND)

    state = run(start(work, epochs=2, seed=0), [always])
    while state.phase is Phase.SUSPENDED:
        torch.rand(3)
        state = run(state, [always])
    assert state.step == 16
    assert equal(of.weights(), plain(dcgan))


def test_a_player_alone_is_supervised_training() -> None:
    """One that plays at each batch is the five-line loop."""
    torch.manual_seed(1)
    model = nn.Linear(64, 10)
    loss = nn.CrossEntropyLoss()
    train = [(x, y) for x, y in zip(digits(64).tensors[0].split(16), digits(64).tensors[1].split(16), strict=True)]
    player = Player(model, torch.optim.SGD(model.parameters(), lr=0.1), lambda x, y: loss(model(x), y))
    run(start(Alternating({"it": player}, train), epochs=3))

    torch.manual_seed(1)
    other = nn.Linear(64, 10)
    five_lines(other, torch.optim.SGD(other.parameters(), lr=0.1), loss, train, 3)
    assert equal([*model.parameters()], [*other.parameters()])


def test_a_window_is_not_disturbed_by_other_players() -> None:
    """D accumulates two batches while G plays at each, whose loss goes through D: the gradients of D are its own."""
    of = gan()
    work = of.dcgan(train=real_digits())

    @on(Phase.LOSS_END)
    def hold(state: State) -> Transition | None:
        waits = state.player == "D" and state.batch % 2 == 0
        return Transition(flags=Flag.SKIP_STEP | Flag.SKIP_ZERO) if waits else None

    final = run(start(work, epochs=1, seed=0), [hold])
    assert (final.steps_of("D"), final.steps_of("G")) == (2, 4)

    hand = gan()
    d_optimizer, g_optimizer = adam(hand.D), adam(hand.G)
    torch.manual_seed(0)
    for batch, (real, target) in enumerate(real_digits()):
        kept = {p: p.grad for p in hand.D.parameters()}
        for p in hand.D.parameters():
            p.grad = kept[p] if batch % 2 else None
        hand.real_and_fake(real, target)["loss"].backward()
        if batch % 2:
            d_optimizer.step()
        own = {p: p.grad.clone() for p in hand.D.parameters()}
        g_optimizer.zero_grad()
        hand.fooled(real, target).backward()
        g_optimizer.step()
        for p in hand.D.parameters():
            p.grad = own[p]
    assert equal(of.weights(), hand.weights())


@pytest.mark.parametrize("step", [1, 2, 5, 6])
def test_a_window_of_one_player_is_saved(step: int, tmp_path: Path) -> None:
    """Killed while D has gradients that wait, in the turn of G too."""

    @on(Phase.LOSS_END)
    def hold(state: State) -> Transition | None:
        waits = state.player == "D" and state.iteration % 3 != 2
        return Transition(flags=Flag.SKIP_STEP | Flag.SKIP_ZERO) if waits else None

    whole, work, _ = dcgan()
    run(start(work, epochs=2, seed=0), [hold])
    _, work, _ = dcgan()
    callbacks = [hold, checkpoint(tmp_path), suspending(step)]
    suspended = run(start(work, epochs=2, seed=0), callbacks)
    assert suspended.players.pending_of("D", suspended.pending) > 0

    of, work, _ = dcgan()
    assert run(restore(tmp_path, work), callbacks).notes == ()
    assert equal(of.weights(), whole.weights())


def test_metrics_have_the_names_of_the_players() -> None:
    """Of each player its loss and its parts, on training and validation data, each known before the training."""
    of = gan()
    work = of.dcgan(valid=real_digits(64, 64))
    final = run(start(work, epochs=1, seed=0))

    losses = {"D_loss", "D_real", "D_fake", "G_loss"}
    assert {*final.metrics} == {f"{split}_{name}" for split in ("train", "valid") for name in losses}
    assert work.metric_names >= {"train_D_loss", "train_D_*", "valid_G_loss", "valid_D_*"}
    assert final.metrics["train_D_loss"] == pytest.approx(final.metrics["train_D_real"] + final.metrics["train_D_fake"])


def test_validating_between_turns_changes_nothing(tmp_path: Path) -> None:
    """Its losses draw noise, and the training goes on as if they had not."""
    of = gan()
    callbacks = [validate_every(steps=1), checkpoint(tmp_path)]
    run(start(of.dcgan(valid=real_digits(64, 64)), epochs=2, seed=0), callbacks)

    assert equal(of.weights(), plain(dcgan))


def test_an_output_is_evaluated_where_its_model_is_named() -> None:
    """Metrics, predict, and evaluations with a loss of their own ask the model of one player."""
    of = gan()
    images, _ = digits(64).tensors
    judged = [(images, torch.ones(64))]

    def scored(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return ((output > 0).float() == target).float().mean()

    work = of.dcgan(
        valid={"own": judged, "real": Evaluation(judged, loss_fn=bce)}, evaluated="D", metrics={"a": scored}
    )
    measured = evaluate(work)
    with torch.no_grad():
        of.D.eval()
        output = of.D(images)
        of.D.train()
    assert measured["valid_own_a"] == scored(output, judged[0][1]).item()
    assert measured["valid_real_loss"] == pytest.approx(bce(output, judged[0][1]).item())
    assert "valid_own_D_loss" in measured
    assert "valid_real_D_loss" not in measured
    assert {"valid_real_loss", "valid_own_a", "valid_own_G_loss"} <= work.metric_names
    assert torch.equal(predict(work, judged), output)


def test_an_evaluation_may_need_no_output() -> None:
    """Without a loss and metrics it is there for measures, such as a distance of what is drawn."""
    of = gan()
    images = digits(64).tensors[0]
    valid = Evaluation([(images, torch.ones(64))], loss_fn=None)

    def gap(work: Any) -> float:
        drawn = work.model["G"](torch.randn(64, 12))
        return float((drawn.mean(dim=0) - images.mean(dim=0)).abs().mean())

    final = run(start(of.dcgan(valid=valid, measures={"gap": gap}), epochs=2, seed=0))
    assert {name for name in final.metrics if name.startswith("valid_")} == {"valid_gap"}
    assert equal(of.weights(), plain(dcgan))


# ------------------------------------------------------------------------------- mixed precision


def in_half_by_hand(hold: bool) -> Gan:
    """The loop by hand in float16, with a scaler for each player; with `hold` D accumulates two batches."""
    hand = gan()
    torch.manual_seed(0)
    sides = [
        (adam(hand.D), hand.real_and_fake, [*hand.D.parameters()]),
        (adam(hand.G), hand.fooled, [*hand.G.parameters()]),
    ]
    scalers = [torch.amp.GradScaler("cpu", init_scale=2.0**10) for _ in sides]
    own: list[dict[Any, Any]] = [{}, {}]
    for _ in range(2):
        for batch, (real, target) in enumerate(real_digits()):
            for i, ((optimizer, loss_of, parameters), scaler) in enumerate(zip(sides, scalers, strict=True)):
                for p in parameters:
                    p.grad = own[i].get(p)
                with torch.autocast("cpu", dtype=torch.float16):
                    loss = loss_of(real, target)
                scaler.scale(loss["loss"] if isinstance(loss, dict) else loss).backward()
                if i == 1 or not hold or batch % 2:
                    scaler.step(optimizer)
                    scaler.update()
                    optimizer.zero_grad()
                own[i] = {p: p.grad.clone() for p in parameters if p.grad is not None}
    return hand


def held(state: State) -> Transition | None:
    waits = state.player == "D" and state.batch % 2 == 0
    return Transition(flags=Flag.SKIP_STEP | Flag.SKIP_ZERO) if waits else None


@pytest.mark.parametrize("hold", [False, True])
@pytest.mark.parametrize("step", [0, 1, 5])
def test_each_player_has_a_scaler_of_its_own(hold: bool, step: int, tmp_path: Path) -> None:
    """In float16 the weights are those of a loop with two scalers, also accumulated and killed between turns."""
    callbacks = [mixed_precision("float16", initial_scale=2.0**10), *([on(Phase.LOSS_END)(held)] if hold else [])]
    of = gan()
    callbacks += [checkpoint(tmp_path), suspending(step)] if step else []
    final = run(start(of.dcgan(), epochs=2, seed=0), callbacks)
    if step:
        assert final.phase is Phase.SUSPENDED
        of = gan()
        final = run(restore(tmp_path, of.dcgan()), callbacks)

    assert final.phase is Phase.DONE
    assert equal(of.weights(), in_half_by_hand(hold).weights())


def test_an_overflow_of_one_player_holds_no_other_back() -> None:
    """The step of D is skipped and its scale falls; G steps."""
    of = gan()
    work = of.dcgan()
    usual = work.by_player["D"].loss
    work.by_player["D"].loss = lambda real, target: usual(real, target)["loss"] * 1e30

    final = run(start(work, epochs=1, seed=0), [mixed_precision("float16")])
    assert (final.steps_of("D"), final.steps_of("G")) == (0, 4)
    scales = work.carried_over.scaler
    assert scales is not None
    assert (scales["D"]["scale"], scales["G"]["scale"]) == (2.0**12, 2.0**16)


# ------------------------------------------------------------------------------------ what is refused


def test_parts_that_do_not_fit_are_refused() -> None:
    """Before anything is trained, each with what to write."""
    model = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    player, train = Player(model, optimizer, lambda x, y: model(x).mean()), [(torch.zeros(1, 1), torch.zeros(1))]

    with pytest.raises(WorkloadError, match="players is .*: give a mapping from names"):
        Alternating([player], train)  # type: ignore[arg-type]
    with pytest.raises(WorkloadError, match="the player 'D' is .*: give a Player"):
        Alternating({"D": model}, train)  # type: ignore[dict-item]
    with pytest.raises(ValueError, match="no player plays at each batch"):
        Alternating({"D": Player(model, optimizer, lambda x, y: x, every=2)}, train)
    with pytest.raises(ValueError, match="a player cannot be called 'train'"):
        Alternating({"train": player}, train)
    with pytest.raises(ValueError, match="every of player 'this player'=0"):
        Player(model, optimizer, lambda x, y: x, every=0)
    with pytest.raises(WorkloadError, match="loss is called with"):
        Player(model, optimizer, lambda x: x)  # type: ignore[arg-type, misc]
    with pytest.raises(WorkloadError, match="evaluated='G': the players are 'D'"):
        Alternating({"D": player}, train, evaluated="G")
    with pytest.raises(WorkloadError, match="leave one out"):
        Alternating({"D": player}, train, evaluated="D", forward=lambda models, x: x)
    with pytest.raises(WorkloadError, match="are not the model's"):
        Alternating({"D": Player(nn.Linear(1, 1), optimizer, lambda x, y: x)}, train)


def test_what_needs_one_model_says_which() -> None:
    """An output where nobody said whose, a compiled step, a wrapper, find_lr."""
    work = gan().dcgan()

    with pytest.raises(WorkloadError, match="which player's output"):
        predict(work, [digits(8).tensors[0]])
    for callback in (compile_step(), parallel("data_parallel")):
        with pytest.raises(WorkloadError, match="this training has players: leave the callback out"):
            run(start(work, epochs=1), [callback])
    with pytest.raises(WorkloadError, match="several players"):
        work.snapshot()

    @on(Phase.SETUP, Phase.TRAIN_BEGIN)
    def twice(state: State) -> Transition:
        return Transition(commands=(UseMixedPrecision("bfloat16"),))

    with pytest.raises(WorkloadError, match="mixed precision is in use already"):
        run(start(work, epochs=1), [twice])


def test_it_is_shown_with_its_players() -> None:
    """In a terminal and in a notebook, without iterating the data."""
    work = gan().dcgan(every=5, valid=real_digits())

    assert repr(work).splitlines()[1:3] == ["  D: Sequential, Adam, every 1", "  G: Sequential, Adam, every 5"]
    assert "Sequential, Adam, every 5" in work._repr_html_()
    assert repr(Player(nn.Linear(1, 1), adam(nn.Linear(1, 1)), lambda x, y: x)) == "Player(Linear, Adam, every=1)"


@pytest.mark.parametrize("change", ["players", "every", "supervised", "optimizer", "gradient", "damaged"])
def test_another_training_is_not_restored(change: str, tmp_path: Path) -> None:
    """Nothing of this one has changed then, also where the first of its players fits."""
    of = gan()
    run(start(of.dcgan(), epochs=2, seed=0), [checkpoint(tmp_path), suspending(1)])
    other = gan()
    work = other.dcgan()
    if change == "players":
        work = Alternating({"D": Player(other.D, adam(other.D), other.real_and_fake)}, real_digits())
    before = [tensor.clone() for tensor in other.weights()]
    if change == "every":
        work = other.dcgan(every=3)
    if change == "optimizer":
        work.by_player["G"].optimizer = torch.optim.SGD(other.G.parameters(), lr=0.5)
    if change in ("gradient", "damaged", "supervised"):
        state, parts = read(candidates(tmp_path, "last")[0][0])
        if change == "supervised":
            del parts["players"]
        elif change == "gradient":
            parts["players"]["others"]["G"]["gradients"] = {0: torch.zeros(1)}
        else:
            parts["players"]["others"]["G"]["optimizer"]["param_groups"][0].pop("params")
        with pytest.raises((WorkloadError, CheckpointError)):
            work.restore_parts(parts, state)
    else:
        with pytest.raises((WorkloadError, CheckpointError)):
            restore(tmp_path, work)
    assert equal(other.weights(), before)
    assert {key for key in work.hyper() if key.endswith(".lr")} >= {"D.lr"}


def test_it_is_collected_with_its_last_user() -> None:
    """A training that is over holds on to no model."""
    of = gan()
    work = of.dcgan()
    run(start(work, epochs=1))
    dead = weakref.ref(of.G)
    del of, work
    gc.collect()
    assert dead() is None


# ------------------------------------------------------------------- what fails, and what cannot be saved


@pytest.mark.parametrize("notes_batches", [True, False])
def test_a_turn_that_fails_is_trained_again(notes_batches: bool, tmp_path: Path) -> None:
    """The turn of D before it stays, and the batch is the same: with the generators noted, to the last bit."""

    def make(fail: bool) -> tuple[Gan, Alternating]:
        of = gan()
        work = of.dcgan()
        usual, calls = work.by_player["G"].loss, []

        def loss(real: torch.Tensor, target: Any) -> Any:
            calls.append(1)
            value = usual(real, target)
            if fail and len(calls) == 6:
                raise OSError("the disk is away")
            return value

        work.by_player["G"].loss = loss
        return of, work

    _, work = make(fail=True)
    saves = checkpoint(tmp_path, on_failure=True)
    if not notes_batches:

        @on(Phase.TEARDOWN, commands={SaveCheckpoint})
        def saves(state: State) -> Transition | None:
            return Transition(commands=(SaveCheckpoint(str(tmp_path), "failed"),)) if state.error else None

    with pytest.raises(OSError, match="away"):
        run(start(work, epochs=2, seed=0), [saves])
    of, work = make(fail=False)
    torch.manual_seed(99)
    state = restore(tmp_path, work)
    assert (state.players.coming, state.batch, state.steps_of("D"), state.steps_of("G")) == (("G",), 1, 6, 5)
    final = run(state, [saves])
    assert equal(of.weights(), plain(dcgan)) == notes_batches
    assert (final.notes == ()) == notes_batches


class Picture:
    """A batch of a kind that no checkpoint holds."""

    def __init__(self, pixels: torch.Tensor) -> None:
        self.pixels = pixels


def pictures(draws: bool) -> Any:
    class Pictures:
        def __iter__(self) -> Any:
            for images in digits(128).tensors[0].split(32):
                yield Picture(images + (0.1 * torch.randn_like(images) if draws else 0)), torch.zeros(32)

    return Pictures()


@pytest.mark.filterwarnings("ignore:to continue in the middle:RuntimeWarning")
def test_a_batch_that_cannot_be_saved_is_fetched_again(tmp_path: Path) -> None:
    """The notes say so; where reading draws nothing, it is the same."""

    def make() -> tuple[Gan, Alternating]:
        of = gan()
        players = {
            "D": Player(of.D, adam(of.D), lambda seen, y: of.real_and_fake(seen.pixels, y)),
            "G": Player(of.G, adam(of.G), lambda seen, y: of.fooled(seen.pixels, y)),
        }
        return of, Alternating(players, pictures(draws=False), samples=lambda seen, y: len(y))

    whole, work = make()
    run(start(work, epochs=2, seed=0))
    _, work = make()
    run(start(work, epochs=2, seed=0), [checkpoint(tmp_path), suspending(3)])
    of, work = make()
    state = restore(tmp_path, work)
    assert any("the batch that turns are still to come at" in note for note in state.notes)
    run(state, [checkpoint(tmp_path), suspending(3)])
    assert equal(of.weights(), whole.weights())


def test_what_one_player_does_to_the_batch_is_its_own() -> None:
    """A batch that is mixed for D is not mixed for G."""
    seen = []
    of = gan()
    work = of.dcgan(train=[(digits(32).tensors[0], torch.zeros(32))])
    usual = work.by_player["G"].loss

    def loss(real: torch.Tensor, target: Any) -> Any:
        seen.append(real.clone())
        return usual(real, target)

    work.by_player["G"].loss = loss
    work.by_player["D"].loss = lambda real, target: of.real_and_fake(real, target)["loss"]
    run(start(work, epochs=1, seed=0), [mixup(player="D")])
    assert torch.equal(seen[0], digits(32).tensors[0])


def test_a_turn_that_is_left_out_changes_no_statistics() -> None:
    """A batch norm in G is as it was where the turn of D, which goes through it, is skipped."""
    of = gan()

    @on(Phase.LOSS_END)
    def skip(state: State) -> Transition:
        return Transition(flags=Flag.SKIP_BACKWARD)

    before = [tensor.clone() for tensor in of.weights()]
    final = run(start(of.dcgan(), epochs=1, seed=0), [skip])
    assert equal(of.weights(), before)
    assert "train_D_loss" not in final.metrics
