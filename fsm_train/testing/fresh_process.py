"""A function asked the same things in new processes, each with another seed for the hashes of strings.

So what depends on the order of a set, or on what an earlier consultation left in the process, is found.
A function is sent by value (its code, closure and the globals that it uses), so that one written in a
test or a notebook can be sent too; what it refers to by name must be importable.
"""

from __future__ import annotations

import functools
import importlib
import io
import marshal
import os
import pickle
import subprocess
import sys
import types
from collections.abc import Callable, Sequence
from typing import IO, Any

from .consultation import Outcome, Raised, ask_plainly
from .hidden import global_names

SEEDS = ("1", "2", "3")
"""Two strings in a set keep their order under all of these, and here, once in eight times; three once in 216."""

Question = tuple[object, object]
"""A state and a memory."""


class CannotBeSentError(Exception):
    """The function, or what it is asked with, refers to something that another process cannot have."""


def answers_elsewhere(decide: Callable[..., Any], questions: Sequence[Question]) -> list[list[Outcome]]:
    """What the function answers to each question, in one new process per seed.

    Raises:
        CannotBeSentError: with the reason.
    """
    sent = io.BytesIO()
    try:
        Sender(sent, pickle.HIGHEST_PROTOCOL).dump((decide, list(questions)))
    except Exception as error:
        raise CannotBeSentError(f"it cannot be sent to another process: {error}") from error
    path = os.pathsep.join(folder for folder in sys.path if folder)
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", f"import sys, {__name__} as it; it.main(sys.stdin.buffer, sys.stdout.buffer)"],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": path},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for seed in SEEDS
    ]
    # All at once: they run side by side, and each reads its question as soon as it has started.
    for process in processes:
        assert process.stdin is not None, "it is a pipe"
        process.stdin.write(sent.getvalue())
        process.stdin.close()
        process.stdin = None
    told = [process.communicate() for process in processes]
    for process, (_, wrong) in zip(processes, told, strict=True):
        if process.returncode:
            last = wrong.decode(errors="replace").strip().splitlines() or ["it said nothing"]
            raise CannotBeSentError(f"it cannot be asked in another process: {last[-1]}")
    return [pickle.loads(answers) for answers, _ in told]


def main(questions: IO[bytes], answers: IO[bytes]) -> None:
    """What is done in the new process."""
    decide, asked = pickle.load(questions)
    outcomes = [ask_plainly(decide, state, memory) for state, memory in asked]
    Sender(answers, pickle.HIGHEST_PROTOCOL).dump(outcomes)


class Sender(pickle.Pickler):
    """Pickles functions by value if the other process could not import them."""

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, types.ModuleType):
            return importlib.import_module, (value.__name__,)
        if isinstance(value, types.FunctionType) and not _importable(value):
            return _hollow, (marshal.dumps(value.__code__), value.__module__), _parts(value), None, None, _fill
        if isinstance(value, functools._lru_cache_wrapper):
            parameters = value.cache_parameters()
            return _cached, (value.__wrapped__, parameters["maxsize"], parameters["typed"])
        if isinstance(value, Raised):
            return _raised, (value.kind, value.text, value.deliberate)
        return NotImplemented


def _importable(function: types.FunctionType) -> bool:
    found: Any = sys.modules.get(function.__module__)
    for name in function.__qualname__.split("."):
        found = getattr(found, name, None)
    return found is function and function.__module__ != "__main__"


_Parts = tuple[dict[str, Any], list[tuple[bool, Any]], Any, Any, str]


def _parts(function: types.FunctionType) -> _Parts:
    names = dict.fromkeys(global_names(function.__code__))
    used = {name: function.__globals__[name] for name in names if name in function.__globals__}
    return (
        used,
        [_content(cell) for cell in function.__closure__ or ()],
        function.__defaults__,
        function.__kwdefaults__,
        function.__qualname__,
    )


def _content(cell: types.CellType) -> tuple[bool, Any]:
    try:
        return True, cell.cell_contents
    except ValueError:
        return False, None


def _hollow(code: bytes, module: str) -> types.FunctionType:
    """The function without what it refers to, which may refer to it."""
    body: types.CodeType = marshal.loads(code)
    cells = tuple(types.CellType() for _ in body.co_freevars)
    return types.FunctionType(body, {"__name__": module, "__builtins__": __builtins__}, body.co_name, None, cells)


def _fill(function: types.FunctionType, parts: _Parts) -> None:
    used, contents, function.__defaults__, function.__kwdefaults__, function.__qualname__ = parts
    function.__globals__.update(used)
    for cell, (is_there, content) in zip(function.__closure__ or (), contents, strict=True):
        if is_there:
            cell.cell_contents = content


def _cached(function: Callable[..., Any], maxsize: int | None, typed: bool) -> Callable[..., Any]:
    return functools.lru_cache(maxsize, typed)(function)


def _raised(kind: str, text: str, deliberate: bool) -> Raised:
    return Raised(kind, text, Exception(text), deliberate)
