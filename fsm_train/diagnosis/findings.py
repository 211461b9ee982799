"""What a diagnosis says: findings with their evidence.

Rule of this file: records of plain values, and their text. Nothing is decided here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal

import attrs

from ..core.values import frozen_map
from ..wording import escaped, short_number

Certainty = Literal["certain", "likely", "possible"]
"""`certain` is a fact of the log; `likely` is seldom wrong; `possible` has harmless explanations too."""


@attrs.frozen
class Evidence:
    """One value of a training.

    >>> print(Evidence("valid_loss", 0.25, epoch=7, line=45))
    valid_loss is 0.25 (epoch 7, line 45)

    Attributes:
        name: of the metric, fact or hyper-parameter, or what was counted.
        value: what it was.
        epoch: the number of the epoch that it belongs to, from 1.
        line: the number of the line in the file, from 1; None where there is no file.
    """

    name: str
    value: float
    epoch: int
    line: int | None = None

    def __str__(self) -> str:
        line = "" if self.line is None else f", line {self.line}"
        return f"{escaped(self.name)} is {short_number(self.value)} (epoch {self.epoch}{line})"


@attrs.frozen
class Finding:
    """A known illness of a training.

    >>> print(Finding("overfitting", "likely", "valid_loss rises", (Evidence("valid_loss", 0.5, 9),), "train shorter"))
    overfitting (likely): valid_loss rises
      seen: valid_loss is 0.5 (epoch 9)
      try:  train shorter

    Attributes:
        illness: its name, as in the README of this package.
        certainty: "certain", "likely" or "possible".
        what: what was found, as a sentence.
        evidence: the values that show it, in their order.
        advice: what to try.
    """

    illness: str
    certainty: Certainty
    what: str
    evidence: tuple[Evidence, ...]
    advice: str

    def __str__(self) -> str:
        seen = "; ".join(map(str, self.evidence))
        return f"{self.illness} ({self.certainty}): {escaped(self.what)}\n  seen: {seen}\n  try:  {self.advice}"

    @property
    def sentence(self) -> str:
        """What was found, in one line.

        >>> Finding("spikes", "likely", "train_loss jumps in epoch 3", (), "lower the rate").sentence
        'spikes (likely): train_loss jumps in epoch 3; try: lower the rate'
        """
        return f"{self.illness} ({self.certainty}): {escaped(self.what)}; try: {self.advice}"


@attrs.frozen
class Diagnosis:
    """The findings of a log, and which illnesses could not be looked for. Printed, it is a page.

    >>> print(Diagnosis((), {"steps held back": "there is no step"}))
    no known illness was found
    not judged: steps held back (there is no step)

    Attributes:
        findings: in the order of the README of this package.
        not_judged: by the name of an illness, why it could not be looked for, and what to record for it.
    """

    findings: tuple[Finding, ...]
    not_judged: Mapping[str, str] = attrs.field(converter=frozen_map)

    def __iter__(self) -> Iterator[Finding]:
        return iter(self.findings)

    def __len__(self) -> int:
        return len(self.findings)

    def __str__(self) -> str:
        lines = [str(finding) for finding in self.findings] or ["no known illness was found"]
        reasons: dict[str, list[str]] = {}
        for illness, why in self.not_judged.items():
            reasons.setdefault(why, []).append(illness)
        lines += [f"not judged: {', '.join(illnesses)} ({escaped(why)})" for why, illnesses in reasons.items()]
        return "\n".join(lines)
