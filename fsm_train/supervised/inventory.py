"""What of a training is state, and who saves it. What nobody saves is said.

`inventory` and `notes_of` are pure functions of small records; `saved_parts.py` makes the record.
"""

from __future__ import annotations

import attrs


@attrs.frozen
class Found:
    """What a training changes, by name, as it was found.

    Attributes:
        modules: the model, and a loss that is a module or has a state_dict.
        others: what exists of optimizer, scaler, averages, schedulers and copies of weights.
        extra: the further parts that the user named.
        generators: those that belong to this training alone, by their paths.
        sources: layers of the data whose state is saved, by their paths.
        unsafe: those whose state holds something else than tensors and plain values, each with what it is.
        changed: attributes of datasets and transforms that have changed, and that nobody saves.
        metrics: the metrics.
        unsaved_metrics: what could not be saved of them, each with the metric's name.
        place: who knows the place in the data: "the loader", or "the generators at the epoch's start".
        within: what is within the optimizer and not saved with it, a sentence for each.
        inexact: what of the place cannot be restored exactly, a sentence for each.
    """

    modules: tuple[str, ...] = ("model",)
    others: tuple[str, ...] = ("optimizer",)
    extra: tuple[str, ...] = ()
    generators: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    unsafe: tuple[tuple[str, str], ...] = ()
    changed: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ()
    unsaved_metrics: tuple[str, ...] = ()
    place: str = "the generators at the epoch's start"
    inexact: tuple[str, ...] = ()
    within: tuple[str, ...] = ()


@attrs.frozen
class Item:
    """Something that a training changes.

    Attributes:
        name: what it is.
        saved_by: what of a checkpoint has it; "" if nobody saves it.
        note: why it is not exact after a resume; "" if it is.
    """

    name: str
    saved_by: str
    note: str = ""


def inventory(found: Found) -> tuple[Item, ...]:
    """Everything that a training changes, with who saves it.

    >>> [item.name for item in inventory(Found(generators=("train.sampler.rng",)))]
    ['model', 'optimizer', 'the generators of the process', 'train.sampler.rng', 'the place in the training data']
    """
    return (
        *(Item(name, "modules") for name in found.modules),
        *(Item(name, "the part of its name") for name in found.others),
        *(Item(f"extra {name!r}", "its state_dict") for name in found.extra),
        Item("the generators of the process", "generators"),
        *(Item(path, "generators") for path in found.generators),
        *(Item(path, "sources") for path in found.sources),
        Item("the place in the training data", found.place),
        *(Item("the place in the training data", "", note) for note in found.inexact),
        *(Item("optimizer", "", note) for note in found.within),
        *(Item(f"the metric {name}", "meters") for name in found.metrics),
        *(
            Item(
                f"the metric {what}",
                "",
                f"the metric {what}: it cannot be saved; give the metric a state_dict, or let it gather tensors and "
                "plain values",
            )
            for what in found.unsaved_metrics
        ),
        *(
            Item(path, "", f"{path}: its state_dict cannot be saved, since {what}; give plain values and tensors")
            for path, what in found.unsafe
        ),
        *(
            Item(name, "", f"{name}: it has changed since the workload was made, and nobody saves it; {ADVICE}")
            for name in found.changed
        ),
    )


ADVICE = "give its owner state_dict and load_state_dict"


def notes_of(items: tuple[Item, ...]) -> tuple[str, ...]:
    """A sentence for each thing that is not exact after a resume. Empty where all is.

    >>> notes_of(inventory(Found()))
    ()
    >>> notes_of(inventory(Found(changed=("train.dataset.level",))))[0].partition(";")[0]
    'train.dataset.level: it has changed since the workload was made, and nobody saves it'
    """
    return tuple(dict.fromkeys(item.note for item in items if item.note))
