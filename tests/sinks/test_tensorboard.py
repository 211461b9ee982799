"""Events for TensorBoard, read back by its own EventAccumulator."""

from __future__ import annotations

import random
import struct
import sys
import threading
import time
from collections.abc import Mapping
from math import inf, nan
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import api_pb2, metadata
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from fsm_train import CallbackError, Phase, Scripted, run, start
from fsm_train.sinks import tensorboard

from .tracked import SEEN, breaks, callbacks, in_pieces, suspends, whole


def read(folder: Path) -> EventAccumulator:
    return EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0}).Reload()


def scalars_in(folder: Path) -> dict[str, list[tuple[int, str]]]:
    """By tag, the steps and values, as text so that NaN equals itself."""
    events = read(folder)
    return {tag: [(event.step, repr(event.value)) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def text_in(folder: Path, tag: str) -> list[str]:
    return [event.tensor_proto.string_val[0].decode() for event in read(folder).Tensors(f"{tag}")]


def hparams_in(folder: Path, tag: str) -> Any:
    content = read(folder).SummaryMetadata(tag).plugin_data.content
    return HParamsPluginData.FromString(content)


def single(value: float) -> str:
    """The value in single precision, as text."""
    return repr(struct.unpack("f", struct.pack("f", value))[0])


def test_scalars_are_the_training(tmp_path: Path) -> None:
    """Over the optimizer steps, in single precision: metrics, rates, the epoch, and facts of batches."""
    final = whole(tensorboard(tmp_path, **SEEN))
    scalars = scalars_in(tmp_path)

    assert scalars["train_loss"] == [
        (4 * n, single(metrics["train_loss"])) for n, metrics in enumerate(final.history, 1)
    ]
    assert [*dict(scalars["valid_loss"]).items()] == [
        *((3, repr(nan)), (4, repr(nan)), (6, "0.25"), (8, "0.25"), (9, repr(inf)), (12, single(0.2)))
    ]
    assert scalars["loss"] == [(n, single(1 / n)) for n in range(2, 13, 2)]
    assert scalars["grad_norm"] == [(n, repr(2.0 + n)) for n in range(0, 12, 2)]
    assert dict(scalars["epoch"])[4] == "2.0"  # of the batch that follows
    assert [step for step, _ in scalars["lr/1"]] == [4, 8, 12]


@pytest.mark.parametrize("batches", [5, 6])
def test_a_resumed_training_is_read_as_one_in_a_piece(batches: int, tmp_path: Path) -> None:
    """What came after the step at which it resumes is dropped, and what was measured at that step is not."""
    whole(tensorboard(tmp_path / "whole", **SEEN))
    in_pieces(lambda: tensorboard(tmp_path / "pieces", **SEEN), batches=batches)

    assert len([*(tmp_path / "pieces").iterdir()]) == 3
    pieces, expected = scalars_in(tmp_path / "pieces"), scalars_in(tmp_path / "whole")
    assert {tag: [*dict.fromkeys(events)] for tag, events in pieces.items()} == {
        tag: [*dict.fromkeys(events)] for tag, events in expected.items()
    }
    if batches == 5:  # at step 5 nothing had been measured, which is then there twice
        assert pieces == expected


def test_a_new_training_drops_the_one_before(tmp_path: Path) -> None:
    """Its curves are not mixed with those of another."""
    whole(tensorboard(tmp_path))
    whole(tensorboard(tmp_path), epochs=1)

    assert [step for step, _ in scalars_in(tmp_path)["train_loss"]] == [4]


def test_names_of_files_are_in_the_order_in_which_they_were_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file waits for the next second where there is one of this second, since TensorBoard sorts the names."""
    now = [1000.9]
    monkeypatch.setattr(time, "time", lambda: now[0])
    monkeypatch.setattr(time, "sleep", lambda seconds: now.__setitem__(0, now[0] + seconds))
    for _ in range(2):
        whole(tensorboard(tmp_path), epochs=1)

    assert [path.name[:30] for path in sorted(tmp_path.iterdir())] == [
        "events.out.tfevents.0000001000",
        "events.out.tfevents.0000001001",
    ]


def test_settings_and_the_end_are_there(tmp_path: Path) -> None:
    """The plan, the parameters of callbacks and the user's own in HParams and as text, and how it ended."""
    whole(tensorboard(tmp_path, config={"width": 64, "head": "a|b", "deep": True}))
    hparams = hparams_in(tmp_path, metadata.SESSION_START_INFO_TAG).session_start_info.hparams
    (config,), (ended,) = text_in(tmp_path, "config"), text_in(tmp_path, "ended")

    assert (hparams["plan.epochs"].number_value, hparams["hyper.lr/1"].number_value) == (3.0, 0.2)
    assert hparams["early_stopping.monitor"].string_value == "valid_loss"
    assert (hparams["width"].number_value, hparams["deep"].bool_value) == (64.0, True)
    assert "| validate_every.steps | 3 |\n" in config
    assert "| head | a\\|b |\n" in config
    assert ended == "all 3 epochs done"
    end = hparams_in(tmp_path, metadata.SESSION_END_INFO_TAG).session_end_info
    assert end.status == api_pb2.STATUS_SUCCESS


def test_a_training_that_does_not_end_well_says_so(tmp_path: Path) -> None:
    """As text; a status of success comes with the end of the resumed one, and of no other."""
    with pytest.raises(CallbackError):
        whole(tensorboard(tmp_path / "failed"), further=[breaks])
    suspended = whole(tensorboard(tmp_path / "suspended"), further=[suspends(5)])

    assert suspended.phase is Phase.SUSPENDED
    assert text_in(tmp_path / "failed", "ended")[0].startswith("failed in epoch 2/3: CallbackError: callback 'breaks'")
    assert text_in(tmp_path / "suspended", "ended") == ["suspended in epoch 2/3: suspends: time is up"]
    again = run(suspended, [*callbacks(), suspends(6)], sinks=[tensorboard(tmp_path / "again")])
    assert (again.iteration, text_in(tmp_path / "again", "ended")) == (6, text_in(tmp_path / "suspended", "ended"))
    for folder in ("failed", "suspended", "again"):
        assert metadata.SESSION_END_INFO_TAG not in read(tmp_path / folder).Tags()["tensors"]


def test_events_can_be_read_while_it_trains(tmp_path: Path) -> None:
    """They are on the disk when an epoch has ended."""
    seen: list[Mapping[str, Any]] = []

    class Reader:
        at = (Phase.EPOCH_END,)
        needs = frozenset[str]()
        interval = 0.0

        def open(self, *_: object) -> None: ...
        def close(self) -> None: ...
        def see(self, *_: object) -> None:
            seen.append(scalars_in(tmp_path))

    whole(tensorboard(tmp_path), Reader())

    assert [len(scalars["train_loss"]) for scalars in seen] == [1, 2, 3]


def test_nothing_is_drawn(tmp_path: Path) -> None:
    """The training ends in the same state, and the generators stand where they stood."""
    random.seed(0)
    alone, before = whole(), random.getstate()
    random.seed(0)
    watched, after = whole(tensorboard(tmp_path, **SEEN)), random.getstate()

    assert (watched, after) == (alone, before)


def test_a_folder_that_cannot_be_made_switches_it_off(tmp_path: Path) -> None:
    """With a note; the training continues."""
    (tmp_path / "runs").write_text("a file")
    with pytest.warns(RuntimeWarning, match="the sink TensorBoard raised"):
        final = run(start(Scripted(), epochs=2), sinks=[tensorboard(tmp_path / "runs" / "first")])

    assert (final.epoch, len(final.notes)) == (2, 1)


def test_settings_that_it_refuses_leave_no_file_and_no_thread(tmp_path: Path) -> None:
    """A writer of TensorBoard has a thread, which ends when the writer is closed."""
    threads = {*threading.enumerate()}  # others, which earlier tests may have left
    with pytest.warns(RuntimeWarning, match="it is switched off"):
        run(start(Scripted(), epochs=1), sinks=[tensorboard(tmp_path / "run", config={"\ud800": 1})])

    assert {*threading.enumerate()} <= threads
    assert not (tmp_path / "run").exists()


def test_what_is_missing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """At once, and with what to install."""
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    for name in [name for name in sys.modules if name.startswith("tensorboard.compat.proto.event_pb2")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, "tensorboard.compat", raising=False)
    monkeypatch.delitem(sys.modules, "tensorboard.compat.proto", raising=False)

    with pytest.raises(
        ModuleNotFoundError, match=r"tensorboard\(…\) needs tensorboard.*: pip install 'fsm-train\[tens"
    ):
        tensorboard("runs")
    with pytest.raises(ValueError, match="folder='': nothing can have this path"):
        tensorboard("")
    with pytest.raises(TypeError, match="folder is an int, not a path"):
        tensorboard(3)  # type: ignore[arg-type]


@pytest.mark.parametrize("config", [["width"], {3: "width"}])
def test_settings_have_names(config: Any, tmp_path: Path) -> None:
    """Anything else is refused at once."""
    with pytest.raises(TypeError, match="give a mapping of settings by name"):
        tensorboard(tmp_path, config=config)
