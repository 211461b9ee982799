"""The first difference of two runs, and of what kind it is."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from fsm_train import EventLog, Flag, Phase, State, Transition, diff, extend, on, run, start
from fsm_train.callbacks import early_stopping

from .log_files import LOSSES, forged, index, library, logged, smoothed, workload


@pytest.fixture
def logs(tmp_path: Path) -> tuple[Path, Path]:
    """Two logs of the same training."""
    a, b = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    for path in (a, b):
        logged(path, [*library(), smoothed])
    return a, b


def test_equal_trainings_have_no_difference(logs: tuple[Path, Path]) -> None:
    """Not even a log with itself."""
    a, b = logs

    assert diff(a, b) is None
    assert diff(a, a) is None


def test_lines_that_only_one_has_make_no_difference(tmp_path: Path) -> None:
    """Who asked for a line per batch has the same training; the batches on the way are counted together."""
    a, b = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    run(start(workload(), epochs=2), log=a)
    run(start(workload(), epochs=2), log=EventLog(b, phases=[Phase.BATCH_END]))

    assert len(b.read_bytes()) > len(a.read_bytes())
    assert diff(a, b) is None
    assert diff(b, a) is None


def test_facts_that_only_one_has_make_no_difference(tmp_path: Path) -> None:
    """One log was asked for the loss of each batch, and the other was not."""
    a, b = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    for path, facts in ((a, ["loss"]), (b, [])):
        run(start(workload(), epochs=2), log=EventLog(path, phases=[Phase.BATCH_END], facts=facts))

    assert diff(a, b) is None


def test_a_fact_is_a_fact(logs: tuple[Path, Path]) -> None:
    """A loss that differs in its last bit is the first difference, with its place in both files."""
    a, b = logs
    i = []

    def change(lines: list[dict[str, Any]]) -> None:
        i.append(index(lines, "batch_end", 6))
        facts = lines[i[0]]["facts"]
        facts["loss"] = math.nextafter(facts["loss"], 1)

    forged(b, change)
    found = diff(a, b)

    assert found is not None
    assert (found.kind, found.what, found.lines) == ("facts", "loss", (i[0] + 1, i[0] + 1))
    assert (found.phase, found.epoch, found.batch) == ("batch_end", 1, 2)
    assert found.a != found.b
    assert str(found).startswith("facts, loss: 0.1666")


def test_a_metric_is_a_fact(logs: tuple[Path, Path]) -> None:
    """What a validation measured was not decided by anybody."""
    a, b = logs
    run(start(workload([*LOSSES[:2], 9.0, *LOSSES[3:]]), epochs=8, seed=0), [*library(), smoothed], log=b)

    found = diff(a, b)

    assert found is not None
    assert (found.kind, found.what, found.phase, found.a, found.b) == ("facts", "valid_loss", "valid_end", 2.5, 9.0)


def test_a_batch_is_a_fact(logs: tuple[Path, Path]) -> None:
    """Another size of a batch."""
    a, b = logs
    forged(b, lambda lines: lines[index(lines, "loss_end", 2)].update(course=[[31, 1]]))

    found = diff(a, b)

    assert found is not None
    assert (found.kind, found.what, found.a, found.b) == ("facts", "course", [[32, 1]], [[31, 1]])


def test_another_decision_on_the_same_facts_is_a_decision(logs: tuple[Path, Path]) -> None:
    """It names the callback and both answers."""
    a, b = logs
    forged(b, lambda lines: lines[index(lines, "valid_end", 4)]["answers"]["early_stopping"].update(reason="because"))

    found = diff(a, b)

    assert found is not None
    assert (found.kind, found.what, found.epoch) == ("decisions", "early_stopping", 3)
    assert "because" in str(found)


def test_other_settings_are_callbacks_and_what_they_led_to(tmp_path: Path) -> None:
    """The header tells what differs, and the lines what came of it."""
    a, b = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    logged(a, [*library(), smoothed])
    logged(b, [*library()[:3], early_stopping(patience=1), smoothed])

    found = diff(a, b)

    assert found is not None
    assert (found.kind, found.what, found.a, found.b) == (
        "callbacks",
        "early_stopping",
        {"patience": 3},
        {"patience": 1},
    )
    assert found.then is not None
    assert (found.then.kind, found.then.what, found.then.epoch) == ("decisions", "early_stopping", 2)
    assert "what happened then: decisions, early_stopping" in str(found)


def test_a_callback_that_only_one_has_is_callbacks(tmp_path: Path) -> None:
    """Lines that only one has for it make no difference; the batches on the way there are counted all the same."""
    a, b = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    logged(a, library())
    logged(b, [*library(), smoothed])

    for one, other, expected in ((a, b, (None, "is there")), (b, a, ("is there", None))):
        found = diff(one, other)
        assert found is not None
        assert (found.kind, found.what, found.a, found.b) == ("callbacks", "smoothed", *expected)
        assert found.then is None


def test_when_a_callback_is_consulted_is_callbacks(tmp_path: Path) -> None:
    """As its other declarations are."""
    a, b = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    for path, every in ((a, 1), (b, 2)):

        @on(Phase.EPOCH_END, every=every, name="looks")
        def looks(state: State) -> None:
            """Looks."""

        logged(path, [looks])

    found = diff(a, b)

    assert found is not None
    assert (found.kind, found.a, found.b) == ("callbacks", {"every": 1}, {"every": 2})


def test_another_plan_is_a_plan(tmp_path: Path) -> None:
    """And what happened then is that one went on."""
    a, b = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    logged(a, [smoothed], epochs=2)
    logged(b, [smoothed], epochs=3)

    found = diff(a, b)

    assert found is not None
    assert (found.kind, found.a["epochs"], found.b["epochs"]) == ("plan", 2, 3)
    assert found.then is not None
    assert (found.then.what, found.then.a, found.then.b) == ("phase", "teardown", "epoch_begin")


def test_another_beginning_is_a_fact(tmp_path: Path) -> None:
    """The rate that the optimizer had."""
    a, b = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    logged(a, [smoothed])
    logged(b, [smoothed])
    forged(b, lambda lines: lines[0]["start"]["hyper"].update(lr=0.2))

    found = diff(a, b)

    assert found is not None
    assert (found.kind, found.what, found.phase) == ("facts", "hyper", "header")


def test_an_error_is_a_fact(tmp_path: Path) -> None:
    """One failed where the other went on, or failed otherwise."""
    a, b = tmp_path / "a.jsonl", tmp_path / "b.jsonl"

    for path, sentence in ((a, "one"), (b, "other")):

        @on(Phase.BATCH_END, name="fails")
        def fails(state: State, sentence: str = sentence) -> None:
            raise RuntimeError(sentence)

        with pytest.raises(Exception, match=sentence):
            logged(path, [fails])

    found = diff(a, b)
    assert found is not None
    assert (found.kind, found.what) == ("facts", "error")


def test_a_log_that_ends_sooner_is_a_difference(logs: tuple[Path, Path]) -> None:
    """With the end of the one, and the line of the other; a log that is cut off has not ended by a decision."""
    a, b = logs
    forged(b, lambda lines: lines.pop())

    for one, other, lines in ((a, b, (0, None)), (b, a, (None, 0))):
        found = diff(one, other)
        assert found is not None
        assert (found.kind, found.what) == ("facts", "end")
        assert [line is None for line in found.lines] == [line is None for line in lines]
        assert "the end" in str(found)


def test_a_state_that_differs_without_an_answer_is_a_decision(logs: tuple[Path, Path]) -> None:
    """So that nothing in a line can differ unseen."""
    a, b = logs
    forged(b, lambda lines: lines[index(lines, "batch_end", 3)].update(samples=5))

    found = diff(a, b)

    assert found is not None
    assert (found.kind, found.what, found.b) == ("decisions", "samples", 5)


def test_a_call_of_run_that_only_one_has_is_a_difference(tmp_path: Path) -> None:
    """A training that was gone on with is longer than one that was not; what is equal before makes no difference."""
    a, b = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    for path in (a, b):
        work = workload()
        state = run(start(work, epochs=2), [smoothed], log=path)
        state = run(extend(state, epochs=1), [smoothed], log=path)
    run(extend(state, epochs=1), [smoothed], log=b)

    for one, other in ((a, b), (b, a)):
        found = diff(one, other)
        assert found is not None
        assert (found.what, found.epoch) == ("call of run", 3)
        assert None in found.lines


def test_a_flag_is_a_decision(tmp_path: Path) -> None:
    """Made by a callback of the same declarations."""
    a, b = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    for path, epoch in ((a, 3), (b, 2)):

        @on(Phase.EPOCH_END, name="stops")
        def stops(state: State, epoch: int = epoch) -> Transition | None:
            return Transition(flags=Flag.STOP_TRAINING) if state.epoch == epoch else None

        logged(path, [stops])

    found = diff(a, b)

    assert found is not None
    assert (found.kind, found.what, found.a, found.b) == ("decisions", "stops", None, {"flags": "STOP_TRAINING"})
