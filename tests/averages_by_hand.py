"""What a loop by hand makes of the settings of an exponential average, with torch's own AveragedModel."""

from __future__ import annotations

from typing import Any

import attrs
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


@attrs.frozen
class By:
    """Settings of an average, and what a loop by hand makes of them."""

    decay: float = 0.8
    buffers: Any = "copy"
    every: int = 1
    start: int = 0
    warmup: bool = False
    initial: bool = False

    def averaged(self, model: nn.Module) -> Averaged:
        torchs = AveragedModel(model, use_buffers=self.buffers == "average")
        if self.initial:
            torchs.update_parameters(model)
        return Averaged(self, torchs)


@attrs.define
class Averaged:
    """Torch's AveragedModel, updated by the rule of these settings."""

    by: By
    torchs: AveragedModel

    def after(self, step: int, model: nn.Module) -> None:
        by, n = self.by, int(self.torchs.n_averaged)
        if step < by.start or (step - by.start) % by.every:
            return
        decay = min(by.decay, (1 + n) / (10 + n)) if by.warmup else by.decay
        self.torchs.multi_avg_fn = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
        self.torchs.update_parameters(model)
        for (name, buffer), (_, own) in zip(self.torchs.module.named_buffers(), model.named_buffers(), strict=True):
            if not buffer.is_floating_point():  # torch averages counts too, and rounds them
                assert name.endswith("num_batches_tracked")
                buffer.copy_(own)
