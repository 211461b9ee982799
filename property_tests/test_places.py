"""Laws of what is said where something fails: the place is the true one, whoever watches."""

from __future__ import annotations

from collections.abc import Collection

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fsm_train.core.fuse import EVERYWHERE, Path, fused_paths
from fsm_train.core.phase import CONSULTED, Flag, Operation, Phase
from fsm_train.core.state import Plan, State
from fsm_train.core.table import ROWS
from fsm_train.interpreter import iterate
from fsm_train.testing import at
from property_tests import strategies as our


def place_of_failure(training: our.Training, after: int, watched: Collection[Phase]) -> str:
    """What is said of the place where the operation after this many breaks; "" if the training ends before that."""
    state = training.start()
    assert isinstance(state.workload, our.Recording)
    state.workload.break_after = after
    try:
        for _ in iterate(state, at=watched):
            pass
    except OSError as error:
        (note,) = error.__notes__
        return note
    return ""


@given(our.trainings(), st.integers(0, 40), st.sets(st.sampled_from(CONSULTED)))
def test_the_place_does_not_depend_on_who_watches(training: our.Training, after: int, watched: set[Phase]) -> None:
    """A failure is placed at the same phase and counters, however the phases before it are fused."""
    training = attrs.evolve(training, callbacks=())

    assert place_of_failure(training, after, watched) == place_of_failure(training, after, CONSULTED)


@given(st.sampled_from([place for place in ROWS if isinstance(place, Phase)]), st.sets(st.sampled_from(list(ROWS))))
def test_a_path_knows_what_it_passes(place: Phase, watched: set[Phase]) -> None:
    """The phase before an operation of a path is the one that the path, walked an edge at a time, passes last."""
    for path in fused_paths(place, Flag.NONE, watched):
        passed = {edge.operations[-1]: _source(path, i) for i, edge in enumerate(path.edges) if edge.operations}
        assert {operation: path.phase_before(operation) for operation in passed} == passed
        assert path.phase_before(None) is _source(path, len(path.edges) - 1)


def _source(path: Path, i: int) -> Phase | None:
    return next((edge.source for edge in reversed(path.edges[: i + 1]) if isinstance(edge.source, Phase)), None)


def law_holds(training: our.Training) -> None:
    """The law, for a failure of each of the first operations."""
    law = test_the_place_does_not_depend_on_who_watches.hypothesis.inner_test  # type: ignore[attr-defined]
    for after in range(8):
        law(training, after, set())


@pytest.mark.parametrize("broken", [lambda path, operation: None, lambda path, operation: path.edges[0].source])
def test_a_broken_place_is_caught(broken: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """A place that is the last watched phase, or the beginning of the path, breaks the law that the right one keeps."""
    training = our.Training(our.World(batches=(3,), valid_batches=2), Plan(epochs=2), ())
    law_holds(training)
    monkeypatch.setattr(Path, "phase_before", broken)

    with pytest.raises(AssertionError):
        law_holds(training)


@given(st.from_regex(r"[a-z][a-z_]{0,12}", fullmatch=True))
def test_a_state_has_what_it_has(name: str) -> None:
    """An attribute of a state is there, or missing with a sentence that names it; and no name can be set."""
    state = at(Phase.EPOCH_END)
    known = {field.name for field in attrs.fields(State)} | set(vars(State))

    assert hasattr(state, name) is (name in known)
    with pytest.raises(attrs.exceptions.FrozenInstanceError, match=name):
        setattr(state, name, None)
    if name not in known:
        with pytest.raises(AttributeError, match=f"a state has no '{name}': "):
            getattr(state, name)


def test_each_operation_has_a_place() -> None:
    """Each operation of the table is done after some phase, where its path begins at one."""
    placed = {
        operation
        for place in ROWS
        if isinstance(place, Phase)
        for path in fused_paths(place, Flag.NONE, EVERYWHERE)
        for operation in Operation
        if any(operation in edge.operations for edge in path.edges) and path.phase_before(operation) is place
    }
    assert Operation.FORWARD in placed
    assert Operation.STEP in placed
