"""The answers of a function in new processes, each with another seed for the hashes of strings.

They differ where the function depends on the order of a set, or on what an earlier call changed in the
process. A function is pickled by value (its code, its closure and the globals that it uses), so that it may be
written in a test or a notebook; modules and classes that it uses must be importable.
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

from .consultation import Failure, Response, ask
from .hidden_state import global_names

HASH_SEEDS = ("1", "2", "3")
"""With three seeds and this process, two strings in a set have one order once in eight times, three once in 216."""

Question = tuple[object, object]
"""A state and a memory."""


class CannotBeSentError(Exception):
    """The function, a state or a memory refers to something that cannot be sent to another process."""


def answers_in_new_processes(decide: Callable[..., Any], questions: Sequence[Question]) -> list[list[Response]]:
    """The function's responses to the questions, in one new process for each seed.

    Raises:
        CannotBeSentError: it cannot be sent or run there; the message says why.
    """
    sent = io.BytesIO()
    try:
        FunctionPickler(sent, pickle.HIGHEST_PROTOCOL).dump((decide, list(questions)))
    except Exception as error:
        raise CannotBeSentError(f"it cannot be sent to another process: {error}") from error
    path = os.pathsep.join(folder for folder in sys.path if folder)
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", f"import sys, {__name__} as child; child.main(sys.stdin.buffer, sys.stdout.buffer)"],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": path},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for seed in HASH_SEEDS
    ]
    # Write to all before reading from one: they run at the same time.
    for process in processes:
        assert process.stdin is not None, "it is a pipe"
        process.stdin.write(sent.getvalue())
        process.stdin.close()
        process.stdin = None
    outputs = [process.communicate() for process in processes]
    for process, (_, errors) in zip(processes, outputs, strict=True):
        if process.returncode:
            last = errors.decode(errors="replace").strip().splitlines() or ["it said nothing"]
            raise CannotBeSentError(f"it cannot be asked in another process: {last[-1]}")
    return [pickle.loads(answers) for answers, _ in outputs]


def main(questions: IO[bytes], answers: IO[bytes]) -> None:
    """Read a function and questions, and write its responses: the program of a new process."""
    decide, pairs = pickle.load(questions)
    responses = [ask(decide, state, memory) for state, memory in pairs]
    FunctionPickler(answers, pickle.HIGHEST_PROTOCOL).dump(responses)


class FunctionPickler(pickle.Pickler):
    """Pickles a function by value if it cannot be imported."""

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, types.ModuleType):
            return importlib.import_module, (value.__name__,)
        if isinstance(value, types.FunctionType) and not _importable(value):
            return _empty_function, (marshal.dumps(value.__code__), value.__module__), _parts(value), None, None, _fill
        if isinstance(value, functools._lru_cache_wrapper):
            parameters = value.cache_parameters()
            return _cached, (value.__wrapped__, parameters["maxsize"], parameters["typed"])
        if isinstance(value, Failure):
            return _failure, (value.kind, value.text, value.deliberate)
        return NotImplemented


def _importable(function: types.FunctionType) -> bool:
    found: Any = sys.modules.get(function.__module__)
    for name in function.__qualname__.split("."):
        found = getattr(found, name, None)
    return found is function and function.__module__ != "__main__"


_Parts = tuple[dict[str, Any], list[tuple[bool, Any]], Any, Any, str, dict[str, Any]]


def _parts(function: types.FunctionType) -> _Parts:
    names = dict.fromkeys(global_names(function.__code__))
    used = {name: function.__globals__[name] for name in names if name in function.__globals__}
    return (
        used,
        [_content_of(cell) for cell in function.__closure__ or ()],
        function.__defaults__,
        function.__kwdefaults__,
        function.__qualname__,
        {name: value for name, value in vars(function).items() if name != "__wrapped__"},
    )


def _content_of(cell: types.CellType) -> tuple[bool, Any]:
    try:
        return True, cell.cell_contents
    except ValueError:
        return False, None


def _empty_function(code: bytes, module: str) -> types.FunctionType:
    """The function without globals, closure and defaults. They may refer to it, so they are filled in later."""
    body: types.CodeType = marshal.loads(code)
    cells = tuple(types.CellType() for _ in body.co_freevars)
    return types.FunctionType(body, {"__name__": module, "__builtins__": __builtins__}, body.co_name, None, cells)


def _fill(function: types.FunctionType, parts: _Parts) -> None:
    used, contents, function.__defaults__, function.__kwdefaults__, function.__qualname__, attributes = parts
    vars(function).update(attributes)
    function.__globals__.update(used)
    for cell, (assigned, content) in zip(function.__closure__ or (), contents, strict=True):
        if assigned:
            cell.cell_contents = content


def _cached(function: Callable[..., Any], maxsize: int | None, typed: bool) -> Callable[..., Any]:
    return functools.lru_cache(maxsize, typed)(function)


def _failure(kind: str, text: str, deliberate: bool) -> Failure:
    return Failure(kind, text, Exception(text), deliberate)
