"""A mistake ends in a sentence: what was given, where, and what to write instead."""

from __future__ import annotations

import copy
import inspect
import pickle
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest
import torch
import torchmetrics
from torch import nn

from fsm_train import (
    EventLog,
    Flag,
    Phase,
    Sink,
    State,
    Supervised,
    Transition,
    commands,
    describe,
    evaluate,
    extend,
    iterate,
    on,
    predict,
    replay,
    restore,
    run,
    start,
    what_if,
)
from fsm_train.ablation import ablate
from fsm_train.callbacks import (
    accumulate,
    checkpoint,
    clip_grad_norm,
    compile_step,
    early_stopping,
    grad_noise,
    record,
    skip_nonfinite,
    stop_on_nonfinite,
    weight_penalty,
)
from fsm_train.core.fuse import fused_paths
from fsm_train.core.phase import CONSULTED
from fsm_train.lr_finder import find_lr
from fsm_train.schedules import cosine
from fsm_train.sinks import Recorder, progress
from fsm_train.testing import at, drive, simulate
from fsm_train.worlds.scripted import Scripted

X, Y = torch.ones(2, 4), torch.ones(2, 1)
DATA = [(X, Y)] * 3
MODEL = nn.Linear(4, 1)
OPTIMIZER = torch.optim.SGD(MODEL.parameters(), lr=0.1)
mse = nn.MSELoss()


def supervised(
    model: Any = MODEL,
    optimizer: Any = OPTIMIZER,
    loss_fn: Any = mse,
    train: Any = DATA,
    valid: Any = None,
    **others: Any,
) -> Supervised:
    return Supervised(model, optimizer, loss_fn, train, valid, **others)


def begin(**settings: Any) -> State:
    return start(supervised(**settings), epochs=2)


def scripted(**script: Any) -> State:
    return start(Scripted(**script), epochs=1)


def message(do: Callable[[], object]) -> str:
    """What is raised, with its notes."""
    with pytest.raises(Exception) as caught:  # noqa: PT011  # each kind of error is one of the table's
        do()
    return " | ".join([f"{caught.type.__name__}: {caught.value}", *getattr(caught.value, "__notes__", [])])


def says(sentence: str, *parts: str) -> None:
    assert not sentence.startswith(("AttributeError", "KeyError")), sentence
    for part in parts:
        assert part in sentence, sentence


# ------------------------------------------------------------------------------------ entry points

ENTRY_POINTS: Mapping[str, tuple[Callable[[], object], tuple[str, ...]]] = {
    "run(work)": (lambda: run(supervised()), ("a Supervised", "run(start(work")),
    "run('folder')": (lambda: run("folder"), ("a str", "restore('folder', work)")),
    "run(Path)": (lambda: run(Path("folder")), ("restore('folder', work)",)),
    "run(model)": (lambda: run(MODEL), ("a Linear", "Supervised(model")),
    "run(None)": (lambda: run(None), ("None", "start(")),
    "run(start)": (lambda: run(start), ("the function start",)),
    "run(iterate(…))": (lambda: run(iterate(begin())), ("a generator", "last state")),
    "iterate(work)": (lambda: list(iterate(supervised())), ("iterate(start(work",)),
    "run(state of a callback)": (lambda: run(at(Phase.EPOCH_END)), ("no workload", "start(workload")),
    "start(model)": (lambda: start(MODEL, epochs=1), ("a Linear", "Supervised(")),
    "start(optimizer)": (lambda: start(OPTIMIZER, epochs=1), ("an SGD", "Supervised(")),
    "start(class)": (lambda: start(Scripted, epochs=1), ("the class Scripted",)),
    "start('folder')": (lambda: start("folder", epochs=1), ("restore('folder', work)",)),
    "find_lr(work)": (lambda: find_lr(supervised()), ("find_lr(start(",)),
    "find_lr(final)": (lambda: find_lr(run(scripted())), ("done", "find_lr(start(")),
    "evaluate(model)": (lambda: evaluate(MODEL), ("Supervised(", "evaluate(work)")),
    "evaluate(state)": (lambda: evaluate(begin()), ("evaluate(state.workload)",)),
    "evaluate(model, data)": (lambda: evaluate(MODEL, DATA), ("Supervised(", "evaluate(work, data)")),
    "evaluate(work, tensor)": (lambda: evaluate(supervised(), X), ("data is", "evaluate(work, DataLoader(")),
    "predict(state, data)": (lambda: predict(begin(), DATA), ("predict(state.workload, data)",)),
    "predict(work, tensor)": (lambda: predict(supervised(), X), ("data is", "predict(work, DataLoader(")),
    "extend(work)": (lambda: extend(supervised(), epochs=1), ("extend(start(",)),
    "extend(epochs=-1)": (lambda: extend(run(scripted()), epochs=-1), ("epochs=-1", "whole number")),
    "extend(epochs='3')": (lambda: extend(run(scripted()), epochs="3"), ("epochs='3'",)),
    "extend(epochs=True)": (lambda: extend(run(scripted()), epochs=True), ("epochs=True",)),
    "ablate(state)": (lambda: ablate(scripted(), [early_stopping()]), ("function of a seed",)),
    "ablate(make_work)": (
        lambda: ablate(lambda seed: supervised(), [early_stopping()], progress=False),
        ("make_state returned a Supervised", "return start(work"),
    ),
    "ablate(seeds=3)": (
        lambda: ablate(lambda seed: scripted(), [early_stopping()], seeds=3),
        ("seeds=3", "(0, 1, 2)"),
    ),
    "restore(work, 'folder')": (
        lambda: restore(supervised(), "folder"),
        ("a Supervised, not a path", "restore('checkpoints', work)"),
    ),
    "replay(state)": (lambda: replay(scripted()), ("a State, not a path", "replay('run.jsonl'")),
    "replay(log, callback)": (lambda: replay("none", early_stopping()), ("a Callback", "[")),
    "what_if([…], log)": (lambda: what_if([early_stopping()], "none"), ("a list, not a path",)),
    "what_if(log, callback)": (lambda: what_if("none", early_stopping()), ("[early_stopping()]",)),
    "what_if(log, [factory])": (lambda: what_if("none", [early_stopping]), ("call it",)),
    "simulate(callback)": (lambda: simulate(early_stopping()), ("[early_stopping()]",)),
    "describe(callbacks, work)": (
        lambda: describe([early_stopping()], supervised()),  # type: ignore[arg-type]
        ("describe takes a state", "but was given a Supervised", "describe(callbacks, start(work, epochs=…))"),
    ),
    "describe(callback)": (lambda: describe(early_stopping()), ("[early_stopping()]",)),
    "drive([callback], …)": (lambda: drive([early_stopping()], []), ("a list is no callback",)),
    "epochs='3'": (lambda: start(Scripted(), epochs="3"), ("epochs", "'3'")),
    "epochs=3.0": (lambda: start(Scripted(), epochs=3.0), ("write epochs=3",)),
    "epochs=2.5": (lambda: start(Scripted(), epochs=2.5), ("epochs is a whole number, not 2.5",)),
    "epochs=True": (lambda: start(Scripted(), epochs=True), ("True",)),
    "max_steps=-1": (lambda: start(Scripted(), max_steps=-1), ("max_steps=-1", "no limit")),
    "log=open file": (lambda: run(scripted(), log=sys.__stderr__), ("an open file", "log='run.jsonl'")),
    "log=True": (lambda: run(scripted(), log=True), ("a bool", "log='run.jsonl'")),
    "log=EventLog": (lambda: run(scripted(), log=EventLog), ("the class EventLog",)),
    "log=sink": (lambda: run(scripted(), log=progress()), ("a Progress",)),
    "log='.'": (lambda: run(scripted(), log="."), ("is a folder", "'run.jsonl'")),
    "log=''": (lambda: run(scripted(), log=""), ("log=''", "'run.jsonl'")),
    "start(work, 5)": (lambda: start(Scripted(), 5), ("write start(work, epochs=5)",)),
    "start(work, 5, 100)": (lambda: start(Scripted(), 5, 100), ("write start(work, epochs=5, max_steps=100)",)),
    "start(work, 5, seed=1)": (lambda: start(Scripted(), 5, seed=1), ("start(work, epochs=5, seed=…)",)),
    "start(work, 5, epochs=5)": (lambda: start(Scripted(), 5, epochs=3), ("start(work, max_steps=5, epochs=…)",)),
    "start(work, 1, 2, 3, 4, 5)": (lambda: start(Scripted(), 1, 2, 3, 4, 5), ("seconds=4), and 1 more fits nowhere",)),
    "run(state, […], 'log')": (lambda: run(scripted(), [], "run.jsonl"), ("run(state, callbacks, log='run.jsonl')",)),
    "iterate(state, […], sink)": (lambda: iterate(scripted(), [], progress()), ("iterate(state, callbacks, log=…)",)),
    "find_lr(state, 1e-5)": (lambda: find_lr(scripted(), 1e-5), ("write find_lr(state, low=1e-05)",)),
    "ablate(make, […], metric)": (lambda: ablate(scripted, [], "valid_loss"), ("ablate(make_state, callbacks, ",)),
    "simulate([…], 5)": (lambda: simulate([], 5), ("write simulate(callbacks, epochs=5)",)),
    "early_stopping(name, 3)": (lambda: early_stopping("valid_loss", 3), ("early_stopping(monitor, ",)),
    "Supervised(…, metrics)": (
        lambda: Supervised(MODEL, OPTIMIZER, mse, DATA, None, {"mse": mse}),
        ("write Supervised(model, optimizer, loss_fn, train, valid, metrics=…)",),
    ),
    "callbacks=tensor": (lambda: run(scripted(), torch.tensor(1.0)), ("callbacks is a Tensor", "[")),
    "sinks=tensor": (lambda: run(scripted(), sinks=torch.tensor(1.0)), ("sinks is a Tensor", "[progress()]")),
    "find_lr(low=(…))": (lambda: find_lr(scripted(), low=(0.1, 0.2)), ("low=(0.1, 0.2)", "one rate")),
    "ablate(seeds=['a'])": (
        lambda: ablate(lambda seed: scripted(), [early_stopping()], seeds=["a"]),
        ("seeds=['a']", "whole numbers"),
    ),
    "ablate(mode=array)": (
        lambda: ablate(lambda seed: scripted(), [early_stopping()], mode=np.zeros(2)),
        ("mode=array([0., 0.])", "'min' if smaller is better"),
    ),
    "at=[[]]": (lambda: list(iterate(scripted(), at=[[]])), ("[] is no phase", "epoch_end")),
    "at=tensor": (lambda: list(iterate(scripted(), at=torch.tensor(1.0))), ("tensor(1.) is no phase",)),
    "at='epoch_end'": (lambda: list(iterate(scripted(), at=["epoch_end"])), ("Phase.EPOCH_END",)),
}


@pytest.mark.parametrize("written", ENTRY_POINTS)
def test_an_entry_point_shows_the_call_to_write(written: str) -> None:
    """What is given where something else belongs is named, with the call that is meant."""
    do, parts = ENTRY_POINTS[written]

    says(message(do), *parts)


def test_what_is_given_by_position_is_given_as_before() -> None:
    """Any number of facts to record, and a function with the signature that it had."""
    assert record("loss", "grad_norm").params["facts"] == ("loss", "grad_norm")
    assert [*inspect.signature(start).parameters] == ["workload", "epochs", "max_steps", "seed", "seconds"]


def test_numbers_of_numpy_are_numbers() -> None:
    """Whole numbers of NumPy and torch are taken for epochs, steps and seeds, and one phase for several."""
    state = start(Scripted(), epochs=np.int64(2), max_steps=torch.tensor(5), seed=np.int32(1))

    assert repr(state.plan) == "Plan(epochs=2, max_steps=5, seed=1)"
    assert [state.phase for state in iterate(scripted(), at=Phase.EPOCH_END)] == [Phase.EPOCH_END, Phase.DONE]
    assert extend(run(scripted()), epochs=np.int64(1)).plan.epochs == 2
    assert len(find_lr(start(Scripted(), epochs=1), low=np.float64(1e-3), high=np.float32(1.0), steps=5).rates) == 5


def test_a_checkpoint_is_restored_into_a_workload(tmp_path: Path) -> None:
    """A model alone lacks what else a training has."""
    run(begin(), [checkpoint(tmp_path)])

    says(message(lambda: restore(tmp_path, MODEL)), "a Linear", f"restore('{tmp_path}', work)")


def test_what_if_takes_one_name_to_leave_out(tmp_path: Path) -> None:
    """A single name is one name, and not its letters."""
    log = tmp_path / "run.jsonl"
    run(start(Scripted(valid_loss=1.0), epochs=3), [early_stopping(patience=1)], log=log)

    assert what_if(log, [], without="early_stopping").verdict == "censored"


# --------------------------------------------------------------------------------------- callbacks


class KerasCallback:
    def on_epoch_end(self, epoch: int, logs: object = None) -> None:
        """As Keras calls it."""


CALLBACKS: Mapping[str, tuple[Any, tuple[str, ...]]] = {
    "a callback": (early_stopping(), ("[early_stopping()]",)),
    "None": (None, ("callbacks is None", "[]")),
    "a mapping": ({"stop": early_stopping()}, ("callbacks is a dict",)),
    "a text": ("early_stopping", ("callbacks is a str",)),
    "a factory": ([early_stopping], ("the function early_stopping is no callback (call it: it is a factory)",)),
    "a list in the list": ([[early_stopping()]], ("*some",)),
    "None in the list": ([None], ("leave it out",)),
    "a text in the list": (["early_stopping"], ("'early_stopping' is no callback", "@on(")),
    "a sink": ([progress()], ("sinks=[…]",)),
    "a sink's class": ([Recorder], ("sinks=[Recorder()]",)),
    "a scheduler": ([torch.optim.lr_scheduler.StepLR(OPTIMIZER, 1)], ("StepLR", "torch_scheduler(lambda optimizer:")),
    "a plateau": ([torch.optim.lr_scheduler.ReduceLROnPlateau(OPTIMIZER)], ("torch_scheduler(",)),
    "an optimizer": ([OPTIMIZER], ("an SGD", "Supervised(model, optimizer")),
    "a model": ([MODEL], ("a Linear", "Supervised(model")),
    "a function of the state": ([lambda state: None], ("decorate a function with @on(",)),
    "a hook class": ([KerasCallback()], ("on_epoch_end", "@on(Phase.EPOCH_END)")),
    "a schedule": ([cosine(10)], ("is no callback",)),
    "a command": ([commands.ClipGradNorm(1.0)], ("ClipGradNorm(", "returns it")),
    "an exhausted generator": (iter([]), ("gives nothing", "a list of callbacks")),
}


@pytest.mark.parametrize("given", CALLBACKS)
def test_what_is_no_callback_is_refused(given: str) -> None:
    """With what it is, and where it belongs or how to write it."""
    callbacks, parts = CALLBACKS[given]

    says(message(lambda: run(scripted(valid_loss=1.0), callbacks)), *parts)


ARRAY, TWO = np.zeros(2), torch.zeros(2)
SETTINGS: Mapping[str, tuple[Callable[[], object], tuple[str, ...]]] = {
    "an array for a number": (lambda: early_stopping(min_delta=ARRAY), ("min_delta=array(", "a number from 0")),
    "a tensor for a number": (lambda: grad_noise(TWO), ("std=tensor(", "positive")),
    "an array for a choice": (lambda: early_stopping(mode=ARRAY), ("mode=array(", "'min' if smaller")),
    "a list for a choice": (lambda: compile_step(["graph"]), ("mode=['graph']", "one of 'graph'")),
    "a text for a norm": (lambda: clip_grad_norm("1.0"), ("max_norm='1.0'", "a positive number")),
    "a tensor for a norm": (lambda: clip_grad_norm(TWO), ("max_norm=tensor(", "a positive number")),
    "None for a share": (lambda: weight_penalty(l1=None), ("l1=None", "a number from 0")),
    "a text for yes or no": (lambda: skip_nonfinite(gradients="no"), ("gradients='no'", "True or False")),
    "a number for yes or no": (lambda: stop_on_nonfinite(gradients=0), ("gradients=0", "True or False")),
    "None for yes or no": (lambda: accumulate(2, drop_last=None), ("drop_last=None", "True or False")),
    "a number for a fact": (lambda: accumulate(2, weight=3), ("weight=3", "'batch_size'")),
    "a list of facts": (lambda: record(["loss"]), ("facts=(['loss'],)", "record('loss', …)")),
    "no folder": (lambda: checkpoint(None), ("folder is None, not a path", "checkpoint('checkpoints')")),
    "a number for a name": (lambda: early_stopping(name=0), ("name=0", "a text")),
    "an array for a name": (lambda: clip_grad_norm(1.0, name=ARRAY), ("name=array(", "a text")),
}


@pytest.mark.parametrize("given", SETTINGS)
def test_a_setting_of_a_callback_is_looked_at_when_it_is_made(given: str) -> None:
    """It is named, with what was given and what is accepted."""
    do, parts = SETTINGS[given]

    says(message(do), *parts)


def test_a_generator_of_callbacks_serves_one_run() -> None:
    """A fresh generator is taken; the second run would be one without callbacks, and is refused."""
    callbacks = (callback for callback in [early_stopping()])
    run(scripted(valid_loss=1.0), callbacks)

    says(message(lambda: run(scripted(valid_loss=1.0), callbacks)), "used once only")


# ------------------------------------------------------------------------------------------- sinks


class Tracker(Sink):
    """A sink of two members."""

    at: Any = (Phase.EPOCH_END,)
    needs: Any = frozenset()

    def __init__(self, **members: Any) -> None:
        self.seen: list[float] = []
        vars(self).update(members)

    def see(self, state: State, answers: Mapping[str, Transition]) -> None:
        self.seen.append(state.metrics["train_loss"])


class NoPhases(Sink):
    def see(self, state: State, answers: Mapping[str, Transition]) -> None:
        """Nothing."""


class Bare:
    at = (Phase.EPOCH_END,)

    def see(self, state: State, answers: Mapping[str, Transition]) -> None:
        """Nothing."""


TWICE = Tracker()

SINKS: Mapping[str, tuple[Any, tuple[str, ...]]] = {
    "a factory": ([progress], ("the function progress", "progress()")),
    "a class": ([Tracker], ("the class Tracker", "Tracker()")),
    "a single sink": (progress(), ("a Progress", "[progress()]")),
    "None": (None, ("sinks is None",)),
    "a callback": ([early_stopping()], ("'early_stopping'", "list of callbacks")),
    "a path": ("run.jsonl", ("sinks is a str",)),
    "a path in the list": (["run.jsonl"], ("log='run.jsonl'",)),
    "a list in the list": ([[progress()]], ("*some",)),
    "one twice": ([TWICE, TWICE], ("a Tracker twice", "give it once")),
    "an object": ([object()], ("an object without at", "fsm_train.Sink")),
    "a class without a base": ([Bare()], ("without needs, interval, open, close", "fsm_train.Sink")),
    "no phases": ([NoPhases()], ("a NoPhases without at",)),
    "a phase": ([Tracker(at=Phase.EPOCH_END)], ("the sink Tracker", "a tuple")),
    "a name of a phase": ([Tracker(at=("epoch_end",))], ("the sink Tracker", "Phase.EPOCH_END")),
    "needs in a text": ([Tracker(needs="loss")], ("needs = {'loss'}",)),
    "needs a metric": ([Tracker(needs={"valid_loss"})], ("the sink Tracker", "state.metrics")),
    "see of the state alone": ([Tracker(see=lambda state: None)], ("the sink Tracker", "see(state, answers)")),
}


@pytest.mark.parametrize("given", SINKS)
def test_what_is_no_sink_is_refused_before_the_run(given: str) -> None:
    """With what it is, and where it belongs or how to write it; nothing is switched off in the middle."""
    sinks, parts = SINKS[given]
    state = scripted()

    says(message(lambda: run(state, sinks=sinks)), *parts)


@pytest.mark.parametrize("members", [{}, {"close": dict}], ids=["its own", "a function without a signature"])
def test_a_sink_of_two_members_works(members: dict[str, Any]) -> None:
    """At and see are enough for a class that derives from Sink."""
    tracker = Tracker(**members)
    final = run(start(Scripted(loss=0.5), epochs=2), sinks=[tracker])

    assert (tracker.seen, final.notes) == ([0.5, 0.5], ())


# ----------------------------------------------------------------------- what Supervised is given


class Sam(torch.optim.SGD):
    """As the published ones: a step of two halves, with a closure that is optional in name only."""

    def first_step(self) -> None:
        """Up the hill."""

    def second_step(self) -> None:
        """Down again."""


def one_parameter(output: torch.Tensor) -> torch.Tensor:
    return output.mean()


PARTS: Mapping[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "a class as the model": ({"model": nn.Linear}, ("the class Linear", "Linear(…)")),
    "a name as the model": ({"model": "resnet"}, ("model is a str",)),
    "a class as the optimizer": ({"optimizer": torch.optim.SGD}, ("the class SGD", "SGD(model.parameters(), lr=…)")),
    "a name as the optimizer": ({"optimizer": "adam"}, ("'adam'", "torch.optim")),
    "several optimizers": ({"optimizer": [OPTIMIZER]}, ("a list", "parameter groups")),
    "a scheduler as the optimizer": (
        {"optimizer": torch.optim.lr_scheduler.StepLR(OPTIMIZER, 1)},
        ("a StepLR", "torch_scheduler("),
    ),
    "parameters as the optimizer": ({"optimizer": MODEL.parameters()}, ("a generator", "The order is")),
    "optimizer and loss swapped": ({"optimizer": mse, "loss_fn": OPTIMIZER}, ("an MSELoss", "The order is")),
    "LBFGS": ({"optimizer": {"a": torch.optim.LBFGS(MODEL.parameters())}}, ("optimizer['a']", "closure")),
    "SAM": ({"optimizer": Sam(MODEL.parameters(), lr=0.1)}, ("Sam", "closure")),
    "a class as the loss": ({"loss_fn": nn.MSELoss}, ("the class MSELoss", "MSELoss()")),
    "a name as the loss": ({"loss_fn": "mse"}, ("loss_fn is a str", "torch.nn.CrossEntropyLoss()")),
    "a loss of the output": ({"loss_fn": one_parameter}, ("(output, target)", "one_parameter takes (output)")),
    "a tensor as data": ({"train": X}, ("a Tensor", "DataLoader(TensorDataset(inputs, target)")),
    "an array as data": ({"train": np.ones((4, 4))}, ("an ndarray", "DataLoader(")),
    "two tensors as data": ({"train": (X, Y)}, ("two tensors", "DataLoader(")),
    "a mapping as data": ({"train": {"x": X}}, ("train is a dict",)),
    "a function as data": ({"valid": lambda: DATA}, ("valid is the function",)),
    "the optimizer as data": ({"train": OPTIMIZER}, ("train is an SGD", "The order is")),
    "metrics in a list": ({"metrics": ["accuracy"]}, ("metrics is a list", "metrics={'accuracy': accuracy}")),
    "a metric alone": ({"metrics": torchmetrics.MeanSquaredError()}, ("metrics is a MeanSquaredError", "metrics={")),
    "a metric's name": ({"metrics": {"accuracy": "accuracy"}}, ("'accuracy' is a str",)),
    "a metric without a name": ({"metrics": {0: mse}}, ("the key 0",)),
    "a metric's class": ({"metrics": {"mse": torchmetrics.MeanSquaredError}}, ("the class MeanSquaredError",)),
    "a metric of the output": ({"metrics": {"mean": one_parameter}}, ("'mean'", "lambda output, target")),
    "a metric with settings": (
        {"metrics": {"accuracy": torchmetrics.functional.accuracy}},
        ("'accuracy'", "missing a required argument: 'task'"),
    ),
    "sensors in a list": ({"sensors": [one_parameter]}, ("sensors is a list", "sensors={")),
    "a sensor of two": ({"sensors": {"depth": lambda work, state: 0.0}}, ("'depth'", "(work)")),
    "a forward of the inputs": ({"forward": lambda inputs: inputs}, ("forward is called with (model, inputs)",)),
    "a forward that is none": ({"forward": 3}, ("forward is an int: give a function of (model, inputs)",)),
    "a split by name": ({"split": "images"}, ("split is a str: give a function of (batch)",)),
    "samples as a number": ({"samples": 32}, ("samples is an int: give a function of (inputs, target)",)),
    "samples of the inputs": ({"samples": lambda inputs: 1}, ("samples is called with (inputs, target)",)),
    "a split of two": ({"split": lambda inputs, target: (inputs, target)}, ("split is called with (batch)",)),
    "gpu": ({"device": "gpu"}, ("device='gpu'", "device='cuda'")),
    "no such device": ({"device": "cuda:99"}, ("device='cuda:99'", "device='cpu'")),
    "a device in words": ({"device": "my computer"}, ("device='my computer'",)),
}


@pytest.mark.parametrize("given", PARTS)
def test_supervised_looks_at_its_arguments(given: str) -> None:
    """What does not fit is refused when the workload is made, with what it is and what to write."""
    settings, parts = PARTS[given]

    says(message(lambda: supervised(**settings)), *parts)


def test_what_is_unusual_and_fits_is_taken() -> None:
    """Tensors as batches with a split, a partial, a function without a signature, a device by its name."""
    work = supervised(
        train=[X, X],
        split=lambda batch: (batch, batch[:, :1]),
        metrics={"distance": torch.dist, "mse": mse},
        device="cpu",
    )
    assert work.device.type == "cpu"
    assert run(start(work, epochs=1)).step == 2


# ----------------------------------------------------------------------- metrics, sensors, the loss


def boom(*_: object) -> float:
    raise ValueError("boom")


def from_the(call: int, first: Callable[..., Any], then: Callable[..., Any]) -> Callable[..., Any]:
    """A function that does something else from this call on, counted from 1."""
    calls: list[int] = []

    def function(*arguments: Any) -> Any:
        calls.append(1)
        return (first if len(calls) < call else then)(*arguments)

    return function


class Vector(torchmetrics.Metric):
    """A metric that computes something else than a number."""

    def update(self, output: Any, target: Any) -> None:
        """Nothing."""

    def compute(self) -> Any:
        return {"of two": torch.ones(2)}


class Plain:
    def update(self, output: Any, target: Any) -> None:
        """Nothing."""

    def reset(self) -> None:
        """Nothing."""

    def compute(self) -> Any:
        return None


def difference(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return output - target


FIRST, AT_LOSS = "of epoch 0, batch 0, step 0", "by loss, after loss_begin "
AT_BACKWARD = "by backward, after loss_end "  # where a batch is sure to count
FAILING: Mapping[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "a vector": ({"metrics": {"hits": difference}}, ("'hits'", "shape (2, 1)", AT_BACKWARD + FIRST)),
    "a metric that raises": ({"metrics": {"hits": boom}}, ("boom", "'hits' on train data", AT_BACKWARD + FIRST)),
    "nothing": ({"metrics": {"hits": lambda output, target: None}}, ("'hits'", "returned None", FIRST)),
    "a text": ({"metrics": {"hits": lambda output, target: "0.5"}}, ("'hits'", "a str")),
    "an array": ({"metrics": {"hits": lambda output, target: np.ones(2)}}, ("'hits'", "shape (2,)")),
    "an object's vector": ({"metrics": {"hits": Vector()}}, ("'hits'", "compute()", "returned", AT_BACKWARD + FIRST)),
    "an object's None": ({"metrics": {"hits": Plain()}}, ("'hits'", "by its compute", "measure, after batch_end")),
    "a metric in validation": (
        {"metrics": {"hits": from_the(5, mse, boom)}, "valid": DATA},
        ("'hits' on valid data", "by evaluate, after valid_batch_begin of epoch 0", "validation batch 1"),
    ),
    "a sensor that raises": ({"sensors": {"depth": boom}}, ("boom", "sensor 'depth'", "batch_end of epoch 0")),
    "a sensor's vector": ({"sensors": {"depth": lambda work: X}}, ("'depth'", "shape (2, 4)")),
    "a sensor's None": ({"sensors": {"depth": lambda work: None}}, ("'depth'", "returned None")),
    "a loss of None": ({"loss_fn": lambda output, target: None}, ("returned None", "`return`", AT_LOSS + FIRST)),
    "a number": ({"loss_fn": lambda output, target: 1.0}, ("a float", "scalar tensor")),
    "whole numbers": ({"loss_fn": lambda output, target: (output > target).sum()}, ("int64", "whole numbers")),
    "a constant": (
        {"loss_fn": lambda output, target: torch.ones((), requires_grad=True) * 2},
        ("depends on none of the optimizer's parameters",),
    ),
    "a leaf": ({"loss_fn": lambda output, target: torch.ones((), requires_grad=True)}, ("depends on none",)),
    "a late None": (
        {"loss_fn": from_the(5, mse, lambda *_: None)},
        ("returned None", "loss_begin of epoch 1, batch 1"),
    ),
    "a late vector": (
        {"loss_fn": from_the(2, mse, difference)},
        ("take its mean", "by backward, after loss_end of epoch 0, batch 1, step 1"),
    ),
    "a late constant": (
        {"loss_fn": from_the(3, mse, lambda *_: torch.ones(()))},
        ("no gradient", "by backward, after loss_end of epoch 0, batch 2"),
    ),
    "None in validation": (
        {"loss_fn": from_the(4, mse, lambda *_: None), "valid": DATA},
        ("returned None", "by evaluate, after valid_batch_begin of epoch 0, batch 3, step 3, validation batch 0"),
    ),
    "a vector in validation": ({"loss_fn": from_the(4, mse, difference), "valid": DATA}, ("take its mean",)),
    "the model": (
        {"forward": from_the(5, lambda model, inputs: model(inputs), boom)},
        ("boom", "by forward, after batch_begin of epoch 1, batch 1, step 4"),
    ),
}


@pytest.mark.parametrize("watched", [False, True], ids=["whole steps", "watched"])
@pytest.mark.parametrize("failing", FAILING)
def test_what_fails_is_named_with_its_place(failing: str, watched: bool) -> None:
    """The metric, the sensor or the loss is named, in any batch, and the place does not depend on who watches."""
    settings, parts = FAILING[failing]
    _count_again(settings)
    callbacks = [record("depth")] if "sensors" in settings else []
    phases = set(CONSULTED) - {Phase.BATCH_END} if watched else ()

    says(message(lambda: list(iterate(begin(**settings), callbacks, at=phases))), *parts)


def _count_again(settings: Mapping[str, Any]) -> None:
    """Let each function of `from_the` count its calls from 1 again: a table's functions serve several tests."""
    for value in settings.values():
        for function in value.values() if isinstance(value, dict) else (value,):
            for cell in getattr(function, "__closure__", None) or ():
                if isinstance(cell.cell_contents, list):
                    cell.cell_contents.clear()


def test_a_path_without_the_operation_passes_all_its_phases() -> None:
    """What fails on arriving somewhere, and in no operation, is placed after the last phase."""
    (path,) = fused_paths(Phase.EPOCH_BEGIN, Flag.NONE, set(CONSULTED))

    assert path.phase_before(None) is Phase.EPOCH_BEGIN


def test_a_metric_that_needs_more_than_one_batch_is_taken() -> None:
    """A first look that fails says nothing, changes no random number and leaves no warning."""

    class Drawing(torchmetrics.MeanSquaredError):
        def compute(self) -> Any:
            torch.rand(1)
            if self.total < 4:
                raise ValueError("too few")
            return super().compute()

    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    work = supervised(metrics={"mse": Drawing()})
    work.train_meters.add(torch.ones(()), X[:, :1], Y, 2)

    assert torch.equal(torch.rand(1), expected)
    assert run(start(work, epochs=1)).metrics["train_mse"] >= 0


class Computed(torchmetrics.MeanSquaredError):
    """Keeps what it has computed."""

    def __init__(self) -> None:
        super().__init__()
        self.past: list[float] = []

    def compute(self) -> Any:
        self.past.append(float(super().compute()))
        return sum(self.past)


class Emptied(torchmetrics.MeanSquaredError):
    """Its collected values are used up when it computes."""

    def compute(self) -> Any:
        value = super().compute()
        self.sum_squared_error.zero_()
        return value


@pytest.mark.parametrize(
    "make", [lambda: torchmetrics.MinMaxMetric(torchmetrics.MeanSquaredError()), Computed, Emptied]
)
def test_a_first_look_at_a_metric_changes_nothing_of_it(make: Callable[[], Any]) -> None:
    """A metric that changes when it computes gives what it gives in a loop that computes once an epoch."""
    data = [(X, Y * i) for i in (1, 2, 3)]
    model = nn.Linear(4, 1)
    metric, expected = make(), []
    for _ in range(2):
        metric.reset()
        for inputs, target in data:
            metric.update(model(inputs).detach(), target)
        expected.append(metric.compute())

    still = torch.optim.SGD(model.parameters(), lr=0.0)
    history = run(begin(model=model, optimizer=still, train=data, metrics={"m": make()})).history

    for computed, metrics in zip(expected, history, strict=True):
        values = computed if isinstance(computed, dict) else {"": computed}
        for key, value in values.items():
            assert metrics["train_m_" + key if key else "train_m"] == float(value)


def test_a_loss_through_a_function_in_python_is_taken() -> None:
    """What a node written in Python depends on cannot be seen from outside, so it is not refused."""

    class Half(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
            return x / 2

        @staticmethod
        def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
            return gradients[0] / 2

    def loss_fn(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        half: torch.Tensor = Half.apply(torch.ones((), requires_grad=True))
        return half

    assert run(begin(loss_fn=loss_fn)).step == 6


# ------------------------------------------------------------- what beginners reach for in a state


def assign(name: str, value: object = True) -> Callable[[State], object]:
    return lambda state: setattr(state, name, value)


def item(state: State) -> None:
    state.hyper["lr"] = 0.5


REACHED: Mapping[str, tuple[Callable[[Any], object], tuple[str, ...]]] = {
    "loss": (lambda state: state.loss, ('state.facts["loss"]', 'needs={"loss"}')),
    "grad_norm": (lambda state: state.grad_norm, ('needs={"grad_norm"}',)),
    "valid_loss": (lambda state: state.valid_loss, ('state.metrics["valid_loss"]',)),
    "val_loss": (lambda state: state.val_loss, ('state.metrics["valid_loss"]',)),
    "lr": (lambda state: state.lr, ('state.hyper["lr"]', "Transition(hyper=")),
    "learning_rate": (lambda state: state.learning_rate, ('state.hyper["lr"]',)),
    "model": (lambda state: state.model, ("command", "pure function")),
    "optimizer": (lambda state: state.optimizer, ("command",)),
    "train_loader": (lambda state: state.train_loader, ("state.workload",)),
    "should_stop": (lambda state: state.should_stop, ("Transition(flags=Flag.STOP_TRAINING)",)),
    "global_step": (lambda state: state.global_step, ("state.step",)),
    "max_epochs": (lambda state: state.max_epochs, ("state.plan.epochs",)),
    "epohc": (lambda state: state.epohc, ("did you mean state.epoch?",)),
    "something": (lambda state: state.something, ("it has epoch, batch",)),
    "should_stop = True": (assign("should_stop"), ("Transition(flags=Flag.STOP_TRAINING)",)),
    "flags = …": (assign("flags", Flag.SKIP_STEP | Flag.SKIP_ZERO), ("Flag.SKIP_STEP|Flag.SKIP_ZERO",)),
    "flags = 3": (assign("flags", 3), ("Transition(flags=…)",)),
    "lr = 0.1": (assign("lr", 0.1), ('Transition(hyper={"lr": …})',)),
    "learning_rate = 0.1": (assign("learning_rate", 0.1), ('Transition(hyper={"lr": …})',)),
    "reason = …": (assign("reason", "enough"), ("Transition(reason=…)",)),
    "model = …": (assign("model"), ("command",)),
    "epoch = 3": (assign("epoch", 3), ("epoch cannot be set", "Transition")),
    "memory = 3": (assign("memory", 3), ("Transition(memory=…)",)),
    "best = 3": (assign("best", 3), ("Transition(memory=…)",)),
    'hyper["lr"] = …': (item, ("Transition(hyper={'lr': …})",)),
}


@pytest.mark.parametrize("name", REACHED)
def test_a_state_says_what_there_is_instead(name: str) -> None:
    """What other libraries have on the trainer is pointed to, in a test and in a run."""
    do, parts = REACHED[name]
    state = at(Phase.EPOCH_END)

    with pytest.raises((AttributeError, TypeError)) as caught:
        do(state)
    says(f"said: {caught.value}", *parts)
    says(message(lambda: simulate([on(Phase.EPOCH_END, name="mine")(_saying_nothing(do))])), "'mine'", *parts)


def _saying_nothing(do: Callable[[State], object]) -> Callable[[State], None]:
    def decide(state: State) -> None:
        do(state)

    return decide


def test_a_state_is_copied_and_pickled_as_before() -> None:
    """Names of protocols are plain misses, and an error about a state travels."""
    state = at(Phase.EPOCH_END, loss=0.5)

    assert pickle.loads(pickle.dumps(state)) == copy.deepcopy(state) == copy.copy(state) == state
    assert attrs.evolve(state, epoch=1).epoch == 1
    assert not hasattr(state, "_ipython_display_")
    assert not hasattr(state, "loss")
    assert getattr(state, "loss", None) is None
    with pytest.raises(attrs.exceptions.FrozenInstanceError) as caught:
        state.epoch = 3
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def through_the_workload(state: Any) -> object:
    return state.workload.model


def through_nothing(state: Any) -> object:
    nothing: Any = state.resume_at
    return nothing.value


ANSWERS: Mapping[str, tuple[Callable[[Any], Any], tuple[str, ...]]] = {
    "state.workload.model": (through_the_workload, ("state.workload is None", "command", "sensor")),
    "a Flag": (lambda state: Flag.STOP_TRAINING, ("Transition(flags=Flag.STOP_TRAINING)",)),
    "a command": (lambda state: commands.ClipGradNorm(1.0), ("Transition(commands=(ClipGradNorm(…),))",)),
    "a mapping": (lambda state: {"lr": 0.1}, ("Transition(hyper={'lr': …})",)),
    "True": (lambda state: True, ("a bool", "Transition(flags=Flag.STOP_TRAINING)")),
    "a rate by a long name": (lambda state: Transition(hyper={"learning_rate": 0.1}), ("did you mean 'lr'", "lr")),
    "rates in a list": (lambda state: Transition(hyper={"lr": [0.1]}), ("give a tuple",)),
    "rates in an array": (lambda state: Transition(hyper={"lr": np.ones(2)}), ("tuple(array.tolist())",)),
    "a rate in a tensor": (lambda state: Transition(hyper={"lr": torch.tensor(0.1)}), (".item()",)),
    "a rate in a text": (lambda state: Transition(hyper={"lr": "0.1"}), ("lr='0.1'", "is a number")),
    "a number of NumPy": (lambda state: Transition(memory=np.float64(1.0)), ("float(…)",)),
    "a whole one of NumPy": (lambda state: Transition(memory=(np.int64(1),)), ("memory[0]", "int(…)")),
    "a truth of NumPy": (lambda state: Transition(memory=np.True_), ("bool(…)",)),
    "a complex number": (lambda state: Transition(memory=1j), ("a complex",)),
    "a scalar of torch": (lambda state: Transition(memory=torch.tensor(1.0)), ("as a float",)),
    "a list": (lambda state: Transition(memory=[1.0]), ("use a tuple",)),
    "a dict": (lambda state: Transition(memory={}), ("attrs record",)),
    "a set": (lambda state: Transition(memory={1}), ("sorted tuple",)),
    "a metric by another name": (lambda state: state.metrics["val_loss"], ("valid_loss", "Did you mean")),
}


@pytest.mark.parametrize("answer", ANSWERS)
def test_an_answer_that_is_none_is_explained(answer: str) -> None:
    """With the Transition to write, or the plain value to keep."""
    decide, parts = ANSWERS[answer]
    callback = on(Phase.EPOCH_END, name="mine")(lambda state: decide(state))

    sentence = message(lambda: simulate([callback], valid_loss=[1.0]))
    says(sentence.lower(), "'mine'", *(part.lower() for part in parts))


def test_an_attribute_of_nothing_is_left_to_python() -> None:
    """Only what goes through the workload is explained as that."""
    sentence = message(lambda: simulate([on(Phase.EPOCH_END)(through_nothing)]))

    assert "NoneType" in sentence
    assert "command" not in sentence


def test_exact_numbers_are_taken() -> None:
    """A scalar of NumPy that a float holds exactly is a hyper-parameter, also one that is not finite to a check."""
    rate = np.float32(0.1)
    final = simulate([on(Phase.EPOCH_END, name="mine")(lambda state: Transition(hyper={"lr": rate}))])

    assert final.hyper["lr"] == float(rate)
    says(message(lambda: Transition(hyper={"lr": np.float32("nan")})), "finite")
    says(message(lambda: Transition(hyper={"lr": 2**60 + 1 + 0 * np.longdouble(1)})), "is a number")


NEEDS: Mapping[str, str] = {
    "valid_loss": 'state.metrics["valid_loss"]',
    "val_accuracy": 'state.metrics["valid_accuracy"]',
    "lr": 'state.hyper["lr"]',
    "gradnorm": "did you mean 'grad_norm'?",
    "dept": "did you mean 'depth'?",
    "perplexity": "sensors={…}",
}


@pytest.mark.parametrize("name", NEEDS)
def test_a_need_that_is_no_fact_says_where_it_is(name: str) -> None:
    """Metrics and hyper-parameters need no asking, and a near name is said."""
    callback = on(Phase.EPOCH_END, name="mine", needs={name})(lambda state: None)

    says(message(lambda: simulate([callback], depth=1.0)), "'mine'", NEEDS[name])
