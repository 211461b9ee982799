"""A real small model under random flags: exactly the operations that the table names, and no other weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fsm_train import Flag, Operation, Phase, State, Supervised, Transition, on, run, start
from tests.models import diabetes, same_weights

BATCHES = list(zip(*(tensor[:30].split((8, 8, 8, 6)) for tensor in diabetes().tensors), strict=True))
EPOCHS = 2

RAISED: Mapping[Phase, Flag] = {
    Phase.BATCH_BEGIN: Flag.SKIP_BATCH | Flag.SKIP_BACKWARD | Flag.SKIP_STEP | Flag.SKIP_ZERO,
    Phase.LOSS_BEGIN: Flag.SKIP_BATCH | Flag.SKIP_BACKWARD | Flag.SKIP_STEP | Flag.SKIP_ZERO,
    Phase.LOSS_END: Flag.SKIP_BATCH | Flag.SKIP_BACKWARD | Flag.SKIP_STEP | Flag.SKIP_ZERO,
    Phase.BACKWARD_END: Flag.SKIP_STEP | Flag.SKIP_ZERO,
    Phase.STEP_BEGIN: Flag.SKIP_STEP | Flag.SKIP_ZERO,
    Phase.STEP_END: Flag.SKIP_ZERO,
    Phase.BATCH_END: Flag.STOP_EPOCH,
}
"""What can be raised in time, at the phases of a batch."""

Raised = Mapping[tuple[Phase, int], Flag]


@st.composite
def raised_flags(draw: st.DrawFn) -> Raised:
    """Flags by phase and number of finished batches, some of them none."""
    moments = [(phase, iteration) for phase in RAISED for iteration in range(len(BATCHES) * EPOCHS + 1)]
    chosen = draw(st.lists(st.sampled_from(moments), unique=True, max_size=20))
    return {moment: draw(st.sampled_from([*RAISED[moment[0]], RAISED[moment[0]]])) for moment in chosen}


class Recorder(Supervised):
    """Writes down the operations on the real model."""

    done: list[str]


def _recorded(name: str) -> Any:
    def operation(self: Recorder, *args: Any) -> Any:
        self.done.append(name)
        return getattr(Supervised, name)(self, *args)

    return operation


OPERATIONS = ("forward", "loss", "backward", "step", "zero")
for _name in OPERATIONS:
    assert Operation(_name)
    setattr(Recorder, _name, _recorded(_name))


class Plain:
    """The plain loop that takes the same skips, written out without the machine."""

    def __init__(self, raised: Raised) -> None:
        self.raised = raised
        self.model, self.optimizer = _model()
        self.done: list[str] = []
        self.iteration = self.pending = 0

    def asked(self, phase: Phase) -> Flag:
        return self.raised.get((phase, self.iteration), Flag.NONE)

    def train(self) -> None:
        for _ in range(EPOCHS):
            self.model.train()
            for batch in BATCHES:
                self.batch(*batch)
                self.iteration += 1
                if self.asked(Phase.BATCH_END):
                    break
            if self.pending:
                self.zero() if Flag.SKIP_STEP in self.asked(Phase.STEP_BEGIN) else (self.step(), self.zero())

    def batch(self, inputs: torch.Tensor, target: torch.Tensor) -> None:
        flags = self.asked(Phase.BATCH_BEGIN)
        if Flag.SKIP_BATCH in flags:
            return
        self.done.append("forward")
        before = [buffer.clone() for buffer in self.model.buffers()]
        output = self.model(inputs)
        flags |= self.asked(Phase.LOSS_BEGIN)
        if Flag.SKIP_BATCH in flags:
            self.put_back(before)
            return
        self.done.append("loss")
        loss = nn.functional.mse_loss(output, target)
        flags |= self.asked(Phase.LOSS_END)
        if flags & (Flag.SKIP_BATCH | Flag.SKIP_BACKWARD):
            self.put_back(before)
            return
        self.done.append("backward")
        loss.backward()
        self.pending += 1
        for phase in (Phase.BACKWARD_END, Phase.STEP_BEGIN):
            flags |= self.asked(phase)
            if Flag.SKIP_STEP in flags:
                self.zero(flags)
                return
        self.step()
        self.zero(flags | self.asked(Phase.STEP_END))

    def put_back(self, buffers: list[torch.Tensor]) -> None:
        for buffer, before in zip(self.model.buffers(), buffers, strict=True):
            buffer.copy_(before)

    def step(self) -> None:
        self.done.append("step")
        self.optimizer.step()
        self.pending = 0

    def zero(self, flags: Flag = Flag.NONE) -> None:
        if Flag.SKIP_ZERO in flags:
            return
        self.done.append("zero")
        self.optimizer.zero_grad()
        self.pending = 0


def _model() -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(10, 8), nn.BatchNorm1d(8), nn.Dropout(0.2), nn.Linear(8, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=0.01)
    torch.manual_seed(1)
    return model, optimizer


@pytest.mark.parametrize("watch_all", [False, True])
@given(raised_flags())
def test_flags_skip_exactly_their_operations(watch_all: bool, raised: Raised) -> None:
    """Operations, weights, buffers and the generator are those of the plain loop with the same skips."""
    phases = RAISED if watch_all else {phase: None for phase, _ in raised} or [Phase.EPOCH_END]

    @on(*phases)
    def ask(state: State) -> Transition:
        return Transition(flags=raised.get((state.phase, state.iteration), Flag.NONE))

    plain = Plain(raised)
    plain.train()
    drawn = torch.rand(1)

    model, optimizer = _model()
    work = Recorder(model, optimizer, nn.MSELoss(), BATCHES)
    work.done = []
    final = run(start(work, epochs=EPOCHS), [ask])

    assert work.done == plain.done
    assert same_weights(model, plain.model)
    assert torch.equal(torch.rand(1), drawn)
    assert (final.iteration, final.step) == (plain.iteration, plain.done.count("step"))

    model, optimizer = _model()  # and where whole steps are one call, since nobody records what is done
    run(start(Supervised(model, optimizer, nn.MSELoss(), BATCHES), epochs=EPOCHS), [ask])

    assert same_weights(model, plain.model)
    assert torch.equal(torch.rand(1), drawn)
