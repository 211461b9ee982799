"""What happened, in order, and how it is shown."""

from __future__ import annotations

import pytest

from fsm_train import ClipGradNorm, Flag, Operation, Phase, Scripted, State, Transition, on, run, start
from fsm_train.callbacks import accumulate, clip_grad_norm, early_stopping, schedule
from fsm_train.commands import KeepWeights
from fsm_train.schedules import constant
from fsm_train.testing import Trace, differences, simulate


def traced(*callbacks: object, **script: object) -> Trace:
    trace = Trace()
    simulate(callbacks, trace=trace, **script)  # type: ignore[arg-type]
    return trace


def test_trace_is_read_from_top_to_bottom() -> None:
    """It shows phases with their counters, who said what, the commands and the operations, in order."""
    shown = str(traced(clip_grad_norm(1.0), schedule(lr=constant(0.5)), batches=1))

    begin = shown.index("step_begin")
    assert shown[begin : shown.index("batch_end")].splitlines() == [
        "step_begin          epoch 0  batch 0  step 0  pending 1",
        "    clip_grad_norm: ClipGradNorm(max_norm=1.0, norm_type=2.0)",
        "    schedule: sets lr to 0.05, remembers (('lr', 0.1),)",
        "        ! ClipGradNorm(max_norm=1.0, norm_type=2.0)",
        "        → step",
        "step_end            epoch 0  batch 0  step 1",
        "        → zero",
    ]
    assert shown.splitlines()[0] == "→ prepare"
    assert "        → open, fetch" in shown.splitlines()


def test_trace_shows_flags_facts_and_reasons() -> None:
    """Flags that are up, facts that were measured, and why a training stops stand in the line of their phase."""

    @on(Phase.LOSS_END, needs={"loss"})
    def skip(state: State) -> Transition:
        return Transition(flags=Flag.SKIP_STEP | Flag.STOP_TRAINING, reason="enough")

    shown = str(traced(skip, batches=1, loss=0.25, valid_loss=1.0))

    assert "loss_end            epoch 0  batch 0  step 0  loss 0.25  SKIP_STEP | STOP_TRAINING" in shown
    assert "    skip: raises SKIP_STEP | STOP_TRAINING, because: enough" in shown
    assert "valid_batch_begin   epoch 0  batch 1  step 0  valid_batch 0" in shown


def test_nothing_said_is_shown_as_that() -> None:
    """An empty answer is still an answer."""

    @on(Phase.TRAIN_BEGIN)
    def quiet(state: State) -> Transition:
        return Transition()

    assert "    quiet: nothing" in str(traced(quiet))


def test_order_holds() -> None:
    """Clipping comes before each step, as does what it asks for, whatever name the two are called by."""
    trace = traced(clip_grad_norm(1.0), accumulate(2), batches=5)

    trace.assert_order("clip_grad_norm", before="step")
    trace.assert_order(ClipGradNorm, before=Operation.STEP)
    trace.assert_order(Phase.STEP_BEGIN, before="ClipGradNorm")


def test_order_that_does_not_hold_is_shown() -> None:
    """A step without clipping before it is an error that shows the events before the step."""

    @on(Phase.STEP_BEGIN)
    def clip_sometimes(state: State) -> Transition | None:
        return Transition(commands=(ClipGradNorm(1.0),)) if state.step % 2 == 0 else None

    with pytest.raises(AssertionError, match="'step' happened without 'clip_sometimes' before it") as caught:
        traced(clip_sometimes, batches=3).assert_order("clip_sometimes", before="step")

    assert str(caught.value).splitlines()[-1].strip() == "→ step"
    assert len(str(caught.value).splitlines()) < 20


@pytest.mark.parametrize(("first", "before"), [("clipping", "step"), ("clip_grad_norm", "unclip")])
def test_order_of_what_never_happened_is_a_mistake(first: str, before: str) -> None:
    """An unknown name is an error that lists the events that there are."""
    with pytest.raises(AssertionError, match=r"never happened in this trace; what did: prepare, .*clip_grad_norm"):
        traced(clip_grad_norm(1.0)).assert_order(first, before=before)


def test_empty_trace_says_so() -> None:
    """A trace that was never filled has no last state and no order."""
    with pytest.raises(ValueError, match="this trace is empty"):
        Trace().final  # noqa: B018
    with pytest.raises(AssertionError, match="what did: nothing"):
        Trace().assert_order("a", before="b")
    assert repr(Trace()) == "<Trace of 0 events>"


def test_trace_can_be_asked() -> None:
    """States, phases, operations, commands and the answers of one callback are there as values."""
    trace = traced(early_stopping(patience=1), clip_grad_norm(1.0), batches=1, valid_loss=[1.0, 2.0])

    assert trace.final.reason == "early_stopping: valid_loss has not improved on 1.0 for 1 validation"
    assert trace.phases.count(Phase.EPOCH_END) == 2
    assert trace.operations[:4] == ("prepare", "open", "fetch", "forward")
    assert trace.commands == (ClipGradNorm(1.0), ClipGradNorm(1.0))
    assert [(state.epoch, answer.flags) for state, answer in trace.answers("early_stopping")] == [
        (0, Flag.NONE),
        (1, Flag.STOP_TRAINING),
    ]
    assert len(list(trace)) == len(trace)
    assert repr(trace) == f"<Trace of {len(trace)} events, the last at done>"


def test_trace_changes_nothing() -> None:
    """A training that is traced is the same training."""
    script = {"batches": 3, "valid_loss": [3.0, 2.0, 2.5], "loss": lambda state: 1.0 / (1 + state.iteration)}
    callbacks = [early_stopping(patience=1), accumulate(2)]

    untraced = simulate(callbacks, **script)  # type: ignore[arg-type]
    # The one trace of it: at a final phase that somebody watches, the last batch size is a fact.
    assert list(differences(traced(*callbacks, **script).final, untraced)) in (
        [],
        ["facts['batch_size']: only left, 32"],
    )


def test_trace_ends_with_the_simulation() -> None:
    """What leaving early does, TEARDOWN and what follows, is no part of the training."""
    assert traced(batches=3, until=Phase.STEP_BEGIN).phases[-1] is Phase.STEP_BEGIN


def test_commands_before_a_failure_are_there() -> None:
    """Commands that were carried out are in the trace also if the next one raised."""

    class Refusing(Scripted):
        def carry_out(self, command: object, state: State) -> None:
            raise RuntimeError("out of memory")

    @on(Phase.TEARDOWN)
    def clip(state: State) -> Transition:
        return Transition(commands=(KeepWeights("w"),))

    trace = Trace()
    with pytest.raises(RuntimeError, match="out of memory"):
        run(start(trace.watching(Refusing()), epochs=1), [clip], sinks=[trace])

    assert trace.commands == (KeepWeights("w"),)


def test_trace_goes_on_over_several_calls() -> None:
    """An interrupted training and its continuation are one trace, with the workload they share."""
    trace = Trace()
    suspended = simulate([], batches=2, interrupt_at=Phase.BATCH_END, trace=trace)
    run(suspended, sinks=[trace])

    assert [phase for phase in trace.phases if phase in (Phase.SETUP, Phase.SUSPENDED, Phase.DONE)] == [
        Phase.SETUP,
        Phase.SUSPENDED,
        Phase.SETUP,
        Phase.DONE,
    ]
    assert trace.operations.count("step") == 2


def test_a_trace_that_is_off_notes_no_command() -> None:
    """Neither the phases nor what is carried out at them; on again, it has what comes then."""
    trace = Trace()
    trace.on = False
    final = run(start(trace.watching(Scripted(batches=2)), epochs=1), [clip_grad_norm(1.0)], sinks=[trace])
    assert len(trace) == 0

    trace.on = True
    run(start(trace.watching(Scripted(batches=2)), epochs=1), [clip_grad_norm(1.0)], sinks=[trace])
    assert len(trace.commands) == final.step
