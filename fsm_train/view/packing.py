"""A log as columns: the state at each of its lines, what was said there, and the curves.

Rule of this file: a row is a line of the log that counts, headers included. What a row has is what the line has;
memories, which a line does not repeat, are carried on from the answers as the machine does it.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from ..core.phase import FINAL, Phase
from ..core.state import COUNTERS
from ..encoding import Json
from ..eventlog.entries import entries
from ..eventlog.entry import Entry
from ..eventlog.errors import LogError
from ..eventlog.lines import HEADER, MEASURED
from ..eventlog.reader import Header, Line, record_of
from ..eventlog.render import ending_of, format_callback, format_plan
from ..wording import losses_first
from .axes import PARTS, EpochAxis, TimeAxis, packed_axis
from .columns import Packed, packed_ints, shown_text
from .tracks import Group, Track, is_same

PHASES = tuple(phase.value for phase in Phase)

PLAIN = ("flags", "reason", "batches_over", "exhausted", "resume_at", "error", "player", "turns")
"""What a state has beside its counters, hyper-parameters, metrics and memories; a line may lack all but the first."""

_UNSAID: Mapping[str, Json] = {"batches_over": False, "exhausted": False}
_EPOCH_END, _VALID_END = Phase.EPOCH_END.value, Phase.VALID_END.value


def packed_run(path: str | PathLike[str], name: str = "") -> PackedRun:
    """Read a log and pack what a page shows of it.

    Args:
        path: the path of the log; one that ends in .gz is decompressed.
        name: how the page calls it; that of the file by default.

    Raises:
        LogError: the log cannot be read.
        OSError: the file cannot be read.
    """
    run = PackedRun(name or Path(path).name)
    superseded = 0
    for entry in entries(Path(path)):
        if entry.counts:
            run.see(entry)
        else:
            superseded += entry.event == HEADER
    if not run.numbers:
        raise LogError("no call of run in it counts", path=str(path))
    run.superseded = superseded
    return run


class PackedRun:
    """One log, line by line, as the columns of a page.

    Attributes:
        name: how the page calls it.
        numbers: of each row, the number of its line in the file.
        groups: by the part of a state, the tracks of its names.
        facts: the measured values by name, at the rows that have them.
        said: by callback, what it answered beside its memory, at the rows at which it answered.
        decisions: the rows at which a callback said something else than it said the last time.
        superseded: how many calls of `run` no longer count.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.numbers: list[int] = []
        self.groups = {part: Group() for part in ("counters", "state", "hyper", "metrics", "memory")}
        self.facts = Group()
        self.said = Group()
        self.decisions: list[int] = []
        self.superseded = 0
        self._phases: list[int] = []
        self._curves: dict[str, Track] = {}
        self._validated: set[str] = set()  # the metrics that have a point since the last epoch ended
        self._memory: dict[str, Json] = {}
        self._epochs, self._times = EpochAxis(), TimeAxis()
        self._calls: list[Packed] = []
        self._header: Header | None = None
        self._last: Entry | None = None

    def see(self, entry: Entry) -> None:
        """The next line that counts."""
        row = len(self.numbers)
        self.numbers.append(entry.number)
        self._times.see(entry.facts, entry.bound)
        if entry.event == HEADER:
            self._begin(row, entry)
            body: Mapping[str, Any] = entry.body["start"]
        else:
            self._last, body = entry, entry.body
            self._phases.append(_CODES[entry.event])
            self._epochs.see(entry.event, body)
            self.facts.note(row, entry.facts)
            self._answers(row, body)
            self._measured(row, entry.event, body)
        self.groups["counters"].see(row, {name: body[name] for name in COUNTERS})
        self.groups["state"].see(row, {**_UNSAID, **{name: body[name] for name in PLAIN if name in body}})
        self.groups["hyper"].see(row, body["hyper"])
        self.groups["metrics"].see(row, body["metrics"])
        if "answers" in body or entry.event == HEADER:
            self.groups["memory"].see(row, self._memory)

    def _begin(self, row: int, entry: Entry) -> None:
        """A call of `run`: it says what all memories are."""
        start = entry.body["start"]
        self._phases.append(_CODES[Phase.READY.value])
        self._epochs.begin(start)
        self._memory = dict(start["memory"])
        header = record_of(entry)
        assert isinstance(header, Header)
        self._header = header
        self._calls.append(
            {
                "row": row,
                "plan": shown_text(format_plan(header.plan)),
                "continues": header.continues is not None,
                "gap": header.gap,
                "callbacks": [
                    {
                        "name": shown_text(spec["name"]),
                        "made": shown_text(format_callback(spec)),
                        "at": [_CODES[phase] for phase in spec["at"]],
                    }
                    for spec in header.callbacks
                ],
            }
        )

    def _answers(self, row: int, body: Mapping[str, Any]) -> None:
        new = False
        for name, answer in body.get("answers", {}).items():
            if "memory" in answer:
                self._memory[name] = answer["memory"]
            said = _without_memory(answer, body["hyper"])
            if said:
                track = self.said.track(name)
                new = new or not track.values or not is_same(track.values[-1], said)
                track.note(row, said)
        if new:
            self.decisions.append(row)

    def _measured(self, row: int, event: str, body: Mapping[str, Any]) -> None:
        """A point on the curve of each metric that was measured here, and is not repeated from a validation."""
        if event not in MEASURED or body.get("error"):
            return
        for name, value in body["metrics"].items():
            if event == _VALID_END and not name.startswith("valid_"):
                continue
            if event == _EPOCH_END and name in self._validated:
                continue
            self._curves.setdefault(name, Track()).note(row, value)
            self._validated.add(name)
        if event == _EPOCH_END:
            self._validated.clear()

    # ------------------------------------------------------------------------------- as JSON

    def row_of(self, number: int | None) -> int:
        """The row of this line of the file; the last one where there is none, as at the end of a log."""
        return (len(self.numbers) if number is None else bisect.bisect_right(self.numbers, number)) - 1

    def packed(self) -> Packed:
        """The run as JSON."""
        assert self._header is not None
        record = None if self._last is None else record_of(self._last)
        last = record if isinstance(record, Line) else None
        times = self._times.positions()
        return {
            "name": shown_text(self.name),
            "rows": len(self.numbers),
            "numbers": packed_ints(self.numbers),
            "phases": packed_ints(self._phases),
            "ending": shown_text(ending_of(self._header, last)),
            "ended": last.phase.value if last is not None and last.phase in FINAL else "",
            "superseded": self.superseded,
            "calls": self._calls,
            "axes": {
                "epoch": packed_axis(self._epochs.positions(), PARTS),
                **({} if times is None else {"time": packed_axis(times, PARTS)}),
            },
            "groups": {part: group.packed() for part, group in self.groups.items()},
            "facts": self.facts.packed(),
            "said": self.said.packed(),
            "decisions": packed_ints(self.decisions),
            "curves": [*self._packed_curves()],
        }

    def _packed_curves(self) -> Iterator[Packed]:
        """The metrics where they were measured; facts and hyper-parameters are curves as they are."""
        for name in losses_first(self._curves):
            yield {"name": shown_text(name), **self._curves[name].packed()}


_CODES = {name: code for code, name in enumerate(PHASES)}


def _without_memory(answer: Mapping[str, Any], hyper: Mapping[str, Json]) -> dict[str, Json]:
    """What a callback said for all to see. What it set and the state has is named alone: its value stands there."""
    said = {key: value for key, value in answer.items() if key not in ("memory", "hyper")}
    given = answer.get("hyper", {})
    if sets := [name for name, value in given.items() if name in hyper and is_same(hyper[name], value)]:
        said["sets"] = sets
    if others := {name: value for name, value in given.items() if name not in sets}:
        said["hyper"] = others
    return said
