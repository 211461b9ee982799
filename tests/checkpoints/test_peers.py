"""How ranks write and restore one checkpoint: with ranks that are threads, which tell each other at a barrier."""

from __future__ import annotations

import random
import shutil
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fsm_train import CheckpointError, NoCheckpointError, State, Supervised, WorkloadError, restore, run, start
from fsm_train.callbacks import checkpoint, ema
from fsm_train.checkpoints import writing_together
from fsm_train.checkpoints.api import read
from fsm_train.checkpoints.folder import Folder
from fsm_train.checkpoints.manifest import list_folder, manifest_of, verify_all
from fsm_train.checkpoints.other_ranks import parts_of_rank
from fsm_train.checkpoints.own_parts import own_parts
from fsm_train.checkpoints.peers import common_notes, failure_of, failures
from fsm_train.checkpoints.rank_names import name_of_rank
from fsm_train.checkpoints.restoring_together import follow_restoring
from fsm_train.checkpoints.saves import Saves
from fsm_train.checkpoints.writing import write_tensors
from fsm_train.core.phase import Phase
from fsm_train.worlds.disagreement import PeerError
from fsm_train.worlds.rows import Topic
from tests.checkpoints.mutations import mutate
from tests.diabetes_training import batches, net, sgd
from tests.how_long import of_all


class Meets:
    """Where the threads tell each other."""

    def __init__(self, ranks: int) -> None:
        self.given: list[Any] = [None] * ranks
        self.barrier = threading.Barrier(ranks, timeout=120)


class Thread:
    """A rank as a thread: `Peers`."""

    def __init__(self, rank: int, meets: Meets) -> None:
        self.rank, self.ranks, self.lost = rank, len(meets.given), False
        self._meets = meets
        self.told: list[Any] = []

    def tell(self, topic: Topic, own: Any) -> Sequence[Any]:
        self._meets.given[self.rank] = own
        self.told.append(own)
        self._meets.barrier.wait()
        given = [each or None for each in self._meets.given]
        self._meets.barrier.wait()
        return given

    def own_parts(self, parts: dict[str, Any]) -> dict[str, Any]:
        return own_parts(parts, with_gradients=True)


class Rank(Supervised):
    """A training that is told of its peers; each has other data, and so other buffers and meters."""

    peers: Any = None  # type: ignore[assignment]


def make(peer: Thread, model: nn.Module | None = None) -> Rank:
    model = net() if model is None else model
    share = [tuple(part[peer.rank :: peer.ranks] for part in batch) for batch in batches(12, 12)]
    work = Rank(model, sgd(model), nn.MSELoss(), share, share[:1], extra={"own": Numbered(peer.rank)})
    work.peers = peer
    return work


class Numbered:
    """A part that is saved, and has the number of its rank."""

    def __init__(self, number: int) -> None:
        self.number = number

    def state_dict(self) -> dict[str, int]:
        return {"number": self.number}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.number = state["number"]


def on_threads(work: Callable[[Thread], Any], ranks: int = 2) -> list[Any]:
    """What it returned or raised on each."""
    meets = Meets(ranks)

    def one(rank: int) -> Any:
        try:
            return work(Thread(rank, meets))
        except Exception as error:
            return error

    with ThreadPoolExecutor(ranks) as threads:
        return list(threads.map(one, range(ranks)))


def train(peer: Thread, folder: Path, **settings: Any) -> tuple[State, Rank]:
    work = make(peer)
    return run(start(work, epochs=2), [ema(0.9), checkpoint(folder, **settings)]), work


def test_each_rank_has_its_own_parts_again(tmp_path: Path) -> None:
    """Buffers, those of averages, meters and extra parts; what they share is written once."""
    saved = on_threads(lambda peer: train(peer, tmp_path)[1])

    def again(peer: Thread) -> Rank:
        work = make(peer)
        work.extra["own"].number = 7
        restore(tmp_path, work)
        return work

    for rank, (before, after) in enumerate(zip(saved, on_threads(again), strict=True)):
        assert after.extra["own"].number == rank
        for name, buffer in before.model.named_buffers():
            assert torch.equal(buffer, after.model.get_buffer(name))
        (average,) = after.carried_over.saved_averages.values()
        for name, buffer in average["average"]["buffers"].items():
            assert torch.equal(buffer, before.carried_over.averages["ema"].buffers[name])
    assert not torch.equal(saved[0].model[1].running_mean, saved[1].model[1].running_mean)
    newest, *_ = list_folder(tmp_path).checkpoints
    assert {*newest.files} == {"state.json", "tensors.pt", "rank-1.pt"}
    assert newest.ranks == 2


def test_ranks_that_are_more_or_fewer_have_notes(tmp_path: Path) -> None:
    """Each that was there has its own parts, another one those of rank 0 with new generators."""
    on_threads(lambda peer: train(peer, tmp_path))

    def again(peer: Thread) -> tuple[int, State, torch.Tensor]:
        work = make(peer)
        state = restore(tmp_path, work)
        assert work.suspended_at is not None
        return work.extra["own"].number, state, work.suspended_at.generators.cpu

    (zero, state, drawn), (one, *_), (new, _, others) = on_threads(again, ranks=3)
    assert (zero, one, new) == (0, 1, 0)
    assert not torch.equal(drawn, others)
    begins = "the number of ranks: it was 2 and is {}, and they share the data anew; "
    new = "rank 2 draws from new generators, which follow from those of rank 0"
    assert [note for note in state.notes if "ranks" in note] == [begins.format(3) + new]
    (alone,) = on_threads(lambda peer: restore(tmp_path, make(peer)).notes[0], ranks=1)
    assert alone == begins.format(1) + "what rank 1 had alone is left out, such as its generators"


def test_notes_of_one_rank_are_notes_of_all(tmp_path: Path) -> None:
    """They say whose they are, and the states are the same."""

    def inexact(peer: Thread) -> tuple[str, ...]:
        work = make(peer)
        if peer.rank:
            work.train = iter_of(work.train)
        run(start(work, epochs=1), [checkpoint(tmp_path)])
        return restore(tmp_path, make(peer)).notes

    one, other = on_threads(inexact)
    assert one == other
    assert any(note.startswith("on rank 1, ") for note in one)


def iter_of(batches: Any) -> Any:
    """The batches in a loader whose state cannot be asked for."""

    class Loader:
        def __iter__(self) -> Any:
            return iter(batches)

        def state_dict(self) -> Any:
            raise OSError("it cannot be asked for")

        def load_state_dict(self, state: Any) -> None: ...

    return Loader()


@pytest.mark.filterwarnings("ignore:.*could not be written:RuntimeWarning")
@pytest.mark.parametrize("rank", [0, 1])
def test_what_one_rank_cannot_write_none_has_written(
    rank: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All note the same, and nothing of it stays; what was there is untouched."""
    if rank == 0:
        (tmp_path / "epoch-00002").mkdir(parents=True)
        (tmp_path / "epoch-00002" / "mine").touch()
        trouble = f"rank 0: {tmp_path / 'epoch-00002'} is there, and is not a checkpoint that may be replaced"
    else:
        written: list[Path] = []

        def fails(path: Path, *args: Any) -> None:
            written.append(path)
            if len(written) == 2:
                path.touch()
                raise OSError("No space left on device")
            write_tensors(path, *args)

        monkeypatch.setattr(writing_together, "write_tensors", fails)
        trouble = "rank 1: No space left on device"

    (one, _), (other, _) = on_threads(lambda peer: train(peer, tmp_path))

    assert one.notes == other.notes
    assert one.notes[0] == f"the checkpoint epoch-00002 could not be written to {tmp_path}: {trouble}"
    assert one.memory == other.memory
    assert [item.path.name for item in verify_all(tmp_path) if not item.trouble] == ["epoch-00001"]
    assert not [*tmp_path.glob(".*")]


@pytest.mark.filterwarnings("ignore:.*could not be written:RuntimeWarning")
def test_a_file_on_another_disk_is_missed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The path may be there on both, and not be the same folder."""

    def elsewhere(path: Path, value: Any, files: dict[str, Any]) -> None:
        write_tensors(path, value, files)
        path.unlink()

    monkeypatch.setattr(writing_together, "write_tensors", elsewhere)
    (one, _), (other, _) = on_threads(lambda peer: train(peer, tmp_path))

    assert one.notes == other.notes
    assert one.notes[0].endswith(
        "rank 0: the file that rank 1 wrote is not there: the folder has to be on a disk of all ranks"
    )


@pytest.mark.filterwarnings("ignore:.*could not be written:RuntimeWarning")
def test_ranks_that_no_longer_meet_write_nothing(tmp_path: Path) -> None:
    """After the failure of one."""

    def train_lost(peer: Thread) -> State:
        work = make(peer)
        peer.tell = lambda topic, own: [None, None]  # type: ignore[method-assign]
        peer.lost = True
        return run(start(work, epochs=1), [checkpoint(tmp_path)])

    for state in on_threads(train_lost):
        assert state.notes[0].endswith("ranks that no longer meet, since one has failed, write none together")
    assert not list_folder(tmp_path).checkpoints


def test_an_exchange_that_fails_in_a_save_ends_the_training(tmp_path: Path) -> None:
    """It is no trouble of the disk, and nothing half-written stays."""

    def fails(peer: Thread) -> None:
        def tell(topic: Topic, own: Any) -> Sequence[Any]:
            if own and "folder" in own:
                peer.lost = True
                raise PeerError.of(1, "OSError: gone")
            return [None]

        peer.tell = tell  # type: ignore[method-assign]
        train(peer, tmp_path)

    (raised,) = on_threads(fails, ranks=1)
    assert isinstance(raised, PeerError)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("folders", [True, False])
def test_folders_are_held_by_rank_0_for_all(folders: bool, tmp_path: Path) -> None:
    """If it cannot, all say so; where there are none, nothing is told."""
    held = Folder(tmp_path)

    def reserve(peer: Thread) -> int:
        with Saves().of_all({str(tmp_path)} if folders else set(), peer):
            return len(peer.told)

    one, other = on_threads(reserve)
    held.close()
    if folders:
        assert isinstance(one, CheckpointError)
        assert isinstance(other, CheckpointError)
        assert str(one) == str(other)
        assert on_threads(reserve) == [1, 1]
    else:
        assert (one, other) == (0, 0)


@pytest.mark.filterwarnings("ignore:.*continuing from:RuntimeWarning")
def test_damage_for_one_rank_is_damage_for_all(tmp_path: Path) -> None:
    """They continue from the one before; from none, if all are damaged, and say that there is none, if so."""
    on_threads(lambda peer: train(peer, tmp_path))

    def go_on(peer: Thread) -> Any:
        return restore(tmp_path, make(peer)).epoch

    assert on_threads(go_on) == [2, 2]
    (tmp_path / "epoch-00002" / "rank-1.pt").unlink()
    assert on_threads(go_on) == [1, 1]
    (tmp_path / "epoch-00001" / "rank-1.pt").write_bytes(b"")
    one, other = on_threads(go_on)
    assert str(one) == str(other)
    assert str(one).count("rank-1.pt") == 2
    one, other = on_threads(lambda peer: restore(tmp_path / "nothing", make(peer)))
    assert type(one) is type(other) is NoCheckpointError


def test_a_file_of_a_rank_that_is_gone_is_verified(tmp_path: Path) -> None:
    """Damage is found, whoever reads what."""
    on_threads(lambda peer: train(peer, tmp_path))
    (tmp_path / "epoch-00002" / "rank-1.pt").write_bytes(b"")

    (error,) = on_threads(lambda peer: restore(tmp_path / "epoch-00002", make(peer)), ranks=1)

    assert "rank-1.pt is damaged" in str(error)


def test_a_rank_that_cannot_restore_at_all_is_named_on_the_others(tmp_path: Path) -> None:
    """Such as one with another model."""
    on_threads(lambda peer: train(peer, tmp_path))

    one, other = on_threads(lambda peer: restore(tmp_path, make(peer, nn.Linear(10, 1) if peer.rank else None)))

    assert isinstance(one, PeerError)
    assert str(one).startswith(
        "rank 1 failed, and this rank ended with it: WorkloadError: the optimizer is another one"
    )
    assert isinstance(other, WorkloadError)
    assert not isinstance(other, PeerError)


def test_another_checkpoint_under_the_same_path_is_refused(tmp_path: Path) -> None:
    """As on a disk that is not that of rank 0."""
    on_threads(lambda peer: train(peer, tmp_path))
    path, errors = tmp_path / "epoch-00002", [{"path": str(tmp_path / "epoch-00002"), "number": 9}]

    class Follows(Thread):
        def tell(self, topic: Topic, own: Any) -> Sequence[Any]:
            return [errors.pop() if errors else {"error": "CheckpointError", "text": "there is no good one"}]

    seen = []

    def attempt(chosen: Callable[[], Any]) -> None:
        with pytest.raises(CheckpointError, match="is another checkpoint than rank 0 has there") as refused:
            chosen()
        seen.append(refused.value)
        raise refused.value

    with pytest.raises(CheckpointError, match="there is no good one"):
        follow_restoring(Follows(1, Meets(2)), attempt)
    assert len(seen) == 1
    assert manifest_of(path).number == 2


@pytest.mark.parametrize("own", [3, {}, {"parts": 3, "tensors": []}, {"parts": {}, "tensors": [[["nowhere", "x"], 1]]}])
def test_a_file_that_no_rank_has_written_is_refused(own: Any, tmp_path: Path) -> None:
    """Whatever its digest says."""
    on_threads(lambda peer: train(peer, tmp_path))
    checkpoint = manifest_of(tmp_path / "epoch-00002")
    (checkpoint.path / name_of_rank(1)).unlink()
    write_tensors(checkpoint.path / name_of_rank(1), own, checkpoint.files)

    with pytest.raises(CheckpointError, match="what rank 1 has in .* is not what a rank saves"):
        parts_of_rank(checkpoint, *read(checkpoint), 1, 2)


@pytest.mark.parametrize("unreduced", [True, False])
def test_other_ranks_need_an_end_of_an_epoch(unreduced: bool, tmp_path: Path) -> None:
    """Without gradients of each rank that wait; the sentence says what to do."""
    on_threads(lambda peer: train(peer, tmp_path))
    checkpoint = manifest_of(tmp_path / "epoch-00002")
    state, parts = read(checkpoint)
    if unreduced:
        parts["ranks"] = {"unreduced": True, "counted": 1.0}
    else:
        state = state.__class__(Phase.SUSPENDED, state.plan, resume_at=Phase.BATCH_END, batch=1)

    with pytest.raises(WorkloadError) as refused:
        parts_of_rank(checkpoint, state, parts, 0, 1)

    where = "while gradients of each rank waited" if unreduced else "in the middle of an epoch"
    assert f"was saved on 2 ranks, {where}" in str(refused.value)
    assert f"or go on from the end of an epoch: restore('{tmp_path / 'epoch-00001'}', …)" in str(refused.value)


def test_what_ranks_tell_each_other_in_words() -> None:
    """An error without a text has a name; a note that all have is nobody's."""
    assert failures([failure_of(KeyError()), None, failure_of(OSError("full"))]) == "rank 0: KeyError; rank 2: full"
    assert common_notes([None, ["b", "a"]]) == ("on rank 1, b", "on rank 1, a")
    assert common_notes([["a"], ["a"]]) == ("a",)


def test_what_is_a_rank_s_own() -> None:
    """Its generators, each buffer that may change, under each name; its gradients where they are not reduced."""
    a, b, c = torch.zeros(1), torch.ones(1), torch.ones(2)
    module = {"values": {"a": a, "b": b}, "buffers": {"b": b, "c": c}, "modes": {"": True}}
    average = {"average": {"parameters": {"model.a": a}, "buffers": {"model.b": b}}, "own": {"model": module}}
    parts = {
        "modules": {"model": module},
        "averages": {"ema": average},
        "weights": {"best": [{"model": module}, {"ema": {"buffers": {"model.b": b}}}]},
        "frozen": {"model": ["c"]},
        "optimizer": {},
        "gradients": {0: a},
        "generators": {"cpu": a},
    }

    own = own_parts(parts, with_gradients=False)

    assert own["parts"] == {"generators": {"cpu": a}}
    assert [place for place, _ in own["tensors"]] == [
        ["modules", "model", "buffers", "b"],
        ["modules", "model", "values", "b"],
        ["averages", "ema", "average", "buffers", "model.b"],
        ["averages", "ema", "own", "model", "buffers", "b"],
        ["averages", "ema", "own", "model", "buffers", "c"],
        ["averages", "ema", "own", "model", "values", "b"],
        ["weights", "best", 0, "model", "buffers", "b"],
        ["weights", "best", 0, "model", "values", "b"],
        ["weights", "best", 1, "ema", "buffers", "model.b"],
    ]
    assert own_parts(parts, with_gradients=True)["parts"].keys() == {"generators", "gradients"}


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("thorough", [False, pytest.param(True, marks=pytest.mark.long(alone=True))])
def test_a_mutated_file_of_a_rank_is_restored_or_refused_by_all(thorough: bool, tmp_path: Path) -> None:
    """Whatever is in it, with a digest that fits again: a refusal is a documented error, on all ranks."""
    on_threads(lambda peer: train(peer, tmp_path / "source"))
    refused = 0
    for number in range(of_all(2000, few=200) if thorough else 20):
        path = shutil.copytree(tmp_path / "source" / "epoch-00002", tmp_path / str(number))
        mutate(name_of_rank(1), path, random.Random(number))

        one, other = on_threads(lambda peer, path=path: restore(path, make(peer)))

        refused += isinstance(one, Exception)
        assert isinstance(one, Exception) == isinstance(other, Exception), (number, one, other)
        for end in (one, other):
            assert isinstance(end, (State, CheckpointError, WorkloadError, RuntimeError)), (number, end)
        assert not isinstance(other, threading.BrokenBarrierError), number
        shutil.rmtree(path)
    assert refused
