"""Checkpoints that are written beside the training: of copies, with what is promised of those that are not."""

from __future__ import annotations

import threading
import warnings
from collections import Counter, OrderedDict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

from fsm_train import Phase, State, Transition, WorkloadError, on, restore, run, start
from fsm_train.callbacks import checkpoint
from fsm_train.checkpoints import beside, folder
from fsm_train.checkpoints.api import read
from fsm_train.checkpoints.manifest import list_folder, manifest_of, verify_all
from fsm_train.checkpoints.shard_writing import NO_SHARES
from fsm_train.core.commands import SaveCheckpoint
from fsm_train.core.facts import UNDER_WAY
from fsm_train.supervised.told_beside import ToldBeside
from fsm_train.testing import at, drive
from fsm_train.worlds.rows import Topic
from tests.checkpoints.comparison import differences, resume, train_through
from tests.checkpoints.ranks_training import RankSpec
from tests.diabetes_training import batches, net, weights_of, workload

FACT = "unsaved:checkpoint"


class Gate:
    """Writing waits for it, so that it is known what a training does meanwhile."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, error: Exception | None = None) -> None:
        self.open, self.threads = threading.Event(), list[str]()
        self._error, self._write = error, folder.write_files
        monkeypatch.setattr(folder, "write_files", self)

    def __call__(self, *given: Any) -> None:
        self.threads.append(threading.current_thread().name)
        assert self.open.wait(180)
        if self._error is not None:
            raise self._error
        self._write(*given)


def tied() -> nn.Module:
    """Two names for one parameter."""
    model = net()
    model[3].also = model[3].weight
    return model


def test_training_goes_on_while_what_there_was_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The weights are those of the moment, and what had one memory has one; until its end the fact is in between."""
    gate, seen = Gate(monkeypatch), list[Any]()

    @on(Phase.BATCH_END, needs={FACT})
    def saves(state: State) -> Transition | None:
        seen.append(state.facts.get(FACT))
        if state.iteration == 4:
            gate.open.set()
        command = SaveCheckpoint(str(tmp_path), "two", beside=True)
        return Transition(commands=(command,)) if state.iteration == 2 else None

    @on(Phase.BATCH_END)
    def looks(state: State) -> None:
        if state.iteration == 2:
            then.append(weights_of(work.model))

    then: list[torch.Tensor] = []
    work = workload(batches(8, 8, 8, 8, 8), model=tied())
    run(start(work, epochs=1), [saves, looks])

    assert seen[:4] == [None, None, UNDER_WAY, UNDER_WAY]
    assert gate.threads == ["fsm_train checkpoint"]
    again = workload(batches(8), model=tied())
    assert restore(tmp_path, again).iteration == 2
    assert torch.equal(weights_of(again.model), then[0])
    values = read(manifest_of(tmp_path / "two"))[1]["modules"]["model"]["values"]
    assert values["3.weight"].data_ptr() == values["3.also"].data_ptr()


def test_copies_are_equal_and_share_nothing_with_what_goes_on() -> None:
    """Of each kind of value that a checkpoint holds; views of one memory are views of one copy."""
    base = torch.arange(6.0)
    parts = {
        "views": [base, base[2:4], base.view(2, 3).t()],
        "expanded": torch.ones(1).expand(1000),
        "sparse": torch.eye(2).to_sparse(),
        "conjugate": torch.tensor([1j]).conj(),
        "counter": Counter(a=2),
        "ordered": OrderedDict(x=(torch.ones(2), "text")),
        "plain": [1, None, {2}],
    }
    made, shares = beside.copies(parts, NO_SHARES)()
    assert not list(tensor_differences(parts, made))
    assert not shares.tensors
    assert made["expanded"].untyped_storage().nbytes() == 4
    made["views"][1].zero_()
    assert made["views"][0][2] == made["views"][2][2, 0] == 0.0
    assert base[2] == 2.0


def tensor_differences(one: Any, other: Any) -> Iterator[str]:
    assert type(one) is type(other)
    if isinstance(one, torch.Tensor):
        if not torch.equal(one.to_dense(), other.to_dense()):
            yield str(one)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            yield from tensor_differences(one[key], other[key])
    elif isinstance(one, (list, tuple)):
        for pair in zip(one, other, strict=True):
            yield from tensor_differences(*pair)
    elif one != other:
        yield str(one)


@pytest.mark.parametrize("every", [{"every_epochs": 1}, {"every_steps": 1}])
def test_each_checkpoint_is_the_one_that_is_written_at_once(every: dict[str, int], tmp_path: Path) -> None:
    """It leads to the end of the undisturbed training, to the last bit; a training waits for the last one."""
    spec = RankSpec(0, 1, parallel=None, length=32)
    expected = train_through(spec)
    work, callbacks = spec.make()
    saves = checkpoint(tmp_path, beside=True, keep=9, last=9, **every)
    run(start(work, epochs=spec.epochs, seed=0), [*callbacks, saves])
    found = list_folder(tmp_path).checkpoints
    assert found[0].path.name == "epoch-00002"
    assert [text for each in found for text in differences(expected, resume(spec, each.path))] == []


@pytest.mark.parametrize("trouble", ["disk", "memory", "no thread"])
def test_what_fails_beside_the_training_is_a_warning_and_a_note(
    trouble: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The callback learns of it, and what is to be there is there. Where there is no thread, it is written at once."""
    refuses = {"on": False}

    def fails(*given: Any) -> Any:
        if refuses["on"] and (trouble != "no thread" or given[0].name == beside.NAME):
            raise error
        return original(*given)

    error = {"disk": OSError(28, "full"), "memory": MemoryError(), "no thread": RuntimeError()}[trouble]
    where: Any = {"disk": folder, "memory": beside, "no thread": threading.Thread}[trouble]
    name = {"disk": "write_files", "memory": "_copied", "no thread": "start"}[trouble]
    original = getattr(where, name)
    monkeypatch.setattr(where, name, fails)

    @on(Phase.EPOCH_END, order=-1)
    def refuse(state: State) -> None:
        refuses["on"] = state.epoch == 2

    work = workload(batches(8))
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always", RuntimeWarning)
        final = run(start(work, epochs=3), [checkpoint(tmp_path, beside=True, keep=2), refuse])
    names = sorted(path.name for path in tmp_path.iterdir() if path.name[0] != ".")
    if trouble == "no thread":
        assert (names, final.notes) == (["epoch-00002", "epoch-00003"], ())
        return
    assert names == ["epoch-00001", "epoch-00003"]
    (note,) = final.notes
    assert f"the checkpoint epoch-00002 could not be written to {tmp_path}: " in note
    assert [str(each.message).partition(";")[0] for each in warned] == [note]
    assert [file for file, _ in final.memory["checkpoint"].files] == names
    assert not any(each.trouble for each in verify_all(tmp_path))


def test_save_that_is_due_meanwhile_waits_for_the_end_of_the_last() -> None:
    """At BATCH_END; at the end of an epoch the fact is never in between."""
    callback = checkpoint("runs", every_steps=1, beside=True)
    facts: list[dict[str, float]] = [{}, {FACT: UNDER_WAY}, {FACT: UNDER_WAY}, {}, {FACT: 1.0}]
    states = [at(Phase.BATCH_END, step=i + 1, iteration=i + 1, facts=given) for i, given in enumerate(facts)]
    asked = [[command.name for command in answer.commands] for answer in drive(callback, states)]
    assert asked == [["step-00000001"], [], [], ["step-00000004"], ["step-00000005"]]


# ------------------------------------------------------------------------------------------- by a store


NEEDS_STORE = pytest.mark.skipif(not dist.is_available(), reason="this torch has no torch.distributed")


class Rank:
    """Ranks as the main thread of one sees them."""

    def __init__(self, rank: int, ranks: int) -> None:
        self.rank, self.ranks, self.lost = rank, ranks, False

    def own_parts(self, parts: dict[str, Any]) -> dict[str, Any]:
        return {"of": self.rank, **parts}


@NEEDS_STORE
def test_ranks_tell_each_other_by_a_store() -> None:
    """What each gave, in the order of ranks; what is empty is None. Names of before do not stay."""
    store = dist.HashStore()

    def tells(rank: int) -> Any:
        told = ToldBeside(Rank(rank, 3), store, 1, lambda: "")  # type: ignore[arg-type]
        assert told.beside() is told
        assert told.own_parts({}) == {"of": rank}
        return [told.tell(Topic.WRITE, value) for value in ({"rank": rank}, None, [rank, "ä"])]

    with ThreadPoolExecutor(3) as threads:
        found = list(threads.map(tells, range(3)))
    assert found == [[[{"rank": 0}, {"rank": 1}, {"rank": 2}], [None] * 3, [[rank, "ä"] for rank in range(3)]]] * 3
    assert store.num_keys() <= 2  # of the last


@NEEDS_STORE
@pytest.mark.parametrize("how", ["gone", "failed"])
def test_rank_that_does_not_come_is_missed(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its process is gone, or the training of this one has failed meanwhile."""
    monkeypatch.setattr("fsm_train.supervised.told_beside._LOOKS_EVERY", 0.01)
    rank = Rank(0, 2)
    looks = iter(["", "rank 1 is gone"])
    told = ToldBeside(rank, dist.HashStore(), 1, lambda: next(looks))  # type: ignore[arg-type]
    rank.lost = how == "failed"
    with pytest.raises(WorkloadError, match="rank 1 is gone" if how == "gone" else "no longer meet"):
        told.tell(Topic.WRITE, None)
    assert told.lost
