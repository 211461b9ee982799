"""What can be said before a run: who does what when, and what cannot go well."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
import pytest
import torch

import fsm_train.callbacks as library
from fsm_train import (
    Callback,
    CallbackError,
    ClipGradNorm,
    Command,
    ConflictError,
    Flag,
    Phase,
    State,
    Supervised,
    Transition,
    carries_out,
    describe,
    on,
    run,
    start,
)
from fsm_train.callbacks import (
    accumulate,
    checkpoint,
    clip_grad_norm,
    clip_grad_value,
    compile_step,
    cutmix,
    detect_anomaly,
    diagnosing,
    during,
    early_stopping,
    ema,
    freeze,
    grad_noise,
    limit,
    micro_batches,
    mixed_precision,
    mixup,
    parallel,
    record,
    reduce_on_plateau,
    restore_best,
    schedule,
    skip_nonfinite,
    stop_after,
    stop_at,
    stop_on_nonfinite,
    stop_pruned,
    suspend_after,
    swa,
    torch_scheduler,
    validate_every,
    weight_penalty,
)
from fsm_train.core.description import check_callbacks
from fsm_train.schedules import cosine
from fsm_train.testing import simulate
from tests.diabetes_training import linear, trained, weights_of, workload
from tests.unhandled_command import Shake

ONE_OF_EACH: list[Callback[Any]] = [
    accumulate(2),
    checkpoint("runs"),
    clip_grad_norm(1.0),
    clip_grad_value(1.0),
    compile_step(),
    cutmix(),
    detect_anomaly(),
    diagnosing(),
    early_stopping(),
    ema(),
    freeze("0.*"),
    grad_noise(0.1),
    limit(batches=1),
    micro_batches(),
    mixed_precision(),
    parallel(),
    record("loss"),
    reduce_on_plateau(),
    restore_best(),
    schedule(lr=cosine(10)),
    skip_nonfinite(),
    stop_after(steps=1),
    stop_at("valid_loss", 0.1),
    stop_on_nonfinite(),
    stop_pruned(),
    suspend_after(seconds=1),
    torch_scheduler(lambda optimizer: optimizer),
    validate_every(steps=1),
    weight_penalty(l1=0.1),
]


# ----------------------------------------------------------------------------------------- describe


def test_description_says_who_does_what_when() -> None:
    """By phase, in the order of their commands: what each may raise, set and command, and what it needs."""
    callbacks = [
        grad_noise(0.1),
        clip_grad_norm(1.0),
        skip_nonfinite(),
        schedule(lr=cosine(10)),
        early_stopping(),
        record("loss", every=50),
    ]

    assert describe(callbacks) == "\n".join(
        [
            "setup",
            "  schedule   sets lr",
            "loss_end",
            "  skip_nonfinite   raises SKIP_BACKWARD, SKIP_STEP, STOP_TRAINING; needs loss",
            "step_begin",
            "  clip_grad_norm   commands ClipGradNorm",
            "  skip_nonfinite   raises SKIP_STEP, STOP_TRAINING; needs grad_norm, loss",
            "  schedule         sets lr",
            "  grad_noise       commands AddGradNoise; order 10",
            "batch_end",
            "  record   needs loss; every 50",
            "valid_end",
            "  early_stopping   raises STOP_TRAINING",
            "epoch_end",
            "  early_stopping   raises STOP_TRAINING",
        ]
    )


def test_description_of_nobody() -> None:
    """An empty list is a list."""
    assert describe([]) == "no callback is consulted"


def test_callback_that_does_not_say_is_said_to() -> None:
    """What is not declared is not guessed."""

    @on(Phase.BATCH_END)
    def mine(state: State) -> None: ...

    assert describe([mine]) == "batch_end\n  mine   says nothing of what it does"


def test_whole_library_declares_itself() -> None:
    """Each callback of the library says what it may do, and each of its factories is in this file."""
    others = [mixup(), swa(0), during(record("loss"), epochs=(0, 1), name="record early")]
    made = {callback.factory.rpartition(".")[2] for callback in [*ONE_OF_EACH, *others]}

    assert made == set(library.__all__)
    for callback in [*ONE_OF_EACH, *others]:
        assert None not in (callback.raises, callback.sets, callback.commands), callback.name
        assert describe([callback])


def test_whole_library_fits_together() -> None:
    """All that is no alternative to another one can be in one list."""
    assert check_callbacks(ONE_OF_EACH) == tuple(ONE_OF_EACH)


# ---------------------------------------------------------------------------------------- conflicts


@pytest.mark.parametrize(
    ("callbacks", "error", "sentence"),
    [
        (
            [schedule(lr=cosine(10)), schedule(lr=cosine(20), name="other")],
            ConflictError,
            "'schedule' and 'other' both set lr at step_begin: leave one out",
        ),
        (
            [reduce_on_plateau(), reduce_on_plateau(name="b")],
            ConflictError,
            "'reduce_on_plateau' and 'b' both set lr at epoch_end",
        ),
        ([ema(), swa(0)], ConflictError, "one average in its validations and at its end"),
        ([mixup(), cutmix()], ConflictError, "'mixup' and 'cutmix' both give the command CutMix or MixUp"),
        ([mixed_precision(), mixed_precision(name="b")], ConflictError, "both give the command UseMixedPrecision"),
        ([parallel(), parallel(name="b")], ConflictError, "both give the command UseParallel"),
        ([ema(), ema()], ValueError, "two callbacks are called 'ema'"),
        ([early_stopping], TypeError, "is no callback .call it: it is a factory."),
        ([3], TypeError, "3 is no callback"),
    ],
)
def test_conflicts_are_known_before_the_run(callbacks: list[Any], error: type[Exception], sentence: str) -> None:
    """By describe, and by a run before anything happens."""
    with pytest.raises(error, match=sentence):
        describe(callbacks)
    with pytest.raises(error, match=sentence):
        simulate(callbacks)


def test_different_phases_are_said(caplog: pytest.LogCaptureFixture) -> None:
    """Who sets the rate at another moment does not do so at once, but is overruled: described, and logged by a run."""
    note = (
        "'schedule' and 'reduce_on_plateau' both set lr, at different phases: "
        "what one sets lasts only until the other sets it"
    )
    both = [schedule(lr=cosine(3)), reduce_on_plateau(patience=0)]
    final = simulate(both, valid_loss=[1.0, 1.0, 1.0], hyper={"lr": 1.0})

    assert describe(both).splitlines()[-1] == f"note: {note}"
    assert [record.getMessage() for record in caplog.records] == [note]
    assert final.hyper["lr"] == pytest.approx(0.1 * cosine(3)(2)), "reduced once, and not twice"


def test_other_hyper_parameters_are_no_conflict(caplog: pytest.LogCaptureFixture) -> None:
    """Who sets another one overrules nobody."""
    different = [schedule(lr=cosine(2)), schedule(momentum=cosine(2), name="b"), early_stopping()]
    simulate(different, hyper={"lr": 1.0, "momentum": 0.9}, valid_loss=1.0)

    assert "note" not in describe(different)
    assert not caplog.records


def test_flag_that_nothing_would_read_is_refused_beforehand() -> None:
    """A declared flag has to be readable at one of the phases at least."""

    @on(Phase.BATCH_END, raises=Flag.SKIP_BACKWARD)
    def too_late(state: State) -> None: ...

    with pytest.raises(
        ValueError, match="'too_late' raises SKIP_BACKWARD where nothing reads it any more: .* loss_end"
    ):
        simulate([too_late])


# -------------------------------------------------------------------------- beyond the declaration


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        (Transition(flags=Flag.STOP_EPOCH), "it raised STOP_EPOCH, which is not in its raises=Flag.NONE"),
        (Transition(hyper={"lr": 0.1, "momentum": 0.1}), r"it set lr, which is not in its sets=\['momentum'\]"),
        (Transition(commands=(Shake(),)), r"it gave the command Shake.strength=0.1., .* commands=\['ClipGradNorm'\]"),
    ],
)
def test_answer_beyond_the_declaration_is_an_error(answer: Transition, sentence: str) -> None:
    """What was declared is what others rely on."""

    @on(Phase.STEP_BEGIN, raises=Flag.NONE, sets={"momentum"}, commands={ClipGradNorm})
    def mine(state: State) -> Transition:
        return answer

    with pytest.raises(CallbackError, match=sentence):
        simulate([mine], hyper={"lr": 0.1, "momentum": 0.9})


# --------------------------------------------------------------------------------- one's own commands


def test_command_that_nobody_carries_out_is_refused_when_it_is_declared() -> None:
    """Before anything runs, with how to register what carries it out."""

    @on(Phase.STEP_BEGIN, commands={Shake})
    def shake(state: State) -> Transition:
        return Transition(commands=(Shake(),))

    with pytest.raises(ValueError, match=r"'shake' gives the command Shake, which nothing .* @carries_out\(Shake\)"):
        run(start(workload(), epochs=1), [shake])


def test_command_of_ones_own_is_carried_out() -> None:
    """A frozen record and one registered function."""

    @attrs.frozen
    class Double(Command):
        """Double the gradients."""

        times: int = 1

    @carries_out(Double)
    def double(work: Supervised, command: Double) -> None:
        for gradient in work.gradients():
            gradient.mul_(2**command.times)

    @on(Phase.STEP_BEGIN, commands={Double})
    def doubled(state: State) -> Transition:
        return Transition(commands=(Double(times=2),))

    def steps(rate: float) -> Callable[[Any], torch.optim.Optimizer]:
        return lambda model: torch.optim.SGD(model.parameters(), lr=rate)

    ours = trained([doubled], optimizer=steps(0.125))

    assert ours.weights.allclose(trained([], optimizer=steps(0.5)).weights)
    assert not ours.weights.equal(weights_of(linear()))
