"""What a sink is: someone who watches and can influence nothing."""

from __future__ import annotations

import contextlib
import inspect
import math
import warnings
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

from ..core.arguments import as_list, is_path, kind_of
from ..core.callback import Callback, as_phases
from ..core.phase import Phase
from ..core.state import State
from ..core.transition import Transition
from ..core.workload import Workload


class Sink(Protocol):
    """Watches a training. A sink of your own derives from this and has `at` and `see`; the rest has defaults.

    An object that has all of these attributes and methods is a sink too, without deriving from it.

    >>> from fsm_train import Phase, run, start
    >>> from fsm_train.worlds.scripted import Scripted
    >>> class PrintLoss(Sink):
    ...     at = (Phase.EPOCH_END,)
    ...
    ...     def see(self, state, answers):
    ...         print(state.epoch, state.metrics["train_loss"])
    >>> final = run(start(Scripted(loss=0.5), epochs=2), sinks=[PrintLoss()])
    1 0.5
    2 0.5

    Attributes:
        at: the phases it is told about; final phases are allowed here.
        needs: the facts it shows that cost something to measure.
        interval: the least time between two calls of `see` at phases of a batch, in seconds. Between
            them nothing is measured and no state is made for it, so that it costs next to nothing.

    A sink that draws random numbers changes nothing: the generators are put back after each call. That costs some
    20 microseconds; a sink that never draws can say so with an attribute `draws = False`.

    One with an attribute `every` above 1 is told about the phases of a batch only at multiples of this number of
    batches, as a callback with `every` is.
    """

    at: Sequence[Phase]
    needs: Set[str] = frozenset()
    interval: float = 0.0

    def open(self, state: State, callbacks: Sequence[Callback[Any]]) -> None:
        """A call of `run` begins. By default, do nothing."""
        return

    @abstractmethod
    def see(self, state: State, answers: Mapping[str, Transition]) -> None:
        """A phase is over: this is the state after it, and what the callbacks answered, by name."""

    def close(self) -> None:
        """The call of `run` ended, in whatever way. By default, do nothing."""
        return


class Recorder(Sink):
    """A sink that misses nothing: it is also told wherever a callback is consulted. To derive from.

    >>> from fsm_train import run, start
    >>> from fsm_train.worlds.scripted import Scripted
    >>> from fsm_train.callbacks import early_stopping
    >>> class PrintAnswers(Recorder):
    ...     def see(self, state, answers):
    ...         print(state.phase.value, *answers)
    >>> final = run(start(Scripted(), epochs=2), [early_stopping("train_loss")], sinks=[PrintAnswers()])
    epoch_end early_stopping
    epoch_end early_stopping
    """

    at: Sequence[Phase] = ()

    def wrap_workload(self, workload: Workload, state: State) -> Workload:
        """The workload as the interpreter calls it: a `WorkloadProxy` around it, or the workload itself.

        Called before a run begins with this state: what this raises is an error of the run.
        """
        return workload


def check_sinks(sinks: Iterable[Sink]) -> tuple[Sink, ...]:
    """The sinks as a tuple, checked to be sinks.

    Raises:
        TypeError: one of them is no sink, with what it is and where it belongs.
        ValueError: one of them is there twice.
    """
    checked: tuple[Any, ...] = as_list(sinks, "sinks", "progress()", single=hasattr(sinks, "see"))
    for at, sink in enumerate(checked):
        if any(sink is before for before in checked[:at]):
            raise ValueError(f"among the sinks is {kind_of(sink)} twice, which would be told all twice: give it once")
        if isinstance(sink, Callback):
            raise TypeError(f"among the sinks is the callback {sink.name!r}: give it to run in the list of callbacks")
        if isinstance(sink, type) or inspect.isroutine(sink):
            raise TypeError(f"among the sinks is {kind_of(sink)}: call it, {sink.__name__}()")
        if is_path(sink):
            raise TypeError(
                f"among the sinks is {kind_of(sink)}, {str(sink)!r}: for an event log write log={str(sink)!r}"
            )
        if isinstance(sink, (list, tuple)):
            raise TypeError(f"among the sinks is {kind_of(sink)}: unpack it with a star, as in [*some, progress()]")
        members = ("at", "needs", "interval", "open", "see", "close")
        if missing := [name for name in members if not hasattr(sink, name)]:
            raise TypeError(
                f"among the sinks is {kind_of(sink)} without {', '.join(missing)}: derive it from fsm_train.Sink, "
                "which has all but at (a tuple of phases) and see(state, answers)"
            )
        _check_members(sink)
    return checked


def _check_members(sink: Sink) -> None:
    who = f"the sink {type(sink).__name__}"
    if isinstance(sink.at, (Phase, str)):
        raise TypeError(f"{who} has at={sink.at!r}: give a tuple, also for a single phase, at = (Phase.EPOCH_END,)")
    try:
        as_phases(sink.at)
    except TypeError as error:
        raise TypeError(f"{who}, in its at: {error}") from None
    if isinstance(sink.needs, str):
        raise TypeError(f"{who} has needs={sink.needs!r}: give a set of names, needs = {{{sink.needs!r}}}")
    for name, arguments in (("open", "(state, callbacks)"), ("see", "(state, answers)"), ("close", "()")):
        method = getattr(sink, name)
        try:
            inspect.signature(method).bind(*[None] * len(arguments.strip("()").split()))
        except TypeError:
            raise TypeError(f"{who} is called as {name}{arguments}, which its {name} does not take") from None
        except ValueError:
            pass  # a function without a signature, of an extension module


class Guarded:
    """A sink that is told things no more often than it wants, and switched off when it raises.

    Args:
        sink: the sink.
        undisturbed: makes the context in which a sink that draws is called.

    Attributes:
        trouble: why it is switched off, in words; "" if it is not.
        interrupted: whether Ctrl-C came while it was told something: then it is only closed.
    """

    def __init__(self, sink: Sink, undisturbed: Callable[[], AbstractContextManager[None]] = nullcontext) -> None:
        self.sink = sink
        self.undisturbed = undisturbed if getattr(sink, "draws", True) else None
        self.trouble = ""
        self.interrupted = False
        self.not_before = 0.0
        self.every: int = getattr(sink, "every", 1)

    def due(self, now: float, iteration: int = 0) -> bool:
        """Whether its interval is over, and the batch one of its own.

        Args:
            now: in seconds; infinite where neither applies.
            iteration: finished batches of the training.
        """
        if self.trouble or now < self.not_before:
            return False
        if now < math.inf:
            if iteration % self.every:
                return False
            self.not_before = now + self.sink.interval
        return True

    def tell(self, method: str, *args: object) -> None:
        """Call a method of the sink. If it raises, warn once and never call it again.

        Where Ctrl-C came in the middle of it, such as of a line, it is closed, and told nothing else.
        """
        if self.trouble or (self.interrupted and method != "close"):
            return
        if self.undisturbed is None:
            self._tell(method, *args)
            return
        with self.undisturbed():
            self._tell(method, *args)

    def _tell(self, method: str, *args: object) -> None:
        try:
            getattr(self.sink, method)(*args)
        except Exception as error:
            self._switch_off(method, error)
        except BaseException:
            self.interrupted = True
            raise

    def _switch_off(self, method: str, error: Exception) -> None:
        self.trouble = (
            f"the sink {type(self.sink).__name__} raised {type(error).__name__}: {error}; "
            "it is switched off, and the training continues"
        )
        if method != "close":
            with contextlib.suppress(Exception):
                self.sink.close()  # so that a display, say, gives the terminal back
        warnings.warn(self.trouble, RuntimeWarning, stacklevel=4)
