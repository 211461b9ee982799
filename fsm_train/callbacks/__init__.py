"""The library: each callback is made by a factory with settings, and is a pure function.

A file per concern. All of it can be tested, and is, without torch.
"""

from .accumulation import accumulate
from .clipping import clip_grad_norm
from .scheduling import schedule
from .stopping import early_stopping

__all__ = ["accumulate", "clip_grad_norm", "early_stopping", "schedule"]
