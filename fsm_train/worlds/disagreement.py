"""What has to be the same on all ranks, as a digest and, where it differs, in words.

Rule of this file: pure functions. Who asks, and when, is in `agreed.py`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import attrs
import orjson

from ..core.errors import WorkloadError
from ..core.phase import STOP_FLAGS
from ..core.state import State
from ..encoding import Json, encode, flag_names

About = Mapping[str, Json]
"""What an exchange is about: names, and values as JSON."""

_CONTROL = tuple(
    field.name
    for field in attrs.fields(State)
    if field.eq and field.name not in {"phase", "flags", "facts", "history", "metrics", "hyper", "memory"}
)
_BY_NAME = ("metrics", "hyper", "memory")
_SHOWN = 60  # characters of a value


class DisagreementError(WorkloadError):
    """The ranks of a training decided differently, or are at different places. It is raised on all of them.

    >>> from fsm_train import Phase, Transition, on
    >>> from fsm_train.testing import PerRank, simulate
    >>> def own_rate(rank):
    ...     return on(Phase.EPOCH_END, name="own")(lambda state: Transition(hyper={"lr": 0.1 / (1 + rank)}))
    >>> try:
    ...     simulate(PerRank([own_rate(0)], [own_rate(1)]), ranks=2)
    ... except DisagreementError as error:
    ...     print(error)
    the ranks decided differently. hyper lr: 0.1 on rank 0, 0.05 on rank 1. ...
    """


class PeerError(WorkloadError):
    """Another rank of this training failed; the message has its number, and what it raised.

    >>> print(PeerError.of(1, "OSError: disk full"))
    rank 1 failed, and this rank ended with it: OSError: disk full
    """

    @classmethod
    def of(cls, rank: int, error: str) -> PeerError:
        return cls(f"rank {rank} failed, and this rank ended with it: {error}")


def control_state(state: State) -> About:
    """All that decides how a training goes on, by name: counters, flags, and each metric, number and memory.

    Facts are not in it, which are measured where a callback asks, nor the history, which grows. Neither are the phase
    and the flags that fall within an epoch: between two watched phases they are those of the first.
    """
    parts = {name: encode(getattr(state, name)) for name in _CONTROL} | {"flags": flag_names(state.flags & STOP_FLAGS)}
    for field in _BY_NAME:
        parts |= {f"{field} {name}": encode(value) for name, value in getattr(state, field).items()}
    return parts


def all_raised(state: State | None) -> About:
    """The same with all flags that are raised, for words: by one of them, such as STOP_EPOCH, ranks part in a batch."""
    return {} if state is None else {**control_state(state), "flags": flag_names(state.flags)}


def digest(about: Json) -> int:
    """48 bits of a hash, which are exact in a float; 0 of nothing.

    >>> digest({}), digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    (0, True)
    """
    if not about:
        return 0
    return int.from_bytes(hashlib.sha256(as_bytes(about)).digest()[:6], "big")


def as_bytes(about: Json) -> bytes:
    """The JSON, with names in sorted order."""
    return orjson.dumps(about, option=orjson.OPT_SORT_KEYS)


def different_decisions(abouts: Sequence[About]) -> DisagreementError:
    """The error of ranks that do not have the same: each name that differs, and the value on each rank, in their order.

    >>> print(different_decisions([{"hyper lr": 0.1}, {"hyper lr": 0.05}]))
    the ranks decided differently. hyper lr: 0.1 on rank 0, 0.05 on rank 1. ...
    """
    return DisagreementError(
        f"the ranks decided differently. {_differences(abouts)}. A callback that answers by anything but its state, "
        "such as a clock, a random number or the number of its rank, does so: check_callback finds it, and "
        'agree="phase" names the operation before which they part'
    )


def different_places(places: Sequence[str], abouts: Sequence[About] = ()) -> DisagreementError:
    """The error of ranks that met while they were at these places, in the order of the ranks.

    >>> print(different_places(["a fetch", "a validation"], [{"flags": ""}, {"flags": "STOP_EPOCH"}]))
    the ranks are at different places: at a fetch on rank 0, at a validation on rank 1. flags: "" on rank 0, ...

    Args:
        places: in words.
        abouts: what each of them had there; without it, only the places are said.
    """
    common = set[str].intersection(*map(set, abouts)) if abouts else ()  # a rank outside of a run has none of these
    differences = _differences([{name: about[name] for name in sorted(common)} for about in abouts])
    return DisagreementError(
        f"the ranks are at different places: {_by_rank([f'at {place}' for place in places])}. "
        f"{differences}{'. ' * bool(differences)}They were told the same, so a callback, the workload or the script "
        'decided by something of its own: agree="phase" names the operation before which they part'
    )


def _differences(abouts: Sequence[About]) -> str:
    """Each name whose values differ, with these, in the order of the ranks."""
    parts = []
    for name in dict.fromkeys(name for about in abouts for name in about):
        values = [_shown(about[name]) if name in about else "nothing" for about in abouts]
        if len(set(values)) > 1:
            parts.append(f"{name}: {_by_rank(values)}")
    return "; ".join(parts)


def _shown(value: Json) -> str:
    """The value as text; what JSON has no form for without its key."""
    if isinstance(value, dict) and len(value) == 1 and "$" not in value:
        (value,) = value.values()
    return value if isinstance(value, str) and value else as_bytes(value).decode()


def _by_rank(values: Sequence[str]) -> str:
    """Each value with the ranks that have it.

    >>> _by_rank(["0.1", "0.2", "0.1"])
    '0.1 on ranks 0 and 2, 0.2 on rank 1'
    """
    ranks = {value: [str(i) for i, other in enumerate(values) if other == value] for value in values}
    first, *_, last = sorted(ranks)
    alike = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
    begin = max(0, alike - _SHOWN // 3)
    return ", ".join(f"{_cut(value, begin)} on {_named(who)}" for value, who in ranks.items())


def _named(ranks: Sequence[str]) -> str:
    *others, last = ranks
    return f"ranks {', '.join(others)} and {last}" if others else f"rank {last}"


def _cut(text: str, begin: int) -> str:
    """The text, or of a long one the part from where the ranks begin to differ."""
    if len(text) <= _SHOWN:
        return text
    part = text[begin : begin + _SHOWN]
    return f"{'…' * (begin > 0)}{part}{'…' * (begin + _SHOWN < len(text))}"
