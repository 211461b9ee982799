"""Several processes that train one model: the group they form, and what is done so that they train as one.

Rule of this file: it is found from the environment that torchrun sets, or from a process group that is there; nothing
is guessed from the hardware. What ranks tell each other is in `ranks.py`, and what follows from it in `worlds/`.
"""

from __future__ import annotations

import atexit
import inspect
import logging
import os
from collections.abc import Iterable, Mapping, Set
from datetime import timedelta
from functools import partial
from typing import Any, Literal, cast

import attrs
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed import distributed_c10d as c10d
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from ..core.callback import Callback
from ..core.checks import check_choice, check_count, check_positive
from ..core.commands import UseMicroBatches, UseParallel, WeighLoss
from ..core.errors import WorkloadError
from ..core.runs import goes_on
from ..core.state import State
from ..core.workload import Workload
from ..data.own_rank import launched_ranks, own_rank
from ..data.sharded import share_of
from ..worlds.agreed import Agree, Agreed
from ..worlds.meeting import Meeting
from ..worlds.passes import Pass
from .leaving import note_end
from .rank_notes import notes_of_ranks
from .ranks import GlooExchange, end_exchanges, shared_exchange
from .reduction import broadcast_buffers, reduce_gradients, share_buffers_of_wrapper, sparse_parameters
from .sharded_model import FSDP, check_evaluations, check_kind, is_sharded, sharding_settings
from .shares import is_shared

Parallel = Literal["ddp", "fsdp", False] | Mapping[str, Any]

_logger = logging.getLogger("fsm_train")
_OWN = ("kind", "agree", "seconds", "interrupts_every")
_OF_DDP = tuple(name for name in inspect.signature(DistributedDataParallel).parameters if name != "module")


@attrs.frozen
class ParallelSettings:
    """What `Supervised(parallel=…)` says.

    Attributes:
        kind: how the model is wrapped.
        agree: when the ranks compare what they decided, as for `Agreed`.
        seconds: how long a rank waits for the others.
        interrupts_every: batches between two looks for signals; None for several looks a second.
        of_torch: settings of torch's wrapper, or of its fully_shard.
    """

    kind: Literal["ddp", "fsdp"] = "ddp"
    agree: Agree = "epoch"
    seconds: float = 300.0
    interrupts_every: int | None = None
    of_torch: Mapping[str, Any] = attrs.field(factory=dict)


def check_parallel(parallel: Parallel | None) -> ParallelSettings | None:
    """The settings, checked; None without.

    Raises:
        ValueError: no such kind, or no such setting.
    """
    if parallel is None or parallel is False:
        return None
    if isinstance(parallel, str):
        parallel = {"kind": parallel}
    if not isinstance(parallel, Mapping) or (kind := parallel.get("kind", "ddp")) not in ("ddp", "fsdp"):
        given = kind if isinstance(parallel, Mapping) else parallel
        raise ValueError(f'parallel={given!r}: write parallel="ddp" or "fsdp", or its settings in a mapping')
    of_torch = _OF_DDP if kind == "ddp" else sharding_settings()
    if unknown := [name for name in parallel if name not in (*_OWN, *of_torch)]:
        raise ValueError(
            f"parallel={{{unknown[0]!r}: …}}: there is no such setting. There are {', '.join(_OWN)}, and those of "
            f"{'DistributedDataParallel' if kind == 'ddp' else 'fully_shard'}: {', '.join(of_torch)}"
        )
    check_choice("parallel['agree']", parallel.get("agree", "epoch"), ("epoch", "phase", "never"))
    check_positive("parallel['seconds']", parallel.get("seconds", 300.0))
    if parallel.get("interrupts_every") is not None:
        check_count("parallel['interrupts_every']", parallel["interrupts_every"], least=1)
    own: dict[str, Any] = {name: value for name, value in parallel.items() if name in _OWN}
    return ParallelSettings(**own, of_torch={name: value for name, value in parallel.items() if name in of_torch})


def with_agree(parallel: Parallel | None, agree: Agree | None) -> Parallel | None:
    """What `parallel` says, with the `agree` that was given beside it.

    >>> with_agree("ddp", "phase"), with_agree({"seconds": 60}, None)
    ({'kind': 'ddp', 'agree': 'phase'}, {'seconds': 60})

    Raises:
        ValueError: there is no such choice, there are no ranks to agree, or both say it.
    """
    if agree is None:
        return parallel
    check_choice("agree", agree, ("epoch", "phase", "never"))
    if parallel is None or parallel is False:
        raise ValueError(f'agree={agree!r} is for ranks that train together: write it with parallel="ddp" or "fsdp"')
    if isinstance(parallel, Mapping) and parallel.get("agree", agree) != agree:
        raise ValueError(f"agree={agree!r}, and parallel={{'agree': {parallel['agree']!r}}}: leave one of them out")
    return {**(parallel if isinstance(parallel, Mapping) else {"kind": parallel}), "agree": agree}


def join_ranks(parallel: Parallel | None, device: torch.device | str | None) -> Ranks | None:
    """The ranks that this process trains with; None if it trains alone.

    Under torchrun this forms the process group, unless the program did so before.

    Raises:
        ValueError: no such setting.
    """
    settings = check_parallel(parallel)
    if settings is None or not dist.is_available():
        return None
    if not dist.is_initialized() and (launched := launched_ranks()) > 1:
        _form_group(launched, device, settings)
    if not dist.is_initialized() or dist.get_world_size() == 1:
        speak_again()
        return None
    return Ranks(settings)


def _form_group(ranks: int, device: torch.device | str | None, settings: ParallelSettings) -> None:
    given = torch.device("cpu" if device is None else device)
    on_cuda = given.type == "cuda"
    if on_cuda:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) if given.index is None else given.index)
    timeout = timedelta(seconds=settings.seconds)
    store, rank, _ = next(rendezvous("env://", timeout=timeout))
    # torchrun keeps its store when it starts the processes again, with the addresses of those that are gone.
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    store = c10d.PrefixStore(f"attempt-{attempt}", store)
    backend = "nccl" if on_cuda else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=ranks, timeout=timeout)
    atexit.register(_end_group)


def _end_group() -> None:
    """At the end of the process, while Python is still whole."""
    speak_again()
    end_exchanges()
    if dist.is_initialized():
        dist.destroy_process_group()


class Ranks:
    """The processes that train one model, as one of them sees them.

    Attributes:
        rank, ranks: the number of this one, and how many there are.
        settings: of `Supervised(parallel=…)`.
        by_hand: whether all gradients are reduced once before each step, and not by torch's wrapper in each backward.
        unreduced: whether a backward added to the gradients since they were reduced.
    """

    def __init__(self, settings: ParallelSettings) -> None:
        self.settings = settings
        self.rank, self.ranks = dist.get_rank(), dist.get_world_size()
        self.by_hand = False
        self.unreduced = False
        self._agreed: Agreed | None = None
        self._said: set[str] = set()
        self._of: object = None  # the parameters that the next two were worked out for
        self._beside_wrapper: list[nn.Parameter] = []
        self._sparse: Set[nn.Parameter] = frozenset()
        self.exchange  # noqa: B018 - formed where all ranks come, so that one that ends before a run is missed
        (quieten if self.rank else speak_again)()

    @property
    def exchange(self) -> GlooExchange:
        return shared_exchange(self.settings.seconds)

    def device(self, device: torch.device) -> torch.device:
        """The device of this rank: "cuda" is the one of this process."""
        is_any_cuda = device.type == "cuda" and device.index is None
        return torch.device("cuda", torch.cuda.current_device()) if is_any_cuda else device

    def agreed(self, work: Any) -> Workload:
        """The workload as all ranks are told of it. There is one for a workload, in all calls of `run`."""
        return self._agreed_of(work).as_workload()

    def _agreed_of(self, work: Any) -> Agreed:
        if self._agreed is None or self._agreed.meeting.lost:
            settings = self.settings
            self._agreed = Agreed(work, self.exchange, agree=settings.agree, interrupts_every=settings.interrupts_every)
        return self._agreed

    def meeting(self, work: Any) -> Meeting:
        """How this rank meets the others, for what is exchanged beside operations."""
        return self._agreed_of(work).meeting

    def train_pass(self, work: Any) -> Pass:
        """The pass over the training data, as it is agreed on."""
        return self._agreed_of(work).train_pass

    @property
    def lost(self) -> bool:
        """Whether the ranks no longer meet, after a failure."""
        return self._agreed is not None and self._agreed.meeting.lost

    def say_once(self, sentences: Iterable[str]) -> None:
        """Log each of these warnings in the first run that it is true of."""
        for sentence in sentences:
            if sentence not in self._said:
                self._said.add(sentence)
                _logger.warning("%s", sentence)

    # ------------------------------------------------------------------------------------ the model

    def prepare(self, work: Any, state: State) -> None:
        """Let the model be called through torch's wrapper in this call of `run`; a sharded one needs none."""
        self.unreduced = self.unreduced and state.pending > 0  # a window that an earlier call has left open
        if self.settings.kind == "fsdp":
            self.by_hand = False  # each backward reduces, also those of a window, into this rank's shares
            if not goes_on(state):
                self.share_buffers(work)
            return
        work.call_through(partial(self._wrapped, keeps_buffers=goes_on(state)))
        work.undo_at_finish(lambda: work.call_through(None))

    def _wrapped(self, model: nn.Module, *, keeps_buffers: bool) -> nn.Module:
        """The model in torch's wrapper, which gives all ranks the weights and buffers of rank 0 when it is made."""
        own = [buffer.detach().clone() for buffer in model.buffers()] if keeps_buffers else []
        device = next(model.parameters()).device
        given = dict(self.settings.of_torch)
        if device.type == "cuda":
            given.setdefault("device_ids", [device])
        wrapped = DistributedDataParallel(model, **given)
        if self.by_hand:
            wrapped.require_backward_grad_sync = False
            wrapped.require_forward_param_sync = False  # as after the first forward pass without that
        with torch.no_grad():
            for buffer, value in zip(model.buffers(), own, strict=False):
                buffer.copy_(value)
        return wrapped

    # -------------------------------------------------------------------------------- the gradients

    def reduces(self, work: Any) -> bool:
        """Whether gradients are reduced by `reduce` before a step: all of them, or those that the wrapper has not."""
        if self._of is not work.parameters:
            if self.settings.kind == "fsdp":
                reduced = {parameter for parameter in work.parameters if is_shared(parameter)}
            else:
                reduced = {*work.model.parameters()}
            self._of, self._beside_wrapper = work.parameters, [p for p in work.parameters if p not in reduced]
            self._sparse = sparse_parameters(work.modules.values())
        return self.by_hand or bool(self._beside_wrapper)

    def reduce(self, work: Any) -> None:
        """Make each gradient the mean over ranks, where torch's wrapper has not done so. Idempotent."""
        if self.unreduced and self.reduces(work):
            reduce_gradients(work.parameters if self.by_hand else self._beside_wrapper, self._sparse, self.ranks)
        self.unreduced = False

    def share_buffers(self, work: Any) -> None:
        """Give all ranks the buffers of rank 0, as torch's wrapper does before a forward pass; in averages too."""
        averages = work.carried_over.averages.values()
        broadcast_buffers(work.modules.values(), [buffer for each in averages for buffer in each.buffers.values()])

    def share_buffers_of_window(self, work: Any) -> None:
        """Give all ranks the buffers of rank 0 before the first forward pass of a window, as torch's wrapper does.

        It does so itself where it reduces gradients: before each forward pass that follows a reduction.
        """
        wrapped = work.wrapped_model
        if not self.by_hand or self.unreduced or not isinstance(wrapped, DistributedDataParallel):
            return
        wrapped.require_forward_param_sync = True  # which it asks for, beside its settings
        shares = wrapped.will_sync_module_buffers()  # type: ignore[no-untyped-call]
        wrapped.require_forward_param_sync = False
        if shares:
            share_buffers_of_wrapper(wrapped)

    def finish(self, work: Any, state: State) -> None:
        """End a call of `run` with the same buffers, and note for this process how it ended."""
        if not state.error and state.resume_at is None:  # where a training is suspended, each rank goes on with its own
            self.share_buffers(work)
        note_end(state)


def reduced_by_hand(callbacks: Iterable[Callback[Any]], work: Any) -> bool:
    """Whether gradients are reduced once before a step: of several batches, of pieces, or by a backward of one's own.

    torch's wrapper decides before a forward pass whether the backward after it exchanges gradients; that the batch
    is one of a window is known after its loss.
    """
    several_backwards = (WeighLoss, UseMicroBatches)
    return work.custom_backward is not None or any(
        kind in (each.commands or ()) for each in callbacks for kind in several_backwards
    )


def spelled_by(callbacks: Iterable[Callback[Any]]) -> Parallel | None:
    """What the callback `parallel("ddp")` says."""
    by_callback = (
        each.params.get("kind") for each in callbacks if UseParallel in (each.commands or ()) and each.factory
    )
    return "ddp" if "ddp" in by_callback else None


def across_ranks(work: Any, callbacks: Iterable[Callback[Any]] | None) -> Workload:
    """What a run drives: the workload, or with other ranks what all of them are told.

    Args:
        work: a `Supervised`.
        callbacks: of the run; None where there is none, as in an evaluation.

    Raises:
        WorkloadError: there are other ranks, and nothing says that they train together; or they cannot, or not so.
    """
    if work.ranks is None and spelled_by(callbacks or ()):
        work.ranks = join_ranks("ddp", work.device)
    ranks: Ranks | None = work.ranks
    if ranks is None:
        if work.parallel is None or is_sharded(work.model):
            _refuse_group(work)
        return cast("Workload", work)
    if work.players:
        _refuse_players(work)
    if work.gives_closure:
        raise WorkloadError(
            "the optimizer evaluates its batch again by a closure, and decides by the loss of this rank alone, so the "
            "ranks would part: use another optimizer, or one rank"
        )
    check_kind(work.model, work.optimizer, ranks.settings.kind)
    if ranks.settings.kind == "fsdp":
        check_evaluations(work.evaluations)
    if callbacks is not None:
        ranks.by_hand = reduced_by_hand(callbacks, work)
        meters = [work.train_meters, *(each.meters for each in work.evaluations)]
        ranks.say_once(notes_of_ranks(work.model, work._roots(), callbacks, meters))
    return ranks.agreed(work)


def _refuse_group(work: Any) -> None:
    rank, ranks = own_rank()
    in_group = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
    if work.players and (in_group or (ranks > 1 and share_of(work.train) is not None)):
        _refuse_players(work)
    if ranks > 1 and share_of(work.train) is not None:
        raise WorkloadError(
            f"this is process {rank} of {ranks}, and trains with its part of the data, but nothing says that they "
            'train one model: write Supervised(…, parallel="ddp"), or parallel=False if each trains one of its own'
        )
    if in_group:
        write = 'write Supervised(…, parallel="ddp"), or parallel=False if that is meant'
        if is_sharded(work.model):
            write = f"it is sharded, so write {FSDP}"
        raise WorkloadError(
            f"this is rank {dist.get_rank()} of a process group of {dist.get_world_size()}, and each would train a "
            f"model of its own: {write}"
        )


def _refuse_players(work: Any) -> None:
    rank, ranks = own_rank()
    raise WorkloadError(
        f"this is process {rank} of {ranks}, and the players {', '.join(map(repr, work.players))} take turns: ranks "
        "weigh losses and metrics by what a batch counts, not by whose turn it is. Train players in one process, "
        "started by python and not by torchrun"
    )


class _OnlyErrors(logging.Filter):
    """Lets warnings through once there is no group any more, whoever ended it."""

    def filter(self, record: logging.LogRecord) -> bool:
        return record.levelno >= logging.ERROR or not dist.is_initialized()


_only_errors = _OnlyErrors()


def quieten() -> None:
    """Warnings are rank 0's to say: on the others only errors are logged, as long as there is a group."""
    _logger.addFilter(_only_errors)  # idempotent


def speak_again() -> None:
    """Take off what `quieten` has put on the logger."""
    _logger.removeFilter(_only_errors)
