"""Trainings in new processes, some of which are sent a signal."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import attrs
import torch

from fsm_train import NoCheckpointError, Phase, State, on, restore, run, start
from fsm_train.checkpoints import writing
from fsm_train.core.phase import Junction
from fsm_train.signals import SIGNALS
from tests.checkpoints.awkward_training import Spec
from tests.checkpoints.comparison import End, disturb, end_of, resume
from tests.how_long import THOROUGH

FRESH = multiprocessing.get_context("forkserver")
"""Each process is forked from a server that has only imported these modules."""
FRESH.set_forkserver_preload([__name__, "tests.checkpoints.test_damage"])


def all_or_some(paths: Iterable[Path], every: int) -> list[Path]:
    """All of them in a thorough run; otherwise one of `every`."""
    ordered = sorted(paths)
    return ordered if THOROUGH else ordered[every // 2 :: every]


def each_in_a_fresh_process(jobs: Sequence[tuple[Spec, Path]]) -> list[End]:
    """Resume from each of these checkpoints, each in a new process."""
    with ProcessPoolExecutor(1, FRESH, as_a_script, max_tasks_per_child=1) as pool:
        return list(pool.map(resume, *zip(*jobs, strict=True)))


def die_at_call(number: int, *names: str) -> list[str]:
    """Let this process be gone, without any cleaning up, at this call of these functions of `os` or of a write.

    Returns:
        The names of the calls so far, in which each further one stands.
    """
    calls: list[str] = []

    def counted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def instead(*args: Any, **kwargs: Any) -> Any:
            calls.append(name)
            if len(calls) == number:
                os._exit(9)
            return function(*args, **kwargs)

        return instead

    for name in names:
        setattr(os, name, counted(name, getattr(os, name)))
    writing._HashingFile.write = counted("write", writing._HashingFile.write)  # type: ignore[method-assign]
    return calls


def as_a_script() -> None:
    """Behave as a process that a shell started: fork the workers of loaders, without a server."""
    torch.set_num_threads(1)
    multiprocessing.set_start_method("fork", force=True)


def run_script(spec: Spec, answer: Path) -> None:
    """A script that may be killed at any time: resume from the newest checkpoint, if there is one.

    If the training is suspended, it exits with the status of SIGTERM. It writes a report into `answer`.
    """
    as_a_script()
    os.setpgrp()
    disturb()
    before = [signal.getsignal(number) for number in SIGNALS]
    work, callbacks = spec.make()
    batch_starts: list[float] = []

    @on(Phase.BATCH_BEGIN, Phase.VALID_BATCH_BEGIN)
    def clock(state: State) -> None:
        batch_starts.append(time.monotonic())
        time.sleep(spec.slow)

    assert spec.saves is not None
    try:
        state = restore(spec.saves, work)
    except NoCheckpointError:
        state = start(work, epochs=spec.epochs, seed=0)
    answer.with_suffix(".begun").touch()
    state = run(state, [*callbacks, clock])
    restored = [signal.getsignal(number) for number in SIGNALS] == before
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)  # a later signal is not for the training
    report = {
        "batch_starts": batch_starts,
        "handlers": restored,
        "validating": state.resume_at is Junction.VALID_ABANDONED,
    }
    unfinished = answer.with_suffix(".unfinished")
    unfinished.write_text(json.dumps([end_of(work, state), report]))
    unfinished.rename(answer)  # for it may be killed meanwhile
    if state.phase is Phase.SUSPENDED:
        sys.exit(128 + signal.SIGTERM)


@attrs.frozen
class Exit:
    """How a process ended that was sent a signal.

    Attributes:
        status: its exit status.
        end: digests of the training, as in `comparison`.
        report: when its batches began, whether signal handlers were restored, whether it was validating.
        batches_after: number of batches that began after the signal.
    """

    status: int
    end: dict[str, str]
    report: dict[str, Any]
    batches_after: int


def signalled(spec: Spec, number: signal.Signals, after: float, *, group: bool = False) -> Exit:
    """Run the script in a process, and send it a signal `after` seconds after its training began."""
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder, "answer")
        process = FRESH.Process(target=run_script, args=(spec, answer))
        process.start()
        assert process.pid is not None
        while process.is_alive() and not answer.with_suffix(".begun").exists():
            time.sleep(0.001)
        process.join(after)
        if process.is_alive():
            with contextlib.suppress(ProcessLookupError):
                (os.killpg if group else os.kill)(process.pid, number)
        sent = time.monotonic()  # and not before: this process may have to wait for its turn
        process.join(180)
        assert process.exitcode is not None, "it does not end"
        end, report = json.loads(answer.read_text()) if answer.exists() else ({}, {})
    return Exit(process.exitcode, end, report, sum(began > sent for began in report.get("batch_starts", ())))
