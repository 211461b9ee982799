"""Trainings in which models take turns, and the same by hand: a DCGAN-like, a WGAN-GP, an actor with a critic."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any

import attrs
import torch
from torch import nn
from torch.utils.data import DataLoader

from fsm_train import Alternating, Callback, Command, Flag, Phase, Player, State, Transition, carries_out, on
from tests.models import Noisy, digits

NOISE = 12
bce = nn.functional.binary_cross_entropy_with_logits


def real_digits(batch_size: int = 32, samples: int = 128) -> DataLoader[Any]:
    """Digits with noise that is drawn when they are read, in shuffled batches; the last one may be smaller."""
    return DataLoader(Noisy(digits(samples)), batch_size=batch_size, shuffle=True)


def generator() -> nn.Module:
    return nn.Sequential(nn.Linear(NOISE, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 64), nn.Sigmoid())


def discriminator() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 32), nn.LeakyReLU(0.2), nn.Dropout(0.1), nn.Linear(32, 1), nn.Flatten(0))


def adam(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=2e-3, betas=(0.5, 0.999))


@attrs.frozen
class Gan:
    """A generator, a discriminator, their optimizers and their losses."""

    G: nn.Module = attrs.field(factory=generator)
    D: nn.Module = attrs.field(factory=discriminator)

    def fake(self, real: torch.Tensor) -> torch.Tensor:
        return self.G(torch.randn(len(real), NOISE))

    def real_and_fake(self, real: torch.Tensor, _: Any) -> dict[str, torch.Tensor]:
        on_real, on_fake = self.D(real), self.D(self.fake(real).detach())
        parts = {"real": bce(on_real, torch.ones(len(real))), "fake": bce(on_fake, torch.zeros(len(real)))}
        return {"loss": parts["real"] + parts["fake"], **parts}

    def fooled(self, real: torch.Tensor, _: Any) -> torch.Tensor:
        return bce(self.D(self.fake(real)), torch.ones(len(real)))

    def critic(self, real: torch.Tensor, _: Any) -> dict[str, torch.Tensor]:
        fake = self.fake(real).detach()
        share = torch.rand(len(real), 1)
        between = (share * real + (1 - share) * fake).requires_grad_()
        (slope,) = torch.autograd.grad(self.D(between).sum(), between, create_graph=True)
        penalty = (slope.norm(dim=1) - 1).square().mean()
        return {"loss": self.D(fake).mean() - self.D(real).mean() + 10 * penalty, "penalty": penalty}

    def praised(self, real: torch.Tensor, _: Any) -> torch.Tensor:
        return -self.D(self.fake(real)).mean()

    def dcgan(self, every: int = 1, **settings: Any) -> Alternating:
        players = {
            "D": Player(self.D, adam(self.D), self.real_and_fake),
            "G": Player(self.G, adam(self.G), self.fooled, every=every),
        }
        return Alternating(players, **{"train": real_digits(), **settings})

    def wgan(self) -> Alternating:
        critic = Player(self.D, adam(self.D), self.critic)
        return Alternating({"D": critic, "G": Player(self.G, adam(self.G), self.praised, every=5)}, real_digits(16, 96))

    def weights(self) -> list[torch.Tensor]:
        return [*self.G.state_dict().values(), *self.D.state_dict().values()]


def gan() -> Gan:
    torch.manual_seed(1)
    return Gan()


def by_hand(
    of: Gan,
    train: Iterable[Any],
    d_loss: Callable[..., Any],
    g_loss: Callable[..., Any],
    every: int = 1,
    epochs: int = 2,
) -> None:
    """Alternation as it is written in pytorch/examples: zero the gradients of the one that plays, backward, step."""
    d_optimizer, g_optimizer = adam(of.D), adam(of.G)
    torch.manual_seed(0)
    iteration = 0
    for _ in range(epochs):
        for real, target in train:
            of.D.zero_grad()
            loss = d_loss(real, target)
            loss["loss"].backward()
            d_optimizer.step()
            iteration += 1
            if iteration % every == 0:
                of.G.zero_grad()
                g_loss(real, target).backward()
                g_optimizer.step()


def suspending(step: int) -> Callback[Any]:
    """Suspends once, at the end of the first turn after which so many steps were taken."""

    @on(Phase.BATCH_END, memory=False)
    def suspending(state: State, over: bool) -> Transition | None:
        return None if over or state.step < step else Transition(flags=Flag.SUSPEND, memory=True)

    return suspending


# ------------------------------------------------------------------------- an actor with a critic


@attrs.frozen
class MoveTarget(Command):
    """Move the target network of the critic towards it by this share."""

    rate: float
    changes_hyper = False


@carries_out(MoveTarget)
def move_target(work: Any, command: MoveTarget) -> None:
    of = work.by_player["critic"].loss.__self__
    of.move(command.rate)


@on(Phase.STEP_END, commands={MoveTarget})
def follow(state: State) -> Transition | None:
    """The target follows after each step of the critic."""
    return Transition(commands=(MoveTarget(0.05),)) if state.player == "critic" else None


class ActorCritic:
    """Deterministic policy gradients, as TD3 has them: the actor plays at each second batch."""

    def __init__(self) -> None:
        torch.manual_seed(2)
        self.actor = nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 1), nn.Tanh())
        self.value = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 1))
        self.target = copy.deepcopy(self.value).requires_grad_(False)
        self.actor_optimizer = torch.optim.Adam(self.actor.parameters(), lr=1e-2)
        self.value_optimizer = torch.optim.SGD(self.value.parameters(), lr=1e-2, momentum=0.9)

    def critic(self, seen: tuple[torch.Tensor, ...], reward: torch.Tensor) -> torch.Tensor:
        before, action, after = seen
        with torch.no_grad():
            chosen = self.actor(after) + 0.1 * torch.randn(len(after), 1)
            wanted = reward + 0.9 * self.target(torch.cat([after, chosen], dim=1))
        return nn.functional.mse_loss(self.value(torch.cat([before, action], dim=1)), wanted)

    def policy(self, seen: tuple[torch.Tensor, ...], _: Any) -> torch.Tensor:
        before, _, _ = seen
        return -self.value(torch.cat([before, self.actor(before)], dim=1)).mean()

    def move(self, rate: float) -> None:
        with torch.no_grad():
            for slow, fast in zip(self.target.parameters(), self.value.parameters(), strict=True):
                slow.lerp_(fast, rate)

    def alternating(self) -> Alternating:
        critic = Player(self.value, self.value_optimizer, self.critic)
        actor = Player(self.actor, self.actor_optimizer, self.policy, every=2)
        return Alternating({"critic": critic, "actor": actor}, transitions())

    def by_hand(self, epochs: int = 2) -> None:
        torch.manual_seed(0)
        iteration = 0
        for _ in range(epochs):
            for seen, reward in transitions():
                self.value_optimizer.zero_grad()
                self.critic(seen, reward).backward()
                self.value_optimizer.step()
                self.move(0.05)
                iteration += 1
                if iteration % 2 == 0:
                    self.actor_optimizer.zero_grad()
                    self.policy(seen, reward).backward()
                    self.actor_optimizer.step()

    def weights(self) -> list[torch.Tensor]:
        return [p for net in (self.actor, self.value, self.target) for p in net.state_dict().values()]


def transitions() -> list[tuple[tuple[torch.Tensor, ...], torch.Tensor]]:
    """What a replay buffer gives: (before, action, after), and the reward."""
    drawn = torch.Generator().manual_seed(3)
    return [
        (
            tuple(torch.randn(8, n, generator=drawn) for n in (3, 1, 3)),
            torch.randn(8, 1, generator=drawn),
        )
        for _ in range(5)
    ]
