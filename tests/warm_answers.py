"""The answers of a function in new processes that are forked from some that have imported the package.

`fsm_train.testing.fresh_process` starts Python three times for each callback that is checked, which takes longer than
most of the checks. These processes are as new: what they are forked from has only imported that module.
"""

from __future__ import annotations

import io
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

from fsm_train.testing import fresh_process
from fsm_train.testing.fresh_process import HASH_SEEDS, CannotBeSentError, FunctionPickler, Question

SERVER = f"""
import gc, io, os, pickle, sys
import {fresh_process.__name__} as child

gc.freeze()
while length := sys.stdin.buffer.read(8):
    job = sys.stdin.buffer.read(int.from_bytes(length, "big"))
    if os.fork():
        os.wait()
        continue
    environment, folder, sent = pickle.loads(job)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    answers = io.BytesIO()
    try:
        child.main(io.BytesIO(sent), answers)
    except BaseException as error:
        pickle.dump((type(error).__name__ + ": " + str(error), b""), sys.stdout.buffer)
    else:
        pickle.dump(("", answers.getvalue()), sys.stdout.buffer)
    sys.stdout.buffer.flush()
    os._exit(0)
"""


class WarmAnswers:
    """In place of `answers_in_new_processes`, in the process that makes it and while modules are found where they are.

    It is a context manager, which ends the processes that others are forked from.
    """

    def __init__(self) -> None:
        self._made_by = os.getpid(), [*sys.path]
        self._servers: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> WarmAnswers:
        return self

    def __call__(self, decide: Callable[..., Any], questions: Sequence[Question]) -> list[list[Any]]:
        if (os.getpid(), sys.path) != self._made_by:
            return fresh_process.answers_in_new_processes(decide, questions)
        sent = io.BytesIO()
        try:
            FunctionPickler(sent, pickle.HIGHEST_PROTOCOL).dump((decide, list(questions)))
        except Exception as error:
            raise CannotBeSentError(f"it cannot be sent to another process: {error}") from error
        self._servers = self._servers or [self._started(seed) for seed in HASH_SEEDS]
        job = pickle.dumps(({**os.environ}, os.getcwd(), sent.getvalue()))  # noqa: PTH109
        for server in self._servers:
            assert server.stdin is not None
            server.stdin.write(len(job).to_bytes(8, "big") + job)
            server.stdin.flush()
        answered = [pickle.load(server.stdout) for server in self._servers if server.stdout is not None]
        for failure, _ in answered:
            if failure:
                raise CannotBeSentError(f"it cannot be asked in another process: {failure}")
        return [pickle.loads(answers) for _, answers in answered]

    def _started(self, seed: str) -> subprocess.Popen[bytes]:
        path = os.pathsep.join(folder for folder in sys.path if folder)
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": path}
        command = [sys.executable, "-c", SERVER]
        return subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def __exit__(self, *_: object) -> None:
        for server in self._servers:
            server.kill()  # a process that was forked since then may hold its pipe open
            server.communicate()
