"""The parts of a model: each parameter is counted once, and trained where an optimizer changes it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from fsm_train import Alternating, Player, Supervised
from fsm_train.core.model_part import ModelPart

BATCHES = [(torch.zeros(4, 2), torch.zeros(4, 1))]


def parts(model: nn.Module, parameters: list[nn.Parameter] | None = None) -> list[ModelPart]:
    optimizer = torch.optim.SGD([*model.parameters()] if parameters is None else parameters, lr=0.1)
    return [*Supervised(model, optimizer, nn.MSELoss(), BATCHES).model_parts]


def body() -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 1))


SHOWN = [ModelPart("0", "Linear", 12, 12), ModelPart("1", "ReLU", 0, 0), ModelPart("2", "Linear", 5, 5)]


@pytest.mark.parametrize("wrap", [lambda model: model, nn.Sequential, nn.DataParallel])
def test_a_wrapper_is_looked_into(wrap: Callable[[nn.Module], nn.Module]) -> None:
    """What stands around all of a model is no part of interest."""
    assert parts(wrap(body())) == SHOWN


def test_what_is_frozen_or_not_in_the_optimizer_is_not_trained() -> None:
    """Whichever of the two it is."""
    model = body()
    model[0].weight.requires_grad_(False)
    found = parts(model, [model[0].weight, model[0].bias, model[2].bias])

    assert [part.trained for part in found] == [4, 0, 1]
    assert [part.parameters for part in found] == [12, 0, 5]


def test_parameters_of_the_model_itself_are_a_part() -> None:
    """They belong to no other one, and keep a model from being a wrapper."""

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(3))
            self.body = body()

    assert parts(Scaled()) == [ModelPart("", "Scaled", 3, 3), ModelPart("body", "Sequential", 17, 17)]


def test_a_shared_parameter_counts_once() -> None:
    """In the first part that has it, so that the sum is that of the model."""
    model = body()
    model.append(nn.Linear(2, 4))
    model[3].weight = model[0].weight

    assert [part.parameters for part in parts(model)] == [12, 0, 5, 4]


def test_a_lazy_parameter_has_no_size() -> None:
    """It is counted as what it is, and not initialized for it."""
    model = nn.Sequential(nn.LazyLinear(4), nn.Linear(4, 1))
    found = parts(model)

    assert found == [ModelPart("0", "LazyLinear", 0, 0, lazy=2), ModelPart("1", "Linear", 5, 5)]
    assert nn.parameter.is_lazy(model[0].weight)


@pytest.mark.parametrize("model", [nn.Linear(2, 1), nn.Sequential(nn.Linear(2, 1))])
def test_a_model_of_one_layer_is_one_part(model: nn.Module) -> None:
    """Whatever it is called."""
    assert [(part.kind, part.parameters) for part in parts(model)] == [("Linear", 3)]


def test_players_are_the_parts_of_a_training_in_turns() -> None:
    """Each is trained by its own optimizer."""
    players = {}
    for name in "DG":
        model = body()
        optimizer = torch.optim.SGD(model[2:].parameters() if name == "G" else model.parameters(), lr=0.1)
        players[name] = Player(model, optimizer, lambda inputs, target: inputs.sum())

    assert [*Alternating(players, BATCHES).model_parts] == [
        ModelPart("D", "Sequential", 17, 17),
        ModelPart("G", "Sequential", 17, 5),
    ]
