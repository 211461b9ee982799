"""What a callback declares that it reads, and the decisions that are kept by it.

Rule of this file: pure. A decision is kept only where it follows from what is compared when it comes again: the place
and the flags, the few values that are read, and the memories of those who decided.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .callback import Callback
from .declarations import COMPARED
from .merge import Answer, Merged
from .phase import STOP_FLAGS, Flag
from .state import Draft, State
from .transition import UNCHANGED, Command, Transition
from .values import EMPTY, FrozenMap

MOST = 256
"""The decisions that are kept at one place."""


def compared_by(callbacks: Sequence[Callback[Any]]) -> Callable[[Draft], object] | None:
    """The function that gives what these callbacks read, to be compared; None if one of them does not declare it."""
    names: set[str] = set()
    for callback in callbacks:
        if callback.reads is None:
            return None
        names |= callback.reads
    fields = [field for name in sorted(names) for field in COMPARED.get(name, ())]
    return operator.attrgetter(*fields) if fields else _nothing


def _nothing(at: Draft) -> None:
    return None


class KeptDecision:
    """What came of asking the callbacks of a place, as what it adds to the state.

    Attributes:
        memories: of those who were asked, by name. They are compared by identity: 1 is not True, and NaN is NaN.
        all_memories: the mapping in which they were seen last.
        flags: those that are raised after it.
        added: the memories that it sets.
        commands: what is carried out, each with the function that does it without a State, or None.
        answers: of those who answered, by name: the same mapping each time, for those who watch.
        acts: whether it changes or does anything.
    """

    __slots__ = ("acts", "added", "all_memories", "answers", "commands", "flags", "memories")

    def __init__(
        self,
        memories: Mapping[str, object],
        before: Draft,
        flags: Flag,
        added: Mapping[str, object],
        commands: Sequence[tuple[Command, Callable[[], object] | None]],
        answers: Mapping[str, Transition] = EMPTY,
    ) -> None:
        self.memories = memories
        self.all_memories = before.memory
        self.acts = flags is not before.flags or bool(added or commands)
        self.flags = flags
        self.added = added
        self.commands = commands
        self.answers = answers

    def holds(self, memory: Mapping[str, object]) -> bool:
        """Whether those who were asked remember what they did then."""
        if memory is self.all_memories:
            return True
        if any(memory.get(name, UNCHANGED) is not value for name, value in self.memories.items()):
            return False
        self.all_memories = memory
        return True


NO_DECISIONS: Mapping[object, KeptDecision] = EMPTY


def kept_decision(
    state: State,
    callbacks: Sequence[Callback[Any]],
    answers: Sequence[Answer],
    merged: Merged,
    bind: Callable[[Command], Callable[[], object] | None],
) -> KeptDecision | None:
    """The decision that these answers to this state were merged into, to be kept; None if it would not be the same.

    One that stops the training has a reason, one that sets hyper-parameters depends on those that there are, and so
    does a command that may change them.
    """
    changes, hyper, commands = merged
    if hyper or any(answer.flags & STOP_FLAGS for _, answer in answers):
        return None
    if any(command.changes_hyper is not False for command in commands):
        return None
    memory = state.memory
    added = {
        c.name: a.memory
        for c, a in answers
        if a.memory is not UNCHANGED and a.memory is not memory.get(c.name, UNCHANGED)
    }
    flags = changes.get("flags", state.flags)
    assert isinstance(flags, Flag)
    return KeptDecision(
        {callback.name: memory[callback.name] for callback in callbacks},
        state,
        flags,
        added,
        tuple((command, bind(command)) for command in commands),
        FrozenMap({callback.name: answer for callback, answer in answers}),
    )
