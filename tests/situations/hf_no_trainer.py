"""Hugging Face's no_trainer: batches by name, the model's own loss, accumulation, a linear rate, a metric object."""

from types import SimpleNamespace

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader
from torchmetrics.classification import MulticlassAccuracy

from fsm_train import Supervised, run, start
from fsm_train.callbacks import accumulate, torch_scheduler
from tests.models import digits
from tests.situations.common import unshuffled

TRICK = ""


class Classifier(nn.Module):
    """Stands for a model of transformers: tensors by name in, an object with the loss out."""

    def __init__(self):
        super().__init__()
        self.embedding, self.dropout, self.head = nn.Embedding(17, 8), nn.Dropout(0.1), nn.Linear(8, 10)

    def forward(self, input_ids, attention_mask, labels):
        mask = attention_mask.unsqueeze(-1)
        pooled = (self.embedding(input_ids) * mask).sum(dim=1) / mask.sum(dim=1)
        logits = self.head(self.dropout(pooled))
        return SimpleNamespace(loss=nn.functional.cross_entropy(logits, labels), logits=logits)


def samples(first, last):
    images, labels = digits(400).tensors
    ids = (images * 16).long()
    names = ("input_ids", "attention_mask", "labels")
    return [dict(zip(names, sample, strict=True)) for sample in zip(ids, ids > 0, labels, strict=True)][first:last]


def setup():
    torch.manual_seed(0)
    model = Classifier()
    train, test = DataLoader(samples(0, 320), batch_size=16, shuffle=True), unshuffled(samples(320, 400), 16)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    return model, optimizer, train, test


def linear(optimizer):
    return LambdaLR(optimizer, lambda step: min(step / 5, (15 - step) / 10))


def plain():
    model, optimizer, train, test = setup()
    scheduler, metric = linear(optimizer), MulticlassAccuracy(10, average="micro")
    for _ in range(3):
        model.train()
        for step, batch in enumerate(train):
            loss = model(**batch).loss / 4
            loss.backward()
            if (step + 1) % 4 == 0 or step == len(train) - 1:
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
        model.eval()
        metric.reset()
        for batch in test:
            with torch.no_grad():
                outputs = model(**batch)
            metric.update(outputs.logits.argmax(dim=-1), batch["labels"])
        measured = metric.compute().item()
    return model, measured


class OfLogits(MulticlassAccuracy):
    def update(self, output, labels):
        super().update(output.logits, labels)


def machine():
    model, optimizer, train, test = setup()
    work = Supervised(
        *(model, optimizer, lambda output, labels: output.loss, train, test),
        split=lambda batch: (batch, batch["labels"]),
        metrics={"accuracy": OfLogits(10, average="micro")},
    )
    final = run(start(work, epochs=3), [accumulate(4), torch_scheduler(linear)])
    return model, final.metrics["valid_accuracy"]
