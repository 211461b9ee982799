"""Going on from a file where the data is awkward: shared generators, workers that stay, samplers that draw early."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from fsm_train import (
    Callback,
    Flag,
    Phase,
    State,
    Supervised,
    Transition,
    WorkloadError,
    extend,
    on,
    restore,
    run,
    start,
)
from fsm_train import callbacks as c
from fsm_train.core.commands import SaveCheckpoint
from fsm_train.data import reproducible
from tests.checkpoints.comparison import differences, disturb, end_of
from tests.models import Noisy, diabetes, same_weights

DATA = TensorDataset(*(tensor[:160] for tensor in diabetes().tensors))  # five batches of 32
VALID = TensorDataset(*(tensor[160:200] for tensor in diabetes().tensors))
Left = tuple[Phase, int]
INSIDE, LAST, LATER = (Phase.BATCH_END, 3), (Phase.BATCH_END, 5), (Phase.BATCH_END, 7)
VALIDATING, VALIDATING_LATER, OVER = (Phase.VALID_BATCH_END, 5), (Phase.VALID_BATCH_END, 10), (Phase.EPOCH_END, 5)


def _work(train: Any, valid: Any = None) -> Supervised:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(10, 4), nn.BatchNorm1d(4), nn.Dropout(0.2), nn.Linear(4, 1))
    return Supervised(model, torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9), nn.MSELoss(), train, valid)


def _leave_at(left: Left) -> Callback[Any]:
    @on(left[0])
    def leave(state: State) -> Transition | None:
        return Transition(flags=Flag.SUSPEND) if state.iteration == left[1] else None

    return leave


def _differences(made: Callable[[], Supervised], folder: Path, left: Left) -> list[str]:
    """What differs between a training that was left there and restored, and an undisturbed one; and notes."""
    work = made()
    undisturbed = end_of(work, run(start(work, epochs=3, seed=0), [c.accumulate(2)]))
    suspended = run(start(made(), epochs=3, seed=0), [c.accumulate(2), c.checkpoint(folder), _leave_at(left)])
    assert suspended.phase is Phase.SUSPENDED
    disturb()
    work = made()
    restored = restore(folder, work)
    end = end_of(work, run(restored, [c.accumulate(2), c.checkpoint(folder)]))
    return [*differences((undisturbed, []), (end, [])), *restored.notes]


@pytest.mark.parametrize("left", [INSIDE, LAST, VALIDATING, VALIDATING_LATER, OVER, LATER])
def test_workers_that_stay(left: Left, tmp_path: Path) -> None:
    """A loader draws a seed for them when they begin: once in the training, however often it was left."""

    def made() -> Supervised:
        train = DataLoader(Noisy(DATA), 32, shuffle=True, num_workers=1, persistent_workers=True)
        valid = DataLoader(VALID, 12, shuffle=True, num_workers=1, persistent_workers=True)
        return _work(reproducible(train), valid)

    assert _differences(made, tmp_path, left) == []


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return (DATA[i] for i in range(len(DATA)))


@pytest.mark.filterwarnings("ignore:to continue in the middle of an epoch:RuntimeWarning")
@pytest.mark.parametrize("left", [INSIDE, LATER])
def test_workers_that_stay_and_read_a_stream(left: Left, tmp_path: Path) -> None:
    """The same where it can only be read from its beginning. What it may draw itself would be lost, which is said."""
    made = lambda: _work(DataLoader(Stream(), 32, num_workers=1, persistent_workers=True))

    (note,) = _differences(made, tmp_path, left)

    assert note.startswith("random augmentation in the loader's 1 workers")


class Drawing(IterableDataset[Any]):
    """Each sample is drawn from the generator of the process that reads."""

    def __iter__(self) -> Iterator[Any]:
        return (DATA[int(torch.randint(len(DATA), ()))] for _ in range(len(DATA)))


@pytest.mark.filterwarnings("ignore:to continue in the middle of an epoch:RuntimeWarning")
def test_a_stream_that_draws_while_it_is_read_is_said_to_be_inexact(tmp_path: Path) -> None:
    """What was drawn in between belonged to the training, and is not drawn again."""
    run(start(_work(DataLoader(Drawing(), 32)), epochs=2, seed=0), [c.checkpoint(tmp_path), _leave_at(INSIDE)])

    with pytest.warns(RuntimeWarning, match="draws random numbers while it is read.*is inexact"):
        final = run(restore(tmp_path, _work(DataLoader(Drawing(), 32))), [])

    assert (final.phase, final.iteration) == (Phase.DONE, 10)


def test_batches_in_no_order_are_said_to_be_inexact(tmp_path: Path) -> None:
    """Which worker is quicker is no part of a checkpoint."""
    made = lambda: _work(DataLoader(DATA, 32, num_workers=2, in_order=False))
    run(start(made(), epochs=1, seed=0), [c.checkpoint(tmp_path), _leave_at(INSIDE)])

    notes = restore(tmp_path, made()).notes

    assert [note for note in notes if "the order of the batches: the loader has in_order=False" in note]


def test_a_place_that_nothing_goes_on_from_is_refused(tmp_path: Path) -> None:
    """A command of one's own is told where a checkpoint can be written."""

    @on(Phase.LOSS_END)
    def inside_a_step(state: State) -> Transition:
        return Transition(commands=(SaveCheckpoint(str(tmp_path), "inside"),))

    with pytest.raises(WorkloadError, match="a checkpoint cannot be written at loss_end: a training resumes from "):
        run(start(_work(DataLoader(DATA, 32)), epochs=1), [inside_a_step])
    assert not list(tmp_path.iterdir())


class Opaque:
    """A part of one's own whose state is no plain value."""

    def state_dict(self) -> dict[Any, Any]:
        return {"inner": {(1, Path("here")): 1}}

    def load_state_dict(self, state: dict[Any, Any]) -> None:
        """It has none."""


def test_what_could_not_be_loaded_safely_is_not_written(tmp_path: Path) -> None:
    """It is said at the save where in the checkpoint it stands, and not at the restore that is needed."""
    work = _work(DataLoader(DATA, 32))
    work.extra = {"opaque": Opaque()}

    with pytest.raises(WorkloadError, match=r"a key in extra.opaque.inner\[1\] is a pathlib.*, which cannot be saved"):
        run(start(work, epochs=1), [c.checkpoint(tmp_path)])


def test_tensors_of_many_pieces_come_back(tmp_path: Path) -> None:
    """They are hashed piece by piece while they are written, and found as they were."""

    def made() -> Supervised:
        work = _work(DataLoader(DATA, 32))
        work.extra = {"table": table}
        return work

    table = nn.Embedding(1000, 300)
    wanted = table.weight.detach().clone()
    run(start(made(), epochs=1), [c.checkpoint(tmp_path)])
    nn.init.zeros_(table.weight)
    restore(tmp_path, made())

    assert torch.equal(table.weight, wanted)


def test_workers_that_stay_now_are_said_to_be_inexact(tmp_path: Path) -> None:
    """Also where they did then, and do not now: the numbers that are drawn are others."""
    numbers = "the random numbers of the epochs after this one"
    loaders = [DataLoader(DATA, 32, num_workers=1, persistent_workers=stay) for stay in (False, True)]
    for i, (then, now) in enumerate((loaders, loaders[::-1])):
        run(start(_work(then), epochs=1, seed=0), [c.checkpoint(tmp_path / str(i))])

        assert numbers in restore(tmp_path / str(i), _work(now)).notes[-1]


@pytest.mark.parametrize("left", [INSIDE, VALIDATING, OVER, LATER])
def test_a_generator_that_two_loaders_share(left: Left, tmp_path: Path) -> None:
    """It is one generator after going on, too: what the validation draws, the training does not draw again."""

    def made() -> Supervised:
        shared = torch.Generator().manual_seed(3)
        return _work(*(DataLoader(data, 32, shuffle=True, generator=shared) for data in (DATA, VALID)))

    assert _differences(made, tmp_path, left) == []


class DrawsEarly:
    """A sampler of batches that draws when a pass begins, and not when the first batch is asked for."""

    def __len__(self) -> int:
        return 5

    def __iter__(self) -> Iterator[list[int]]:
        return iter([batch.tolist() for batch in torch.randperm(160).split(32)])


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("left", [INSIDE, LATER])
def test_a_sampler_that_draws_when_a_pass_begins(left: Left, workers: int, tmp_path: Path) -> None:
    """Its draws are in the order of an undisturbed pass, among those of the loader."""
    made = lambda: _work(
        DataLoader(DATA, batch_sampler=DrawsEarly(), num_workers=workers, persistent_workers=workers > 0)  # type: ignore[arg-type]
    )
    notes = ["random augmentation"] if workers else []

    assert [what[:19] for what in _differences(made, tmp_path, left)] == notes


@pytest.mark.parametrize("left_at", [1023, 1024, 1025, 1100])
def test_more_batches_than_a_block_of_the_meters(left_at: int, tmp_path: Path) -> None:
    """The mean of an epoch is to the last bit that of all its batches, those before the seam included."""
    batches = [(inputs[None], target[None]) for inputs, target in (DATA[i % 160] for i in range(1100))]

    def made() -> Supervised:
        torch.manual_seed(0)
        model = nn.Linear(10, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
        metrics: Any = {"error": lambda output, target: (output - target).abs().mean()}
        return Supervised(model, optimizer, nn.MSELoss(), batches, metrics=metrics)

    undisturbed = run(start(made(), epochs=1, seed=0))
    run(start(made(), epochs=1, seed=0), [c.checkpoint(tmp_path), _leave_at((Phase.BATCH_END, left_at))])
    final = run(restore(tmp_path, made()), [c.checkpoint(tmp_path)])

    assert final.metrics == undisturbed.metrics
    assert set(final.metrics) == {"train_loss", "train_error"}


@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning")  # by torchdata itself
@pytest.mark.parametrize("loader", ["plain", "workers that stay", "stateful"])
def test_a_checkpoint_of_the_end_is_gone_on_with(loader: str, tmp_path: Path) -> None:
    """What is written at TRAIN_END goes on with more epochs as a training does that ended in the same process."""

    @on(Phase.TRAIN_END)
    def at_the_end(state: State) -> Transition:
        return Transition(commands=(SaveCheckpoint(str(tmp_path), "end"),))

    def made() -> Supervised:
        if loader == "stateful":
            from torchdata.stateful_dataloader import StatefulDataLoader

            return _work(StatefulDataLoader(DATA, 32, shuffle=True))
        stay = loader != "plain"
        return _work(DataLoader(DATA, 32, shuffle=True, num_workers=int(stay), persistent_workers=stay))

    work = made()
    final = run(start(work, epochs=2, seed=0), [c.accumulate(3), at_the_end])
    longer = run(extend(final, epochs=1), [c.accumulate(3)])
    disturb()
    other = made()
    state = restore(tmp_path, other)
    again = run(extend(state, epochs=1), [c.accumulate(3)])

    assert (state.phase, state.epoch) == (Phase.DONE, 2)
    assert (again.epoch, again.step, again.history) == (longer.epoch, longer.step, longer.history)
    assert same_weights(work.model, other.model)
