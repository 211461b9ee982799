# python examples/search.py: settings tried in processes side by side; a trial that fails is shown, and harms no other.
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context

import torch
from sklearn.datasets import load_digits
from torch import nn

from fsm_train import Supervised, run, start
from fsm_train.callbacks import early_stopping, restore_best

EPOCHS, PATIENCE = 20, 2
SPACE = [{"lr": lr, "width": width} for lr in (-0.1, 0.03, 0.1) for width in (16, 64)]  # a rate below 0 fails
images, labels = map(torch.tensor, load_digits(return_X_y=True))
images = (images / 16).float()
train = list(zip(images[:1437].split(48), labels[:1437].split(48), strict=True))
cross_entropy = nn.CrossEntropyLoss()


def set_up(lr, width):
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))
    return model, torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)


def trial(settings):
    """The loss after each epoch, and the weights with the lowest."""
    model, optimizer = set_up(**settings)
    callbacks = [early_stopping("valid_loss", patience=PATIENCE), restore_best("valid_loss")]
    work = Supervised(model, optimizer, cross_entropy, train, [(images[1437:], labels[1437:])])
    final = run(start(work, epochs=EPOCHS), callbacks)
    return [metrics["valid_loss"] for metrics in final.history], [weight.tolist() for weight in model.parameters()]


def by_hand(settings):
    model, optimizer = set_up(**settings)
    losses, best = [], 0
    while len(losses) < EPOCHS and len(losses) - best < PATIENCE:
        for inputs, target in train:
            cross_entropy(model(inputs), target).backward()
            optimizer.step()
            optimizer.zero_grad()
        losses.append(cross_entropy(model(images[1437:]), labels[1437:]).item())
        if losses[-1] == min(losses):
            best, weights = len(losses), [weight.tolist() for weight in model.parameters()]
    return losses, weights


if __name__ == "__main__":
    with ProcessPoolExecutor(2, get_context("spawn")) as pool:
        trials = {pool.submit(trial, settings): settings for settings in SPACE}
        for done, settings in ((done, trials[done]) for done in as_completed(trials)):
            if (error := done.exception()) is None:
                losses, weights = done.result()
                assert (losses, weights) == by_hand(settings)
                print(settings, f"valid_loss {min(losses):.4f} after {len(losses)} epochs")
            else:
                print(settings, "failed:", error)
