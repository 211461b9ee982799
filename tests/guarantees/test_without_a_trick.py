"""Trainings whose validation is another thing than their training: as loops by hand, killed, resumed and replayed.

Others stand in `tests/supervised`, with what they use: word errors in `test_function_metrics.py`, the area under the
curve in `test_over_all.py`, nearest neighbours in `test_measures.py`, samples of the average in
`test_exchanged_weights.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score

from fsm_train import Callback, Evaluation, State, Supervised, over_all, run, start
from fsm_train.callbacks import accumulate, clip_grad_norm, during, ema, restore_best, validate_every
from tests.killed import killed_and_resumed
from tests.models import Noisy, accuracy, digits, five_lines, network, same_weights, sgd, shuffled

# ------------------------------------------------------------------------------------------- detection


class Detector(nn.Module):
    """As those of torchvision: losses by name of images and targets in train mode, boxes of images in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.body, self.drop = nn.Linear(16, 4), nn.Dropout(0.2)

    def forward(self, images: list[torch.Tensor], targets: list[dict[str, torch.Tensor]] | None = None) -> Any:
        if not self.training:
            return [{"boxes": self.body(image)} for image in images]
        assert targets is not None
        boxes = [self.body(self.drop(image)) for image in images]
        far = [(ours - theirs["boxes"]).abs().mean() for ours, theirs in zip(boxes, targets, strict=True)]
        return {"box": torch.stack(far).mean(), "size": torch.stack([each.square().mean() for each in boxes]).mean()}


def pictures(count: int, seed: int) -> tuple[list[torch.Tensor], list[dict[str, torch.Tensor]]]:
    """Images with 1, 2, … rows, and a box for each row: no two of them make one tensor."""
    draw = torch.Generator().manual_seed(seed)
    images = [torch.randn(1 + i, 16, generator=draw) for i in range(count)]
    return images, [{"boxes": image[:, :4] + 1} for image in images]


def test_detection_with_boxes_in_eval_mode(tmp_path: Path) -> None:
    """A loss by parts that the model gives, no loss in validation, and a metric over the boxes of all images."""
    train, valid = [pictures(count, count) for count in (3, 4, 2, 3, 4)], [pictures(count, 9) for count in (3, 2)]

    def near(boxes: list[dict[str, torch.Tensor]], targets: list[dict[str, torch.Tensor]]) -> float:
        hits = [(b["boxes"] - t["boxes"]).abs().amax(1) < 1.5 for b, t in zip(boxes, targets, strict=True)]
        return torch.cat(hits).double().mean().item()

    def make() -> Supervised:
        model = Detector()
        only_boxes = Evaluation(
            valid, loss_fn=None, forward=lambda model, images: model(images), metrics={"near": over_all(near)}
        )
        return Supervised(
            *(model, sgd(model), lambda losses, targets: {"loss": losses["box"] + 0.1 * losses["size"], **losses}),
            *(train, only_boxes),
            forward=lambda model, images, target: model(images, target),
            samples=lambda images, target: len(images),
        )

    whole, plain = make(), Detector()
    final = run(start(whole, epochs=2, seed=0))
    optimizer = sgd(plain)
    torch.manual_seed(0)
    for _ in range(2):
        for images, targets in train:
            losses = plain(images, targets)
            (losses["box"] + 0.1 * losses["size"]).backward()
            optimizer.step()
            optimizer.zero_grad()
    plain.eval()
    boxes = [box for images, _ in valid for box in plain(images)]

    assert same_weights(whole.model, plain)
    assert final.metrics["valid_near"] == near(boxes, [target for _, targets in valid for target in targets])
    assert final.metrics.keys() == {"train_loss", "train_box", "train_size", "valid_near"}
    resumed, work = killed_and_resumed(make, tmp_path, iteration=7)
    assert same_weights(work.model, plain)
    assert resumed.history == final.history


# ------------------------------------------------------------------------------------------- the same noise


class Coder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.encode, self.decode = nn.Linear(64, 8), nn.Linear(8, 64)

    def forward(self, images: torch.Tensor) -> Any:
        code = self.encode(images)
        return self.decode(code + torch.randn_like(code))


def test_autoencoder_with_the_same_noise_in_each_validation(tmp_path: Path) -> None:
    """Two validations differ by the weights alone, and the training draws as without them."""
    images = digits(96).tensors[0]
    train, valid = [(part, part) for part in images[:64].split(16)], [(part, part) for part in images[64:].split(16)]

    def make() -> Supervised:
        model = Coder()
        return Supervised(model, sgd(model), nn.MSELoss(), train, Evaluation(valid, seed=7))

    whole, plain = make(), Coder()
    final = run(start(whole, epochs=3, seed=0))
    optimizer, losses = sgd(plain), []
    torch.manual_seed(0)
    for _ in range(3):
        five_lines(plain, optimizer, nn.MSELoss(), train, epochs=1)
        before = torch.get_rng_state()
        torch.manual_seed(7)
        with torch.no_grad():
            losses.append(sum(nn.functional.mse_loss(plain(part), part).item() for part, _ in valid) / len(valid))
        torch.set_rng_state(before)

    assert same_weights(whole.model, plain)
    assert [metrics["valid_loss"] for metrics in final.history] == pytest.approx(losses, rel=1e-7)
    resumed, work = killed_and_resumed(make, tmp_path, iteration=6, epochs=3)
    assert same_weights(work.model, plain)
    assert resumed.history == final.history


# ------------------------------------------------------------------------------------------- all of it at once

VALID = [tuple(digits(64).tensors)]


def _classifier(valid: Any = VALID, loss_fn: Any = None, **settings: Any) -> Supervised:
    model = network()
    train = shuffled(Noisy(digits(96)), 16)
    return Supervised(model, sgd(model), loss_fn or nn.CrossEntropyLoss(), train, valid, **settings)


def _by_parts(output: torch.Tensor, target: torch.Tensor) -> dict[str, Any]:
    return {"loss": nn.functional.cross_entropy(output, target), "mean": output.mean(), "size": float(len(target))}


def _evaluations() -> Supervised:
    """One that draws, one with an average and a metric over all, one that gives no loss: each in its own time."""
    valid = {
        "own": Evaluation(shuffled(Noisy(digits(96)), 16), seed=2**66),
        "slow": Evaluation(VALID, weights="slow", metrics={"all": over_all(_number)}),
        "hits": Evaluation(
            *(VALID,),
            loss_fn=None,
            forward=lambda model, inputs: {"classes": model(inputs).argmax(1)},
            metrics={"hit": lambda output, target: ((output["classes"] == target).sum(), len(target))},
            every=2,
        ),
    }
    return _classifier(valid, measures={"drawn": lambda work: {"a": torch.rand(()).item()}})


def _collection() -> Supervised:
    both = MetricCollection({"top": MulticlassAccuracy(10), "f1": MulticlassF1Score(10)})
    return _classifier({"a": Evaluation(VALID, metrics={"both": both}), "b": VALID}, metrics={"accuracy": accuracy})


def _number(output: torch.Tensor, target: torch.Tensor) -> int:
    return len(output)


def _slow() -> list[Callback[Any]]:
    slow = ema(0.9, name="slow", validate=False, start=3, every=2, warmup=True)
    return [slow, validate_every(steps=4, first=True)]


@pytest.mark.parametrize(
    ("make", "callbacks"),
    [
        (_evaluations, _slow),
        (_collection, lambda: [validate_every(steps=4)]),
        (lambda: _classifier(loss_fn=_by_parts), lambda: [validate_every(steps=4)]),
        (
            lambda: _classifier(metrics={"n": over_all(lambda output, _: len(output))}),
            lambda: [validate_every(steps=4)],
        ),
        (lambda: _classifier(grad_in_valid=True), list),
        (lambda: _classifier(forward=lambda model, inputs, target: model(inputs)), list),
    ],
)
def test_what_is_measured_changes_nothing_and_goes_on(
    make: Callable[[], Supervised], callbacks: Callable[[], list[Callback[Any]]], tmp_path: Path
) -> None:
    """The weights are those of the five-line loop, and a training that was killed measures the same."""
    whole, plain = make(), network()
    final = run(start(whole, epochs=3, seed=0), callbacks())
    data, optimizer = shuffled(Noisy(digits(96)), 16), sgd(plain)
    torch.manual_seed(0)
    five_lines(plain, optimizer, nn.CrossEntropyLoss(), data, epochs=3)

    assert same_weights(whole.model, plain)
    _is_taken_up(make, callbacks, final, whole, tmp_path)


@pytest.mark.parametrize(
    "callbacks",
    [
        lambda: [ema(0.9), ema(0.5, name="fast", validate=False, buffers="average"), restore_best("valid_loss")],
        lambda: [during(clip_grad_norm(0.5), steps=(4, 10)), during(accumulate(2), epochs=(1, 2))],
    ],
)
def test_what_is_done_for_a_while_or_beside_goes_on(
    callbacks: Callable[[], list[Callback[Any]]], tmp_path: Path
) -> None:
    """Averages side by side, and callbacks in windows that the kill falls into."""
    whole = _classifier()
    final = run(start(whole, epochs=3, seed=0), callbacks())

    _is_taken_up(_classifier, callbacks, final, whole, tmp_path)


def _is_taken_up(
    make: Callable[[], Supervised],
    callbacks: Callable[[], list[Callback[Any]]],
    final: State,
    whole: Supervised,
    folder: Path,
) -> None:
    """Killed in the second epoch and resumed, and replayed: nothing differs."""
    resumed, work = killed_and_resumed(make, folder, 8, callbacks(), epochs=3)

    assert same_weights(work.model, whole.model)
    assert resumed.history == final.history
