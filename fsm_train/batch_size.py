"""How large a batch can be on this machine: tried, and then forgotten."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import attrs
import torch

from .core.arguments import kind_of, takes_by_name
from .core.callback import Callback, on
from .core.checks import check_count
from .core.errors import NoBatchError, WorkloadError
from .core.phase import Flag, Operation, Phase
from .core.representation import html_table, properties
from .core.state import State
from .core.transition import Transition
from .core.workload import Workload
from .data.batches import drops_last
from .data.generators import Generators
from .data.out_of_memory import free_memory, is_out_of_memory
from .interpreter import run_to_its_end, start
from .supervised.arguments import check_call


@attrs.frozen
class Trial:
    """One batch size that was tried.

    Attributes:
        batch_size: samples of a batch.
        fits: whether the training had memory for it.
        peak: the most memory that torch held on the CUDA device, in bytes; None without one.
        has_batch: whether the data have such a batch; without one nothing is trained. So it is with drop_last=True.
    """

    batch_size: int
    fits: bool
    peak: int | None = None
    has_batch: bool = True


@attrs.frozen(repr=False)
class BatchSizeFound:
    """What `find_batch_size` found.

    Attributes:
        batch_size: the largest that was tried and fits.
        trials: all that were tried, in their order.
        because: why none larger was tried.
    """

    batch_size: int
    trials: tuple[Trial, ...]
    because: str

    def __repr__(self) -> str:
        return properties("BatchSizeFound", self._parts())

    def _repr_html_(self) -> str:
        return html_table("BatchSizeFound", self._parts())

    def _parts(self) -> list[tuple[str, str]]:
        def in_words(trial: Trial) -> str:
            memory = "" if trial.peak is None else f" ({trial.peak / 2**20:,.0f} MiB)"
            why_not = "does not fit" if trial.has_batch else "is more than the data have"
            return f"{trial.batch_size}{memory}" if trial.fits else f"{trial.batch_size} {why_not}"

        tried = ", ".join(map(in_words, self.trials))
        return [("batch_size", str(self.batch_size)), ("tried", tried), ("because", self.because)]


@takes_by_name
def find_batch_size(
    make_work: Callable[[int], Workload],
    *,
    low: int = 1,
    high: int = 2**20,
    steps: int = 3,
    callbacks: Iterable[Callback[Any]] = (),
) -> BatchSizeFound:
    """Find the largest batch size that memory has room for, and leave no trace.

    From `low` it is doubled until memory runs out, or the data have no larger batch; then the interval is halved. Each
    size is trained for a few steps, with a model and an optimizer of its own, which are freed afterwards; the random
    generators are put back. Leave some room: memory is fragmented in a long training.

    >>> import torch
    >>> from torch.utils.data import DataLoader, TensorDataset
    >>> from fsm_train import Supervised
    >>> data = TensorDataset(torch.zeros(50, 3), torch.zeros(50, 1))
    >>> def make_work(batch_size):
    ...     model = torch.nn.Linear(3, 1)
    ...     optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    ...     return Supervised(model, optimizer, torch.nn.MSELoss(), DataLoader(data, batch_size))
    >>> find_batch_size(make_work, low=8).batch_size
    50

    Args:
        make_work: of a batch size, a `Supervised` whose loader gives such batches. It makes model and optimizer anew.
        low: the first size.
        high: the largest size to try.
        steps: optimizer steps of each trial: memory is taken by the second, for what an optimizer keeps.
        callbacks: those of the training that take memory, such as mixed_precision() and ema(0.999).

    Raises:
        TypeError: `make_work` is no function, or returns no workload.
        ValueError: the numbers make no sense.
        WorkloadError: there is no room for `low` samples, the data have no such batch, or the batches have another size
            than was asked for.
        Exception: what a training raised that is no lack of memory.
    """
    if not callable(make_work) or isinstance(make_work, type):
        raise TypeError(
            f"find_batch_size takes a function of a batch size, but was given {kind_of(make_work)}: write "
            "def make_work(batch_size), which makes model, optimizer and loader anew, and find_batch_size(make_work)"
        )
    check_call("make_work", make_work, "batch_size")
    check_count("low", low, least=1)
    check_count("high", high, least=low)
    check_count("steps", steps, least=1)
    callbacks = tuple(callbacks)
    trials: list[Trial] = []
    size: int | None = low
    before = Generators.now()
    try:
        while size is not None:
            try:
                trial, more = _tried(make_work, size, steps, callbacks)
            except NoBatchError:
                if not trials:
                    raise
                trial, more = Trial(size, False, has_batch=False), True
            trials.append(trial)
            size = next_size(trials, high) if more else None
    finally:
        before.put_back()
    fitting = [trial.batch_size for trial in trials if trial.fits]
    if not fitting:
        raise WorkloadError(f"there is no room for {low} samples: begin lower (low=…), or take a smaller model")
    too_large = [(trial.batch_size, trial.has_batch) for trial in trials if not trial.fits]
    if max(fitting) == high:
        because = "it is the largest to try (high=…)"
    elif too_large:
        size, has_batch = min(too_large)
        because = f"there is no room for {size}" if has_batch else f"the data have no batch of {size}"
    else:
        because = "the data have no larger batch"
    return BatchSizeFound(max(fitting), tuple(trials), because)


def next_size(trials: Sequence[Trial], high: int) -> int | None:
    """The size to try next: twice the largest that fits, then halfway to the smallest that does not; None at the end.

    It ends where the two are closer than a sixteenth.

    >>> next_size([Trial(8, True)], 100), next_size([Trial(64, True)], 100), next_size([Trial(8, False)], 100)
    (16, 100, None)
    >>> next_size([Trial(8, True), Trial(16, False)], 100), next_size([Trial(64, True), Trial(67, False)], 100)
    (12, None)
    """
    fits = max((trial.batch_size for trial in trials if trial.fits), default=None)
    too_large = min((trial.batch_size for trial in trials if not trial.fits), default=None)
    if fits is None or fits == high:
        return None
    if too_large is None:
        return min(2 * fits, high)
    return None if too_large - fits <= max(1, fits // 16) else (fits + too_large) // 2


def _tried(
    make_work: Callable[[int], Workload], size: int, steps: int, callbacks: Sequence[Callback[Any]]
) -> tuple[Trial, bool]:
    """Whether a training with batches of this size runs, and whether there may be larger batches."""
    if on_cuda := torch.cuda.is_available():
        free_memory()
        torch.cuda.reset_peak_memory_stats()
    try:
        work = make_work(size)
        if not hasattr(work, Operation.PREPARE.value):
            raise TypeError(f"make_work returned {kind_of(work)}: let it return Supervised(…), made anew")
        final = run_to_its_end(start(work, max_steps=steps), [*callbacks, _without_validation()])
        if final.phase is Phase.SUSPENDED:
            raise KeyboardInterrupt(final.reason)
        memory = final.memory["largest_batch"]
        assert isinstance(memory, (int, float))
        largest, batches = int(memory), getattr(work, "batches_per_epoch", None)
        if largest > size or (largest < size and batches is not None and batches > 1):
            raise WorkloadError(
                f"make_work was asked for batches of {size} samples, and they have {largest}: let its loader have "
                "this batch_size"
            )
        more = largest == size and (batches != 1 or drops_last(getattr(work, "train", None)))
        trial = Trial(min(size, largest) or size, True, torch.cuda.max_memory_allocated() if on_cuda else None)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        error.__traceback__ = None  # whose frames hold the model
        trial, more = Trial(size, False), True
        work = final = None  # type: ignore[assignment]
        free_memory()
    return trial, more


def _without_validation() -> Callback[float]:
    """Leaves validations out, and remembers the largest batch."""

    @on(Phase.EPOCH_BEGIN, Phase.BATCH_BEGIN, memory=0.0, raises=Flag.SKIP_VALID, commands=(), sets=())
    def largest_batch(state: State, largest: float) -> Transition:
        if state.phase is Phase.EPOCH_BEGIN:
            return Transition(flags=Flag.SKIP_VALID)
        return Transition(memory=max(largest, state.facts["batch_size"]))

    return largest_batch
