"""Laws of models that take turns: whatever is drawn, they are alternation by hand, suspended anywhere or not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st

from fsm_train import Alternating, Flag, Phase, Player, State, Transition, on, run, start
from fsm_train.callbacks import accumulate, clip_grad_norm, ema

Setting = tuple[int, int]
"""Of a player: at each so-many-th batch it plays, and the batches of its window."""

settings = st.lists(st.tuples(st.integers(1, 3), st.integers(1, 3)), min_size=1, max_size=3).filter(
    lambda players: any(every == 1 for every, _ in players)
)
INPUTS = torch.randn(17, 3, generator=torch.Generator().manual_seed(0))
BATCHES = [(inputs, torch.zeros(len(inputs))) for inputs in INPUTS.split(4)]  # the last one has one sample


class World:
    """Linear models; the loss of each goes through the next one, and draws."""

    def __init__(self, players: Sequence[Setting]) -> None:
        torch.manual_seed(1)
        self.models = [torch.nn.Linear(3, 3) for _ in players]
        self.optimizers = [torch.optim.Adam(model.parameters(), lr=0.05) for model in self.models]
        self.players = players

    def loss(self, i: int, inputs: torch.Tensor) -> torch.Tensor:
        other = self.models[(i + 1) % len(self.models)]
        return other(self.models[i](inputs + 0.1 * torch.randn_like(inputs))).square().mean()

    def alternating(self) -> Alternating:
        players = {
            f"player {i}": Player(
                self.models[i], self.optimizers[i], lambda inputs, _, i=i: self.loss(i, inputs), every=every
            )
            for i, (every, _) in enumerate(self.players)
        }
        return Alternating(players, BATCHES)

    def by_hand(self, epochs: int) -> None:
        torch.manual_seed(0)
        iteration = 0
        own: list[dict[Any, Any]] = [{} for _ in self.players]
        for _ in range(epochs):
            waiting = [0] * len(self.players)
            for inputs, _ in BATCHES:
                iteration += 1
                for i, (every, window) in enumerate(self.players):
                    if iteration % every == 0:
                        self._restore(own, i)
                        (self.loss(i, inputs) * (len(inputs) / (4 * window))).backward()
                        waiting[i] += 1
                        own[i]["share"] = own[i].get("share", 0.0) + len(inputs) / (4 * window)
                        if waiting[i] == window:
                            self._step(own, waiting, i)
                        self._keep(own, i)
            for i, pending in enumerate(waiting):
                if pending:
                    self._restore(own, i)
                    self._step(own, waiting, i)
                    self._keep(own, i)

    def _restore(self, own: list[dict[Any, Any]], i: int) -> None:
        for p in self.models[i].parameters():
            p.grad = own[i].get(p)

    def _keep(self, own: list[dict[Any, Any]], i: int) -> None:
        own[i] |= {p: None if p.grad is None else p.grad.clone() for p in self.models[i].parameters()}

    def _step(self, own: list[dict[Any, Any]], waiting: list[int], i: int) -> None:
        for p in self.models[i].parameters():
            p.grad /= own[i]["share"]
        self.optimizers[i].step()
        self.optimizers[i].zero_grad()
        waiting[i], own[i]["share"] = 0, 0.0

    def weights(self) -> list[torch.Tensor]:
        return [p.detach() for model in self.models for p in model.parameters()]


def windows(players: Sequence[Setting]) -> list[Any]:
    return [accumulate(window, player=f"player {i}") for i, (_, window) in enumerate(players) if window > 1]


@given(settings)
def test_turns_are_alternation_by_hand(players: list[Setting]) -> None:
    """With any number of players, periods and windows, of batches of unequal size; a window is weighed as it should."""
    ours, hand = World(players), World(players)
    final = run(start(ours.alternating(), epochs=2, seed=0), windows(players))
    hand.by_hand(epochs=2)

    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(ours.weights(), hand.weights(), strict=True))
    assert final.step == sum(final.players.steps)


@given(settings, st.sets(st.integers(0, 30), max_size=3))
def test_suspending_between_turns_changes_nothing(players: list[Setting], turns: set[int]) -> None:
    """Anywhere, any number of times, with averages and clipping for some of them: equal to the last bit."""

    @on(Phase.BATCH_END, memory=0)
    def leave(state: State, turn: int) -> Transition:
        return Transition(memory=turn + 1, flags=Flag.SUSPEND if turn in turns else Flag.NONE)

    def trained(suspended: bool) -> list[torch.Tensor]:
        world = World(players)
        last = f"player {len(players) - 1}"
        callbacks = [*windows(players), clip_grad_norm(0.5, player=last), ema(0.9, player="player 0")]
        state = start(world.alternating(), epochs=2, seed=0)
        while state.phase is not Phase.DONE:
            state = run(state, [*callbacks, leave] if suspended else callbacks)
            torch.rand(2)
        return world.weights()

    assert all(map(torch.equal, trained(suspended=True), trained(suspended=False)))
