"""`examples/hf_classifier.py` beside the loop of the course of Hugging Face."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from sklearn.metrics import f1_score
from torch import nn

from tests.examples.scripts import example
from tests.killed import killed_and_resumed
from tests.models import same_weights

transformers = pytest.importorskip("transformers", reason="it is in the extra `dev`: pip install transformers")


def by_hand(script: Any) -> tuple[list[nn.Module], list[float]]:
    """The model after each epoch, and its macro F1 on the unseen lines."""
    data = script.workload()
    model, optimizer, models, scores = data.model, data.optimizer, [], []
    scheduler = transformers.get_linear_schedule_with_warmup(optimizer, 20, script.EPOCHS * len(data.train))
    torch.manual_seed(0)
    for _ in range(script.EPOCHS):
        model.train()
        for batch in data.train:
            model(**batch).loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
        model.eval()
        generator, labels, predictions = torch.get_rng_state(), [], []
        for batch in data.valid:  # which draws a seed, as each pass over a DataLoader does
            with torch.no_grad():
                predictions += model(**batch).logits.argmax(dim=-1).tolist()
            labels += batch["labels"].tolist()
        torch.set_rng_state(generator)
        scores.append(f1_score(labels, predictions, average="macro"))
        models.append(copy.deepcopy(model))
    return models, scores


def test_hf_classifier_is_the_plain_loop(tmp_path: Path) -> None:
    """Weights and F1 of each epoch are equal to the last bit, also over a kill in the first; and it has learned."""
    script = example("hf_classifier.py")

    models, scores = by_hand(script)
    steps = script.EPOCHS * len(script.work.train)
    _, resumed = killed_and_resumed(script.workload, tmp_path, 50, script.callbacks(steps), epochs=1)

    assert same_weights(script.work.model, models[-1])
    assert [metrics["valid_f1"] for metrics in script.final.history] == scores
    assert same_weights(resumed.model, models[0])
    assert scores[-1] > 0.55
