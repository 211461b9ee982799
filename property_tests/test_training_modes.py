"""Train mode at the begin of an epoch: what is set only where it is not set is what setting it each time gives."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import nn

from fsm_train.supervised.freezing import FrozenParameters
from fsm_train.supervised.training_modes import TrainingModes


class Counted(nn.Dropout):
    """Notes each call of `train`, as a module that keeps a part of it in eval mode does something there."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[bool] = []

    def train(self, mode: bool = True) -> Any:
        self.calls.append(mode)
        return super().train(mode)


class Modes(TrainingModes):
    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.frozen_parameters = FrozenParameters(model, torch.optim.SGD(model.parameters(), lr=0.1))

    def freeze_norms(self) -> None:
        """As a command does it between two epochs."""
        for part in self.model.modules():
            if isinstance(part, nn.BatchNorm1d):
                self.frozen_parameters.batch_norms[part] = part.training
                part.training = False


class Each(Modes):
    """Sets them each time."""

    def use_training_modes(self) -> None:
        self._learning = None
        super().use_training_modes()


def _model() -> nn.Sequential:
    return nn.Sequential(nn.Linear(1, 1), nn.Sequential(nn.Dropout(), nn.BatchNorm1d(1)), nn.Tanh())


def _own_train(part: nn.Module) -> None:
    counted = Counted()
    vars(part)["train"] = lambda mode=True: (counted.train(mode), type(part).train(part, mode))[1]
    vars(part)["counted"] = counted


def _other_modules(model: Any) -> None:
    model._modules["1"]._modules = {"0": nn.Dropout().eval(), "1": Counted()}


CHANGES: dict[str, Callable[[Any], object]] = {
    "nothing": lambda model: None,
    "a part in eval mode": lambda model: model._modules["1"][0].eval(),
    "all in eval mode": lambda model: model.eval(),
    "one alone in eval mode": lambda model: setattr(model, "training", False),
    "all in train mode": lambda model: model.train(),
    "another part": lambda model: setattr(model, "0", nn.Dropout().eval()),
    "another part with a train of its own": lambda model: setattr(model, "0", Counted()),
    "a part more": lambda model: model._modules["1"].append(nn.Dropout().eval()),
    "a part of no value": lambda model: model.register_module("none", None),
    "other modules": _other_modules,
    "a train of its own": lambda model: _own_train(model._modules["2"]),
    "parts in another order": lambda model: model._modules.update({"0": model._modules.pop("0")}),
}


FREEZES = "frozen norms, and then all in train mode"


@given(st.lists(st.sampled_from([*CHANGES, FREEZES]), max_size=10))
@example([FREEZES])
def test_modes_are_as_if_they_were_set_at_each_epoch(changes: Sequence[str]) -> None:
    """Also what is called of modules that have a `train` of their own, and what is saved of the modes."""
    ours, theirs = Modes(_model()), Each(_model())
    for name in ("nothing", *itertools.chain.from_iterable((change, "nothing") for change in changes)):
        for modes in (ours, theirs):
            if name in CHANGES:
                CHANGES[name](modes.model)
            else:
                modes.freeze_norms()
                modes.model.train()
            modes.use_training_modes()
        assert _seen(ours) == _seen(theirs), name


def _seen(modes: Modes) -> Sequence[object]:
    parts = [*modes.model.modules()]
    counted = [vars(part).get("counted", part) for part in parts]
    calls = [list(part.calls) for part in counted if isinstance(part, Counted)]
    return [(type(part), part.training) for part in parts], calls, modes.training_modes(), len(modes._eval_parts)


def test_parts_that_are_all_in_train_mode_are_not_visited() -> None:
    """Where the same modules are in train mode still, `train` is not called."""
    modes = Modes(_model())
    modes.use_training_modes()

    def modules() -> Any:
        raise AssertionError

    modes.model.modules = modules  # type: ignore[assignment]
    modes.use_training_modes()


def test_a_copy_is_looked_at_by_itself() -> None:
    """What is known of the modes of a model does not hold for a copy of it."""
    modes = Modes(_model())
    modes.use_training_modes()
    copied = copy.deepcopy(modes)
    copied.model.eval()
    copied.use_training_modes()
    assert all(part.training for part in copied.model.modules())
