"""Code that uses the package, for the type checker. mypy checks it in every run; no test runs it.

Under `strict` a `type: ignore` that ignores nothing is an error. So each of them says that its line is one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

import fsm_train.commands
from fsm_train import (
    Alternating,
    Callback,
    Flag,
    Phase,
    Player,
    Scripted,
    Sink,
    State,
    Supervised,
    Transition,
    iterate,
    on,
    run,
    start,
)
from fsm_train.callbacks import clip_grad_norm, early_stopping, schedule, torch_scheduler
from fsm_train.schedules import Schedule, cosine, warmup
from fsm_train.sinks import csv, tensorboard
from fsm_train.testing import Trace, at, check_callback, drive, parametrize_with_checks, simulate


@on(Phase.EPOCH_END, memory=0)
def count(state: State, epochs: int) -> Transition:
    return Transition(memory=epochs + 1)


@on(Phase.LOSS_END, needs={"loss"})
def skip(state: State) -> Transition | None:
    return Transition(flags=Flag.SKIP_BACKWARD) if state.facts["loss"] > 5 else None


class PrintState(Sink):
    at = (Phase.EPOCH_END,)

    def see(self, state: State, answers: Mapping[str, Transition]) -> None:
        print(state)


def needs_an_int(state: State, memory: int) -> None: ...


def train() -> State:
    """Callbacks with different memories stand in one list."""
    counts: Callback[int] = count
    skips: Callback[None] = skip
    rates: Schedule = warmup(3).then(cosine(10)) * 0.5
    callbacks = [clip_grad_norm(1.0), early_stopping(), schedule(lr=rates), counts, skips]
    for state in iterate(start(Scripted(), epochs=1), callbacks):
        epoch: int = state.epoch
        assert epoch >= 0
    final: State = run(
        start(Scripted(), epochs=1),
        callbacks,
        sinks=[PrintState(), csv("run.csv"), tensorboard("runs", facts=["loss"], every=20)],
    )
    clip: fsm_train.Command = fsm_train.commands.ClipGradNorm(1.0)
    assert clip
    metrics: Mapping[str, float] = final.metrics
    assert metrics
    return final


class Own:
    """An optimizer that inherits nothing."""

    param_groups: list[dict[str, Any]] = []  # noqa: RUF012  never written

    def step(self) -> None: ...
    def zero_grad(self) -> None: ...
    def state_dict(self) -> dict[str, Any]:
        return {}


def own_backward(loss: Any, parameters: Sequence[nn.Parameter]) -> None:
    loss.backward()


def optimizers(model: nn.Module, data: list[tuple[torch.Tensor, torch.Tensor]]) -> list[Supervised]:
    """One, several by name, one with a closure, and one of one's own."""
    adam, loss = torch.optim.Adam(model.parameters()), nn.MSELoss()
    several = Supervised(model, {"adam": adam, "own": Own()}, loss, data, numbers={"kl": 0.0}, backward=own_backward)
    assert several.numbers["kl"] == 0.0
    torch_scheduler({"adam": lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 3)})
    schedule(lr=cosine(3), optimizer="adam")
    clip_grad_norm(1.0, pattern="head.*")
    return [several, Supervised(model, torch.optim.LBFGS(model.parameters()), loss, data, closure=True)]


def try_out() -> None:
    state: State = at(Phase.EPOCH_END, epoch=1, valid_loss=0.5)
    answer: Transition | None = skip(state)
    answers: list[Transition] = drive(count, [state])
    final: State = simulate([count], epochs=2, valid_loss=[1.0, 2.0], trace=Trace())
    report: str = check_callback(count, examples=5).callback
    print(answer, answers, final, report)


def take_turns(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """A loss gives a tensor or parts; whose turn it is, is text."""

    def scalar(inputs: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return inputs.mean()

    def parts(inputs: torch.Tensor, target: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": inputs.mean()}

    players = {"D": Player(model, optimizer, scalar), "G": Player(model, optimizer, parts, every=5)}
    work = Alternating(players, [(torch.zeros(1), torch.zeros(1))])
    final: State = run(start(work, epochs=1), [clip_grad_norm(1.0, player="D"), schedule(lr=cosine(3), player="G")])
    player: str = final.player
    return final.steps_of(player) + final.turn


@parametrize_with_checks([count])
def test_count(check: object) -> None: ...


def misuse(final: State) -> None:
    on(Phase.EPOCH_END, memory="a")(needs_an_int)  # type: ignore[arg-type]
    on(Phase.EPOCH_END)(needs_an_int)  # type: ignore[arg-type]
    fsm_train.commands.ClipGradNrom(1.0)  # type: ignore[attr-defined]
    clip_grad_norm("1.0")  # type: ignore[arg-type]
    clip_grad_norm(1.0, player=3)  # type: ignore[arg-type]
    Alternating([], [])  # type: ignore[arg-type]
    early_stopping(patienc=3)  # type: ignore[call-arg]
    final.epoch = 3  # type: ignore[misc]
    final.metrics["x"] = 1.0  # type: ignore[index]
    simulate(count)  # type: ignore[arg-type]
    start(Scripted(), epochs="1")  # type: ignore[arg-type]
