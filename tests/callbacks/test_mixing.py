"""Mixing samples: what is drawn, and what is trained with it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from fsm_train import ConflictError, Phase, Plan, State, Transition, WorkloadError, on, run, start
from fsm_train.callbacks import cutmix, mixed_precision, mixup, validate_every
from fsm_train.core.commands import CutMix, MixUp
from fsm_train.testing import at
from tests.diabetes_training import batches, net, trained, weights_of, workload
from tests.models import accuracy, digits, same_weights

DATA = batches(8, 8, 8, 6)
IMAGES = [
    (x.view(-1, 1, 8, 8), y) for x, y in zip(*(tensor[:96].split(24) for tensor in digits().tensors), strict=True)
]


def drawn(callback: Any, **fields: Any) -> Any:
    return callback(at(Phase.BATCH_BEGIN, **fields)).commands[0]


# ------------------------------------------------------------------------------------------ as data


@pytest.mark.parametrize("make", [mixup, cutmix])
def test_what_is_drawn_depends_on_the_state_alone(make: Any) -> None:
    """The same batch draws the same again; another one, and another seed of the plan, draw anew."""
    first = drawn(make(), batch=3)

    assert drawn(make(), batch=3) == first
    assert drawn(make(), batch=4) != first
    assert drawn(make(), batch=3, plan=Plan(epochs=10, seed=5)) != first


@pytest.mark.parametrize("make", [mixup, cutmix])
def test_validating_draws_nothing_else(make: Any) -> None:
    """How long the last validation was is nothing to a training batch."""
    assert drawn(make(), batch=3, valid_batch=7) == drawn(make(), batch=3)


@pytest.mark.unmeasured
@pytest.mark.parametrize(("make", "alpha", "mean"), [(mixup, 1.0, 0.75), (mixup, 0.1, 0.94), (cutmix, 1.0, 0.75)])
def test_weights_are_of_the_beta_distribution(make: Any, alpha: float, mean: float) -> None:
    """Of Beta(alpha, alpha), the larger side: a sample is mostly itself."""
    weights = [drawn(make(alpha), iteration=i).weight for i in range(2000)]

    assert min(weights) >= 0.5
    assert sum(weights) / 2000 == pytest.approx(mean, abs=0.02)


@pytest.mark.parametrize("alpha", [0, -1.0, float("nan"), float("inf"), True, "a"])
@pytest.mark.parametrize("make", [mixup, cutmix])
def test_settings_are_checked_when_made(make: Callable[..., object], alpha: Any) -> None:
    """Nonsense is refused on the spot."""
    with pytest.raises(ValueError, match=f"alpha={alpha!r}: it is a positive number"):
        make(alpha)


def test_settings_are_recorded() -> None:
    """What they were made with, and under which name."""
    mixed, cut = mixup(name="mix"), cutmix(0.5)

    assert (mixed.name, mixed.params) == ("mix", {"alpha": 0.4})
    assert (cut.name, cut.params) == ("cutmix", {"alpha": 0.5})


def test_only_one_of_them() -> None:
    """Two that mix one batch are a conflict, known before anything runs."""
    with pytest.raises(ConflictError, match="'mixup' and 'cutmix' both give the command CutMix or MixUp"):
        run(start(workload(), epochs=1), [mixup(), cutmix()])


def test_two_that_do_not_say_so_are_refused() -> None:
    """Callbacks of one's own need not declare their commands."""

    @on(Phase.BATCH_BEGIN)
    def mine(state: State) -> Transition:
        return Transition(commands=(MixUp(0.5, 1),))

    with pytest.raises(ConflictError, match="'mine' and 'mixup' both give the command MixUp"):
        trained([mixup(), mine], DATA)


# ------------------------------------------------------------------------------------------ by hand


def commands(callback: Any, batches: int) -> list[Any]:
    """What the callback draws for each batch of an epoch with a step each."""
    return [drawn(callback, batch=i, iteration=i, step=i, plan=Plan(epochs=1, seed=4)) for i in range(batches)]


def partners_of(command: Any, samples: int) -> torch.Tensor:
    return torch.randperm(samples, generator=torch.Generator().manual_seed(command.seed))


def test_mixup_is_the_loop_by_hand() -> None:
    """Bit for bit; the batches themselves are not written to, and the metric is of the own target."""
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=0.01)
    before = [(x.clone(), y.clone()) for x, y in DATA]
    losses, errors = [], []
    for (inputs, target), command in zip(DATA, commands(mixup(), 4), strict=True):
        partners, weight = partners_of(command, len(inputs)), command.weight
        output = model(weight * inputs + (1 - weight) * inputs[partners])
        ours, theirs = nn.functional.mse_loss(output, target), nn.functional.mse_loss(output, target[partners])
        loss = weight * ours + (1 - weight) * theirs
        losses.append(loss.item() * len(inputs))
        errors.append(ours.item() * len(inputs))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    ours = trained([mixup()], DATA, model=net(), seed=4, metrics={"error": nn.functional.mse_loss})

    assert same_weights(ours.model, model)
    assert ours.final.metrics == pytest.approx({"train_loss": sum(losses) / 30, "train_error": sum(errors) / 30})
    assert all(a.equal(x) and b.equal(y) for (a, b), (x, y) in zip(before, DATA, strict=True))


def convolution() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))


def test_cutmix_is_the_loop_by_hand() -> None:
    """A box of each image from its partner, and the losses weighted by the pixels that are there."""
    model = convolution()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=0.01)
    before = [x.clone() for x, _ in IMAGES]
    kept = []
    for (images, target), command in zip(IMAGES, commands(cutmix(), 4), strict=True):
        partners = partners_of(command, len(images))
        half = 8 * (1 - command.weight) ** 0.5 / 2
        inside = torch.zeros(8, 8, dtype=torch.bool)
        for row in range(8):
            for column in range(8):
                inside[row, column] = round(8 * command.y - half) <= row < round(8 * command.y + half) and round(
                    8 * command.x - half
                ) <= column < round(8 * command.x + half)
        kept.append(1 - inside.sum().item() / 64)
        output = model(torch.where(inside, images[partners], images))
        loss = kept[-1] * nn.functional.cross_entropy(output, target)
        loss = loss + (1 - kept[-1]) * nn.functional.cross_entropy(output, target[partners])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    ours = trained([cutmix()], IMAGES, model=convolution(), loss_fn=nn.CrossEntropyLoss(), seed=4)

    assert any(part < 1 for part in kept)
    assert ours.weights.allclose(weights_of(model), rtol=1e-5, atol=1e-7)
    assert all(a.equal(x) for a, (x, _) in zip(before, IMAGES, strict=True))


def test_validation_is_not_mixed() -> None:
    """In the middle of an epoch either: it does not change the training, and is measured on the samples."""
    valid = digits(64)
    settings: Any = {"loss_fn": nn.CrossEntropyLoss(), "metrics": {"accuracy": accuracy}, "seed": 4, "epochs": 2}
    with_valid = trained(
        [mixup(), validate_every(steps=1)],
        IMAGES,
        model=convolution(),
        valid=[(valid.tensors[0].view(-1, 1, 8, 8), valid.tensors[1])],
        **settings,
    )
    without = trained([mixup()], IMAGES, model=convolution(), **settings)

    assert same_weights(with_valid.model, without.model)
    output = with_valid.model.eval()(valid.tensors[0].view(-1, 1, 8, 8))
    expected = nn.functional.cross_entropy(output, valid.tensors[1]).item()
    assert with_valid.final.metrics["valid_loss"] == pytest.approx(expected, rel=1e-5)
    assert with_valid.final.metrics["valid_accuracy"] == pytest.approx(accuracy(output, valid.tensors[1]).item())


def test_nested_inputs_and_targets_are_mixed_alike() -> None:
    """Each tensor of them, with the same partners and the same weight."""

    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = net()

        def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            seen.append((a, b))
            return self.layer(a + b)  # type: ignore[no-any-return]

    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    inputs, target = DATA[0]
    data = [({"a": inputs, "b": 2 * inputs}, (target, target))]
    trained([mixup()], data, model=Sum(), loss_fn=lambda output, target: nn.functional.mse_loss(output, target[1]))

    assert (2 * seen[0][0]).allclose(seen[0][1])
    assert not seen[0][0].equal(inputs)


def test_half_precision_mixes_too() -> None:
    """Inputs are mixed as they are, before autocast."""
    assert trained([mixup(), mixed_precision("float16", initial_scale=64.0)], DATA, model=net()).final.step == 4


@pytest.mark.parametrize(
    ("callback", "inputs", "sentence"),
    [
        (mixup(), torch.ones(4, 10, dtype=torch.long), "inputs of type torch.int64 cannot be mixed"),
        (cutmix(), torch.ones(4, 10), r"inputs of shape \(4, 10\) have no boxes: cutmix is for"),
    ],
)
def test_what_cannot_be_mixed_is_said(callback: Any, inputs: torch.Tensor, sentence: str) -> None:
    """With what there was and what it is for."""
    with pytest.raises(WorkloadError, match=sentence):
        trained([callback], [(inputs, torch.zeros(4, 1))], model=net())


def test_commands_are_checked() -> None:
    """A weight is a part of one."""
    with pytest.raises(ValueError, match="weight=1.5: it must be a number from 0 to 1"):
        MixUp(1.5, 0)
    with pytest.raises(ValueError, match="x=-0.1"):
        CutMix(0.5, -0.1, 0.5, 0)
