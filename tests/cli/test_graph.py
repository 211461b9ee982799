"""`fsm-train graph`: the machine as text, diagrams and JSON."""

from __future__ import annotations

import json

import pytest

from fsm_train.cli import main

Captured = pytest.CaptureFixture[str]


def test_graph_draws_the_machine(capsys: Captured) -> None:
    """As text, for Mermaid, or for Graphviz."""
    assert main(["graph"]) == 0
    assert "SETUP              resuming" in capsys.readouterr().out
    assert main(["graph", "--format", "mermaid"]) == 0
    assert capsys.readouterr().out.startswith("stateDiagram-v2")
    assert main(["graph", "--format", "dot"]) == 0
    drawn = capsys.readouterr().out
    assert drawn.startswith("digraph machine {")
    assert '    BATCH_BEGIN -> BATCH_END [label="[SKIP_BATCH]"]' in drawn
    assert "    FETCHED [shape=diamond]" in drawn
    assert main(["graph", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["edges"][0][0] == "READY"


def test_graph_shows_who_watches(capsys: Captured) -> None:
    """The callbacks at their phases, and with --watched only those phases."""
    for shape, note in (("text", "EPOCH_END          early_stopping"), ("mermaid", "note right of EPOCH_END : early")):
        assert main(["graph", "--format", shape, "--callbacks", "fsm_train.callbacks:early_stopping"]) == 0
        assert note in capsys.readouterr().out
    watched = ["--callbacks", "fsm_train.callbacks:early_stopping", "--watched"]
    assert main(["graph", "--format", "dot", *watched]) == 0
    drawn = capsys.readouterr().out
    assert '    EPOCH_END [label="EPOCH_END\\nearly_stopping"]' in drawn
    assert "    EPOCH_END -> EPOCH_END" in drawn
    assert "BATCH" not in drawn
    assert main(["graph", "--format", "mermaid", *watched]) == 0
    assert "<<choice>>" not in capsys.readouterr().out
