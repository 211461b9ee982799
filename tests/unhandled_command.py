"""A command that no workload carries out."""

from __future__ import annotations

import attrs

from fsm_train import Command


@attrs.frozen
class Shake(Command):
    """Shake the weights a little."""

    strength: float = 0.1
