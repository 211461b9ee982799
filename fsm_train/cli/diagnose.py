"""`fsm-train diagnose LOG`."""

from __future__ import annotations

import argparse

import attrs

from ..diagnosis.api import diagnose
from ..diagnosis.findings import Finding
from ..encoding import Json, encode
from .output import write_json
from .status import AGREES, DIFFERS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("log")


def run(options: argparse.Namespace) -> int:
    diagnosis = diagnose(options.log)
    if options.json:
        write_json({"findings": list(map(as_json, diagnosis)), "not_judged": diagnosis.not_judged})
    else:
        print(diagnosis)
    return DIFFERS if diagnosis.findings else AGREES


def as_json(finding: Finding) -> dict[str, Json]:
    """A finding as data; a value that is not finite is in the form that it has in a log."""
    evidence = [{**attrs.asdict(point), "value": encode(point.value)} for point in finding.evidence]
    return {**attrs.asdict(finding, recurse=False), "evidence": evidence}
