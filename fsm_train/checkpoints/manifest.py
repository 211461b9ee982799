"""The files of a checkpoint, and whether each byte of them is as it was written. Torch-free: no tensor is loaded.

A checkpoint is a folder with `state.json` (the control state), `tensors.pt` (everything else) and
`manifest`, written last: a sha256 of itself, and size and sha256 of the others, among which there may be files of
`history_files.py`, `rank_names.py` and `shards.py`. A folder without a valid manifest is no checkpoint, and every
value of a manifest is checked before it is used.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import attrs

from ..core.errors import CheckpointError, NoCheckpointError
from .history_files import is_frozen_file, is_history_file, is_shared_file
from .rank_names import is_rank_file, ranks_of
from .shards import METADATA, is_shard_file

FORMAT = 6  # 1 had the generators of torch alone, by their order; only from 3 on a history can be in files of its own,
# from 4 on tensors that do not change, from 5 on what the ranks do not share, and from 6 on what they share out
STATE, TENSORS, MANIFEST = "state.json", "tensors.pt", "manifest"
TEMPORARY = ".writing-"  # prefix of a folder's name until it is complete
_LARGEST = 2**20  # bytes of a manifest
_LATEST = 2.0**37  # seconds since 1970, in the year 6325: later times cannot be displayed


@attrs.frozen
class Score:
    """The value that a checkpoint was chosen by.

    Attributes:
        monitor: the name of the metric.
        mode: "min" if smaller values are better, else "max".
        value: of the metric; None if it was not measured, or is not finite.
        weights: what it was measured with: "model", or the name of an average.
    """

    monitor: str
    mode: str
    value: float | None
    weights: str = "model"

    @property
    def rank(self) -> float:
        """The value as a number of which the largest is the best."""
        if self.value is None:
            return -math.inf
        return self.value if self.mode == "max" else -self.value


@attrs.frozen
class SavePoint:
    """Where in a training a checkpoint was saved. In the manifest it stands under "place".

    Attributes:
        iteration: finished training batches.
        step: optimizer steps.
        written: seconds since 1970.
        drop: the names of the checkpoints that this one supersedes.
        score: what it was chosen by; None without a monitor.
    """

    iteration: int
    step: int
    written: float
    drop: tuple[str, ...] = ()
    score: Score | None = None


@attrs.frozen
class Checkpoint:
    """A folder whose manifest could be read.

    Attributes:
        path: the folder.
        number: each checkpoint of a folder has a higher one than those before, whatever the clock
            says, and also if a training resumes from an older one or starts again.
        save_point: where in the training.
        files: by name, the size in bytes and the sha256 of each file.
        ranks: how many wrote it.
    """

    path: Path
    number: int
    save_point: SavePoint
    files: dict[str, tuple[int, str]]
    ranks: int = 1

    @property
    def size(self) -> int:
        """Bytes without the manifest."""
        return sum(size for size, _ in self.files.values())


@attrs.frozen
class Listing:
    """What is in a folder of checkpoints. Their files are not verified.

    Attributes:
        checkpoints: the newest first.
        damaged: by path, what is wrong with a manifest.
        passed_over: by path, why one cannot look into a folder that may be a checkpoint.
    """

    checkpoints: list[Checkpoint]
    damaged: dict[Path, str]
    passed_over: dict[Path, str]

    @property
    def problems(self) -> list[str]:
        """What is wrong, in words."""
        return [*self.damaged.values(), *self.passed_over.values()]


def is_one(path: Path) -> bool:
    """Whether what one is to read is a checkpoint, or no folder, and not a folder of checkpoints.

    Raises:
        NoCheckpointError: there is nothing.
        CheckpointError: one cannot look into it.
    """
    try:
        if not path.exists():
            raise NoCheckpointError(f"there is no checkpoint in {path}: No such file or directory")
        return not path.is_dir() or (path / MANIFEST).exists()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error


def list_folder(folder: Path) -> Listing:
    """What is in a folder of checkpoints.

    Raises:
        CheckpointError: the folder cannot be read.
    """
    found = Listing([], {}, {})
    try:
        paths = sorted(folder.iterdir())
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be read: {error.strerror}") from error
    for path in paths:
        try:
            if looks_like_checkpoint(path):
                found.checkpoints.append(manifest_of(path))
        except CheckpointError as error:
            found.damaged[path] = str(error)
        except OSError as error:
            found.passed_over[path] = f"{path} is passed over: {error.strerror}"
    found.checkpoints.sort(key=lambda c: (c.number, c.save_point.written), reverse=True)
    return found


def looks_like_checkpoint(path: Path) -> bool:
    """Whether this is a folder of a checkpoint, complete or damaged, and not one that is still being written.

    Raises:
        OSError: one cannot look into it.
    """
    return not path.name.startswith(TEMPORARY) and any((path / name).exists() for name in (STATE, TENSORS, MANIFEST))


def manifest_of(path: Path) -> Checkpoint:
    """The checkpoint in this folder, by its manifest.

    Raises:
        CheckpointError: there is none, or it is damaged.
    """
    manifest = path / MANIFEST
    try:
        if not manifest.is_file() or manifest.stat().st_size > _LARGEST:
            raise CheckpointError(f"{path} is no checkpoint: it has no manifest, or one that is too large")
        digest, _, text = manifest.read_bytes().partition(b"\n")
    except OSError as error:
        raise CheckpointError(f"{path} is no checkpoint: its manifest cannot be read ({error.strerror})") from error
    if hashlib.sha256(text).hexdigest().encode() != digest:
        raise CheckpointError(f"{manifest} is damaged: it does not match its own checksum")
    try:
        body = json.loads(text)
        if whole_number(body["format"], least=1) > FORMAT:
            raise CheckpointError(f"{path} was written by a newer version (format {body['format']}): update fsm-train")
        files = {name: (whole_number(size, least=0), str(sha256)) for name, (size, sha256) in body["files"].items()}
        number, save_point = whole_number(body["number"], least=0), _save_point(body["place"])
        checkpoint = Checkpoint(path, number, save_point, files, ranks_of(files))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        raise CheckpointError(f"{manifest} is not a manifest: {type(error).__name__}: {error}") from error
    others = {name for name in files if not (is_shared_file(name) or is_rank_file(name) or is_shard_file(name))}
    lacks_metadata = METADATA not in files and any(map(is_shard_file, files))
    if others != {STATE, TENSORS} or sum(map(is_frozen_file, files)) > 1 or lacks_metadata:
        raise CheckpointError(f"{manifest} names the files {sorted(files)}, and not {STATE} and {TENSORS}")
    return checkpoint


def format_of(files: Iterable[str]) -> int:
    """The format of a checkpoint with these files: a short training can be read by earlier versions too."""
    files = list(files)
    if any(map(is_shard_file, files)):
        return FORMAT
    if any(map(is_rank_file, files)):
        return 5
    if any(map(is_frozen_file, files)):
        return 4
    return 3 if any(map(is_history_file, files)) else 2


def _save_point(fields: Mapping[str, Any]) -> SavePoint:
    written = fields["written"]
    if type(written) not in (int, float) or not (math.isfinite(written) and abs(written) < _LATEST):
        raise ValueError(f"{written!r:.60} is no time")
    iteration, step = (whole_number(fields[name], least=0) for name in ("iteration", "step"))
    return SavePoint(iteration, step, written, tuple(map(str, fields["drop"])), _score(fields.get("score")))


def _score(fields: Mapping[str, Any] | None) -> Score | None:
    if fields is None:
        return None
    value = fields["value"]
    if value is not None and (type(value) not in (int, float) or not math.isfinite(value)):
        raise ValueError(f"{value!r:.60} is no score")
    if fields["mode"] not in ("min", "max"):
        raise ValueError(f"{fields['mode']!r:.60} is no mode")
    return Score(str(fields["monitor"]), fields["mode"], value, str(fields["weights"]))


def whole_number(value: Any, *, least: int | None = None) -> int:
    """The value, if it is an int of 64 bits, no bool, and not below `least`.

    Raises:
        ValueError: it is something else.
    """
    if type(value) is not int or (least is not None and value < least):
        raise ValueError(f"{value!r:.60} is no whole number" + ("" if least is None else f" from {least}"))
    if not -(2**63) <= value < 2**63:
        raise ValueError(f"{value!r:.60} has more than 64 bits")
    return value


def verify(checkpoint: Checkpoint) -> None:
    """Read every byte, and compare size and sha256 with the manifest.

    Raises:
        CheckpointError: with the name of the file that is damaged.
    """
    for name in checkpoint.files:
        with verified(checkpoint, name):
            pass


@contextlib.contextmanager
def verified(checkpoint: Checkpoint, name: str) -> Iterator[BinaryIO]:
    """A file of the checkpoint, open at its beginning, every byte of it as it was written.

    Raises:
        CheckpointError: it is damaged, gone, or no file of its own.
    """
    size, sha256 = checkpoint.files[name]
    path = checkpoint.path / name
    try:
        if path.is_symlink() or not path.is_file():
            raise CheckpointError(f"{path} is no file of its own")
        with path.open("rb") as file:
            if (found := os.fstat(file.fileno()).st_size) != size:
                raise CheckpointError(f"{path} is damaged: it has {found} bytes and not {size}")
            if hashlib.file_digest(file, "sha256").hexdigest() != sha256:
                raise CheckpointError(f"{path} is damaged: it does not match its checksum")
            file.seek(0)
            yield file
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error


@attrs.frozen
class Verification:
    """Whether a checkpoint is as it was written.

    Attributes:
        path: the folder.
        checkpoint: what its manifest says; None if that cannot be read.
        trouble: what is wrong with it; empty if each byte is as it was written.
    """

    path: Path
    checkpoint: Checkpoint | None
    trouble: str


def verify_all(chosen: Path) -> list[Verification]:
    """Verify a checkpoint, or each one in a folder: the newest first, and those without a manifest last.

    Raises:
        OSError: the folder cannot be read.
    """
    found = _one(chosen) if looks_like_checkpoint(chosen) else list_folder(chosen)
    verifications = [
        Verification(checkpoint.path, checkpoint, _trouble(checkpoint)) for checkpoint in found.checkpoints
    ]
    return [*verifications, *(Verification(path, None, problem) for path, problem in found.damaged.items())]


def _one(path: Path) -> Listing:
    try:
        return Listing([manifest_of(path)], {}, {})
    except CheckpointError as error:
        return Listing([], {path: str(error)}, {})


def _trouble(checkpoint: Checkpoint) -> str:
    try:
        verify(checkpoint)
    except CheckpointError as error:
        return str(error)
    return ""
