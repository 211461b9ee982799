"""What a model consists of, as far as a person wants to see it."""

from __future__ import annotations

import attrs


@attrs.frozen
class ModelPart:
    """A part of a model with its parameters.

    Attributes:
        name: in the model; "" for the parameters that belong to no part of it.
        kind: the name of its class.
        parameters: how many numbers they have. One that several parts share counts in the first of them.
        trained: how many of these the optimizer changes.
        lazy: how many of its parameters have no size yet.
    """

    name: str
    kind: str
    parameters: int
    trained: int
    lazy: int = 0
