"""What is saved of a training that failed: its parts as they were at the end of what is whole.

Rule of this file: what can be taken back is taken back in what is saved, and each thing that cannot is a note.
The weights are saved as they are.
"""

from __future__ import annotations

from collections.abc import Iterator

from ..checkpoints.writing import Parts
from ..core.failing import Failure
from ..core.phase import Flag, Phase
from ..core.state import Hyper, State
from ..data.plain_generators import plain
from ..data.position import EpochStart
from ..data.sources import same
from .saved_parts import parts_of
from .validation import Validating
from .window import Window


def parts_after_failure(work: Validating, state: State) -> tuple[Parts, tuple[str, ...]]:
    """The parts to save in this state, which `whole_state` made, and notes on what cannot be restored exactly."""
    failure: Failure = state.failure
    work.abandon_validation(state)
    for average in work.carried_over.averages.values():
        average.use(False)
    notes = [*_buffers(work, failure)]
    now = work.hyper()
    others = {name: value for name, value in state.hyper.items() if name in now and _fits(value, now[name])}
    work.set_hyper(others)
    try:
        parts, found = parts_of(work, state)
    finally:
        work.set_hyper({name: now[name] for name in others})
    notes += _gradients(work, state, parts)
    if failure.in_a_batch or failure.fetching:
        notes += _place(work, state, parts)
    if failure.in_a_batch and work.stepped:
        notes.append("the weights: the batch that failed has taken its step, and is trained again")
    return parts, (*found, *notes)


def _fits(value: Hyper, now: Hyper) -> bool:
    """Whether this value differs from the one now, and has as many groups."""
    groups, groups_now = (len(v) if isinstance(v, tuple) else 0 for v in (value, now))
    return value != now and groups == groups_now


def _buffers(work: Validating, failure: Failure) -> Iterator[str]:
    """Put back the buffers that the batch which failed may have changed, or say that they are changed."""
    if not failure.after_forward or work.put_back_buffers() or work.doing is None:
        return
    if any(True for module in work.modules.values() for _ in module.buffers()):
        yield "the buffers, such as the statistics of batch norm: the batch that failed may be in them"


def _gradients(work: Validating, state: State, parts: Parts) -> Iterator[str]:
    """Leave out the gradients of a batch that is trained again, or say that others wait beneath them."""
    failure: Failure = state.failure
    stays = state.pending > 0 or Flag.SKIP_ZERO in state.flags
    if failure.after_backward and stays:
        yield "the gradients that wait for a step: those of the batch that failed may be among them"
    elif (failure.after_backward or failure.phase is Phase.STEP_END) and not stays:
        parts["gradients"], parts["window"] = {}, Window().state()
    if failure.after_backward and work.is_metered:
        yield "the training metrics of this epoch: the batch that failed is in them, and will be again"


def _place(work: Validating, state: State, parts: Parts) -> Iterator[str]:
    """Bring the place in the data, and all generators, to where they were before the batch that failed."""
    start, began = work.epoch_start, work.epoch_began == state.iteration
    if state.resume_at is Phase.EPOCH_END:
        if not began:
            return  # nothing was fetched
        assert start is not None
        parts["generators"], parts["sources"] = (parts["beginning"][name] for name in ("generators", "sources"))
        if not start.generators.are_all:
            yield from _drawn(start)
    elif work.batch_start is not None and work.batch_start.batch != state.batch:
        pass  # its fetch had not begun
    elif work.batch_start is not None:
        sources = work.batch_start.sources.since(work.sources_when_made).plain()
        paths = {id(layer.part): layer.path for layer in work.own_generators()}
        parts["generators"], parts["sources"] = plain(work.batch_start.generators, paths), sources
    elif start is not None:
        yield from _drawn(start)
        if not same(parts["sources"], parts["beginning"]["sources"]):
            yield "what of the training data changes while it is read: it is as after the batch that failed"
    if parts["loader"] is not None:
        yield f"the place in the training data: the {type(work.train).__name__} keeps it, and may be a batch ahead"


def _drawn(start: EpochStart) -> Iterator[str]:
    if others := start.generators.changed(start.generators.again()):
        yield (
            f"{', '.join(others.values())}: what the batch that failed drew stays drawn; "
            "checkpoint(…, on_failure=True) notes the generators before each batch"
        )
