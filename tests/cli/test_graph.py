"""`fsm-train graph`: the machine as text, diagrams and JSON."""

from __future__ import annotations

import json

import pytest

from fsm_train.cli import main
from fsm_train.core.phase import Junction, Operation, Phase
from fsm_train.core.table import TABLE

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
    assert main(["graph", "--format", "svg"]) == 0
    assert capsys.readouterr().out.startswith("<svg ")


def test_graph_as_json_has_each_edge(capsys: Captured) -> None:
    """With the terms that must all hold, the operations by name, and who is consulted where."""
    assert main(["graph", "--json", "--callbacks", "fsm_train.callbacks:early_stopping"]) == 0

    graph = json.loads(capsys.readouterr().out)
    assert len(graph["edges"]) == len(TABLE)
    first = {"from": "READY", "guard": [], "operations": ["prepare"], "raises": [], "to": "SETUP"}
    assert graph["edges"][0] == first
    skipped = {"from": "BACKWARD_END", "guard": ["SKIP_STEP", "SKIP_ZERO"], "operations": []}
    skipped |= {"raises": [], "to": "BATCH_END"}
    assert skipped in graph["edges"]
    places = {*Phase.__members__, *Junction.__members__}
    assert {place for edge in graph["edges"] for place in (edge["from"], edge["to"])} == places
    assert {name for edge in graph["edges"] for name in edge["operations"]} == {each.value for each in Operation}
    assert graph["consulted"] == {"VALID_END": ["early_stopping"], "EPOCH_END": ["early_stopping"]}


def test_graph_shows_who_watches(capsys: Captured) -> None:
    """The callbacks at their phases, and with --watched only those phases."""
    for shape, note in (("text", "VALID_END          early_stopping"), ("mermaid", "note right of VALID_END : early")):
        assert main(["graph", "--format", shape, "--callbacks", "fsm_train.callbacks:early_stopping"]) == 0
        assert note in capsys.readouterr().out
    watched = ["--callbacks", "fsm_train.callbacks:early_stopping", "--watched"]
    assert main(["graph", "--format", "dot", *watched]) == 0
    drawn = capsys.readouterr().out
    assert '    VALID_END [label="VALID_END\\nearly_stopping"]' in drawn
    assert "    VALID_END -> VALID_END" in drawn
    assert "BATCH" not in drawn
    assert main(["graph", "--format", "mermaid", *watched]) == 0
    assert "<<choice>>" not in capsys.readouterr().out
