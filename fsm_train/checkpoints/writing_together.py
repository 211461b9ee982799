"""One checkpoint that all ranks of a training write: rank 0 leads, and the others write their files into its folder.

Rule of this file: what a rank could not do, all ranks know at the next exchange, which is then the last one. So either
the checkpoint is in its place, or nothing of it stays, and all ranks say the same.

    rank 0                          the others
    makes the folder     →          are told its path
    writes its files                each writes its own
                         ←          sizes and digests, and what is where in them
    manifest, rename
                         →          are told that it is in its place
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..core.errors import CheckpointError
from ..worlds.rows import Topic
from .beside import ToWrite
from .peers import Peers, failure_of, failures
from .rank_names import name_of_rank
from .shard_writing import NO_SHARES
from .writing import write_tensors


class Lead:
    """Rank 0's part: what it does while it writes a checkpoint into a folder.

    Args:
        peers: the ranks; None for a training on one.

    Attributes:
        shares: what this rank has of the tensors that ranks share out; set before it begins.
        trouble: what ranks could not do, in words; empty if nothing failed.
    """

    def __init__(self, peers: Peers | None = None) -> None:
        self._peers = peers
        self.shares = NO_SHARES
        self.trouble = ""

    def begun(self, unfinished: Path) -> None:
        """Have the other ranks write into this folder.

        Raises:
            CheckpointError: one cannot.
        """
        self._tell({"folder": str(unfinished)})

    def files(self, unfinished: Path) -> Mapping[str, tuple[int, str]]:
        """The files of ranks that are there once all have written: by name, the size and sha256 of each.

        They are those of the others, and those of the tensors that ranks share out.

        Raises:
            CheckpointError: one could not write its own, or wrote it to another disk.
            OSError: the disk refuses.
        """
        found: dict[str, tuple[int, str]] = {}
        pieces = self.shares.write(unfinished, 0, found)
        told = self._tell({"files": {}, "pieces": pieces})
        for rank, own in enumerate(told):
            for name, (size, sha256) in own["files"].items():
                path = unfinished / name
                if not path.is_file() or path.stat().st_size != size:
                    raise CheckpointError(
                        f"the file that rank {rank} wrote is not there: the folder has to be on a disk of all ranks"
                    )
                found[name] = size, sha256
        self.shares.write_metadata(unfinished, [own["pieces"] for own in told], found)
        return found

    def ended(self) -> None:
        """Tell the others that the checkpoint is in its place."""
        self._tell(None)

    def failed(self, error: BaseException) -> None:
        """Tell the others that this rank failed, if they do not know of a failure. Idempotent.

        What is no Exception, such as Ctrl-C, ends the run of this rank, and the others with it.
        """
        if self._peers is not None and not (self.trouble or self._peers.lost) and isinstance(error, Exception):
            self.trouble = failures(self._peers.tell(Topic.WRITE, failure_of(error)))

    def _tell(self, own: Any) -> Sequence[Any]:
        told = [own] if self._peers is None else self._peers.tell(Topic.WRITE, own)
        self.trouble = failures(told)
        if self.trouble:
            raise CheckpointError(self.trouble)
        return told


ALONE = Lead()
"""Of a training on one rank."""


def follow(peers: Peers, to_write: ToWrite) -> str:
    """The part of another rank than 0: write its own parts, and its shares, into the folder that rank 0 makes.

    Returns:
        What ranks could not do, in words; empty if the checkpoint is in its place.
    """
    told = peers.tell(Topic.WRITE, None)
    if trouble := failures(told):
        return trouble
    files: dict[str, tuple[int, str]] = {}
    try:
        parts, shares = to_write()
        folder = Path(told[0]["folder"])
        write_tensors(folder / name_of_rank(peers.rank), peers.own_parts(parts), files)
        pieces = shares.write(folder, peers.rank, files)
    except Exception as error:  # of the disk, of a device, of a thread
        told = peers.tell(Topic.WRITE, failure_of(error))
    else:
        written = {name: list(digest) for name, digest in files.items()}
        told = peers.tell(Topic.WRITE, {"files": written, "pieces": pieces})
    return failures(told) or failures(peers.tell(Topic.WRITE, None))
