"""Loaders in lock-step: several as one, which keeps the place of each.

Rule of this file: what is drawn is drawn in the order of `zip` over the loaders. What a pass over one of them follows
from is noted when that pass begins, also where it begins again within the pass over all.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal

import attrs

from ..core.checks import check_choice
from ..core.errors import WorkloadError
from .batches import check_loader, number_of_batches
from .generators import Generators, generators_of
from .layers import Combined
from .loaders import Running, persistent_workers_running, set_persistent_workers, start_pass
from .plain_generators import generators_of_plain, own_states, plain
from .position import fast_forward, is_stateful, own_place, own_place_again
from .sources import Sources

_END = object()


def together(*loaders: Iterable[Any], until: Literal["shortest", "longest"] = "shortest") -> Together:
    """Several loaders as one: each batch is the tuple of theirs.

    For a batch with labels and one without, two domains, a replay buffer beside new data. The batches of two loaders
    are a pair (inputs, target) unless `Supervised(split=…)` takes them apart in another way.

    >>> [*together([1, 2, 3], ["a", "b"])]
    [(1, 'a'), (2, 'b')]
    >>> [*together([1, 2, 3], ["a", "b"], until="longest")]
    [(1, 'a'), (2, 'b'), (3, 'a')]

    Its length is known where theirs are. A training that is resumed in mid-epoch goes on with the batches that would
    have come from each. All of them are told the training's epoch by `set_epoch`; a loader that begins again within
    an epoch is not told another one, and has a new order if it draws it from a generator.

    Args:
        *loaders: what `Supervised` takes as `train`: DataLoaders, lists, objects that start a new pass each time.
        until: "shortest": as `zip`, until one of them ends. "longest": until each of them has ended once; those that
            end before begin again. In each round those that have not ended yet are asked first.

    Raises:
        TypeError: there is no loader.
        ValueError: `until` is something else.
        WorkloadError: one of them is no loader, or stands there twice and has one pass at a time.
    """
    return Together(loaders, until)


class Together(Combined):
    """What `together` gives.

    Attributes:
        loaders: those that are read.
        until: when a pass ends.
    """

    def __init__(self, loaders: tuple[Iterable[Any], ...], until: str) -> None:
        check_choice("until", until, ("shortest", "longest"))
        if not loaders:
            raise TypeError("together of what? give the loaders one by one, as in together(labelled, unlabelled)")
        self.loaders = tuple(check_loader(loader, f"loader {i} of together") for i, loader in enumerate(loaders))
        self.until = until
        for i, loader in enumerate(self.loaders):
            one_pass = is_stateful(loader) or persistent_workers_running(loader) is not None
            if one_pass and any(loader is other for other in self.loaders[:i]):
                raise WorkloadError(
                    f"together has the same {type(loader).__name__} twice, which has one pass at a time: "
                    "make a loader for each place"
                )
        self._made = [Sources.now(loader) for loader in self.loaders]
        self._pass: _Pass | None = None  # the latest one
        self._loaded: Mapping[str, Any] | None = None  # a place that the next pass begins at

    def __len__(self) -> int:
        lengths = [number_of_batches(loader) for loader in self.loaders]
        known = [length for length in lengths if length is not None]
        if len(known) < len(lengths):
            raise TypeError("one of the loaders has no length")
        return min(known) if self.until == "shortest" else max(known)

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        loaded, self._loaded = self._loaded, None
        if loaded is None or loaded["passes"] is None:
            self._pass = _Pass([_Inner(loader) for loader in self.loaders], self.until)
            for inner in self._pass.each:
                inner.begin()
        else:
            now = generators_of_plain(loaded["now"], own_states(loaded["now"]["own"], generators_of(train=self)))
            over = loaded["over"]
            each = [_Inner(loader) for loader in self.loaders]
            for inner, saved in zip(each, loaded["passes"], strict=True):
                inner.go_on(saved, now, over=over)
            self._pass = _Pass(each, self.until, over)
        return self._pass

    def state_dict(self) -> dict[str, Any]:
        """The place in each of the loaders, as tensors and plain values."""
        if self._loaded is not None:
            return dict(copy.deepcopy(self._loaded))
        at = self._pass
        if at is None:
            return {"loaders": len(self.loaders), "passes": None, "over": False, "now": None}
        layers = generators_of(train=self)
        now = Generators.now(layer.part for layer in layers)
        return {
            "loaders": len(self.loaders),
            "passes": [inner.state(made) for inner, made in zip(at.each, self._made, strict=True)],
            "over": at.over,
            "now": plain(now, {id(layer.part): layer.path for layer in layers}),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Begin the next pass at a place that `state_dict` gave.

        Raises:
            WorkloadError: it is the place of another number of loaders.
        """
        if state["loaders"] != len(self.loaders):
            raise WorkloadError(
                f"the place that was saved is one in {state['loaders']} loaders, and together has {len(self.loaders)}"
            )
        self._loaded = copy.deepcopy(state)


class _Pass(Iterator[tuple[Any, ...]]):
    """A pass over all loaders.

    Attributes:
        each: the passes over them.
        until: when it ends.
        over: whether it has ended.
    """

    def __init__(self, each: list[_Inner], until: str, over: bool = False) -> None:
        self.each = each
        self.until = until
        self.over = over

    def __next__(self) -> tuple[Any, ...]:
        batches: dict[int, Any] = {}
        if not self.over:
            for i, inner in enumerate(self.each):
                if not inner.ended and not inner.fetch(batches, i) and self.until == "shortest":
                    break
            ended = [inner.ended for inner in self.each]
            self.over = any(ended) if self.until == "shortest" else all(ended)
        if self.over:
            for inner in self.each:
                inner.left = iter(())  # ends the workers of those that have not ended
            raise StopIteration
        for i, inner in enumerate(self.each):
            if inner.ended and not inner.fetch(batches, i):
                inner.begin()
                if not inner.fetch(batches, i):
                    raise WorkloadError(
                        f"loader {i} of together gave no batch when it began again: it is empty, or its __iter__ "
                        "starts no new pass each time"
                    )
        return tuple(batches[i] for i in range(len(self.each)))


@attrs.define(eq=False)
class _Inner:
    """The pass over one of the loaders, and what it follows from.

    Attributes:
        loader: what is read.
        left: the batches that are left in its pass.
        batches: those that were fetched in it.
        ended: whether a pass over it has ended; it begins again then.
        at_start, at_first: the generators just before the pass began, and before its first batch was asked for.
        workers: whether its persistent workers ran when the pass began.
        sources: of the loader, as they were then.
    """

    loader: Iterable[Any]
    left: Iterator[Any] = attrs.field(factory=lambda: iter(()))
    batches: int = 0
    ended: bool = False
    at_start: Generators | None = None
    at_first: Generators | None = None
    workers: Running = None
    sources: Sources | None = None

    def own(self) -> list[Any]:
        return generators_of(train=self.loader)

    def begin(self) -> None:
        """Start a new pass."""
        self.at_start = Generators.now(layer.part for layer in self.own())
        self.at_first = None
        self.workers = persistent_workers_running(self.loader)
        self.sources = Sources.now(self.loader)
        self.batches = 0
        self.left = start_pass(self.loader)

    def fetch(self, batches: dict[int, Any], place: int) -> bool:
        """Put the next batch at its place, and say whether there is one."""
        if self.at_first is None:
            assert self.at_start is not None
            self.at_first = self.at_start.again()
        batch = next(self.left, _END)
        if batch is _END:
            self.left, self.ended = iter(()), True
            return False
        batches[place] = batch
        self.batches += 1
        return True

    def state(self, made: Sources) -> dict[str, Any]:
        """The place in this loader, as tensors and plain values; `made` are its sources when it was new."""
        assert self.at_start is not None
        assert self.sources is not None
        paths = {id(layer.part): layer.path for layer in self.own()}
        return {
            "place": own_place(self.loader)[0],
            "batches": self.batches,
            "ended": self.ended,
            "at_start": plain(self.at_start, paths),
            "at_first": None if self.at_first is None else plain(self.at_first, paths),
            "workers": self.workers,
            "workers_now": persistent_workers_running(self.loader),
            "sources": self.sources.since(made, Sources.now(self.loader)).plain(),
        }

    def go_on(self, saved: Mapping[str, Any], now: Generators, *, over: bool) -> None:
        """Go on where this was saved; `now` are the generators as they were then. They are left in no defined state."""
        own = self.own()
        self.at_start, self.at_first = (
            None if parts is None else generators_of_plain(parts, own_states(parts["own"], own))
            for parts in (saved["at_start"], saved["at_first"])
        )
        assert self.at_start is not None
        self.batches, self.ended, self.workers = saved["batches"], saved["ended"], saved["workers"]
        place = saved["place"] if is_stateful(self.loader) else None
        if place is None:
            set_persistent_workers(self.loader, saved["workers_now"] if over else self.workers)
        self.sources = Sources.from_plain(saved["sources"])
        if not over:
            self.sources.put_back(self.loader)
        if place is not None:
            self.left = own_place_again(self.loader, self.at_start, place, now, over=over)
        elif not over:
            self.left = fast_forward(self.loader, self.batches, self.at_start, now, self.at_first)
