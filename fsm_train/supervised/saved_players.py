"""What a checkpoint has of the players of an `Alternating`: read from a training, and restored to one.

The parts of the player that played last stand where those of a `Supervised` do, so that all that reads a checkpoint
reads them too. Those of the others are in "players", and the batch that turns are still to come at in "batch".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ..checkpoints.writing import Parts, find_unsafe
from ..core.errors import CheckpointError, FsmTrainError, WorkloadError
from ..core.state import State
from ..data.batches import to_device
from ..data.position import SuspendPoint
from ..data.sources import own_state
from .optimizer_state import load_exactly, unsaved_within, without_marks
from .own_states import states_loaded
from .param_groups import Members
from .saved_names import plain_parts
from .saved_optimizer import gradients_of, load_gradients, load_optimizer, optimizer_of
from .saved_parts import loss_has_state, restore_parts
from .saved_shape import check_shape
from .turn_taking import TurnTaking


def add_players(work: TurnTaking, parts: Parts, notes: tuple[str, ...], state: State) -> tuple[Parts, tuple[str, ...]]:
    """The parts with those of the other players, and of the batch under way if turns are still to come at it."""
    playing, others, scalers = work.playing.name, {}, {}
    with work.each_player() as players:
        for one in players:
            if work.precision is not None:
                work.precision.rescale(work.gradients())
                scalers[one.name] = work.precision.state()
            if one.name != playing:
                optimizer = without_marks(one.optimizer.state_dict())
                notes = (*notes, *unsaved_within(one.optimizer, optimizer, work.extra.values()))
                others[one.name] = {
                    "optimizer": optimizer,
                    "optimizer_of": optimizer_of(work),
                    "gradients": gradients_of(work),
                    "window": one.window.state(),
                    "loss": own_state(one.loss) if loss_has_state(work) else None,
                }
    parts["scaler"] = scalers or work.carried_over.scaler
    parts["players"] = {"playing": playing, "others": others}
    if state.players.coming and work.shared_batch is not None:
        if unsafe := find_unsafe(work.shared_batch, "the batch"):
            notes = (*notes, f"the batch that turns are still to come at: {unsafe}, and it is fetched again")
        else:
            parts["batch"] = work.shared_batch
    return parts, notes


def restore_players(work: TurnTaking, parts: Parts, state: State) -> tuple[str, ...]:
    """Restore all of it, or nothing; notes on what differs from the training that was saved.

    Raises:
        CheckpointError: no training has saved these parts.
        RuntimeError, WorkloadError: a model, a loss or an optimizer is another one, or the players are others.
    """
    check_shape(parts)
    parts = plain_parts(parts)
    saved = parts.get("players")
    if saved is None:
        raise WorkloadError("it was saved by a training without players, and this one has some")
    if {saved["playing"], *saved["others"]} != {*work.by_player} or state.players.all_every != work.players:
        raise WorkloadError(f"the players are {dict(work.players)}, and were {dict(state.players.all_every)}")
    of_losses = {name: own["loss"] for name, own in saved["others"].items() if own.get("loss") is not None}
    losses = [(f"the loss of {name}", work.by_player[name].loss, state) for name, state in of_losses.items()]
    with work.each_player(), _put_back_if_it_fails(work), states_loaded(losses):
        for name, own in saved["others"].items():
            work.switch_to(work.by_player[name])
            load_optimizer(work, own)
            load_gradients(work, own["gradients"])
            work.window.load(own["window"])
        work.switch_to(work.by_player[saved["playing"]])
        notes = restore_parts(work, parts, state)
    work.shared_batch = to_device(parts["batch"], work.device) if "batch" in parts else None
    return notes


@contextmanager
def _put_back_if_it_fails(work: TurnTaking) -> Iterator[None]:
    with work.each_player() as players:
        undo = [_undo(work, one.name) for one in players]
    try:
        yield
    except BaseException as error:
        for each in undo:
            each()
        if isinstance(error, FsmTrainError) or not isinstance(error, (KeyError, ValueError, TypeError, AttributeError)):
            raise
        raise CheckpointError(f"its parts are not what a training saves ({type(error).__name__}: {error})") from error


def _undo(work: TurnTaking, name: str) -> Callable[[], None]:
    one = work.by_player[name]
    members, state, window = Members.of(one.optimizer), one.optimizer.state_dict(), one.window.state()
    gradients = [(parameter, parameter.grad) for parameter in one.parameters]

    def undo() -> None:
        work.switch_to(one)
        members.put_back(one.optimizer)
        load_exactly(one.optimizer, state)
        work.read_parameters()
        one.window.load(window)
        for parameter, gradient in gradients:
            parameter.grad = gradient

    return undo


def batch_again(work: TurnTaking, point: SuspendPoint | None) -> None:
    """Fetch the batch again that turns are still to come at, and let the generators be as they were then."""
    work.fetch()
    if point is not None:
        point.generators.put_back()
