"""Callbacks for one player of a real training, against the loop by hand; and the weights of one player."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fsm_train import Callback, WorkloadError, load_weights, restore, run, start, weights
from fsm_train.callbacks import (
    accumulate,
    checkpoint,
    clip_grad_norm,
    ema,
    freeze,
    schedule,
    skip_nonfinite,
    torch_scheduler,
)
from fsm_train.cli import main
from fsm_train.schedules import linear
from tests.models import equal
from tests.players_training import Gan, adam, gan, generator, real_digits, suspending


def loop(of: Gan, after: Callable[[str, torch.optim.Optimizer, int], None], batches_of_d: int = 1) -> None:
    """Two epochs by hand; `after` is called before each step, with the number of steps that this player took."""
    optimizers, taken = {"D": adam(of.D), "G": adam(of.G)}, {"D": 0, "G": 0}
    own: dict[str, dict[Any, Any]] = {"D": {}, "G": {}}
    torch.manual_seed(0)
    for _ in range(2):
        for batch, (real, target) in enumerate(real_digits()):
            for name, net, loss_of in (("D", of.D, of.real_and_fake), ("G", of.G, of.fooled)):
                for p in net.parameters():
                    p.grad = own[name].get(p)
                loss: Any = loss_of(real, target)
                loss = loss["loss"] if name == "D" else loss
                window = batches_of_d if name == "D" else 1
                (loss / window).backward()
                if (batch + 1) % window == 0:
                    after(name, optimizers[name], taken[name])
                    optimizers[name].step()
                    optimizers[name].zero_grad()
                    taken[name] += 1
                own[name] = {p: p.grad.clone() for p in net.parameters() if p.grad is not None}


def test_gradients_of_one_player_are_clipped() -> None:
    """Those of D, and not those of G."""
    of, hand = gan(), gan()
    run(start(of.dcgan(), epochs=2, seed=0), [clip_grad_norm(0.01, player="D")])

    def clip(name: str, optimizer: Any, taken: int) -> None:
        if name == "D":
            nn.utils.clip_grad_norm_(hand.D.parameters(), 0.01)

    loop(hand, clip)
    assert equal(of.weights(), hand.weights())


def test_rates_of_the_players_are_scheduled_apart() -> None:
    """By a schedule of this library for D, and one of torch for G; resumed in the middle of a batch."""
    of, hand = gan(), gan()
    callbacks = [
        schedule(lr=linear(1.0, 0.0, 8), player="D"),
        torch_scheduler(lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 3, 0.5), player="G"),
    ]
    final = run(start(of.dcgan(), epochs=2, seed=0), callbacks)

    def rate(name: str, optimizer: Any, taken: int) -> None:
        factor = 1 - taken / 8 if name == "D" else 0.5 ** (taken // 3)
        optimizer.param_groups[0]["lr"] = 2e-3 * factor

    loop(hand, rate)
    assert equal(of.weights(), hand.weights())
    assert final.hyper["G.lr"] == pytest.approx(2e-3 / 4)


@pytest.mark.parametrize("step", [0, 2, 5])
def test_batches_of_one_player_are_accumulated(step: int, tmp_path: Path) -> None:
    """D steps at each second batch with the mean gradient of both, and G at each."""
    of, hand = gan(), gan()
    callbacks: list[Callback[Any]] = [accumulate(2, player="D"), skip_nonfinite(player="G")]
    state = start(of.dcgan(), epochs=2, seed=0)
    if step:
        callbacks += [checkpoint(tmp_path), suspending(step)]
        run(state, callbacks)
        of = gan()
        state = restore(tmp_path, of.dcgan())
    final = run(state, callbacks)

    loop(hand, lambda *_: None, batches_of_d=2)
    assert (final.steps_of("D"), final.steps_of("G")) == (4, 8)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(of.weights(), hand.weights(), strict=True))


def test_weights_of_one_player_are_averaged_and_loaded(tmp_path: Path) -> None:
    """After the steps of G alone; a bare model of G gets the average, and one of D its own weights."""
    of, hand = gan(), gan()
    work = of.dcgan(valid=real_digits(64, 64))
    callbacks = [ema(0.9, player="G"), checkpoint(tmp_path, monitor="valid_G_loss", keep=9)]
    run(start(work, epochs=2, seed=0), callbacks)

    averages: list[torch.Tensor] = []

    def average(name: str, optimizer: Any, taken: int) -> None:
        if name == "G" and taken:
            take_in()

    def take_in() -> None:
        now = [p.detach().clone() for p in hand.G.parameters()]
        averages[:] = [a.lerp(p, 1 - 0.9) for a, p in zip(averages or now, now, strict=True)]

    loop(hand, average)
    take_in()
    assert all(torch.allclose(a, b) for a, b in zip(of.G.parameters(), averages, strict=True))
    assert equal(of.D.state_dict().values(), hand.D.state_dict().values())
    bare = generator()
    loaded = load_weights(tmp_path, bare, which="last")
    assert loaded["weights"] == "ema_G"
    assert equal(bare.parameters(), of.G.parameters())
    critic = copy.deepcopy(of.D)
    load_weights(tmp_path, critic, which="last", player="D")
    assert equal(critic.parameters(), of.D.parameters())
    whole = copy.deepcopy(work.model)
    load_weights(tmp_path, whole, which="last")
    assert equal(whole["D"].parameters(), of.D.parameters())
    with weights(work, "ema_G"):
        assert equal(of.G.parameters(), bare.parameters())
    other = gan()
    again = other.dcgan(valid=real_digits(64, 64))
    restore(tmp_path, again)
    with weights(again, "ema_G"):
        assert equal(other.G.parameters(), bare.parameters())


@pytest.mark.parametrize("averaged", [True, False])
def test_weights_of_players_are_written_to_files(averaged: bool, tmp_path: Path) -> None:
    """Of all, or of one, with the average of the one that has one; without this library they are read by torch."""
    of = gan()
    work = of.dcgan(valid=real_digits(64, 64))
    run(start(work, epochs=2, seed=0), [*[ema(0.9, player="G")] * averaged, checkpoint(tmp_path / "saved")])

    def written(*options: str) -> dict[str, torch.Tensor]:
        file = str(tmp_path / "weights.pt")
        assert main(["weights", str(tmp_path / "saved"), "--which", "last", "-o", file, *options]) == 0
        values: dict[str, torch.Tensor] = torch.load(file, weights_only=True)
        return values

    bare, critic = generator(), copy.deepcopy(of.D)
    bare.load_state_dict(written("--player", "G"))
    critic.load_state_dict(written("--player", "D"))
    assert equal(critic.parameters(), of.D.parameters())
    assert load_weights(tmp_path / "saved", generator(), which="last")["weights"] == ("ema_G" if averaged else "model")
    assert equal(bare.parameters(), of.G.parameters())
    whole = written()
    assert torch.equal(whole["D.0.weight"], of.D.state_dict()["0.weight"])
    assert torch.equal(whole["G.0.weight"], of.G.state_dict()["0.weight"])
    assert main(["weights", str(tmp_path / "saved"), "--player", "E", "-o", str(tmp_path / "e.pt")]) != 0


def test_weights_that_fit_nobody_are_refused(tmp_path: Path) -> None:
    """The message names the players."""
    of = gan()
    run(start(of.dcgan(), epochs=1), [checkpoint(tmp_path)])

    for model, player, message in (
        (nn.Linear(1, 1), None, "whose weights"),
        (generator(), "E", "there is no player 'E' in this checkpoint: there are 'D', 'G'"),
        (generator(), "D", "holds another model"),
    ):
        with pytest.raises(WorkloadError, match=message):
            load_weights(tmp_path, model, which="last", player=player)


def test_parameters_of_one_player_are_frozen() -> None:
    """The pattern is one of its model."""
    of = gan()
    before = [p.clone() for p in of.G.parameters()]
    run(start(of.dcgan(), epochs=1, seed=0), [freeze("0.*", player="G")])

    now = [*of.G.parameters()]
    assert equal(now[:2], before[:2])
    assert not equal(now[2:], before[2:])
