"""Several ranks as one training: a workload around a workload, of which all ranks are told the same.

Rule of this file: it says when the ranks exchange, and about what. What follows from the rows is worked out elsewhere:
in `core/reductions.py` one number of many, in `passes.py` the end of the data, in `disagreement.py` what differs.

    once for each run       prepare, reposition, finish; the seconds that it took
    for each epoch          open (what is known of the shares?), the training metrics; the same for a validation
    for each batch          nothing where the shares are known, but for a look for signals several times a second; else
                            one exchange for each fetch
    at a watched phase      one exchange where facts are needed
    before SaveCheckpoint   one
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from typing import Any, Literal, get_args

from ..core.callback import Callback
from ..core.checks import is_whole
from ..core.commands import SaveCheckpoint, WeighLoss
from ..core.errors import WorkloadError
from ..core.phase import BATCH_PHASES, Operation
from ..core.reductions import reduced, reduction_of, weighted_mean
from ..core.state import State, replaced
from ..core.table import Outcome
from ..core.transition import Command
from ..core.workload import Workload
from .disagreement import About, control_state
from .meeting import Exchange, Meeting, Numbers
from .passes import UNKNOWN, LeftOut, Pass, SignalInterval, rank_weight, union_size
from .proxy import WorkloadProxy
from .rows import Topic
from .same_data import SameData

Agree = Literal["epoch", "phase", "never"]
_OPERATIONS = {operation.value: operation for operation in Operation}
_NOT_FUSED = frozenset({Operation.FETCH, Operation.FETCH_VALID, Operation.EVALUATE})


class Agreed(WorkloadProxy):
    """A workload of one rank, of which all ranks are told the same: so their callbacks decide the same.

    Facts, metrics, sizes of batches and the end of the data are those of all ranks together. A signal acts once an
    exchange has carried it. The interpreter, a log and the callbacks see only what was agreed on.

    >>> from fsm_train import Scripted, run, start
    >>> two_alike = lambda row: [row, row]  # an exchange of two ranks that always give the same
    >>> final = run(start(Agreed(Scripted(batches=3, batch_size=4), two_alike), epochs=1))
    >>> final.step, final.samples
    (3, 24)

    Args:
        workload: this rank's.
        exchange: a function that is given a row of `WIDTH` numbers and returns the rows of all ranks, in their order.
        agree: when the ranks compare what they decided. "epoch": when a run, an epoch and a checkpoint begin, and at
            the end. "phase": before each operation too, which is slow, and names the first one that differs. "never".
        interrupts_every: batches between two looks for signals, where nothing else is exchanged. By default as many as
            take a fifth of a second.
        clock: a clock in seconds, to work that out.

    Attributes:
        exchanges: how many there were.
        interrupt: the signal that the ranks agreed to act on, or None. What is set is noted as this rank's own first.

    Raises:
        ValueError: `agree` is none of these, or `interrupts_every` no whole number from 1.
        WorkloadError: the workload has players, which take turns.
        DisagreementError: in a run, on all ranks, if they decided differently or are at different places.
        PeerError: in a run, if another rank failed.
    """

    def __init__(
        self,
        workload: Workload,
        exchange: Exchange,
        *,
        agree: Agree = "epoch",
        interrupts_every: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(workload)
        if agree not in get_args(Agree):
            raise ValueError(f"agree={agree!r}: there are {', '.join(get_args(Agree))}")
        if interrupts_every is not None and not is_whole(interrupts_every, 1):
            raise ValueError(f"interrupts_every={interrupts_every!r}: give a whole number of batches from 1, or None")
        if workload.players:
            raise WorkloadError(
                f"the players {', '.join(map(repr, workload.players))} take turns, and ranks weigh losses and metrics "
                "by what a batch counts, not by whose turn it is: train players on one rank"
            )
        self._agree = agree
        self._meeting = Meeting(exchange, lambda: self.wrapped.interrupt, self._act_on, (self, workload))
        self._looks = SignalInterval(interrupts_every or 1, interrupts_every is not None, clock)
        self._agreed_signal: str | None = None
        self._in_run, self._same_data = False, SameData()
        self._train, self._valid = Pass(), Pass()
        self._known_batches: Sequence[float] = ()
        self._left_out = LeftOut()
        self._rank_weights: dict[str, float] = {}  # of the batch under way, by the fact that weighs it
        self._batches_per_epoch = self._shortest(self._meeting.meet(Topic.JOIN, self._own_batches()))

    @property
    def exchanges(self) -> int:
        return self._meeting.exchanges

    @property
    def meeting(self) -> Meeting:
        """How this rank meets the others, for what is exchanged beside all this."""
        return self._meeting

    @property
    def train_pass(self) -> Pass:
        """The pass over the training data that is under way; what it counted is what training metrics weigh."""
        return self._train

    def across_ranks(self, callbacks: Sequence[Callback[Any]] | None = None) -> Workload:
        return self.as_workload()

    # ------------------------------------------------------------------------------- what is known before

    @property
    def shares_facts(self) -> bool:
        """Sinks of one rank, such as its log or its progress bar, measure nothing: the others would not take part."""
        return self._meeting.ranks > 1

    @property
    def batches_per_epoch(self) -> int | None:
        """Those of the rank that has the fewest; None if one does not know. Agreed on here and when a run begins."""
        return self._batches_per_epoch

    @property
    def metric_names(self) -> Set[str] | None:
        return self.wrapped.metric_names

    @property
    def informed(self) -> Set[Operation]:
        return frozenset(Operation) if self._agree == "phase" else self.wrapped.informed

    @property
    def notes(self) -> Sequence[str]:
        return (*self.wrapped.notes, *filter(None, [self._left_out.note()]))

    def _own_batches(self) -> float:
        own = self.wrapped.batches_per_epoch
        return UNKNOWN if own is None else own

    def _shortest(self, given: Sequence[Sequence[float]]) -> int | None:
        least = min(values[0] for values in given)
        return None if least == UNKNOWN else int(least)

    # ------------------------------------------------------------------------------------------ signals

    @property
    def interrupt(self) -> str | None:
        """Outside of a run there is nothing to agree on: a signal that came too late is this rank's own."""
        return self._agreed_signal if self._in_run else self._agreed_signal or self.wrapped.interrupt

    @interrupt.setter
    def interrupt(self, name: str | None) -> None:
        self.wrapped.interrupt = name  # noted here, and acted on once an exchange has carried it
        if name is None:
            self._agreed_signal = None

    def _act_on(self, signal: str) -> None:
        self._agreed_signal = signal

    # ------------------------------------------------------------------------------- a run begins and ends

    def prepare(self, state: State) -> None:
        self._agreed_signal = None  # of a call of `run` before this one
        own = (self._own_batches(), *self.wrapped.whole_data)
        rows = self._meeting.meet(Topic.PREPARE, *own, about=self._control(state))
        self._batches_per_epoch = self._shortest(rows)
        self._same_data.look([values[1:3] for values in rows], self._meeting)
        self._in_run, self._left_out = True, LeftOut()
        self._blaming(self.wrapped.prepare)(*self._given(Operation.PREPARE, state))

    def reposition(self, state: State) -> None:
        self.wrapped.reposition(*self._given(Operation.REPOSITION, state))
        self._begin_epoch(state, fetched=state.batch)

    def finish(self, state: State) -> None:
        try:
            if not self._failed(state):
                self._meeting.meet(Topic.FINISH, about=self._control(state))
        except BaseException as error:
            state = replaced(state, {"error": f"{type(error).__name__}: {error}"})  # so this rank ends alone
            raise
        finally:
            self._in_run = False
            with self._telling():
                self._blaming(self.wrapped.finish)(state)

    @contextlib.contextmanager
    def _telling(self) -> Iterator[None]:
        """Tell the others what is raised where no `finish` follows."""
        try:
            yield
        except BaseException as error:
            self._meeting.fail(f"{type(error).__name__}: {error}")
            raise

    def _failed(self, state: State) -> bool:
        """Whether this rank is torn down: then it tells the others, who are elsewhere, and exchanges nothing more."""
        # Who left a loop over `iterate` did so in a script that all ranks run.
        if state.error and not state.error.startswith(GeneratorExit.__name__):
            self._meeting.fail(state.error)
        return bool(state.error)

    def carry_out(self, command: Command, state: State) -> None:
        if isinstance(command, SaveCheckpoint) and not self._failed(state):
            self._meeting.meet(Topic.SAVE, about=self._control(state))
        if isinstance(command, WeighLoss) and command.by in self._rank_weights:
            self.wrapped.set_rank_weight(self._rank_weights[command.by])
        self._blaming(self.wrapped.carry_out)(command, state)

    # ------------------------------------------------------------------------------------------ the data

    def open(self, state: State) -> None:
        self.wrapped.open(*self._given(Operation.OPEN, state))
        self._begin_epoch(state)

    def _begin_epoch(self, state: State, fetched: int = 0) -> None:
        self._train = Pass(self.wrapped.known_sizes, fetched=fetched, counted=self._train.counted if fetched else 0.0)
        rows = self._meeting.meet(Topic.OPEN, *self._train.values(), about=self._control(state))
        self._train.compare(rows)
        self._known_batches = [values[0] for values in rows]

    def fetch(self, *state: State) -> float | None:
        """What the batches of all ranks count together; None for all once one rank has no further one."""
        own = self.wrapped.fetch(*self._given(Operation.FETCH, *state))
        now = self._train
        now.take(own)
        self._rank_weights = {}
        sizes = self._sizes(Topic.FETCH, now, own)
        there = [size for size in sizes if size is not None]
        if len(there) < len(sizes):
            self._left_out.add([size is not None for size in sizes], self._known_batches, now.fetched - 1)
            now.size = None
            return None
        self.wrapped.set_rank_weight(rank_weight(own or 0.0, there))
        return union_size(there)

    def _sizes(self, topic: Topic, now: Pass, own: float | None) -> list[float | None]:
        """What the batch that each rank fetched counts; None for one that has none. Asked if not all ranks know."""
        self._meeting.batches += 1
        if now.of_all:
            self._look_for_signals()
            return now.sizes()
        rows = self._meeting.meet(topic, float(own is not None), own or 0.0)
        return [values[1] if values[0] else None for values in rows]

    def backward(self, *state: State) -> None:
        self._blaming(self.wrapped.backward)(*self._given(Operation.BACKWARD, *state))
        self._train.counted += self._train.size or 0.0

    @contextlib.contextmanager
    def set_aside(self) -> Iterator[None]:
        """As the workload does; the validation under way is another one meanwhile."""
        before = self._valid
        try:
            with self.wrapped.set_aside():
                yield
        finally:
            self._valid = before

    @contextlib.contextmanager
    def evaluate_on(self, data: Any) -> Iterator[None]:
        """As the workload does; what is raised in this context frees the other ranks, since no `finish` follows."""
        with self._telling(), self.wrapped.evaluate_on(data):
            yield

    def open_valid(self, state: State) -> None:
        self._blaming(self.wrapped.open_valid)(*self._given(Operation.OPEN_VALID, state))
        self._valid = Pass(self.wrapped.known_valid_sizes)
        self._valid.compare(self._meeting.meet(Topic.OPEN_VALID, *self._valid.values()))

    def fetch_valid(self, *state: State) -> float | None:
        """What the batches of the ranks that have one count together; a rank without one stands by."""
        own = self.wrapped.fetch_valid(*self._given(Operation.FETCH_VALID, *state))
        now = self._valid
        now.take(own)
        there = [size for size in self._sizes(Topic.FETCH_VALID, now, own) if size is not None]
        now.of_any += bool(there)
        return union_size(there) if there else None

    def evaluate(self, *state: State) -> None:
        given = self._given(Operation.EVALUATE, *state)
        if self._valid.size:
            self._blaming(self.wrapped.evaluate)(*given)
            self._valid.counted += self._valid.size
        else:
            self._blaming(self.wrapped.stand_by)()

    def _look_for_signals(self) -> None:
        if self._meeting.batches >= self._looks.batches:
            rows = self._meeting.meet(Topic.SIGNALS, self._looks.seconds_per_batch())
            self._looks.agree([values[0] for values in rows])

    # ------------------------------------------------------------------------------- what is measured

    def read(self, names: Set[str], state: State) -> Mapping[str, float]:
        with self._telling():
            own = self.wrapped.read(names, state)
        if self._failed(state):
            return own
        weight = 1.0
        if state.phase in BATCH_PHASES:
            in_validation = state.phase.value.startswith("valid_")
            weight = float((self._valid if in_validation else self._train).size or 0.0)
            if in_validation and not weight:  # this rank stands by: its last batch was measured before
                own = {name: value for name, value in own.items() if name == "elapsed"}
        about = {"phase": state.phase.value, "batch": state.iteration, "facts needed": sorted(names)}
        given = self._meeting.numbers(
            Topic.FACTS,
            {name: (float(value), weight) for name, value in own.items()},
            names,
            None if self._agree == "never" else about,
        )
        declared = self.wrapped.reductions
        found = {name: [numbers[name] for numbers in given if name in numbers] for name in sorted(names)}
        for name in own.keys() & found.keys():
            self._rank_weights[name] = rank_weight(own[name], [value for value, _ in found[name]])
        return {name: reduced(reduction_of(name, declared), there) for name, there in found.items() if there}

    def measure(self, state: State) -> Mapping[str, float]:
        return self._common_metrics(Topic.MEASURE, self.wrapped.measure(*self._given(Operation.MEASURE, state)))

    def measure_valid(self, state: State) -> Mapping[str, float]:
        """The metrics of all ranks together. One that had no batch, while others had, measures nothing."""
        given = self._given(Operation.MEASURE_VALID, state)
        if self._valid.of_any and not self._valid.own:
            self._blaming(self.wrapped.measure_nothing)(state)
            return self._common_metrics(Topic.MEASURE_VALID, {})
        return self._common_metrics(Topic.MEASURE_VALID, self.wrapped.measure_valid(*given))

    def _common_metrics(self, topic: Topic, own: Mapping[str, float]) -> Mapping[str, float]:
        """The means by what each rank's metrics weigh: what its workload says, or what its batches counted."""
        weights = self.wrapped.metric_weights
        numbers: Numbers = {
            name: (float(value), float(weights.get(name, self._counted(name)))) for name, value in own.items()
        }
        given = self._meeting.numbers(topic, numbers, own)
        found = sorted({name for of_rank in given for name in of_rank})
        return {name: weighted_mean([of_rank[name] for of_rank in given if name in of_rank]) for name in found}

    def _counted(self, metric: str) -> float:
        return (self._train if metric.startswith("train_") else self._valid).counted

    # ------------------------------------------------------------------------------- other operations

    def fused(self, operations: tuple[Operation, ...]) -> Callable[[], Outcome] | None:
        if self._agree == "phase" or _NOT_FUSED.intersection(operations):
            return None
        run_fused: Callable[[], Outcome] | None = self.wrapped.fused(operations)
        if run_fused is None:
            return None
        fused = self._blaming(run_fused)
        if Operation.BACKWARD not in operations:
            return fused

        def counted() -> Outcome:
            outcome = fused()
            self._train.counted += self._train.size or 0.0
            return outcome

        return counted

    def __getattr__(self, name: str) -> Any:
        found = super().__getattr__(name)
        operation = _OPERATIONS.get(name)
        if operation is None or "_agree" not in self.__dict__:
            return found
        blaming = self._blaming(found)
        return blaming if self._agree != "phase" else lambda *state: blaming(*self._given(operation, *state))

    def _blaming(self, method: Callable[..., Any]) -> Callable[..., Any]:
        """The method, whose error is that of another rank if that failed while this one reduced gradients, say."""

        def blaming(*given: Any) -> Any:
            try:
                return method(*given)
            except RuntimeError as error:
                self._meeting.blame(error, getattr(method, "__name__", "an operation"))
                raise

        return blaming

    def _given(self, operation: Operation, *state: State) -> tuple[State, ...]:
        """What the workload's own method is given, after the ranks have compared where they are, if they do."""
        if self._agree == "phase" and state:
            about = {"next operation": operation.value, **control_state(state[0])}
            self._meeting.meet(Topic.OPERATION, about=about)
        return state if operation in self.wrapped.informed else ()

    def _control(self, state: State) -> About | None:
        return None if self._agree == "never" else control_state(state)
