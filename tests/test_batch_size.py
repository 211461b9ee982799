"""`find_batch_size`: the largest that memory has room for, on a device that is made up."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from fsm_train import Supervised, WorkloadError, find_batch_size
from fsm_train.batch_size import BatchSizeFound, Trial, next_size
from fsm_train.callbacks import ema
from tests.diabetes_training import workload

DATA = TensorDataset(torch.zeros(500, 3), torch.zeros(500, 1))


class Device:
    """Trains with so much room, in samples; `made` are the batch sizes that were asked for."""

    def __init__(self, room: int, *, drop_last: bool = False) -> None:
        self.room, self.drop_last = room, drop_last
        self.made: list[int] = []

    def __call__(self, size: int) -> Supervised:
        self.made.append(size)
        model = nn.Linear(3, 1)

        def loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
            if len(output) > self.room:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return (output - target).square().mean()

        valid = DataLoader(DATA, batch_size=400)
        loader = DataLoader(DATA, batch_size=size, shuffle=True, drop_last=self.drop_last)
        return Supervised(model, torch.optim.Adam(model.parameters()), loss, loader, valid)


@pytest.mark.parametrize("room", [1, 3, 8, 100, 255])
def test_largest_that_fits_is_found(room: int) -> None:
    """To a sixteenth, and never one that does not fit; validations, which take less, are left out."""
    found = find_batch_size(device := Device(room))
    assert room - max(0, room // 16) <= found.batch_size <= room
    assert found.trials == tuple(Trial(size, size <= room) for size in device.made)
    assert len(device.made) <= 2 * room.bit_length() + 2
    assert found.because.startswith("there is no room for")


def test_it_ends_with_the_data_or_the_largest_to_try() -> None:
    """A batch of all samples is the largest that there is."""
    found = find_batch_size(Device(10_000), low=64)
    assert (found.batch_size, found.because) == (500, "the data have no larger batch")
    assert [trial.batch_size for trial in found.trials] == [64, 128, 256, 500]

    found = find_batch_size(device := Device(10_000), low=10, high=70)
    assert (found.batch_size, device.made) == (70, [10, 20, 40, 70])
    assert found.because == "it is the largest to try (high=…)"


@pytest.mark.parametrize(("room", "found"), [(10_000, 496), (450, 448), (300, 288)])
def test_data_that_drop_the_last_batch_are_tried_to_their_end(room: int, found: int) -> None:
    """One batch alone does not say how many samples are left out; of a size without a batch nothing is trained."""
    device = Device(room, drop_last=True)
    result = find_batch_size(device, low=64)

    assert result.batch_size == found
    assert [trial.batch_size for trial in result.trials] == device.made
    assert [trial.has_batch for trial in result.trials] == [size <= 500 for size in device.made]
    assert device.made[:4] == [64, 128, 256, 512]
    assert result.because == (
        "the data have no batch of 512" if room > 500 else f"there is no room for {device.made[-1]}"
    )
    assert "512 is more than the data have" in repr(result)


def test_data_without_a_batch_of_the_first_size_are_refused() -> None:
    """In the words of the workload: it is not memory that is missing."""
    with pytest.raises(WorkloadError, match="train has no batches: .* smaller than one batch with drop_last=True"):
        find_batch_size(Device(10_000, drop_last=True), low=501)


def test_it_leaves_no_trace() -> None:
    """The generators are as before, whatever the trials drew; also where one of them raises."""
    torch.manual_seed(5)
    before = torch.get_rng_state()
    find_batch_size(Device(20), callbacks=[ema(0.9)])
    assert torch.equal(torch.get_rng_state(), before)

    with pytest.raises(ZeroDivisionError):
        find_batch_size(lambda size: Device(20 // (4 - size))(size))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("given", [4, 32])
def test_batches_of_another_size_are_refused(given: int) -> None:
    """What is found would be that of no batch that was tried."""
    with pytest.raises(WorkloadError, match=f"asked for batches of 16 samples, and they have {given}"):
        find_batch_size(lambda size: Device(10_000)(given), low=16)


def test_no_room_at_all_is_said() -> None:
    """And the size that was tried."""
    with pytest.raises(WorkloadError, match="no room for 16 samples"):
        find_batch_size(Device(8), low=16)


@pytest.mark.parametrize(
    ("arguments", "settings", "error", "sentence"),
    [
        ((3,), {}, TypeError, "a function of a batch size"),
        ((workload(),), {}, TypeError, r"was given a Supervised: write def make_work\(batch_size\)"),
        ((Supervised,), {}, TypeError, "was given the class Supervised"),
        ((lambda: None,), {}, WorkloadError, r"make_work is called with \(batch_size\)"),
        ((lambda size: None,), {}, TypeError, "make_work returned None"),
        ((Device(8),), {"low": 0}, ValueError, "low=0"),
        ((Device(8),), {"low": 8, "high": 4}, ValueError, "high=4"),
        ((Device(8),), {"steps": 0}, ValueError, "steps=0"),
    ],
)
def test_what_makes_no_sense_is_refused(arguments: Any, settings: Any, error: type[Exception], sentence: str) -> None:
    """With what to write."""
    with pytest.raises(error, match=sentence):
        find_batch_size(*arguments, **settings)


def test_it_shows_what_was_tried() -> None:
    """In a terminal and in a notebook."""
    found = BatchSizeFound(8, (Trial(8, True, 3 * 2**20), Trial(16, False)), "there is no room for 16")
    assert "8 (3 MiB), 16 does not fit" in repr(found)
    assert "<table" in found._repr_html_()


@pytest.mark.parametrize("room", range(1, 200, 13))
def test_search_ends_for_each_room(room: int) -> None:
    """Each step makes the interval smaller."""
    trials: list[Trial] = []
    size: int | None = 1
    while size is not None:
        assert size not in {trial.batch_size for trial in trials}
        trials.append(Trial(size, size <= room))
        size = next_size(trials, 10_000)
    assert len(trials) < 20
