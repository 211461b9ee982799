"""A line of a log, split into its parts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ..core.values import EMPTY
from ..encoding import Json
from .lines import KEYS, OWN_KEYS


class Entry:
    """A line of a log, split into its parts, each of the form that a log has.

    Attributes:
        number: the number of the line in the file, from 1.
        seq: the number of the line in the log, from 0.
        event: the phase, or "header".
        digest: the digest of this line and all before it.
        body: the other keys of the log, without facts and course: what a replay makes again.
        facts: the measured values, as JSON.
        course: what happened since the line before, as JSON.
        bound: the keys that were bound to the logger.
        counts: whether the line belongs to the history that counts; False if it is superseded.
    """

    __slots__ = ("body", "bound", "counts", "course", "digest", "event", "facts", "number", "seq")

    def __init__(
        self,
        number: int,
        seq: int,
        event: str,
        digest: str,
        body: dict[str, Any],
        facts: Mapping[str, Json],
        course: list[list[Any]],
        bound: Mapping[str, Json] = EMPTY,
    ) -> None:
        self.number = number
        self.seq = seq
        self.event = event
        self.digest = digest
        self.body = body
        self.facts = facts
        self.course = course
        self.bound = bound
        self.counts = True


class LazyEntry(Entry):
    """A line whose inside is parsed, and checked, where its body is asked for.

    Its event, digest, facts and course are checked. A replay writes the line again; where that gives the same
    bytes, the rest of it was never of another form.

    Attributes:
        raw: the line, as it is in the file.
        head: the length of what comes before the facts.
        event_before, digest_before: of the line before.
    """

    __slots__ = ("_body", "_open", "digest_before", "event_before", "head", "raw")

    def __init__(
        self,
        number: int,
        seq: int,
        event: str,
        digest: str,
        facts: Mapping[str, Json],
        course: list[list[Any]],
        raw: bytes,
        head: int,
        event_before: str,
        digest_before: bytes,
        opened: Callable[[LazyEntry], Entry],
    ) -> None:
        self.number = number
        self.seq = seq
        self.event = event
        self.digest = digest
        self.facts = facts
        self.course = course
        self.bound = EMPTY
        self.counts = True
        self.raw = raw
        self.head = head
        self.event_before = event_before
        self.digest_before = digest_before
        self._open = opened
        self._body: dict[str, Any] | None = None

    @property
    def body(self) -> dict[str, Any]:  # type: ignore[override]
        """The other keys of the line.

        Raises:
            LogError: the line is damaged.
        """
        if self._body is None:
            whole = self._open(self)
            self._body, self.bound = whole.body, whole.bound
        return self._body


def open_line(entry: Entry) -> None:
    """Check all of a line, also if it is lazy.

    Raises:
        LogError: it is damaged.
    """
    _ = entry.body


def entry_of(number: int, line: dict[str, Any]) -> Entry:
    """Split line `number` of a file into its parts. What is left of `line` is the body."""
    seq, event, digest = line.pop("seq"), line.pop("event"), line.pop("digest")
    own = OWN_KEYS.get(event, KEYS)
    bound = {name: line.pop(name) for name in line.keys() - own} if not line.keys() <= own else EMPTY
    facts, course = (line.pop("facts", {}), line.pop("course", [])) if own is KEYS else ({}, [])
    return Entry(number, seq, event, digest, line, facts, course, bound)
