"""Data that the model makes itself: what cannot be continued exactly is said, and the way that is exact is."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

from fsm_train import (
    Command,
    Phase,
    State,
    Supervised,
    Transition,
    carries_out,
    on,
    restore,
    run,
    start,
)
from fsm_train.callbacks import accumulate, checkpoint
from fsm_train.supervised.saved_parts import parts_of
from fsm_train.testing import at
from tests.models import leave_after, same_weights

Pair = tuple[torch.Tensor, torch.Tensor]


def policy() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Dropout(0.1), nn.Linear(8, 1))


def played(model: nn.Module, samples: int) -> Pair:
    """Inputs that were drawn, and targets that depend on what the model answers."""
    inputs = torch.randn(samples, 3)
    with torch.no_grad():
        return inputs, inputs.sum(dim=1, keepdim=True) + 0.5 * model(inputs)


class Rollouts:
    """A stream of batches that the model makes as they are asked for."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def __iter__(self) -> Iterator[Pair]:
        for _ in range(5):
            yield played(self.model, 4)


class RolloutStream(IterableDataset[Pair]):
    def __init__(self, model: nn.Module) -> None:
        self.policies = {"own": model}

    def __iter__(self) -> Iterator[Pair]:
        for _ in range(20):
            inputs, target = played(self.policies["own"], 1)
            yield inputs[0], target[0]


class Played(Dataset[Pair]):
    """A dataset of what the model made when it was filled."""

    def __init__(self) -> None:
        self.inputs, self.target = torch.zeros(20, 3), torch.zeros(20, 1)

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, i: int) -> Pair:
        return self.inputs[i], self.target[i]

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {"inputs": self.inputs, "target": self.target}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        self.inputs, self.target = state["inputs"].clone(), state["target"].clone()


@attrs.frozen
class Play(Command):
    """Let the model play, and train on that in this epoch."""


@carries_out(Play)
def play(work: Supervised, command: Play) -> None:
    rollouts = work.extra["rollouts"]
    assert isinstance(rollouts, Played)
    rollouts.inputs, rollouts.target = played(work.model, 20)


@on(Phase.EPOCH_BEGIN, commands={Play})
def play_first(state: State) -> Transition:
    return Transition(commands=(Play(),))


def training(train: Any, model: nn.Module, **settings: Any) -> Supervised:
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    return Supervised(model, optimizer, nn.MSELoss(), train, **settings)


def filled() -> Supervised:
    """The recipe: a dataset that is given as an extra part."""
    rollouts = Played()
    return training(DataLoader(rollouts, batch_size=4, shuffle=True), policy(), extra={"rollouts": rollouts})


def note_of(train: Any, model: nn.Module, folder: Path, iteration: int = 7) -> list[str]:
    """What a checkpoint in the middle of the second epoch says of data that the model makes."""
    final = run(start(training(train, model), epochs=3, seed=0), [checkpoint(folder), leave_after(iteration)])
    _, notes = parts_of(final.workload, final)  # type: ignore[arg-type]
    return [note for note in notes if "which the model makes itself" in note]


def test_a_stream_that_the_model_makes_is_said(tmp_path: Path) -> None:
    """With what holds the model, and what to do."""
    model = policy()

    (note,) = note_of(Rollouts(model), model, tmp_path / "own")
    (of_stream,) = note_of(DataLoader(RolloutStream(model), batch_size=4), model, tmp_path / "stream")

    assert note.startswith("the training data, which the model makes itself (train.model): a pass over it cannot be")
    assert "which the model makes itself (train.dataset.policies['own'])" in of_stream
    assert "in a command at EPOCH_BEGIN: fsm_train/data/README.md shows how" in note


def test_a_part_of_the_model_makes_it_too(tmp_path: Path) -> None:
    """Also one that is compiled, and one that a loss holds."""
    model, head = policy(), nn.Linear(1, 1)
    part, compiled = model[0], torch.compile(model, backend="eager")  # type: ignore[index]

    class Loss(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = head

        def forward(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
            return ((self.head(output) - target) ** 2).mean()

    for i, held in enumerate((part, compiled, head)):
        rollouts = Rollouts(model)
        rollouts.model, rollouts.other = nn.Linear(3, 1), held  # type: ignore[attr-defined]
        work = Supervised(model, torch.optim.SGD(model.parameters(), lr=0.1), Loss(), rollouts)
        final = run(start(work, epochs=2), [leave_after(7)])
        notes = parts_of(work, final)[1]
        assert [note for note in notes if "itself (train.other)" in note], i


MODEL = policy()


def test_a_model_among_the_globals_is_found(tmp_path: Path) -> None:
    """By the methods that read."""

    class ByName:
        def __iter__(self) -> Iterator[Pair]:
            for _ in range(5):
                yield played(MODEL, 4)

    (note,) = note_of(ByName(), MODEL, tmp_path)

    assert "itself (train names MODEL)" in note


@pytest.mark.parametrize(
    "train",
    [
        lambda model: [played(model, 4) for _ in range(5)],
        lambda model: DataLoader(Held(model), batch_size=4),
        lambda model: Rollouts(policy()),
    ],
    ids=["list", "map-style", "another model"],
)
def test_what_is_continued_exactly_is_not_said(train: Any, tmp_path: Path) -> None:
    """Nothing is read again of a list, or of what a sampler skips; another model does not change."""
    model = policy()

    assert note_of(train(model), model, tmp_path) == []


class Held(Dataset[Pair]):
    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def __len__(self) -> int:
        return 20

    def __getitem__(self, i: int) -> Pair:
        inputs, target = played(self.model, 1)
        return inputs[0], target[0]


def test_between_epochs_nothing_is_read_again(tmp_path: Path) -> None:
    """So a checkpoint there is exact, whoever makes the data."""
    model = policy()
    work = training(Rollouts(model), model)

    _, notes = parts_of(work, run(start(work, epochs=1)))

    assert [note for note in notes if "makes itself" in note] == []


@pytest.mark.parametrize("iteration", [2, 5, 7, 9])
def test_dataset_that_a_command_fills_resumes_bit_for_bit(iteration: int, tmp_path: Path) -> None:
    """In the middle of an epoch, of an accumulation window, and between epochs, without a note."""
    callbacks = [play_first, accumulate(2), checkpoint(tmp_path)]
    undisturbed = filled()
    run(start(undisturbed, epochs=4, seed=0), callbacks[:2])
    run(start(filled(), epochs=4, seed=0), [*callbacks, leave_after(iteration)])
    work = filled()

    state = restore(tmp_path, work)
    final = run(state, callbacks)

    assert [note for note in state.notes if "data" in note or "extra" in note] == []
    assert same_weights(work.model, undisturbed.model)
    assert final.epoch == 4
    assert torch.equal(work.extra["rollouts"].target, undisturbed.extra["rollouts"].target)  # type: ignore[attr-defined]


def test_what_it_decides_is_tested_without_a_model() -> None:
    """One command when an epoch begins."""
    assert play_first(at(Phase.EPOCH_BEGIN)) == Transition(commands=(Play(),))


class Counting(Dataset[Pair]):
    """A dataset whose state changes with each sample that is read; it says so itself."""

    def __init__(self) -> None:
        self.reads = 0

    def __len__(self) -> int:
        return 20

    def __getitem__(self, i: int) -> Pair:
        self.reads += 1
        generator = torch.Generator().manual_seed(1000 * self.reads + i)
        inputs = torch.randn(3, generator=generator)
        return inputs, inputs.sum(dim=0, keepdim=True)

    def state_dict(self) -> dict[str, int]:
        return {"reads": self.reads}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.reads = state["reads"]


class CountingStream(IterableDataset[Pair]):
    """The same as a stream, which is read again from the state at the beginning of its pass."""

    def __init__(self) -> None:
        self.inner = Counting()

    def __iter__(self) -> Iterator[Pair]:
        return (self.inner[i] for i in range(20))


@pytest.mark.parametrize("iteration", [2, 5, 7, 14])
@pytest.mark.parametrize("kind", [Counting, CountingStream])
@pytest.mark.filterwarnings("ignore:to continue in the middle of an epoch")
def test_dataset_whose_state_changes_within_a_pass_is_wound(kind: Any, iteration: int, tmp_path: Path) -> None:
    """From its state when the pass began, and is then in the saved one."""

    def counted() -> Supervised:
        return training(DataLoader(kind(), batch_size=4), policy())

    undisturbed = counted()
    run(start(undisturbed, epochs=4, seed=0))
    run(start(counted(), epochs=4, seed=0), [checkpoint(tmp_path), leave_after(iteration)])
    work = counted()

    run(restore(tmp_path, work), [checkpoint(tmp_path)])

    assert same_weights(work.model, undisturbed.model)
