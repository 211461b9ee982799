"""Ablation: what each callback contributes, by trainings with all, without each one, and with none."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, SupportsIndex

import attrs

from .callbacks.directions import Direction
from .callbacks.monitoring import check_monitor, known_mode
from .core.arguments import kind_of, takes_by_name
from .core.callback import Callback, check_names
from .core.phase import Phase
from .core.representation import cut, html_table, middle_out
from .core.state import State
from .interpreter import run_to_its_end
from .wording import pluralize


@attrs.frozen
class Variant:
    """One row of an ablation: which callbacks were on, and the metric at the end, for each seed.

    Attributes:
        variant: "all", "without NAME", or "none".
        values: the metric, in the order of the seeds.
        base: the metric with all callbacks, for the same seeds.
        without: the name of the callback that was off; None in the first and the last row.
    """

    variant: str
    values: tuple[float, ...]
    base: tuple[float, ...]
    without: str | None = None

    @property
    def mean(self) -> float:
        return _mean(self.values)

    @property
    def spread(self) -> float:
        """The standard deviation over seeds."""
        return _deviation(self.values)

    @property
    def difference(self) -> float:
        """The mean of values - base, seed by seed; positive is worse if smaller is better."""
        return _mean(self._differences)

    @property
    def error(self) -> float:
        """The standard error of the difference; NaN for a single seed."""
        return _deviation(self._differences) / math.sqrt(len(self.values))

    @property
    def chance(self) -> float:
        """How likely a difference as large as this is without an effect; NaN for a single seed.

        If all seeds differ by the same amount, though the metric depends on the seed, that is a rounded metric and
        not certainty: then the difference is taken to be known to half of that amount.
        """
        error = self.error
        if error <= 1e-9 * abs(self.difference):  # equal but for rounding
            if self.difference == 0:
                return 1.0
            if len({*self.values}) == len({*self.base}) == 1:
                return 0.0
            error = abs(self.difference) / math.sqrt(6 * len(self.values))  # of two values, each rounded
        return _two_sided(self.difference / error, len(self.values) - 1)

    @property
    def _differences(self) -> tuple[float, ...]:
        return tuple(value - base for value, base in zip(self.values, self.base, strict=True))


@attrs.frozen(repr=False)
class Ablation:
    """The result of `ablate`. Its text is a table.

    Attributes:
        monitor: the metric that is compared.
        mode: "min" if smaller is better, else "max".
        seeds: the seeds with which each variant was trained.
        rows: the variants: "all" first, "none" last.
    """

    monitor: str
    mode: Direction
    seeds: tuple[int, ...]
    rows: tuple[Variant, ...]

    @property
    def earned(self) -> tuple[str, ...]:
        """The names of the callbacks without which the metric is worse."""
        return tuple(row.without for row in self.rows if row.without and self.verdict(row) == "worse without")

    def verdict(self, row: Variant) -> str:
        """Whether this variant is better or worse than all callbacks, in words; "" for that one itself.

        Variants share their seeds, so they are compared seed by seed, by Student's paired t-test. In a table of
        callbacks that have no effect, any verdict of better or worse is wrong; with normally distributed
        differences at most one such table in twenty has one (the test's level is divided by the rows). So few
        seeds find large effects only: three seeds and two rows take a difference of 6.2 standard errors,
        ten seeds 2.7. A training that does not depend on the seed leaves no room for noise.
        """
        if row is self.rows[0]:
            return ""
        if not math.isfinite(row.difference):
            return "not finite"
        if math.isnan(row.error):
            return "one seed is no evidence"
        if row.chance * (len(self.rows) - 1) > _LEVEL:
            return "within the noise"
        return "worse without" if (row.difference > 0) is (self.mode == "min") else "better without"

    def __str__(self) -> str:
        width = max(len(row.variant) for row in self.rows)
        head = f"{self.monitor}: mean ± spread over {len(self.seeds)} seeds, difference ± its standard error"
        lines = [f"{variant:<{width}}  " + "  ".join(cells) for variant, *cells in self._cells()]
        return "\n".join(line.rstrip() for line in [head, *lines])

    def __repr__(self) -> str:
        lines = [
            cut(f"{cut(variant, 22):<22}  {mean}  {difference.partition(' ±')[0]:10}  {verdict}".rstrip())
            for variant, mean, difference, verdict in self._cells()
        ]
        return "\n".join([f"Ablation of {self.monitor} over {len(self.seeds)} seeds", *middle_out(lines)])

    def _repr_html_(self) -> str:
        head = ("variant", "mean ± spread", "difference ± its standard error", "", "verdict")
        better = "smaller" if self.mode == "min" else "larger"
        caption = f"{self.monitor} over {pluralize(len(self.seeds), 'seed')}, {better} is better"
        cells = zip(self._cells(), self._drawings(), strict=True)
        return html_table(caption, ((*row[:3], drawn, row[3]) for row, drawn in cells), head)

    def _drawings(self) -> Iterator[str]:
        """The difference of each variant with its error, on one scale; "" where it is not finite."""
        from .core.drawing import interval  # which is of no use but in a notebook

        ends = []
        for row in self.rows:
            error = 0.0 if math.isnan(row.error) else row.error
            ends.append((row.difference - error, row.difference, row.difference + error))
        finite = [end for triple in ends for end in triple if math.isfinite(end)]
        span = min(finite, default=0.0), max(finite, default=0.0)
        for row, triple in zip(self.rows, ends, strict=True):
            yield "" if row is self.rows[0] or not all(map(math.isfinite, triple)) else interval(*triple, span)

    def _cells(self) -> Iterator[tuple[str, str, str, str]]:
        for row in self.rows:
            mean, difference = f"{row.mean:10.4f} ± {row.spread:.4f}", f"{row.difference:+10.4f} ± {row.error:.4f}"
            yield row.variant, mean, difference if row is not self.rows[0] else "", self.verdict(row)


@takes_by_name
def ablate(
    make_state: Callable[[int], State],
    callbacks: Iterable[Callback[Any]],
    *,
    seeds: Sequence[int] = (0, 1, 2),
    monitor: str = "valid_loss",
    mode: Direction | None = None,
    progress: bool = True,
) -> Ablation:
    """Train with all callbacks, without each one, and with none; compare a metric.

    >>> from fsm_train import start
    >>> from fsm_train.callbacks import stop_after
    >>> from fsm_train.worlds.scripted import Scripted
    >>> def make_state(seed):
    ...     return start(Scripted(valid_loss=lambda state: 10.0 - state.step), epochs=3, seed=seed)
    >>> table = ablate(make_state, [stop_after(steps=1)], progress=False)
    >>> [(row.variant, row.mean) for row in table.rows]
    [('all', 9.0), ('none', 1.0)]

    Args:
        make_state: makes a new state for a seed, each time with a new model, optimizer and loaders.
        callbacks: those that are on or off.
        seeds: each variant is trained once per seed; a verdict needs at least two.
        monitor: the metric to compare, as it is at the end of the training.
        mode: "min" if smaller is better, "max" if larger is; None finds it out by the name. Only the
            verdicts depend on it.
        progress: whether to show a progress bar.

    Raises:
        ValueError: there are no callbacks or no seeds, or a setting makes no sense.
        LookupError: a training ended without the metric.
        KeyboardInterrupt: a training was interrupted, or suspended by a callback, so it has no result. Inside of a
            run only a second Ctrl-C interrupts, and that run is suspended.
    """
    if not callable(make_state):
        raise TypeError(
            f"ablate takes a function of a seed first, but was given {kind_of(make_state)}: write one that makes "
            "model, optimizer and loaders, and returns start(work, epochs=…, seed=seed)"
        )
    whole = isinstance(seeds, Sequence) and all(isinstance(seed, SupportsIndex) for seed in seeds)
    if not whole or isinstance(seeds, bytes):
        raise TypeError(f"seeds={seeds!r}: give whole numbers in a tuple, such as (0, 1, 2)")
    all_callbacks = check_names(callbacks)
    mode = known_mode(monitor) if mode is None else mode
    check_monitor(monitor, mode)
    if not all_callbacks or not seeds:
        raise ValueError("an ablation takes at least one callback and one seed")
    variants: dict[str, list[Callback[Any]]] = {"all": list(all_callbacks)}
    if len(all_callbacks) > 1:
        variants |= {f"without {c.name}": [other for other in all_callbacks if other is not c] for c in all_callbacks}
    variants["none"] = []
    jobs = [(variant, seed) for variant in variants for seed in seeds]
    values: dict[str, list[float]] = {variant: [] for variant in variants}
    for variant, seed in _with_progress_bar(jobs) if progress else jobs:
        state = make_state(seed)
        if not isinstance(state, State):
            raise TypeError(f"make_state returned {kind_of(state)}: let it return start(work, epochs=…, seed=seed)")
        final = run_to_its_end(state, variants[variant])
        if final.phase is Phase.SUSPENDED:
            raise KeyboardInterrupt(f"{variant!r} was suspended: {final.reason}")
        if monitor not in final.metrics:
            raise LookupError(f"{variant!r} ended without {monitor!r}: there are {', '.join(final.metrics) or 'none'}")
        values[variant].append(final.metrics[monitor])
    base = tuple(values["all"])
    without = {f"without {callback.name}": callback.name for callback in all_callbacks}
    rows = tuple(Variant(variant, tuple(metrics), base, without.get(variant)) for variant, metrics in values.items())
    return Ablation(monitor, mode, tuple(seeds), rows)


_LEVEL = 0.05
"""How often a table of callbacks without an effect may have a verdict."""


def _two_sided(t: float, degrees: int) -> float:
    """The probability that Student's t with so many degrees of freedom is at least as far from 0.

    Abramowitz & Stegun 1964, 26.7.3 and 26.7.4: a finite sum for whole degrees.

    >>> round(_two_sided(4.302653, 2), 6), round(_two_sided(2.570582, 5), 6)
    (0.05, 0.05)
    """
    angle = math.atan(abs(t) / math.sqrt(degrees))
    term, total = (1.0, 1.0) if degrees % 2 == 0 else (math.cos(angle), math.cos(angle))
    for i in range(2 + degrees % 2, degrees, 2):
        term *= math.cos(angle) ** 2 * (i - 1) / i
        total += term
    if degrees % 2 == 0:
        return max(0.0, 1 - math.sin(angle) * total)
    inner = math.sin(angle) * total if degrees > 1 else 0.0
    return max(0.0, 1 - 2 / math.pi * (angle + inner))


def _mean(values: Sequence[float]) -> float:
    """The mean; summed exactly if all values are finite."""
    return statistics.fmean(values) if all(map(math.isfinite, values)) else sum(values) / len(values)


def _deviation(values: Sequence[float]) -> float:
    """The standard deviation; NaN for a single value, or one that is not finite."""
    return statistics.stdev(values) if len(values) > 1 and all(map(math.isfinite, values)) else math.nan


def _with_progress_bar(jobs: Sequence[tuple[str, int]]) -> Iterator[tuple[str, int]]:
    """The jobs, with a progress bar on stderr while they run."""
    from rich.console import Console
    from rich.progress import track

    yield from track(jobs, description="ablation", console=Console(stderr=True), transient=True)
