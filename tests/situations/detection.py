"""Detection as by torchvision: lists of images and targets; losses by name in training, boxes in a test."""

import torch
from torch import nn
from torch.utils.data import DataLoader

from fsm_train import Evaluation, Supervised, over_all, run, start
from tests.models import digits

TRICK = ""


class Detector(nn.Module):
    """Stands for a model of torchvision that finds one box in each image."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(256, 64), nn.ReLU())
        self.box, self.kind = nn.Linear(64, 4), nn.Linear(64, 10)

    def forward(self, images, targets=None):
        hidden = self.body(torch.stack(images))
        boxes, kinds = self.box(hidden).sigmoid() * 16, self.kind(hidden)
        if not self.training:
            return [{"boxes": box[None], "labels": kind.argmax()[None]} for box, kind in zip(boxes, kinds, strict=True)]
        wanted, labels = (torch.cat([target[name] for target in targets]) for name in ("boxes", "labels"))
        return {
            "loss_box": nn.functional.smooth_l1_loss(boxes, wanted),
            "loss_classifier": nn.functional.cross_entropy(kinds, labels),
        }


def scenes(first, last):
    images, labels = digits(400).tensors
    generator = torch.Generator().manual_seed(first)
    for image, label in zip(images[first:last].view(-1, 8, 8), labels[first:last], strict=True):
        x, y = torch.randint(9, (2,), generator=generator).tolist()
        scene = torch.zeros(16, 16)
        scene[y : y + 8, x : x + 8] = image
        box = torch.tensor([[x, y, x + 8, y + 8]], dtype=torch.float32)
        yield scene, {"boxes": box, "labels": label[None]}


def collate(samples):
    return tuple(zip(*samples, strict=True))


def setup():
    torch.manual_seed(0)
    model = Detector()
    train = DataLoader([*scenes(0, 160)], batch_size=16, shuffle=True, collate_fn=collate)
    return model, torch.optim.Adam(model.parameters(), lr=1e-3), train, [collate(scenes(n, n + 20)) for n in (200, 220)]


def mean_iou(found, wanted):
    """The mean overlap of the boxes, over all images."""
    one, other = (torch.cat([target["boxes"] for target in targets]) for targets in (found, wanted))
    corners = torch.minimum(one[:, 2:], other[:, 2:]) - torch.maximum(one[:, :2], other[:, :2])
    both, areas = corners.clamp(min=0).prod(dim=1), [(box[:, 2:] - box[:, :2]).prod(dim=1) for box in (one, other)]
    return (both / (areas[0] + areas[1] - both)).mean()


def plain():
    model, optimizer, train, test = setup()
    for _ in range(2):
        model.train()
        for images, targets in train:
            losses = model(images, targets)
            loss = sum(losses.values())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        model.eval()
        found, wanted = [], []
        for images, targets in test:
            with torch.no_grad():
                found.extend(model(images))
            wanted.extend(targets)
    return model, mean_iou(found, wanted).item()


def machine():
    model, optimizer, train, test = setup()
    tested = Evaluation(
        test, loss_fn=None, metrics={"iou": over_all(mean_iou)}, forward=lambda model, images: model(images)
    )
    work = Supervised(
        *(model, optimizer, lambda losses, _: {"loss": sum(losses.values()), **losses}, train, tested),
        forward=lambda model, images, targets: model(images, targets),
        samples=lambda images, _: len(images),
    )
    final = run(start(work, epochs=2))
    return model, final.metrics["valid_iou"]
