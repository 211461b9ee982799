"""A workload, a log and a loader's one pass serve one run at a time; an evaluation leaves a batch alone."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from fsm_train import (
    Phase,
    Scripted,
    State,
    Supervised,
    WorkloadError,
    evaluate,
    find_lr,
    iterate,
    replay,
    run,
    start,
)
from fsm_train.callbacks import suspend_after, validate_every
from fsm_train.data.loaders import own_pass
from fsm_train.eventlog import EventLog
from fsm_train.eventlog.errors import LogError

REFUSED = "a workload does one thing at a time"


def supervised(**settings: Any) -> Supervised:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(1, 4), nn.Dropout(0.5), nn.Linear(4, 1))
    train = [(torch.full((2, 1), float(i)), torch.zeros(2, 1)) for i in range(3)]
    valid = [(torch.full((2, 1), -1.0), torch.zeros(2, 1))]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    return Supervised(model, optimizer, nn.MSELoss(), settings.pop("train", train), settings.pop("valid", valid))


def weights(work: Supervised) -> list[Any]:
    return [parameter.tolist() for parameter in work.model.parameters()]


@pytest.mark.parametrize(
    "phase", [Phase.BATCH_BEGIN, Phase.LOSS_BEGIN, Phase.LOSS_END, Phase.STEP_BEGIN, Phase.VALID_END]
)
def test_an_evaluation_beside_a_batch_leaves_it_alone(phase: Phase) -> None:
    """The weights, the metrics and the facts are those of a training without it, at whatever phase it is."""
    plain, work = supervised(), supervised()
    alone = run(start(plain, epochs=2, seed=0))
    for state in iterate(start(work, epochs=2, seed=0), at=[phase]):
        if state.phase is phase:
            before = (work.inputs, work.target, work.output, work.batch_size, work.model.training)
            assert evaluate(work).keys() == {"valid_loss"}
            after = (work.inputs, work.target, work.output, work.batch_size, work.model.training)
            assert all(one is other or one == other for one, other in zip(before, after, strict=True))

    assert state.history == alone.history
    assert weights(work) == weights(plain)


def test_an_evaluation_within_a_validation_is_refused() -> None:
    """Its measurements would be mixed with those under way. The training ends as if nothing had been asked."""
    work = supervised()
    for state in iterate(start(work, epochs=1), at=[Phase.VALID_BATCH_END]):
        if state.phase is Phase.VALID_BATCH_END:
            with pytest.raises(WorkloadError, match="a validation of this workload is under way, at valid_batch_end"):
                evaluate(work)
    assert state.phase is Phase.DONE


def test_an_evaluation_leaves_persistent_workers_as_they_were() -> None:
    """A loader draws when it starts them, so the training's own validation is the one to start them."""
    rows = TensorDataset(torch.ones(4, 1), torch.zeros(4, 1))
    valid = DataLoader(rows, batch_size=2, num_workers=1, persistent_workers=True)
    work = supervised(valid=valid)
    loop = iterate(start(work, epochs=1), at=[Phase.BATCH_END])
    next(loop)
    evaluate(work)

    assert valid._iterator is None
    loop.close()


def test_a_signal_that_comes_during_an_evaluation_counts() -> None:
    """What is put back is what the evaluation replaced, and no more."""
    work = supervised()

    def interrupts(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        work.interrupt = "SIGTERM" if not work.model.training else work.interrupt
        return nn.functional.mse_loss(output, target)

    work.loss_fn = interrupts
    for state in iterate(start(work, epochs=3), at=[Phase.BATCH_BEGIN]):
        if state.phase is Phase.BATCH_BEGIN:
            evaluate(work)
    assert (state.phase, state.iteration) == (Phase.SUSPENDED, 1)


@pytest.mark.parametrize("make", [Scripted, supervised])
def test_a_second_run_is_refused_and_the_first_is_whole(make: Any) -> None:
    """Whatever begins it; the refusal says what to do."""
    work = make()
    loop = iterate(start(work, epochs=1), at=[Phase.BATCH_END])
    first = next(loop)
    for begin in (run, find_lr, lambda state: next(iterate(state))):
        with pytest.raises(WorkloadError, match=REFUSED):
            begin(start(work, epochs=1))
    *_, last = loop

    assert (first.phase, last.phase, last.iteration) == (Phase.BATCH_END, Phase.DONE, 3)


def shares_model(work: Supervised) -> Supervised:
    """Another workload with the model of this one, and an optimizer and data of its own."""
    optimizer = torch.optim.Adam(work.model.parameters(), lr=0.01)
    return Supervised(work.model, optimizer, nn.MSELoss(), work.train, work.valid)


def test_a_run_of_another_workload_with_the_model_is_refused() -> None:
    """Whatever begins it; the first ends as if it had been alone, and then the second may begin."""
    alone, work = supervised(), supervised()
    run(start(alone, epochs=1, seed=0))
    loop = iterate(start(work, epochs=1, seed=0), at=[Phase.BATCH_END])
    next(loop)
    other = shares_model(work)
    for begin in (run, find_lr, lambda state: next(iterate(state))):
        with pytest.raises(WorkloadError, match="another workload with this model is under way, at batch_end"):
            begin(start(other, epochs=1))
    *_, last = loop

    assert (last.phase, weights(work)) == (Phase.DONE, weights(alone))
    assert run(start(other, epochs=1)).iteration == 3


def test_a_run_with_the_model_in_another_thread_is_refused() -> None:
    """The sentence says that it is another thread."""
    work = supervised()
    loop = iterate(start(work, epochs=1), at=[Phase.BATCH_END])
    next(loop)
    errors: list[Exception] = []

    def other() -> None:
        try:
            run(start(shares_model(work), epochs=1))
        except WorkloadError as error:
            errors.append(error)

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    loop.close()

    assert ["with this model is under way in another thread" in str(error) for error in errors] == [True]


def test_a_loop_that_was_left_frees_its_model() -> None:
    """Closed, dropped, or dropped in a circle; a suspended training does not hold it either."""
    work = supervised()
    loop = iterate(start(work, epochs=1), at=[Phase.BATCH_END])
    next(loop)
    loop.close()
    assert run(start(shares_model(work), epochs=1)).iteration == 3

    circle: list[Any] = [iterate(start(work, epochs=1), at=[Phase.BATCH_END])]
    circle.append(circle)
    next(circle[0])
    gc.disable()
    try:
        del circle
        assert run(start(shares_model(work), epochs=1)).iteration == 3
    finally:
        gc.enable()

    suspended = run(start(work, epochs=1), [suspend_after(seconds=1e-9)])
    run(start(shares_model(work), epochs=1))
    assert run(suspended).iteration == 3


def test_another_workload_with_the_model_may_evaluate_it() -> None:
    """On test data, say, in the loop over a training, which is as without it."""
    alone, work = supervised(), supervised()
    run(start(alone, epochs=1, seed=0))
    test = shares_model(work)
    measured = [
        evaluate(test)["valid_loss"]
        for state in iterate(start(work, epochs=1, seed=0), at=[Phase.BATCH_END])
        if state.phase is Phase.BATCH_END
    ]

    assert len(set(measured)) == 3
    assert weights(work) == weights(alone)


def test_trainings_of_parts_of_a_model_go_side_by_side() -> None:
    """A model that holds another, or shares a frozen part, is not the same model."""
    work = supervised()
    head = nn.Sequential(work.model, nn.Linear(1, 1))
    probe = Supervised(head, torch.optim.SGD(head[1].parameters(), lr=0.1), nn.MSELoss(), work.train)
    loop = iterate(start(work, epochs=1), at=[Phase.BATCH_END])
    next(loop)

    assert run(start(probe, epochs=1)).iteration == 3


def test_a_run_in_another_thread_is_refused() -> None:
    """And so is an evaluation, which would change the mode of the model in the middle of a batch."""
    work = supervised()
    loop = iterate(start(work, epochs=1), at=[Phase.BATCH_END])
    next(loop)
    errors: list[Exception] = []

    def other() -> None:
        for begin in (lambda: run(start(work, epochs=1)), lambda: evaluate(work)):
            try:
                begin()
            except WorkloadError as error:
                errors.append(error)

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    loop.close()

    assert ["in another thread" in str(error) for error in errors] == [True, True]


def test_a_run_within_an_evaluation_is_refused() -> None:
    """By a metric, say, that begins one; and so is an evaluation in it."""
    work = supervised()
    refused: list[str] = []

    def begins(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        for begin in (lambda: run(start(work, epochs=1)), lambda: evaluate(work)):
            with pytest.raises(WorkloadError, match=REFUSED) as raised:
                begin()
            refused.append(str(raised.value))
        return nn.functional.mse_loss(output, target)

    work.loss_fn = begins
    evaluate(work)
    assert ["an evaluation of this workload is under way" in text for text in refused] == [True, True]


def test_a_loop_that_was_left_frees_its_workload() -> None:
    """Closed, dropped, dropped in a circle, or ended by an error: the next run trains all batches."""
    work = Scripted()
    loop = iterate(start(work, epochs=1), at=[Phase.BATCH_END])
    next(loop)
    loop.close()
    assert run(start(work, epochs=1)).iteration == 3

    for _ in iterate(start(work, epochs=1), at=[Phase.BATCH_END]):
        break
    assert run(start(work, epochs=1)).iteration == 3

    circle: list[Any] = [iterate(start(work, epochs=1), at=[Phase.BATCH_END])]
    circle.append(circle)
    next(circle[0])
    gc.disable()
    try:
        del circle
        assert run(start(work, epochs=1)).iteration == 3
    finally:
        gc.enable()


def test_a_run_that_failed_frees_its_workload() -> None:
    """Training anew works, and so does resuming what was suspended before the failure."""
    broken = True

    def loss(state: State) -> float:
        if broken and state.iteration == 2:
            raise RuntimeError("no memory")
        return 0.0

    work = Scripted(loss=loss, valid_loss=0.5, elapsed=lambda state: float(state.iteration))
    with pytest.raises(RuntimeError):
        run(start(work, epochs=1))
    broken = False

    assert evaluate(work) == {"valid_loss": 0.5}
    suspended = run(start(work, epochs=1), [suspend_after(seconds=1e-9)])
    assert (suspended.phase, run(suspended).iteration) == (Phase.SUSPENDED, 3)


def test_one_log_for_two_runs_is_refused(tmp_path: Path) -> None:
    """By its path, however it is written, or by one EventLog; the first run's log is whole."""
    log = tmp_path / "run.jsonl"
    loop = iterate(start(Scripted(), epochs=1), log=log, at=[Phase.BATCH_END])
    next(loop)
    for same in (log, tmp_path / ".." / tmp_path.name / "run.jsonl", EventLog(log)):
        with pytest.raises(LogError, match="another run of this process is writing this log"):
            run(start(Scripted(), epochs=1), log=same)
    *_, last = loop

    assert last.notes == ()
    assert replay(log).ok
    assert run(start(Scripted(), epochs=1), log=log).phase is Phase.DONE
    assert replay(log).ok


class Heard:
    """A logger that keeps what it is given."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def info(self, event: str, **values: object) -> None:
        self.lines.append(event)


def test_one_event_log_with_a_logger_serves_one_run() -> None:
    """Two runs in it at once would number each other's lines. One after the other is fine."""
    log = EventLog(Heard())
    loop = iterate(start(Scripted(), epochs=1), log=log, at=[Phase.BATCH_END])
    next(loop)
    with pytest.raises(LogError, match="another run of this process"):
        run(start(Scripted(), epochs=1), log=log)
    loop.close()
    assert run(start(Scripted(), epochs=1), log=log).phase is Phase.DONE


def test_a_dropped_run_frees_its_log(tmp_path: Path) -> None:
    """Also where only the garbage collector finds it."""
    log = tmp_path / "run.jsonl"
    circle: list[Any] = [iterate(start(Scripted(), epochs=1), log=log, at=[Phase.BATCH_END])]
    circle.append(circle)
    next(circle[0])
    del circle
    assert run(start(Scripted(), epochs=1), log=log).phase is Phase.DONE


@pytest.mark.parametrize("workers", [0, 1])
def test_one_loader_for_both_splits_trains_all_batches(workers: int) -> None:
    """A validation in mid-epoch does not end the epoch, also with workers that stay."""
    rows = TensorDataset(torch.ones(10, 1), torch.zeros(10, 1))
    loader = DataLoader(rows, batch_size=2, num_workers=workers, persistent_workers=workers > 0)
    final = run(start(supervised(train=loader, valid=loader), epochs=2), [validate_every(steps=2)])

    assert final.iteration == 10
    assert "valid_loss" in final.metrics


class Stream(torch.utils.data.IterableDataset[Any]):
    """A dataset that is its own iterator."""

    def __iter__(self) -> Iterator[Any]:
        self.left = 4
        return self

    def __next__(self) -> Any:
        self.left -= 1
        if self.left < 0:
            raise StopIteration
        return torch.ones(1), torch.zeros(1)


class Order(torch.utils.data.Sampler[int]):
    """A sampler that is its own iterator."""

    def __iter__(self) -> Iterator[int]:
        self.left = iter(range(4))
        return self

    def __next__(self) -> int:
        return next(self.left)


def test_what_has_one_pass_at_a_time_is_not_shared() -> None:
    """A dataset or sampler that is an iterator, or a loader that saves its place; a list and a plain loader are."""
    rows = TensorDataset(torch.ones(4, 1), torch.zeros(4, 1))
    stream, order = Stream(), Order()
    for train, valid, what in (
        (DataLoader(stream, batch_size=2), DataLoader(stream, batch_size=2), "share a dataset"),
        (DataLoader(rows, sampler=order), DataLoader(rows, sampler=order), "share a sampler"),
    ):
        with pytest.raises(WorkloadError, match=what):
            supervised(train=train, valid=valid)

    class Places(list[Any]):
        def state_dict(self) -> dict[str, Any]: ...
        def load_state_dict(self, state: dict[str, Any]) -> None: ...

    places = Places([(torch.ones(2, 1), torch.zeros(2, 1))])
    with pytest.raises(WorkloadError, match="saves its place"):
        supervised(train=places, valid=places)

    batches = [(torch.ones(2, 1), torch.zeros(2, 1))]
    shared = DataLoader(rows, batch_size=2)
    assert own_pass(batches, batches) is batches
    assert own_pass(shared, shared) is shared
    assert own_pass(shared, None) is None
    assert own_pass(DataLoader(rows), DataLoader(rows)) is not None
