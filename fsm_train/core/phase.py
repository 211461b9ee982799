"""The vocabulary of the machine: where it can stand, what it can do, and what can be asked of it.

Rule of this file: names only. What leads where is in `table.py`.
"""

from __future__ import annotations

import enum
import functools


class Phase(enum.Enum):
    """Where the machine stands when callbacks are consulted; the value is the hook's name.

    READY and the final phases DONE, SUSPENDED and FAILED belong to the state before and after a
    run: no callback is consulted there.

    >>> Phase("epoch_end")
    <Phase.EPOCH_END: 'epoch_end'>
    >>> Phase.LOSS_END.value
    'loss_end'
    """

    READY = "ready"
    SETUP = "setup"
    TRAIN_BEGIN = "train_begin"
    EPOCH_BEGIN = "epoch_begin"
    BATCH_BEGIN = "batch_begin"
    LOSS_BEGIN = "loss_begin"
    LOSS_END = "loss_end"
    BACKWARD_END = "backward_end"
    STEP_BEGIN = "step_begin"
    STEP_END = "step_end"
    BATCH_END = "batch_end"
    VALID_BEGIN = "valid_begin"
    VALID_BATCH_BEGIN = "valid_batch_begin"
    VALID_BATCH_END = "valid_batch_end"
    VALID_END = "valid_end"
    EPOCH_END = "epoch_end"
    TRAIN_END = "train_end"
    SUSPEND = "suspend"
    TEARDOWN = "teardown"
    DONE = "done"
    SUSPENDED = "suspended"
    FAILED = "failed"

    # Identity is equality for members of an enum; the default hash goes through Python code.
    __hash__ = object.__hash__


class Junction(enum.Enum):
    """A branch of the machine where no callback is consulted."""

    NO_EPOCH = "no_epoch"  # a validation was asked for before the first epoch
    FETCHED = "fetched"  # a training batch was asked for, and came or did not come
    NEXT_TURN = "next_turn"  # the turn of another player begins: at this batch, or for the window that it left
    BATCHES_OVER = "batches_over"  # no further training batch in this epoch
    VALID_FETCHED = "valid_fetched"  # the same for a batch of the validation
    VALID_ABANDONED = "valid_abandoned"  # where an abandoned validation starts again
    RESUMED = "resumed"  # stands for the place in `State.resume_at`, entered as if never left

    __hash__ = object.__hash__


Place = Phase | Junction


def place_name(place: Place) -> str:
    """The name in the table and in drawings; a junction's is in parentheses."""
    return f"({place.name})" if isinstance(place, Junction) else place.name


FINAL = (Phase.DONE, Phase.SUSPENDED, Phase.FAILED)
EPOCH_PHASES = frozenset({Phase.EPOCH_BEGIN, Phase.EPOCH_END, Phase.VALID_BEGIN, Phase.VALID_END})
BATCH_PHASES = frozenset(
    {
        Phase.BATCH_BEGIN,
        Phase.LOSS_BEGIN,
        Phase.LOSS_END,
        Phase.BACKWARD_END,
        Phase.STEP_BEGIN,
        Phase.STEP_END,
        Phase.BATCH_END,
        Phase.VALID_BATCH_BEGIN,
        Phase.VALID_BATCH_END,
    }
)
TURN_PHASES = BATCH_PHASES - {Phase.VALID_BATCH_BEGIN, Phase.VALID_BATCH_END}
"""Where a training batch is under way, or a step for a leftover window."""

CONSULTED = tuple(phase for phase in Phase if phase is not Phase.READY and phase not in FINAL)


class Operation(enum.Enum):
    """What the real world does while an edge is crossed; the value is the workload's method."""

    PREPARE = "prepare"  # this call of `run` begins: seed, device, what was asked of the workload
    REPOSITION = "reposition"  # go back to where the training was suspended
    OPEN = "open"  # begin an epoch: train mode, a new pass over the training data
    FETCH = "fetch"  # the next training batch; its size, or None when there is none left
    TURN = "turn"  # the turn of `State.player` begins, with the batch as it was fetched
    FORWARD = "forward"
    LOSS = "loss"
    DISCARD = "discard"  # the batch is left out after its forward pass: undo what that changed, such as buffers
    BACKWARD = "backward"
    UNSCALE = "unscale"  # bring the gradients of mixed precision back to their true size
    STEP = "step"  # the optimizer's step; False when a gradient scaler held it back
    ZERO = "zero"
    OPEN_VALID = "open_valid"  # begin a validation: eval mode, a new pass over the validation data
    FETCH_VALID = "fetch_valid"
    EVALUATE = "evaluate"
    MEASURE_VALID = "measure_valid"  # end a validation: its metrics, and everything as it was
    ABANDON = "abandon"  # end a validation without metrics, and everything as it was
    MEASURE = "measure"  # the training metrics of the epoch
    FINISH = "finish"  # this call of `run` ends: undo what was put in place

    __hash__ = object.__hash__


class Flag(enum.Flag):
    """What a callback can ask of the machine: it raises a flag, and only the machine lowers it.

    >>> flags = Flag.SKIP_STEP | Flag.SKIP_ZERO
    >>> Flag.SKIP_STEP in flags, Flag.STOP_TRAINING in flags
    (True, False)
    """

    NONE = 0
    SKIP_BATCH = enum.auto()  # straight to BATCH_END: no forward, backward, step or zero, and in no metric
    SKIP_BACKWARD = enum.auto()  # this batch contributes no gradient and is in no metric: on to BATCH_END
    SKIP_STEP = enum.auto()  # no optimizer step
    SKIP_ZERO = enum.auto()  # keep the gradients
    VALIDATE = enum.auto()  # validate now, in the middle of the epoch or before the first one
    SKIP_VALID = enum.auto()  # no validation at the end of this epoch
    STOP_VALID = enum.auto()  # no further batch in this validation
    STOP_EPOCH = enum.auto()  # no further batch in this epoch
    STOP_TRAINING = enum.auto()  # finish this batch, close the epoch, end
    SUSPEND = enum.auto()  # leave at the end of this batch, to resume later

    __hash__ = object.__hash__


@functools.cache
def union(a: Flag, b: Flag) -> Flag:
    """Both together: `a | b`, at the price of looking it up."""
    return a | b


# How long a flag stays up, if nothing lowers it sooner; table.py says on which edges each scope ends.
BATCH_FLAGS = Flag.SKIP_BATCH | Flag.SKIP_BACKWARD | Flag.SKIP_STEP | Flag.SKIP_ZERO
EPOCH_FLAGS = Flag.SKIP_VALID | Flag.STOP_EPOCH
VALID_FLAGS = Flag.VALIDATE | Flag.STOP_VALID
STOP_FLAGS = Flag.STOP_TRAINING | Flag.SUSPEND  # those whose reason the state keeps


def term_name(term: object) -> str:
    """A term of a guard in words: the flags of which one is raised, or the name of a predicate."""
    if isinstance(term, Flag):
        return " | ".join(str(flag.name) for flag in term)
    return str(getattr(term, "__name__", term)).replace("_", " ")
