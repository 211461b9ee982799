"""`fsm-train weights`: a file with the weights that `load_weights` loads, read back by torch and by safetensors."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from fsm_train import CheckpointError, Supervised, load_weights, run, start
from fsm_train.callbacks import checkpoint, ema, swa
from fsm_train.checkpoints.api import read
from fsm_train.checkpoints.manifest import TENSORS, list_folder
from fsm_train.cli import main
from fsm_train.cli.status import UsageError
from fsm_train.supervised.weights_file import state_dict_of

Captured = pytest.CaptureFixture[str]

INPUTS = torch.randn(60, 6, generator=torch.Generator().manual_seed(1))
ROWS = TensorDataset(INPUTS, INPUTS.sum(1, keepdim=True))


class Net(nn.Module):
    """With a shared weight, statistics, a buffer outside of the state_dict and a transposed one in it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.second = nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Linear(6, 6)
        self.second.weight = self.first.weight
        self.head = nn.Linear(6, 1)
        self.register_buffer("seen", torch.zeros(6), persistent=False)
        self.register_buffer("turned", torch.arange(6.0).reshape(2, 3).t())

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        inputs = inputs.to(self.head.weight.dtype)
        output: torch.Tensor = self.head(self.second(self.norm(self.first(inputs)).relu()))
        return output.float()


class WithText(Net):
    """Its state_dict holds a text too."""

    def get_extra_state(self) -> str:
        return "v1"

    def set_extra_state(self, state: Any) -> None:
        """Nothing to set."""


def trained(folder: Path, *callbacks: Any, dtype: torch.dtype = torch.float32, kind: type[Net] = Net) -> Supervised:
    torch.manual_seed(0)
    model = kind().to(dtype)
    loaders = DataLoader(ROWS, batch_size=10, shuffle=True), DataLoader(ROWS, batch_size=60)
    work = Supervised(model, torch.optim.SGD(model.parameters(), lr=0.05), nn.MSELoss(), *loaders)
    run(start(work, epochs=4, seed=0), [*callbacks, checkpoint(folder, monitor="valid_loss", keep=4)])
    return work


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    equal = (torch.equal(one[name], other[name]) and one[name].dtype == other[name].dtype for name in one)
    return one.keys() == other.keys() and all(equal)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("which", ["best", "last", "epoch-00001"])
@pytest.mark.parametrize("average", [(), (ema(0.9),), (swa(1),)], ids=["model", "ema", "swa"])
def test_files_hold_what_load_weights_loads(
    average: tuple[Any, ...], which: str, dtype: torch.dtype, tmp_path: Path, capsys: Captured
) -> None:
    """To the last bit, in each kind of file, and into a model with `load_state_dict`."""
    trained(tmp_path / "runs", *average, dtype=dtype)
    model = Net().to(dtype)
    loaded = load_weights(tmp_path / "runs", model, which=which)
    files = tmp_path / "model.pt", tmp_path / "model.safetensors"
    for file in files:
        assert main(["weights", str(tmp_path / "runs"), "--which", which, "-o", str(file), "--json"]) == 0
        said = json.loads(capsys.readouterr().out)
        assert said.pop("file") == str(file)
        assert said == {**loaded, "metrics": dict(loaded["metrics"]), "left_out": []}

    for values in torch.load(files[0], weights_only=True), safetensors.torch.load_file(files[1]):
        assert same(values, model.state_dict())
        fresh = Net().to(dtype)
        fresh.load_state_dict(values)
        assert same(fresh.state_dict(), model.state_dict())
    tied = torch.load(files[0], weights_only=True)
    assert tied["first.weight"].data_ptr() == tied["second.weight"].data_ptr()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.pt", "model.safetensors", "runs"]


def test_it_says_what_it_wrote(tmp_path: Path, capsys: Captured) -> None:
    """Name, epoch, step, the average if it is one, and the metrics; an old file is replaced."""
    trained(tmp_path / "runs", ema(0.9))
    file = tmp_path / "model.pt"
    file.write_text("an older one")
    loss = load_weights(tmp_path / "runs", Net(), which="epoch-00002")["metrics"]["valid_loss"]

    assert main(["weights", str(tmp_path / "runs" / "epoch-00002"), "-o", str(file)]) == 0
    assert capsys.readouterr().out == (
        f"{file}  epoch-00002  epoch 2  step 12  weights of ema  valid_loss {loss:#.4g}\n"
    )
    assert "head.weight" in torch.load(file, weights_only=True)
    trained(tmp_path / "plain")
    assert main(["weights", str(tmp_path / "plain"), "-o", str(file)]) == 0
    assert "weights of" not in capsys.readouterr().out


def test_a_damaged_best_is_passed_over_and_said(tmp_path: Path, capsys: Captured) -> None:
    """On standard error, with its name; the next best is written."""
    trained(tmp_path / "runs")
    best = load_weights(tmp_path / "runs", Net())["name"]
    (tmp_path / "runs" / best / TENSORS).write_bytes(b"")

    assert main(["weights", str(tmp_path / "runs"), "-o", str(tmp_path / "model.pt"), "--json"]) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out)["name"] != best
    assert f"{best}/tensors.pt is damaged" in shown.err
    assert main(["weights", str(tmp_path / "runs"), "--which", best, "-o", str(tmp_path / "model.pt")]) == 2


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["-o", "model.onnx"], "model.onnx: its name is to end in .pt or .safetensors"),
        (["-o", "runs/epoch-00001/tensors.pt"], "would be in a checkpoint, which is left as it was written"),
        (["-o", "nowhere/model.pt"], "No such file or directory"),
        (["-o", "model.pt", "--which", "epoch-9"], "there is no checkpoint 'epoch-9' in runs"),
    ],
)
def test_what_cannot_be_written_is_said(
    arguments: list[str], sentence: str, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On standard error, with exit status 2, and nothing is left behind."""
    monkeypatch.chdir(tmp_path)
    trained(tmp_path / "runs")
    before = sorted(tmp_path.rglob("*"))

    assert main(["weights", "runs", *arguments]) == 2
    shown = capsys.readouterr()
    assert (shown.out, sentence in shown.err) == ("", True)
    assert sorted(tmp_path.rglob("*")) == before
    assert main(["checkpoints", "runs"]) == 0


def test_what_is_no_tensor_needs_a_pt_file(tmp_path: Path, capsys: Captured) -> None:
    """A .safetensors file holds tensors alone; the older file stays."""
    trained(tmp_path / "runs", ema(0.9), kind=WithText)
    file = tmp_path / "model.safetensors"
    file.write_text("an older one")

    assert main(["weights", str(tmp_path / "runs"), "-o", str(file)]) == 2
    assert "_extra_state is of the type str, and a .safetensors file holds tensors alone" in capsys.readouterr().err
    assert file.read_text() == "an older one"
    assert main(["weights", str(tmp_path / "runs"), "-o", str(tmp_path / "model.pt")]) == 0
    assert torch.load(tmp_path / "model.pt", weights_only=True)["_extra_state"] == "v1"


def test_an_extra_that_is_missing_is_named(tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything is read: a .pt file needs it not."""
    trained(tmp_path / "runs")
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "safetensors" else find(name))

    assert main(["weights", str(tmp_path / "runs"), "-o", str(tmp_path / "model.safetensors")]) == 2
    assert "pip install 'fsm-train[safetensors]', or write a .pt" in capsys.readouterr().err
    assert main(["weights", str(tmp_path / "runs"), "-o", str(tmp_path / "model.pt")]) == 0


def test_without_torch_it_says_so(tmp_path: Path) -> None:
    """The command is there, since the other commands need none; its help is read without torch too."""
    code = "import sys; sys.modules['torch'] = None; from fsm_train.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "weights"]
    done = subprocess.run([*command, str(tmp_path), "-o", "a.pt"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, "fsm-train: weights needs torch: pip install torch\n")
    assert subprocess.run([*command, "--help"], capture_output=True).returncode == 0


def test_an_average_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    """One of an earlier form, and one without a parameter that the model has; one that has not begun is the model."""
    trained(tmp_path / "runs", ema(0.9))
    (newest, *_) = list_folder(tmp_path / "runs").checkpoints
    _, parts = read(newest)
    average = parts["averages"]["ema"]["average"]

    without = {**average, "parameters": {k: v for k, v in average["parameters"].items() if k != "model.head.bias"}}
    for changed, sentence in ((without, "has no head.bias"), ({"n_averaged": 1}, "of an earlier version")):
        parts["averages"]["ema"]["average"] = changed
        with pytest.raises(CheckpointError, match=sentence):
            state_dict_of(newest.path, parts, "ema")
    parts["averages"]["ema"]["average"] = {**average, "n_averaged": 0}
    assert same(state_dict_of(newest.path, parts, "ema"), parts["modules"]["model"]["values"])


def test_without_torch_it_says_what_to_install(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other commands do without it."""

    def import_module(name: str) -> Any:
        raise ModuleNotFoundError(f"No module named 'torch', for {name}", name="torch")

    monkeypatch.setattr(importlib, "import_module", import_module)
    monkeypatch.delitem(sys.modules, "fsm_train.cli.weights", raising=False)
    weights_command = __import__("fsm_train.cli.weights", fromlist=["run"])
    with pytest.raises(UsageError, match="weights needs torch: pip install torch"):
        weights_command.run(argparse.Namespace(output=str(tmp_path / "weights.pt")))
