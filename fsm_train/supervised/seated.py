"""Whose turn it is: what belongs to one player stands where a `Supervised` has what is its own.

Rule of this file: taking a seat changes nothing of a training but which player its operations are of.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import nn

from ..core.state import Hyper
from ..data.generators import generators_of
from ..data.layers import Layer
from .evaluations import own_parts
from .modules import modules_of
from .player import Seat
from .workload import Supervised


class Seated(Supervised):
    """A training in which several players take turns.

    Attributes:
        seats: by name, what belongs to each player.
        seat: of the player whose turn it is, or that played last; at first that of the first one.
        shared_batch: the batch under way as it was fetched, (inputs, target, what it counts); None without one.
    """

    seats: Mapping[str, Seat]
    seat: Seat
    shared_batch: tuple[Any, Any, float] | None = None

    @property
    def modules(self) -> Mapping[str, nn.Module]:
        """What is trained: "model", which has the model of each player, and the modules that the losses hold.

        A loss that is a method holds what its object has, such as the target network of an agent.
        """
        losses = [seat.loss for seat in self.seats.values()]
        agents = [getattr(getattr(loss, "__self__", None), "__dict__", {}) for loss in losses]
        return modules_of(self.model, [*losses, *agents])

    def take_seat(self, seat: Seat) -> Seat:
        """Let the operations be those of this player from now on."""
        self.seat.precision, self.seat.loss_checked = self.precision, self.loss_checked
        if seat is not self.seat:
            self.seat.leave()
            seat.take()
        self.seat = seat
        self.optimizer, self.loss_fn, self.window = seat.optimizer, seat.loss, seat.window
        self.parameters, self.gradients = seat.parameters, seat.gradients
        self.precision, self.loss_checked = seat.precision, seat.loss_checked
        return seat

    @contextmanager
    def each_seat(self) -> Iterator[Iterator[Seat]]:
        """The seats, each taken in its turn; afterwards the player of before has its own again."""
        before = self.seat
        try:
            yield map(self.take_seat, self.seats.values())
        finally:
            self.take_seat(before)

    def hyper(self) -> Mapping[str, Hyper]:
        return {key: value for seat in self.seats.values() for key, value in seat.hyper().items()}

    def set_hyper(self, changes: Mapping[str, Hyper]) -> None:
        for seat in self.seats.values():
            seat.set_hyper(changes)

    def read_parameters(self) -> None:
        for seat in self.seats.values():
            seat.read_parameters()
        self.parameters, self.gradients = self.seat.parameters, self.seat.gradients

    def own_generators(self) -> list[Layer]:
        functions = {"forward": self.custom_forward, "split": self._split}
        losses = {f"loss of {name}": seat.loss for name, seat in self.seats.items()}
        own = dict(own_parts(self.evaluations))
        return generators_of(**self._roots(), **functions, **losses, model=self.model, **own)

    def _shared(self) -> dict[int, object]:
        parts = (part for seat in self.seats.values() for part in (seat.optimizer, seat.loss))
        return {**super()._shared(), **{id(part): part for part in parts}}
