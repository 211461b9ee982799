"""Training data: batches, loaders, the place in a pass over them, prefetching, reproducible augmentation."""

from .augmentation import reproducible

__all__ = ["reproducible"]
