"""Ranks as forked processes on gloo: what each returned or raised."""

from __future__ import annotations

import contextlib
import gc
import importlib
import multiprocessing
import os
import pickle
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d as c10d

from fsm_train.supervised import leaving
from fsm_train.supervised.ranks import GlooExchange

LIMIT = 180
"""Seconds after which a rank that hangs is ended."""


def forked(
    ranks: int, folder: Path, work: Callable[[int], Any], seconds: float | None = None, *, limit: float = LIMIT
) -> list[Any]:
    """Call the function in one process for each rank, all in one process group.

    Args:
        ranks, folder, work: how many, where they meet, and the function, which is given the rank.
        seconds: how long they wait for each other in the group; by default as long as `limit`.
        limit: seconds after which ranks that hang are ended.

    Returns:
        by rank what it returned, which can be pickled, or the exception that it raised; EOFError where it was killed.
    """
    importlib.import_module("torch._dynamo")  # as torch's wrapper does when it is made: once, and not in each process
    context = multiprocessing.get_context("fork")
    ends, processes = [], []
    for rank in range(ranks):
        receives, sends = context.Pipe(duplex=False)
        given = rank, ranks, _made(folder) / "store", work, sends, seconds or limit
        process = context.Process(target=_rank, args=given)  # no daemon, which may have no workers
        process.start()
        sends.close()
        ends.append(receives)
        processes.append(process)
    found: list[Any] = []
    until = time.monotonic() + limit  # for all of them: who waits for a rank that hangs, hangs too
    for receives, process in zip(ends, processes, strict=True):
        try:
            ends_in_time = receives.poll(max(until - time.monotonic(), 1.0))
            found.append(pickle.loads(receives.recv_bytes()) if ends_in_time else TimeoutError("it hangs"))
        except EOFError as error:
            found.append(error)
        process.join(5)
        if process.is_alive():
            process.kill()
            process.join()
    return found


def wait_at_most(seconds: float, *exchanges: GlooExchange) -> None:
    """For each other, from now on: in these exchanges, or in the process group. A busy machine needs longer before."""
    for exchange in exchanges:
        exchange._seconds = seconds
    for group in [exchange._group for exchange in exchanges] or [None]:
        c10d._set_pg_timeout(timedelta(seconds=seconds), group)


def _rank(rank: int, ranks: int, path: Path, work: Callable[[int], Any], sends: Any, seconds: float) -> None:
    torch.set_num_threads(1)
    gc.freeze()  # so that a collection looks at what this process makes, which is a moment
    # inductor's pool of compilers, once a test has made it, is this process's parent's: it never answers here
    importlib.import_module("torch._inductor.config").compile_threads = 1
    # a test in this process's parent may have hooked what its script raises; this one hooks for itself
    leaving._hooked = False
    store = dist.FileStore(str(path), ranks)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=ranks, timeout=timedelta(seconds=seconds))
    try:
        end = work(rank)
    except BaseException as error:
        error.__cause__ = error.__context__ = None
        end = error
    with contextlib.suppress(BrokenPipeError):
        sends.send_bytes(pickle.dumps(end))  # torch would share the memory of tensors with a process that ends
    sends.close()
    os._exit(0)  # what pytest would do at its end is not for this process to do


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder
