"""Laws of averages: any settings are those of a loop by hand, and a block of `weights` leaves nothing behind."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable
from typing import Any

import attrs
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fsm_train import Flag, Phase, State, Supervised, Transition, on, run, start, weights
from fsm_train.callbacks import ema, validate_every
from fsm_train.supervised import exchanged_weights
from fsm_train.supervised.averages import Average
from tests.averages_by_hand import By
from tests.diabetes_training import batches, net, sgd, workload

DATA, VALID = batches(8, 8, 8, 6), batches(5, skip=30)
EPOCHS = 3
SMALL = settings(max_examples=15, deadline=None)  # each is a training, or two

BY = st.builds(
    By,
    decay=st.sampled_from([0.0, 0.3, 0.9, 0.999]),
    buffers=st.sampled_from(["copy", "average"]),
    every=st.integers(1, 5),
    start=st.integers(0, 13),
    warmup=st.booleans(),
)


@attrs.frozen
class Course:
    """A training with averages.

    Attributes:
        averages: their settings; the first validates.
        skipped: the batches without a step.
        left_after: the batch after which it is suspended, and resumed in the same objects.
    """

    averages: tuple[By, ...]
    skipped: frozenset[int] = frozenset()
    left_after: int = -1


COURSES = st.builds(
    Course,
    averages=st.lists(BY, min_size=1, max_size=3).map(tuple),
    skipped=st.frozensets(st.integers(0, 11), max_size=4),
    left_after=st.integers(1, 12),
)


def ours(course: Course, change: Callable[[By], By] = lambda by: by) -> Supervised:
    work = workload(DATA, model=net(), valid=VALID)

    @on(Phase.STEP_BEGIN, Phase.BATCH_END)
    def skip_and_leave(state: State) -> Transition | None:
        if state.phase is Phase.STEP_BEGIN:
            return Transition(flags=Flag.SKIP_STEP) if state.iteration in course.skipped else None
        return Transition(flags=Flag.SUSPEND) if state.iteration == course.left_after else None

    kept = [ema(**attrs.asdict(change(by)), validate=i == 0, name=str(i)) for i, by in enumerate(course.averages)]
    state = start(work, epochs=EPOCHS)
    while state.phase is not Phase.DONE:
        state = run(state, [*kept, validate_every(steps=3), skip_and_leave])
    return work


def by_hand(course: Course) -> list[tuple[int, dict[str, torch.Tensor]]]:
    """The number of updates of each average, and its values."""
    model = net()
    optimizer = sgd(model)
    averages = [by.averaged(model) for by in course.averages]
    steps = itertools.count(1)
    for iteration, (inputs, target) in enumerate(DATA * EPOCHS):
        nn.functional.mse_loss(model(inputs), target).backward()
        if iteration not in course.skipped:
            optimizer.step()
            step = next(steps)
            for average in averages:
                average.after(step, model)
        optimizer.zero_grad()
    return [(int(a.torchs.n_averaged), a.torchs.module.state_dict()) for a in averages]


def is_by_hand(course: Course, work: Supervised) -> bool:
    kept = [work.carried_over.averages[str(i)] for i in range(len(course.averages))]
    for average, (updates, values) in zip(kept, by_hand(course), strict=True):
        found = {**average.parameters, **average.buffers}
        if average.n_averaged != updates:
            return False
        if updates and not all(found[f"model.{name}"].equal(value) for name, value in values.items()):
            return False
    return True


@SMALL
@given(COURSES)
def test_any_settings_are_those_of_a_loop_by_hand(course: Course) -> None:
    """Whatever steps were left out, side by side, and suspended anywhere: the same updates, to the last bit."""
    assert is_by_hand(course, ours(course))


ALL = Course((By(0.9, "average", every=2, start=3, warmup=True),), frozenset({5}), left_after=6)
CHANGES: dict[str, Callable[[By], By]] = {
    "a step later": lambda by: attrs.evolve(by, start=by.start + 1),
    "from the first step": lambda by: attrs.evolve(by, start=0),
    "at each step": lambda by: attrs.evolve(by, every=1),
    "without warm-up": lambda by: attrs.evolve(by, warmup=False),
    "buffers as they are": lambda by: attrs.evolve(by, buffers="copy"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_each_setting_is_noticed(change: str) -> None:
    """The comparison finds an average that does without it."""
    assert is_by_hand(ALL, ours(ALL))
    assert not is_by_hand(ALL, ours(ALL, CHANGES[change]))


def _without_decay(update: Any) -> Any:
    return lambda average, decay=None: update(average)


def _counting_itself(update: Any) -> Any:
    """The number of updates is one too many in the decay."""

    def counting(average: Average, decay: float | None = None) -> None:
        n = average.n_averaged + 1
        update(average, min(0.9, (1 + n) / (10 + n)))

    return counting


@pytest.mark.parametrize("bug", [_without_decay, _counting_itself])
def test_planted_bugs_are_noticed(bug: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A decay that is not that of the command is found."""
    monkeypatch.setattr(Average, "update", bug(Average.update))

    assert not is_by_hand(ALL, ours(ALL))


# ------------------------------------------------------------------------------------------ blocks

PHASES = [Phase.BATCH_BEGIN, Phase.LOSS_END, Phase.BACKWARD_END, Phase.STEP_END, Phase.VALID_BATCH_END]
BLOCKS = st.lists(
    st.tuples(
        st.sampled_from(PHASES),
        st.integers(0, 11),
        st.lists(st.sampled_from(["0", "1"]), min_size=1, max_size=3),
        st.sampled_from(["look", "train", "eval", "raise"]),
    ),
    min_size=1,
    max_size=6,
)
BESIDE = Course((By(), By(0.9, "average", start=3)))


def all_values(work: Supervised) -> list[torch.Tensor]:
    kept = work.carried_over.averages.values()
    averaged = [value for a in kept for value in (*a.parameters.values(), *a.buffers.values())]
    momenta = [buffer for state in work.optimizer.state.values() for buffer in state.values()]
    return [*averaged, *work.model.state_dict().values(), *momenta]


def with_blocks(blocks: list[Any]) -> Supervised:
    """The training, with these blocks at their phases, one inside of the other."""
    work = workload(DATA, model=net(), valid=VALID)

    @on(*PHASES)
    def look(state: State) -> None:  # not pure: it stands for what a command does there
        for phase, iteration, names, what in blocks:
            if (phase, iteration) == (state.phase, state.iteration):
                _look(work, names, what)

    kept = [ema(**attrs.asdict(by), validate=i == 0, name=str(i)) for i, by in enumerate(BESIDE.averages)]
    run(start(work, epochs=EPOCHS), [*kept, look])
    return work


def _look(work: Supervised, names: list[str], what: str) -> None:
    with contextlib.suppress(ZeroDivisionError), contextlib.ExitStack() as stack:
        for name in names:
            stack.enter_context(weights(work, name))
        if what in ("train", "eval"):
            work.model.train(what == "train")
            work.model(DATA[0][0])
        if what == "raise":
            raise ZeroDivisionError


@SMALL
@given(BLOCKS)
def test_blocks_of_weights_leave_nothing_behind(blocks: list[Any]) -> None:
    """Anywhere in a training, nested, with forward passes in each mode inside, or left by an error: not a bit."""
    found, expected = all_values(with_blocks(blocks)), all_values(with_blocks([]))

    assert len(found) == len(expected)
    assert all(one.equal(other) for one, other in zip(found, expected, strict=True))


BOLD = [(Phase.LOSS_END, 5, ["1"], "train"), (Phase.BATCH_BEGIN, 7, ["1"], "eval")]
BUGS: dict[str, tuple[object, str, Any]] = {
    "buffers of forward passes inside": (Average, "_registered_buffers", lambda self: iter(())),
    "modes of inside": (exchanged_weights.Modes, "put_back", lambda self: None),
}


@pytest.mark.parametrize("bug", BUGS)
def test_what_a_block_leaves_behind_is_noticed(bug: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison finds a block that does not put it back."""
    expected = all_values(with_blocks([]))
    assert all(one.equal(other) for one, other in zip(all_values(with_blocks(BOLD)), expected, strict=True))
    monkeypatch.setattr(*BUGS[bug])

    assert not all(one.equal(other) for one, other in zip(all_values(with_blocks(BOLD)), expected, strict=True))
