"""`with weights(work, "ema"):`: the model has an average of its weights for a while.

Rule of this file: a block leaves nothing of the training as it was not before.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from types import TracebackType

import torch

from ..core.arguments import check_workload
from ..core.errors import WorkloadError
from .averages import Average
from .modules import Modes
from .player import modules_of_player, player_in
from .training import Training


def weights(work: Training, name: str) -> AbstractContextManager[bool]:
    """Give the model the average of this name inside the block, and its own weights after it, however the block ends.

    In the function of a command, in the body of a loop over `iterate`, before and after a run, and inside of `forward`
    or a loss, where the average is a teacher. A loss with parameters has its average too. Blocks can be nested, and
    what this returns can be used again. The modules are in their modes again afterwards.

    >>> import torch
    >>> from fsm_train import Supervised, run, start, weights
    >>> from fsm_train.callbacks import ema
    >>> model = torch.nn.Linear(1, 1)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> batches = [(torch.ones(4, 1), torch.ones(4, 1))] * 3
    >>> work = Supervised(model, optimizer, torch.nn.MSELoss(), batches)
    >>> final = run(start(work, epochs=1), [ema(0.9, validate=False)])
    >>> own = model.weight.item()
    >>> with weights(work, "ema"):
    ...     averaged = model.weight.item()
    >>> averaged == own, model.weight.item() == own
    (False, True)

    Before the first update of the average the model has its own weights inside, as in a validation then. The block is
    told whether the average has begun: `with weights(work, "ema") as begun:`. Where the training has ended with
    the average, the model has it already, with the statistics of batch norm that `swa` computes at the end.

    Autograd is off inside, and gradients are an error of who turns it on there: the values are exchanged in place, so
    a graph that is made inside, and gone backward through outside, gives wrong gradients in silence. Nor is a model
    trained inside. Random numbers that are drawn inside are drawn from the training's generators: add
    `work.undisturbed()`, or give a sampler a generator of its own, and the training stays what it is to the last bit.

    Args:
        work: the workload whose training keeps the average.
        name: of the average: that of the callback, as in `ema(0.999, name="slow")`.

    Raises:
        TypeError: work is no workload.
        WorkloadError: when the block begins, there is no average of this name, or the model has changed so that it does
            not fit; when it ends, weights were changed inside.
    """
    check_workload(work, f"weights({{}}, {name!r})")
    if not isinstance(work, Training):
        raise WorkloadError(f"weights(work, {name!r}): a {type(work).__name__} has no weights")
    return _Weights(work, name)


class _Weights(AbstractContextManager[bool]):
    """What `weights` returns: each `with` of it is a block of its own, also inside of another."""

    def __init__(self, work: Training, name: str) -> None:
        self._work = work
        self._name = name
        self._open: list[ExitStack] = []

    def __enter__(self) -> bool:
        with ExitStack() as stack:
            begun = stack.enter_context(_block(self._work, self._name))
            self._open.append(stack.pop_all())
        return begun

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> bool | None:
        return self._open.pop().__exit__(kind, error, trace)


@contextmanager
def _block(work: Training, name: str) -> Iterator[bool]:
    average = _average(work, name)
    modes = Modes.of(*average.modules.values())
    try:
        with torch.no_grad(), average.lent():
            yield average.started
    finally:
        modes.put_back()


def _average(work: Training, name: str) -> Average:
    """The average of this name; from a checkpoint, if no run has asked for it yet.

    Raises:
        WorkloadError: there is none, with those that there are.
    """
    carried = work.carried_over
    if name in carried.averages:
        return carried.averages[name]
    if name in carried.saved_averages:
        saved = carried.saved_averages[name]
        player = player_in(saved["average"].get("parameters", ()), work.modules)
        average = Average(name, modules_of_player(work.modules, player), None)
        average.load(saved)
        return average
    names = [*carried.averages, *carried.saved_averages]
    close = difflib.get_close_matches(str(name), names, n=1)
    there_are = f"there {'is' if len(names) == 1 else 'are'} {', '.join(map(repr, names)) or 'none'}"
    advice = f"Is {close[0]!r} meant?" if close else f"A run keeps one with the callback ema(0.999, name={name!r})"
    raise WorkloadError(f"weights(work, {name!r}): there is no average of this name, {there_are}. {advice}")
