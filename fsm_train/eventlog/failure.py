"""What callbacks decide at TEARDOWN of a recorded training that failed.

Rule of this file: pure. A log does not say which operation failed, so a replay cannot run into the failure. The
state at TEARDOWN is made from the line and the state before it instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs

from ..core.callback import Callback
from ..core.merge import consult, decide
from ..core.phase import Flag, Phase
from ..core.state import State
from ..core.values import Facts
from ..encoding import Json
from .entry import Entry
from .errors import LogError
from .lines import answers_of, decode_numbers, decode_state, line_of


def decide_at_teardown(
    entry: Entry, before: State, callbacks: Sequence[Callback[Any]], path: str = ""
) -> tuple[State, dict[str, Json]]:
    """The state after TEARDOWN, and its line.

    Args:
        entry: the line of the log.
        before: the last state before the training failed.
        callbacks: the callbacks of the training.
        path: the path of the log, for errors.

    Raises:
        LogError: a counter of the line is negative, or it has turns of other players.
        CallbackError, ConflictError: as in a run.
    """
    try:
        recorded = decode_state(entry.body, Phase.TEARDOWN, before)
    except ValueError as error:
        raise LogError(str(error), path=path, line=entry.number) from error
    facts = Facts({"batch_size": before.fetched, **decode_numbers(entry.facts)})
    state = attrs.evolve(
        recorded, flags=Flag.NONE, facts=facts, hyper=before.hyper, metrics=before.metrics, reason=recorded.error
    )
    answers = consult([callback for callback in callbacks if Phase.TEARDOWN in callback.at], state)
    decided, _ = decide(state, answers, {callback.name: i for i, callback in enumerate(callbacks)})
    return decided, line_of(decided, answers_of({callback.name: answer for callback, answer in answers}))
