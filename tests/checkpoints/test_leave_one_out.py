"""Each ingredient of a checkpoint, forgotten once: the comparison of the boundaries has to notice."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest

from fsm_train.checkpoints import api as saving
from fsm_train.core.values import EMPTY
from fsm_train.data.generators import Generators
from fsm_train.data.plain_generators import plain
from fsm_train.supervised import workload as supervised
from fsm_train.supervised.saved_parts import parts_of
from tests.checkpoints.awkward_training import Spec
from tests.checkpoints.comparison import differences, disturb, resume, suspended_everywhere, train_through

pytestmark = pytest.mark.unmeasured

Parts = dict[str, Any]


def _fresh(spec: Spec) -> Parts:
    """What a workload has that was just made, which is what is left where something is forgotten."""
    from fsm_train import State
    from fsm_train.core.phase import Phase
    from fsm_train.core.state import Plan

    disturb()
    work, _ = spec.make()
    parts, _ = parts_of(work, State(Phase.BATCH_END, Plan(epochs=1)))
    paths = {id(layer.part): layer.path for layer in work.own_generators()}
    return parts | {"generators_now": plain(Generators.now(work.loader_generators()), paths)}


def _module(key: str, only: Callable[[str], bool] = lambda name: True) -> Callable[[Parts, Parts], None]:
    def forget(parts: Parts, fresh: Parts) -> None:
        ours, new = parts["modules"]["model"][key], fresh["modules"]["model"][key]
        ours.update({name: new[name] for name in ours if only(name)})

    return forget


def _part(key: str, value: Any = None) -> Callable[[Parts, Parts], None]:
    def forget(parts: Parts, fresh: Parts) -> None:
        parts[key] = fresh[key] if value is None else value

    return forget


def _generator(*names: str) -> Callable[[Parts, Parts], None]:
    def forget(parts: Parts, fresh: Parts) -> None:
        parts["generators"].update({name: fresh["generators_now"][name] for name in names})

    return forget


def _average(key: str) -> Callable[[Parts, Parts], None]:
    def forget(parts: Parts, fresh: Parts) -> None:
        for saved in parts["averages"].values():
            model, ours = parts["modules"]["model"], saved["average"][key]
            own = {f"model.{name}": value for name, value in (model["values"] | model["buffers"]).items()}
            ours.update({name: own[name] for name in ours})

    return forget


def _buffers(parts: Parts, fresh: Parts) -> None:
    _module("values", lambda name: "running" in name)(parts, fresh)
    _module("buffers", lambda name: "running" in name)(parts, fresh)


def _beginning(parts: Parts, fresh: Parts) -> None:
    parts["beginning"]["generators"] = parts["generators"]  # the live ones, which belong to what comes


MUTANTS: dict[str, tuple[str, Callable[[Parts, Parts], None]]] = {
    "parameters": ("everything", _module("values", lambda name: "weight" in name)),
    "batch-norm statistics": ("everything", _buffers),
    "buffers that are in no state_dict": ("everything", _module("buffers", lambda name: name == "adapts.seen")),
    "optimizer": ("everything", _part("optimizer")),
    "gradients": ("everything", _part("gradients")),
    "gradients that are kept": ("awkward", _part("gradients")),
    "window": ("everything", _part("window")),
    "scaler": ("float16", _part("scaler")),
    "average": ("everything", _average("parameters")),
    "buffers of the average": ("scheduler", _average("buffers")),
    "weights to go back to": (
        "everything",
        lambda parts, fresh: parts["weights"].update(
            {name: [fresh["modules"]["model"]["values"], {}] for name in parts["weights"]}
        ),
    ),
    "schedulers": ("scheduler", lambda parts, fresh: parts["schedulers"].clear()),
    "generator of Python": ("everything", _generator("python")),
    "generator of NumPy": ("everything", _generator("numpy")),
    "generator of torch": ("everything", _generator("cpu")),
    "generators at the beginning of the epoch": ("everything", _beginning),
    "meters": ("everything", _part("meters")),
    "extra": ("everything", _part("extra")),
}


def _end_with(spec: Spec, path: Path, forget: Callable[[Parts, Parts], None], monkeypatch: pytest.MonkeyPatch) -> Any:
    fresh, restore_parts = _fresh(spec), supervised.restore_parts

    def forgetful(work: Any, parts: Parts, state: Any) -> Any:
        forget(parts, fresh)
        return restore_parts(work, parts, state)

    with monkeypatch.context() as patched:
        patched.setattr(supervised, "restore_parts", forgetful)
        return resume(spec, path)


@pytest.fixture(scope="module")
def left(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], tuple[Spec, Path, Any]]:
    """A training of this variant that was left everywhere: once for all mutants."""
    made: dict[tuple[str, str], tuple[Spec, Path, Any]] = {}

    def get(variant: str, loader: str = "shuffled") -> tuple[Spec, Path, Any]:
        if (variant, loader) not in made:
            spec, folder = Spec(variant, loader), tmp_path_factory.mktemp("left")
            expected = train_through(spec)
            suspended_everywhere(spec, folder)
            made[variant, loader] = spec, folder, expected
        return made[variant, loader]

    return get


def _noticed(at: tuple[Spec, Path, Any], forget: Callable[[Parts, Parts], None], monkeypatch: Any) -> bool:
    spec, folder, expected = at
    paths = sorted(folder.iterdir())
    paths = paths[len(paths) // 3 :] + paths[: len(paths) // 3]
    return any(differences(expected, _end_with(spec, path, forget, monkeypatch)) for path in paths)


@pytest.mark.parametrize("ingredient", MUTANTS)
def test_what_is_forgotten_is_noticed(ingredient: str, left: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """With this ingredient forgotten, some boundary does not lead to the same end."""
    variant, forget = MUTANTS[ingredient]

    assert _noticed(left(variant), forget, monkeypatch)


def test_a_forgotten_generator_of_a_loader_is_noticed(left: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same where the loader has a generator of its own."""
    assert _noticed(left("everything", "own generator"), _generator("own"), monkeypatch)


@pytest.mark.parametrize("name", ["early_stopping", "restore_best", "ema", "accumulate", "validate_every"])
def test_a_forgotten_memory_is_noticed(name: str, left: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A callback that begins with its initial memory does not lead to the same end."""
    state_of = saving.state_of

    def forgetful(*saved: Any) -> Any:
        state = state_of(*saved)
        return attrs.evolve(state, memory={k: v for k, v in state.memory.items() if k != name} or EMPTY)

    monkeypatch.setattr(saving, "state_of", forgetful)
    assert _noticed(left("everything"), lambda parts, fresh: None, monkeypatch)


def test_nothing_forgotten_is_nothing_noticed(left: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check itself changes nothing."""
    spec, folder, expected = left("everything")

    found = _end_with(spec, sorted(folder.iterdir())[20], lambda parts, fresh: None, monkeypatch)

    assert differences(expected, found) == []
