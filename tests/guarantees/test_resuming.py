"""A resumed training is the undisturbed one, or the notes say what is not."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest
import torch
import torchmetrics
from torch import nn
from torch.utils.data import (
    BatchSampler,
    ConcatDataset,
    DataLoader,
    Dataset,
    RandomSampler,
    Sampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from fsm_train import (
    Command,
    Flag,
    Phase,
    State,
    Supervised,
    Transition,
    carries_out,
    evaluate,
    extend,
    on,
    restore,
    run,
    start,
)
from fsm_train.callbacks import accumulate, checkpoint
from fsm_train.core.callback import Callback
from fsm_train.core.commands import SaveCheckpoint
from fsm_train.lr_finder import find_lr

ROWS = 16
OLD = Path(__file__).parent.parent / "checkpoints" / "format_1" / "middle"


class Shuffled(Sampler[int]):
    """Draws its order from a generator of its own."""

    def __init__(self, chance: Any, sample: Callable[[Any], list[int]]) -> None:
        self.chance = chance
        self.sample = sample

    def __iter__(self) -> Iterator[int]:
        return iter(self.sample(self.chance))

    def __len__(self) -> int:
        return ROWS


class Counted(Sampler[int]):
    """Counts its passes itself, as many samplers do, and orders by that."""

    passes = 0

    def __init__(self) -> None:
        self.passes = 0

    def __iter__(self) -> Iterator[int]:
        self.passes += 1
        return iter(random.Random(self.passes).sample(range(ROWS), ROWS))

    def __len__(self) -> int:
        return ROWS


class Lazy(Sampler[int]):
    """Draws one index at a time."""

    def __init__(self) -> None:
        self.chance = random.Random(1)

    def __iter__(self) -> Iterator[int]:
        return (self.chance.randrange(ROWS) for _ in range(ROWS))

    def __len__(self) -> int:
        return ROWS


class Saved(Lazy):
    """The same, with a state_dict, and with what changes within a pass."""

    def __init__(self) -> None:
        super().__init__()
        self.given = 0

    def __iter__(self) -> Iterator[int]:
        for index in super().__iter__():
            self.given += 1
            yield (index + self.given) % ROWS

    def state_dict(self) -> dict[str, Any]:
        return {"given": self.given}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.given = state["given"]


class Turning(Sampler[Any]):
    """Turns further with each index, or batch, that it gives; what it has by then is a tensor and a list."""

    def __init__(self, size: int | None = None) -> None:
        self.size = size
        self.turned = torch.zeros(1, dtype=torch.int64)
        self.recent = [0, 0]

    def __iter__(self) -> Iterator[Any]:
        size = self.size or 1
        for i in range(0, ROWS, size):
            self.turned += 1 + self.recent[0] % 2
            self.recent = [*self.recent[1:], i]
            batch = [(i + k + int(self.turned)) % ROWS for k in range(size)]
            yield batch if self.size else batch[0]

    def __len__(self) -> int:
        return ROWS // (self.size or 1)


class TurningWithState(Turning):
    """The same, with a state_dict."""

    def state_dict(self) -> dict[str, Any]:
        return {"turned": self.turned.clone(), "recent": list(self.recent)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.turned, self.recent = state["turned"].clone(), list(state["recent"])


class Worn(Dataset[Any]):
    """Gives other samples the more were read, and says how many these are."""

    def __init__(self) -> None:
        self.read = 0

    def __len__(self) -> int:
        return ROWS

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        self.read += 1
        return torch.tensor([index + 0.01 * self.read]), torch.zeros(1)

    def state_dict(self) -> dict[str, Any]:
        return {"read": self.read}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.read = state["read"]


class Jittered(Dataset[Any]):
    """Changes each sample by random numbers of its own."""

    def __init__(self, chance: Any, draw: Callable[[Any], float]) -> None:
        self.chance = chance
        self.draw = draw

    def __len__(self) -> int:
        return ROWS

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.tensor([index + self.draw(self.chance)]), torch.zeros(1)


class InPlace(Sampler[Any]):
    """Shuffles what it has in place when a pass begins, by the number of the pass, which a dict holds."""

    def __init__(self, held: Any) -> None:
        self.held = held
        self.seen = {"passes": 0, "last": [None]}

    def __iter__(self) -> Iterator[Any]:
        self.seen["passes"] += 1  # type: ignore[operator]
        np.random.RandomState(self.seen["passes"]).shuffle(self.held)
        return iter([each if isinstance(each, list) else int(each) for each in self.held])

    def __len__(self) -> int:
        return len(self.held)


class Own:
    """A loader of one's own: a generator function, with a generator and a number of its own."""

    def __init__(self) -> None:
        self.rng = np.random.default_rng(3)
        self.passes = 0

    def __iter__(self) -> Iterator[Any]:
        self.passes += 1
        for i in self.rng.permutation(4).tolist():
            yield torch.full((4, 1), float(i + self.passes)), torch.zeros(4, 1)


class Backwards(RandomSampler):
    """Draws from Python's generator where torch's sampler draws from torch's."""

    def __iter__(self) -> Iterator[int]:
        return iter(random.sample(range(ROWS), ROWS))


class Batched(BatchSampler):
    """Shuffles its batches by numpy's generator."""

    def __iter__(self) -> Iterator[list[int]]:
        batches = [*super().__iter__()]
        return iter([batches[i] for i in np.random.permutation(len(batches))])


class Batches(list[Any]):
    """A list of batches that is iterated as any list."""


class ShuffledBatches(list[Any]):
    """A list of batches that gives them in another order each time."""

    def __iter__(self) -> Iterator[Any]:
        batches = list.__getitem__(self, slice(None))
        return iter(random.sample(batches, len(batches)))


class ShuffledTuple(tuple[Any, ...]):
    """The same as a tuple, by numpy's generator."""

    def __iter__(self) -> Iterator[Any]:
        batches = tuple.__getitem__(self, slice(None))
        return (batches[i] for i in np.random.permutation(len(batches)))


RNG = random.Random(8)


def global_rng(batch: Any) -> Any:
    """Collates with a generator in a global variable."""
    rows, targets = torch.utils.data.default_collate(batch)
    return rows + RNG.random(), targets


def of_class() -> Any:
    """A dataset whose generator is an attribute of its class."""

    class Shared(Jittered):
        shared = random.Random(9)

    return Shared(None, lambda _: Shared.shared.random())


def of_default() -> Any:
    """A dataset whose generator is what an argument of a method is by default."""

    class ByDefault(Jittered):
        def __getitem__(self, index: int, chance: Any = random.Random(9)) -> Any:  # noqa: B008
            return torch.tensor([index + chance.random()]), torch.zeros(1)

    return ByDefault(None, float)


def of_method() -> Any:
    """A dataset whose generator is a variable around a method, behind a function that is called."""
    chance = np.random.default_rng(9)

    def noise() -> float:
        return float(chance.random())

    class Around(Jittered):
        @property
        def noise(self) -> float:
            return noise()

        def __getitem__(self, index: int) -> Any:
            return torch.tensor([index + self.noise]), torch.zeros(1)

    return Around(None, float)


def rows() -> TensorDataset:
    return TensorDataset(torch.arange(float(ROWS))[:, None], torch.zeros(ROWS, 1))


def _global() -> DataLoader[Any]:
    RNG.seed(8)
    return DataLoader(rows(), 4, collate_fn=global_rng)


SOURCES: dict[str, Callable[[], Any]] = {
    "random.Random in a sampler": lambda: DataLoader(
        rows(), 4, sampler=Shuffled(random.Random(0), lambda r: r.sample(range(ROWS), ROWS))
    ),
    "numpy's Generator in a sampler": lambda: DataLoader(
        rows(), 4, sampler=Shuffled(np.random.default_rng(0), lambda r: r.permutation(ROWS).tolist())
    ),
    "numpy's RandomState in a sampler": lambda: DataLoader(
        rows(), 4, sampler=Shuffled(np.random.RandomState(0), lambda r: r.permutation(ROWS).tolist())
    ),
    "torch's generator in a list of a sampler": lambda: DataLoader(
        rows(), 4, sampler=Shuffled([torch.Generator()], lambda r: torch.randperm(ROWS, generator=r[0]).tolist())
    ),
    "a sampler that counts its passes": lambda: DataLoader(rows(), 4, sampler=Counted()),
    "a sampler that draws one by one": lambda: DataLoader(rows(), 4, sampler=Lazy()),
    "a sampler with a state_dict that changes in a pass": lambda: DataLoader(rows(), 4, sampler=Saved()),
    "a sampler that changes in a pass": lambda: DataLoader(rows(), 4, sampler=Turning()),
    "a batch sampler that changes in a pass": lambda: DataLoader(rows(), batch_sampler=Turning(4)),
    "a batch sampler with a state_dict": lambda: DataLoader(rows(), batch_sampler=TurningWithState(4)),
    "a sampler inside of a batch sampler": lambda: DataLoader(
        rows(), batch_sampler=torch.utils.data.BatchSampler(Turning(), 4, drop_last=False)
    ),
    "a sampler that shuffles an array": lambda: DataLoader(rows(), 4, sampler=InPlace(np.arange(ROWS))),
    "a sampler that shuffles its batches": lambda: DataLoader(
        rows(), batch_sampler=InPlace([[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10, 11]])
    ),
    "a dataset with a state_dict that changes in a pass": lambda: DataLoader(Worn(), 4, shuffle=True),
    "random.Random in a dataset": lambda: DataLoader(Jittered(random.Random(0), lambda r: r.random()), 4, shuffle=True),
    "numpy's Generator below wrappers": lambda: DataLoader(
        ConcatDataset([Subset(Jittered(np.random.default_rng(0), lambda r: float(r.random())), range(ROWS))]), 4
    ),
    "a generator in a global variable": _global,
    "a generator in a class": lambda: DataLoader(of_class(), 4, shuffle=True),
    "a generator that is a default argument": lambda: DataLoader(of_default(), 4, shuffle=True),
    "a generator around a method": lambda: DataLoader(of_method(), 4, shuffle=True),
    "a method of a generator": lambda: DataLoader(Jittered(random.Random(9).random, lambda draw: draw()), 4),
    "a loader of one's own": Own,
    "a shuffling DataLoader": lambda: DataLoader(rows(), 4, shuffle=True),
    "a DataLoader with a generator": lambda: DataLoader(
        rows(), 4, shuffle=True, generator=torch.Generator().manual_seed(3)
    ),
    "a weighted sampler": lambda: DataLoader(rows(), 4, sampler=WeightedRandomSampler([1.0, 2.0] * 8, ROWS)),
    "a sampler of a subset": lambda: DataLoader(rows(), 4, sampler=SubsetRandomSampler(range(ROWS))),
    "Python's generator in a sampler": lambda: DataLoader(
        rows(), 4, sampler=Shuffled(random, lambda r: r.sample(range(ROWS), ROWS))
    ),
    "numpy's generator in a sampler": lambda: DataLoader(
        rows(), 4, sampler=Shuffled(np.random, lambda r: r.permutation(ROWS).tolist())
    ),
    "a sampler of torch's of a class of one's own": lambda: DataLoader(rows(), 4, sampler=Backwards(rows())),
    "a batch sampler of a class of one's own": lambda: DataLoader(
        rows(), batch_sampler=Batched(torch.utils.data.SequentialSampler(rows()), 4, drop_last=False)
    ),
    "a list of batches": lambda: [*DataLoader(rows(), 4)],
    "a tuple of batches": lambda: (*DataLoader(rows(), 4),),
    "a list of a class of one's own": lambda: Batches(DataLoader(rows(), 4)),
    "a list that shuffles itself": lambda: ShuffledBatches(DataLoader(rows(), 4)),
    "a tuple that shuffles itself": lambda: ShuffledTuple(DataLoader(rows(), 4)),
}


def workload(make: Callable[[], Any], seen: list[Any], **settings: Any) -> Supervised:
    def forward(module: nn.Module, inputs: torch.Tensor) -> Any:
        if module.training:
            seen.append(inputs.flatten().tolist())
        return module(inputs)

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(1, 1), nn.Dropout(0.5))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    return Supervised(model, optimizer, nn.MSELoss(), make(), forward=forward, **settings)


def leave_at(iteration: int, folder: Path) -> Callback[Any]:
    @on(Phase.BATCH_END, Phase.SUSPEND)
    def leave(state: State) -> Transition | None:
        if state.phase is Phase.SUSPEND:
            return Transition(commands=(SaveCheckpoint(str(folder), "left"),))
        return Transition(flags=Flag.SUSPEND) if state.iteration == iteration else None

    return leave


@pytest.mark.filterwarnings("ignore:to continue in the middle")
@pytest.mark.parametrize("iteration", [3, 4, 6])
@pytest.mark.parametrize("name", SOURCES)
def test_resumed_is_undisturbed(name: str, iteration: int, tmp_path: Path) -> None:
    """Wherever a generator or a number lives that the batches depend on, the same batches come; nothing is noted."""
    whole: list[Any] = []
    before: list[Any] = []
    after: list[Any] = []
    run(start(workload(SOURCES[name], whole), epochs=3, seed=0))
    run(start(workload(SOURCES[name], before), epochs=3, seed=0), [leave_at(iteration, tmp_path)])
    torch.rand(3)

    final = run(restore(tmp_path, workload(SOURCES[name], after)))

    assert before + after == whole
    assert final.notes == ()


@pytest.mark.filterwarnings("ignore:to continue in the middle")
@pytest.mark.parametrize("name", SOURCES)
def test_epoch_that_begins_in_a_run_without_checkpoints_can_be_saved(name: str, tmp_path: Path) -> None:
    """What the pass follows from is noted there too: a later run that goes on with it in this process saves it."""
    whole: list[Any] = []
    before: list[Any] = []
    after: list[Any] = []
    leave = attrs.evolve(leave_at(6, tmp_path), at=(Phase.BATCH_END,))
    run(start(workload(SOURCES[name], whole), epochs=3, seed=0))
    suspended = run(start(workload(SOURCES[name], before), epochs=3, seed=0), [leave])
    run(suspended, [leave_at(7, tmp_path)])
    torch.rand(3)

    final = run(restore(tmp_path, workload(SOURCES[name], after)))

    assert before + after == whole
    assert final.notes == ()


@pytest.mark.parametrize("make", [random.Random, np.random.default_rng, np.random.RandomState])
def test_generators_that_a_step_draws_from_are_as_they_were(make: Callable[[int], Any], tmp_path: Path) -> None:
    """A pass over a list draws nothing, and what is trained with it may: each step has noise of its own."""

    def work(seen: list[Any]) -> Supervised:
        noise = make(5)

        def split(batch: Any) -> Any:
            drawn = [float(noise.random()), random.random(), float(np.random.random()), float(torch.rand(()))]
            seen.append(drawn)
            return batch[0] + sum(drawn), batch[1]

        return workload(lambda: [*DataLoader(rows(), 4)], [], split=split)

    whole: list[Any] = []
    before: list[Any] = []
    after: list[Any] = []
    run(start(work(whole), epochs=3, seed=0))
    run(start(work(before), epochs=3, seed=0), [leave_at(6, tmp_path)])
    torch.rand(3)

    final = run(restore(tmp_path, work(after)))

    assert before + after == whole
    assert final.notes == ()


class ShuffledWithState(Shuffled):
    """The same, with a state_dict, so that it can be given as extra=."""

    def __init__(self) -> None:
        super().__init__(random.Random(0), lambda chance: chance.sample(range(ROWS), ROWS))

    def state_dict(self) -> dict[str, Any]:
        version, internal, gauss = self.chance.getstate()
        return {"version": version, "internal": list(internal), "gauss": gauss}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.chance.setstate((state["version"], tuple(state["internal"]), state["gauss"]))


@pytest.mark.parametrize("iteration", [3, 4, 6])
def test_sampler_that_is_given_as_extra_comes_back_to_where_its_pass_began(iteration: int, tmp_path: Path) -> None:
    """What extra= saves is the end of the draws; the pass under way is drawn again from where it began."""

    def work(seen: list[Any]) -> Supervised:
        sampler = ShuffledWithState()
        return workload(lambda: DataLoader(rows(), 4, sampler=sampler), seen, extra={"sampler": sampler})

    whole: list[Any] = []
    before: list[Any] = []
    after: list[Any] = []
    run(start(work(whole), epochs=3))
    run(start(work(before), epochs=3), [leave_at(iteration, tmp_path)])

    final = run(restore(tmp_path, work(after)))

    assert before + after == whole or final.notes


class Weighted(Sampler[int]):
    """Draws by weights, which change while a pass is under way."""

    def __init__(self) -> None:
        self.weights = torch.ones(8)

    def __iter__(self) -> Iterator[int]:
        return iter(torch.multinomial(self.weights, 8).tolist())

    def __len__(self) -> int:
        return 8


class WeightedWithState(Weighted):
    def state_dict(self) -> dict[str, Any]:
        return {"weights": self.weights.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.weights = state["weights"].clone()


class WeightedOneByOne(WeightedWithState):
    """The rest of its pass depends on what has changed since."""

    def __iter__(self) -> Iterator[int]:
        return (int(torch.multinomial(self.weights, 1)) for _ in range(8))


class WeightedPairs(WeightedWithState):
    """A batch sampler."""

    def __iter__(self) -> Iterator[Any]:
        return iter(torch.multinomial(self.weights, 8).view(4, 2).tolist())

    def __len__(self) -> int:
        return 4


@attrs.frozen
class Lower(Command):
    """An easy sample is to come less often."""


@carries_out(Lower)
def lower(work: Supervised, command: Lower) -> None:
    loader: Any = work.train
    sampler = loader.sampler if isinstance(loader.sampler, Weighted) else loader.batch_sampler
    sampler.weights[int(work.inputs[0])] *= 0.02


@on(Phase.STEP_END, commands={Lower})
def lowers(state: State) -> Transition:
    return Transition(commands=(Lower(),))


@pytest.mark.parametrize("iteration", [3, 9])
@pytest.mark.parametrize(
    ("kind", "extra"),
    [
        (Weighted, False),
        (WeightedWithState, False),
        (WeightedWithState, True),
        (WeightedOneByOne, False),
        (WeightedOneByOne, True),
        (WeightedPairs, True),
    ],
)
def test_sampler_that_a_command_changes_within_a_pass(kind: Any, extra: bool, iteration: int, tmp_path: Path) -> None:
    """The rest of the pass is that of the undisturbed training, or it is said that it is not, with the sampler."""

    def work(seen: list[Any]) -> Supervised:
        sampler = kind()
        data = TensorDataset(torch.arange(8.0)[:, None], torch.zeros(8, 1))
        batches = {"batch_sampler": sampler} if kind is WeightedPairs else {"sampler": sampler}
        settings = {"extra": {"sampler": sampler}} if extra else {}
        return workload(lambda: DataLoader(data, **batches), seen, **settings)

    whole: list[Any] = []
    before: list[Any] = []
    after: list[Any] = []
    run(start(work(whole), epochs=3, seed=0), [lowers])
    run(start(work(before), epochs=3, seed=0), [lowers, leave_at(iteration, tmp_path)])

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        final = run(restore(tmp_path, work(after)), [lowers])

    said = [*final.notes, *(str(warning.message) for warning in caught)]
    assert before + after == whole or any("sampler" in sentence.lower() for sentence in said)


class Level(Dataset[Any]):
    """A curriculum: what it gives depends on a number that a command raises."""

    def __init__(self) -> None:
        self.level = 0

    def __len__(self) -> int:
        return ROWS

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.tensor([float(index + self.level)]), torch.zeros(1)


def test_changed_dataset_is_noted(tmp_path: Path) -> None:
    """A dataset that has changed, and has no state_dict, is named in the notes."""
    work = workload(lambda: DataLoader(Level(), 4), [])
    work.train.dataset.level = 2  # type: ignore[attr-defined]
    run(start(work, epochs=2), [leave_at(3, tmp_path)])

    notes = restore(tmp_path, workload(lambda: DataLoader(Level(), 4), [])).notes

    assert [note for note in notes if "train.dataset.level" in note and "state_dict" in note]


# ------------------------------------------------------------------------------------ set_epoch


class Told:
    """Counts what it is told."""

    def __init__(self) -> None:
        self.told: list[int] = []

    def set_epoch(self, epoch: int) -> None:
        self.told.append(epoch)


class ToldSampler(Told, Sampler[int]):
    def __iter__(self) -> Iterator[int]:
        return iter(range(ROWS))

    def __len__(self) -> int:
        return ROWS


class ToldDataset(Told, Dataset[Any]):
    def __len__(self) -> int:
        return ROWS

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.zeros(1), torch.zeros(1)


class ToldLoader(Told):
    """A loader of one's own, whose order depends on the epoch, as those of accelerate and datasets."""

    def __iter__(self) -> Iterator[Any]:
        order = torch.randperm(4, generator=torch.Generator().manual_seed(self.told[-1])).tolist()
        return iter([(torch.full((4, 1), float(i)), torch.zeros(4, 1)) for i in order])


def test_loader_of_ones_own_is_told_the_epoch() -> None:
    """Each epoch has its own order, as a loop has that calls set_epoch."""
    seen: list[Any] = []
    run(start(workload(ToldLoader, seen), epochs=3))

    loop = ToldLoader()
    expected = []
    for epoch in range(3):
        loop.set_epoch(epoch)
        expected += [inputs.flatten().tolist() for inputs, _ in loop]
    assert seen == expected
    assert len({tuple(map(tuple, seen[i : i + 4])) for i in (0, 4, 8)}) > 1


class ToldBatches(Told, Sampler[list[int]]):
    """A batch sampler, which hands the epoch on to what it has inside, or does not."""

    def __init__(self, sampler: ToldSampler, *, hands_on: bool) -> None:
        super().__init__()
        self.sampler = sampler
        self.hands_on = hands_on

    def set_epoch(self, epoch: int) -> None:
        super().set_epoch(epoch)
        if self.hands_on:
            self.sampler.set_epoch(epoch)

    def __iter__(self) -> Iterator[list[int]]:
        return iter([[0, 1], [2, 3]])

    def __len__(self) -> int:
        return 2


@pytest.mark.parametrize("hands_on", [False, True])
def test_batch_sampler_and_the_sampler_inside_are_told_the_epoch(hands_on: bool) -> None:
    """Each knows the epoch before the first batch is drawn, whoever tells it."""
    inner = ToldSampler()
    batches = ToldBatches(inner, hands_on=hands_on)
    run(start(workload(lambda: DataLoader(rows(), batch_sampler=batches), []), epochs=2))

    assert batches.told == [0, 1]
    assert sorted(set(inner.told)) == [0, 1]
    assert inner.told[-1] == 1


def test_every_layer_is_told_the_epoch_once() -> None:
    """Sampler, sampler of the batch sampler, dataset below wrappers: each once an epoch."""
    sampler, dataset = ToldSampler(), ToldDataset()
    run(start(workload(lambda: DataLoader(Subset(dataset, range(ROWS)), 4, sampler=sampler), []), epochs=2))

    assert (sampler.told, dataset.told) == ([0, 1], [0, 1])


def test_a_resume_tells_the_epoch(tmp_path: Path) -> None:
    """The layers are told the epoch under way before its rest is read."""
    dataset = ToldDataset()
    run(start(workload(lambda: DataLoader(ToldDataset(), 4), []), epochs=3), [leave_at(6, tmp_path)])

    run(restore(tmp_path, workload(lambda: DataLoader(dataset, 4), [])))

    assert dataset.told == [1, 2]


# -------------------------------------------------------------------------- loaders with a place


class Placed(DataLoader[Any]):
    """Counts its batches, in a generator function that begins with its first batch."""

    given = 0
    over = 0

    def __iter__(self) -> Any:
        over, self.over = self.over, 0
        for self.given, batch in enumerate(super().__iter__(), start=1):
            if self.given > over:
                yield batch

    def state_dict(self) -> dict[str, int]:
        return {"given": self.given}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.over = self.given = state["given"]


def torchdata_loader(**settings: Any) -> Any:
    from torchdata.stateful_dataloader import StatefulDataLoader

    return StatefulDataLoader(rows(), 4, **settings)


@pytest.mark.filterwarnings("ignore:the Placed begins", "ignore:'set_vital'")
@pytest.mark.parametrize("iteration", [4, 6])
@pytest.mark.parametrize(
    "make",
    [
        lambda: Placed(rows(), 4, shuffle=True),
        lambda: Placed(rows(), 4, num_workers=1, persistent_workers=True),
        lambda: torchdata_loader(shuffle=True),
        lambda: torchdata_loader(shuffle=True, num_workers=1, persistent_workers=True),
        lambda: torchdata_loader(sampler=Lazy()),
    ],
)
def test_loader_with_a_place_goes_on_there(make: Callable[[], Any], iteration: int, tmp_path: Path) -> None:
    """A loader that keeps its place, with and without workers that stay, goes on there."""
    whole: list[Any] = []
    before: list[Any] = []
    after: list[Any] = []
    run(start(workload(make, whole), epochs=3, seed=0))
    run(start(workload(make, before), epochs=3, seed=0), [leave_at(iteration, tmp_path)])

    run(restore(tmp_path, workload(make, after)))

    assert before + after == whole


@pytest.mark.parametrize(
    ("error", "noted"),
    [(AttributeError("no"), False), (NotImplementedError("no"), False), (RuntimeError("call prepare first"), True)],
)
def test_state_dict_that_raises(error: Exception, noted: bool, tmp_path: Path) -> None:
    """It is saved as a loader without one; an error that is no "I have none" is noted."""

    class Seeming(DataLoader[Any]):
        def state_dict(self) -> Any:
            raise error

        def load_state_dict(self, state: Any) -> None:
            raise error

    before: list[Any] = []
    after: list[Any] = []
    run(start(workload(lambda: Seeming(rows(), 4), before), epochs=2), [leave_at(6, tmp_path)])
    with pytest.warns(RuntimeWarning, match="read and thrown away"):
        final = run(restore(tmp_path, workload(lambda: Seeming(rows(), 4), after)))

    assert [seen[0] for seen in before + after] == [0.0, 4.0, 8.0, 12.0] * 2
    assert bool(final.notes) == noted


# ---------------------------------------------------------------------------------------- metrics


class Running:
    """A metric without a state_dict, that holds another one, an array, and a list."""

    def __init__(self) -> None:
        self.inner = torchmetrics.MinMaxMetric(torchmetrics.MeanMetric())
        self.reset()

    def reset(self) -> None:
        self.sums = np.zeros(2)
        self.seen: list[float] = []
        self.inner.reset()

    def update(self, output: torch.Tensor, target: torch.Tensor) -> None:
        self.sums[0] += float(target.sum())
        self.seen.append(float(target.mean()))
        self.inner.update(target.mean())

    def compute(self) -> dict[str, float]:
        inner = self.inner.compute()
        return {"sum": self.sums[0], "seen": sum(self.seen), "raw": float(inner["raw"])}


class Total(nn.Module):
    """As torchmetrics' Metric: in the state_dict only after `persistent(True)`, which does not reach inside."""

    def __init__(self) -> None:
        super().__init__()
        self._update_count = 0
        self.register_buffer("total", torch.zeros(()), persistent=False)

    def persistent(self, mode: bool) -> None:
        self._non_persistent_buffers_set = set() if mode else {"total"}

    def update(self, output: torch.Tensor, target: torch.Tensor) -> None:
        self.total += target.sum()

    def compute(self) -> torch.Tensor:
        return self.total

    def reset(self) -> None:
        self.total.zero_()


class Outer(Total):
    """Holds others, one of them in a list."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Total()
        self.others = [Total()]

    def update(self, output: torch.Tensor, target: torch.Tensor) -> None:
        for each in (self.inner, *self.others):
            each.update(output, target)

    def compute(self) -> Any:
        return {"inner": self.inner.compute(), "listed": self.others[0].compute()}

    def reset(self) -> None:
        for each in (self.inner, *self.others):
            each.reset()


METRICS: dict[str, Callable[[], Any]] = {
    "of one's own": Running,
    "one of modules inside another": Outer,
    "torchmetrics inside torchmetrics": lambda: torchmetrics.MinMaxMetric(torchmetrics.MeanSquaredError()),
    "classes": lambda: torchmetrics.ClasswiseWrapper(
        torchmetrics.classification.MulticlassAccuracy(num_classes=2, average=None)
    ),
    "a collection with compute groups": lambda: torchmetrics.MetricCollection(
        [
            torchmetrics.classification.BinaryPrecision(),
            torchmetrics.classification.BinaryRecall(),
            torchmetrics.classification.BinaryAccuracy(),
        ]
    ),
}


@pytest.mark.parametrize("name", METRICS)
def test_metric_goes_on_in_mid_epoch(name: str, tmp_path: Path) -> None:
    """Metrics inside metrics, arrays and lists: the value of the epoch is the undisturbed one."""

    def work() -> Supervised:
        torch.manual_seed(0)
        model = nn.Linear(3, 2 if name == "classes" else 1)
        targets = torch.randint(2, (6, 4)) if name == "classes" else torch.randint(2, (6, 4, 1)).float()
        loss: Any = nn.CrossEntropyLoss() if name == "classes" else nn.BCEWithLogitsLoss()
        batches = list(zip(torch.randn(6, 4, 3), targets, strict=True))
        return Supervised(
            model, torch.optim.SGD(model.parameters(), lr=0.1), loss, batches, metrics={"m": METRICS[name]()}
        )

    expected = run(start(work(), epochs=2)).metrics
    run(start(work(), epochs=2), [leave_at(9, tmp_path)])

    final = run(restore(tmp_path, work()))

    assert (dict(final.metrics), final.notes) == (dict(expected), ())


def test_what_of_a_metric_cannot_be_saved_is_noted(tmp_path: Path) -> None:
    """Such as an iterator: by name, with its type."""

    class Iterates(Running):
        def __init__(self) -> None:
            super().__init__()
            self.turns = iter([1, 2, 3])

    def work() -> Supervised:
        return workload(lambda: DataLoader(rows(), 4), [], metrics={"it": Iterates()})

    run(start(work(), epochs=1), [leave_at(2, tmp_path)])

    assert [note for note in restore(tmp_path, work()).notes if "the metric it: turns (list_iterator)" in note]


@pytest.mark.parametrize(
    "hold", [lambda model: model, lambda model: nn.DataParallel(model), lambda model: model.weight]
)
def test_metric_holds_the_model_itself(hold: Callable[[nn.Module], Any]) -> None:
    """The model, a wrapper around it, or a parameter: what the metric sees is what is trained."""

    class Holds:
        def __init__(self, held: Any) -> None:
            self.held = held

        def reset(self) -> None: ...
        def update(self, output: Any, target: Any) -> None: ...
        def compute(self) -> float:
            weight = self.held if isinstance(self.held, nn.Parameter) else next(self.held.parameters())
            return float(weight.detach().sum())

    model = nn.Linear(2, 1)
    batches = [(torch.ones(4, 2), torch.ones(4, 1))]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    work = Supervised(model, optimizer, nn.MSELoss(), batches, batches, metrics={"m": Holds(hold(model))})

    assert run(start(work, epochs=3)).metrics["valid_m"] == float(model.weight.detach().sum())


# -------------------------------------------------------------------------------------- optimizers

OPTIMIZERS = ["SGD", "Adam", "AdamW", "NAdam", "RAdam", "Adamax", "Adagrad", "Adadelta", "RMSprop", "Rprop", "ASGD"]


@pytest.mark.parametrize("name", [*OPTIMIZERS, "Adafactor"])
def test_state_of_an_optimizer_keeps_its_dtype(name: str, tmp_path: Path) -> None:
    """With float32 state beside bfloat16 weights too: values and dtypes come back to the last bit."""

    def work() -> Supervised:
        torch.manual_seed(0)
        model = nn.Linear(3, 1).bfloat16()
        settings = {"momentum": 0.9} if name in ("SGD", "RMSprop") else {}
        batches = [(torch.randn(4, 3).bfloat16(), torch.randn(4, 1).bfloat16()) for _ in range(3)]
        optimizer = getattr(torch.optim, name)(model.parameters(), lr=0.01, **settings)
        return Supervised(model, optimizer, nn.MSELoss(), batches)

    def values(workload: Supervised) -> list[Any]:
        states = [[*state.values()] for state in workload.optimizer.state.values()]
        return [v for state in [*states, [*workload.model.parameters()]] for v in state]

    whole, resumed = work(), work()
    run(start(whole, epochs=4))
    half = work()
    run(start(half, epochs=4), [leave_at(5, tmp_path)])
    for state in half.optimizer.state.values():
        assert state is not None
    run(restore(tmp_path, resumed))

    for expected, found in zip(values(whole), values(resumed), strict=True):
        if isinstance(expected, torch.Tensor):
            assert expected.dtype == found.dtype
            assert torch.equal(expected, found)
        else:
            assert expected == found


# --------------------------------------------------------------------- what changed since the save


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"batch_size": 5}, "batch_size is 5, and was 4"),
        ({"drop_last": True}, "drop_last is True, and was False"),
        ({"shuffle": True}, "shuffle is True, and was False"),
        ({"sampler": Counted()}, "it is a Counted, and was a SequentialSampler"),
        ({"dataset": Subset(rows(), range(ROWS))}, "it is a Subset, and was a TensorDataset"),
        ({"dataset": TensorDataset(*rows()[:15])}, "it has 15 items, and had 16"),
    ],
)
def test_other_data_is_said(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    """What differs of the data is in the notes, with both values; nothing is said where nothing differs."""
    settings = {"dataset": rows(), "batch_size": 4}
    run(start(workload(lambda: DataLoader(**settings), []), epochs=2), [leave_at(5, tmp_path)])

    assert restore(tmp_path, workload(lambda: DataLoader(**settings), [])).notes == ()
    assert words in " ".join(restore(tmp_path, workload(lambda: DataLoader(**{**settings, **change}), [])).notes)


def test_other_setting_of_a_callback_is_said(tmp_path: Path) -> None:
    """By the name of the callback, with both values."""
    make = SOURCES["a shuffling DataLoader"]
    run(start(workload(make, []), epochs=2), [accumulate(2), leave_at(4, tmp_path)])

    final = run(restore(tmp_path, workload(make, [])), [accumulate(4)])
    same = run(restore(tmp_path, workload(make, [])), [accumulate(2)])

    assert len(final.notes) == 1
    assert "the callback accumulate" in final.notes[0]
    assert "4, and was 2" in final.notes[0]
    assert same.notes == ()


# ---------------------------------------------------------------------------------- in this process


@pytest.mark.parametrize("between", ["draws", "evaluate", "find_lr", "nothing"])
@pytest.mark.parametrize("name", ["a shuffling DataLoader", "random.Random in a sampler"])
def test_finished_training_is_extended_as_if_nothing_was_between(name: str, between: str) -> None:
    """Draws, a validation or a search for a rate between two calls do not change the training."""

    def train(between: str) -> list[Any]:
        seen: list[Any] = []
        work = workload(SOURCES[name], seen, valid=[(torch.zeros(2, 1), torch.zeros(2, 1))])
        final = run(start(work, epochs=2, seed=0))
        del seen[:]
        match between:
            case "draws":
                torch.rand(5)
                random.random()
            case "evaluate":
                evaluate(work)
            case "find_lr":
                find_lr(start(work, epochs=1), steps=5)
        del seen[:]
        run(extend(final, epochs=2))
        return [seen, [p.detach().tolist() for p in work.model.parameters()]]

    assert train(between) == train("nothing")


# ----------------------------------------------------------------------------- earlier versions


def test_checkpoint_of_an_earlier_version_is_restored() -> None:
    """One that was written before generators were saved by their paths: the training goes on, and ends as it would."""
    from fsm_train.callbacks import early_stopping, ema

    def work() -> Supervised:
        torch.manual_seed(0)
        data = TensorDataset(torch.arange(24.0)[:, None] / 24, torch.arange(24.0)[:, None] / 7)
        model = nn.Sequential(nn.Linear(1, 2), nn.Dropout(0.5), nn.Linear(2, 1))
        loader = DataLoader(data, 4, shuffle=True, generator=torch.Generator().manual_seed(5))
        optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
        return Supervised(model, optimizer, nn.MSELoss(), loader, DataLoader(data, 8))

    callbacks = [accumulate(2), ema(0.5), early_stopping(patience=5)]
    whole, resumed = work(), work()
    expected = run(start(whole, epochs=3, seed=0), callbacks)

    state = restore(OLD, resumed)
    final = run(state, callbacks)

    assert state.notes == ()
    assert dict(final.metrics) == dict(expected.metrics)
    assert all(map(torch.equal, whole.model.parameters(), resumed.model.parameters()))


def test_checkpoint_callback_writes_no_notes_for_an_ordinary_training(tmp_path: Path) -> None:
    """No false alarm where everything is saved."""
    work = workload(SOURCES["a shuffling DataLoader"], [])
    run(start(work, epochs=2), [checkpoint(tmp_path, every_steps=1)])

    assert restore(tmp_path, workload(SOURCES["a shuffling DataLoader"], [])).notes == ()


class Master(torch.optim.Optimizer):
    """Keeps float32 master weights of bfloat16 parameters, an integer, and a list of tensors."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {"lr": 0.01})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                master = state.setdefault("master", p.float())
                state["count"] = state.get("count", torch.zeros((), dtype=torch.int64)) + 1
                state["past"] = [*state.get("past", []), p.grad.float() / 3][-2:]
                master -= group["lr"] * sum(state["past"])
                p.copy_(master)


def test_state_of_another_dtype_than_the_weights_comes_back(tmp_path: Path) -> None:
    """Float32 master weights of bfloat16 parameters are float32 again, integers integers, and the weights the same."""

    def work() -> Supervised:
        torch.manual_seed(0)
        model = nn.Linear(4, 1).bfloat16()
        batches = [(torch.randn(8, 4).bfloat16(), torch.randn(8, 1).bfloat16()) for _ in range(4)]
        return Supervised(model, Master(model.parameters()), nn.MSELoss(), batches)

    whole, resumed = work(), work()
    run(start(whole, epochs=6))
    run(start(work(), epochs=6), [leave_at(13, tmp_path)])
    run(restore(tmp_path, resumed))

    for ours, theirs in zip(whole.optimizer.state.values(), resumed.optimizer.state.values(), strict=True):
        for one, other in ((ours[name], theirs[name]) for name in ("master", "count")):
            assert one.dtype == other.dtype
            assert torch.equal(one, other)
        assert [past.dtype for past in theirs["past"]] == [torch.float32] * 2
