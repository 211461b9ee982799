"""`fsm-train weights FOLDER --which best -o FILE`. It is the one command that loads tensors, and so imports torch."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..checkpoints.manifest import looks_like_checkpoint
from ..wording import aligned_number, escaped, losses_first
from .output import write_json
from .status import AGREES, UsageError

SUFFIXES = (".pt", ".safetensors")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", help="the folder of the checkpoints, or one of them")
    parser.add_argument(
        "--which", default="best", help="best by its metric (the default), last, or the name of a checkpoint"
    )
    parser.add_argument("--player", help="of a training in turns, whose model it is; by default all, as G.0.weight")
    parser.add_argument(
        "-o",
        "--output",
        required=True,
        metavar="FILE",
        help="what to write, in the place of an older one: .pt for torch.load, or .safetensors",
    )


def run(options: argparse.Namespace) -> int:
    output = Path(options.output)
    _check_output(output)
    try:
        # By its name: no other command, and no import of this module, is to load torch.
        writer = importlib.import_module("fsm_train.supervised.weights_file")
    except ModuleNotFoundError as error:
        raise UsageError(f"weights needs {error.name}: pip install torch") from error
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        measured = writer.write_weights(options.folder, output, options.which, options.player)
    for warning in caught:
        print(f"fsm-train: {escaped(warning.message)}", file=sys.stderr)
    if options.json:
        write_json({"file": options.output, **measured, "metrics": dict(measured["metrics"])})
    else:
        print(escaped(f"{options.output}  {as_text(measured)}"))
    return AGREES


def _check_output(output: Path) -> None:
    if output.suffix not in SUFFIXES:
        raise UsageError(f"{output}: its name is to end in {' or '.join(SUFFIXES)}")
    if looks_like_checkpoint(output.parent):
        raise UsageError(f"{output} would be in a checkpoint, which is left as it was written: write it elsewhere")
    if output.suffix == ".safetensors" and importlib.util.find_spec("safetensors") is None:
        raise UsageError("a .safetensors file needs safetensors: pip install 'fsm-train[safetensors]', or write a .pt")


def as_text(measured: Mapping[str, Any]) -> str:
    """What was written, as one line: the checkpoint, epoch and step, the average if it is one, and the metrics."""
    metrics = measured["metrics"]
    return "  ".join(
        [
            measured["name"],
            f"epoch {measured['epoch']}",
            f"step {measured['step']}",
            *([] if measured["weights"] == "model" else [f"weights of {measured['weights']}"]),
            *(f"{name} {aligned_number(float(metrics[name]))}" for name in losses_first(metrics)),
        ]
    )
