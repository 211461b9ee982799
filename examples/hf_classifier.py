# python examples/hf_classifier.py: a small BERT of Hugging Face learns which module a line of source is from.
import argparse
import difflib
import inspect

import torch
from sklearn.metrics import f1_score
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, random_split
from transformers import BertConfig, BertForSequenceClassification, get_linear_schedule_with_warmup

from fsm_train import Supervised, over_all, run, start
from fsm_train.callbacks import clip_grad_norm, torch_scheduler
from fsm_train.sinks import progress

EPOCHS, MODULES = 3, (argparse, difflib, inspect)


def collate(examples):
    """What a tokenizer and DataCollatorWithPadding give; here the tokens are bytes, and 0 pads."""
    ids = pad_sequence([torch.tensor(list(line.encode()[:48])) for line, _ in examples], batch_first=True)
    return {"input_ids": ids, "attention_mask": ids.ne(0).long(), "labels": torch.tensor([n for _, n in examples])}


def accuracy(output, labels):
    return (output.logits.argmax(dim=-1) == labels).float().mean()


def macro_f1(output, labels):
    return f1_score(labels, output.logits.argmax(dim=-1), average="macro")


def workload():
    sources = [set(map(str.strip, inspect.getsource(module).splitlines())) for module in MODULES]
    data = [(line, label) for label, lines in enumerate(sources) for line in sorted(lines) if len(line) > 20]
    train, valid = random_split(data, [0.8, 0.2], torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=256, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, num_labels=3
    )
    model = BertForSequenceClassification(config)
    return Supervised(
        model,
        torch.optim.AdamW(model.parameters(), lr=2e-3),
        lambda output, labels: output.loss,  # the model is given the labels, and computes it
        DataLoader(train, batch_size=32, shuffle=True, collate_fn=collate),
        DataLoader(valid, batch_size=64, collate_fn=collate),
        split=lambda batch: (batch, batch["labels"]),
        metrics={"accuracy": accuracy, "f1": over_all(macro_f1)},
    )


def callbacks(steps):
    return [clip_grad_norm(1.0), torch_scheduler(lambda own: get_linear_schedule_with_warmup(own, 20, steps))]


if __name__ == "__main__":
    work = workload()
    final = run(start(work, epochs=EPOCHS, seed=0), callbacks(EPOCHS * len(work.train)), sinks=[progress()])
