"""What the README of checkpoints says of files, parts, numbers and callbacks is so."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import fsm_train.checkpoints
from fsm_train import Phase, State, Supervised, Transition, extend, on, restore, run, start
from fsm_train.callbacks import checkpoint, ema, stop_after
from fsm_train.checkpoints.folder import Folder
from fsm_train.checkpoints.manifest import STATE, TENSORS, SavePoint, list_folder, manifest_of
from fsm_train.checkpoints.reading import read_files
from fsm_train.core.callback import Callback

ROOM = Path(fsm_train.checkpoints.__file__).parent
README = (ROOM / "README.md").read_text(encoding="utf-8")


def first_column(head: str) -> set[str]:
    """The names in the first column of the table with this head."""
    table = README.split(f"\n{head}\n")[1].split("\n\n")[0]
    return {name for row in table.splitlines()[1:] for name in re.findall(r"`([\w.]+)`", row.split("|")[1])}


def workload() -> Supervised:
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    data = [(torch.ones(4, 3), torch.zeros(4, 1))] * 2
    return Supervised(model, optimizer, nn.MSELoss(), data, data[:1])


def manifest(path: Path) -> dict[str, Any]:
    return json.loads((path / "manifest").read_bytes().partition(b"\n")[2])  # type: ignore[no-any-return]


def test_each_file_is_described() -> None:
    """Those of the room, and no others."""
    assert first_column("| file | what it does |") == {path.name for path in ROOM.glob("*.py")} - {"__init__.py"}


def test_each_part_is_described(tmp_path: Path) -> None:
    """Those that a training saves, and no others."""
    run(start(workload(), epochs=1, seed=0), [checkpoint(tmp_path)])
    _, parts = read_files(manifest_of(tmp_path / "epoch-00001"))
    assert first_column("| part | what it is |") == {*parts, "ranks", "shards"}  # which several ranks have


def test_a_checkpoint_has_these_files_and_its_manifest_says_this(tmp_path: Path) -> None:
    """Its own sha256 first, then of each file the size and the sha256; and where it was, what it drops, its score."""
    run(start(workload(), epochs=4, seed=0), [ema(0.9), checkpoint(tmp_path, monitor="valid_loss", keep=1, last=0)])
    (path,) = tmp_path.iterdir()
    assert sorted(file.name for file in path.iterdir()) == ["manifest", STATE, TENSORS]
    digest, _, text = (path / "manifest").read_bytes().partition(b"\n")
    assert digest.decode() == hashlib.sha256(text).hexdigest()

    body = manifest(path)
    assert {*body} == {"format", "number", "place", "files"}
    for name in (STATE, TENSORS):
        content = (path / name).read_bytes()
        assert body["files"][name] == [len(content), hashlib.sha256(content).hexdigest()]
    place, epoch = body["place"], int(path.name[-5:])
    assert {*place} == {"iteration", "step", "written", "drop", "score"}
    assert (place["iteration"], place["step"], place["drop"]) == (2 * epoch, 2 * epoch, [f"epoch-{epoch - 1:05d}"])
    score = place["score"]
    assert (score["monitor"], score["mode"], score["weights"]) == ("valid_loss", "min", "ema")
    assert score["value"] == restore(path, workload()).metrics["valid_loss"]


def test_the_newest_has_the_highest_number_whatever_the_clock_says(tmp_path: Path) -> None:
    """Also if the clock goes back, between two runs or within one, and whatever the names and the steps are."""
    for run_number in (3, 2, 1):
        with contextlib.closing(Folder(tmp_path)) as held:
            for save in (3, 2, 1):
                seconds = 100.0 * run_number + save
                held.write(f"{run_number}-{save}", b"{}", {}, SavePoint(save, save, seconds))
    found = list_folder(tmp_path).checkpoints
    assert [c.path.name for c in found] == ["1-1", "1-2", "1-3", "2-1", "2-2", "2-3", "3-1", "3-2", "3-3"]
    assert [c.number for c in found] == [*range(9, 0, -1)]


def counter(name: str, by: int = 1) -> Callback[int]:
    @on(Phase.BATCH_END, memory=0, name=name)
    def counter(state: State, count: int) -> Transition:
        return Transition(memory=count + by)

    return counter


def test_other_callbacks_may_go_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One of a known name gets its memory, a new one begins with its own, and a missing one is named."""
    run(start(workload(), epochs=1, seed=0), [checkpoint(tmp_path), counter("known"), counter("missing")])
    state = restore(tmp_path, workload())
    with caplog.at_level("WARNING", "fsm_train"):
        final = run(extend(state, epochs=1), [counter("known", by=10), counter("new")])

    assert {name: final.memory[name] for name in ("known", "new")} == {"known": 22, "new": 2}
    said = " ".join(caplog.messages)
    assert "no callback of this run: checkpoint, missing" in said
    assert "begins with its initial memory: new" in said


def test_settings_come_from_the_code(tmp_path: Path) -> None:
    """Never from the checkpoint: the one that resumes stops where it is told to now, and the change is said."""
    run(start(workload(), epochs=2, seed=0), [checkpoint(tmp_path), stop_after(steps=100)])
    work = workload()
    final = run(extend(restore(tmp_path, work), epochs=9), [checkpoint(tmp_path), stop_after(steps=7)])

    assert final.step == 7
    assert "the callback stop_after: steps=7, and was 100 when this was saved" in final.notes
