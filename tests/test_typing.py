"""What a type checker makes of code that uses the package."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

USES = """
from collections.abc import Mapping

import fsm_train.commands
from fsm_train import Callback, Phase, Scripted, Sink, State, Transition, on, run, start
from fsm_train.callbacks import clip_grad_norm, early_stopping, schedule
from fsm_train.schedules import cosine

@on(Phase.EPOCH_END, memory=0)
def count(state: State, epochs: int) -> Transition:
    return Transition(memory=epochs + 1)

counts: Callback[int] = count
callbacks = [clip_grad_norm(1.0), early_stopping(), schedule(lr=cosine(10)), count]
clip: fsm_train.Command = fsm_train.commands.ClipGradNorm(1.0)

class PrintState(Sink):
    at = (Phase.EPOCH_END,)

    def see(self, state: State, answers: Mapping[str, Transition]) -> None:
        print(state)

final: State = run(start(Scripted(), epochs=1), callbacks, sinks=[PrintState()])
"""

MISUSES = {
    'on(Phase.EPOCH_END, memory="a")(needs_an_int)': "arg-type",
    "on(Phase.EPOCH_END)(needs_an_int)": "arg-type",
    'clip_grad_norm("1.0")': "arg-type",
    "early_stopping(patienc=3)": "call-arg",
    "final.epoch = 3": "misc",
    'final.metrics["x"] = 1.0': "index",
    "from fsm_train import Sate": "attr-defined",
    "fsm_train.commands.ClipGradNrom": "attr-defined",
}


def check(code: str, folder: Path) -> str:
    """What mypy says of a file with this code."""
    file = folder / "uses.py"
    file.write_text(code)
    command = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(folder / "cache"), str(file)]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


def test_types_lead_whoever_uses_them(tmp_path: Path) -> None:
    """Lists of callbacks with different memories are fine; each misuse is found, on its line."""
    helper = "\ndef needs_an_int(state: State, memory: int) -> None: ...\n"
    fine = check(USES + helper, tmp_path)
    wrong = check(USES + helper + "\n".join(MISUSES), tmp_path)

    assert "Success" in fine
    first = (USES + helper).count("\n") + 1
    for line, code in enumerate(MISUSES.values(), start=first):
        assert any(f":{line}: error" in said and f"[{code}]" in said for said in wrong.splitlines()), (line, wrong)
