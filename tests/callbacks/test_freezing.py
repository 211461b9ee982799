"""Freezing: what is frozen does not move, whatever else goes on."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from fsm_train import CallbackError, Flag, Phase, State, Transition, WorkloadError, on, run, start
from fsm_train.callbacks import clip_grad_norm, ema, freeze, grad_noise, weight_penalty
from fsm_train.core.commands import Freeze, Unfreeze
from fsm_train.testing import at
from tests.diabetes_training import batches, looking, net, sgd, trained, weights_of, workload
from tests.models import same_weights

DATA = batches(8, 8, 8, 6)


def test_frozen_at_setup_until_its_epoch_begins() -> None:
    """Put in place in every call of run before that epoch, taken back when it begins."""
    callback = freeze("0.*", until_epoch=2)

    assert callback(at(Phase.SETUP, epoch=1)) == Transition(commands=(Freeze("0.*", temporary=True),))
    assert callback(at(Phase.SETUP, epoch=2)) is None
    assert callback(at(Phase.EPOCH_BEGIN, epoch=1)) is None
    assert callback(at(Phase.EPOCH_BEGIN, epoch=2)) == Transition(commands=(Unfreeze("0.*"),))
    assert freeze("0.*").at == (Phase.SETUP,)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"pattern": ""}, "pattern='': give a pattern of parameter names"),
        ({"pattern": 3}, "pattern=3"),
        ({"pattern": "0.*", "train_bn": 1}, "train_bn=1: True or False"),
        ({"pattern": "0.*", "until_epoch": 0}, "until_epoch=0: it is a whole number from 1"),
    ],
)
def test_settings_are_checked_when_made(settings: Any, sentence: str) -> None:
    """Nonsense is refused on the spot."""
    with pytest.raises(ValueError, match=sentence):
        freeze(**settings)


def test_settings_are_recorded() -> None:
    """Without a name it is called by its pattern, so that several may be given."""
    assert (freeze("0.*").name, freeze("0.*", name="body").name) == ("freeze 0.*", "body")
    assert freeze("0.*").params == {"pattern": "0.*", "until_epoch": None, "train_bn": True}


def test_pattern_that_matches_nothing_is_refused() -> None:
    """The sentence says what there is."""
    with pytest.raises(WorkloadError, match="no parameter matches 'encoder.*': there are 0.weight, 0.bias, 1.weight"):
        trained([freeze("encoder.*")], DATA, model=net())


# ------------------------------------------------------------------------------------ on a real model


def loop(model: nn.Module, frozen: str, epochs: int, until: int | None = None) -> nn.Module:
    """The plain loop with requires_grad_ by hand."""
    optimizer = sgd(model)
    for epoch in range(epochs):
        for name, parameter in model.named_parameters():
            parameter.requires_grad_((until is not None and epoch >= until) or not name.startswith(frozen))
        for inputs, target in DATA:
            nn.functional.mse_loss(model(inputs), target).backward()
            optimizer.step()
            optimizer.zero_grad()
    return model


def test_frozen_parameters_stay_to_the_last_bit() -> None:
    """With momentum and weight decay; the others are those of a loop with requires_grad_ by hand."""
    ours = trained([freeze("0.*")], DATA, model=net(), epochs=3)

    assert torch.equal(ours.model.get_parameter("0.weight"), net().get_parameter("0.weight"))
    assert same_weights(ours.model, loop(net(), "0.", epochs=3))


def test_momentum_of_before_does_not_move_them() -> None:
    """In a training that is taken up frozen, momentum that was gathered before stays where it is."""
    work = workload(DATA, model=net())
    run(start(work, epochs=1))
    before = work.model.get_parameter("0.weight").detach().clone()
    run(start(work, epochs=2), [freeze("0.*")])

    assert torch.equal(work.model.get_parameter("0.weight"), before)


def test_nothing_of_the_library_moves_them() -> None:
    """Neither penalties nor noise nor clipping nor an average."""
    others = [weight_penalty(l1=0.1, l2=0.1), grad_noise(0.5), clip_grad_norm(0.1), ema(0.9)]
    ours = trained([freeze("0.*"), *others], DATA, model=net(), epochs=2)

    assert torch.equal(ours.model.get_parameter("0.weight"), net().get_parameter("0.weight"))


def test_gradual_unfreezing_is_that_of_the_loop() -> None:
    """From its epoch on the layer is trained, without what it missed."""
    ours = trained([freeze("0.*", until_epoch=2)], DATA, model=net(), epochs=4)

    assert same_weights(ours.model, loop(net(), "0.", epochs=4, until=2))


def test_a_parameter_is_frozen_while_any_pattern_matches() -> None:
    """Layer by layer: which parameters are trained in each epoch."""
    work = workload(DATA, model=net())
    layers = [freeze("[01].*", until_epoch=2), freeze("0.*", until_epoch=3), freeze("?.bias", until_epoch=1)]

    def trainable(state: State) -> list[str]:
        return [name for name, parameter in work.model.named_parameters() if parameter.requires_grad]

    look, seen = looking(Phase.BATCH_BEGIN, trainable, every=len(DATA))
    run(start(work, epochs=4), [*layers, look])

    assert seen == [
        ["3.weight"],
        ["3.weight", "3.bias"],
        ["1.weight", "1.bias", "3.weight", "3.bias"],
        ["0.weight", "0.bias", "1.weight", "1.bias", "3.weight", "3.bias"],
    ]


def test_what_was_not_trainable_before_is_not_made_so() -> None:
    """Unfreezing gives back what there was."""
    model = net()
    model.get_parameter("0.bias").requires_grad_(False)
    trained([freeze("0.*", until_epoch=1)], DATA, model=model, epochs=2)

    assert [p.requires_grad for p in model.parameters()] == [True, False, True, True, True, True]


@pytest.mark.parametrize("end", [Flag.STOP_TRAINING, Flag.SUSPEND, None])
def test_taken_back_at_the_end(end: Flag | None) -> None:
    """However the call of run ends, the model is as trainable as it was."""
    work = workload(DATA, model=net())

    @on(Phase.BATCH_END)
    def leave(state: State) -> Transition:
        assert not work.model.get_parameter("0.weight").requires_grad
        if end is None:
            raise ZeroDivisionError
        return Transition(flags=end)

    if end is None:
        with pytest.raises(CallbackError, match="ZeroDivisionError"):
            run(start(work, epochs=1), [freeze("0.*"), leave])
    else:
        run(start(work, epochs=1), [freeze("0.*"), leave])

    assert all(parameter.requires_grad for parameter in work.model.parameters())


@pytest.mark.parametrize("iteration", [3, 4, 6])
def test_suspended_training_is_frozen_again(iteration: int) -> None:
    """In the middle of an epoch or between two, the resumed training is the same."""
    callbacks = [freeze("0.*", until_epoch=1)]
    work = workload(DATA, model=net())

    @on(Phase.BATCH_END, Phase.EPOCH_END)
    def leave(state: State) -> Transition | None:
        at_its_phase = (state.phase is Phase.EPOCH_END) == (iteration == len(DATA))
        return Transition(flags=Flag.SUSPEND) if state.iteration == iteration and at_its_phase else None

    suspended = run(start(work, epochs=3), [*callbacks, leave])
    run(suspended, callbacks)

    assert suspended.phase is Phase.SUSPENDED
    assert weights_of(work.model).equal(trained(callbacks, DATA, model=net(), epochs=3).weights)
