"""Which parameters are frozen, by patterns of their names."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from fnmatch import fnmatchcase

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from ..core.commands import Freeze
from ..core.errors import WorkloadError
from ..data.compiled import named_modules, named_parameters
from ..wording import some_of
from .joint_optimizer import AnyOptimizer

_logger = logging.getLogger("fsm_train")


class FrozenParameters:
    """The parameters of a model whose names match a pattern: they require no gradient.

    A parameter that several modules share has several names, and is frozen if one of them matches.

    Attributes:
        model: whose parameters are frozen.
        optimizer: of the training; what it lacks is not trained later.
        freezes: one pattern may be there more than once.
        trainable: whether a parameter required a gradient before it was frozen first.
        batch_norms: those that keep their statistics, with the mode that they had before.
    """

    def __init__(self, model: nn.Module, optimizer: AnyOptimizer) -> None:
        self.model = model
        self.optimizer = optimizer
        self.freezes: list[Freeze] = []
        self.trainable: dict[nn.Parameter, bool] = {}
        self.batch_norms: dict[nn.Module, bool] = {}
        self._said: set[str] = set()

    def add(self, freeze: Freeze) -> None:
        """Freeze the parameters that match the pattern. What is surprising about them is logged.

        Raises:
            WorkloadError: no parameter matches.
        """
        names = self._names()
        frozen = {p: all_names for p, all_names in names.items() if _matches(all_names, freeze.pattern)}
        if not frozen:
            there_are = some_of([all_names[0] for all_names in names.values()], 12)
            raise WorkloadError(f"no parameter matches {freeze.pattern!r}: there are {there_are}")
        self._say_tied(freeze.pattern, frozen.values())
        self.freezes.append(freeze)
        self._apply()
        if freeze.temporary:
            self._say_untrainable(freeze.pattern, frozen)

    def remove(self, pattern: str) -> None:
        """Undo one `add` of this pattern, if there is one."""
        for freeze in self.freezes:
            if freeze.pattern == pattern:
                self.freezes.remove(freeze)
                self._apply()
                self._say_untrainable(
                    pattern, {p: names for p, names in self._names().items() if _matches(names, pattern)}
                )
                return

    def clear(self) -> None:
        """Undo every `add`."""
        self.freezes = []
        self._apply()
        self.trainable.clear()
        self._said.clear()

    def take_in(self) -> None:
        """Freeze parameters that are new in the model and match a pattern. No other one thaws."""
        for parameter, names in self._names().items():
            matches = any(_matches(names, freeze.pattern) for freeze in self.freezes)
            if matches and parameter not in self.trainable:
                self.trainable[parameter] = parameter.requires_grad
                parameter.requires_grad, parameter.grad = False, None

    def _names(self) -> dict[nn.Parameter, list[str]]:
        names: dict[nn.Parameter, list[str]] = {}
        for name, parameter in named_parameters(self.model, remove_duplicate=False):
            names.setdefault(parameter, []).append(name)
        return names

    def _apply(self) -> None:
        for parameter, names in self._names().items():
            frozen = any(_matches(names, freeze.pattern) for freeze in self.freezes)
            if frozen:
                self.trainable.setdefault(parameter, parameter.requires_grad)
                parameter.grad = None  # with a gradient, momentum and weight decay would still change it
            if parameter in self.trainable:
                parameter.requires_grad = self.trainable[parameter] and not frozen
        self._apply_to_batch_norms()

    def _apply_to_batch_norms(self) -> None:
        patterns = [freeze.pattern for freeze in self.freezes if not freeze.train_bn]
        frozen = {module for name, module in named_modules(self.model) if _is_frozen_norm(name, module, patterns)}
        for module in [module for module in self.batch_norms if module not in frozen]:
            module.training = self.batch_norms.pop(module)
        for module in frozen - self.batch_norms.keys():
            self.batch_norms[module] = module.training
            module.training = False

    def _say_tied(self, pattern: str, frozen: Iterable[list[str]]) -> None:
        for names in frozen:
            others = [name for name in names if not fnmatchcase(name, pattern)]
            if others:
                own = next(name for name in names if fnmatchcase(name, pattern))
                self._say(
                    f"freeze({pattern!r}) freezes {own}, which is the same parameter as {', '.join(others)}: "
                    "tied weights are frozen under each of their names"
                )

    def _say_untrainable(self, pattern: str, parameters: dict[nn.Parameter, list[str]]) -> None:
        optimized = {parameter for group in self.optimizer.param_groups for parameter in group["params"]}
        unknown = [names[0] for parameter, names in parameters.items() if parameter not in optimized]
        if unknown:
            self._say(
                f"freeze({pattern!r}) ends in this training, and the optimizer does not have {some_of(unknown)}: it "
                "will not train what it does not have. Make the optimizer from all of model.parameters(), before "
                "anything is frozen"
            )
        fixed = [names[0] for p, names in parameters.items() if p in optimized and not self.trainable.get(p, True)]
        if fixed:
            self._say(
                f"freeze({pattern!r}) ends in this training, and {some_of(fixed)} required no gradient before: it "
                "stays so. Call requires_grad_(True) on it before the training begins, to have it trained afterwards"
            )

    def _say(self, sentence: str) -> None:
        if sentence not in self._said:
            self._said.add(sentence)
            _logger.warning("%s", sentence)


def _matches(names: Iterable[str], pattern: str) -> bool:
    return any(fnmatchcase(name, pattern) for name in names)


def _is_frozen_norm(path: str, module: nn.Module, patterns: list[str]) -> bool:
    """Whether all parameters of a norm with statistics match; without parameters, whether its statistics do."""
    if not isinstance(module, _NormBase) or module.running_mean is None:
        return False
    own = [name for name, _ in module.named_parameters(recurse=False)] or ["running_mean"]
    full = (f"{path}.{name}" if path else name for name in own)
    return all(any(fnmatchcase(name, pattern) for pattern in patterns) for name in full)
