"""How a command is carried out on a training, and what the training looks at again after it.

Rule of this file: what a command does is its handler's; here is what follows from each command.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from ..core.phase import BATCH_PHASES, Phase
from ..core.state import State
from ..core.transition import Command
from ..worlds.registry import handler_of, needs_state
from .structure_changes import carry_out_change


def carry_out(work: Any, command: Command, state: State) -> None:
    """Carry out the command, and read anew what it may have changed."""
    work.state = state
    if command.changes_modules:
        carry_out_change(work, command)
    else:
        handler_of(type(command))(work, command)
    if command.changes_hyper is not False:
        work.read_parameters()
    if work.carried_over.weights and state.phase not in BATCH_PHASES:
        work.carried_over.check_kept(work.modules)
    _note(work, command)


def bound(work: Any, command: Command, phase: Phase) -> Callable[[], object] | None:
    """The same as a call without a state, for a command of a batch whose handler needs none; None for others."""
    if command.changes_modules or phase not in BATCH_PHASES or needs_state(type(command)):
        return None
    return partial(_carry_out_again, work, handler_of(type(command)), command)


def _carry_out_again(work: Any, handler: Callable[[Any, Command], None], command: Command) -> None:
    handler(work, command)
    if work.gives_closure or work.whole_step is not None:
        _note(work, command)


def _note(work: Any, command: Command) -> None:
    if command.each_evaluation and work.gives_closure:
        work.for_each_evaluation.append(command)
    if work.whole_step is not None:
        work.whole_step.mark_stale()
