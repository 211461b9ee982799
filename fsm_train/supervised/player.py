"""The players of an `Alternating`: what one is given, and what a training has of each.

Rule of this file: what belongs to one player is in its `PlayerState`. Whose turn it is, the machine decides.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import attrs
import torch
from torch import nn

from ..core.arguments import kind_of
from ..core.checks import check_bool
from ..core.errors import WorkloadError
from ..core.state import Hyper
from ..core.turns import Players
from .arguments import check_arguments, check_call
from .closures import gives_closure
from .joint_optimizer import OptimizerLike, join, kinds_of
from .param_groups import Members, check_groups, check_parameters, read_groups, stepped_parameters, write_groups
from .precision import Precision
from .window import Gradients, Window

PlayerLoss = Callable[[Any, Any], "torch.Tensor | Mapping[str, torch.Tensor]"]
"""A player's loss: of (inputs, target), a scalar tensor, or a mapping with "loss" and its parts by name."""


@attrs.frozen(eq=False)
class Player:
    """One of those that take turns in an `Alternating`: a model, its optimizer, and what it minimizes.

    >>> G = nn.Linear(2, 3)
    >>> Player(G, torch.optim.SGD(G.parameters(), lr=0.1), lambda real, _: G(real).mean(), every=5)
    Player(Linear, SGD, every=5)

    Args:
        model: the module that is trained in its turns.
        optimizer: of parameters of this model, or of another player's, or of the loss. Or several by name that step
            together, as for `Supervised`, whose rates are then called "G.muon.lr".
        loss: of (inputs, target), which calls the models itself: a scalar tensor, the mean over the batch; or
            {"loss": …, "real": …} with that and its parts by name. Modules that it holds, such as a target network,
            are saved with the training.
        every: it plays at each so-many-th batch, the first time at batch number `every`.
        closure: as for `Supervised`: whether `step` is given a closure, which evaluates the loss of its turn again.

    Raises:
        WorkloadError: a part is of another kind.
        ValueError: every is no whole number from 1.
    """

    model: nn.Module
    optimizer: OptimizerLike | Mapping[str, OptimizerLike]
    loss: PlayerLoss
    every: int = attrs.field(default=1, kw_only=True)
    closure: bool = attrs.field(default=False, kw_only=True)

    def __attrs_post_init__(self) -> None:
        if not isinstance(self.loss, type):
            check_call("loss", self.loss, "inputs", "target")
        check_arguments(self.model, self.optimizer, self.loss)
        check_bool("closure", self.closure)
        gives_closure(join(self.optimizer), self.closure)
        Players.of({"it": 1, "this player": self.every})

    def __repr__(self) -> str:
        return f"Player({type(self.model).__name__}, {kinds_of(join(self.optimizer))}, every={self.every})"


def check_players(players: object) -> dict[str, Player]:
    """The players by name, in their order.

    Raises:
        WorkloadError: there are none, or one is of another kind.
        TypeError, ValueError: a name cannot be one; or no player plays at each batch.
    """
    if not isinstance(players, Mapping) or not players:
        raise WorkloadError(
            f"players is {kind_of(players)}: give a mapping from names, Alternating({{'D': Player(model, optimizer, "
            "loss), 'G': Player(…)}}, train)"
        )
    for name, player in players.items():
        if not isinstance(player, Player):
            raise WorkloadError(f"the player {name!r} is {kind_of(player)}: give a Player(model, optimizer, loss)")
    Players.of({name: player.every for name, player in players.items()})
    if taken := [name for name in players if hasattr(nn.ModuleDict, name)]:
        raise ValueError(f"a player cannot be called {taken[0]!r}, which each module of torch has already")
    return dict(players)


class Models(nn.ModuleDict):
    """The models of all players, by name: `models["G"](noise)`. Their parameters are called "G.0.weight"."""

    def forward(self, *_: Any) -> Any:
        raise WorkloadError(
            "which player's output? Say whose model is evaluated, Alternating(…, evaluated='G'), or how, "
            "forward=lambda models, inputs: models['G'](inputs)"
        )


def modules_of_player(modules: Mapping[str, nn.Module], player: str) -> Mapping[str, nn.Module]:
    """All modules of a training, or the model of one player, whose parameters have the same names as in all.

    Raises:
        WorkloadError: the training has no such player.
    """
    if not player:
        return modules
    models = modules["model"]
    if not isinstance(models, Models) or player not in models:
        raise WorkloadError(f"player={player!r}: this training has no player of this name")
    return {"model": Models({player: models[player]})}


def player_in(names: Iterable[str], modules: Mapping[str, nn.Module]) -> str:
    """The player whose parameters these are alone, such as "model.G.0.weight"; "" where there is no such one."""
    models = modules["model"]
    players = {name.split(".")[1] for name in names if name.startswith("model.")}
    return players.pop() if isinstance(models, Models) and len(models) > len(players) == 1 else ""


class PlayerState:
    """What a training has of one player.

    Its gradients are its own: what the backward pass of another player leaves in its parameters is forgotten when its
    next turn begins, and what waits in them for its step is set aside while others play.

    Attributes:
        name: of the player.
        optimizer, loss: of the player.
        parameters, gradients: those of the optimizer.
        gives_closure: whether the step of its optimizer is given a closure.
        window: the shares of its batches whose gradients wait for a step.
        precision: its autocast and its own gradient scaler; None for the model's own precision.
        loss_checked: whether its first loss of this call of `run` was checked.
    """

    def __init__(self, name: str, player: Player, models: nn.Module) -> None:
        self.name = name
        self.optimizer = join(player.optimizer)
        self.gives_closure = gives_closure(self.optimizer, player.closure)
        self.loss = player.loss
        self.parameters: list[nn.Parameter] = []
        self.gradients = Gradients(self.parameters)
        self.window = Window()
        self.precision: Precision | None = None
        self.loss_checked = False
        self._models = models
        self._members = Members()
        self._groups_read = len(self.optimizer.param_groups)
        self._aside: dict[nn.Parameter, torch.Tensor] | None = {}  # None while it plays
        check_parameters(models, self.optimizer, player.loss)

    def read_parameters(self) -> None:
        """Read which parameters the optimizer has."""
        if not self._members.are_of(self.optimizer):
            self._members = Members.of(self.optimizer)
            self.parameters = self.gradients.parameters = stepped_parameters(self._models, self.optimizer)
            self.gradients.changed()

    def hyper(self) -> dict[str, Hyper]:
        """Its hyper-parameters, such as "G.lr"."""
        self._groups_read = len(self.optimizer.param_groups)
        return {f"{self.name}.{name}": value for name, value in read_groups(self.optimizer).items()}

    def set_hyper(self, changes: Mapping[str, Hyper]) -> None:
        """Set those of these that are its own."""
        own = {key.partition(".")[2]: value for key, value in changes.items() if key.partition(".")[0] == self.name}
        if own:
            check_groups(self.optimizer, self._groups_read)
            write_groups(self.optimizer, own)

    def restore_gradients(self) -> None:
        """Its turn begins: its parameters have its own gradients, and no others."""
        aside, self._aside = self._aside or {}, None
        for parameter in self.parameters:
            parameter.grad = aside.get(parameter)
        self.gradients.changed()

    def set_gradients_aside(self) -> None:
        """Another player's turn begins: its gradients are set aside."""
        self._aside = {p: p.grad for p in self.parameters if p.grad is not None}
        for parameter in self._aside:
            parameter.grad = None


class AllGroups:
    """The parameter groups of all players, for what asks an optimizer what it has."""

    def __init__(self, players: Iterable[PlayerState]) -> None:
        self._players = tuple(players)

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return [*self._groups()]

    def _groups(self) -> Iterator[dict[str, Any]]:
        for one in self._players:
            yield from one.optimizer.param_groups
