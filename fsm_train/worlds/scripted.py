"""A workload without a model: every measurement is given in advance. Torch-free.

For tests and simulations of callbacks. What a real training would measure is given as a value
(always the same), a sequence (one item per measurement; an exhausted one is an error, not a repeat) or
a function of the state.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence, Set

from ..core.checks import NO_TEXT, as_count, check_not_misspelt, is_exact_number, is_text
from ..core.errors import WorkloadError
from ..core.facts import KNOWN_AT
from ..core.guards import before_an_epoch
from ..core.phase import Operation
from ..core.reductions import Reduction, reductions_of
from ..core.runs import stopped_at_its_begin
from ..core.state import Hyper, State, check_hyper
from ..core.transition import Command
from ..core.turns import Players
from ..core.workload import BRACKETS, Workload

Script = float | Sequence[float] | Callable[[State], float]


SCRIPTED_NAMES = KNOWN_AT.keys() | {"batches", "hyper", "players", "valid_batches", "train_loss", "valid_loss"}
"""What a `Scripted` can be given besides names of one's own."""


class _Reader:
    """Reads one script, item by item.

    Attributes:
        name: of the setting, for errors.
        script: a value, a sequence or a function.
        taken: how many items of a sequence were read.
    """

    def __init__(self, name: str, script: Script) -> None:
        self.name = name
        self.script = script
        self.taken = 0
        if isinstance(script, str) or (not isinstance(script, (int, float, Sequence)) and not callable(script)):
            raise TypeError(f"{name}={script!r}: give a number, a sequence of numbers, or a function of the state")
        if not is_text(name):
            raise ValueError(f"the name {name!r}: {NO_TEXT}")
        if isinstance(script, (int, float)):
            self.script = self._measured(script)

    def next(self, state: State | None) -> float:
        """The next measurement, in this state.

        Raises:
            WorkloadError: the sequence is exhausted.
        """
        if isinstance(self.script, (int, float)):
            return self.script
        assert state is not None, "a script that is no number makes its operation an informed one"
        if callable(self.script):
            return self._measured(self.script(state))
        if self.taken == len(self.script):
            raise WorkloadError(
                f"the script of {self.name} has {self.taken} values, but a further one is asked for at "
                f"{state.phase.value} of epoch {state.epoch}: give more, or fewer epochs"
            )
        self.taken += 1
        return self._measured(self.script[self.taken - 1])

    def _measured(self, value: float) -> float:
        """The value as a plain number; True is 1.

        Raises:
            WorkloadError: it is no real number, or beyond those of a float.
        """
        with contextlib.suppress(OverflowError):
            if isinstance(value, bool) or is_exact_number(value):
                as_float = float(value)
                return value if type(value) is int else as_float
        raise WorkloadError(f"the script of {self.name} gives {value!r:.60}: give real numbers that fit a float")

    def coming(self) -> float:
        """What `next` will be; 0 if that is not known: a function is called once per measurement."""
        if isinstance(self.script, (int, float)):
            return self.script
        return 0.0 if callable(self.script) or self.taken == len(self.script) else self.script[self.taken]


class Scripted(Workload):
    """A workload that measures what its script says.

    Args:
        batches: training batches per epoch.
        batch_size: what a training batch counts, from 0; one that counts 0 is left out.
        loss: of each training batch.
        hyper: the hyper-parameters that an optimizer would have; by default a rate "lr" of 0.1, or one for each player.
        players: by name, those that take turns, and at each so-many-th batch they play: {"D": 1, "G": 5}. A loss that
            is a function of the state can ask for `state.player`.
        valid_batches: batches of a validation; the loss of each is the coming valid_loss, if that is known.
        metrics: `valid_…` are measured at the end of each validation (there is one if any is given),
            `train_…` at the end of each epoch (without train_loss, that is the weighted mean of the
            losses; with players train_D_loss is that of D's). `grad_norm`, `stepped` and `elapsed` are those facts,
            and any other name is a sensor of that name.

    Attributes:
        commands: the commands that were carried out, in order.

    Raises:
        TypeError: something is no number, sequence or function, or a name is likely a misspelt one.
        ValueError: a name is no valid text.
        WorkloadError: while it runs, when a sequence is exhausted, or what it gives is no real number.
    """

    def __init__(
        self,
        *,
        batches: Script = 3,
        batch_size: Script = 32,
        loss: Script = 0.0,
        hyper: Mapping[str, Hyper] | None = None,
        valid_batches: Script = 1,
        players: Mapping[str, int] | None = None,
        **metrics: Script,
    ) -> None:
        check_not_misspelt("Scripted", metrics, SCRIPTED_NAMES)
        self._players = Players.of(players or {})
        hyper = dict.fromkeys([f"{name}.lr" for name in self._players] or ["lr"], 0.1) if hyper is None else hyper
        self._hyper = {name: check_hyper(name, value) for name, value in hyper.items()}
        self._batches = _Reader("batches", batches)
        self._batch_size = _Reader("batch_size", batch_size)
        self._losses = _Reader("loss", loss)
        self._valid_batches = _Reader("valid_batches", valid_batches)
        readers = {name: _Reader(name, script) for name, script in metrics.items()}
        self._valid = {name: reader for name, reader in readers.items() if name.startswith("valid_")}
        self._train = {name: reader for name, reader in readers.items() if name.startswith("train_")}
        self._facts = {name: reader for name, reader in readers.items() if name not in self._valid | self._train}
        per_batch = {
            Operation.FETCH: self._batch_size,
            Operation.LOSS: self._losses,
            Operation.STEP: self._facts.get("stepped", _Reader("stepped", 1.0)),
        }
        self._informed = BRACKETS | {
            operation for operation, reader in per_batch.items() if not isinstance(reader.script, (int, float))
        }
        self._steps = per_batch[Operation.STEP]
        self._readers = [self._batches, self._batch_size, self._losses, self._valid_batches, *readers.values()]
        self.interrupt: str | None = None
        self.commands: list[Command] = []
        self._batches_to_come = self._valid_batches_to_come = 0
        self._size: float = batch_size if isinstance(batch_size, (int, float)) else 1  # of the batch fetched last
        self._loss: float | None = None
        self._stepped = True
        self._fetched_any = self._valid_fetched_any = False
        self._losses_added = 0  # in the epoch under way
        self._total = self._weight = 0.0  # of the losses in the epoch under way: their weighted sum, and the weights
        self._player = ""
        self._sums: dict[str, tuple[float, float]] = {}  # the same of each player while another one plays
        self._elapsed = 0.0

    @property
    def informed(self) -> Set[Operation]:
        return self._informed

    @property
    def has_valid(self) -> bool:
        return bool(self._valid)

    @property
    def sensors(self) -> Set[str]:
        return self._facts.keys() - KNOWN_AT.keys()

    @property
    def metric_names(self) -> Set[str]:
        return {*self._losses_by_name(self._players or ("",)), *self._train, *self._valid}

    @property
    def players(self) -> Mapping[str, int]:
        return self._players.all_every

    @property
    def batches_per_epoch(self) -> int | None:
        script = self._batches.script
        return int(script) if isinstance(script, (int, float)) else None

    @property
    def reductions(self) -> Mapping[str, Reduction]:
        return reductions_of({name: reader.script for name, reader in self._facts.items()})

    @property
    def known_sizes(self) -> tuple[int, float, float] | None:
        return self._known(self._batches)

    @property
    def known_valid_sizes(self) -> tuple[int, float, float] | None:
        return self._known(self._valid_batches)

    def _known(self, batches: _Reader) -> tuple[int, float, float] | None:
        """Numbers are known before; what a sequence or a function gives is not."""
        if not isinstance(batches.script, (int, float)) or not isinstance(self._batch_size.script, (int, float)):
            return None
        size = as_count(self._batch_size.script, "batch_size")
        if batches is self._valid_batches:
            size = size or 1
        return int(batches.script), size, size

    def hyper(self) -> Mapping[str, Hyper]:
        return dict(self._hyper)

    def set_hyper(self, changes: Mapping[str, Hyper]) -> None:
        self._hyper.update(changes)

    def read(self, names: Set[str], state: State) -> Mapping[str, float]:
        known: dict[str, float] = {"stepped": float(self._stepped), "elapsed": 0.0, "grad_norm": 0.0}
        if self._loss is not None:
            known["loss"] = self._loss
        return {
            name: self._facts[name].next(state) if name in self._facts and name != "stepped" else known[name]
            for name in names
            if name in known or name in self._facts
        }

    def carry_out(self, command: Command, state: State) -> None:
        self.commands.append(command)

    def snapshot(self) -> tuple[dict[str, Hyper], list[int]]:
        return dict(self._hyper), [reader.taken for reader in self._readers]

    def put_back(self, snapshot: tuple[dict[str, Hyper], list[int]]) -> None:
        self._hyper = dict(snapshot[0])
        for reader, taken in zip(self._readers, snapshot[1], strict=True):
            reader.taken = taken

    def prepare(self, state: State) -> None:
        """Nothing to do."""

    def reposition(self, state: State) -> None:
        """Nothing to do: a script keeps its position."""

    def open(self, state: State) -> None:
        self._batches_to_come = int(self._batches.next(state))
        self._fetched_any = False
        self._total = self._weight = 0.0
        self._sums = {}
        self._losses_added = 0

    def fetch(self, state: State | None = None) -> float | None:
        self._loss = None
        if self._batches_to_come == 0:
            if not self._fetched_any:
                raise WorkloadError("train gave no batch in this epoch: the script of batches says 0")
            return None
        self._fetched_any = True
        self._batches_to_come -= 1
        self._size = as_count(self._batch_size.next(state), "batch_size")
        return self._size

    def turn(self, state: State) -> None:
        self._sums[self._player] = self._total, self._weight
        self._player, self._loss = state.player, None
        self._total, self._weight = self._sums.get(self._player, (0.0, 0.0))

    def forward(self, state: State | None = None) -> None:
        """Nothing to do."""

    def loss(self, state: State | None = None) -> None:
        self._loss = self._losses.next(state)

    def discard(self, state: State | None = None) -> None:
        """Nothing to do: a batch counts from its backward pass on."""

    def backward(self, state: State | None = None) -> None:
        assert self._loss is not None
        self._total += self._loss * self._size
        self._weight += self._size
        self._losses_added += 1

    def unscale(self, state: State | None = None) -> None:
        """Nothing to do."""

    def step(self, state: State | None = None) -> bool:
        self._stepped = bool(self._steps.next(state))
        return self._stepped

    def zero(self, state: State | None = None) -> None:
        """Nothing to do."""

    def open_valid(self, state: State) -> None:
        self._valid_batches_to_come = int(self._valid_batches.next(state))
        self._valid_fetched_any = False

    def fetch_valid(self, state: State | None = None) -> float | None:
        if self._valid_batches_to_come == 0:
            return None
        self._valid_batches_to_come -= 1
        self._valid_fetched_any = True
        return self._size or 1  # a training batch that counts 0 says nothing about those of the validation

    def evaluate(self, state: State | None = None) -> None:
        """The loss of a batch is the coming valid_loss, if that is a number or in a sequence; else 0."""
        script = self._valid.get("valid_loss")
        self._loss = 0.0 if script is None else script.coming()

    def measure_valid(self, state: State) -> Mapping[str, float]:
        self._loss = None
        if stopped_at_its_begin(state):
            return self._so_far(state)
        if not self._valid_fetched_any:
            raise WorkloadError("valid gave no batch: the script of valid_batches says 0")
        return {**self._so_far(state), **{name: reader.next(state) for name, reader in self._valid.items()}}

    def _so_far(self, state: State) -> Mapping[str, float]:
        """In the middle of an epoch the mean loss so far, and the coming values of scripted metrics."""
        if before_an_epoch(state) or state.batches_over or not self._losses_added:
            return {}
        mean = {name: value for name, value in self._means().items() if name not in self._train}
        known = {name: reader.coming() for name, reader in self._train.items() if not callable(reader.script)}
        return {**mean, **known}

    def abandon(self, state: State) -> None:
        self._loss = None

    def measure(self, state: State) -> Mapping[str, float]:
        """As of a real training: an epoch whose batches were all left out, or that had none, measures nothing."""
        if not self._losses_added:
            return {}
        mean = self._means()
        self._losses_added = 0
        return {**mean, **{name: reader.next(state) for name, reader in self._train.items()}}

    def _means(self) -> Mapping[str, float]:
        """The mean losses of the epoch so far: of one that is weighed by nothing there is none."""
        sums = {**self._sums, self._player: (self._total, self._weight)}
        means = {player: total / weight for player, (total, weight) in sums.items() if weight}
        return dict(zip(self._losses_by_name(means), means.values(), strict=True))

    def _losses_by_name(self, players: Iterable[str]) -> list[str]:
        return [f"train_{player}_loss" if player else "train_loss" for player in players]

    def finish(self, state: State) -> None:
        """Nothing to do."""
