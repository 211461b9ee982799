"""CUDA graphs: what a device computes, recorded once and replayed on the same tensors.

Rule of this file: what needs CUDA is here, so that every decision of `compilation.py` can be tested without it.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import Protocol, TypeVar

import torch

from ..core.errors import WorkloadError
from .joint_optimizer import AnyOptimizer, each_of

T = TypeVar("T")


class Graph(Protocol):
    """Records what is computed on a device, and repeats it on the same tensors."""

    def on_capture_stream(self, train: Callable[[], T]) -> T:
        """Compute without recording, on the stream of the capture."""
        ...

    def capture(self, train: Callable[[], T]) -> T:
        """Record without computing. Each replay writes to the tensors of the answer."""
        ...

    def replay(self) -> None:
        """Compute what was recorded."""
        ...


@functools.cache
def stream_for(device: torch.device, thread: int) -> torch.cuda.Stream:
    """The stream on which this thread records. Torch keeps a workspace of many megabytes for each stream."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


class CudaGraph:
    """A CUDA graph.

    Attributes:
        device: the CUDA device.
        stream: the stream of warm-ups and captures.
        graph: the latest capture, or None.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = stream_for(device, threading.get_ident())
        self.graph: torch.cuda.CUDAGraph | None = None

    def on_capture_stream(self, train: Callable[[], T]) -> T:
        # Autograd records the stream on which a gradient is made first: it has to be the stream of the capture.
        current = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            answer = train()
        current.wait_stream(self.stream)
        return answer

    def capture(self, train: Callable[[], T]) -> T:
        graph = torch.cuda.CUDAGraph()
        try:
            with (
                # After a failure, torch itself would leave the stream of the capture in use.
                torch.cuda.stream(torch.cuda.current_stream(self.device)),
                # Other threads may use CUDA meanwhile: a loader's thread pins memory.
                torch.cuda.graph(graph, stream=self.stream, capture_error_mode="thread_local"),
            ):
                answer = train()
        except BaseException:
            stream_for.cache_clear()  # the state in which torch left this stream is unknown
            raise
        self.graph = graph
        return answer

    def replay(self) -> None:
        assert self.graph is not None
        self.graph.replay()


def check_capturable(optimizer: AnyOptimizer) -> None:
    """Refuse an optimizer that counts its steps on the CPU.

    Raises:
        WorkloadError: with the setting that changes it.
    """
    for each in each_of(optimizer).values():
        if any("capturable" in group and not group["capturable"] for group in each.param_groups):
            name = type(each).__name__
            raise WorkloadError(f"{name} cannot be captured as it is: make it with capturable=True")
