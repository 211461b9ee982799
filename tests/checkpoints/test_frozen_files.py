"""Tensors that do not change are written once: checkpoints link to them, each is complete, and nothing is believed."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fsm_train import (
    CheckpointError,
    Flag,
    NoCheckpointError,
    Phase,
    State,
    Supervised,
    Transition,
    WorkloadError,
    load_weights,
    on,
    restore,
    run,
    start,
)
from fsm_train.callbacks import checkpoint, ema, freeze, restore_best
from fsm_train.checkpoints import frozen_files
from fsm_train.checkpoints.history_files import is_frozen_file
from fsm_train.checkpoints.manifest import list_folder, manifest_of, verify_all
from fsm_train.supervised.weights_file import write_weights
from tests.checkpoints.processes import FRESH, die_at_call
from tests.diabetes_training import batches
from tests.how_long import THOROUGH
from tests.models import same_weights

DATA = batches(8, 8, 8, 8)
STUDENT = {"student.weight", "student.bias"}


class Distilled(nn.Module):
    """A student, and a frozen teacher with the statistics of batch norm."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.student = nn.Linear(10, 1)
        self.teacher = nn.Sequential(nn.Linear(10, 100), nn.BatchNorm1d(100), nn.Linear(100, 1))
        self.teacher.requires_grad_(False).eval()

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.student(inputs) + 0.1 * self.teacher(inputs)


def distillation(model: nn.Module | None = None, **settings: Any) -> Supervised:
    model = Distilled() if model is None else model
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.05, momentum=0.9)
    return Supervised(model, optimizer, nn.MSELoss(), DATA, DATA[:1], **settings)


def every_epoch(folder: Path, **settings: Any) -> Any:
    return checkpoint(folder, **{"last": 10, **settings})


def frozen_in(path: Path) -> dict[str, int]:
    """By name, the inode of each file of tensors that do not change."""
    return {file.name: file.stat().st_ino for file in path.iterdir() if is_frozen_file(file.name)}


def written(folder: Path) -> list[dict[str, int]]:
    """Of each checkpoint, the oldest first."""
    return [frozen_in(each.path) for each in reversed(list_folder(folder).checkpoints)]


@on(Phase.BATCH_END)
def leave(state: State) -> Transition | None:
    return Transition(flags=Flag.SUSPEND) if state.iteration == 14 else None


def test_they_are_written_twice_and_linked_from_then_on(tmp_path: Path) -> None:
    """In two files, so that one that is damaged does not cost the newest two checkpoints."""
    run(start(distillation(), epochs=6, seed=0), [every_epoch(tmp_path)])

    found = written(tmp_path)
    (name,) = {name for files in found for name in files}
    one, other = found[0][name], found[1][name]
    assert one != other
    assert [files[name] for files in found] == [one, other] * 3
    assert all(verification.trouble == "" for verification in verify_all(tmp_path))


def test_what_changes_is_in_each_checkpoint_alone(tmp_path: Path) -> None:
    """The student, the optimizer and all else: the other file has only what is frozen."""
    run(start(distillation(), epochs=1, seed=0), [every_epoch(tmp_path)])

    (path,) = [each.path for each in list_folder(tmp_path).checkpoints]
    (name,) = frozen_in(path)
    frozen = torch.load(path / name, weights_only=True)
    rest = torch.load(path / "tensors.pt", weights_only=True)
    values = rest["modules"]["model"]["values"]
    assert [name for name, value in values.items() if value is not None] == ["student.weight", "student.bias"]
    in_file = {place[3] for place, _ in frozen if place[:3] == ["modules", "model", "values"]}
    assert in_file == {name for name, value in values.items() if value is None}
    assert [*values] == [*Distilled().state_dict()]


def test_training_that_was_suspended_resumes_bit_for_bit(tmp_path: Path) -> None:
    """From a checkpoint that links to others, also after those are gone."""
    run(start(distillation(), epochs=6, seed=0), [every_epoch(tmp_path), leave])
    newest, *others = (each.path for each in list_folder(tmp_path).checkpoints)
    for path in others:
        shutil.rmtree(path)
    work, undisturbed = distillation(), distillation()
    for parameter in work.model.teacher.parameters():  # type: ignore[union-attr]
        parameter.data.zero_()

    run(restore(newest, work), [every_epoch(tmp_path)])

    run(start(undisturbed, epochs=6, seed=0))
    assert same_weights(work.model, undisturbed.model)
    assert all(map(torch.equal, work.model.buffers(), undisturbed.model.buffers()))


def test_weights_are_whole(tmp_path: Path) -> None:
    """load_weights and the file for others have what is frozen too, in the order of the model."""
    work = distillation()
    run(start(work, epochs=3, seed=0), [every_epoch(tmp_path, monitor="valid_loss")])
    model = Distilled()
    for parameter in model.parameters():
        parameter.data.zero_()

    load_weights(tmp_path, model, which="last")
    write_weights(tmp_path, tmp_path / "weights.pt", "last")

    assert same_weights(model, work.model)
    of_file = torch.load(tmp_path / "weights.pt", weights_only=True)
    assert [*of_file] == [*model.state_dict()]
    assert all(torch.equal(value, of_file[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("how", ["in place", "as data", "through memory"])
def test_what_was_changed_is_written_anew(how: str, tmp_path: Path) -> None:
    """Also where torch does not count the change; afterwards it is with all else that changes."""
    work = distillation()
    weight = work.model.teacher[0].weight  # type: ignore[index, union-attr]

    @on(Phase.EPOCH_BEGIN)
    def change(state: State) -> None:
        if state.epoch == 2:
            if how == "in place":
                weight.add_(1.0)
            elif how == "as data":
                weight.data.add_(1.0)
            else:
                weight.numpy()[:] += 1.0

    run(start(work, epochs=5, seed=0), [every_epoch(tmp_path), change])

    found = written(tmp_path)
    (before,), (after,) = {*found[0], *found[1]}, {*found[2], *found[3], *found[4]}
    assert before != after
    for epoch, each in enumerate(reversed(list_folder(tmp_path).checkpoints), start=1):
        model = Distilled()
        load_weights(each.path, model, which="last")
        assert torch.equal(model.teacher[0].weight, weight) is (epoch >= 3)  # type: ignore[arg-type]


def test_what_thaws_is_no_longer_frozen(tmp_path: Path) -> None:
    """A part that is frozen until an epoch is written with what is trained from then on."""

    def thawing() -> Supervised:
        torch.manual_seed(0)
        return distillation(nn.Sequential(nn.Linear(10, 200), nn.ReLU(), nn.Linear(200, 1)))

    callbacks = [freeze("0.*", until_epoch=2), every_epoch(tmp_path)]
    run(start(thawing(), epochs=4, seed=0), [*callbacks, leave])
    work, undisturbed = thawing(), thawing()

    run(restore(tmp_path, work), callbacks)

    run(start(undisturbed, epochs=4, seed=0), callbacks[:1])
    assert [len(files) for files in written(tmp_path)[:3]] == [1, 1, 0]
    assert same_weights(work.model, undisturbed.model)


def test_averages_and_copies_of_weights_have_theirs_there_too(tmp_path: Path) -> None:
    """A fine-tuned model is mostly frozen, and so are its average and its best weights."""
    work, undisturbed = distillation(), distillation()
    callbacks = [ema(0.9), restore_best("valid_loss"), every_epoch(tmp_path)]
    run(start(distillation(), epochs=6, seed=0), [*callbacks, leave])

    newest = list_folder(tmp_path).checkpoints[0].path
    (name,) = frozen_in(newest)
    rest = torch.load(newest / "tensors.pt", weights_only=True)
    left = {
        "average": rest["averages"]["ema"]["average"]["parameters"],
        "kept": rest["weights"]["restore_best"][0]["model"]["values"],
        "kept average": rest["weights"]["restore_best"][1]["ema"]["parameters"],
    }
    for kind, values in left.items():
        assert {n.removeprefix("model.") for n, v in values.items() if v is not None} == STUDENT, kind
    assert written(tmp_path)[2] == {name: written(tmp_path)[0][name]}
    run(restore(tmp_path, work), callbacks)
    run(start(undisturbed, epochs=6, seed=0), callbacks[:2])
    assert same_weights(work.model, undisturbed.model)
    assert all(map(torch.equal, work.model.buffers(), undisturbed.model.buffers()))


def test_teacher_in_the_loss_is_written_once_too(tmp_path: Path) -> None:
    """A reference model that a loss holds is a part of what is saved."""
    teacher = Distilled().teacher

    def distance(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return ((output - target) ** 2).mean() + teacher[2].weight.mean()  # type: ignore[operator, union-attr]

    model = nn.Linear(10, 1)
    work = Supervised(model, torch.optim.SGD(model.parameters(), lr=0.1), distance, DATA)
    run(start(work, epochs=3, seed=0), [every_epoch(tmp_path)])

    assert [len(files) for files in written(tmp_path)] == [1, 1, 1]
    assert written(tmp_path)[0] == written(tmp_path)[2]


def test_little_is_not_worth_a_file(tmp_path: Path) -> None:
    """And then the checkpoint is one that earlier versions read."""
    model = nn.Sequential(nn.Linear(10, 4), nn.Linear(4, 1).requires_grad_(False))
    run(start(distillation(model), epochs=1), [every_epoch(tmp_path)])

    assert written(tmp_path) == [{}]
    assert '"format": 2' in (list_folder(tmp_path).checkpoints[0].path / "manifest").read_text()


def test_where_links_do_not_work_each_has_a_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on some network file systems."""

    def refuse(*_: object) -> None:
        raise OSError("links are not supported")

    monkeypatch.setattr(os, "link", refuse)
    run(start(distillation(), epochs=4, seed=0), [every_epoch(tmp_path)])

    found = written(tmp_path)
    assert len({inode for files in found for inode in files.values()}) == 4
    assert all(verification.trouble == "" for verification in verify_all(tmp_path))


def test_a_damaged_file_costs_one_of_the_newest_two(tmp_path: Path) -> None:
    """It is found, whichever checkpoint is read, and the training goes on from the other."""
    run(start(distillation(), epochs=5, seed=0), [every_epoch(tmp_path)])
    newest, second, *_ = (each.path for each in list_folder(tmp_path).checkpoints)
    (name,) = frozen_in(newest)
    content = bytearray((newest / name).read_bytes())
    content[len(content) // 2] ^= 1
    with (newest / name).open("r+b") as file:
        file.write(content)

    damaged = [each.path for each in verify_all(tmp_path) if each.trouble]
    with pytest.warns(RuntimeWarning, match=f"{name} is damaged: it does not match its checksum.*continuing from"):
        state = restore(tmp_path, distillation())

    assert newest in damaged
    assert second not in damaged
    assert state.epoch == 4


def test_file_that_is_gone_or_of_another_checkpoint_is_refused(tmp_path: Path) -> None:
    """A checkpoint without a part of it is none."""
    run(start(distillation(), epochs=1, seed=0), [every_epoch(tmp_path)])
    (path,) = [each.path for each in list_folder(tmp_path).checkpoints]
    (name,) = frozen_in(path)
    (path / name).unlink()

    with pytest.raises(CheckpointError, match=f"{name} is no file of its own"):
        restore(path, distillation())


def test_parts_and_file_that_do_not_belong_together_are_refused() -> None:
    """What a forged manifest may put together."""
    tensor = torch.zeros(1)
    places: list[list[Any]] = [["modules", "a"], ["modules", "c", "d"], ["other", "b"], [0], []]
    for place in places:
        with pytest.raises((KeyError, TypeError, ValueError)):
            frozen_files.put_frozen_into({"modules": {"a": tensor, "b": None}}, [(place, tensor)])


def test_full_disk_leaves_the_older_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A save that fails in the shared file is a warning, and the next one is whole."""
    tries = {"left": 1}
    original = frozen_files.write_tensors

    def full(*args: Any) -> None:
        if tries["left"]:
            tries["left"] -= 1
            raise OSError(28, "No space left on device")
        original(*args)

    work = distillation()
    monkeypatch.setattr(frozen_files, "write_tensors", full)
    with pytest.warns(RuntimeWarning, match="No space left on device"):
        run(start(work, epochs=4, seed=0), [every_epoch(tmp_path)])

    assert [each.save_point.step for each in list_folder(tmp_path).checkpoints] == [16, 12, 8]
    assert all(verification.trouble == "" for verification in verify_all(tmp_path))
    assert not [*tmp_path.glob(".writing-*")]
    again = distillation()
    restore(tmp_path, again)
    assert same_weights(again.model, work.model)


def test_lost_places_are_refused_before_anything_changes(tmp_path: Path) -> None:
    """A manifest without the shared file, made to fit: the model is as it was."""
    run(start(distillation(), epochs=1, seed=0), [every_epoch(tmp_path)])
    work = distillation()
    before = Distilled()
    checkpoint_there = manifest_of(list_folder(tmp_path).checkpoints[0].path)
    parts = torch.load(checkpoint_there.path / "tensors.pt", weights_only=True)
    state = restore(tmp_path, distillation())

    with pytest.raises((CheckpointError, WorkloadError)):
        work.restore_parts(parts, state)

    assert same_weights(work.model, before)


def _train(folder: str, die_at: int, said: Any) -> None:
    """Train four epochs, with a checkpoint each, and be gone at this call of the file system."""
    calls = die_at_call(die_at, "fsync", "link", "rename", "mkdir", "rmdir", "unlink")
    run(start(distillation(), epochs=4, seed=0), [checkpoint(folder)])
    said.put(calls)


def _killed_at(folder: Path, die_at: int, said: Any) -> int | None:
    process = FRESH.Process(target=_train, args=(str(folder), die_at, said))
    process.start()
    process.join()
    return process.exitcode


@pytest.mark.long
def test_a_kill_at_any_call_leaves_what_can_be_resumed(tmp_path: Path) -> None:
    """At each write, flush, link, rename and removal: the training ends with the weights of an undisturbed one."""
    undisturbed, said = distillation(), FRESH.SimpleQueue()
    run(start(undisturbed, epochs=4, seed=0))
    assert _killed_at(tmp_path / "0", 0, said) == 0
    calls = said.get()
    assert calls.count("link") == 2
    places = [i for i, name in enumerate(calls, 1) if name != "write"]
    links = [i for i, name in enumerate(calls, 1) if name == "link"]
    for die_at in places if THOROUGH else (*links, *places[5 :: len(places) // 4]):
        folder = tmp_path / str(die_at)
        assert _killed_at(folder, die_at, said) == 9
        work = distillation()
        try:
            state = restore(folder, work)
        except NoCheckpointError:
            state = start(work, epochs=4, seed=0)
        run(state, [checkpoint(folder)])
        assert same_weights(work.model, undisturbed.model), die_at
        assert all(verification.trouble == "" for verification in verify_all(folder)), die_at
        unfinished = [path for path in folder.iterdir() if path.name.startswith(".writing-")]
        assert unfinished == [] or state.epoch == 4, die_at  # the next save tidies up, if there is one
