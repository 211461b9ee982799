"""Whose turn it is: what belongs to one player stands where a `Supervised` has what is its own.

Rule of this file: to switch changes nothing of a training but which player its operations are of.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import nn

from ..core.state import Hyper
from .evaluations import own_parts
from .joint_optimizer import each_of
from .numbers import set_own
from .player import PlayerState
from .schedulers import Span, scheduler_length
from .set_aside import undisturbed
from .workload import Supervised


class TurnTaking(Supervised):
    """A training in which several players take turns.

    Attributes:
        by_player: by name, what belongs to each player.
        playing: that of the player whose turn it is, or that played last; at first of the first one.
        shared_batch: the batch under way as it was fetched, (inputs, target, what it counts); None without one.
    """

    by_player: Mapping[str, PlayerState]
    playing: PlayerState
    shared_batch: tuple[Any, Any, float] | None = None

    def searched_for_modules(self) -> tuple[nn.Module, object]:
        """The model, which has that of each player, and the losses.

        A loss that is a method holds what its object has, such as the target network of an agent.
        """
        losses = [one.loss for one in self.by_player.values()]
        agents = [getattr(getattr(loss, "__self__", None), "__dict__", {}) for loss in losses]
        return self.model, [*losses, *agents]

    def switch_to(self, one: PlayerState) -> PlayerState:
        """Let the operations be those of this player from now on."""
        self.playing.precision, self.playing.loss_checked = self.precision, self.loss_checked
        if one is not self.playing:
            self.playing.set_gradients_aside()
            one.restore_gradients()
        self.playing = one
        self.optimizer, self.loss_fn, self.window = one.optimizer, one.loss, one.window
        self.parameters, self.gradients, self.gives_closure = one.parameters, one.gradients, one.gives_closure
        self.precision, self.loss_checked = one.precision, one.loss_checked
        return one

    @contextmanager
    def each_player(self) -> Iterator[Iterator[PlayerState]]:
        """The players, switched to one after another; afterwards the operations are those of the player of before."""
        before = self.playing
        try:
            yield map(self.switch_to, self.by_player.values())
        finally:
            self.switch_to(before)

    def hyper(self) -> Mapping[str, Hyper]:
        return {**{key: value for one in self.by_player.values() for key, value in one.hyper().items()}, **self.numbers}

    def set_hyper(self, changes: Mapping[str, Hyper]) -> None:
        of_players = set_own(self.numbers, changes)
        for one in self.by_player.values():
            one.set_hyper(of_players)

    def read_parameters(self) -> None:
        for one in self.by_player.values():
            one.read_parameters()
        self.parameters, self.gradients = self.playing.parameters, self.playing.gradients

    def scheduler_length(self, make: Callable[[Any], Any]) -> tuple[str, Span] | None:
        """By the first player of whose optimizer `make` can make it: whose it is, nobody says here."""
        with undisturbed(self):
            lengths = (scheduler_length(make, one.optimizer) for one in self.by_player.values())
            return next(filter(None, lengths), None)

    def searched(self) -> dict[str, object]:
        functions = {"forward": self.custom_forward, "split": self._split}
        losses = {f"loss of {name}": one.loss for name, one in self.by_player.items()}
        own = dict(own_parts(self.evaluations))
        return {**self._roots(), **functions, **losses, "model": self.model, **own}

    def _shared(self) -> dict[int, object]:
        of_each = [(one.optimizer, *each_of(one.optimizer).values(), one.loss) for one in self.by_player.values()]
        parts = (part for parts in of_each for part in parts)
        return {**super()._shared(), **{id(part): part for part in parts}}
