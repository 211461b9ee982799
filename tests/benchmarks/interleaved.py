"""How the overhead of a step is measured, on machines that are never quite idle.

A training runs over a list of ready batches that does more than give them: before each block of
BLOCK batches it runs as many steps of a twin, the same network trained by a plain loop, and notes how
long that took; then how long the training took for its block. So the two are compared within
milliseconds of each other, A B A B, and a neighbour that comes and goes disturbs both. Quoted are
medians over all blocks.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import version
from typing import Any

import attrs
import torch

BLOCK = 20
Batch = tuple[torch.Tensor, torch.Tensor]


@attrs.frozen
class Measured:
    """Medians over blocks, in microseconds per step."""

    name: str
    bare: float
    over: float
    quartiles: tuple[float, float]
    ratio: float

    def row(self) -> str:
        low, high = self.quartiles
        return f"| {self.name} | {self.bare:.0f} | {self.over:.1f} ({low:.1f} to {high:.1f}) | {self.ratio:.3f} |"


class Feed(list[Batch]):
    """Batches that are interleaved with blocks of the twin."""

    def __init__(self, batches: Sequence[Batch], twin: Callable[[Sequence[Batch]], None]) -> None:
        super().__init__(batches)
        self.twin = twin
        self.pairs: list[tuple[float, float]] = []
        now = time.perf_counter
        self.now = now

    def __iter__(self) -> Iterator[Batch]:
        now, blocks = self.now, [list.__getitem__(self, slice(i, i + BLOCK)) for i in range(0, len(self), BLOCK)]
        for block in blocks:
            began = now()
            self.twin(block)
            between = now()
            yield from block
            self.pairs.append((between - began, now() - between))

    def measured(self, name: str) -> Measured:
        pairs = self.pairs[len(self.pairs) // 10 :]  # the first tenth warms up
        over = sorted((mine - twin) / BLOCK * 1e6 for twin, mine in pairs)
        bare = statistics.median(twin for twin, _ in pairs) / BLOCK * 1e6
        ratio = statistics.median(mine / twin for twin, mine in pairs)
        quartiles = over[len(over) // 4], over[3 * len(over) // 4]
        return Measured(name, bare, statistics.median(over), quartiles, ratio)


def arguments(description: str | None, **numbers: int) -> argparse.Namespace:
    """The settings that all benchmarks have, and numbers of one's own with what they are by default."""
    parser = argparse.ArgumentParser(description=description)
    for name, number in numbers.items():
        parser.add_argument(f"--{name}", type=int, default=number, help="%(default)s")
    parser.add_argument("--quick", action="store_true", help="a tenth of the work, to see that it runs")
    parser.add_argument("--check", action="store_true", help="exit 1 when a goal is missed")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    return parser.parse_args()


def machine() -> str:
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "attrs"))  # fsm_train is what lies here
    return f"{platform.processor() or platform.machine()}, Python {platform.python_version()}, {versions}, one thread"


def report(title: str, head: str, rows: Mapping[str, str], goals: Mapping[str, tuple[float, float]], args: Any) -> None:
    """Print the table, and the goals that were missed; a goal is (measured, at most)."""
    missed = {name: values for name, values in goals.items() if values[0] > values[1]}
    if args.json:
        print(json.dumps({"title": title, "machine": machine(), "goals": goals, "rows": list(rows.values())}))
    else:
        print(f"{title}\n{machine()}\n")
        print(head + "\n" + "|---" * (head.count("|") - 1) + "|")
        print("\n".join(rows.values()))
    for name, (measured, most) in missed.items():
        print(f"goal missed: {name}: {measured:.3f}, and at most {most} was wanted", file=sys.stderr)
    if args.check and missed:
        sys.exit(1)
