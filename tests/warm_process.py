"""Scripts in processes of their own that are forked from one that has imported what takes seconds to import.

A script is the main module of its process, which ends as any interpreter does.
"""

from __future__ import annotations

import atexit
import functools
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]

SERVER = """
import gc, importlib, json, os, sys, warnings

for name in sys.argv[1:]:
    importlib.import_module(name)
gc.freeze()  # or each process would look through all of it in its end
for line in sys.stdin:
    job = json.loads(line)
    process = os.fork()
    if process == 0:
        break
    print(process, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), flush=True)
else:
    os._exit(0)

for number, (path, flags) in enumerate([(os.devnull, os.O_RDONLY), *((path, os.O_WRONLY) for path in job["writes"])]):
    os.dup2(file := os.open(path, flags), number)
    os.close(file)
script, *_ = sys.argv = job["command"]
sys.path[0] = os.path.dirname(script)
__file__, source = script, open(script, encoding="utf-8").read()
if job["strict"]:
    warnings.simplefilter("error")
del process, line, number, path, flags, file, job
exec(compile(source, script, "exec"))
"""


@functools.cache
def _server(imports: tuple[str, ...]) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join((str(ROOT), *sys.path))}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    server = subprocess.Popen([sys.executable, "-c", SERVER, *imports], env=environment, text=True, **pipes)  # type: ignore[call-overload]
    atexit.register(_end, server)
    return server


def _end(server: subprocess.Popen[str]) -> None:
    assert server.stdin is not None
    assert server.stdout is not None
    server.stdin.close()
    server.stdout.close()
    server.wait()


def run_script(
    script: Path,
    *arguments: str,
    imports: tuple[str, ...] = ("torch.utils.data",),
    strict: bool = False,
    seconds: float = 180,
) -> subprocess.CompletedProcess[str]:
    """Run the script with these arguments, forked where these modules are imported.

    With `strict` a warning is an error, as with `python -W error`.

    Raises:
        TimeoutError: it took more than so many seconds, and was killed.
    """
    command = [str(script), *arguments]
    with tempfile.NamedTemporaryFile() as out, tempfile.NamedTemporaryFile() as error:
        status = _status(_server(imports), command, [out.name, error.name], strict, seconds)
        said = (Path(file.name).read_text(encoding="utf-8") for file in (out, error))
        return subprocess.CompletedProcess(command, status, *said)


def _status(
    server: subprocess.Popen[str], command: Sequence[str], writes: Sequence[str], strict: bool, seconds: float
) -> int:
    assert server.stdin is not None
    assert server.stdout is not None
    server.stdin.write(json.dumps({"command": command, "writes": writes, "strict": strict}) + "\n")
    server.stdin.flush()
    process = int(server.stdout.readline())
    ended, _, _ = select.select([server.stdout], [], [], seconds)
    if not ended:
        os.kill(process, signal.SIGKILL)
    status = int(server.stdout.readline())
    if not ended:
        raise TimeoutError(f"{command[0]} took more than {seconds} seconds")
    return status
