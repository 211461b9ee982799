# python examples/detection.py: a detector in the style of torchvision's finds handwritten digits, and reads them.
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, interpolate, l1_loss

from fsm_train import Evaluation, Supervised, run, start

DIGITS, LABELS = (torch.tensor(part) for part in load_digits(return_X_y=True))
CELLS = 8 * torch.cartesian_prod(torch.arange(6), torch.arange(6)).flip(1) + 4  # x, y in 6 x 6 cells of 8 pixels


def scene(count):
    """An image of 48 x 48 with so many digits of several sizes, each in a quarter of its own; and what is where."""
    image, digits = torch.zeros(1, 48, 48), torch.randint(len(DIGITS), (count,))
    size, quarter = torch.randint(12, 25, (count,)), torch.randperm(4)[:count]
    x, y = ((24 * part + torch.rand(count) * (25 - size)).long() for part in (quarter % 2, quarter // 2))
    boxes = torch.stack([x, y, x + size, y + size], dim=1)
    for digit, (left, top, right, bottom) in zip(DIGITS[digits].view(-1, 1, 1, 8, 8), boxes, strict=True):
        image[:, top:bottom, left:right] = interpolate(digit / 16, int(right - left))[0]
    return image, {"boxes": boxes.float(), "labels": LABELS[digits]}


class Detector(nn.Module):
    def __init__(self):
        super().__init__()
        layers = [nn.Sequential(nn.Conv2d(n, 32, 5, 2, 2), nn.BatchNorm2d(32), nn.ReLU()) for n in (1, 32, 32)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(32, 1 + 10 + 4, 1))

    def forward(self, images, targets):
        scores, logits, sides = self.layers(torch.stack(images)).flatten(2).mT.split([1, 10, 4], dim=2)
        boxes = torch.cat([CELLS - 8 * sides[..., :2].exp(), CELLS + 8 * sides[..., 2:].exp()], dim=2)
        if not self.training:
            return [{"boxes": boxes[n, k], "labels": logits[n, k].argmax(1)} for n, k in enumerate(scores[..., 0] > 0)]
        wanted, labels = (torch.cat([target[part] for target in targets]) for part in ("boxes", "labels"))
        x, y = ((wanted[:, :2] + wanted[:, 2:]) / 16).long().T
        at = [n for n, target in enumerate(targets) for _ in target["labels"]], 6 * y + x  # images, and cells there
        (is_there := torch.zeros_like(scores))[at] = 1
        score = binary_cross_entropy_with_logits(scores, is_there)
        return {"objectness": score, "classifier": cross_entropy(logits[at], labels), "box": l1_loss(boxes[at], wanted)}


def recall(found, targets):
    """Boxes with the right label at most 4 pixels off, and all that are there: as (sum, count)."""
    pairs = zip(found, targets, strict=True)
    hits = [(torch.cdist(a["boxes"], b["boxes"]) < 4) & (a["labels"][:, None] == b["labels"]) for a, b in pairs]
    return sum(hit.any(dim=0).sum() for hit in hits), sum(len(target["labels"]) for target in targets)


torch.manual_seed(0)
train, valid = ([tuple(zip(*(scene(1 + n % 3) for n in range(16)), strict=True)) for _ in range(k)] for k in (50, 10))
work = Supervised(
    *(model := Detector(), torch.optim.AdamW(model.parameters(), lr=5e-3)),
    *(lambda losses, _: {"loss": sum(losses.values()), **losses}, train),
    Evaluation(valid, loss_fn=None, metrics={"recall": recall}),
    forward=lambda model, images, targets: model(images, targets),
    samples=lambda images, targets: len(images),
)
print((final := run(start(work, epochs=12, seed=0))).metrics)
