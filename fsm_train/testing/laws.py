"""What holds for every callback: one function for each law, with a sentence that says it and advice on how to mend it.

Rule of this file: a law judges the consultations of one training, and returns the first thing that is wrong.
A law that compares answers is `after` those that would spoil the comparison, so that one mistake is one
finding: of a callback that reads a clock the checks say so, and not also that its answers differ.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import attrs

from ..core.callback import memory_classes
from ..core.errors import FactError
from ..core.phase import Phase
from ..core.table import READABLE, too_late
from ..core.transition import UNCHANGED, Transition
from ..core.values import FrozenMap, unsaveable
from . import hidden_state
from .as_rank import first_difference
from .cases import LAWS, Case, Finding, Law, describe_change, law
from .consultation import Consultation, Failure, ask, missing_name, same_response, saveable_memories
from .differences import differences
from .immutability import deep_copy, fields_of, has_nan, is_mutable
from .json_memory import through_json
from .side_effects import SideEffectKind

# -------------------------------------------------------------------------------- what it answers


@law(
    "Return a Transition, or None when there is nothing to say, for every state that a training can be in. "
    "Where it must refuse, let it raise an error that says what it found and what to do."
)
def answers_with_transitions(case: Case) -> Finding | None:
    """It answers with a Transition or None, and does not crash."""
    for c in case.alone:
        if isinstance(c.response, Failure):
            explained = (
                c.response.deliberate or missing_name(c) or c.observations.memories or _is_write_error(c.response)
            )
            if not explained:
                return Finding(f"it raised {c.response.kind}: {c.response.error}", c)
        elif c.response is not None and type(c.response) is not Transition:
            return Finding(f"it returned a {type(c.response).__name__}, {c.response!r:.80}", c)
    return None


@law("Raise the flag at one of the phases where something reads it before it falls.")
def flags_are_read(case: Case) -> Finding | None:
    """Each flag is raised where something reads it before it falls."""
    for c in case.alone:
        for flag in too_late(c.answer.flags, c.state.phase):
            where = ", ".join(phase.name for phase in READABLE[flag])
            what = f"it raised {flag.name} at {c.state.phase.name}, where nothing reads it any more"
            return Finding(f"{what}; do so at one of: {where}", c)
    return None


@law("Read and set hyper-parameters that the optimizer has, under its names (lr, momentum, weight_decay, beta1, …).")
def keys_exist(case: Case) -> Finding | None:
    """Each hyper-parameter that it reads or sets exists."""
    for c in case.alone:
        there_are = ", ".join(c.state.hyper)
        for name in sorted(c.answer.hyper.keys() - c.state.hyper.keys()):
            return Finding(f"it set {name!r}, but the hyper-parameters are {there_are}", c)
        missing = missing_name(c)
        if (
            missing is not None
            and missing[0] == "hyper"
            and isinstance(c.response, Failure)
            and not c.response.deliberate
        ):
            return Finding(f"it read {missing[1]!r}, but the hyper-parameters are {there_are}", c)
    return None


@law("Decorate the command's class with attrs.frozen, and keep in it only what says what is to be done.")
def commands_are_records(case: Case) -> Finding | None:
    """Each command is a frozen record, which can be compared, logged and replayed."""
    for c in case.alone:
        for command in c.answer.commands:
            kind = type(command).__name__
            if not fields_of(command) and not attrs.has(type(command)):
                return Finding(f"its command {kind} is no record", c)
            if is_mutable(command):
                return Finding(f"its command {kind} can be written to", c)
            if command != deep_copy(command) and not has_nan(command):
                return Finding(f"two equal commands {kind} do not compare equal", c)
    return None


@law("Declare what it may answer (raises=, sets=, commands= of @on), or declare nothing.")
def honours_declarations(case: Case) -> Finding | None:
    """It answers nothing beyond what it declares in raises, sets and commands."""
    callback = case.callback
    for c in case.alone:
        answer = c.answer
        if callback.raises is not None and answer.flags & ~callback.raises:
            return Finding(f"it raised {answer.flags & ~callback.raises}, but declares raises={callback.raises}", c)
        if callback.sets is not None and (beyond := answer.hyper.keys() - callback.sets):
            return Finding(f"it set {', '.join(sorted(beyond))}, but declares sets={set(callback.sets) or '()'}", c)
        if callback.commands is not None:
            for command in answer.commands:
                if not isinstance(command, tuple(callback.commands)):
                    return Finding(f"it asked for {type(command).__name__}, which its commands= does not name", c)
    return None


# --------------------------------------------------------------------------------- what it changes


@law("Leave the state and the memory as they are: answer with new values, in hyper= and memory=.")
def leaves_inputs_alone(case: Case) -> Finding | None:
    """It leaves the state and its memory as they are."""
    for c in case.alone:
        if isinstance(c.response, Failure) and _is_write_error(c.response):
            return Finding(f"it tried to write to what it was given: {c.response.error}", c)
        if c.observations.inputs_changed:
            return Finding("it changed what it was given", c)
    return None


@law(
    "Keep it in the memory: declare memory= at @on, take it as the second parameter, and answer with "
    "Transition(memory=…). What is kept elsewhere is lost when a training is resumed, and shared by two trainings."
)
def keeps_nothing_hidden(case: Case) -> Finding | None:
    """It keeps nothing in closures, defaults, attributes or globals."""
    for c in case.alone:
        if c.observations.hidden_changes:
            return Finding("it changed " + "; ".join(c.observations.hidden_changes[:3]), c)
    return None


@law("Remember numbers, strings, tuples and frozen attrs records of them.")
def memory_is_immutable(case: Case) -> Finding | None:
    """What it remembers is an immutable value."""
    for c in case.alone:
        if c.answer.memory is not UNCHANGED and (why := unsaveable(c.answer.memory)):
            return Finding(why, c)
    return None


@law("Leave `eq` of the record and its fields as attrs makes it.", after=("memory_is_immutable",))
def memory_compares(case: Case) -> Finding | None:
    """Two equal memories compare equal."""
    for c, memory in saveable_memories(case.alone):
        copied = deep_copy(memory)
        # A record with a NaN differs from its copy, by the rules of floats and not by its own.
        if memory != copied and not has_nan(memory):
            return Finding(f"a copy of its memory {memory!r} is not equal to it", c)
    return None


@law(
    "Let the record be made from its own fields: no field with init=False, and no converter that changes what it made. "
    "Name its class in the type of the function's second parameter.",
    after=("memory_is_immutable", "memory_compares"),
)
def memory_survives_json(case: Case) -> Finding | None:
    """What it remembers comes back from JSON exactly, NaN included."""
    for c, memory in saveable_memories(case.alone):
        try:
            restored = through_json(memory, memory_classes(case.callback))
        except Exception as error:
            return Finding(f"its memory {memory!r} cannot be made again: {type(error).__name__}: {error}", c)
        for difference in differences(memory, restored, "memory"):
            return Finding(f"its memory does not come back from JSON as it was: {difference}", c)
    return None


# ------------------------------------------------------------------- what it uses beside its inputs


def _judge_of(kind: SideEffectKind, what: str) -> Callable[[Case], Finding | None]:
    def judge(case: Case) -> Finding | None:
        for c in case.alone:
            for effect, by in c.observations.side_effects:
                if effect == kind:
                    return Finding(f"it {what}: {by}", c)
        return None

    return judge


def _no_side_effect(name: str, kind: SideEffectKind, sentence: str, what: str, mend: str) -> Law:
    made = LAWS[name] = Law(name, sentence, mend, _judge_of(kind, what))
    return made


reads_no_clock = _no_side_effect(
    "reads_no_clock",
    "clock",
    "It reads no clock.",
    "reads a clock",
    "Time is a fact: declare needs={'elapsed'} and read state.facts['elapsed'], the seconds of training so far.",
)
draws_by_state = _no_side_effect(
    "draws_by_state",
    "chance",
    "It draws random numbers from state.random(name) alone.",
    "draws from a global random generator",
    "Draw from state.random(name), which gives the same numbers for the same state, in a replay too.",
)
opens_no_files = _no_side_effect(
    "opens_no_files",
    "file",
    "It touches no files and starts no processes.",
    "goes to the file system",
    "Read files in the factory that makes the callback; to write something, answer with a command "
    "that says so, or use a sink.",
)
uses_no_network = _no_side_effect(
    "uses_no_network",
    "network",
    "It does not use the network.",
    "uses the network",
    "Send things from a sink, which watches a training and cannot influence it, or from a command.",
)
reads_no_environment = _no_side_effect(
    "reads_no_environment",
    "environment",
    "It does not read environment variables.",
    "reads the environment",
    "Read the variable where the callback is made, and give the factory its value: then it stands in the log.",
)


@law(
    "Leave the global generators to the model and the data: draw from state.random(name), and seed a training with "
    "start(…, seed=).",
    after=("draws_by_state",),
)
def leaves_generators_alone(case: Case) -> Finding | None:
    """It leaves the global random generators of Python, NumPy and torch as they are."""
    for c in case.alone:
        if c.observations.changed_generators:
            return Finding(
                f"it changed the global generator of {' and of '.join(c.observations.changed_generators)}", c
            )
    return None


# ----------------------------------------------------------------------------- what it asks for


@law("Declare each fact that it reads, with needs={…} of @on, and read it at phases where it is known.")
def needs_what_it_reads(case: Case) -> Finding | None:
    """It reads only facts that it needs, where they are known."""
    declared = {*case.callback.needs, "batch_size"}
    for c in case.alone:
        for name in sorted(c.observations.facts - declared):
            return Finding(f"it reads the fact {name!r} without needs={{{name!r}}}", c)
        if isinstance(c.response, Failure) and isinstance(c.response.error, FactError):
            return Finding(f"{c.response.error}", c)
    return None


@law(
    "Read it as state.metrics[name], which says so when it is not there, or raise a LookupError that names the metric: "
    "a misspelt name is to be found at the first check, and not after a night in which nothing happened.",
    whole=True,
)
def names_missing_metrics(case: Case) -> Finding | None:
    """When a metric is never there, it says which."""
    for metric in case.metrics:
        for c in case.without(metric):
            if not _looks_in_vain(metric, c):
                continue
            if not isinstance(c.response, Failure):
                return Finding(f"without the metric {metric!r} it continues without a word", c)
            if metric not in str(c.response.error):
                kind, error = c.response.kind, c.response.error
                return Finding(f"without the metric {metric!r} it raises {kind}: {error}, which does not name it", c)
    return None


def _looks_in_vain(metric: str, c: Consultation) -> bool:
    """Whether it looks for the metric where others of the same epoch or validation are there."""
    kind = metric.split("_")[0]
    return metric in c.observations.metrics and any(name.startswith(kind) for name in c.state.metrics)


# ------------------------------------------------------------------------- whether it is a function

_PURE = (
    *("leaves_inputs_alone", "keeps_nothing_hidden", "reads_no_clock", "draws_by_state", "opens_no_files"),
    *("uses_no_network", "reads_no_environment", "leaves_generators_alone", "commands_are_records"),
)


@law(
    "Let the answer depend on nothing but the state and the memory: not on id(), addresses or the order of threads.",
    after=_PURE,
)
def answers_the_same_twice(case: Case) -> Finding | None:
    """Equal states get the same answer."""
    for c in case.alone:
        if not isinstance(c.response, Failure) and not same_response(c.response, c.observations.second_response):
            return Finding(describe_change(c.response, c.observations.second_response, "asked a second time"), c)
    return None


@law(
    "Let the answer depend on the state and the memory alone: facts and metrics are those of all ranks together, and "
    "state.random(name) draws the same on each.",
    after=tuple(name for name in _PURE if name != "reads_no_environment"),
)
def same_on_every_rank(case: Case) -> Finding | None:
    """On every rank it answers the same."""
    if (found := first_difference(case.callback, case.alone)) is None:
        return None
    return Finding(describe_change(*found[1:], "on the second of two ranks"), found[0])


@law(
    "Let the memory alone tell what was before, and let SETUP, TEARDOWN and SUSPEND, which come in every call of run, "
    "leave it as it is.",
    after=("answers_the_same_twice", "memory_is_immutable", "memory_compares", "memory_survives_json"),
    whole=True,
)
def goes_on_as_before(case: Case) -> Finding | None:
    """Suspended and resumed at any phase, with its memory from a file, it answers as if nothing had been."""
    for c in case.alone:
        restored = ask(hidden_state.fresh(case.callback.decide), c.state, through_json(c.memory))
        if not same_response(c.response, restored):
            return Finding(describe_change(c.response, restored, "with its memory from a file"), c)
    undisturbed, resumed = _by_place(case.alone), _by_place(case.with_interrupt)
    for place, c in undisturbed.items():
        if place in resumed and not same_response(c.response, resumed[place].response):
            return Finding(
                describe_change(c.response, resumed[place].response, "in a training that was suspended before"), c
            )
    return None


def _by_place(consultations: Sequence[Consultation]) -> dict[object, Consultation]:
    """The consultations by their place in the training; of a validation that was run twice, the second."""
    found: dict[object, Consultation] = {}
    for c in consultations:
        s = c.state
        if s.phase not in (Phase.SETUP, Phase.TEARDOWN, Phase.SUSPEND):
            found[s.phase, s.epoch, s.batch, s.iteration, s.step, s.valid_batch, s.pending] = c
    return found


@law(
    "Look at the own memory only, and at what the state says of the machine: what another callback wants can be "
    "seen in state.flags and state.hyper at the next phase.",
    after=("answers_the_same_twice", "needs_what_it_reads"),
    whole=True,
)
def ignores_other_callbacks(case: Case) -> Finding | None:
    """Its answers do not depend on its place in the list, nor on others that only look."""
    for c in case.alone:
        for other in sorted(c.observations.memories):
            whose = f"the memory of {other!r}" if other else "the memories of all callbacks"
            return Finding(f"it reads {whose}", c)
    for c, watched in zip(case.alone, case.with_watchers, strict=False):
        if not same_response(c.response, watched.response):
            return Finding(describe_change(c.response, watched.response, "among others that only look"), c)
    return None


@law(
    "With several parameter groups a hyper-parameter is a tuple with one value per group: answer with a tuple, as in "
    "tuple(rate / 2 for rate in rates).",
    after=("answers_with_transitions", "keys_exist", "leaves_inputs_alone"),
    whole=True,
)
def handles_parameter_groups(case: Case) -> Finding | None:
    """It can do with an optimizer that has several parameter groups."""
    for c in case.with_two_groups:
        if (
            isinstance(c.response, Failure)
            and not c.response.deliberate
            and not missing_name(c)
            and not c.observations.memories
        ):
            return Finding(f"with two parameter groups it raised {c.response.kind}: {c.response.error}", c)
        for name, value in c.answer.hyper.items():
            if isinstance(value, tuple) and name in c.state.hyper and len(value) != 2:
                return Finding(f"with two parameter groups it set {name} to {len(value)} values", c)
    return None


def _is_write_error(failure: Failure) -> bool:
    """Whether a write to a frozen record or mapping raised it."""
    if isinstance(failure.error, attrs.exceptions.FrozenError):
        return True
    last = failure.error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    return last is not None and last.tb_frame.f_code is FrozenMap._refuse.__code__


__all__ = ["LAWS"]
