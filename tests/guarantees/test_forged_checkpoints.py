"""A part of a wrong type, sealed again, changes nothing of the workload: all is checked before anything is replaced."""

from __future__ import annotations

import copy
import random
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fsm_train import (
    CheckpointError,
    Phase,
    State,
    Supervised,
    Transition,
    WorkloadError,
    load_weights,
    on,
    restore,
    run,
    start,
)
from fsm_train.callbacks import checkpoint
from fsm_train.core.commands import SaveCheckpoint
from fsm_train.supervised.saved_shape import check_shape
from tests.checkpoints.mutations import seal
from tests.checkpoints.rich_training import everything, library, rich, same
from tests.how_long import of_all

CALLBACKS = library(8)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source")

    @on(Phase.BATCH_END)
    def save(state: State) -> Transition | None:
        if state.iteration not in (5, 6):
            return None
        return Transition(commands=(SaveCheckpoint(str(folder), f"at-{state.iteration}"),))

    run(start(rich(), epochs=2, seed=0), [*CALLBACKS, save])
    return folder


def forged(source: Path, folder: Path, parts: Any) -> Path:
    """A copy of the folder in which the newest checkpoint holds these parts, with digests that fit."""
    shutil.copytree(source, folder)
    torch.save(parts, folder / "at-6" / "tensors.pt")
    seal(folder / "at-6")
    return folder


def saved(source: Path) -> dict[str, Any]:
    parts: dict[str, Any] = torch.load(source / "at-6" / "tensors.pt", weights_only=True)
    return parts


def paths_in(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of all values in nested containers."""
    items: Any = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    found = [path] if path else []
    for key, part in items:
        found += paths_in(part, (*path, key))
    return found


def with_a(parts: dict[str, Any], path: tuple[Any, ...], value: Any) -> dict[str, Any]:
    forged_parts = copy.deepcopy(parts)
    place: Any = forged_parts
    for key in path[:-1]:
        place = place[key]
    if value is ...:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return forged_parts


WRONG = (5, "x", None, [], {}, [1, "x"], {"x": 1}, True, torch.zeros(2), ...)


@pytest.mark.parametrize("part", ["modules", "optimizer", "optimizer_of", "gradients", "window", "scaler"])
@pytest.mark.parametrize("value", [5, "x", [1, "x"]], ids=repr)
def test_a_part_of_a_wrong_type_is_a_damaged_checkpoint(part: str, value: Any, source: Path, tmp_path: Path) -> None:
    """Asked for by its name it is an error, and nothing has changed; in its folder the one before is used, and said."""
    folder = forged(source, tmp_path / "copy", with_a(saved(source), (part,), value))
    work = rich()
    before = everything(work)
    with pytest.raises(CheckpointError, match=part):
        restore(folder / "at-6", work)
    assert same(everything(work), before)
    with pytest.warns(RuntimeWarning, match=f"at-6.*{part}.*continuing from .*at-5"):
        assert restore(folder, work).iteration == 5


GROUP = ("optimizer", "param_groups", 0)
NAMED = {
    "a rate without a value": ("not in it", [((*GROUP, "lr"), torch.ones((), device="meta"))]),
    "a trillion words of a generator": (
        "not in it",
        [(("generators", "python", 1), torch.zeros(1).long().expand(2**40))],
    ),
    "an unknown name, and then a layer that is none": (
        "",
        [((*GROUP, "unknown"), torch.ones(3)), (("modules", "model", "values", "2.weight"), "x")],
    ),
}


@pytest.mark.parametrize("case", NAMED)
def test_what_random_mutations_found_changes_nothing(case: str, source: Path, tmp_path: Path) -> None:
    """The optimizer is put back as it was, and no memory is asked for that the file does not have."""
    parts, (sentence, changes) = saved(source), NAMED[case]
    for path, value in changes:
        parts = with_a(parts, path, value)
    folder = forged(source, tmp_path / "copy", parts)
    work = rich()
    run(start(work, epochs=1), CALLBACKS)
    before = everything(work)
    with pytest.raises(CheckpointError, match=f"at-6.*{sentence}"):
        restore(folder / "at-6", work)
    assert same(everything(work), before)
    with pytest.warns(RuntimeWarning, match="at-6.*continuing from .*at-5"):
        assert restore(folder, work).iteration == 5


@pytest.mark.long
def test_whatever_is_forged_all_or_nothing_is_restored(source: Path, tmp_path: Path) -> None:
    """Values at any place of the parts are exchanged for others, or left out.

    What comes is a refusal, with a workload that is as before, or a state; never an error of Python or torch, but that
    the model or the optimizer is another one. Values inside of an optimizer's state or of a callback's are its own.
    """
    chance = random.Random(0)
    good = saved(source)
    places = paths_in(good)
    refused = 0
    for i in range(of_all(2000, few=60)):
        path, value = chance.choice(places), chance.choice(WRONG)
        folder = forged(source, tmp_path / str(i), with_a(good, path, value))
        work = rich()
        before = everything(work)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                restore(folder / "at-6", work)
            except (CheckpointError, WorkloadError, RuntimeError):
                assert same(everything(work), before), (path, value)
                refused += 1
            shutil.rmtree(folder)
    assert refused > 20


def test_parts_of_every_training_fit(source: Path) -> None:
    """And a missing one is named."""
    parts = saved(source)
    check_shape(parts)
    with pytest.raises(CheckpointError, match="no part 'window'"):
        check_shape({name: part for name, part in parts.items() if name != "window"})


def test_another_model_is_an_error_that_changes_nothing(source: Path) -> None:
    """Neither the layers before the one that differs, nor the optimizer, nor its groups."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    data = [(torch.randn(4, 3), torch.randn(4, 2))]
    work = Supervised(model, torch.optim.AdamW(model.parameters()), nn.MSELoss(), data, data)
    run(start(work, epochs=1))
    before = everything(work)
    with pytest.raises((RuntimeError, WorkloadError)):
        restore(source, work)
    assert same(everything(work), before)


def test_an_object_that_refuses_its_state_is_named_and_nothing_has_changed(source: Path, tmp_path: Path) -> None:
    """Neither the model, nor the objects that were loaded before it."""
    parts = saved(source)
    parts["extra"] = {"a": {"counted": 7}, "b": {"other": 7}}
    folder = forged(source, tmp_path / "copy", parts)
    work = rich(extra=("a", "b"))
    before = everything(work)
    with pytest.raises(WorkloadError, match="extra 'b' is another one than was saved: .*KeyError: 'counted'"):
        restore(folder / "at-6", work)
    assert same(everything(work), before)

    parts["extra"] = {"a": {"counted": 7}, "b": {"counted": 8}}
    parts["optimizer"] = {"state": {}, "param_groups": []}
    with pytest.raises(CheckpointError, match="at-6: its parts are not"):
        restore(forged(source, tmp_path / "other", parts) / "at-6", work)
    assert same(everything(work), before)


def test_a_gradient_that_a_parameter_cannot_have_changes_nothing(source: Path, tmp_path: Path) -> None:
    """Gradients that were there stay too."""
    parts = saved(source)
    parts["gradients"][0] = parts["gradients"][0].long()
    work = rich()
    for parameter in work.parameters:
        parameter.grad = torch.ones_like(parameter)
    before = everything(work)
    with pytest.raises(CheckpointError, match="at-6: its parts are not .*grad"):
        restore(forged(source, tmp_path / "copy", parts) / "at-6", work)
    assert same(everything(work), before)


@pytest.mark.parametrize(
    "path",
    [
        ("modules",),
        ("modules", "model", "values"),
        ("modules", "model", "values", "2.weight"),
        ("modules", "model", "buffers", "1.running_mean"),
        ("averages",),
        ("averages", "ema", "average"),
        ("averages", "ema", "average", "parameters"),
        ("averages", "ema", "average", "parameters", "model.2.weight"),
    ],
)
def test_weights_are_loaded_all_or_none(path: tuple[str, ...], source: Path, tmp_path: Path) -> None:
    """What is wrong in any of them is a damaged checkpoint; of the folder the one before is loaded, and said."""
    folder = forged(source, tmp_path / "copy", with_a(saved(source), path, ["x"]))
    model = rich().model
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(CheckpointError, match="at-6"):
        load_weights(folder, model, which="at-6")
    assert same(model.state_dict(), before)
    with pytest.warns(RuntimeWarning, match="at-6.*: loading .*at-5"):
        assert load_weights(folder, model, which="last")["name"] == "at-5"
    assert not same(model.state_dict(), before)


def test_a_checkpoint_whose_state_is_forged_is_passed_over(source: Path, tmp_path: Path) -> None:
    """The other file of it."""
    folder = tmp_path / "copy"
    shutil.copytree(source, folder)
    (folder / "at-6" / "state.json").write_bytes(b"[]")
    forged_again = forged(folder, tmp_path / "again", saved(source))
    with pytest.warns(RuntimeWarning, match="at-6"):
        assert restore(forged_again, rich()).iteration == 5


def test_a_folder_is_not_touched_by_what_is_refused(source: Path, tmp_path: Path) -> None:
    """A training in it goes on, and drops nothing of what it cannot read."""
    folder = forged(source, tmp_path / "copy", with_a(saved(source), ("window",), 5))
    work = rich()
    with pytest.warns(RuntimeWarning, match="window"):
        state = restore(folder, work)
    run(state, [*CALLBACKS, checkpoint(folder, keep=1)])
    assert {"at-5", "at-6"} <= {path.name for path in folder.iterdir()}
