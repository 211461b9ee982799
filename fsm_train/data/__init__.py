"""Training data: batches, loaders, the position in a pass over them, prefetching, reproducible augmentation."""

from .augmentation import reproducible
from .lock_step import together
from .sharded import sharded

__all__ = ["reproducible", "sharded", "together"]
