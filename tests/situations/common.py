"""What several situations use."""

import torch
from torch.utils.data import DataLoader


def unshuffled(data, batch_size, collate_fn=None):
    """A loader for tests. It has a generator of its own: otherwise each pass by hand draws from the global one."""
    return DataLoader(data, batch_size, collate_fn=collate_fn, generator=torch.Generator())
