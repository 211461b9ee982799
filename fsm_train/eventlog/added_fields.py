"""Fields that commands got after logs had been written with them.

Rule of this file: a field is added when a command of the library gets it, and never removed. A log that does not have
it cannot differ in it; one that has it is compared in it.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..encoding import Json

ADDED: Mapping[str, tuple[str, ...]] = {
    "Freeze": ("train_bn", "temporary"),
    "SaveCheckpoint": ("monitor", "mode"),
}
"""By the name of a command, the fields that it did not have in its first version."""


def without_added_fields(line: dict[str, Json], recorded: Mapping[str, Json]) -> dict[str, Json]:
    """The decided line, without added fields where the recorded commands do not have them."""
    theirs = recorded.get("answers")
    if "answers" not in line or not isinstance(theirs, Mapping):
        return line
    return {**line, "answers": {name: _answer(answer, theirs.get(name)) for name, answer in line["answers"].items()}}


def _answer(answer: Mapping[str, Json], recorded: Json) -> Mapping[str, Json]:
    theirs = recorded.get("commands") if isinstance(recorded, Mapping) else None
    if "commands" not in answer or not isinstance(theirs, list) or len(answer["commands"]) != len(theirs):
        return answer
    return {**answer, "commands": [*map(_command, answer["commands"], theirs)]}


def _command(command: Mapping[str, Json], recorded: Json) -> Mapping[str, Json]:
    if not isinstance(recorded, Mapping) or command["$"] != recorded.get("$"):
        return command
    added = ADDED.get(command["$"], ())
    return {field: value for field, value in command.items() if field not in added or field in recorded}
