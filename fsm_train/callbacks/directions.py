"""Which way a metric is better, by its name: a table of words.

Rule of this file: a name that leaves a doubt gets no answer, so that its direction is asked for.
"""

from __future__ import annotations

import re
from typing import Literal

Direction = Literal["min", "max"]
"""The `mode` of a monitor: whether smaller values are better, or larger ones."""

_SMALLER = """
    loss losses error err perplexity ppl mae mse rmse mape smape msle rmsle nll bce crossentropy wer cer ter fid kid
    lpips ece kl kld bpc bpd bpb fpr fnr eer logloss brier hinge
"""
SMALLER = frozenset(_SMALLER.split())
"""Words for what is better when it is smaller."""

_LARGER = """
    accuracy acc f1 fbeta auc auroc auprc aupr roc precision recall score iou miou r2 dice jaccard map ap bleu rouge
    rouge1 rouge2 rougel meteor chrf psnr ssim mcc kappa ndcg mrr tpr tnr sensitivity specificity elbo likelihood
    top1 top3 top5 acc1 acc5 map50
"""
LARGER = frozenset(_LARGER.split())
"""Words for what is better when it is larger."""

PHRASES: dict[str, Direction] = {
    "brier score": "min",
    "negative log likelihood": "min",
    "neg log likelihood": "min",
    "cross entropy": "min",
    "kl divergence": "min",
    "log loss": "min",
    "error rate": "min",
    "false positive rate": "min",
    "false negative rate": "min",
    "word error rate": "min",
    "mean absolute error": "min",
    "mean squared error": "min",
    "inception score": "max",
    "exact match": "max",
    "average precision": "max",
    "true positive rate": "max",
    "true negative rate": "max",
}
"""What several words say together, at the end of a name."""

_SUFFIXES: dict[str, Direction] = {"loss": "min", "error": "min", "accuracy": "max"}
"""Words that are recognized at the end of a longer one, as in `logloss`."""

_QUALIFIERS = frozenset(["macro", "micro", "weighted", "mean", "avg", "average", "epoch", "at", "k", "top"])
"""Words behind a metric that do not change its direction: `f1_macro`, `recall_at_5`."""

_NEGATIONS = frozenset(["neg", "negative", "inverse", "inv", "minus", "non", "not", "wrong"])


def direction_of(name: str) -> Direction | None:
    """Whether smaller or larger values of a metric are better, by the last word of its name; None if it does not say.

    >>> direction_of("valid_loss"), direction_of("valid_top5_accuracy"), direction_of("valid_MulticlassF1Score")
    ('min', 'max', 'max')
    >>> direction_of("valid_brier_score"), direction_of("valid_temperature"), direction_of("valid_neg_loss")
    ('min', None, None)

    Args:
        name: of the metric, with its prefix train_ or valid_ or without.
    """
    words = _words(name.removeprefix("train_").removeprefix("valid_"))
    while len(words) > 1 and (words[-1] in _QUALIFIERS or words[-1].isdigit()):
        words.pop()
    for length in (3, 2):
        if len(words) >= length and (found := PHRASES.get(" ".join(words[-length:]))):
            return None if _NEGATIONS.intersection(words[:-length]) else found
    if not words or _NEGATIONS.intersection(words):
        return None
    last = words[-1]
    if last == "score" and SMALLER.intersection(words):
        return None
    if last in SMALLER:
        return "min"
    if last in LARGER:
        return "max"
    return next((found for suffix, found in _SUFFIXES.items() if last.endswith(suffix)), None)


def _words(name: str) -> list[str]:
    """The words of a name, in lower case: `MulticlassF1Score` has three, `top5_accuracy` two."""
    parted = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name)
    return [word for word in re.split(r"[^a-z0-9]+", parted.lower()) if word]
