"""Training data: batches, loaders, the position in a pass over them, prefetching, reproducible augmentation."""

from .augmentation import reproducible

__all__ = ["reproducible"]
