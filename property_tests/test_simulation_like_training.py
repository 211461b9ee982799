"""A simulation measures what a training would: any flags, anywhere, and any losses give the same states in both."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import attrs
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import nn

from fsm_train import Callback, Flag, Phase, State, Supervised, Transition, on
from fsm_train.callbacks import accumulate, early_stopping, skip_nonfinite, validate_every
from fsm_train.core.phase import BATCH_PHASES, CONSULTED
from fsm_train.worlds.scripted import Scripted
from property_tests import strategies as our
from property_tests.strategies import Moment
from tests.guarantees.test_simulation_like_training import course, look


@attrs.frozen
class World:
    """What both are made of.

    Attributes:
        losses, sizes: of each batch of an epoch; the same in each epoch. A batch of size 0 counts nothing.
        valid: the loss of a validation batch, and their number; None without validation data.
        empty: epochs that are stopped before their first batch.
        flags: what is raised when.
        others: the names of callbacks of the library.
    """

    losses: tuple[float, ...]
    sizes: tuple[int, ...]
    valid: tuple[float, int] | None
    empty: frozenset[int]
    flags: Mapping[Moment, Flag]
    others: frozenset[str]

    def callbacks(self) -> list[Callback[Any]]:
        @on(*CONSULTED, name="raise_flags")
        def raise_flags(state: State) -> Transition | None:
            flags = self.flags.get(our.moment(state), Flag.NONE)
            if state.phase is Phase.EPOCH_BEGIN and state.epoch in self.empty:
                flags |= Flag.STOP_EPOCH
            return Transition(flags=flags) if flags else None

        return [raise_flags, look, *(LIBRARY[name]() for name in sorted(self.others) if name in self.allowed())]

    def allowed(self) -> set[str]:
        return set(LIBRARY) - (set() if self.valid else {"validate_every", "early_stopping"})


LIBRARY: Mapping[str, Callable[[], Callback[Any]]] = {
    "accumulate": lambda: accumulate(2),
    "skip_nonfinite": skip_nonfinite,
    "validate_every": lambda: validate_every(steps=2),
    "early_stopping": lambda: early_stopping("train_loss", patience=1),
}

QUARTERS = st.integers(-8, 8).map(lambda n: n / 4)  # so that single precision holds a loss


@st.composite
def worlds(draw: st.DrawFn) -> World:
    losses = tuple(draw(st.lists(QUARTERS | st.just(float("nan")), min_size=1, max_size=4)))
    sizes = tuple(draw(st.lists(st.integers(0, 3), min_size=len(losses), max_size=len(losses))))
    valid = draw(st.none() | st.tuples(QUARTERS, st.integers(1, 2)))
    when = draw(st.lists(our.moments(), max_size=4, unique=True))
    flags = {moment: draw(our.flags(our.legal(moment[0], has_valid=valid is not None))) for moment in when}
    others = draw(st.frozensets(st.sampled_from(sorted(LIBRARY))))
    return World(losses, sizes, valid, draw(st.frozensets(st.integers(0, 2), max_size=2)), flags, others)


def trained(world: World) -> Supervised:
    """A real training with these losses: that of a batch is the number in it."""
    model = nn.Linear(1, 1)

    def batch(loss: float, size: int) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.ones(2, 1), torch.tensor([loss, float(size)])

    valid = None if world.valid is None else [batch(world.valid[0], 1)] * world.valid[1]
    return Supervised(
        model,
        torch.optim.SGD(model.parameters(), lr=0.1),
        lambda output, target: 0 * output.mean() + target[0],
        [batch(*each) for each in zip(world.losses, world.sizes, strict=True)],
        valid,
        samples=lambda inputs, target: target[1],
    )


def scripted(world: World) -> Scripted:
    """The same, simulated."""
    valid = {} if world.valid is None else {"valid_loss": world.valid[0], "valid_batches": world.valid[1]}
    return Scripted(
        batches=len(world.losses),
        batch_size=lambda state: world.sizes[state.batch],
        loss=lambda state: world.losses[state.batch],
        hyper=trained(world).hyper(),
        **valid,
    )


def same_course(world: World, simulated: Callable[[World], Scripted] = scripted) -> None:
    """The law, for any implementation of the simulation."""
    plan = {"epochs": 3}
    real, made_up = (course(make(world), world.callbacks(), plan) for make in (trained, simulated))

    assert comparable(made_up) == comparable(real)


OF_A_BATCH = {phase for phase in BATCH_PHASES if not phase.name.startswith("VALID")}


def comparable(seen: list[Any]) -> list[Any]:
    """NaN equals itself; and what a validation batch counts, which is the size until the next batch, no script says."""
    entries = []
    of_valid = False  # whether the batch that was fetched last may be one of a validation
    for entry in seen:
        if isinstance(entry[0], Phase):
            of_valid = entry[0] not in OF_A_BATCH or (of_valid and entry[0] is not Phase.BATCH_BEGIN)
            facts = {name: value for name, value in entry[-1].items() if not of_valid or name != "batch_size"}
            entry = (*entry[:-1], facts)
        entries.append(without_nan(entry))
    return entries


def without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: without_nan(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_nan(each) for each in value]
    return "nan" if isinstance(value, float) and math.isnan(value) else value


# The rest of a window is stepped with after a validation, of which the batch is that was fetched last.
STEPS_AFTER_A_VALIDATION = World(
    losses=(0.0, 0.0, 0.0),
    sizes=(0, 0, 2),
    valid=(0.0, 1),
    empty=frozenset(),
    flags={(Phase.BACKWARD_END, 2): Flag.SKIP_STEP | Flag.VALIDATE},
    others=frozenset({"accumulate"}),
)


@example(STEPS_AFTER_A_VALIDATION)
@given(worlds())
def test_a_simulation_measures_what_a_training_would(world: World) -> None:
    """At each phase the same counters, flags, metrics, facts and history; and the same end, or the same error."""
    same_course(world)


# ------------------------------------------------------------------------------- planted bugs


class KeepsLastEpoch(Scripted):
    """Its mean goes on from one epoch to the next where no batch came between."""

    def measure(self, state: State) -> Mapping[str, float]:
        self.last: Mapping[str, float] = {**getattr(self, "last", {}), **super().measure(state)}
        return self.last


class KeepsWhatIsLeftOut(Scripted):
    """A batch that is left out stays in the mean."""

    def loss(self, state: State | None = None) -> None:
        super().loss(state)
        super().backward(state)

    def backward(self, state: State | None = None) -> None:
        """Nothing: the loss is in the mean already."""


class ForgetsWeights(Scripted):
    """Each batch counts the same in the mean."""

    def fetch(self, state: State | None = None) -> float | None:
        size = super().fetch(state)
        self._size = 1
        return size


class EvaluatesNothing(Scripted):
    """There is a valid_loss after a validation that was stopped at its begin."""

    def measure_valid(self, state: State) -> Mapping[str, float]:
        return {name: reader.next(state) for name, reader in self._valid.items()}


PLAIN = World((1.0, 2.0), (1, 3), (0.5, 1), frozenset(), {}, frozenset())
BUGS: Mapping[str, tuple[type[Scripted], World]] = {
    "a stale mean": (KeepsLastEpoch, attrs.evolve(PLAIN, empty=frozenset({1}))),
    "what is left out": (
        KeepsWhatIsLeftOut,
        attrs.evolve(PLAIN, flags={(Phase.LOSS_END, 1): Flag.SKIP_BACKWARD}),
    ),
    "weights": (ForgetsWeights, PLAIN),
    "a validation that is none": (
        EvaluatesNothing,
        attrs.evolve(PLAIN, flags={(Phase.VALID_BEGIN, 1): Flag.STOP_VALID}),
    ),
}


@pytest.mark.parametrize("bug", BUGS)
def test_a_simulation_unlike_the_training_is_caught(bug: str) -> None:
    """The law has teeth, and holds without the bug."""
    kind, world = BUGS[bug]
    same_course(world)

    def broken(world: World) -> Scripted:
        made = scripted(world)
        made.__class__ = kind
        return made

    with pytest.raises(AssertionError):
        same_course(world, broken)
