"""Validations that measure something else than the training does, each beside its loop by hand.

Others stand with what they use: word errors in `test_function_metrics.py`, the area under the curve in
`test_over_all.py`, nearest neighbours in `test_measures.py`, samples of the average in `test_exchanged.py`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from fsm_train import Evaluation, Phase, State, Supervised, on
from fsm_train.callbacks import early_stopping, validate_every
from tests.killed import killed_and_resumed
from tests.models import digits, same_weights

IMAGES, LABELS = digits(60).tensors

# -------------------------------------------------------------------- boxes in eval mode


def _found(number: int) -> tuple[list[torch.Tensor], list[dict[str, torch.Tensor]]]:
    """Images, each of a size of its own, in which a box is brighter than the rest."""
    generator = torch.Generator().manual_seed(number)
    images, targets = [], []
    for width in (10, 12, 14):
        left, top = torch.randint(4, (2,), generator=generator).tolist()
        image = torch.rand(1, 12, width, generator=generator)
        image[:, top : top + 5, left : left + 5] += 2
        images.append(image)
        targets.append({"boxes": torch.tensor([[left, top, left + 5, top + 5]]).float(), "labels": torch.tensor([1])})
    return images, targets


class Detector(nn.Module):
    """As torchvision's: of lists of images and targets losses by name in train mode, boxes in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.layers = nn.Sequential(nn.AdaptiveAvgPool2d(6), nn.Flatten(), nn.Linear(36, 32), nn.ReLU())
        self.box, self.score = nn.Linear(32, 4), nn.Linear(32, 2)

    def forward(self, images: list[torch.Tensor], targets: list[dict[str, torch.Tensor]] | None = None) -> Any:
        hidden = torch.cat([self.layers(image[None]) for image in images])
        boxes, scores = self.box(hidden), self.score(hidden)
        if not self.training:
            return [
                {"boxes": box[None], "labels": score.argmax()[None]} for box, score in zip(boxes, scores, strict=True)
            ]
        assert targets is not None
        wanted, labels = (torch.cat([target[part] for target in targets]) for part in ("boxes", "labels"))
        return {"box": functional.l1_loss(boxes, wanted), "classifier": functional.cross_entropy(scores, labels)}


def _near(found: list[dict[str, torch.Tensor]], targets: list[dict[str, torch.Tensor]]) -> tuple[int, int]:
    """The boxes of which each side is near that of a target, and all targets."""
    pairs = zip(found, targets, strict=True)
    return sum(int((a["boxes"] - b["boxes"]).abs().max() < 1.5) for a, b in pairs), len(targets)


def test_detector_with_boxes_in_eval_mode(tmp_path: Path) -> None:
    """Its losses are trained, its boxes are measured: as by hand, also over a kill in mid-epoch."""
    train, valid = [_found(number) for number in range(20)], [_found(number) for number in range(20, 25)]

    def detection() -> Supervised:
        model = Detector()
        return Supervised(
            *(model, torch.optim.Adam(model.parameters(), lr=1e-2)),
            *(lambda losses, _: {"loss": sum(losses.values()), **losses}, train),
            Evaluation(valid, loss_fn=None, metrics={"near": _near}),
            forward=lambda model, images, targets: model(images, targets),
            samples=lambda images, targets: len(images),
        )

    plain, scores = Detector(), []
    optimizer = torch.optim.Adam(plain.parameters(), lr=1e-2)
    for _ in range(4):
        plain.train()
        for images, targets in train:
            sum(plain(images, targets).values()).backward()
            optimizer.step()
            optimizer.zero_grad()
        plain.eval()
        counted = [_near(plain(images), targets) for images, targets in valid]
        scores.append(sum(near for near, _ in counted) / sum(there for _, there in counted))
    final, resumed = killed_and_resumed(
        detection, tmp_path, 30, [early_stopping("valid_near", mode="max", patience=99)], epochs=4
    )

    assert [metrics["valid_near"] for metrics in final.history] == scores
    assert scores[0] < scores[-1]
    assert final.metrics.keys() == {"train_loss", "train_box", "train_classifier", "valid_near"}
    assert same_weights(resumed.model, plain)


# ---------------------------------------------------- the same noise in each validation


class Autoencoder(nn.Module):
    """A variational one: its code has noise, also in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.encode, self.decode = nn.Linear(64, 8), nn.Linear(4, 64)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        mean, log_variance = self.encode(images).chunk(2, dim=1)
        return self.decode(mean + torch.randn_like(mean) * (log_variance / 2).exp()), mean, log_variance


def _elbo(output: tuple[torch.Tensor, ...], images: torch.Tensor) -> torch.Tensor:
    rebuilt, mean, log_variance = output
    divergence = -0.5 * (1 + log_variance - mean.square() - log_variance.exp()).sum(dim=1).mean()
    return functional.mse_loss(rebuilt, images) + 0.01 * divergence


def test_autoencoder_with_the_same_noise_in_each_validation(tmp_path: Path) -> None:
    """Of one seed each time, also in mid-epoch, while the training goes on with its own noise; also over a kill."""
    train, valid = [(images, images) for images in IMAGES[:40].split(8)], [(IMAGES[40:], IMAGES[40:])]

    def coding() -> Supervised:
        model = Autoencoder()
        return Supervised(model, torch.optim.Adam(model.parameters()), _elbo, train, Evaluation(valid, seed=3))

    plain, losses = Autoencoder(), {}
    optimizer = torch.optim.Adam(plain.parameters())
    torch.manual_seed(0)
    for step in range(1, 16):
        _elbo(plain(train[(step - 1) % 5][0]), train[(step - 1) % 5][1]).backward()
        optimizer.step()
        optimizer.zero_grad()
        if step % 2 == 0 or step % 5 == 0:
            generator = torch.get_rng_state()
            torch.manual_seed(3)
            losses[step] = _elbo(plain(valid[0][0]), valid[0][1]).item()
            torch.set_rng_state(generator)
    measured: dict[int, float] = {}

    @on(Phase.VALID_END)
    def note(state: State) -> None:
        measured[state.step] = state.metrics["valid_loss"]

    callbacks = [validate_every(steps=2), early_stopping(patience=99), note]
    _, resumed = killed_and_resumed(coding, tmp_path, 7, callbacks, epochs=3)

    assert measured == losses
    assert same_weights(resumed.model, plain)
