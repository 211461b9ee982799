"""A simulation refuses misspelt settings, and measures what a training would."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from fsm_train import Callback, Flag, Phase, Scripted, State, Supervised, Transition, Workload, iterate, on, run, start
from fsm_train.core.phase import CONSULTED
from fsm_train.testing import at, simulate

# ------------------------------------------------------------------------------------ misspelt


@pytest.mark.parametrize(
    ("call", "meant"),
    [
        (lambda: simulate([], epoch=3), "did you mean epochs"),
        (lambda: simulate([], batchs=9), "did you mean batches"),
        (lambda: at(Phase.EPOCH_END, ephoc=2), "did you mean epoch"),
        (lambda: Scripted(batch_sise=4), "did you mean batch_size"),
        (lambda: simulate([], val_loss=[1.0]), "did you mean valid_loss"),
        (lambda: simulate([], validation_accuracy=[1.0]), "did you mean valid_accuracy"),
        (lambda: simulate([], training_loss=[1.0]), "did you mean train_loss"),
        (lambda: simulate([], valid_los=[1.0]), "did you mean valid_loss"),
        (lambda: simulate([], max_step=4), "did you mean max_steps"),
        (lambda: simulate([], steps=4), "did you mean max_steps"),
        (lambda: simulate([], num_epochs=4), "did you mean epochs"),
        (lambda: simulate([], train_batches=4), "did you mean batches"),
        (lambda: simulate([], valid_batch=4), "did you mean valid_batches"),
        (lambda: simulate([], lr=0.5), "did you mean hyper={'lr': …}"),
        (lambda: Scripted(gradnorm=4), "did you mean grad_norm"),
        (lambda: Scripted(elasped=4), "did you mean elapsed"),
        (lambda: at(Phase.LOSS_END, los=2.0), "did you mean loss"),
        (lambda: at(Phase.STEP_BEGIN, steps=2), "did you mean step"),
        (lambda: at(Phase.EPOCH_END, val_loss=2.0), "did you mean valid_loss"),
        (lambda: at(Phase.STEP_BEGIN, weight_deacy=2), "did you mean weight_decay"),
        (lambda: at(Phase.STEP_BEGIN, learning_rate=2), "did you mean lr"),
    ],
)
def test_misspelt_name_is_refused_with_the_known_one(call: Callable[[], object], meant: str) -> None:
    """A name near a known setting, fact or metric is an error that says which."""
    with pytest.raises(TypeError, match=meant.replace("{", r"\{")):
        call()


@pytest.mark.parametrize(
    "name",
    [
        *("tokens", "loss_2", "loss2", "step_time", "weight_norm", "gpu", "valid_accuracy", "valid_aux_loss"),
        *("train_f1", "valid_loss_ema", "temperature", "memory_gb", "param_norm"),
    ],
)
def test_names_of_ones_own_are_allowed(name: str) -> None:
    """Sensors and metrics of one's own keep their names."""
    own: dict[str, Any] = {name: 1.0}
    Scripted(**own)
    simulate([], **own)
    at(Phase.BATCH_END, **{name: 7})


# ------------------------------------------------------------------------------- differential

BATCHES, VALID_BATCHES, SIZE = 3, 2, 4


def trained() -> Workload:
    """A real training whose losses are all 1."""
    model = nn.Linear(1, 1)
    data = [(torch.ones(SIZE, 1), torch.zeros(SIZE, 1))]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return Supervised(
        model,
        optimizer,
        lambda output, target: 0 * output.mean() + 1.0,
        data * BATCHES,
        data * VALID_BATCHES,
        metrics={"half": lambda output, target: 0.5},
    )


def scripted() -> Workload:
    """The same training, simulated."""
    return Scripted(
        batches=BATCHES,
        batch_size=SIZE,
        loss=1.0,
        valid_batches=VALID_BATCHES,
        valid_loss=1.0,
        valid_half=0.5,
        train_half=0.5,
        hyper=trained().hyper(),
    )


@on(*CONSULTED, needs={"loss", "grad_norm", "stepped"}, name="look")
def look(state: State) -> None:
    """Asks for all facts everywhere."""


def course(work: Workload, callbacks: list[Callback[Any]], plan: dict[str, int]) -> list[object]:
    """What each phase shows: counters, flags, metrics, history, and which facts there are; and how it ends."""
    seen: list[object] = []
    try:
        for state in iterate(start(work, **plan), callbacks, at=CONSULTED):
            facts = {name: value for name, value in state.facts.items() if name != "grad_norm"}
            counters = (state.epoch, state.batch, state.iteration, state.step, state.samples, state.pending)
            seen.append((state.phase, counters, state.valid_batch, state.validated_at, state.flags, facts))
            seen.append((sorted(state.facts), dict(state.metrics), [dict(each) for each in state.history], state.hyper))
    except Exception as error:
        seen.append((type(error), str(error)))
    return seen


WHEN = {
    "always": lambda state: True,
    "in the second epoch": lambda state: state.epoch == 1,
    "at the second batch": lambda state: state.batch == 1,
}


@pytest.mark.unmeasured
@pytest.mark.parametrize("phase", CONSULTED, ids=lambda phase: phase.value)
@pytest.mark.parametrize("flag", [f for f in Flag if f], ids=lambda flag: flag.name)
def test_simulation_and_training_take_the_same_course(phase: Phase, flag: Flag) -> None:
    """With each flag raised at each phase, both show the same at each phase, and end with the same error if any."""
    for when in WHEN.values():

        @on(phase, name="raise_flag")
        def raise_flag(state: State, when: Callable[[State], bool] = when) -> Transition | None:
            return Transition(flags=flag) if when(state) else None

        plan = {"epochs": 3, "max_steps": 7}
        real, simulated = (course(make(), [raise_flag, look], plan) for make in (trained, scripted))
        assert simulated == real


@pytest.mark.unmeasured
@pytest.mark.parametrize(
    "every", [Flag.SKIP_BATCH, Flag.SKIP_BACKWARD, Flag.SKIP_STEP, Flag.SKIP_STEP | Flag.SKIP_ZERO]
)
@pytest.mark.parametrize("phase", [Phase.BATCH_BEGIN, Phase.LOSS_END, Phase.BACKWARD_END])
def test_epochs_of_skipped_batches_are_the_same(phase: Phase, every: Flag) -> None:
    """Where every batch of an epoch is left out, or no step is taken, both measure the same."""

    @on(phase, Phase.BATCH_END, name="raise_flags")
    def raise_flags(state: State) -> Transition | None:
        if state.phase is Phase.BATCH_END:
            return Transition(flags=Flag.VALIDATE) if state.batch == 2 else None
        return Transition(flags=every) if state.epoch == 1 else None

    real, simulated = (course(make(), [raise_flags, look], {"epochs": 3}) for make in (trained, scripted))
    assert simulated == real


# ----------------------------------------------------------------------------- empty epochs


def test_empty_epoch_measures_nothing() -> None:
    """An epoch that is stopped before its first batch has no train_loss, and shows none of the epoch before."""

    @on(Phase.EPOCH_BEGIN)
    def stop(state: State) -> Transition | None:
        return Transition(flags=Flag.STOP_TRAINING) if state.epoch == 2 else None

    history = simulate([stop], batches=2, epochs=5, loss=1.0, train_accuracy=[0.1, 0.2]).history
    assert [dict(metrics) for metrics in history] == [
        {"train_loss": 1.0, "train_accuracy": 0.1},
        {"train_loss": 1.0, "train_accuracy": 0.2},
        {},
    ]


def test_loader_without_a_batch_is_an_error_in_both() -> None:
    """A simulation of no batch fails as a training on an empty loader does, for train and valid data."""
    model = nn.Linear(1, 1)
    data = [(torch.ones(1, 1), torch.ones(1, 1))]

    def real(train: Any, valid: Any) -> Workload:
        return Supervised(model, torch.optim.SGD(model.parameters(), lr=0.1), nn.MSELoss(), train, valid)

    class Empty:
        def __iter__(self) -> Any:
            return iter(())

    for work in (real(Empty(), data), Scripted(batches=0, valid_loss=1.0)):
        with pytest.raises(Exception, match="train gave no batch in this epoch"):
            run(start(work, epochs=1))
    for work in (real(data, Empty()), Scripted(batches=1, valid_batches=0, valid_loss=1.0)):
        with pytest.raises(Exception, match="valid gave no batch"):
            run(start(work, epochs=1))


# ------------------------------------------------------------------- no validation at its begin


def test_validation_stopped_at_its_begin_is_none() -> None:
    """STOP_VALID at VALID_BEGIN leaves out that validation, in a training and in a simulation."""

    @on(Phase.VALID_BEGIN)
    def only_every_second(state: State) -> Transition | None:
        return Transition(flags=Flag.STOP_VALID) if state.epoch % 2 else None

    for make in (trained, scripted):
        history = run(start(make(), epochs=3), [only_every_second]).history
        assert ["valid_loss" in metrics for metrics in history] == [True, False, True]


def test_validation_that_is_none_shows_no_old_metric(tmp_path: Any) -> None:
    """At its VALID_END there is no valid_… of an earlier one; these weights count as not validated; it replays."""
    from fsm_train import replay

    seen = []

    @on(Phase.VALID_BEGIN, Phase.VALID_END)
    def second_is_none(state: State) -> Transition | None:
        if state.phase is Phase.VALID_BEGIN:
            return Transition(flags=Flag.STOP_VALID) if state.epoch == 1 else None
        seen.append(("valid_loss" in state.metrics, state.validated_at == state.iteration))
        return None

    run(start(scripted(), epochs=2), [second_is_none], log=tmp_path / "run.jsonl")
    assert seen == [(True, True), (False, False)]
    assert replay(tmp_path / "run.jsonl", [second_is_none]).ok


def test_empty_valid_loader_is_an_error_unless_it_was_not_looked_at() -> None:
    """STOP_VALID before the first batch asks nothing of the loader."""

    @on(Phase.VALID_BEGIN)
    def never(state: State) -> Transition:
        return Transition(flags=Flag.STOP_VALID)

    assert "valid_loss" not in run(start(Scripted(valid_batches=0, valid_loss=1.0), epochs=1), [never]).metrics
