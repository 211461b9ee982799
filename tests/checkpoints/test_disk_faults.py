"""One call of the file system fails, each in turn, in each kind of training that saves: it goes on, and says so."""

from __future__ import annotations

import errno
import os
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from torch import nn

from fsm_train import (
    CheckpointError,
    Flag,
    LogError,
    Phase,
    State,
    Supervised,
    Transition,
    extend,
    on,
    replay,
    restore,
    run,
    start,
)
from fsm_train.callbacks import checkpoint
from fsm_train.checkpoints import history_files
from fsm_train.checkpoints.manifest import list_folder
from fsm_train.core.callback import Callback
from tests.checkpoints.failing_training import BrokenError
from tests.checkpoints.faulty_disk import CHANGES, LOOKS, FaultyDisk
from tests.how_long import step_through

BROKEN = OSError(errno.EIO, os.strerror(errno.EIO))
EARLIER = tuple({"train_loss": i / 7} for i in range(20))  # epochs of a long history


def counting() -> Supervised:
    """A model with one weight, which counts the steps: an epoch is two."""
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)

    def loss(output: torch.Tensor, of_validation: torch.Tensor) -> torch.Tensor:
        return torch.where(of_validation > 0, output, -output).mean()

    one, valid = (torch.ones(1, 1), torch.zeros(1, 1)), (torch.ones(1, 1), torch.ones(1, 1))
    return Supervised(model, torch.optim.SGD(model.parameters(), lr=1.0), loss, [one, one], [valid])


def steps(work: Supervised) -> int:
    return int(work.model.weight.item())  # type: ignore[operator, union-attr]


@on(Phase.BATCH_END)
def leave(state: State) -> Transition | None:
    """Suspends in the middle of the third epoch."""
    return Transition(flags=Flag.SUSPEND) if state.step == 5 else None


@on(Phase.LOSS_END)
def fail(state: State) -> None:
    """Fails in the middle of the third epoch."""
    if state.step == 5:
        raise BrokenError


@attrs.frozen
class Training:
    """A training of three epochs or more that saves.

    Attributes:
        settings: of `checkpoint`.
        others: further callbacks.
        history: the epochs before.
        resumes: whether the checkpoints of its first epoch are there.
    """

    settings: dict[str, Any] = attrs.field(factory=dict)
    others: tuple[Callback[Any], ...] = ()
    history: tuple[dict[str, float], ...] = ()
    resumes: bool = False

    def callbacks(self, folder: Path) -> list[Callback[Any]]:
        return [checkpoint(folder, **self.settings), *self.others]

    def prepare(self, folder: Path) -> None:
        if self.resumes:
            run(start(counting(), epochs=1, seed=0), [checkpoint(folder)])

    def train(self, folder: Path, work: Supervised) -> State | None:
        """The state at the end; None if it failed, as it was to."""
        if self.resumes:
            state = extend(restore(folder, work), epochs=2)
        elif self.history:
            state = extend(attrs.evolve(run(start(work, epochs=1, seed=0)), history=self.history), epochs=3)
        else:
            state = start(work, epochs=3, seed=0)
        try:
            state = run(state, self.callbacks(folder), log=folder / "run.jsonl")
            if state.phase is Phase.SUSPENDED:
                state = run(state, self.callbacks(folder), log=folder / "run.jsonl")
        except Exception as error:
            if isinstance(error.__cause__ or error, BrokenError):
                return None
            raise
        return state


TRAININGS = {
    "the last epochs": Training({"keep": 2}),
    "the best": Training({"monitor": "valid_loss", "mode": "max", "keep": 1}),
    "the best, measured worse and worse": Training({"monitor": "valid_loss", "mode": "min", "keep": 1}),
    "every step": Training({"every_steps": 1, "keep": 1}),
    "a failure": Training({"on_failure": True}, (fail,)),
    "a suspension": Training({"keep": 2}, (leave,)),
    "a long history": Training({"keep": 3}, history=EARLIER),
    "resumed": Training({"keep": 2}, resumes=True),
}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".jsonl")


def saved_steps(folder: Path) -> list[int]:
    """The optimizer steps of the checkpoints, the newest first."""
    return [found.save_point.step for found in list_folder(folder).checkpoints]


@pytest.mark.long
@pytest.mark.parametrize("kind", TRAININGS)
def test_whatever_fails_once_the_training_goes_on(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each look, open, write, flush, rename and removal of a training fails, in turn.

    Its steps are those of the undisturbed training, and so is its error; one of the newest two checkpoints restores;
    what is missing is in the notes, or in a warning if there is no state, and in the log, which replays; after
    another save nothing is left over. Only what is found before the first step is an error.
    """
    for name, value in (("_EPOCHS", 2), ("_GROWTH", 2), ("_LARGEST", 8)):
        monkeypatch.setattr(history_files, name, value)
    training = TRAININGS[kind]
    whole = _with_fault(training, tmp_path / "0", 0, monkeypatch)
    assert {"mkdir", "rename", "fsync", "write", "open w+b", "stat", "listdir", "preadv"} <= {*whole.calls}
    assert (whole.last is None) is (kind == "a failure")
    said = errors = 0
    tried = range(1, len(whole.calls) + 1, step_through(few=max(23, len(whole.calls) // 12)))
    for fail_at in tried:
        one = _with_fault(training, tmp_path / str(fail_at), fail_at, monkeypatch)
        _check_outcome(one, whole, training, f"{fail_at}: {whole.calls[fail_at - 1]}")
        errors += isinstance(one.last, Exception)
        said += bool(one.unsaved)
        shutil.rmtree(one.folder, ignore_errors=True)  # which may not have been made
    assert said > len(tried) / 4
    assert errors < len(tried) / 2


@attrs.frozen
class Outcome:
    """What became of a training.

    Attributes:
        folder: of its checkpoints.
        calls: the calls of the file system.
        work: the workload.
        last: the last state; None if it failed, as it was to; or what was raised instead.
        warned: the warnings.
    """

    folder: Path
    calls: list[str]
    work: Supervised
    last: State | Exception | None
    warned: list[str]

    @property
    def unsaved(self) -> list[str]:
        """What is said of saves that failed."""
        notes = self.last.notes if isinstance(self.last, State) else self.warned
        return [note for note in notes if note.startswith("the checkpoint ")]


def _with_fault(training: Training, folder: Path, fail_at: int, monkeypatch: pytest.MonkeyPatch) -> Outcome:
    training.prepare(folder)
    work = counting()
    with monkeypatch.context() as patched, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        disk = FaultyDisk(folder, BROKEN, patched, {fail_at})
        try:
            last: Any = training.train(folder, work)
        except Exception as error:
            last = error
    return Outcome(folder, disk.calls, work, last, [str(warning.message) for warning in caught])


def _check_outcome(one: Outcome, whole: Outcome, training: Training, where: str) -> None:
    """Compare a training in which a call failed with the undisturbed one."""
    if isinstance(one.last, Exception):
        assert isinstance(one.last, CheckpointError | LogError), where
        begun = 2 * bool(training.history or (training.resumes and steps(one.work)))  # 0 if it could not be restored
        assert steps(one.work) == (5 if leave in training.others and steps(one.work) else begun), where
        return
    log, folder, before = one.folder / "run.jsonl", one.folder, saved_steps(whole.folder)
    assert steps(one.work) == steps(whole.work), where
    told = bool(one.unsaved) and "-failed could not" not in one.unsaved[0]  # nobody is consulted after a TEARDOWN
    assert ('"unsaved:checkpoint":' in log.read_text()) is told, where
    if not one.unsaved:
        assert saved_steps(folder)[: len(before)] == before, where
        assert len(names(folder)) <= len(names(whole.folder)) + 1, where  # what could not be removed at the end
    if one.last is not None:
        assert {name for name, _ in one.last.memory["checkpoint"].files} <= {*names(folder)}, where  # type: ignore[attr-defined]
    again = counting()
    with warnings.catch_warnings(action="ignore"):
        state = restore(folder, again)
        assert state.step == steps(again), where
        assert state.step in before[:2] or one.unsaved, where
        assert steps(whole.work) - state.step <= 4, where
        run(extend(state, epochs=4), [checkpoint(folder, **training.settings)], log=log)
    assert not [name for name in names(folder) if name.startswith(".")], where
    assert len(names(folder)) <= 4, where


# ------------------------------------------------------------------ a disk that refuses for a while

FULL = ("mkdir", "open", "write", "fsync", "link")


def _does(**epochs: Callable[[], object]) -> Callback[Any]:
    """Does something when epochs begin, which are given as epoch_1=…"""

    @on(Phase.EPOCH_BEGIN)
    def meanwhile(state: State) -> None:
        epochs.get(f"epoch_{state.epoch + 1}", lambda: None)()

    return meanwhile


@pytest.mark.parametrize(
    ("number", "refused"),
    [(errno.EROFS, CHANGES), (errno.EACCES, CHANGES), (errno.ENOSPC, FULL), (errno.EDQUOT, FULL), (errno.EIO, LOOKS)],
    ids=["read-only", "no permission", "full", "over quota", "unreadable"],
)
@pytest.mark.parametrize(
    "settings",
    [{"keep": 2}, {"monitor": "valid_loss", "mode": "max"}, {"every_steps": 1}],
    ids=["last", "best", "steps"],
)
def test_a_disk_that_refuses_for_a_while(
    number: int, refused: tuple[str, ...], settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each save meanwhile is a note and a warning, and what was there stays and restores; then saves work again."""
    folder, log, before = tmp_path / "runs", tmp_path / "run.jsonl", list[str]()
    work, callbacks = counting(), lambda *others: [checkpoint(folder, **settings), *others]
    with monkeypatch.context() as patched, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        disk = FaultyDisk(folder, OSError(number, os.strerror(number)), patched)

        def refuse() -> None:
            before.extend(names(folder))
            disk.refuses = refused

        def allow() -> None:
            disk.refuses = ()
            assert [name for name in names(folder) if name != ".lock"] == [n for n in before if n != ".lock"]
            again = counting()
            state = restore(folder, again)
            assert state.step == steps(again) == 4

        final = run(start(work, epochs=7), callbacks(_does(epoch_3=refuse, epoch_5=allow)), log=log)

    assert (final.phase, steps(work)) == (Phase.DONE, 14)
    failed = 6 if "every_steps" in settings else 2
    unsaved = [str(warning.message) for warning in caught if "could not be written" in str(warning.message)]
    assert len(unsaved) == len(final.notes) == failed
    assert all(os.strerror(number) in note for note in final.notes)
    assert saved_steps(folder)[0] == 14
    kept = final.memory["checkpoint"].files  # type: ignore[attr-defined]
    assert names(folder) == sorted(name for name, _ in kept)
    assert replay(log, callbacks(_does())).ok


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.ENOSPC])
def test_a_folder_that_refuses_from_the_first_on_is_an_error_before_the_first_batch(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the reason, whether it can be made or not."""
    (tmp_path / "there").mkdir()
    for folder in (tmp_path / "there", tmp_path / "new"):
        work = counting()
        with monkeypatch.context() as patched:
            FaultyDisk(tmp_path, OSError(number, os.strerror(number)), patched).refuses = CHANGES
            with pytest.raises(CheckpointError, match=f"no checkpoint can be written to .*{os.strerror(number)}"):
                run(start(work, epochs=1), [checkpoint(folder)])
        assert steps(work) == 0
    assert names(tmp_path) == ["there"]
