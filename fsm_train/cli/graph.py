"""`fsm-train graph`."""

from __future__ import annotations

import argparse

from ..core import diagram
from ..core.phase import Phase
from ..core.svg import svg
from ..core.table import TABLE, Edge, term_name
from ..encoding import Json
from .callbacks_option import add_callbacks_option, import_callbacks
from .output import write_json
from .status import AGREES

FORMATS = {"mermaid": diagram.mermaid, "dot": diagram.dot, "text": diagram.text, "svg": svg}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--format", choices=tuple(FORMATS), default="text")
    add_callbacks_option(parser)
    text = "only the phases that the callbacks are consulted at"
    parser.add_argument("--watched", action="store_true", help=text)


def run(options: argparse.Namespace) -> int:
    callbacks = import_callbacks(options.callbacks) if options.callbacks else ()
    table = TABLE
    if options.watched:
        table = diagram.contracted({phase for callback in callbacks for phase in callback.at})
    consulted = {
        phase.name: [callback.name for callback in callbacks if phase in callback.at]
        for phase in Phase
        if any(phase in callback.at for callback in callbacks)
    }
    if options.json:
        write_json({"edges": list(map(_as_json, table)), "consulted": consulted})
    else:
        print(FORMATS[options.format](table, consulted))
    return AGREES


def _as_json(edge: Edge) -> dict[str, Json]:
    """An edge; its guard is a list of terms that must all hold, and is empty where the edge is always open."""
    return {
        "from": edge.source.name,
        "guard": [term_name(term) for term in edge.guard],
        "operations": [operation.value for operation in edge.operations],
        "raises": [str(flag.name) for flag in edge.raises],
        "to": edge.target.name,
    }
