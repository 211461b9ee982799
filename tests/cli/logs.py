"""Small logs that several tests of the commands make."""

from __future__ import annotations

from pathlib import Path

from fsm_train import run, start

from ..eventlog.log_files import forged, workload


def three_epochs(path: Path) -> None:
    """A whole training."""
    run(start(workload(), epochs=3), log=path)


def only_a_header(path: Path) -> None:
    """A training of which nothing but the header was written."""
    three_epochs(path)
    forged(path, lambda lines: lines.__delitem__(slice(1, None)))
