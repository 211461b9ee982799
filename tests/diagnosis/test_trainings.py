"""Real trainings, ten that are spoilt on purpose and ten healthy ones: each is told from the others."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest

from fsm_train import diagnose

from .trainings import HEALTHY, ILL

SHOWN_BY_BATCHES = {"NaN in the data", "gradients exploding", "gradients vanishing", "patience too small"}


@pytest.mark.unmeasured
@pytest.mark.parametrize("name", ILL)
def test_spoilt_training_is_diagnosed(name: str, tmp_path: Path) -> None:
    """Its illness is among the findings, and each piece of evidence stands in the line that it names.

    The callback says it on the way, unless only batches show it.
    """
    train, illness = ILL[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what spoils it may be warned of
        final = train(tmp_path / "run.jsonl")

    assert illness in final.memory["diagnosing"].said or name in SHOWN_BY_BATCHES  # type: ignore[attr-defined]
    findings = {finding.illness: finding for finding in diagnose(tmp_path / "run.jsonl")}

    assert illness in findings
    lines = (tmp_path / "run.jsonl").read_text().splitlines()
    for point in findings[illness].evidence:
        assert f'"{point.name.removesuffix("s")}' in lines[(point.line or 0) - 1]


@pytest.mark.unmeasured
@pytest.mark.parametrize("name", HEALTHY)
def test_healthy_training_is_left_alone(name: str, tmp_path: Path) -> None:
    """There is no finding at all, neither in the log nor on the way."""
    final = HEALTHY[name](tmp_path / "run.jsonl")

    assert diagnose(tmp_path / "run.jsonl").findings == ()
    assert final.memory["diagnosing"].said == ()  # type: ignore[attr-defined]


def test_both_kinds_are_ten() -> None:
    """20 of 20 are told apart by the two tests above, and the ten have nine different illnesses."""
    assert (len(ILL), len(HEALTHY), len({illness for _, illness in ILL.values()})) == (10, 10, 9)
