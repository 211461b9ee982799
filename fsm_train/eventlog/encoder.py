"""A line of a log as JSON, in few calls.

Rule of this file: its bytes are those of `line_of` with the facts and the course. What is the same object as in the
line before is not encoded again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from hashlib import blake2b
from operator import itemgetter

import orjson

from ..core.phase import Phase
from ..core.state import Hyper, State
from ..core.transition import Transition
from ..core.turns import NO_PLAYERS
from ..core.values import FrozenMap
from ..encoding import Json, flag_names, numbers
from .lines import DIGEST_BYTES, EVENT, AnswerCache, answers_of, hyper_of, line_of

_seldom = itemgetter("batches_over", "exhausted", "reason", "resume_at", "error", "players")
_NONE_OF_THEM = (False, False, "", None, "", NO_PLAYERS)
"""What of a state has a key only in some lines."""

_COUNTERS = b'{"seq":%d,"epoch":%d,"batch":%d,"iteration":%d,"step":%d,"samples":%d,"pending":%d,"valid_batch":%d,'
_ENDS: Mapping[Phase, bytes] = {phase: b',"event":"%b"}' % phase.value.encode() for phase in Phase}
"""By phase, what is last in a line: in a file, what comes after the digest."""


class LineEncoder:
    """Encodes the lines of one log, one after the other."""

    def __init__(self) -> None:
        self._hyper: Mapping[str, Hyper] = FrozenMap()
        self._metrics: Mapping[str, float] = FrozenMap()
        self._hyper_json = self._metrics_json = orjson.Fragment(b"{}")

    def encode(self, seq: int, state: State, answers: bytes, facts: Json, course: Sequence[Json]) -> bytes:
        """The line without its digest.

        Args:
            seq: the number of the line in the log.
            state: the state after the answers.
            answers: as JSON; b"" for none.
            facts: those of the state that are logged, to be encoded.
            course: what happened since the line before.

        Raises:
            TypeError: a metric is no real number.
        """
        line = self.head(seq, state, answers)
        line["facts"] = facts
        if course:
            line["course"] = course
        line["event"] = EVENT[state.phase]
        return orjson.dumps(line)

    def head(self, seq: int, state: State, answers: bytes) -> dict[str, Json]:
        """What comes before the facts in the line, to be encoded."""
        at = state.__dict__
        if _seldom(at) != _NONE_OF_THEM:
            return {"seq": seq, **line_of(state, orjson.Fragment(answers) if answers else {})}
        if at["hyper"] is not self._hyper:
            self._keep_hyper(at["hyper"])
        if at["metrics"] is not self._metrics:
            self._keep_metrics(at["metrics"])
        line = {  # written out: this is done for almost every line
            "seq": seq,
            "epoch": at["epoch"],
            "batch": at["batch"],
            "iteration": at["iteration"],
            "step": at["step"],
            "samples": at["samples"],
            "pending": at["pending"],
            "valid_batch": at["valid_batch"],
            "validated_at": at["validated_at"],
            "flags": flag_names(at["flags"]),
            "hyper": self._hyper_json,
            "metrics": self._metrics_json,
        }
        if answers:
            line["answers"] = orjson.Fragment(answers)
        return line

    def _keep_hyper(self, hyper: Mapping[str, Hyper]) -> None:
        self._hyper, self._hyper_json = hyper, orjson.Fragment(orjson.dumps(hyper_of(hyper)))

    def _keep_metrics(self, metrics: Mapping[str, float]) -> None:
        self._metrics, self._metrics_json = metrics, orjson.Fragment(orjson.dumps(numbers(metrics)))


def begins_as(line: bytes, seq: int, state: State) -> bool:
    """Whether the line begins with the counters of this state up to `valid_batch`, all of them whole numbers."""
    at = state.__dict__
    counters = at["epoch"], at["batch"], at["iteration"], at["step"], at["samples"], at["pending"], at["valid_batch"]
    return line.startswith(_COUNTERS % (seq, *counters))


class AnswerEncoder:
    """Encodes the answers to a state; those of a decision that is kept, the same mapping each time, once.

    Args:
        to_json: gives the answers of no such decision as JSON.
    """

    def __init__(self, to_json: Callable[[Mapping[str, Transition]], Json] = answers_of) -> None:
        self._to_json = to_json
        # What was encoded is held, so that no other object can get its id.
        self._kept: dict[int, tuple[object, tuple[bytes, bool]]] = {}

    def encode(self, answers: Mapping[str, Transition]) -> tuple[bytes, bool]:
        """The answers as JSON, b"" for none, and whether one of them asks for a checkpoint."""
        if not answers:
            return b"", False
        kept = self._kept.get(id(answers))
        if kept is not None:
            return kept[1]
        encoded = orjson.dumps(self._to_json(answers)), asks_for_a_checkpoint(answers)
        if type(answers) is FrozenMap:
            if len(self._kept) >= AnswerCache.SIZE:
                self._kept.clear()
            self._kept[id(answers)] = answers, encoded
        return encoded


def asks_for_a_checkpoint(answers: Mapping[str, Transition]) -> bool:
    """Whether one is written after this line, which is no use without the log up to it."""
    for answer in answers.values():  # no generator: this is done for each line
        for command in answer.commands:
            if command.last:
                return True
    return False


def line_of_file(before: bytes, body: bytes, phase: Phase) -> tuple[bytes, bytes]:
    """The digest of a line, and the line as it is in a file.

    Args:
        before: the digest of the line before; b"" for the first line.
        body: the line as JSON, without its digest.
        phase: of the line.
    """
    digits = blake2b(before + body, digest_size=DIGEST_BYTES).hexdigest().encode()
    end = _ENDS[phase]
    return digits, b'%b,"digest":"%b"%b\n' % (body[: -len(end)], digits, end)
