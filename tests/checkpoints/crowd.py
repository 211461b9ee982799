"""A folder with many checkpoints, made quickly."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch

from fsm_train.checkpoints.folder import Folder
from fsm_train.checkpoints.manifest import SavePoint


def crowded(folder: Path, neighbours: int) -> Path:
    """The folder, with checkpoints called older-00000 and so on: whole ones, which share all files but the manifest."""
    held = Folder(folder)
    held.write("older-00000", b"{}", {"x": torch.zeros(2)}, SavePoint(1, 1, 0.0))
    held.close()
    one = folder / "older-00000"
    body = json.loads((one / "manifest").read_bytes().partition(b"\n")[2])
    for number in range(1, neighbours):
        path = folder / f"older-{number:05d}"
        path.mkdir()
        for name in body["files"]:
            (path / name).hardlink_to(one / name)
        text = json.dumps({**body, "number": number + 1}).encode()
        (path / "manifest").write_bytes(hashlib.sha256(text).hexdigest().encode() + b"\n" + text)
    return folder
