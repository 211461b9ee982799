"""Commands that are carried out again without a state: where that is done, and where it is not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
import pytest
import torch
from torch import nn

from fsm_train import ClipGradNorm, Command, Phase, Scripted, Supervised, Transition, carries_out, on, run, start
from fsm_train.core import commands
from fsm_train.core.workload import Workload
from fsm_train.worlds import registry
from fsm_train.worlds.agreed import Agreed
from fsm_train.worlds.proxy import WorkloadProxy

CLIP = ClipGradNorm(1.0)


@attrs.frozen
class Note(Command):
    """Notes the phase of the state, if there is one."""

    changes_hyper = False


@pytest.fixture
def _registered_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_REGISTERED", dict(registry._REGISTERED))
    monkeypatch.setattr(registry, "_WITHOUT_STATE", set(registry._WITHOUT_STATE))


def supervised(kind: type[Supervised] = Supervised) -> Supervised:
    model = nn.Linear(2, 1)
    data = [(torch.ones(4, 2), torch.zeros(4, 1))] * 3
    return kind(model, torch.optim.SGD(model.parameters(), lr=0.1), nn.MSELoss(), data)


class InItsOwnWay(Supervised):
    """Carries out commands in a way of its own."""

    def carry_out(self, command: Command, state: Any) -> None:
        super().carry_out(command, state)


class ProxyInItsOwnWay(WorkloadProxy):
    """The same, around a workload."""

    def carry_out(self, command: Command, state: Any) -> None:
        self.wrapped.carry_out(command, state)


@pytest.mark.parametrize(
    ("make", "is_bound"),
    [
        (supervised, True),
        (lambda: WorkloadProxy(supervised()).as_workload(), True),
        (lambda: supervised(InItsOwnWay), False),
        (lambda: ProxyInItsOwnWay(supervised()).as_workload(), False),
        (lambda: Agreed(supervised(), lambda row: [row, row]).as_workload(), False),
        (Scripted, False),
    ],
    ids=["the workload", "a proxy", "a subclass", "a proxy of its own", "ranks", "a script"],
)
def test_who_carries_out_in_another_way_is_given_the_state(make: Callable[[], Workload], is_bound: bool) -> None:
    """A command is bound only where nothing stands between it and its handler."""
    assert (make().bound(CLIP, Phase.STEP_BEGIN) is not None) is is_bound


def test_only_commands_of_a_batch_are_bound() -> None:
    """What lasts beyond a batch is carried out with a state, as is what changes the structure."""
    work = supervised()
    assert work.bound(commands.Freeze("*"), Phase.EPOCH_BEGIN) is None
    assert work.bound(CLIP, Phase.SETUP) is None
    assert work.bound(commands.MixUp(0.5, 1), Phase.BATCH_BEGIN) is None


@pytest.mark.usefixtures("_registered_as_before")
@pytest.mark.parametrize("needs_state", [True, False])
def test_command_of_ones_own_is_given_its_state_unless_it_says_otherwise(needs_state: bool) -> None:
    """With a constant answer, `work.state` is that of each step; without the need of it, none."""
    steps: list[int | None] = []

    @carries_out(Note, needs_state=needs_state)
    def note(work: Supervised, command: Note) -> None:
        steps.append(None if work.state is None else work.state.step)

    constant = on(Phase.STEP_BEGIN, reads=(), name="constant")(lambda state: Transition(commands=(Note(),)))
    run(start(supervised(), epochs=1), [constant])

    assert steps == ([0, 1, 2] if needs_state else [None] * 3)


@pytest.mark.usefixtures("_registered_as_before")
def test_handler_that_replaces_one_of_the_library_needs_the_state_again() -> None:
    """It is not known to do without."""
    carries_out(ClipGradNorm)(lambda work, command: None)
    assert supervised().bound(CLIP, Phase.STEP_BEGIN) is None


def test_bound_command_does_what_the_command_does() -> None:
    """A closure evaluates with it again, and a compiled step is told that something has changed."""
    told = []
    work = supervised()
    work.gives_closure = True
    work.whole_step = type("Step", (), {"mark_stale": lambda self: told.append("stale")})()
    bound = work.bound(CLIP, Phase.STEP_BEGIN)
    assert bound is not None
    bound()
    assert (work.for_each_evaluation, told) == ([CLIP], ["stale"])
