"""What a checkpoint says of its training, beside its manifest. Torch-free: the tensors are not loaded."""

from __future__ import annotations

from functools import partial

from ..core.errors import CheckpointError
from ..core.runs import epochs_trained
from ..core.state import State
from .history_files import read_history
from .manifest import STATE, Checkpoint, verified
from .state_json import LARGEST_JSON, state_of


def epoch_of(checkpoint: Checkpoint) -> int | None:
    """Epochs that had all their batches, by the verified state; None where that cannot be read."""
    try:
        return epochs_trained(control_in(checkpoint))
    except CheckpointError:
        return None


def control_in(checkpoint: Checkpoint) -> State:
    """The verified state, without the tensors.

    Raises:
        CheckpointError: it is damaged, or too large for a state.
    """
    if checkpoint.files[STATE][0] > LARGEST_JSON:
        raise CheckpointError(f"{checkpoint.path / STATE} is too large for a state")
    with verified(checkpoint, STATE) as file:
        control = file.read()
    return state_of(control, read_history(checkpoint.files, partial(verified, checkpoint)))
