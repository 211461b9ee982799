"""Who writes where: one run at a time holds the lock on a folder of checkpoints or on a log.

Rule of this file: the operating system says who holds a lock, and it lets go of it with the process, however that ends.
What the lock file says of its holder only serves the sentence.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import platform
import time
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from filelock import BaseFileLock

_PATIENCE = 0.3  # seconds; one that ends meanwhile was not in the way
_BEGINS = b'{"who":'
_NOT_SUPPORTED = frozenset({errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP})

_logger = logging.getLogger("fsm_train")


class HeldError(Exception):
    """Another run holds the lock. The text says which, and since when."""


@attrs.frozen(eq=False)
class Lock:
    """A lock that this process holds.

    Attributes:
        path: of the lock file, which is removed with the lock.
    """

    path: Path
    _lock: BaseFileLock
    _is_ours: bool  # what is in the file
    _pid: int = attrs.field(factory=os.getpid)
    _mark: tuple[int, int] | None = attrs.field()

    @_mark.default
    def _mark_of_file(self) -> tuple[int, int] | None:
        return _mark(self.path)

    @property
    def in_place(self) -> bool:
        """Whether others meet it: the folder that it is in may have been removed or replaced meanwhile."""
        return _mark(self.path) == self._mark is not None

    def release(self) -> None:
        """Let others have it. A process that waits for the old file sees that it has no name any more.

        It stays with the process that took it: in one that was forked meanwhile, this does nothing.
        """
        if os.getpid() != self._pid:
            return
        try:
            if self._is_ours and self.in_place:
                with contextlib.suppress(OSError):
                    self.path.unlink(missing_ok=True)
        finally:
            self._lock.release()


def take(path: Path, who: str = "a run") -> Lock | None:
    """Take the lock with this file; None where the file system has no locks, which is logged.

    A lock of a process that has ended, in whatever way, is free. What this process forks does not hold it.

    Args:
        path: of the lock file, in a folder that exists.
        who: holds it, for the sentence that others are refused with.

    Raises:
        HeldError: another process holds it, or another run of this one.
        OSError: the file cannot be made.
    """
    from filelock import FileLock, Timeout  # late: it takes longer to import than all of this package

    path = path.absolute()  # the program may go to another folder
    is_ours = _is_ours(path)
    lock = FileLock(path, timeout=_PATIENCE, thread_local=False)
    try:
        lock.acquire()
    except Timeout:
        raise HeldError(_holder(path)) from None
    except OSError as error:
        if error.errno not in _NOT_SUPPORTED:
            raise
        _logger.warning(
            "%s cannot be locked (%s): nothing refuses a second run that writes there", path, error.strerror
        )
        return None
    try:
        text = json.dumps({"who": who, "pid": os.getpid(), "host": platform.node(), "since": time.time()})
        if is_ours:
            with contextlib.suppress(OSError):  # a full disk: it is locked all the same
                path.write_text(text, encoding="utf-8")
        return Lock(path, lock, is_ours)
    except BaseException:  # Ctrl-C
        lock.release()
        raise


def _mark(path: Path) -> tuple[int, int] | None:
    """Which file it is; None if it is not there."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_dev, stat.st_ino


def _is_ours(path: Path) -> bool:
    """Whether nothing is lost with the lock file: it is not there, or has what `take` wrote, or a part of that."""
    if not path.is_file():
        return True
    try:
        with path.open("rb") as file:
            content = file.read(64).strip(b"\0")
    except OSError:
        return True
    return content[:7] == _BEGINS[: len(content)]


def _holder(path: Path) -> str:
    """Who holds the lock, in words."""
    try:
        said = json.loads(path.read_bytes()[:4096])
        who, pid, host, since = (said[name] for name in ("who", "pid", "host", "since"))
        began = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(since))
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return "another run"  # it has just taken the lock
    if pid == os.getpid() and host == platform.node():
        return "another run of this process"
    where = "" if host == platform.node() else f" on {host}"
    return f"{who!s:.40} of process {pid}{where}, since {began}"
