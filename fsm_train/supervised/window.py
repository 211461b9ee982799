"""The gradients of the optimizer's parameters, and the accumulation window: the share of each of its batches."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence, Set
from fnmatch import fnmatchcase

import torch
from torch.nn.utils import get_total_norm

from ..core.errors import WorkloadError
from ..data.compiled import named_parameters
from ..wording import some_of
from .shares import alike, is_shared, largest, whole


class Gradients:
    """The gradients that the optimizer steps, and their common norm.

    Attributes:
        parameters: those of the optimizer.
        known_norm: the norm that was asked for last, with its type; None after a change.
    """

    def __init__(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        self.parameters = parameters
        self.known_norm: tuple[float, torch.Tensor] | None = None
        self._found: dict[str, tuple[object, list[torch.nn.Parameter]]] = {}  # by pattern, of which parameters

    def __call__(self) -> list[torch.Tensor]:
        """The gradients of all parameters that have one."""
        return [gradient for parameter in self.parameters if (gradient := parameter.grad) is not None]

    def norm(self, norm_type: float = 2.0) -> torch.Tensor:
        """The norm of all gradients as one vector, a scalar tensor; cached until `changed` is called."""
        if self.known_norm is None or self.known_norm[0] != norm_type:
            self.known_norm = norm_type, norm_of(self(), norm_type)
        return self.known_norm[1]

    def matching(self, model: torch.nn.Module, pattern: str) -> list[torch.nn.Parameter]:
        """The parameters of the optimizer that have a name in the model which matches. Looked for once.

        Raises:
            WorkloadError: none matches.
        """
        of, found = self._found.get(pattern, (None, []))
        if of is not self.parameters:
            found = list(_named(model, pattern, {*self.parameters}))
            self._found[pattern] = self.parameters, found
        return found

    def changed(self) -> None:
        """Drop the cached norm. Call it after changing a gradient in place."""
        self.known_norm = None


def norm_of(gradients: Sequence[torch.Tensor], norm_type: float = 2.0) -> torch.Tensor:
    """The norm of these gradients as one vector, a scalar tensor. A sparse one counts by its coalesced values."""
    dense = [gradient.coalesce().values() if gradient.is_sparse else gradient for gradient in gradients]
    norms = [
        largest(each) if math.isinf(norm_type) and is_shared(each[0]) else whole(get_total_norm(each, norm_type))
        for each in alike(dense)
    ]
    return norms[0] if len(norms) == 1 else get_total_norm(norms, norm_type)


def _named(model: torch.nn.Module, pattern: str, among: Set[torch.nn.Parameter]) -> Iterator[torch.nn.Parameter]:
    """Those of the parameters `among` that have a name which matches, each once.

    Raises:
        WorkloadError: none matches.
    """
    named = [*named_parameters(model, remove_duplicate=False)]
    found = dict.fromkeys(p for name, p in named if p in among and fnmatchcase(name, pattern))
    if not found:
        names = some_of([name for name, _ in named], 12)
        raise WorkloadError(f"clipping: no parameter of the optimizer matches {pattern!r}: there are {names}")
    yield from found


class Window:
    """Weighs the losses of a window, so that before the step its gradient is their weighted mean.

    If the step is skipped after the gradients became a mean, and the window continues, they become
    the sum again before the next backward.

    Attributes:
        share: of the batch under way, from 0; 0 if it has none.
        weight: what the gradient of the batch under way is multiplied by: its share, or 1 if it has none.
        shares: the sum over the batches whose gradients wait for a step.
        divided_by: what those gradients were divided by; 1 while they are the sum.
        batches: how many batches have added their gradients since the last zero.
        penalty: of the batch under way, what was added to its loss of which each rank has a share; None without.
    """

    def __init__(self) -> None:
        self.shares = 0.0
        self.divided_by = 1.0
        self.batches = 0
        self.begin_batch()

    def begin_batch(self) -> None:
        """Forget the share of a batch that was left out."""
        self.share, self.weight = 0.0, 1.0
        self.penalty: torch.Tensor | None = None

    def undo_mean(self, gradients: Sequence[torch.Tensor]) -> None:
        """Make the gradients the weighted sum again, before a further backward."""
        if self.divided_by != 1.0:
            for each in alike(gradients):
                torch._foreach_mul_(each, self.divided_by)
            self.divided_by = 1.0

    def apply_mean(self, gradients: Sequence[torch.Tensor]) -> None:
        """Divide the gradients by the shares, which makes the sum the weighted mean. Idempotent."""
        if self.shares > 0.0 and self.divided_by == 1.0 and not math.isclose(self.shares, 1.0, rel_tol=1e-12):
            for each in alike(gradients):
                torch._foreach_div_(each, self.shares)
            self.divided_by = self.shares

    def clear(self) -> None:
        """Start a new window, after zero."""
        self.shares, self.divided_by, self.batches = 0.0, 1.0, 0
        self.share, self.weight, self.penalty = 0.0, 1.0, None

    def state(self) -> list[float]:
        return [self.shares, self.divided_by]

    def load(self, state: Sequence[float]) -> None:
        self.shares, self.divided_by = state
