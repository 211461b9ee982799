"""`diagnose(log)`."""

from __future__ import annotations

from os import PathLike

import attrs

from ..core.arguments import check_path
from .findings import Diagnosis
from .reading import observe
from .rules import judged
from .stops import stopped_too_early


def diagnose(log: str | PathLike[str]) -> Diagnosis:
    """Look for known illnesses of a training in its log, without training and without the model.

    >>> from fsm_train import run, start
    >>> from fsm_train.worlds.scripted import Scripted
    >>> losses = [2.0, 1.4, 1.0, 0.7, 0.5, 0.35, 0.25, 0.18]
    >>> work = Scripted(train_loss=losses, valid_loss=[2.0, 1.5, 1.2, 1.1, 1.15, 1.25, 1.4, 1.6])
    >>> final = run(start(work, epochs=8), log="run.jsonl")
    >>> diagnosis = diagnose("run.jsonl")
    >>> [(finding.illness, finding.certainty) for finding in diagnosis]
    [('overfitting', 'likely')]
    >>> diagnosis.findings[0].evidence[0]
    Evidence(name='valid_loss', value=1.1, epoch=4, line=14)

    Args:
        log: the path of a log; one that ends in .gz is decompressed.

    Raises:
        LogError: the log cannot be read.
        OSError: the file cannot be read.
    """
    check_path(log, "the log of diagnose", "diagnose('run.jsonl')")
    training = observe(log)
    diagnosis = judged(training)
    stop = stopped_too_early(log, training)
    return diagnosis if stop is None else attrs.evolve(diagnosis, findings=(*diagnosis.findings, stop))
