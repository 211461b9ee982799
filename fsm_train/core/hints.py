"""What to write instead, where a state is asked for something that it does not have.

Rule of this file: text from names. It runs only where an error is raised.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping

from .facts import HYPER, KNOWN_AT, is_metric, metric_name
from .phase import Flag

_WORLD = frozenset(
    {
        *("model", "net", "network", "module", "weights", "parameters", "gradients", "grads", "device"),
        *("optimizer", "optim", "scheduler", "lr_scheduler", "criterion", "loss_fn", "trainer", "learn", "learner"),
        *("train", "valid", "train_loader", "valid_loader", "val_loader", "dataloader", "loader"),
    }
)
"""What other libraries give to callbacks, and what here is the workload's."""

_FIELDS = {
    "current_epoch": "epoch",
    "epoch_idx": "epoch",
    "batch_idx": "batch",
    "batch_index": "batch",
    "global_step": "step",
    "steps": "step",
    "iterations": "iteration",
    "num_epochs": "plan.epochs",
    "max_epochs": "plan.epochs",
    "n_epoch": "plan.epochs",
    "epochs": "plan.epochs",
    "max_steps": "plan.max_steps",
    "seconds": "plan.seconds",
    "seed": "plan.seed",
    "logs": "metrics",
    "callback_metrics": "metrics",
    "logged_metrics": "metrics",
    "learning_rate": 'hyper["lr"]',
}
"""What other libraries call things, and where they are in a state."""

_STOPS = {
    "should_stop": Flag.STOP_TRAINING,
    "stop": Flag.STOP_TRAINING,
    "stop_training": Flag.STOP_TRAINING,
    "terminate": Flag.STOP_TRAINING,
    "skip": Flag.SKIP_BATCH,
    "skip_batch": Flag.SKIP_BATCH,
    "stop_epoch": Flag.STOP_EPOCH,
    "terminate_epoch": Flag.STOP_EPOCH,
    "suspend": Flag.SUSPEND,
}


def missing_attribute(
    name: str, fields: Iterable[str], metrics: Mapping[str, object], hyper: Mapping[str, object]
) -> str:
    """What to write instead of `state.name`.

    Args:
        name: what was asked for.
        fields: those of a State.
        metrics, hyper: what the state has of these.
    """
    if name in KNOWN_AT:
        return (
            f'what is measured is in state.facts: read state.facts["{name}"], and write needs={{"{name}"}} '
            "at the callback that reads it"
        )
    if name in metrics or (is_metric(name) and name not in _WORLD):
        return f'metrics are in state.metrics: read state.metrics["{metric_name(name)}"]'
    if name in hyper or name in HYPER:
        return (
            f'hyper-parameters are in state.hyper: read state.hyper["{name}"], and set it by '
            f'returning Transition(hyper={{"{name}": …}})'
        )
    if name in _WORLD:
        return (
            "a callback is a pure function, and never touches the model, the optimizer or the data: it returns "
            "Transition(commands=(…,)) with a command of fsm_train.commands, or with one of your own "
            "(@carries_out). Before and after a run they are in state.workload"
        )
    if name in _STOPS:
        return f"a callback asks for this by returning Transition(flags=Flag.{_STOPS[name].name})"
    if name in _FIELDS:
        return f"write state.{_FIELDS[name]}"
    known = [field for field in fields if not field.startswith("_")]
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.75)
    return f"did you mean state.{close[0]}?" if close else f"it has {', '.join(known)}"


def assigned_attribute(name: str, value: object, fields: Iterable[str], hyper: Mapping[str, object]) -> str:
    """What to write instead of `state.name = value`."""
    if name in _STOPS:
        answer = f"Transition(flags=Flag.{_STOPS[name].name})"
    elif name == "flags":
        answer = f"Transition(flags={'|'.join(f'Flag.{f.name}' for f in value) if isinstance(value, Flag) else '…'})"
    elif name in hyper or name in HYPER or name in ("hyper", "learning_rate"):
        answer = f'Transition(hyper={{"{name if name in hyper or name in HYPER else "lr"}": …}})'
    elif name == "reason":
        answer = "Transition(reason=…)"
    elif name in _WORLD:
        answer = "Transition(commands=(…,)) with a command, which is carried out on the workload"
    elif name in tuple(fields) and name != "memory":
        answer = "a Transition"
    else:
        answer = "Transition(memory=…), which its function is given the next time as its second parameter"
    return f"a state is immutable, and {name} cannot be set: a callback returns {answer}"
