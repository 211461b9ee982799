"""What several situations use."""

import torch
from torch.utils.data import DataLoader


def unshuffled(data, batch_size):
    """A loader for tests. It has a generator of its own: otherwise each pass by hand draws from the global one."""
    return DataLoader(data, batch_size=batch_size, generator=torch.Generator())
