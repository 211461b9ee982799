"""Fields that commands got later: a log without them replays, one with them is compared in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fsm_train import replay, run, start, what_if
from fsm_train.callbacks import checkpoint, ema, freeze
from fsm_train.eventlog import lines
from fsm_train.eventlog.added_fields import ADDED, without_added_fields
from fsm_train.worlds.scripted import Scripted

NEW = {"$": "SaveCheckpoint", "folder": "a", "name": "b", "drop": [], "monitor": "valid_loss", "mode": "min"}
OLD = {"$": "SaveCheckpoint", "folder": "a", "name": "b", "drop": []}


def line(*commands: Any) -> dict[str, Any]:
    return {"answers": {"c": {"commands": [*commands]}}}


@pytest.mark.parametrize(
    ("decided", "recorded", "compared"),
    [
        (line(NEW), line(OLD), line(OLD)),
        (line(NEW), line(NEW | {"mode": "max"}), line(NEW)),
        (line(NEW), line({"$": "WeighLoss", "share": 1.0}), line(NEW)),
        (line({"$": "WeighLoss", "share": 1.0}), line({"$": "WeighLoss"}), line({"$": "WeighLoss", "share": 1.0})),
        (line(NEW), line(3), line(NEW)),
        (line(NEW), line(OLD, OLD), line(NEW)),
        (line(NEW), {"answers": {"c": 3}}, line(NEW)),
        (line(NEW), {"answers": 3}, line(NEW)),
        (line(NEW), {}, line(NEW)),
        ({"answers": {"c": {"reason": "x"}}}, line(OLD), {"answers": {"c": {"reason": "x"}}}),
        ({"epoch": 1}, line(OLD), {"epoch": 1}),
    ],
)
def test_only_fields_that_the_log_lacks_are_left_out(decided: Any, recorded: Any, compared: Any) -> None:
    """Of commands of the same kind, in the same place; nothing else of the line changes."""
    assert without_added_fields(decided, recorded) == compared


def test_log_of_an_earlier_version_replays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With commands that had fewer fields then: replay and what_if find no difference."""
    log = tmp_path / "run.jsonl"
    callbacks = [checkpoint("folder", monitor="valid_loss", last=0), freeze("0.*", until_epoch=1), ema(0.9)]

    def encoded_then(value: object) -> Any:
        body = lines_encode(value)
        dropped = ADDED.get(type(value).__name__, ())
        return {name: part for name, part in body.items() if name not in dropped} if dropped else body

    lines_encode = lines.encode
    with monkeypatch.context() as patched:
        patched.setattr(lines, "encode", encoded_then)
        run(start(Scripted(valid_loss=[2.0, 1.0]), epochs=2), callbacks, log=log)

    assert "UpdateAverage" in log.read_text()
    assert '"decay":null' not in log.read_text().replace(" ", "")
    assert "monitor" not in log.read_text().partition("\n")[2]
    assert replay(log, callbacks).ok
    assert what_if(log, callbacks).verdict == "exact"
