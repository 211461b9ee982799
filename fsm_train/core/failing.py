"""A training that fails: where the machine goes, what it leaves whole, and what it says of it.

Rule of this file: pure functions of the state in which it failed, and of the callbacks. None of them is on the path of
a batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import attrs

from .callback import Callback
from .errors import WorkloadError
from .phase import BATCH_PHASES, Flag, Operation, Phase, Place
from .state import Hyper, State
from .table import FAILED_RESUMES_AT, FALLS_AFTER, ON_ENTRY, RESUMES_AT
from .transition import Command
from .turns import NO_PLAYERS, Players

_IN_A_BATCH = frozenset({phase for phase in BATCH_PHASES if FAILED_RESUMES_AT[phase] is Phase.BATCH_END})
_AFTER_BACKWARD = frozenset({Phase.BACKWARD_END, Phase.STEP_BEGIN})
_BEFORE_FORWARD = frozenset({None, Operation.DISCARD})
_PARTLY_STEPPED = frozenset({Operation.STEP, Operation.ZERO})
_IN_PIECES = frozenset({Operation.FORWARD, Operation.LOSS, Operation.BACKWARD})  # what micro_batches cuts
_ADVICE_ON_MEMORY = (
    " Memory ran out: the callback micro_batches() computes a batch in pieces, halved until there is room for them, "
    "with the gradient of the whole batch."
)


@attrs.frozen(eq=False)
class Boundary:
    """What held at the last place where the training could have been left.

    Attributes:
        memory, hyper, reason, flags, pending, batches_over, players: as they were there.
    """

    memory: Mapping[str, object]
    hyper: Mapping[str, Hyper]
    reason: str
    flags: Flag
    pending: int
    batches_over: bool
    players: Players = NO_PLAYERS


@attrs.frozen(eq=False)
class Failure:
    """Where a training failed.

    Attributes:
        phase: the last phase that it reached.
        doing: the operation that failed; None if it was none.
        deciding: whether it failed while callbacks were consulted at this phase, or did what they asked for.
        state: of that moment.
        boundary: the last place where it could have been left; None if there was none in this call of `run`.
        commands: those that were carried out since.
    """

    phase: Phase
    doing: Operation | None
    deciding: bool
    state: State
    boundary: Boundary | None = None
    commands: Sequence[Command] = ()

    @property
    def in_a_batch(self) -> bool:
        """Whether a training batch was under way that had taken no step."""
        draining = self.state.batches_over
        return self.phase in _IN_A_BATCH - {Phase.STEP_END, Phase.BATCH_END} and not draining

    @property
    def fetching(self) -> bool:
        """Whether it failed on the way to a training batch."""
        return self.doing in (Operation.OPEN, Operation.FETCH)

    @property
    def after_forward(self) -> bool:
        """Whether the batch under way had begun its forward pass."""
        return self.in_a_batch and (self.phase is not Phase.BATCH_BEGIN or self.doing not in _BEFORE_FORWARD)

    @property
    def after_backward(self) -> bool:
        """Whether the batch under way had begun its backward pass."""
        begun = self.phase in _AFTER_BACKWARD or self.doing in {Operation.BACKWARD, Operation.UNSCALE, *_PARTLY_STEPPED}
        return self.in_a_batch and begun

    @property
    def pending(self) -> int:
        """Backward passes of whole batches whose gradients wait for a step."""
        if not self.in_a_batch:
            return self.state.pending
        return self.boundary.pending if self.boundary else 0

    @property
    def between_turns(self) -> bool:
        """Whether the last place where it could have been left was between two turns at the batch under way."""
        return self.boundary is not None and bool(self.boundary.players.coming)


def after_failure(place: Place, doing: Operation | None) -> tuple[Phase, bool]:
    """The phase that a training enters after it failed here, and whether callbacks are consulted there.

    It is torn down once: callbacks are consulted at TEARDOWN unless one of them failed there, and what was
    put in place is undone unless that is what failed.
    """
    if doing is Operation.FINISH:
        return Phase.FAILED, True
    return Phase.TEARDOWN, place is not Phase.TEARDOWN


def may_be_saved(callbacks: Iterable[Callback[Any]]) -> bool:
    """Whether one of these may save what is left where a training fails: it may give a command at TEARDOWN.

    >>> from fsm_train.callbacks import checkpoint, early_stopping
    >>> may_be_saved([early_stopping()]), may_be_saved([checkpoint("runs", on_failure=True)])
    (False, True)
    """
    return any(Phase.TEARDOWN in callback.at and callback.commands != frozenset() for callback in callbacks)


def resumes_at(failure: Failure) -> Place | None:
    """Where a training that failed can resume: at the end of what is whole. None if nothing is."""
    state = failure.state
    if failure.phase is Phase.SUSPEND:
        return state.resume_at
    place = FAILED_RESUMES_AT.get(failure.phase)
    if place is None or (state.iteration == 0 and not failure.between_turns):
        return None
    if failure.in_a_batch and state.batch == 0 and not failure.between_turns:
        return Phase.EPOCH_END  # of the epoch before
    return place


def whole_state(state: State) -> tuple[State, tuple[str, ...]]:
    """The state to save at TEARDOWN of a failed training: where it resumes, and what of that is not exact.

    The batch that failed is trained again: what callbacks remembered and set in it is forgotten, so that they
    can decide the same again. A batch whose step was taken is over.

    Raises:
        WorkloadError: nothing is whole, since the training failed before a batch was.
    """
    failure: Failure = state.failure
    now, place = failure.state, resumes_at(failure)
    if place is None:
        raise WorkloadError(
            f"there is nothing to save: this training failed at {failure.phase.value}, before a batch of this call of "
            "run was whole"
        )
    back = failure.in_a_batch or failure.phase in (Phase.EPOCH_BEGIN, Phase.TRAIN_END)
    boundary = (
        failure.boundary
        if back and failure.boundary
        else Boundary(now.memory, now.hyper, now.reason, now.flags, now.pending, now.batches_over, now.players)
    )
    memory = {
        name: value if value is not now.memory.get(name) else boundary.memory.get(name, value)
        for name, value in state.memory.items()
    }
    draft = attrs.evolve(
        now,
        phase=Phase.TEARDOWN,
        failure=failure,
        resume_at=place,
        pending=failure.pending,
        batches_over=_batches_over(failure, place),
        players=boundary.players,
        flags=boundary.flags & ~FALLS_AFTER[Operation.ABANDON] if place not in RESUMES_AT else boundary.flags,
        memory=memory,
        hyper=boundary.hyper,
        reason=boundary.reason,
    ).draft()
    if failure.phase is Phase.STEP_END and not now.batches_over:
        ON_ENTRY[Phase.BATCH_END](draft, None)
    return draft.state(draft.phase, draft.flags, draft.facts), tuple(_inexact(failure, undone=back))


def _batches_over(failure: Failure, place: Place) -> bool:
    """Whether the batches of the epoch are over where it resumes; at BATCH_END that is found out again."""
    if place in (Phase.BATCH_END, Phase.EPOCH_END):
        return place is Phase.EPOCH_END
    if place is Phase.VALID_END and failure.doing and failure.boundary:  # it was left, perhaps for the end of the epoch
        return failure.boundary.batches_over
    return failure.state.batches_over


def _inexact(failure: Failure, *, undone: bool) -> list[str]:
    """What the machine knows to be not as it was where the training resumes."""
    found = []
    if failure.doing in _PARTLY_STEPPED:
        found.append(
            f"the weights: the training failed by {failure.doing.value}, and some of them may have taken the step"
        )
    if failure.deciding and not undone:
        found.append(
            f"what callbacks asked for at {failure.phase.value}, where the training failed: it is not done, or in part"
        )
    if undone and (names := sorted({type(command).__name__ for command in failure.commands if _lasts(command)})):
        found.append(f"what commands did after the last whole batch, and will do again: {', '.join(names)}")
    return found


def _lasts(command: Command) -> bool:
    """Whether something of the command may be left where its batch is trained again."""
    return command.useful_at is None or not BATCH_PHASES.issuperset(command.useful_at)


def where(state: State, doing: Operation | None, passed: Phase | None) -> str:
    """The note on an error that ended a training."""
    phase = passed or state.phase
    what = f"by {doing.value}, after {phase.value}" if doing else f"at {phase.value}"
    validation = f", validation batch {state.valid_batch}" if phase.value.startswith("valid_b") else ""
    return (
        f"Raised {what} of epoch {state.epoch}, batch {state.batch}, step {state.step}{validation}. "
        "Model and optimizer are as this left them; start(workload, …) begins a new training with them."
    )


def advice_on(error: BaseException, doing: Operation | None) -> str:
    """What helps against an error that the library has an answer to; "" for others.

    Torch is not imported here: that memory ran out is seen by the name and the words of the error.

    >>> advice_on(RuntimeError("CUDA out of memory."), Operation.STEP)
    ''
    """
    if doing not in _IN_PIECES or any("Memory ran out" in note for note in getattr(error, "__notes__", ())):
        return ""
    text = str(error).lower()
    is_memory = type(error).__name__ == "OutOfMemoryError" or "out of memory" in text or "can't allocate memory" in text
    return _ADVICE_ON_MEMORY if is_memory else ""
