"""A hidden state that goes from window to window, as in `examples/char_lm.py`, in a training that is resumed."""

from __future__ import annotations

import runpy
from pathlib import Path
from types import SimpleNamespace

import torch

from fsm_train import Supervised, run, start
from tests.killed import killed_and_resumed
from tests.models import same_weights

SCRIPT = Path(__file__).parents[2] / "examples" / "char_lm.py"


def test_hidden_state_is_carried_over_a_kill(tmp_path: Path) -> None:
    """A training that is continued in the middle of a text ends as an undisturbed one."""
    script = SimpleNamespace(**runpy.run_path(str(SCRIPT)))
    text = script.read(("shutil",))[:12_000]

    def work() -> Supervised:
        torch.manual_seed(0)
        model = script.CharacterModel()
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        return Supervised(model, optimizer, script.cross_entropy, script.Streams(text, 8, 64), forward=script.carry_on)

    undisturbed = work()
    run(start(undisturbed, epochs=2, seed=0))

    _, resumed = killed_and_resumed(work, tmp_path, 7)

    assert same_weights(resumed.model, undisturbed.model)
