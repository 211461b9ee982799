"""A batch in pieces, for a model whose activations of a whole one do not fit into memory: the same gradient.

The model computes the output piece by piece without a graph; the loss is that of the whole batch; and from the gradient
of the loss by the output, the backward of each piece follows after its forward pass is done again. Gao et al., "Scaling
Deep Contrastive Learning Batch Size under Memory Limited Setup" (2021): so the loss need not be a mean over samples.

Rule of this file: where memory runs out, no gradient is changed before all of a piece has been computed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..core.errors import WorkloadError
from ..data.batches import map_tensors, tensors
from ..data.generators import Generators
from ..data.out_of_memory import free_memory, is_out_of_memory
from .joining import join

_logger = logging.getLogger("fsm_train")

Call = Callable[[Any, Any], Any]
"""Of (inputs, target): the output."""


class MicroBatches:
    """How a batch is cut, and the pieces of the batch under way.

    Args:
        size: samples of a piece; None for the whole batch, and half of it each time that memory runs out.
        notes: where to say in words what was made smaller.

    Attributes:
        size: the most samples of a piece; None for no limit.
        leaves: the tensors of the output by which the loss is differentiated.
    """

    def __init__(self, size: int | None, notes: list[str]) -> None:
        self.size = size
        self._notes = notes
        self._may_shrink = size is None
        self._cut_at: list[tuple[torch.Tensor, torch.Tensor]] = []  # each leaf, with the tensor that it stands for
        self._call: Call | None = None
        self._before: Generators | None = None
        self._batch: tuple[Any, Any] = (None, None)

    @property
    def leaves(self) -> list[torch.Tensor]:
        return [leaf for leaf, _ in self._cut_at]

    def forward(self, work: Any, call: Call, inputs: Any, target: Any) -> Any:
        """The output for the batch under way, whose floating-point tensors are leaves.

        Raises:
            WorkloadError: the batch, or the output, cannot be cut.
        """
        self._call, self._batch, self._before = call, (inputs, target), Generators.now()
        self._cut_at = []  # of a batch without a backward, whose graph goes
        if not work._buffers.kept:
            work._buffers.keep()
        while True:
            try:
                output = self._computed(work)
                break
            except Exception as error:
                self._shrink(work, error)
            self._start_again(work)
        return map_tensors(output, self._cut)

    def _computed(self, work: Any) -> Any:
        assert self._call is not None
        if self.size is None or self.size >= self._samples():
            return self._call(*self._batch)
        with torch.no_grad():
            outputs = [self._call(*piece) for piece in self._pieces()]
        joined = join(outputs, as_batch_of="outputs")
        if not all(len(tensor) == self._samples() for tensor in tensors(joined) if tensor.dim()):
            raise WorkloadError("a tensor of the output has no sample in each row, so a batch cannot be cut in pieces")
        self._say_once_of_batch_norm(work)
        return joined

    def _cut(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor, as a leaf that gets a gradient."""
        if not _may_have_gradient(tensor):
            return tensor
        leaf = tensor.detach().requires_grad_()
        self._cut_at.append((leaf, tensor))
        return leaf

    def backward(self, work: Any, loss: torch.Tensor) -> None:
        """Add the gradient of the batch under way: of the loss first, then of the model."""
        loss.backward()  # type: ignore[no-untyped-call]
        given = [leaf.grad for leaf in self.leaves]
        trained = [p for module in work.modules.values() for p in module.parameters() if p.requires_grad]
        if not self._in_one_go(work, given, trained):
            self._by_pieces(work, given, trained)
        for leaf in self.leaves:
            leaf.grad = None
        self._call = self._before = None
        self._batch, self._cut_at = (None, None), []

    def _in_one_go(self, work: Any, given: list[torch.Tensor | None], trained: list[nn.Parameter]) -> bool:
        """The backward of a batch that was computed whole; False if it was not, or memory ran out."""
        if not any(tensor.requires_grad for _, tensor in self._cut_at):
            return False
        try:
            _add(trained, [(t, g) for (_, t), g in zip(self._cut_at, given, strict=True)])
        except Exception as error:
            self._cut_at = [(leaf, leaf) for leaf in self.leaves]  # the graph goes
            self._shrink(work, error)
            return False
        return True

    def _by_pieces(self, work: Any, given: list[torch.Tensor | None], trained: list[nn.Parameter]) -> None:
        """The forward pass of each piece again, with its graph, and its backward."""
        assert self._call is not None
        assert self._before is not None
        self._start_again(work)
        begin = 0
        while begin < self._samples():
            generators = Generators.now()
            try:
                inputs, target, end = self._piece(begin)
                with nullcontext() if work.precision is None else work.precision.compute():
                    outputs = [t for t in tensors(self._call(inputs, target)) if _may_have_gradient(t)]
                parts = [None if gradient is None else gradient[begin:end] for gradient in given]
                _add(trained, list(zip(outputs, parts, strict=True)))
            except Exception as error:
                outputs = []
                self._shrink(work, error)
                generators.put_back()
                continue
            begin = end

    # ------------------------------------------------------------------------------------ the pieces

    def _samples(self) -> int:
        sizes = {len(tensor) for tensor in tensors(self._batch[0]) if tensor.dim()}
        if len(sizes) != 1:
            raise WorkloadError(
                f"the inputs have {'no tensor' if not sizes else 'tensors of several lengths'}, so a batch cannot be "
                "cut in pieces along their first dimension"
            )
        return sizes.pop()

    def _pieces(self) -> Iterator[tuple[Any, Any]]:
        begin = 0
        while begin < self._samples():
            inputs, target, begin = self._piece(begin)
            yield inputs, target

    def _piece(self, begin: int) -> tuple[Any, Any, int]:
        """The inputs and target of a piece, and where it ends."""
        samples = self._samples()
        end = min(begin + (self.size or samples), samples)

        def rows(tensor: torch.Tensor) -> torch.Tensor:
            return tensor[begin:end] if tensor.dim() and len(tensor) == samples else tensor

        inputs, target = self._batch
        return map_tensors(inputs, rows), map_tensors(target, rows), end

    def _start_again(self, work: Any) -> None:
        """Draw, and count in buffers, as from the beginning of this batch."""
        assert self._before is not None
        self._before.put_back()
        work.put_back_buffers()

    # ------------------------------------------------------------------------------- out of memory

    def _shrink(self, work: Any, error: Exception) -> None:
        """Make the pieces half as large, if that was what the error is of.

        Raises:
            Exception: the error, where it was another one, the size is fixed, or a piece is one sample already.
        """
        if not (self._may_shrink and is_out_of_memory(error)):
            raise error
        samples = self._samples()
        size = min(self.size or samples, samples)
        if size == 1:
            error.add_note("Memory ran out with one sample at a time: it is the model itself that is too large.")
            raise error
        self.size = (size + 1) // 2
        work.output = None
        error.__traceback__ = None  # whose frames hold tensors
        free_memory()
        note = f"memory ran out with {size} samples, so they are computed {self.size} at a time from now on"
        self._notes.append(note)
        _logger.warning("%s. The gradient is that of the whole batch", note)

    def _say_once_of_batch_norm(self, work: Any) -> None:
        norms = [part for part in work.model.modules() if isinstance(part, _BatchNorm) and part.training]
        note = "batch norm sees pieces of a batch, so that the gradient is not quite that of the whole batch"
        if norms and note not in self._notes:
            self._notes.append(note)
            _logger.warning("%s", note)


def _may_have_gradient(tensor: torch.Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def _add(trained: list[nn.Parameter], pairs: Sequence[tuple[torch.Tensor, torch.Tensor | None]]) -> None:
    """Add the gradients of these tensors, each with the gradient that it is given, to those of the parameters.

    All are computed before one is added.
    """
    used = [(tensor, given) for tensor, given in pairs if given is not None and tensor.requires_grad]
    if not used:
        return
    outputs, gradients = zip(*used, strict=True)
    made = torch.autograd.grad(outputs, trained, gradients, allow_unused=True)
    memory: set[int] = {gradient.data_ptr() for gradient in gradients}
    for parameter, gradient in zip(trained, made, strict=True):
        if gradient is None:
            continue
        if parameter.grad is None:  # which is changed in place later: two must not share their memory
            shared = gradient.layout is torch.strided and (gradient.data_ptr() in memory or 0 in gradient.stride())
            parameter.grad = gradient.clone() if shared else gradient
            memory.add(0 if gradient.layout is not torch.strided else gradient.data_ptr())
        elif parameter.grad.is_sparse:
            parameter.grad = parameter.grad + gradient
        else:
            parameter.grad.add_(gradient)
