"""Loaders in lock-step: the batches of zip, and the same ones after a resume in the middle of an epoch."""

from __future__ import annotations

import functools
import itertools
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler, TensorDataset

from fsm_train import (
    State,
    Supervised,
    WorkloadError,
    evaluate,
    find_lr,
    iterate,
    on,
    replay,
    restore,
    run,
    start,
    together,
)
from fsm_train.callbacks import checkpoint, schedule, suspend_after
from fsm_train.core.commands import SaveCheckpoint
from fsm_train.core.phase import Flag, Phase
from fsm_train.core.transition import Transition
from fsm_train.schedules import cosine
from tests.how_long import THOROUGH

Loaders = Callable[[], tuple[Any, ...]]


def rows(count: int, first: int = 0) -> TensorDataset:
    return TensorDataset(torch.arange(float(first), first + count)[:, None])


class Jittered(Dataset[Any]):
    """Draws from torch's global generator while a sample is read."""

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> tuple[torch.Tensor]:
        return (torch.full((1,), float(index)) + torch.rand(1),)


class Counted(Sampler[int]):
    """Counts its passes, and begins each at another place."""

    def __init__(self) -> None:
        self.passes = 0

    def __iter__(self) -> Iterator[int]:
        self.passes += 1
        return iter([(i + self.passes) % 8 for i in range(8)])

    def __len__(self) -> int:
        return 8


class Own:
    """A loader of one's own, with a generator."""

    def __init__(self) -> None:
        self.rng = random.Random(3)

    def __iter__(self) -> Iterator[Any]:
        for _ in range(3):
            yield (torch.full((2, 1), self.rng.random()),)


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return iter([(torch.full((1,), float(i)),) for i in range(6)])


def stateful(count: int, **settings: Any) -> Any:
    from torchdata.stateful_dataloader import StatefulDataLoader

    return StatefulDataLoader(rows(count), 2, **settings)


def sharing() -> tuple[Any, ...]:
    generator = torch.Generator().manual_seed(5)
    return tuple(DataLoader(rows(count), 2, shuffle=True, generator=generator) for count in (12, 6))


LOADERS: dict[str, Loaders] = {
    "shuffled": lambda: (DataLoader(rows(12), 2, shuffle=True), DataLoader(rows(6, 100), 2, shuffle=True)),
    "the shorter one first": lambda: (DataLoader(rows(4), 2, shuffle=True), DataLoader(rows(12, 100), 2, shuffle=True)),
    "of one length": lambda: (DataLoader(rows(8), 2, shuffle=True), DataLoader(rows(8, 100), 2, shuffle=True)),
    "three, one a list": lambda: (
        DataLoader(rows(12), 2, shuffle=True),
        [(torch.full((2, 1), float(i)),) for i in range(5)],
        DataLoader(rows(6, 100), 2, shuffle=True),
    ),
    "samples that draw": lambda: (DataLoader(Jittered(), 2, shuffle=True), DataLoader(rows(6), 2, shuffle=True)),
    "one generator for both": sharing,
    "a sampler that counts": lambda: (DataLoader(rows(8), 2, sampler=Counted()), DataLoader(rows(12), 2, shuffle=True)),
    "workers": lambda: (
        DataLoader(rows(12), 2, shuffle=True, num_workers=1),
        DataLoader(rows(6, 100), 2, shuffle=True),
    ),
    "workers that stay": lambda: (
        DataLoader(rows(6), 2, shuffle=True, num_workers=1, persistent_workers=True),
        DataLoader(rows(12, 100), 2, shuffle=True),
    ),
    "both with workers that stay": lambda: (
        DataLoader(rows(12), 2, shuffle=True, num_workers=1, persistent_workers=True),
        DataLoader(rows(6, 100), 2, shuffle=True, num_workers=1, persistent_workers=True),
    ),
    "of torchdata": lambda: (stateful(12, shuffle=True), DataLoader(rows(6, 100), 2, shuffle=True)),
    "of torchdata, the shorter": lambda: (DataLoader(rows(12, 100), 2, shuffle=True), stateful(6, shuffle=True)),
    "of one's own": lambda: (DataLoader(rows(12), 2, shuffle=True), Own()),
    "a stream": lambda: (DataLoader(Stream(), 2), DataLoader(rows(10), 2, shuffle=True)),
    "together in together": lambda: (
        together(DataLoader(rows(12), 2, shuffle=True), DataLoader(rows(6, 100), 2, shuffle=True), until="longest"),
        DataLoader(rows(8), 2, shuffle=True),
    ),
}


def zipped(*loaders: Any) -> Iterator[Any]:
    yield from zip(*loaders, strict=False)


def longest(first: Any, second: Any) -> Iterator[Any]:
    """The loop that one writes by hand: the second one begins again."""
    passes = iter(first), iter(second)
    again = passes[1]
    for batch in passes[0]:
        try:
            other = next(again)
        except StopIteration:
            again = iter(second)
            other = next(again)
        yield batch, other


def flat(value: Any) -> list[float]:
    if isinstance(value, torch.Tensor):
        return value.flatten().tolist()
    return [number for part in value for number in flat(part)]


def make_model() -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(1, 1), nn.Dropout(0.5))
    return model, torch.optim.SGD(model.parameters(), lr=1e-4)


def loss_of(model: nn.Module, batch: Any) -> torch.Tensor:
    return sum((model(torch.tensor(flat(part))[:, None]).square().mean() for part in batch), torch.zeros(()))


def workload(make: Loaders, seen: list[Any], until: Any = "shortest", valid: Any = None) -> Supervised:
    def forward(model: nn.Module, batch: Any) -> torch.Tensor:
        if model.training:
            seen.append(flat(batch))
        return loss_of(model, batch)

    return Supervised(
        *make_model(),
        *(lambda output, target: output, together(*make(), until=until), valid),
        forward=forward,
        split=lambda batch: (batch, None),
        samples=lambda inputs, target: len(flat(inputs)),
    )


def leave_at(iteration: int, folder: Path) -> Any:
    @on(Phase.BATCH_END, Phase.EPOCH_END, Phase.SUSPEND)
    def leave(state: State) -> Transition | None:
        if state.phase is Phase.SUSPEND:
            return Transition(commands=(SaveCheckpoint(str(folder), "left"),))
        return Transition(flags=Flag.SUSPEND) if state.iteration == iteration else None

    return leave


@pytest.mark.filterwarnings("ignore:'set_vital'")
@pytest.mark.parametrize("name", ["shuffled", "samples that draw", "workers", "of torchdata", "one generator for both"])
@pytest.mark.parametrize(("until", "by_hand"), [("shortest", zipped), ("longest", longest)])
def test_training_is_that_of_a_loop_over_both(name: str, until: str, by_hand: Any) -> None:
    """Bit for bit, with what is drawn from the global generators in the order of zip."""
    seen: list[Any] = []
    work = workload(LOADERS[name], seen, until)
    run(start(work, epochs=3, seed=7))

    (model, optimizer), loaders = make_model(), LOADERS[name]()
    torch.manual_seed(7)
    batches = []
    for _ in range(3):
        for batch in by_hand(*loaders):
            batches.append(flat(batch))
            optimizer.zero_grad()
            loss_of(model, batch).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    assert seen == batches
    assert all(map(torch.equal, work.model.parameters(), model.parameters()))


@functools.cache
def undisturbed(name: str, until: str) -> tuple[list[Any], list[torch.Tensor]]:
    """The batches of a whole training, and its weights."""
    seen: list[Any] = []
    work = workload(LOADERS[name], seen, until)
    run(start(work, epochs=4, seed=0))
    return seen, [*work.model.parameters()]


WAYS = ("shortest", "longest")
LEAVES = [
    (name, until, iteration)
    for (i, name), (j, until), (k, iteration) in itertools.product(
        enumerate(LOADERS), enumerate(WAYS), enumerate((2, 5, 6))
    )
    if THOROUGH or (i + j + k) % 2 == 0
]
"""Loader, its end, and where it is left: each pair of them; with FSM_TRAIN_LONG all three in each combination."""


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:to continue in the middle", "ignore:'set_vital'")
@pytest.mark.parametrize(("name", "until", "iteration"), LEAVES)
def test_resumed_is_undisturbed(name: str, until: Any, iteration: int, tmp_path: Path) -> None:
    """From a file, in the middle of an epoch or at its end: the same batches and the same weights.

    Nothing is noted but what is noted of any loader with workers.
    """
    before: list[Any] = []
    after: list[Any] = []
    whole, weights = undisturbed(name, until)
    run(start(workload(LOADERS[name], before, until), epochs=4, seed=0), [leave_at(iteration, tmp_path)])
    torch.rand(3)

    resumed = workload(LOADERS[name], after, until)
    final = run(restore(tmp_path, resumed))

    assert before + after == whole
    assert all(map(torch.equal, weights, resumed.model.parameters()))
    assert [note for note in final.notes if "workers" not in note] == []


@pytest.mark.parametrize("until", ["shortest", "longest"])
def test_resumed_again_and_again_is_undisturbed(until: Any, tmp_path: Path) -> None:
    """A place that was loaded is a place that can be saved: at each batch a new process."""
    whole: list[Any] = []
    parts: list[Any] = []
    run(start(workload(LOADERS["shuffled"], whole, until), epochs=3, seed=0))
    state = start(workload(LOADERS["shuffled"], parts, until), epochs=3, seed=0)
    while (state := run(state, [suspend_after(seconds=1e-9), checkpoint(tmp_path)])).phase is Phase.SUSPENDED:
        state = restore(tmp_path, workload(LOADERS["shuffled"], parts, until))

    assert parts == whole


def test_log_replays_and_schedules_know_the_length(tmp_path: Path) -> None:
    """The length of the shortest, or of the longest, is that of an epoch."""
    for until, batches in (("shortest", 3), ("longest", 6)):
        log = tmp_path / f"{until}.jsonl"
        callbacks = [schedule(by="training", lr=cosine(1))]
        begin = start(workload(LOADERS["shuffled"], [], until), epochs=2)
        final = run(begin, callbacks, log=log)
        assert (begin.batches_per_epoch, final.iteration) == (batches, 2 * batches)
        assert replay(log).ok


def test_length_is_unknown_where_one_is() -> None:
    """And a training by epochs goes on until one has ended."""
    both = together(DataLoader(Stream(), 2), [1, 2])

    with pytest.raises(TypeError, match="no length"):
        len(both)
    assert len([*both]) == 2


def test_longest_ends_with_the_last_one_and_asks_for_nothing_more() -> None:
    """Also where the shorter one stands first: it is not begun again in vain."""
    asked = []

    class Asked:
        def __init__(self, name: str, count: int) -> None:
            self.name, self.count = name, count

        def __iter__(self) -> Iterator[int]:
            asked.append(self.name)
            return iter(range(self.count))

    assert [*together(Asked("a", 1), Asked("b", 2), until="longest")] == [(0, 0), (0, 1)]
    assert asked == ["a", "b", "a"]
    asked.clear()
    assert [*together(Asked("a", 2), Asked("b", 2), until="longest")] == [(0, 0), (1, 1)]
    assert asked == ["a", "b"]


def test_every_loader_is_told_the_epoch() -> None:
    """Through both, down to the samplers."""
    told = []

    class Told(Counted):
        def set_epoch(self, epoch: int) -> None:
            told.append(epoch)

    def make() -> tuple[Any, ...]:
        return DataLoader(rows(8), 2, sampler=Told()), DataLoader(rows(8), 2, sampler=Told())

    run(start(workload(make, []), epochs=2))
    assert told == [0, 0, 1, 1]


@pytest.mark.parametrize("name", ["shuffled", "samples that draw", "workers that stay", "both with workers that stay"])
@pytest.mark.parametrize("until", ["shortest", "longest"])
def test_learning_rate_test_before_changes_nothing(name: str, until: str) -> None:
    """find_lr reads batches of its own, and the training begins as if it had not."""
    whole: list[Any] = []
    seen: list[Any] = []
    run(start(workload(LOADERS[name], whole, until), epochs=2, seed=0))
    work = workload(LOADERS[name], seen, until)
    find_lr(start(work, epochs=1), steps=4)
    seen.clear()
    run(start(work, epochs=2, seed=0))
    assert seen == whole


def test_validation_beside_it_changes_nothing() -> None:
    """A loader of the validation may be together as well."""
    whole: list[Any] = []
    seen: list[Any] = []
    run(start(workload(LOADERS["shuffled"], whole), epochs=2, seed=0))
    final = run(
        start(workload(LOADERS["shuffled"], seen, valid=together([rows(2)[:]], [rows(2)[:]])), epochs=2, seed=0)
    )
    assert seen == whole
    assert "valid_loss" in final.metrics


@pytest.mark.parametrize("name", ["shuffled", "both with workers that stay"])
def test_suspended_training_goes_on_after_a_learning_rate_test(name: str, tmp_path: Path) -> None:
    """The rest of its epoch is read as if nothing had been tried in between."""
    whole: list[Any] = []
    seen: list[Any] = []
    run(start(workload(LOADERS[name], whole), epochs=2, seed=0))
    work = workload(LOADERS[name], seen)
    state = run(start(work, epochs=2, seed=0), [leave_at(2, tmp_path)])
    assert state.phase is Phase.SUSPENDED
    before = len(seen)
    find_lr(start(work, epochs=1), steps=4)
    del seen[before:]
    run(state)
    assert seen == whole


def validated(**settings: Any) -> Supervised:
    """Validation data together, with workers that stay; each validation draws for their order and for dropout."""

    def forward(model: nn.Module, batch: Any) -> torch.Tensor:
        return loss_of(model, batch) + torch.rand(())

    return Supervised(
        *make_model(),
        *(lambda output, target: output, [torch.ones(2, 1)] * 4, together(*LOADERS["both with workers that stay"]())),
        forward=forward,
        split=lambda batch: (batch, None),
        samples=lambda inputs, target: len(flat(inputs)),
        **settings,
    )


def test_validation_together_is_the_same_after_a_resume(tmp_path: Path) -> None:
    """Whether the workers of each loader inside ran is a part of a checkpoint."""
    whole = run(start(validated(), epochs=3, seed=0))
    run(start(validated(), epochs=3, seed=0), [leave_at(6, tmp_path)])
    torch.manual_seed(99)
    resumed = run(restore(tmp_path / "left", validated()))

    assert resumed.notes == ()
    assert resumed.history == whole.history


def test_validation_together_is_the_same_beside_evaluations_and_measures() -> None:
    """They read the same loaders, by workers of their own."""

    def read(work: Supervised) -> float:
        return float(sum(len(flat(batch)) for batch in work.valid or ()))

    whole = run(start(validated(), epochs=3, seed=0))
    work = validated(measures={"read": read})
    for state in iterate(start(work, epochs=3, seed=0), at=[Phase.BATCH_END]):
        if state.phase is Phase.BATCH_END and state.batch == 2:
            evaluate(work)

    assert [{**metrics, "valid_read": 12.0} for metrics in whole.history] == [*state.history]


@pytest.mark.filterwarnings("ignore:'set_vital'")
@pytest.mark.parametrize(
    ("make", "error", "sentence"),
    [
        (lambda: together(), TypeError, "together of what"),
        (lambda: together([1], until="end"), ValueError, "until"),
        (lambda: together([1], iter([2])), WorkloadError, "loader 1 of together is an iterator"),
        (lambda: together([1], []), WorkloadError, "loader 1 of together has no batches"),
        (lambda: together(*[stateful(4)] * 2), WorkloadError, "the same StatefulDataLoader twice"),
        (lambda: together([1]).load_state_dict({"loaders": 2}), WorkloadError, "in 2 loaders, and together has 1"),
    ],
)
def test_what_cannot_be_read_together_is_refused(make: Any, error: type[Exception], sentence: str) -> None:
    """When it is made, by name."""
    with pytest.raises(error, match=sentence):
        make()


def test_loader_that_begins_again_with_nothing_is_refused() -> None:
    """Or the pass would never end."""

    class Once:
        left = 1

        def __iter__(self) -> Iterator[int]:
            left, self.left = self.left, 0
            return iter(range(left))

    with pytest.raises(WorkloadError, match="loader 1 of together gave no batch when it began again"):
        [*together([1, 2], Once(), until="longest")]


@pytest.mark.filterwarnings("ignore:'set_vital'")
def test_one_loader_for_training_and_validation_is_refused_inside_too() -> None:
    """A validation would move the place of the training."""
    loader = stateful(6)

    with pytest.raises(WorkloadError, match="train and valid are one StatefulDataLoader"):
        workload(lambda: (loader, [1, 2]), [], valid=loader)


def test_what_of_a_loader_inside_is_inexact_is_noted(tmp_path: Path) -> None:
    """Augmentation in workers, and a place that cannot be asked for."""

    class Broken(DataLoader[Any]):
        def state_dict(self) -> Any:
            raise RuntimeError("call prepare first")

        def load_state_dict(self, state: Any) -> None:
            raise RuntimeError("call prepare first")

    def make() -> tuple[Any, ...]:
        return DataLoader(rows(8), 2, num_workers=1), Broken(rows(8), 2)

    final = run(start(workload(make, []), epochs=2), [leave_at(2, tmp_path)])
    restored = restore(tmp_path, workload(make, []))
    notes = "\n".join((*final.notes, *restored.notes))
    assert "random augmentation in the loader's 1 workers" in notes
    assert "the place that the Broken keeps itself: its state_dict raises RuntimeError" in notes
