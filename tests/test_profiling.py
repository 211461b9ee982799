"""`profiled`: a trace of some batches, read back."""

from __future__ import annotations

import json
import time
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fsm_train import Phase, Scripted, State, Supervised, evaluate, on, profiled, run, start
from fsm_train.callbacks import accumulate, clip_grad_norm, compile_step, record, skip_nonfinite
from tests.diabetes_training import batches, weights_of, workload


def ranges(path: Path) -> Counter[str]:
    """How often each range of the machine is in the trace."""
    events = json.loads(path.read_text())["traceEvents"]
    names = [event["name"] for event in events if event.get("cat") == "user_annotation"]
    return Counter(name.removeprefix("fsm_train.") for name in names if name.startswith("fsm_train."))


@pytest.mark.parametrize("callbacks", [[], [accumulate(2), clip_grad_norm(1.0)], [skip_nonfinite(), record("loss")]])
def test_each_operation_is_a_range(tmp_path: Path, callbacks: list[Any]) -> None:
    """Also those that are carried out in one go otherwise; the weights are the same to the last bit."""
    plain, seen = workload(batches(8, 7, 6, 5, 4)), workload(batches(8, 7, 6, 5, 4))
    run(start(plain, epochs=2, seed=0), callbacks)
    final = run(start(seen, epochs=2, seed=0), callbacks, sinks=[profiled(tmp_path / "t.json", steps=(1, 4))])

    found = ranges(tmp_path / "t.json")
    assert torch.equal(weights_of(seen.model), weights_of(plain.model))
    assert final.notes == ()
    for name in ("batch", "fetch", "forward", "loss", "backward"):
        assert found[name] == 3, name
    names = {callback.name for callback in callbacks}
    assert found["step"] == found["zero"] == (2 if "accumulate" in names else 3)
    assert found["carry_out ClipGradNorm"] == (2 if "clip_grad_norm" in names else 0)
    assert (found["read"] > 0) is any(callback.needs for callback in callbacks)


def test_table_says_which_operation_takes_the_time(tmp_path: Path) -> None:
    """The longest first, a batch before what it consists of; before there is a profile a sentence says so."""
    sink = profiled(tmp_path / "t.json", steps=(1, 4))
    with pytest.raises(RuntimeError, match="has to come to batch 1"):
        sink.table()

    def slow(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        time.sleep(0.02)
        return nn.functional.mse_loss(output, target)

    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    work = Supervised(model, optimizer, slow, [(torch.ones(4, 2), torch.ones(4, 1))] * 5)
    run(start(work, epochs=1), [clip_grad_norm(1.0)], sinks=[sink])

    head, *lines = sink.table().splitlines()
    assert head.split() == ["operation", "times", "ms", "each"]
    rows = {name: (int(times), float(each)) for name, times, each in (line.rsplit(maxsplit=2) for line in lines)}
    in_all = [times * each for times, each in rows.values()]
    assert all(one > other - 0.01 for one, other in pairwise(in_all))  # as rounded, and however busy the machine is
    assert [*rows].index("batch") < [*rows].index("loss")
    assert rows["batch"][0] == rows["loss"][0] == 3
    assert rows["batch"][1] > rows["loss"][1] >= 20
    assert "carry_out ClipGradNorm" in rows


def test_operators_of_torch_lie_within_the_ranges(tmp_path: Path) -> None:
    """The matrix product of a forward pass begins and ends within the range called forward."""
    run(start(workload(), epochs=2), sinks=[profiled(path := tmp_path / "t.json", steps=(1, 3), record_shapes=True)])
    events = [e for e in json.loads(path.read_text())["traceEvents"] if "dur" in e]
    forward = [e for e in events if e["name"] == "fsm_train.forward"]
    products = [e for e in events if e["name"] == "aten::addmm"]
    assert len(forward) == 2
    for product in products:
        assert any(f["ts"] <= product["ts"] and product["ts"] + product["dur"] <= f["ts"] + f["dur"] for f in forward)
    assert products
    assert "Input Dims" in products[0]["args"]


def test_what_is_not_among_the_batches_is_not_in_it(tmp_path: Path) -> None:
    """A training that ends before is written as far as it came; one that never begins it writes nothing."""
    run(start(Scripted(batches=4), epochs=1), sinks=[profiled(tmp_path / "short.json", steps=(2, 100))])
    assert ranges(tmp_path / "short.json")["backward"] == 2

    run(start(Scripted(batches=4), epochs=1), sinks=[profiled(tmp_path / "none.json", steps=(10, 20))])
    assert [path.name for path in tmp_path.iterdir()] == ["short.json"]


def test_failing_operation_is_named(tmp_path: Path) -> None:
    """And the trace of what was done before it is there."""

    def loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        if len(output) == 6:
            raise ArithmeticError("six")
        return (output - target).square().mean()

    path = tmp_path / "t.json"
    with pytest.raises(ArithmeticError) as raised:
        run(start(workload(batches(8, 7, 6), loss_fn=loss), epochs=1), sinks=[profiled(path, steps=(0, 9))])
    assert "The operation was loss." in raised.value.__notes__
    assert ranges(tmp_path / "t.json")["backward"] == 2


@pytest.mark.filterwarnings("ignore:.*script_method:DeprecationWarning")  # of torch, when it is first imported
def test_compiled_step_is_one_range(tmp_path: Path) -> None:
    """What is compiled has no operations any more."""
    work = workload(batches(8, 8, 8))
    run(start(work, epochs=2), [compile_step(backend="eager")], sinks=[profiled(tmp_path / "t.json", steps=(3, 5))])
    found = ranges(tmp_path / "t.json")
    assert found["compiled step"] == 2
    assert not found["forward"]


def test_second_run_is_profiled_anew(tmp_path: Path) -> None:
    """The batches are counted from the beginning of each call; an evaluation beside it is none of them."""
    work, sink = workload(batches(8, 7)), profiled(tmp_path / "t.json", steps=(1, 2))
    first = run(start(work, epochs=1), sinks=[sink])
    (tmp_path / "t.json").unlink()
    evaluate(work, batches(4))
    run(start(work, epochs=1), sinks=[sink])
    assert first.step == 2
    assert ranges(tmp_path / "t.json")["batch"] == 1


@pytest.mark.parametrize(("steps", "same"), [(3, (10, 13)), (range(2, 5), (2, 5)), ([2, 5], (2, 5))])
def test_steps_are_a_range_or_a_number(steps: Any, same: tuple[int, int]) -> None:
    """A number leaves the first ten batches out."""
    assert profiled("t.json", steps=steps).steps == same


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("thesis.txt", "is no trace of torch's profiler, and is not written over"),
        ("folder", "is no file: give profiled the path of one, such as"),
        ("thesis.txt/t.json", "thesis.txt"),
    ],
)
def test_place_where_no_trace_can_be_is_refused_before_the_first_batch(tmp_path: Path, name: str, said: str) -> None:
    """What is there stays as it is."""
    (tmp_path / "thesis.txt").write_text("three years")
    (tmp_path / "folder").mkdir()
    work = workload()
    before = weights_of(work.model).clone()

    with pytest.raises((ValueError, OSError), match=said):
        run(start(work, epochs=1), sinks=[profiled(tmp_path / name, steps=(0, 2))])
    assert torch.equal(weights_of(work.model), before)
    assert (tmp_path / "thesis.txt").read_text() == "three years"


def test_trace_that_cannot_be_written_ends_no_training(tmp_path: Path) -> None:
    """A full disk, or a folder that is gone: the weights are the same, and a note says why there is none."""
    plain, seen = workload(), workload()
    run(start(plain, epochs=2, seed=0))

    @on(Phase.BATCH_BEGIN)
    def lose_the_folder(state: State) -> None:
        if state.iteration == 1:
            (tmp_path / "runs").rename(tmp_path / "elsewhere")

    path = tmp_path / "runs" / "t.json"
    with pytest.warns(RuntimeWarning, match="the sink Profiled raised FileNotFoundError"):
        final = run(start(seen, epochs=2, seed=0), [lose_the_folder], sinks=[profiled(path, steps=(0, 3))])
    assert "Profiled raised FileNotFoundError" in final.notes[0]
    assert torch.equal(weights_of(seen.model), weights_of(plain.model))
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_name_may_have_a_backslash(tmp_path: Path) -> None:
    """As paths of Windows have; nothing else is left in the folder."""
    run(start(Scripted(batches=4), epochs=1), sinks=[profiled(tmp_path / "runs\\t.json", steps=(1, 3))])
    assert [path.name for path in tmp_path.iterdir()] == ["runs\\t.json"]


@pytest.mark.parametrize("epochs", [2, 3])
def test_training_that_ends_before_its_first_batch_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, epochs: int
) -> None:
    """Else one looks for a file that is not there."""
    run(start(Scripted(batches=2), epochs=epochs), sinks=[profiled(tmp_path / "t.json", steps=(5, 9))])

    said = "no batch was profiled, since the training ended after 4 of them, and the first to profile is batch 5"
    assert (said in caplog.text) is (epochs == 2)
    assert (tmp_path / "t.json").exists() is (epochs == 3)


@pytest.mark.parametrize(
    ("path", "settings", "error"),
    [
        (3, {}, TypeError),
        ("", {}, ValueError),
        ("a\0b", {}, ValueError),
        ("t", {"steps": (3, 3)}, ValueError),
        ("t", {"steps": (-1, 3)}, ValueError),
        ("t", {"steps": 0}, ValueError),
        ("t", {"steps": True}, ValueError),
        ("t", {"steps": range(0, 9, 2)}, ValueError),
        ("t", {"steps": (1, 2, 3)}, ValueError),
        ("t", {"shapes": 1}, TypeError),
    ],
)
def test_settings_that_make_no_sense_are_refused(path: Any, settings: Any, error: type[Exception]) -> None:
    """When the sink is made."""
    with pytest.raises(error):
        profiled(path, **settings)
