"""Each callback of the library, with settings that have an effect in a short training."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from fsm_train import Callback, callbacks
from fsm_train.schedules import absolute, cosine, warmup


def _scheduler(optimizer: Any) -> Any:
    raise AssertionError("made by the workload, and there is none here")


EXAMPLES: Mapping[str, tuple[Callable[[], Callback[Any]], ...]] = {
    "accumulate": (
        lambda: callbacks.accumulate(2),
        lambda: callbacks.accumulate({0: 1, 1: 3}, weight="tokens", drop_last=True, name="accumulate tokens"),
    ),
    "checkpoint": (lambda: callbacks.checkpoint("runs", every_steps=2, monitor="valid_loss", keep=1),),
    "clip_grad_norm": (lambda: callbacks.clip_grad_norm(1.0, norm_type=math.inf),),
    "clip_grad_value": (lambda: callbacks.clip_grad_value(0.5),),
    "compile_step": (lambda: callbacks.compile_step(),),
    "cutmix": (lambda: callbacks.cutmix(0.5),),
    "detect_anomaly": (lambda: callbacks.detect_anomaly(check_nan=False),),
    "diagnosing": (lambda: callbacks.diagnosing(),),
    "during": (
        lambda: callbacks.during(callbacks.accumulate(2), epochs=(0, 1), name="during accumulate"),
        lambda: callbacks.during(
            callbacks.schedule(lr=warmup(2).then(cosine(6))), steps=(1, 4), name="during schedule"
        ),
        lambda: callbacks.during(callbacks.ema(0.9), epochs=(0, 2), name="during ema"),
        lambda: callbacks.during(
            callbacks.during(callbacks.clip_grad_norm(1.0), steps=(1, None)), epochs=(None, 2), name="during during"
        ),
    ),
    "early_stopping": (
        lambda: callbacks.early_stopping(patience=2),
        lambda: callbacks.early_stopping(
            "valid_accuracy", patience=1, min_delta=0.1, mode="max", on_nonfinite="wait", name="wait for accuracy"
        ),
    ),
    "ema": (lambda: callbacks.ema(0.9),),
    "freeze": (lambda: callbacks.freeze("encoder.*", until_epoch=2),),
    "grad_noise": (lambda: callbacks.grad_noise(0.1, decay=0.55),),
    "limit": (lambda: callbacks.limit(batches=2, valid_batches=1),),
    "micro_batches": (lambda: callbacks.micro_batches(4),),
    "mixed_precision": (lambda: callbacks.mixed_precision("float16"),),
    "mixup": (lambda: callbacks.mixup(0.4),),
    "parallel": (lambda: callbacks.parallel(),),
    "record": (lambda: callbacks.record("loss", "grad_norm", "stepped", "tokens", every=2),),
    "reduce_on_plateau": (lambda: callbacks.reduce_on_plateau(patience=0, cooldown=1, min_lr=0.001),),
    "restore_best": (lambda: callbacks.restore_best("valid_accuracy", mode="max"),),
    "schedule": (
        lambda: callbacks.schedule(lr=warmup(2).then(cosine(6))),
        lambda: callbacks.schedule(by="epoch", momentum=absolute(cosine(3)), name="schedule momentum"),
    ),
    "skip_nonfinite": (lambda: callbacks.skip_nonfinite(limit=2),),
    "stop_after": (lambda: callbacks.stop_after(steps=3, seconds=10),),
    "stop_at": (lambda: callbacks.stop_at("valid_loss", 0.5),),
    "stop_on_nonfinite": (lambda: callbacks.stop_on_nonfinite(),),
    "stop_pruned": (lambda: callbacks.stop_pruned("tokens"),),
    "suspend_after": (lambda: callbacks.suspend_after(seconds=3),),
    "swa": (lambda: callbacks.swa(1),),
    "torch_scheduler": (lambda: callbacks.torch_scheduler(_scheduler, by="epoch", monitor="valid_loss"),),
    "validate_every": (lambda: callbacks.validate_every(steps=2),),
    "weight_penalty": (lambda: callbacks.weight_penalty(l1=0.1, l2=0.1),),
}

EXPECTED: Mapping[str, Mapping[str, str]] = {
    "suspend_after": {"goes_on_as_before": "it counts the seconds of this call of run, so each call begins anew"},
    "swa": {"goes_on_as_before": "a validation that begins anew finds its weights in the average already"},
    "checkpoint": {"goes_on_as_before": "it writes one more checkpoint at SUSPEND, and drops it later"},
}
"""Checks that a callback fails on purpose, with the reason."""
