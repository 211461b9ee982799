"""Random changes of the files of tensors that ranks shared out, with digests that fit again."""

from __future__ import annotations

import io
import pickle
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import MetadataIndex, TensorProperties

from fsm_train.checkpoints.shards import METADATA
from tests.checkpoints.mutations import seal
from tests.eventlog.mutations import IN_BYTES

Draw = random.Random

NUMBERS = (0, 1, -1, 2, 7, 2**20, 2**40, 2**62, 2**63, 2**64, True, None, 1.5, "1")
FILES = ("__1_0.distcp", "__7_0.distcp", METADATA, "manifest", "../manifest", "/dev/zero", "", ".", None, 1)
SHAPES = ((), (0,), (1,), (3,), (10,), (10, 10), (2**31, 2**31), (2**40,), (-1, 4), [10, 10], None)


def described(checkpoint: Path) -> Any:
    """What `.metadata` says, by torch's own records."""
    return pickle.loads((checkpoint / METADATA).read_bytes())


def describe(checkpoint: Path, metadata: Any) -> None:
    (checkpoint / METADATA).write_bytes(pickle.dumps(metadata))
    seal(checkpoint)


def change_a_place(metadata: Any, draw: Draw) -> None:
    """Where the bytes of a piece are."""
    places = metadata.storage_data
    one, other = places[draw.choice([*places])], places[draw.choice([*places])]
    field = draw.choice(("relative_path", "offset", "length", "transform_descriptors"))
    odd = FILES if field == "relative_path" else NUMBERS
    setattr(one, field, draw.choice((*odd, getattr(other, field))))


def change_a_piece(metadata: Any, draw: Draw) -> None:
    """Which box of a tensor a piece is."""
    chunks = metadata.state_dict_metadata[draw.choice([*metadata.state_dict_metadata])].chunks
    match draw.randrange(3):
        case 0:
            chunks.append(draw.choice(chunks))
        case 1:
            chunks.remove(draw.choice(chunks))
        case _:
            chunk = draw.choice(chunks)
            odd = draw.choice(SHAPES)
            setattr(chunk, draw.choice(("offsets", "sizes")), _size(odd))


def _size(odd: Any) -> Any:
    return torch.Size(odd) if type(odd) is tuple else odd


def change_a_tensor(metadata: Any, draw: Draw) -> None:
    """The shape and the dtype of a tensor, or which of them there are."""
    tensors = metadata.state_dict_metadata
    name, other = draw.choice([*tensors]), draw.choice([*tensors])
    match draw.randrange(5):
        case 0:
            tensors[name].size = _size(draw.choice(SHAPES))
        case 1:
            tensors[name].properties = TensorProperties(draw.choice((torch.float64, torch.int8, torch.complex64)))
        case 2:
            del tensors[name]
        case 3:
            tensors[name] = tensors[other]
        case _:
            tensors[draw.choice(("x", "", "modules.model.values", "state"))] = tensors[other]


def change_a_name(metadata: Any, draw: Draw) -> None:
    """Which piece a place is of."""
    places = metadata.storage_data
    index = draw.choice([*places])
    info = places.pop(index)
    places[MetadataIndex(draw.choice(("x", index.fqn)), draw.choice((None, (0,), (1, 1), index.offset)))] = info


def change_a_part(metadata: Any, draw: Draw) -> None:
    field = draw.choice(("state_dict_metadata", "storage_data", "planner_data", "storage_meta", "version"))
    setattr(metadata, field, draw.choice((None, {}, [], "x", {"x": None}, {"x": {"y": [1]}})))


IN_METADATA: tuple[Callable[[Any, Draw], None], ...] = (
    *(change_a_place, change_a_piece, change_a_tensor, change_a_name, change_a_part),
)


def mutate_metadata(checkpoint: Path, draw: Draw) -> None:
    """What is said of the pieces."""
    metadata = described(checkpoint)
    for _ in range(draw.randint(1, 2)):
        try:
            draw.choice(IN_METADATA)(metadata, draw)
        except (AttributeError, TypeError, KeyError, IndexError):  # what is there to be changed was changed before
            continue
    describe(checkpoint, metadata)


def mutate_pieces(checkpoint: Path, draw: Draw) -> None:
    """What is there as a piece: another tensor, or something else."""
    metadata = described(checkpoint)
    file = draw.choice(sorted({info.relative_path for info in metadata.storage_data.values()}))
    content, new = (checkpoint / file).read_bytes(), io.BytesIO()
    own = [info for info in metadata.storage_data.values() if info.relative_path == file]
    changed = draw.sample(own, draw.randint(1, 3))
    for info in own:
        value: Any = torch.load(io.BytesIO(content[info.offset :][: info.length]), weights_only=True)
        info.offset = new.tell()
        torch.save(_odd(value, draw) if info in changed else value, new)
        info.length = new.tell() - info.offset
    (checkpoint / file).write_bytes(new.getvalue())
    describe(checkpoint, metadata)


def _odd(value: torch.Tensor, draw: Draw) -> Any:
    one = value.reshape(-1)[:1]
    return draw.choice(
        (
            *(value.double(), value.bool(), value.to(torch.complex64).conj(), value[None], value.flatten(), one),
            *(one.expand(2**40), one.expand(value.shape), value.to("meta"), value.to_sparse(), value.numpy().tobytes()),
            *(torch.nn.Parameter(value), value.clone().requires_grad_(), {"x": value}, [value], None, "x", 1.0),
            *(torch.Size([1]), torch.zeros(3, 3).t(), value * float("nan"), value.numpy(), print),
        )
    )


def mutate_bytes(checkpoint: Path, draw: Draw) -> None:
    """Any bytes of any file, of which the digests fit again in most cases."""
    path = checkpoint / draw.choice((METADATA, "__0_0.distcp", "__1_0.distcp"))
    changed = bytearray(path.read_bytes())
    for _ in range(draw.randint(1, 3)):
        draw.choice(IN_BYTES)(changed, draw)
        changed = changed or bytearray(1)
    path.write_bytes(changed)
    if draw.random() < 0.8:
        seal(checkpoint)


KINDS: dict[str, Callable[[Path, Draw], None]] = {
    "metadata": mutate_metadata,
    "pieces": mutate_pieces,
    "bytes": mutate_bytes,
}
