"""`fsm-train diagnose LOG`."""

from __future__ import annotations

import argparse

import attrs

from ..diagnosis.api import diagnose
from .output import write_json
from .status import AGREES, DIFFERS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("log")


def run(options: argparse.Namespace) -> int:
    diagnosis = diagnose(options.log)
    if options.json:
        findings = [attrs.asdict(finding) for finding in diagnosis]
        write_json({"findings": findings, "not_judged": diagnosis.not_judged})
    else:
        print(diagnosis)
    return DIFFERS if diagnosis.findings else AGREES
