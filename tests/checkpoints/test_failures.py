"""A training that fails can be saved: it resumes at the end of what is whole, exactly, or says what is not exact."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from fsm_train import Flag, Operation, Phase, State, Supervised, Transition, WorkloadError, on, replay, restore, run
from fsm_train import start as begin
from fsm_train.callbacks import accumulate, checkpoint, restore_best, swa
from fsm_train.commands import SaveCheckpoint
from fsm_train.core.callback import Callback
from fsm_train.interpreter import iterate
from fsm_train.testing import at
from tests.checkpoints.failing_training import (
    EPOCHS,
    BrokenError,
    Fault,
    faults,
    library,
    undisturbed,
    with_fault,
    workload,
)
from tests.how_long import THOROUGH

WINDOWS = pytest.mark.parametrize("window", [0, 1, 2])


@pytest.mark.long
@WINDOWS
def test_saved_after_any_fault_it_is_exact_or_says_what_is_not(window: int) -> None:
    """Whatever raises, wherever: without a note, the training that goes on ends as if nothing had been."""
    exact = noted = 0
    for fault in faults() if THOROUGH else faults()[window::9]:
        outcome = with_fault(fault, window)
        # That a callback raised is a decision, which a replay differs from if it does not raise too.
        assert outcome.divergence is None or (isinstance(fault.what, Phase) and not fault.by_command), fault
        if outcome.restored is None:
            continue
        exact, noted = exact + outcome.exact, noted + (not outcome.exact)
        assert not outcome.exact or outcome.end == undisturbed(window), fault
    assert exact > 5
    assert noted > 5


EXACT = [
    *(Fault(part, 5) for part in ("model", "loss")),
    Fault("data", 16 * 5 + 3),
    Fault(Operation.OPEN, 1),
    Fault(Operation.FETCH, 6),
    Fault(Operation.OPEN_VALID, 1),
    Fault(Operation.FETCH_VALID, 3),
    Fault(Operation.EVALUATE, 3),
    Fault(Operation.MEASURE_VALID, 1),
    Fault(Operation.MEASURE, 1),
    Fault(Phase.EPOCH_BEGIN, 1),
    Fault(Phase.BATCH_BEGIN, 6),
    Fault(Phase.LOSS_END, 6),
    Fault(Phase.TRAIN_END, 0),
]


@WINDOWS
@pytest.mark.parametrize("fault", EXACT, ids=str)
def test_what_leaves_nothing_half_done_is_exact(fault: Fault, window: int) -> None:
    """The data, the forward pass, the loss, a validation, a callback before the backward pass: no note, no bit."""
    outcome = with_fault(fault, window)

    assert outcome.restored is not None
    assert outcome.restored.notes == ()
    assert outcome.end == undisturbed(window)


@pytest.mark.parametrize("window", [0, 1])
def test_a_backward_pass_that_fails_is_exact_where_no_gradient_waited(window: int) -> None:
    """What it left in the gradients is left out, as out of memory often is there."""
    outcome = with_fault(Fault("gradient", 6), window)

    assert outcome.exact
    assert outcome.end == undisturbed(window)


NOTED = [
    (Fault("gradient", 5), 2, "the gradients that wait for a step"),
    (Fault("optimizer", 4), 1, "the weights: the training failed by step, and some of them may have taken the step"),
    (Fault(Operation.ZERO, 4), 1, "the weights: the training failed by zero"),
    (Fault("metric", 7), 0, "the weights: the batch that failed has taken its step, and is trained again"),
    (Fault("metric", 5), 1, "the training metrics of this epoch"),
    (Fault(Phase.STEP_BEGIN, 4), 1, "the training metrics of this epoch: the batch that failed is in them"),
    (Fault(Phase.STEP_END, 4), 1, "what callbacks asked for at step_end, where the training failed: it is not done"),
    (Fault(Phase.BATCH_END, 4), 1, "what callbacks asked for at batch_end"),
    (Fault(Phase.EPOCH_END, 1), 1, "what callbacks asked for at epoch_end"),
    (Fault(Phase.BATCH_BEGIN, 4, by_command=True), 1, "what commands did after the last whole batch, .*: Break"),
    (Fault(Phase.TRAIN_END, 0, by_command=True), 1, "what commands did after the last whole batch, .*: Break"),
]


@pytest.mark.parametrize(("fault", "window", "note"), NOTED, ids=str)
def test_what_is_left_half_done_is_said(fault: Fault, window: int, note: str) -> None:
    """By the state that is restored, with the thing that is not as it was."""
    outcome = with_fault(fault, window)

    assert outcome.restored is not None
    assert any(re.match(note, said) for said in outcome.restored.notes), outcome.restored.notes


@pytest.mark.parametrize("fault", [Fault(Operation.FETCH, 0), Fault("model", 0), Fault(Phase.SETUP, 0)], ids=str)
def test_before_the_first_whole_batch_nothing_is_saved(fault: Fault) -> None:
    """There would be nothing in it that a new training has not."""
    assert with_fault(fault, 1).restored is None


# ------------------------------------------------------------------------------ one case each

ONES = [(torch.ones(1, 1), torch.zeros(1, 1))]


def counting(train: Any, **settings: Any) -> Supervised:
    """A training whose one weight counts the steps."""
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    return Supervised(
        model, torch.optim.SGD(model.parameters(), lr=1.0), lambda output, target: -output.mean(), train, **settings
    )


@on(Phase.TEARDOWN)
def keep_what_there_is(state: State) -> Transition | None:
    """A callback of one's own that saves."""
    return Transition(commands=(SaveCheckpoint(state.reason.rpartition(" ")[2], "failed"),)) if state.error else None


def failing_at(iteration: int, phase: Phase, folder: Path) -> Callback[Any]:
    """A callback that raises; the last word of its message is the folder."""

    @on(phase)
    def fails(state: State) -> None:
        if state.iteration == iteration:
            raise BrokenError(f"in {folder}")

    return fails


def test_a_command_of_ones_own_saves_at_teardown(tmp_path: Path) -> None:
    """With no callback of the library; a draw of the batch that failed is then said, where there was one."""
    work = counting(ONES * 4)
    with pytest.raises(Exception, match="fails"):
        run(begin(work, epochs=3, seed=0), [keep_what_there_is, failing_at(7, Phase.BATCH_BEGIN, tmp_path)])
    work = counting(ONES * 4)
    state = restore(tmp_path, work)
    final = run(state)

    assert (state.epoch, state.batch, state.iteration, state.notes) == (1, 3, 7, ())
    assert (final.iteration, work.model.weight.item()) == (12, 12.0)


def test_without_notes_before_each_batch_what_it_drew_is_said(tmp_path: Path) -> None:
    """The message says the setting with which it is exact."""
    work = workload()
    with pytest.raises(Exception, match="fails"):
        run(begin(work, epochs=3, seed=0), [keep_what_there_is, failing_at(7, Phase.BATCH_BEGIN, tmp_path)])
    state = restore(tmp_path, workload())

    assert state.iteration == 7
    assert len(state.notes) == 1
    assert state.notes[0].startswith(
        "torch's generator: what the batch that failed drew stays drawn; checkpoint(…, on_"
    )


class Remembers(torch.utils.data.Sampler[int]):
    """A sampler that counts what it has given."""

    def __init__(self) -> None:
        self.given = 0

    def __iter__(self) -> Iterator[int]:
        for i in range(4):
            self.given += 1
            yield i

    def __len__(self) -> int:
        return 4


@pytest.mark.parametrize("on_failure", [True, False])
@pytest.mark.parametrize("iteration", [4, 6])
def test_a_sampler_that_counts(on_failure: bool, iteration: int, tmp_path: Path) -> None:
    """Its count is that before the batch which failed, or it is said that it is not."""
    loader = lambda: DataLoader(torch.utils.data.TensorDataset(torch.ones(4, 1), torch.ones(4, 1)), sampler=Remembers())
    work = counting(loader())
    saving = checkpoint(tmp_path, on_failure=True, every_epochs=9) if on_failure else keep_what_there_is
    with pytest.raises(Exception, match="fails"):
        run(begin(work, epochs=3, seed=0), [saving, failing_at(iteration, Phase.LOSS_END, tmp_path)])
    work = counting(loader())
    state = restore(tmp_path, work)
    run(state)

    said = [note for note in state.notes if note.startswith("what of the training data changes while it is read")]
    assert (work.train.sampler.given == 12) is not bool(said)  # type: ignore[attr-defined]
    assert bool(said) is (not on_failure and iteration == 6)


class KeepsPlace(list[Any]):
    """A loader that keeps its own place."""

    def state_dict(self) -> dict[str, int]:
        return {"place": 0}

    def load_state_dict(self, state: dict[str, int]) -> None: ...


def test_a_loader_that_keeps_its_place_may_be_ahead(tmp_path: Path) -> None:
    """It counts the batch that failed, and is not asked before each batch: that is said."""
    work = counting(KeepsPlace(ONES * 4))
    with pytest.raises(Exception, match="fails"):
        run(begin(work, epochs=3), [checkpoint(tmp_path, on_failure=True), failing_at(6, Phase.LOSS_END, tmp_path)])

    assert restore(tmp_path, counting(KeepsPlace(ONES * 4))).notes == (
        "the place in the training data: the KeepsPlace keeps it, and may be a batch ahead",
    )


def test_a_step_in_one_call_without_notes_leaves_its_statistics_behind(tmp_path: Path) -> None:
    """Nobody keeps the buffers for a batch that can't be left out, so that it is said."""
    work = workload(Fault("loss", 7))
    with pytest.raises(BrokenError):
        run(begin(work, epochs=3, seed=0), [_to(tmp_path)])

    notes = restore(tmp_path, workload()).notes
    assert notes[0] == "the buffers, such as the statistics of batch norm: the batch that failed may be in them"


def _to(folder: Path) -> Callback[Any]:
    return attrs.evolve(
        keep_what_there_is,
        decide=lambda state, memory: Transition(commands=(SaveCheckpoint(str(folder), "failed"),) * bool(state.error)),
    )


def test_weights_of_an_average_are_not_saved_as_the_model(tmp_path: Path) -> None:
    """A validation with the average that fails leaves the model with it until the call of run ends."""
    work = workload(Fault(Operation.EVALUATE, 4))
    callbacks = [swa(0), *library(1)[:2]]
    with pytest.raises(BrokenError):
        run(begin(work, epochs=EPOCHS, seed=0), [*callbacks, checkpoint(tmp_path, on_failure=True)])
    again, whole = workload(), workload()
    state = restore(tmp_path, again)
    run(state, callbacks)
    run(begin(whole, epochs=EPOCHS, seed=0), callbacks)

    assert state.notes == ()
    for one, other in zip(again.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(one, other)


def _ends_with(work: Supervised, state: State) -> list[torch.Tensor]:
    assert state.phase is Phase.DONE
    return [value.clone() for value in work.model.state_dict().values()]


IN_THE_PASS = Fault("data", 16 * 4 * EPOCHS + 20)
"""In the pass over the data that swa makes at TRAIN_END, for the statistics of batch norm."""


@pytest.mark.parametrize("others", [[], [restore_best()]], ids=["swa", "swa and restore_best"])
def test_the_pass_of_swa_over_the_data_fails(others: list[Callback[Any]], tmp_path: Path) -> None:
    """The epochs are over: what goes on does TRAIN_END alone, with the own weights of the model, and says so."""
    whole, work, again = workload(), workload(IN_THE_PASS), workload()
    callbacks = [swa(0), *others]
    expected = _ends_with(whole, run(begin(whole, epochs=EPOCHS, seed=0), callbacks))
    with pytest.raises(BrokenError):
        run(begin(work, epochs=EPOCHS, seed=0), [*callbacks, checkpoint(tmp_path, on_failure=True)])
    state = restore(tmp_path, again)

    assert "FinishAverage" in state.notes[0]
    assert all(map(torch.equal, _ends_with(again, run(state, callbacks)), expected))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_the_pass_of_swa_over_the_data(number: signal.Signals) -> None:
    """The pass is finished, and the training with it; the state says that the signal came."""
    whole, work = workload(), workload(IN_THE_PASS, lambda: signal.raise_signal(number))
    expected = _ends_with(whole, run(begin(whole, epochs=EPOCHS, seed=0), [swa(0)]))
    before = signal.signal(number, signal.SIG_DFL if number == signal.SIGTERM else signal.default_int_handler)
    try:
        final = run(begin(work, epochs=EPOCHS, seed=0), [swa(0)])
    finally:
        signal.signal(number, before)

    assert final.notes == (f"{number.name} came when this call of run was ending, too late to change anything",)
    assert all(map(torch.equal, _ends_with(work, final), expected))


def test_flags_memories_and_the_rate_are_those_of_the_last_whole_batch(tmp_path: Path) -> None:
    """What callbacks decided in the batch that failed, they decide again."""

    @on(Phase.BATCH_BEGIN, memory=0)
    def halves(state: State, times: int) -> Transition:
        return Transition(memory=times + 1, hyper={"lr": state.hyper["lr"] / 2}, flags=Flag.SKIP_VALID)

    work = counting(ONES * 4, valid=ONES)
    with pytest.raises(BrokenError):
        run(
            begin(work, epochs=2, seed=0),
            [halves, accumulate(1), checkpoint(tmp_path, on_failure=True), _raising_loss(work, 3)],
        )
    state = restore(tmp_path, counting(ONES * 4, valid=ONES))
    final = run(state, [halves])

    assert (state.iteration, state.hyper["lr"], state.flags) == (3, 0.125, Flag.SKIP_VALID)
    assert final.memory["halves"] == 8
    assert final.hyper["lr"] == 2.0**-8


def _raising_loss(work: Supervised, iteration: int) -> Callback[Any]:
    own = work.loss_fn

    @on(Phase.BATCH_BEGIN)
    def breaks(state: State) -> None:
        if state.iteration == iteration:
            work.loss_fn = lambda output, target: own(output, target) / int(torch.tensor(0))

    def raising(output: Any, target: Any) -> Any:
        raise BrokenError

    @on(Phase.BATCH_BEGIN)
    def replaces(state: State) -> None:
        work.loss_fn = raising if state.iteration == iteration else own

    return replaces


def test_older_checkpoints_stay(tmp_path: Path) -> None:
    """One that is exact is not given away for one that may be less."""
    work = workload(Fault("optimizer", 7))
    with pytest.raises(BrokenError):
        run(begin(work, epochs=3, seed=0), [checkpoint(tmp_path, every_steps=3, on_failure=True)])

    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "epoch-00001",
        "step-00000006",
        "step-00000007-failed",
    ]


def test_a_loop_that_is_left_early_can_be_gone_on_with(tmp_path: Path) -> None:
    """Leaving a loop over iterate ends the training as a failure does; nothing is half done at the end of a batch."""
    work = counting(ONES * 4)
    for state in iterate(begin(work, epochs=3), [checkpoint(tmp_path, on_failure=True)], at=[Phase.BATCH_END]):
        if state.iteration == 6:
            break
    del state
    work = counting(ONES * 4)
    restored = restore(tmp_path, work)
    run(restored)

    assert (restored.iteration, restored.notes) == (6, ())
    assert work.model.weight.item() == 12.0


def test_a_second_ctrl_c_can_be_gone_on_with(tmp_path: Path) -> None:
    """KeyboardInterrupt in the middle of a batch."""
    work = workload()
    calls: list[int] = []

    def twice(*_: object) -> None:
        calls.append(1)
        if len(calls) == 6:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    work.model[0].register_forward_pre_hook(twice)  # type: ignore[index]
    with pytest.raises(KeyboardInterrupt):
        run(begin(work, epochs=EPOCHS, seed=0), [checkpoint(tmp_path, on_failure=True)])
    again, whole = workload(), workload()
    run(restore(tmp_path, again))
    run(begin(whole, epochs=EPOCHS, seed=0))

    for one, other in zip(again.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_failure_while_it_is_suspended(tmp_path: Path) -> None:
    """The training is whole there: it resumes where it was suspended."""

    @on(Phase.BATCH_END)
    def leave(state: State) -> Transition | None:
        return Transition(flags=Flag.SUSPEND) if state.iteration == 5 else None

    work = counting(ONES * 4)
    with pytest.raises(Exception, match="fails"):
        run(begin(work, epochs=3), [leave, keep_what_there_is, failing_at(5, Phase.SUSPEND, tmp_path)])
    state = restore(tmp_path, counting(ONES * 4))

    assert (state.phase, state.iteration, state.resume_at) == (Phase.SUSPENDED, 5, Phase.BATCH_END)
    assert run(state).iteration == 12


def test_where_nothing_is_whole_the_command_is_refused(tmp_path: Path) -> None:
    """The error of the training says it in a note."""
    work = counting(ONES * 4)
    with pytest.raises(Exception, match="fails") as caught:
        run(begin(work, epochs=3), [keep_what_there_is, failing_at(0, Phase.LOSS_END, tmp_path)])

    assert caught.value.__notes__[-1] == (
        "And while this training was torn down: WorkloadError: there is nothing to save: this training failed at "
        "loss_end, before a batch of this call of run was whole"
    )


def test_teardown_of_a_training_that_did_not_fail_is_no_place_to_save(tmp_path: Path) -> None:
    """As ever: it was suspended or ended before."""
    command = SaveCheckpoint(str(tmp_path), "late")
    saving = attrs.evolve(keep_what_there_is, decide=lambda state, memory: Transition(commands=(command,)))
    with pytest.raises(WorkloadError, match="a checkpoint cannot be written at teardown"):
        run(begin(counting(ONES), epochs=1), [saving])


def test_the_callback_decides_by_what_a_log_has(tmp_path: Path) -> None:
    """A replay of a training that failed, was restored and went on makes the same decisions."""
    work, log = workload(Fault(Operation.FETCH, 6)), tmp_path / "run.jsonl"
    callbacks = [*library(1), checkpoint(tmp_path / "saved", on_failure=True)]
    with pytest.raises(BrokenError):
        run(begin(work, epochs=EPOCHS, seed=0), callbacks, log=log)
    final = run(restore(tmp_path / "saved", workload()), callbacks, log=log)
    replayed = replay(log, callbacks)

    assert replayed.divergence is None
    assert replayed.state.iteration == final.iteration == 12


LAST_WORDS = [
    *(Fault(phase, 1, by_command=True) for phase in (Phase.BATCH_END, Phase.VALID_END, Phase.EPOCH_END)),
    Fault("optimizer", 2),
    Fault(Phase.TEARDOWN, 0),
    Fault(Phase.TEARDOWN, 0, by_command=True),
]


@pytest.mark.parametrize("fault", LAST_WORDS, ids=str)
def test_what_was_decided_before_the_last_line_is_decided_again(fault: Fault) -> None:
    """The state at which a command failed has no line, nor has one at which a step failed or TEARDOWN did."""
    outcome = with_fault(fault, 1)
    assert outcome.failed
    assert outcome.divergence is None


def test_a_failed_training_that_can_resume_nowhere_gives_no_command() -> None:
    """Neither does one that has not failed."""
    saves = checkpoint("runs", on_failure=True)

    assert saves(at(Phase.TEARDOWN, iteration=3, step=3)) is None
    assert saves(at(Phase.TEARDOWN, error="OSError: gone")) is None
    (command,) = saves(at(Phase.TEARDOWN, iteration=3, step=3, error="OSError: gone")).commands  # type: ignore[union-attr]
    assert command == SaveCheckpoint("runs", "step-00000003-failed")
