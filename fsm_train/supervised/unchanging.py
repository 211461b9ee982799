"""Which tensors of a module may well stay as they are in a training: those of a frozen teacher, say.

Rule of this file: it says where to look. Whether a tensor has changed is seen from its values, at each save.
"""

from __future__ import annotations

from torch import nn
from torch.nn.parameter import is_lazy

from ..data.compiled import named_modules, named_parameters, plain_name


def unchanging(module: nn.Module) -> list[str]:
    """The names of parameters without a gradient, and of the buffers of parts in eval mode that have only such ones.

    >>> model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2).requires_grad_(False).eval())
    >>> unchanging(model)
    ['1.weight', '1.bias', '1.running_mean', '1.running_var', '1.num_batches_tracked']
    """
    parameters = dict(named_parameters(module, remove_duplicate=False))
    frozen = [name for name, p in parameters.items() if not (p.requires_grad or is_lazy(p))]
    buffers = {
        f"{path}.{name}" if path else name: None
        for path, part in named_modules(module)
        if not part.training and _is_frozen(part)
        for name, buffer in part.named_buffers()
        if not is_lazy(buffer)
    }
    return [*frozen, *map(plain_name, buffers)]


def _is_frozen(part: nn.Module) -> bool:
    own = [*part.parameters()]
    return bool(own) and not any(parameter.requires_grad for parameter in own)
