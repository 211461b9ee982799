"""Fields that records got after logs had been written with them.

Rule of this file: a field is added when a command or a memory of the library gets it, and never removed. A log that
does not have it cannot differ in it; one that has it is compared in it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..encoding import Json

ADDED: Mapping[str, tuple[str, ...]] = {
    "ClipGradNorm": ("pattern",),
    "Freeze": ("train_bn", "temporary"),
    "KeepAverage": ("buffers", "player"),
    "Kept": ("before",),
    "SaveCheckpoint": ("monitor", "mode", "by", "beside"),
    "UpdateAverage": ("decay",),
    "UseScheduler": ("optimizer", "player"),
    "WeighLoss": ("by",),
}
"""By the name of a record, the fields that it did not have in its first version."""


def without_added_fields(line: dict[str, Json], recorded: Mapping[str, Json]) -> dict[str, Json]:
    """The decided line, without added fields where the recorded answers do not have them."""
    if "answers" not in line:
        return line
    return {**line, "answers": as_far_as(line["answers"], recorded.get("answers"))}


def as_far_as(decided: Any, recorded: Any) -> Any:
    """The decided value, without added fields of records that the recorded value has without them.

    >>> as_far_as([{"$": "Kept", "files": [], "before": None}], [{"$": "Kept", "files": []}])
    [{'$': 'Kept', 'files': []}]
    """
    if isinstance(decided, Mapping) and isinstance(recorded, Mapping) and decided.get("$") == recorded.get("$"):
        added = ADDED.get(decided.get("$", ""), ())
        return {
            name: as_far_as(value, recorded.get(name))
            for name, value in decided.items()
            if name not in added or name in recorded
        }
    if isinstance(decided, list) and isinstance(recorded, list) and len(decided) == len(recorded):
        return [as_far_as(*pair) for pair in zip(decided, recorded, strict=True)]
    return decided
