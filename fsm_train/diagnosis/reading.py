"""What is known of a training, from its log.

Rule of this file: it collects and counts. What that means is said by the rules.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from os import PathLike, fspath
from typing import Any

import attrs

from ..core.facts import UNSAVED
from ..core.phase import TURN_PHASES, Flag, Phase
from ..encoding import decode
from ..eventlog.errors import LogError
from ..eventlog.lines import HELD_BACK, decode_hyper, decode_numbers
from ..eventlog.reader import Header, Line, read_log
from .curves import MOST_FACTS, Count, FinishedEpoch, Observations, ThinnedSeries
from .findings import Evidence
from .gradient_rules import GRADIENTS
from .rates import RateWatch, rate_of
from .spikes import OF_FALL, SpikeWatch

MOST_NAMES = 200
"""The most metrics and facts that are told apart."""

STOPPING = "fsm_train.callbacks.stopping.early_stopping"

NOT_CURVES = frozenset({"batch_size", "elapsed", "stepped"})


def observe(log: str | PathLike[str]) -> Observations:
    """Read a log.

    Raises:
        LogError, OSError: it cannot be read.
    """
    watch = LogWatch()
    for record in read_log(log):
        if isinstance(record, Header):
            watch.see_header(record)
        else:
            watch.see(record)
    if watch.header is None:
        raise LogError("no call of run in it counts", path=fspath(log))
    return watch.observations()


class LogWatch:
    """Collects what the rules look at, line by line.

    Attributes:
        header: that of the last call of `run`; None before the first.
    """

    def __init__(self) -> None:
        self.header: Header | None = None
        self._epochs: ThinnedSeries[FinishedEpoch] = ThinnedSeries()
        self._facts: dict[str, ThinnedSeries[Evidence]] = {}
        self._fact_at: dict[str, Phase] = {}
        self._untrained: Evidence | None = None
        self._spikes: dict[str, SpikeWatch] = {}
        self._nonfinite: dict[str, Evidence] = {}
        self._doubtful: Evidence | None = None  # a gradient that is not finite, until it is known what became of it
        self._rates = RateWatch()
        self._held = 0
        self._attempts: ThinnedSeries[tuple[int, int]] = ThinnedSeries()
        self._first_held: Evidence | None = None
        self._stepless = Count(0, 0, unit="epoch")
        self._step = 0
        self._step_of_epoch = 0
        self._stopping: Mapping[str, Mapping[str, Any]] = {}
        self._stop: tuple[int, Mapping[str, Any]] | None = None

    def see_header(self, header: Header) -> None:
        """A call of `run` begins."""
        start: Mapping[str, Any] = header.start
        self.header = header
        self._stop = None
        self._stopping = {decode(spec["name"]): spec for spec in header.callbacks if spec["factory"] == STOPPING}
        for i, metrics in enumerate(start["history"], start=start.get("held", 0) + 1):
            self._see_metrics(decode_numbers(metrics), i, header.number)
            self._epochs.add(FinishedEpoch(i, decode_numbers(metrics), header.number))
        self._step = start["step"]
        self._rates.begin(self._step, rate_of(decode_hyper(start["hyper"])))

    def see(self, line: Line) -> None:
        """A line that counts."""
        epoch = line.epoch if line.phase is Phase.EPOCH_END else line.epoch + 1
        self._see_course(line, epoch)
        self._rates.see(line.step, rate_of(line.hyper), Evidence("lr", 0.0, epoch, line.number))
        for name in line.answers.keys() & self._stopping.keys():
            if Flag.STOP_TRAINING in line.answers[name].get("flags", Flag.NONE):
                self._stop = line.number, self._stopping[name]
        if line.phase in TURN_PHASES:
            self._see_facts(line, epoch)
        elif line.phase is Phase.VALID_END:
            self._see_nonfinite(line.metrics, epoch, line.number)
        elif line.phase is Phase.EPOCH_BEGIN:
            self._step_of_epoch = line.step
        elif line.phase is Phase.EPOCH_END:
            self._see_epoch(line)

    def observations(self) -> Observations:
        """What is known after the last line."""
        if self._doubtful is not None:
            self._nonfinite.setdefault(self._doubtful.name, self._doubtful)
        held, attempts = self._held, self._step + self._held
        first_half = max((held for tried, held in self._attempts if tried <= attempts / 2), default=0)
        return Observations(
            epochs=tuple(self._epochs),
            facts={name: tuple(points) for name, points in self._facts.items()},
            untrained=self._untrained,
            spikes={name: watch.highest for name, watch in self._spikes.items() if watch.highest is not None},
            nonfinite=self._nonfinite,
            zero_rate=self._rates.counted,
            held_back=Count(held, attempts, held - first_half, self._first_held),
            stepless=self._stepless,
            stop=self._stop,
            has_turns=self.header is not None and bool(self.header.start.get("players")),
        )

    def _see_course(self, line: Line, epoch: int) -> None:
        held = sum(times for event, times in line.course if event == HELD_BACK)
        if held and self._first_held is None:
            self._first_held = Evidence("steps held back", held, epoch, line.number)
        self._step, self._held = line.step, self._held + held
        self._attempts.add((self._step + self._held, self._held))
        if self._doubtful is not None and line.course:
            if line.course[0][0] != HELD_BACK:  # a gradient scaler expects such gradients, and leaves the step out
                self._nonfinite.setdefault(self._doubtful.name, self._doubtful)
            self._doubtful = None

    def _see_facts(self, line: Line, epoch: int) -> None:
        for fact, value in line.facts.items():
            name = f"{fact} of {line.player}" if line.player else fact
            if (
                fact in NOT_CURVES
                or fact.startswith(UNSAVED)
                or (name not in self._fact_at and len(self._fact_at) == MOST_NAMES)
                or self._fact_at.setdefault(name, line.phase) != line.phase
            ):
                continue
            point = Evidence(name, value, epoch, line.number)
            if not math.isfinite(value):
                if fact.startswith(GRADIENTS):
                    self._doubtful = point
                else:
                    self._nonfinite.setdefault(name, point)
                continue
            self._facts.setdefault(name, ThinnedSeries(MOST_FACTS)).add(point)
            if name == "loss":
                self._spikes.setdefault(name, SpikeWatch(OF_FALL["batch"])).see(point)
                if line.step <= 1 and line.iteration == (line.phase is Phase.BATCH_END):
                    self._untrained = point

    def _see_epoch(self, line: Line) -> None:
        self._see_metrics(line.metrics, line.epoch, line.number)
        elapsed = line.facts.get("elapsed")
        self._epochs.add(FinishedEpoch(line.epoch, line.metrics, line.number, line.iteration, elapsed))
        if line.batch:
            none = line.step == self._step_of_epoch
            first = self._stepless.first or (Evidence("steps", line.step, line.epoch, line.number) if none else None)
            times, of = self._stepless.times + none, self._stepless.of + 1
            self._stepless = attrs.evolve(self._stepless, times=times, of=of, first=first)

    def _see_metrics(self, metrics: Mapping[str, float], epoch: int, number: int) -> None:
        self._see_nonfinite(metrics, epoch, number)
        for name, value in metrics.items():
            if (
                name.endswith("loss")
                and math.isfinite(value)
                and (name in self._spikes or len(self._spikes) < MOST_NAMES)
            ):
                watch = self._spikes.setdefault(name, SpikeWatch(OF_FALL["epoch"]))
                watch.see(Evidence(name, value, epoch, number))

    def _see_nonfinite(self, metrics: Mapping[str, float], epoch: int, number: int) -> None:
        for name, value in metrics.items():
            if not math.isfinite(value) and len(self._nonfinite) < MOST_NAMES:
                self._nonfinite.setdefault(name, Evidence(name, value, epoch, number))
