"""The library: one factory for each callback, which checks its settings at once. A callback is a pure function.

Each factory takes `name`: under it the callback appears in the log and in messages, and has its memory in
the state. Two callbacks that one factory makes need two names.

Rule of these files: one concern each, and no torch. So all of it is tested without torch.
"""

from .accumulation import accumulate
from .averaging import ema, swa
from .clipping import clip_grad_norm, clip_grad_value
from .compiling import compile_step
from .diagnosing import diagnosing
from .freezing import freeze
from .keeping import checkpoint, restore_best
from .limits import limit, record, stop_after, stop_at, suspend_after, validate_every
from .mixing import cutmix, mixup
from .nonfinite import skip_nonfinite, stop_on_nonfinite
from .plateau import reduce_on_plateau
from .precision import detect_anomaly, micro_batches, mixed_precision, parallel
from .pruning import stop_pruned
from .regularisation import grad_noise, weight_penalty
from .scheduling import schedule
from .stopping import early_stopping
from .torch_schedulers import torch_scheduler
from .windows import during

__all__ = [
    "accumulate",
    "checkpoint",
    "clip_grad_norm",
    "clip_grad_value",
    "compile_step",
    "cutmix",
    "detect_anomaly",
    "diagnosing",
    "during",
    "early_stopping",
    "ema",
    "freeze",
    "grad_noise",
    "limit",
    "micro_batches",
    "mixed_precision",
    "mixup",
    "parallel",
    "record",
    "reduce_on_plateau",
    "restore_best",
    "schedule",
    "skip_nonfinite",
    "stop_after",
    "stop_at",
    "stop_on_nonfinite",
    "stop_pruned",
    "suspend_after",
    "swa",
    "torch_scheduler",
    "validate_every",
    "weight_penalty",
]
