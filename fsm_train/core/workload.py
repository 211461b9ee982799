"""What the interpreter asks of the world: operations, facts, hyper-parameters, commands.

Rule of this file: a workload decides nothing. Which operation comes next is in the table, and a command
is carried out as the callback gave it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, Protocol

from .arguments import check_state, kind_of
from .callback import Callback
from .errors import WorkloadError
from .laps import Lap
from .phase import Operation, Phase
from .reductions import Reduction
from .state import Hyper, State
from .table import Outcome
from .transition import Command

if TYPE_CHECKING:
    from .model_part import ModelPart

BRACKETS = frozenset(
    {
        Operation.PREPARE,
        Operation.REPOSITION,
        Operation.OPEN,
        Operation.TURN,
        Operation.OPEN_VALID,
        Operation.MEASURE_VALID,
        Operation.ABANDON,
        Operation.MEASURE,
        Operation.FINISH,
    }
)
"""The operations that begin and end something, and are always given the state."""


class Workload(Protocol):
    """What a training is carried out on: model, optimizer and data, or what stands in for them.

    There is a method for each `Operation`, called by its value: `prepare`, `open`, `fetch`, … Those in
    `informed` are given the state (a `State` costs microseconds, so only those that use it ask for it), the
    others nothing. Derive from it: the members with a body are optional. `Supervised` trains a torch model,
    `Scripted` measures what is written down, and `Recorded` what is in a log.

    >>> from fsm_train import run, start
    >>> from fsm_train.worlds.scripted import Scripted
    >>> class PrintSteps(Scripted):
    ...     def step(self):
    ...         print("step")
    ...         return super().step()
    >>> final = run(start(PrintSteps(batches=2), epochs=1))
    step
    step

    Attributes:
        informed: the operations that are given the state: at least `BRACKETS`.
        interrupt: the name of a signal that asks to leave, set by a signal handler, or None. The
            interpreter sets it to None when it has acted on it.
        hands_on_signals: whether what interrupts its run is handed on to the runs that this one is inside of.
        rank: the number of this process among those that train together. Logs and sinks are those of rank 0.
        shares_facts: whether to measure a fact takes several ranks. Sinks, which not all ranks have, then measure none.
        doing: within operations that are carried out as one, the operation under way.
        has_valid: whether there is validation data.
        metric_names: the names of the metrics that there will be, or None. A monitor is checked against them.
        sensors: the names of facts that this workload adds to the standard ones.
        batches_per_epoch: training batches in a pass over the data; None, the default, where that is not known.

    Example:
        >>> from fsm_train import Scripted, run, start
        >>> class Loud(Scripted):
        ...     def step(self, state=None):
        ...         print("step")
        ...         return super().step(state)
        >>> run(start(Loud(batches=2), epochs=1)).step
        step
        step
        2
    """

    interrupt: str | None
    hands_on_signals: bool = True
    doing: Operation | None = None
    shares_facts: bool = False
    rank: int = 0

    def across_ranks(self, callbacks: Sequence[Callback[Any]] | None = None) -> Workload:
        """What a run drives: with other ranks what all of them are told, and by default this workload itself.

        Args:
            callbacks: of the run; None where there is none, as in an evaluation.
        """
        return self

    @property
    def informed(self) -> Set[Operation]:
        return BRACKETS

    @property
    def has_valid(self) -> bool: ...

    @property
    def sensors(self) -> Set[str]: ...

    @property
    def metric_names(self) -> Set[str] | None:
        """The metrics that there will be, such as "valid_loss"; None if that is not known.

        A name that ends with an asterisk, such as "valid_scores_*", stands for all that begin like it.
        """
        return None

    @property
    def players(self) -> Mapping[str, int]:
        """By name, those that take turns, and at each so-many-th batch they play; without turns none."""
        return {}

    @property
    def batches_per_epoch(self) -> int | None:
        return None

    @property
    def model_parts(self) -> Sequence[ModelPart]:
        """What the model consists of, with the parameters of each part: for people. By default, nothing."""
        return ()

    @property
    def reductions(self) -> Mapping[str, Reduction]:
        """How each of the `sensors` becomes one number of several ranks; those that are left out are means."""
        return {}

    @property
    def known_sizes(self) -> tuple[int, float, float] | None:
        """Of the pass over the training data that was opened last: its batches, what each counts, what the last counts.

        None, the default, where that is not known. Ranks that all know need not ask each other for each batch.
        """
        return None

    @property
    def known_valid_sizes(self) -> tuple[int, float, float] | None:
        """The same of the validation data."""
        return None

    @property
    def whole_data(self) -> tuple[float, float]:
        """A number for what the training data are, and one for the validation data, to notice ranks that read the same.

        0, the default, where a rank reads its share of them, or that is not known.
        """
        return 0.0, 0.0

    @property
    def metric_weights(self) -> Mapping[str, float]:
        """What the metrics measured last weigh as means, beside those of other ranks.

        Those that are left out weigh what the batches counted.
        """
        return {}

    @property
    def notes(self) -> Sequence[str]:
        """What went wrong in this call of `run` beside the training, such as a checkpoint that was not written."""
        return ()

    def hyper(self) -> Mapping[str, Hyper]:
        """The hyper-parameters as they are now: one value, or a tuple of one per parameter group.

        They are asked for when a call of `run` begins, after a command that `changes_hyper`, and after `finish`.
        """
        ...

    def set_hyper(self, changes: Mapping[str, Hyper]) -> None:
        """Set the named hyper-parameters, which exist, to these values, and no others."""
        ...

    def read(self, names: Set[str], state: State) -> Mapping[str, float]:
        """Measure the named facts, in one transfer from the device. One that cannot be known is left out."""
        ...

    def carry_out(self, command: Command, state: State) -> None:
        """Do what the command says."""
        ...

    def bound(self, command: Command, phase: Phase) -> Callable[[], object] | None:
        """A function that carries this command out at this phase and needs no state; None, the default, if it does.

        It is asked for where the same decision will come many times, and saves the state that is made for it.
        """
        return None

    def carries(self, kind: type[Command]) -> bool:
        """Whether commands of this type can be carried out."""
        return True

    def refuses(self, kind: type[Command]) -> str:
        """Why commands of this type cannot go with how this workload trains; "" if they can."""
        return ""

    def snapshot(self) -> object:
        """All that a training changes, to be given to `put_back`."""
        ...

    def put_back(self, snapshot: Any) -> None:
        """Be again as when the snapshot was taken; it can be put back more than once."""
        ...

    def set_rank_weight(self, weight: float) -> None:
        """Let the loss of the batch under way be multiplied by this before backward, not where it is measured.

        So the mean of the gradients of several ranks is that of their union. By default nothing happens.
        """
        return

    def scheduler_length(self, make: Callable[[Any], Any]) -> tuple[str, tuple[int, int | None]] | None:
        """The scheduler of torch that `make` makes, in words, the fewest units that it needs, and its end if any.

        None where that is not known. Nothing of the workload changes.
        """
        return None

    def set_aside(self) -> AbstractContextManager[None]:
        """Keep the batch under way, and give it back when this context ends: for an evaluation in the middle of it."""
        return nullcontext()

    def evaluate_on(self, data: Any) -> AbstractContextManager[None]:
        """Let a validation use these data until this context ends, or its own with None, and change nothing else.

        Raises:
            WorkloadError: they are no batches; by default, any are given.
        """
        if data is not None:
            raise WorkloadError(f"{kind_of(self)} measures its own data alone: write evaluate(work), without data")
        return nullcontext()

    def undisturbed(self) -> AbstractContextManager[None]:
        """Put the random generators back when this context ends: a sink that draws changes no training."""
        return nullcontext()

    def reserve(self, folders: Set[str]) -> AbstractContextManager[None]:
        """Hold the folders that the callbacks of a call of `run` write to, until this context ends.

        Raises:
            CheckpointError: one cannot be written to, or another run writes to it.
        """
        return nullcontext()

    def fused(self, operations: tuple[Operation, ...]) -> Callable[[], Outcome] | None:
        """One function for a sequence of operations between which no callback or sink looks, or None.

        It answers what the operation among them that has an answer would: a fetch, or a step.
        """
        return None

    def laps(self, operations: tuple[Operation, ...]) -> Callable[[Lap], None] | None:
        """A function that takes whole steps in a row, each a fetch and these operations, or None, the default.

        It is asked for where nobody looks at a batch, and called at the end of one: `take_laps` of `core/laps.py`, with
        a fetch and a step of the workload.
        """
        return None

    # The operations; what each is for is written at `Operation`.
    def prepare(self, state: State) -> None: ...
    def reposition(self, state: State) -> None: ...
    def open(self, state: State) -> None: ...
    def fetch(self) -> float | None:
        """Fetch the next training batch; what it counts (its samples, say), or None at the end of the epoch's data.

        A whole number is an int. A batch that counts 0 is left out: the machine raises SKIP_BATCH itself.
        """
        ...

    def turn(self, state: State) -> None:
        """The turn of `state.player` begins: give it the batch as it was fetched. Here nothing: without players."""
        return

    def forward(self) -> None: ...
    def loss(self) -> None: ...
    def discard(self) -> None:
        """The batch under way is left out after its forward pass: undo what that changed. Here nothing."""

    def backward(self) -> None: ...
    def unscale(self) -> None: ...
    def step(self) -> bool:
        """Take the optimizer's step; False if a gradient scaler held it back."""
        ...

    def zero(self) -> None: ...
    def open_valid(self, state: State) -> None: ...
    def fetch_valid(self) -> float | None:
        """The same for a validation batch. One that counts 0 is passed over."""
        ...

    def evaluate(self) -> None: ...
    def stand_by(self) -> None:
        """Do what the other ranks need while they evaluate a batch, of a validation in which this one has none now."""
        return

    def measure_nothing(self, state: State) -> None:
        """End a validation in which this rank had no batch, and do what the others need who measure it."""
        self.abandon(state)

    def measure_valid(self, state: State) -> Mapping[str, float]:
        """End the validation; its metrics by name (`valid_loss`, …)."""
        ...

    def abandon(self, state: State) -> None: ...
    def measure(self, state: State) -> Mapping[str, float]:
        """The training metrics of the epoch by name (`train_loss`, …)."""
        ...

    def finish(self, state: State) -> None: ...


def workload_of(state: State, call: str) -> Workload:
    """The workload of a state that a run begins with.

    Raises:
        TypeError: it is no state. `call` is what to write.
        ValueError: it has no workload.
    """
    check_state(state, call)
    work: Workload | None = state.workload
    if work is None:
        raise ValueError(
            "this state has no workload: a run begins with start(workload, …), or with what an earlier run returned. "
            "(Pickle leaves the workload out: in another process, restore(…) a checkpoint, or train from start)"
        )
    return work
