"""Hypothesis strategies for what tests of callbacks need.

Each shrinks towards what a person would write: few epochs, few batches, round numbers, callbacks with few
answers. The example in each docstring is the smallest one that fulfils a condition.

>>> from hypothesis import given
>>> from fsm_train.testing import strategies
>>> @given(strategies.plans())
... def test_a_plan_has_an_end(plan):
...     assert plan.epochs is not None or plan.max_steps is not None
>>> test_a_plan_has_an_end()
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, get_args

import attrs
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from ..callbacks.accumulation import accumulate
from ..core.callback import Callback, on
from ..core.commands import ClipGradNorm, WeighLoss
from ..core.facts import KNOWN_AT
from ..core.phase import CONSULTED, FINAL, Flag, Phase
from ..core.state import Hyper, Plan, State
from ..core.table import READABLE
from ..core.transition import Command, Transition, is_useful
from ..core.values import EMPTY
from .simulation import simulate
from .trace import Trace
from .training import Training

Curve = Literal["rising", "falling", "plateau", "noisy", "nan", "ties"]
_SMALL = st.sampled_from([1.0, 0.5, 2.0, 0.1, 0.0, 10.0])
_FINITE = _SMALL | st.floats(0, 100, allow_subnormal=False).map(lambda value: float(f"{value:.3g}"))
_MEASURED = _FINITE | st.sampled_from([math.nan, math.inf])
_PHASES = tuple(phase for phase in CONSULTED if phase is not Phase.SUSPEND)


def plans(*, max_epochs: int = 3, max_steps: int = 6) -> SearchStrategy[Plan]:
    """Plans with epochs, steps, or both; some of them of length 0.

    >>> from hypothesis import find
    >>> find(plans(), lambda plan: plan.epochs and plan.max_steps)
    Plan(epochs=1, max_steps=1, seed=None)
    """
    epochs, steps = st.integers(0, max_epochs), st.integers(0, max_steps)
    seed = st.none() | st.integers(0, 3)
    return st.builds(Plan, epochs, st.none() | steps, seed) | st.builds(Plan, st.none(), steps, seed)


def metric_curves(
    *, min_size: int = 1, max_size: int = 8, kinds: Iterable[Curve] = get_args(Curve)
) -> SearchStrategy[list[float]]:
    """Values of a metric, one per epoch: rising, falling, plateau, noisy, with NaN, with ties.

    >>> from hypothesis import find
    >>> find(metric_curves(min_size=3, kinds=["falling"]), lambda curve: True)
    [1.0, 0.5, 0.0]
    >>> find(metric_curves(), lambda curve: any(map(math.isnan, curve)))
    [nan]

    Args:
        min_size: smallest number of values.
        max_size: largest number of values.
        kinds: the kinds to draw from; examples shrink to the first.
    """

    def values(of: SearchStrategy[float], **more: Any) -> SearchStrategy[list[float]]:
        return st.lists(of, min_size=min_size, max_size=max_size, **more)

    steps = values(st.integers(1, 4))
    curves: dict[Curve, SearchStrategy[list[float]]] = {
        "rising": steps.map(lambda s: [sum(s[:i]) / 2 for i in range(len(s))]),
        "falling": steps.map(lambda s: [sum(s[i + 1 :]) / 2 for i in range(len(s))]),
        "plateau": st.tuples(_SMALL, steps).map(lambda p: [p[0] + max(0, 3 - i) for i in range(len(p[1]))]),
        "noisy": values(_FINITE),
        "nan": st.tuples(values(_FINITE), st.integers(0, max_size)).map(lambda p: _with_nan(*p)),
        "ties": values(st.sampled_from([1.0, 2.0])),
    }
    return st.one_of([curves[kind] for kind in kinds])


def _with_nan(values: list[float], where: int) -> list[float]:
    where %= len(values) or 1
    return [*values[:where], math.nan, *values[where + 1 :]]


def trainings(
    metrics: Sequence[str] = ("valid_loss",),
    facts: Sequence[str] = (),
    measured: Mapping[str, SearchStrategy[float]] | None = None,
) -> SearchStrategy[Training]:
    """What happens in a short training: measurements, flags that another callback raises, an interrupt.

    >>> from hypothesis import find
    >>> find(trainings(), lambda training: training.batches > 1).losses
    (1.0,)

    Args:
        metrics: names of the metrics.
        facts: names of facts beside loss and batch_size.
        measured: strategies for the values of facts and metrics, by name.
    """
    measured = measured or {}
    defaults = {"stepped": st.sampled_from([1.0, 0.0]), "elapsed": st.sampled_from([1.0, 0.0, 60.0, 3600.0])}
    # A sensor of a workload is mostly a count: tokens, sequences, padding.
    sensors = {name: st.integers(0, 100).map(float) for name in facts if name not in KNOWN_AT}
    by_name = {"loss": _MEASURED, "grad_norm": _MEASURED, **defaults, **sensors, **measured}

    def some(values: SearchStrategy[Any], most: int = 4) -> SearchStrategy[tuple[Any, ...]]:
        return st.lists(values, min_size=1, max_size=most).map(tuple)

    def curve(name: str) -> SearchStrategy[tuple[float, ...]]:
        return some(measured[name]) if name in measured else metric_curves(max_size=5).map(tuple)

    return st.builds(
        Training,
        epochs=st.integers(1, 4),
        batches=st.integers(1, 3),
        batch_sizes=some(st.sampled_from([32, 1, 7])),
        losses=some(by_name["loss"]),
        facts=st.fixed_dictionaries({name: some(by_name[name]) for name in sorted({*facts} - {"loss", "batch_size"})}),
        metrics=st.fixed_dictionaries({name: curve(name) for name in metrics}),
        forced_flags=st.lists(st.tuples(st.integers(0, 7), st.sampled_from(_FORCED_FLAGS)), max_size=2).map(tuple),
        interrupt_after=st.integers(1, 20),
        seed=st.integers(0, 3),
    )


_FORCED_FLAGS = (
    *(Flag.SKIP_STEP | Flag.SKIP_ZERO, Flag.SKIP_STEP, Flag.SKIP_BACKWARD, Flag.SKIP_BATCH, Flag.SKIP_ZERO),
    *(Flag.VALIDATE, Flag.SKIP_VALID, Flag.STOP_EPOCH),
)


@st.composite
def states(draw: st.DrawFn, phase: Phase | None = None) -> State:
    """States at this phase, or at any, as trainings have them: each is one of a simulated training that is drawn.

    So counters, metrics, history, `elapsed` and the facts that are known there agree with each other.

    >>> from hypothesis import find
    >>> from fsm_train import Phase
    >>> state = find(states(phase=Phase.STEP_BEGIN), lambda state: state.step > 0)
    >>> state.iteration, state.step, state.pending, state.facts["grad_norm"]
    (1, 1, 1, 1.0)
    """
    where = draw(st.sampled_from(_PHASES)) if phase is None else phase
    values = draw(st.lists(_MEASURED, min_size=1, max_size=4))
    seconds = draw(st.sampled_from([1.0, 0.1, 60.0]))
    rates: list[Hyper] = [0.1, (0.1, 0.01)]
    rate = draw(st.sampled_from(rates))

    def measured(state: State) -> float:
        return values[(state.iteration + state.valid_batch) % len(values)]

    seen: list[State] = []

    @on(*CONSULTED, name="see", needs={"loss", "grad_norm", "stepped", "elapsed"})
    def see(state: State) -> None:
        if state.phase is where:
            seen.append(attrs.evolve(state, memory=EMPTY))

    simulate(
        [see, accumulate(draw(st.integers(1, 3)))],
        batches=draw(st.integers(1, 3)),
        epochs=draw(st.integers(1, 3)),
        max_steps=draw(st.none() | st.integers(1, 6)),
        seed=draw(st.none() | st.integers(0, 3)),
        hyper={"lr": rate},
        interrupt_at=Phase.BATCH_END if where is Phase.SUSPEND else None,
        loss=measured,
        grad_norm=measured,
        stepped=draw(st.sampled_from([1.0, 1.0, 0.0])),
        elapsed=lambda state: seconds * state.iteration,
        valid_loss=measured,
        valid_accuracy=measured,
    )
    return draw(st.sampled_from(seen))


@st.composite
def transitions(
    draw: st.DrawFn,
    phase: Phase | None = None,
    *,
    hyper: Sequence[str] = ("lr",),
    commands: SearchStrategy[Command] | None = None,
    memory: bool = True,
    asked_for: Flag = Flag.NONE,
) -> Transition:
    """Answers that the machine accepts at this phase; without a phase, at some phase.

    >>> from hypothesis import find
    >>> find(transitions(), lambda answer: answer.flags)
    Transition(flags=<Flag.SKIP_BATCH: 1>, hyper={}, memory=UNCHANGED, commands=(), reason='')

    Args:
        phase: where it is answered; only flags that a guard reads from there on are raised.
        hyper: names of the hyper-parameters that may be set.
        commands: strategy for commands; by default `ClipGradNorm` and `WeighLoss`. Those of which nothing can come
            at this phase are left out.
        memory: whether the answer may have a memory.
        asked_for: VALIDATE, which takes validation data, and SUSPEND are raised only if they are in it.
    """
    allowed = ~(Flag.VALIDATE | Flag.SUSPEND) | asked_for
    readable = [flag for flag in Flag if (phase is None or phase in READABLE[flag]) and flag in allowed]
    flags = Flag.NONE
    for flag in draw(st.lists(st.sampled_from(readable), max_size=2)) if readable else ():
        flags |= flag
    answer: dict[str, Any] = {"flags": flags}
    if draw(st.booleans()):
        # One condition for all of these, so that they shrink away together.
        if commands is None:
            commands = st.sampled_from([ClipGradNorm(1.0), WeighLoss(0.5)])
        answer["hyper"] = draw(st.dictionaries(st.sampled_from(hyper), _FINITE, max_size=1)) if hyper else {}
        drawn = [] if commands.is_empty else draw(st.lists(commands, max_size=2))
        answer["commands"] = tuple(c for c in drawn if phase is None or is_useful(type(c), phase))
        if memory:
            answer["memory"] = draw(st.integers(0, 3) | st.tuples(st.just("seen"), _MEASURED))
        answer["reason"] = draw(st.sampled_from(["", "enough"]))
    return Transition(**answer)


@attrs.frozen
class ScriptedAnswers:
    """The function of a callback with fixed answers.

    Attributes:
        answers: by phase the answers; the iteration selects one, and after the last comes the first.
    """

    answers: Mapping[Phase, tuple[Transition | None, ...]]

    def __call__(self, state: State, memory: object) -> Transition | None:
        answers = self.answers[state.phase]
        return answers[state.iteration % len(answers)]


@st.composite
def callbacks(draw: st.DrawFn, *, max_size: int = 3, commands: SearchStrategy[Command] | None = None) -> Any:
    """Lists of callbacks that can train together: names differ, and at most one sets the learning rate.

    Their answers depend on the state alone, and none suspends the training.

    >>> from hypothesis import find
    >>> from fsm_train.testing import simulate
    >>> some = find(callbacks(), lambda some: simulate(some, batches=3).step < 3)
    >>> [callback.name for callback in some]
    ['first']

    Args:
        max_size: largest number of callbacks.
        commands: strategy for their commands; see `transitions`.
    """
    made: list[Callback[object]] = []
    for i, name in enumerate(_NAMES[: draw(st.integers(0, max_size))]):
        phases = draw(st.lists(st.sampled_from(_PHASES), min_size=1, max_size=3, unique=True))
        decide = ScriptedAnswers(
            {
                phase: tuple(
                    draw(
                        st.lists(
                            st.none() | transitions(phase, hyper=("lr",) * (i == 0), commands=commands),
                            min_size=1,
                            max_size=3,
                        )
                    )
                )
                for phase in phases
            }
        )
        params: Any = {"answers": decide}  # shown in the repr of the callback
        every, order = draw(st.integers(1, 3)), draw(st.integers(0, 2))
        made.append(Callback(name, tuple(phases), decide, every=every, order=order, params=params))
    return made


_NAMES = ("first", "second", "third", "fourth", "fifth")


@st.composite
def traces(
    draw: st.DrawFn, of: Sequence[Callback[Any]] | None = None, *, metrics: Sequence[str] = ("valid_loss",)
) -> Trace:
    """Traces of short simulated trainings, with these callbacks or with drawn ones.

    >>> from hypothesis import find
    >>> trace = find(traces([]), lambda trace: "step" in trace.operations)
    >>> trace.final.phase, trace.final.step
    (<Phase.DONE: 'done'>, 1)

    Args:
        of: the callbacks; by default they are drawn.
        metrics: names of the metrics.
    """
    some: Sequence[Callback[Any]] = draw(callbacks()) if of is None else of
    sensors = frozenset[str]().union(*(callback.needs for callback in some)) - KNOWN_AT.keys()
    curves = {name: draw(metric_curves(max_size=3)) for name in metrics}
    losses = draw(st.lists(_MEASURED, min_size=1, max_size=3))
    trace = Trace()
    scripts: dict[str, Any] = {name: _repeated(values) for name, values in {**curves, "loss": losses}.items()}
    scripts |= dict.fromkeys(sensors, 1.0)
    simulate(
        some,
        epochs=draw(st.integers(1, 3)),
        batches=draw(st.integers(1, 3)),
        seed=0,
        trace=trace,
        **scripts,
    )
    return trace


def _repeated(values: Sequence[float]) -> Callable[[State], float]:
    return lambda state: values[(state.epoch + state.iteration) % len(values)]


@st.composite
def reachable_states(
    draw: st.DrawFn,
    of: Sequence[Callback[Any]] | None = None,
    *,
    phase: Phase | None = None,
    metrics: Sequence[str] = ("valid_loss",),
) -> State:
    """States of simulated trainings, with these callbacks or with drawn ones.

    >>> from hypothesis import find
    >>> from fsm_train import Phase
    >>> find(reachable_states([]), lambda state: state.step == 2).phase
    <Phase.STEP_END: 'step_end'>

    Args:
        of: the callbacks; by default they are drawn.
        phase: the phase of all states; by default any.
        metrics: names of the metrics.
    """
    trace = draw(traces(of, metrics=metrics).filter(lambda trace: phase is None or phase in trace.phases))
    some = [state for state in trace.states if state.phase not in FINAL and phase in (None, state.phase)]
    return draw(st.sampled_from(some))
