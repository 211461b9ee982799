"""A line of a log as JSON, in few calls.

Rule of this file: its bytes are those of `line_of` with the facts and the course. What is the same object as in the
line before is not encoded again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import blake2b
from operator import itemgetter

import orjson

from ..core.state import Hyper, State
from ..core.turns import NO_PLAYERS
from ..core.values import FrozenMap
from ..encoding import Json, flag_names, numbers
from .lines import DIGEST_BYTES, EVENT, hyper_of, line_of

_seldom = itemgetter("batches_over", "exhausted", "reason", "resume_at", "error", "players")
_NONE_OF_THEM = (False, False, "", None, "", NO_PLAYERS)
"""What of a state has a key only in some lines."""


class LineEncoder:
    """Encodes the lines of one log, one after the other."""

    def __init__(self) -> None:
        self._hyper: Mapping[str, Hyper] = FrozenMap()
        self._metrics: Mapping[str, float] = FrozenMap()
        self._hyper_json = self._metrics_json = orjson.Fragment(b"{}")

    def encode(self, seq: int, state: State, answers: Json, facts: Json, course: Sequence[Json]) -> bytes:
        """The line without its digest.

        Args:
            seq: the number of the line in the log.
            state: the state after the answers.
            answers: as JSON, or as a fragment of it.
            facts: as JSON; those of the state that are logged.
            course: what happened since the line before.

        Raises:
            TypeError: a metric is no real number.
        """
        values = state.__dict__
        if _seldom(values) != _NONE_OF_THEM:
            line = {"seq": seq, **line_of(state, answers)}
        else:
            if values["hyper"] is not self._hyper:
                self._keep_hyper(values["hyper"])
            if values["metrics"] is not self._metrics:
                self._keep_metrics(values["metrics"])
            line = {  # written out: this is done for almost every line
                "seq": seq,
                "epoch": values["epoch"],
                "batch": values["batch"],
                "iteration": values["iteration"],
                "step": values["step"],
                "samples": values["samples"],
                "pending": values["pending"],
                "valid_batch": values["valid_batch"],
                "validated_at": values["validated_at"],
                "flags": flag_names(values["flags"]),
                "hyper": self._hyper_json,
                "metrics": self._metrics_json,
            }
            if answers:
                line["answers"] = answers
        line["facts"] = facts
        if course:
            line["course"] = course
        line["event"] = EVENT[values["phase"]]
        return orjson.dumps(line)

    def _keep_hyper(self, hyper: Mapping[str, Hyper]) -> None:
        self._hyper, self._hyper_json = hyper, orjson.Fragment(orjson.dumps(hyper_of(hyper)))

    def _keep_metrics(self, metrics: Mapping[str, float]) -> None:
        self._metrics, self._metrics_json = metrics, orjson.Fragment(orjson.dumps(numbers(metrics)))


_PLACE = b'{"seq":%d,"epoch":%d,"batch":%d,"iteration":%d,"step":%d,"samples":%d,"pending":%d,"valid_batch":%d,'


def begins_as(line: bytes, seq: int, state: State) -> bool:
    """Whether the line begins with the counters of this state up to `valid_batch`, all of them whole numbers."""
    at = state.__dict__
    counters = at["epoch"], at["batch"], at["iteration"], at["step"], at["samples"], at["pending"], at["valid_batch"]
    return line.startswith(_PLACE % (seq, *counters))


def line_of_file(before: bytes, body: bytes, end: int) -> tuple[bytes, bytes]:
    """The digest of a line, and the line as it is in a file.

    Args:
        before: the digest of the line before; b"" for the first line.
        body: the line as JSON, without its digest.
        end: the length of the last part of the body, which comes after the digest: a comma, the event and a brace.
    """
    digits = blake2b(before + body, digest_size=DIGEST_BYTES).hexdigest().encode()
    return digits, b'%b,"digest":"%b"%b\n' % (body[:-end], digits, body[-end:])
