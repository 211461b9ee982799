"""A check is a measurement: what monitors a metric looks at each measurement of it, once."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler
from torch.utils.data import DataLoader, Dataset, TensorDataset

from fsm_train import (
    Command,
    ConflictError,
    Flag,
    Phase,
    Scripted,
    State,
    Supervised,
    Transition,
    WorkloadError,
    describe,
    evaluate,
    extend,
    on,
    replay,
    run,
    start,
    what_if,
)
from fsm_train.callbacks import (
    accumulate,
    checkpoint,
    clip_grad_norm,
    early_stopping,
    reduce_on_plateau,
    restore_best,
    stop_after,
    stop_at,
    torch_scheduler,
    validate_every,
)
from fsm_train.checkpoints.api import restore
from fsm_train.core.commands import KeepWeights, SaveCheckpoint, StepScheduler
from fsm_train.eventlog.from_header import as_recorded
from fsm_train.testing import Trace, at, drive, simulate


@on(Phase.EPOCH_BEGIN)
def leave_out(state: State) -> Transition | None:
    return Transition(flags=Flag.STOP_EPOCH) if state.epoch in (1, 2) else None


@on(Phase.EPOCH_BEGIN)
def not_at_the_end(state: State) -> Transition:
    return Transition(flags=Flag.SKIP_VALID)


def training(batches: int = 10, lr: float = 0.3) -> Supervised:
    """A regression with noise, whose validation loss goes up and down."""
    torch.manual_seed(0)
    model = nn.Linear(2, 1)
    data = [(torch.randn(4, 2), torch.randn(4, 1)) for _ in range(batches)]
    return Supervised(model, torch.optim.SGD(model.parameters(), lr=lr), nn.MSELoss(), data, data[:3])


# ------------------------------------------------------------------------- each measurement, once


def test_validation_in_mid_epoch_is_a_check() -> None:
    """Two validations that get worse stop a training of one long epoch; a target that is reached does too."""
    trace = Trace()
    callbacks = [validate_every(steps=3), early_stopping(patience=1)]
    worse = simulate(callbacks, batches=100, epochs=1, valid_loss=lambda state: float(state.step), trace=trace)
    reached = simulate(
        [validate_every(steps=3), stop_at("valid_loss", 0.5)], batches=100, valid_loss=lambda state: 1.0 / state.step
    )

    assert (worse.step, trace.phases.count(Phase.VALID_END)) == (6, 2)
    assert worse.reason == "early_stopping: valid_loss has not improved on 3.0 for 1 validation"
    assert reached.step == 3


def test_validation_in_mid_epoch_lowers_the_rate() -> None:
    """The library's plateau and torch's own scheduler see each validation."""
    final = simulate(
        [validate_every(steps=2), reduce_on_plateau(patience=1)], batches=8, epochs=1, valid_loss=[1.0, 1.0, 1.0, 1.0]
    )
    work = Scripted(batches=8, valid_loss=[4.0, 3.0, 2.0, 1.0])
    fed = torch_scheduler(lambda optimizer: optimizer, by="epoch", monitor="valid_loss")
    run(start(work, epochs=1), [validate_every(steps=2), fed])

    assert final.hyper["lr"] == pytest.approx(0.01)
    assert [c.metric for c in work.commands if isinstance(c, StepScheduler)] == [4.0, 3.0, 2.0, 1.0]


def test_validation_after_the_last_batch_is_one_check() -> None:
    """It counts for the end of the epoch too, and is not looked at again there."""
    callbacks = [validate_every(steps=4), early_stopping(patience=3)]
    final = simulate(callbacks, batches=4, epochs=4, valid_loss=[1.0, 1.0, 1.0, 1.0])

    assert final.epoch == 4
    assert final.memory["early_stopping"].bad == 3  # type: ignore[attr-defined]


def test_epoch_without_a_batch_is_no_check() -> None:
    """Nothing was measured in it, so neither patience nor rate change, and the history has no old value."""
    measured = {"epochs": 5, "valid_loss": [1.0, 0.9, 0.8]}
    stopped = simulate([leave_out, early_stopping(patience=2)], **measured)
    plateau = simulate([leave_out, reduce_on_plateau(patience=1)], **measured)

    assert (stopped.epoch, stopped.reason) == (5, "")
    assert plateau.hyper["lr"] == 0.1
    assert [metrics.get("valid_loss") for metrics in stopped.history] == [1.0, None, None, 0.9, 0.8]


def test_an_epoch_without_a_batch_has_no_old_nan() -> None:
    """The NaN of the validation before is known again in a state that was copied: one from a file, or of a replay."""

    @on(Phase.EPOCH_BEGIN)
    def stop(state: State) -> Transition | None:
        return Transition(flags=Flag.STOP_EPOCH) if state.epoch > 0 else None

    first = run(start(Scripted(batches=1, valid_loss=math.nan), epochs=1), [stop])
    copied = attrs.evolve(pickle.loads(pickle.dumps(first)), workload=first.workload)

    for state in (first, copied):
        final = run(extend(state, epochs=1), [stop])
        assert [sorted(metrics) for metrics in final.history] == [["train_loss", "valid_loss"], []]


def test_empty_epoch_that_validates_is_a_check() -> None:
    """Weights that were not validated yet can be, without a batch: that is a measurement."""

    @on(Phase.EPOCH_BEGIN)
    def late(state: State) -> Transition | None:
        return Transition(flags=Flag.SKIP_VALID if state.epoch == 0 else Flag.STOP_EPOCH)

    final = simulate([late, early_stopping()], epochs=3, valid_loss=[0.5])

    assert [metrics.get("valid_loss") for metrics in final.history] == [None, 0.5, None]
    assert final.memory["early_stopping"].value == 0.5  # type: ignore[attr-defined]


class Sometimes(Scripted):
    """Measures an accuracy at every second validation only."""

    times = 0

    @property
    def metric_names(self) -> None:
        return None

    def measure_valid(self, state: State) -> dict[str, float]:
        self.times += 1
        return {"valid_loss": 1.0} | ({"valid_accuracy": 0.5} if self.times % 2 else {})


def test_metric_that_a_validation_did_not_measure_is_no_check() -> None:
    """The value of an earlier validation is not taken for a new one."""
    final = run(start(Sometimes(valid_loss=1.0), epochs=5), [early_stopping("valid_accuracy", patience=9)])

    assert final.memory["early_stopping"].bad == 2  # type: ignore[attr-defined]


def test_nothing_is_checked_once_the_training_stops() -> None:
    """The validation of an epoch that was cut short is no further bad check; it may be the best."""
    work = Scripted(batches=4, valid_loss=[2.0, 1.0])
    final = run(start(work, epochs=9), [stop_after(steps=6), early_stopping(), reduce_on_plateau(), restore_best()])

    assert final.memory["early_stopping"].value == 2.0  # type: ignore[attr-defined]
    assert final.memory["reduce_on_plateau"].best == 2.0  # type: ignore[attr-defined]
    assert final.memory["restore_best"] == 1.0
    assert sum(isinstance(command, KeepWeights) for command in work.commands) == 2


# ------------------------------------------------------------------- the weights that had the score


@pytest.mark.parametrize("others", [[], [accumulate(2)], [accumulate(4)]], ids=["plain", "two", "four"])
def test_restored_weights_are_those_that_had_the_score(others: list[Any]) -> None:
    """Validated after 9 of 10 batches and not at the end: measured again, they have the best score."""
    work, measured = training(), []

    @on(Phase.VALID_END)
    def note(state: State) -> None:
        measured.append(state.metrics["valid_loss"])

    run(start(work, epochs=3), [validate_every(steps=2), not_at_the_end, restore_best(), note, *others])

    assert len(measured) > 3
    assert evaluate(work)["valid_loss"] == min(measured)


def test_checkpoints_within_an_epoch_are_the_best_ones(tmp_path: Path) -> None:
    """Every validation competes; the files that stay are the best, and each has the weights of its score."""
    work, measured = training(), []

    @on(Phase.VALID_END)
    def note(state: State) -> None:
        measured.append(state.metrics["valid_loss"])

    best = checkpoint(tmp_path, every_steps=3, monitor="valid_loss", keep=2)
    final = run(start(work, epochs=2), [validate_every(steps=3), best, note])

    ranked = [(name, -score) for name, score in final.memory["checkpoint"].files if name.startswith("epoch")]  # type: ignore[attr-defined]
    assert sorted(score for _, score in ranked) == sorted(measured)[:2]
    for name, score in ranked:
        again = training()
        restore(tmp_path / name, again)
        assert evaluate(again)["valid_loss"] == score


def test_checkpoint_is_named_by_where_it_was_measured() -> None:
    """The end of an epoch by the epoch, the middle by the finished epochs and the step."""
    work = Scripted(batches=4, valid_loss=[3.0, 2.0, 1.0])
    run(start(work, epochs=1), [validate_every(steps=2), checkpoint("runs", monitor="valid_loss")])
    names = [command.name for command in work.commands if isinstance(command, SaveCheckpoint)]

    assert names == ["epoch-00000-step-00000002", "epoch-00000-step-00000004"]


# ----------------------------------------------------------------------------------- the direction


def test_direction_is_inferred_from_the_name() -> None:
    """A rising accuracy neither stops a training nor lowers its rate."""
    accuracy = [0.73, 0.85, 0.95, 0.96, 0.98]

    assert simulate([early_stopping("valid_accuracy")], valid_accuracy=accuracy).epoch == 5
    assert simulate([reduce_on_plateau("valid_accuracy", patience=1)], valid_accuracy=accuracy).hyper["lr"] == 0.1


MONITORING: list[Callable[[str], Any]] = [
    early_stopping,
    reduce_on_plateau,
    restore_best,
    lambda monitor: stop_at(monitor, 1.0),
    lambda monitor: checkpoint("runs", monitor=monitor),
]


@pytest.mark.parametrize("make", MONITORING)
def test_direction_is_asked_for_where_it_cannot_be_known(make: Callable[[str], Any]) -> None:
    """When the callback is made; what was inferred is in its params."""
    for name in ("valid_foo", "valid_neg_loss", "valid_loss_gap", "valid_error_score"):
        with pytest.raises(ValueError, match="is smaller or larger better for .*mode="):
            make(name)
    assert make("valid_top5_accuracy").params["mode"] == "max"
    assert make("valid_clean_loss").params["mode"] == "min"


def test_best_of_a_what_if_is_by_the_inferred_direction(tmp_path: Path) -> None:
    """The highest accuracy until the training would have stopped, and not the lowest."""
    log = tmp_path / "run.jsonl"
    work = Scripted(batches=1, valid_accuracy=[0.2, 0.6, 0.7, 0.8, 0.9])
    run(start(work, epochs=5), [stop_at("valid_accuracy", 0.95)], log=log)

    best = what_if(log, [stop_at("valid_accuracy", 0.75)]).best
    assert best is not None
    assert (best.value, best.epoch) == (0.8, 4)


@pytest.mark.parametrize("make", MONITORING)
def test_best_of_a_what_if_follows_each_callback_that_infers(make: Callable[[str], Any], tmp_path: Path) -> None:
    """An accuracy is best where it is highest; a loss beside it still where it is lowest."""
    for monitor, expected in (("valid_accuracy", (0.9, 2)), ("valid_loss", (1.0, 1))):
        log = tmp_path / f"{monitor}.jsonl"
        work = Scripted(batches=1, valid_accuracy=[0.2, 0.9, 0.4], valid_loss=[1.0, 2.0, 3.0])
        run(start(work, epochs=3), [make(monitor)], log=log)

        best = what_if(log, [make(monitor)]).best
        assert best is not None
        assert (best.monitor, best.value, best.epoch) == (monitor, *expected)


def test_what_if_knows_validations_in_mid_epoch(tmp_path: Path) -> None:
    """It stops at one, and its value is the best; it says as a training does how many epochs were finished."""
    log = tmp_path / "run.jsonl"
    recorded = [validate_every(steps=2), early_stopping(patience=9)]
    work = Scripted(batches=4, valid_loss=[5.0, 4.0, 3.0, 3.5, 3.6, 3.7])
    run(start(work, epochs=3), recorded, log=log)

    answer = what_if(log, [early_stopping(patience=2)])
    trained = run(
        start(Scripted(batches=4, valid_loss=[5.0, 4.0, 3.0, 3.5, 3.6, 3.7]), epochs=3),
        [validate_every(steps=2), early_stopping(patience=2)],
    )

    assert (answer.verdict, answer.state.step, answer.stopped_at) == ("exact", trained.step, 2)
    assert answer.why == trained.reason + ", at valid_end of batch 2"
    assert answer.best is not None
    assert (answer.best.value, answer.best.epoch) == (3.0, 1)
    assert replay(log).ok


# ------------------------------------------------------------------- as Keras: baseline, start_epoch


def test_baseline_and_start_epoch_are_those_of_keras() -> None:
    """A best that does not beat the baseline does not restart the patience; early epochs are ignored."""
    curve = [5.0, 4.0, 3.0, 3.5, 3.6]
    never = simulate([early_stopping(patience=2, baseline=1.0)], valid_loss=curve)
    beaten = simulate([early_stopping(patience=2, baseline=4.5)], valid_loss=curve)
    late = simulate([early_stopping(patience=1, start_epoch=2)], valid_loss=[1.0, 2.0, 3.0, 2.0, 2.5])

    assert (never.epoch, beaten.epoch, late.epoch) == (4, 5, 5)
    assert never.reason == "early_stopping: valid_loss has not improved on the baseline 1.0 for 4 validations"


# ---------------------------------------------------------------------- known before the first batch


def attempt(valid: Any, monitor: str = "valid_loss", **settings: Any) -> tuple[int, str]:
    """How many training batches there were before the error, and what it says."""
    trained = []
    model = nn.Linear(4, 1)

    def forward(module: nn.Module, inputs: Any) -> Any:
        trained.append(module.training)
        return module(inputs)

    train = [(torch.ones(8, 4), torch.zeros(8, 1))] * 5
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    work = Supervised(model, optimizer, nn.MSELoss(), train, valid, forward=forward, **settings)
    with pytest.raises((ValueError, LookupError, RuntimeError)) as caught:
        run(start(work, epochs=2), [early_stopping(monitor, mode="min")])
    return trained.count(True), str(caught.value)


GOOD = [(torch.ones(8, 4), torch.zeros(8, 1))]


@pytest.mark.parametrize(
    ("monitor", "words"),
    [
        ("val_loss", ["'val_loss'", "train_loss", "valid_loss, ", "Is 'valid_loss' meant?"]),
        ("valid_acc", ["'valid_acc'", "valid_accuracy", "Is 'valid_accuracy' meant?"]),
        ("train_f1", ["'train_f1'", "there will be train_loss, valid_loss"]),
    ],
)
def test_unknown_monitor_is_refused_before_the_first_batch(monitor: str, words: list[str]) -> None:
    """With the metrics that there will be, and a close one if there is one."""
    batches, sentence = attempt(GOOD, monitor, metrics={"accuracy": lambda output, target: 0.5})

    assert batches == 0
    assert [word for word in words if word not in sentence] == []


def test_validation_metric_without_validation_data_is_refused() -> None:
    """The sentence says what is missing."""
    batches, sentence = attempt(None)

    assert batches == 0
    assert "needs validation data" in sentence


class Scores:
    """A metric that computes a mapping."""

    def update(self, output: Any, target: Any) -> None: ...
    def reset(self) -> None: ...
    def compute(self) -> dict[str, float]:
        return {"macro": 0.5, "micro": 0.25}


def test_metric_that_computes_a_mapping_has_open_names() -> None:
    """Its keys are not known beforehand, so any name that begins with its own is taken."""
    model = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    work = Supervised(model, optimizer, nn.MSELoss(), GOOD, GOOD, metrics={"f1": Scores()})

    assert run(start(work, epochs=1), [early_stopping("valid_f1_macro")]).metrics["valid_f1_macro"] == 0.5


def test_declared_monitor_of_ones_own_callback_is_checked() -> None:
    """@on(…, monitors=…) is the declaration; names and a set are asked for."""

    @on(Phase.VALID_END, monitors={"valid_f1"})
    def mine(state: State) -> None:
        return None

    with pytest.raises(LookupError, match="callback 'mine' monitors 'valid_f1'"):
        simulate([mine], valid_loss=[1.0])
    with pytest.raises(TypeError, match="give a set of names of metrics"):
        on(Phase.VALID_END, monitors="valid_loss")(lambda state: None)


class Rows(Dataset[Any]):
    """Plain data as mappings, and how often it was read."""

    def __init__(self) -> None:
        self.rows = torch.ones(8, 4)
        self.reads: list[int] = []
        self.count = 0

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> Any:
        self.reads.append(i)
        self.count += 1
        return {"x": self.rows[i] + torch.rand(4), "y": torch.zeros(1)}


@pytest.mark.parametrize(
    "valid",
    [
        [{"x": torch.ones(8, 4), "y": torch.zeros(8, 1)}],
        ([torch.ones(8, 4), torch.ones(8, 4), torch.zeros(8, 1)],),
        DataLoader(TensorDataset(torch.ones(8, 4)), batch_size=4, shuffle=True),
        DataLoader(Rows(), batch_size=4),
    ],
    ids=["mapping", "three parts", "one tensor", "rows"],
)
def test_validation_data_of_a_wrong_form_are_found_before_the_first_batch(valid: Any) -> None:
    """The sentence says that they are those of the validation."""
    batches, sentence = attempt(valid)

    assert batches == 0
    assert sentence.startswith("valid: a batch is to be a pair (inputs, target)")


def test_look_at_the_validation_data_draws_and_changes_nothing() -> None:
    """Generators and the dataset are as they were; data with a generator of their own are not looked at."""
    rows = Rows()
    work = training()
    work.valid = DataLoader(rows, batch_size=4)
    before = torch.get_rng_state()
    with pytest.raises(WorkloadError, match="valid: "):
        run(start(work, epochs=1))

    assert torch.equal(torch.get_rng_state(), before)
    assert (rows.reads, rows.count) == ([], 0)

    rows.generator = torch.Generator()  # type: ignore[attr-defined]
    work.valid = DataLoader(rows, batch_size=4)
    with pytest.raises(WorkloadError, match="^a batch is to be a pair"):
        run(start(work, epochs=1))
    assert rows.reads == [0, 1, 2, 3]


# -------------------------------------------------------------------------- what comes by command


def test_two_schedulers_of_one_rate_are_refused() -> None:
    """Whichever comes first in the list, with both names; by step beside by epoch as well."""
    one = torch_scheduler(lambda optimizer: optimizer, name="one")
    other = torch_scheduler(lambda optimizer: optimizer, by="epoch", name="other")

    for callbacks in ([one, other], [other, one]):
        with pytest.raises(ConflictError, match=r"'(one|other)' and '(one|other)' both set hyper-parameters"):
            simulate(callbacks)


def test_a_scheduler_by_step_goes_with_one_that_follows_a_metric() -> None:
    """They step at different phases, and the latter sets nothing when it is made: their order does not count."""
    data = [(torch.ones(3, 2), torch.ones(3, 1))] * 3
    rates = []
    for turn in (1, -1):
        model = nn.Linear(2, 1)
        work = Supervised(model, torch.optim.SGD(model.parameters(), lr=0.1), nn.MSELoss(), data, data)
        cosine = torch_scheduler(lambda optimizer: lr_scheduler.CosineAnnealingLR(optimizer, 9), name="cosine")
        plateau = torch_scheduler(
            lambda optimizer: lr_scheduler.ReduceLROnPlateau(optimizer, mode="max", patience=0),
            by="epoch",
            monitor="valid_loss",
            name="plateau",
        )
        rates.append(run(start(work, epochs=3, seed=0), [cosine, plateau][::turn]).hyper["lr"])
    assert rates[0] == rates[1] != 0.1


@attrs.frozen
class Halve(Command):
    changes_hyper = True


def halving(name: str, order: int = 0, declared: bool = False) -> Any:
    commands = {Halve} if declared else None

    @on(Phase.EPOCH_END, name=name, order=order, commands=commands)
    def halve(state: State) -> Transition:
        return Transition(commands=(Halve(),))

    return halve


def test_commands_of_ones_own_that_set_the_rate_are_refused_too() -> None:
    """Declared before the training, undeclared when they meet; with different orders the user has decided."""
    for declared in (True, False):
        with pytest.raises(ConflictError, match="'a' and 'b' both set hyper-parameters by a command"):
            simulate([halving("a", declared=declared), halving("b", declared=declared)])
    assert simulate([halving("a"), halving("b", order=1)]).phase is Phase.DONE


def test_commands_whose_order_counts_are_said() -> None:
    """Two clippings, and a rate that is set by a command and by a schedule."""
    clipping = describe([clip_grad_norm(1.0), clip_grad_norm(0.5, name="closer")])
    rates = describe([torch_scheduler(lambda optimizer: optimizer, by="epoch"), reduce_on_plateau()])

    assert "note: 'clip_grad_norm' and 'closer' both change the gradients at step_begin" in clipping
    assert "note: 'torch_scheduler' sets hyper-parameters by a command, and 'reduce_on_plateau' sets lr" in rates


# ------------------------------------------------------------- measured without a validation


class MeasuresItself(Scripted):
    """A workload that measures a valid_loss when an epoch ends, without a validation of the machine."""

    has_valid = False
    metric_names = frozenset({"train_loss", "valid_loss"})

    def measure(self, state: State) -> dict[str, float]:
        return {"train_loss": 1.0, "valid_loss": (3.0, 2.0, 2.5, 2.6, 1.0)[state.epoch]}


def test_a_valid_metric_is_checked_where_it_is_measured() -> None:
    """Also at the end of an epoch: by a workload of one's own, and in states that are made by hand."""
    final = run(start(MeasuresItself(batches=2), epochs=5), [early_stopping(patience=2)])
    assert (final.epoch, final.reason) == (4, "early_stopping: valid_loss has not improved on 2.0 for 2 epochs")

    curve = [at(Phase.EPOCH_END, valid_loss=loss) for loss in (1.0, 1.1)]
    assert [bool(answer.flags) for answer in drive(early_stopping(patience=1), curve)] == [False, True]


def test_checkpoints_know_what_a_workload_measures_itself() -> None:
    """A valid_loss that is there when an epoch ends, without a validation, ranks them as any other does."""
    folder = "runs"  # a scripted world writes nothing
    final = run(start(MeasuresItself(batches=2), epochs=5), [checkpoint(folder, monitor="valid_loss", keep=2)])
    assert [name for name, _ in final.memory["checkpoint"].files] == ["epoch-00002", "step-00000008", "epoch-00005"]

    steps = run(start(MeasuresItself(batches=2), epochs=4), [checkpoint(folder, monitor="valid_loss", every_steps=5)])
    assert [name for name, _ in steps.memory["checkpoint"].files] == ["epoch-00002", "epoch-00003", "epoch-00004"]


def test_checkpoints_of_a_validation_are_not_written_again_at_the_end_of_its_epoch() -> None:
    """Both phases are looked at, and each measurement is one checkpoint."""
    callback = checkpoint("runs", monitor="valid_loss", keep=9)
    trace = Trace()
    simulate([callback, validate_every(steps=2)], batches=4, valid_loss=[4.0, 3.0, 2.0, 1.0], epochs=2, trace=trace)
    saves = [command.name for command in trace.commands if isinstance(command, SaveCheckpoint)]
    assert len(saves) == len(set(saves)) == 4


def test_old_logs_have_a_checkpoint_for_an_epoch_without_a_measurement() -> None:
    """As the worst; a log that does not say what a callback monitors is one of those."""
    now = checkpoint("runs", monitor="valid_loss")
    then = as_recorded(now, {"factory": now.factory, "name": "checkpoint", "params": {}})
    ends = [at(Phase.EPOCH_END, epoch=1, valid_loss=5.0), at(Phase.EPOCH_END, epoch=2)]
    told = drive(then, ends)
    assert [command.name for answer in told for command in answer.commands] == ["epoch-00001", "epoch-00002"]
    assert told[-1].memory.files == (("epoch-00001", -5.0), ("epoch-00002", -math.inf))


def test_a_measurement_is_checked_once() -> None:
    """What a validation measured has been seen when its epoch ends."""
    final = simulate([early_stopping(patience=3)], valid_loss=[1.0, 2.0, 2.0, 2.0, 2.0], epochs=5)
    assert final.epoch == 4
