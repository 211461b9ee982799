"""`.metadata` of torch's distributed checkpoints, read as data: what torch writes is read, and nothing else is."""

from __future__ import annotations

import builtins
import copyreg
import functools
import operator
import os
import pathlib
import pickle
import random
import resource
import struct
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint import metadata as torchs
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.state_dict_saver import save as save_tensors
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

from fsm_train.checkpoints.dcp_metadata import read_metadata
from fsm_train.checkpoints.shards import Piece, SharedTensor
from tests.eventlog.mutations import IN_BYTES
from tests.forked import forked
from tests.how_long import of_all

SECONDS, BYTES = 2.0, 2**28  # for what is read in milliseconds
DTYPES = [value for value in vars(torch).values() if isinstance(value, torch.dtype) and not value.is_complex]
PROTOCOLS = range(4, pickle.HIGHEST_PROTOCOL + 1)  # torch takes the default one of Python
SIZES = {"__0_0.distcp": 10_000}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What DCP wrote on two ranks: tensors that they share out in two ways, one that each has, and two without size."""
    folder = tmp_path_factory.mktemp("written")

    def save(rank: int) -> None:
        mesh = DeviceMesh("cpu", [0, 1])
        whole = torch.arange(35.0).reshape(7, 5)
        tensors = {
            "rows": distribute_tensor(whole, mesh, [Shard(0)]),
            "columns": distribute_tensor(whole.to(torch.bfloat16), mesh, [Shard(1)]),
            "one row": distribute_tensor(whole[:1], mesh, [Shard(0)]),
            "each": distribute_tensor(whole, mesh, [Replicate()]),
            "number": torch.tensor(3),
            "nothing": torch.zeros(0, 2),
        }
        save_tensors(tensors, checkpoint_id=folder / "dcp")

    assert forked(2, folder, save) == [None, None]
    return folder / "dcp"


def sizes_in(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in folder.glob("__*")}


def test_what_torch_writes_is_read(written: Path) -> None:
    """Each tensor has the shape, the dtype and the pieces that torch itself reads there."""
    content = (written / ".metadata").read_bytes()
    theirs = pickle.loads(content)

    ours = read_metadata(content, sizes_in(written))

    assert ours.keys() == theirs.state_dict_metadata.keys()
    for name, tensor in ours.items():
        described = theirs.state_dict_metadata[name]
        assert (getattr(torch, tensor.dtype), tensor.shape) == (described.properties.dtype, tuple(described.size))
        boxes = [(tuple(chunk.offsets), tuple(chunk.sizes)) for chunk in described.chunks if chunk.sizes.numel()]
        assert [(piece.offset, piece.shape) for piece in tensor.pieces] == boxes
        for piece in tensor.pieces:
            place = theirs.storage_data[torchs.MetadataIndex(name, piece.offset)]
            assert (piece.file, piece.begin, piece.length) == (place.relative_path, place.offset, place.length)


def metadata_of(tensors: Any) -> Any:
    return torchs.Metadata(tensors, storage_data={})


def described(
    size: tuple[int, ...] = (2,),
    boxes: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...] = (((0,), (2,)),),
    **of_piece: Any,
) -> torchs.Metadata:
    """What torch would write of one tensor, "weight", that consists of these pieces."""
    properties = torchs.TensorProperties(dtype=of_piece.pop("dtype", torch.float32))
    chunks = [torchs.ChunkStorageMetadata(torch.Size(offset), torch.Size(shape)) for offset, shape in boxes]
    info = {"relative_path": "__0_0.distcp", "offset": 0, "length": 1000, **of_piece}
    places = {torchs.MetadataIndex("weight", offset): _StorageInfo(**info) for offset, _ in boxes}
    tensor = torchs.TensorStorageMetadata(properties, torch.Size(size), chunks)
    return torchs.Metadata({"weight": tensor}, storage_data=places, storage_meta=torchs.StorageMeta(Path("there")))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_each_dtype_is_known(dtype: torch.dtype) -> None:
    read = read_metadata(pickle.dumps(described(dtype=dtype)), SIZES)

    name = str(dtype).removeprefix("torch.")
    assert read == {"weight": SharedTensor(name, (2,), (Piece((0,), (2,), "__0_0.distcp", 0, 1000),))}


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("path", [pathlib.PurePosixPath("a/b"), pathlib.PureWindowsPath("a\\b"), "a/b", None])
def test_it_is_read_wherever_it_was_written(path: Any, protocol: int) -> None:
    """The path in it is of the system on which it was written, and is not looked at."""
    metadata = described()
    metadata.storage_meta = torchs.StorageMeta(path)

    assert [*read_metadata(pickle.dumps(metadata, protocol), SIZES)] == ["weight"]


# ---------------------------------------------------------------------------------------- what asks for more


class Calls:
    """Is pickled as a call of this function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.call


def _touch(path: Path) -> dict[str, Calls]:
    """Ways to make this file or to come nearer to that, by the name that each asks for."""
    command = f"touch {path}"
    return {
        f"{os.name}.system": Calls(os.system, command),
        "builtins.eval": Calls(builtins.eval, f"open({str(path)!r}, 'w')"),
        "builtins.exec": Calls(builtins.exec, f"open({str(path)!r}, 'w')"),
        "builtins.getattr": Calls(getattr, path, "touch"),
        "builtins.map": Calls(map, os.system, [command]),
        "builtins.type": Calls(type, "Sized", (), {}),
        "functools.partial": Calls(functools.partial(os.system, command)),
        "operator.methodcaller": Calls(operator.methodcaller("touch"), path),
        "subprocess.Popen": Calls(subprocess.Popen, ["touch", str(path)]),
        "torch.storage._load_from_bytes": Calls(torch.storage._load_from_bytes, pickle.dumps(1)),
        "torch.serialization.load": Calls(torch.load, str(path)),
        "_pickle.loads": Calls(pickle.loads, b""),
        "copyreg._reconstructor": Calls(copyreg._reconstructor, dict, dict, None),  # type: ignore[attr-defined]
    }


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("name", [*_touch(Path())])
def test_another_name_is_refused_with_it_and_not_looked_up(name: str, protocol: int, tmp_path: Path) -> None:
    """Wherever in the file it is asked for; nothing of it is called."""
    made = tmp_path / "made"
    metadata = described()
    metadata.planner_data = _touch(made)[name]

    with pytest.raises(ValueError, match=f"it asks for '{name}', which no description of tensors has"):
        read_metadata(pickle.dumps(metadata, protocol), SIZES)

    assert not made.exists()


def text(value: str) -> bytes:
    return b"\x8c" + bytes([len(value)]) + value.encode()


def asked(value: str) -> bytes:
    module, _, last = value.rpartition(".")
    return text(module) + text(last) + b"\x93"


RECORD = "torch.distributed.checkpoint.metadata.Metadata"
NESTED = b")" + b"\x94h\x00\x86" + b"".join(b"\x94h" + bytes([i]) + b"\x86" for i in range(1, 60))
GADGETS = {
    "a name with dots": (text("pathlib") + text("Path.unlink") + b"\x93", "asks for 'pathlib.Path.unlink'"),
    "an attribute of torch": (asked("torch.load"), "asks for 'torch.load'"),
    "a module of torch": (asked("torch.os"), "asks for 'torch.os'"),
    "the oldest form": (b"cos\nsystem\n", "asks for 'os.system'"),
    "an instance of the oldest form": (b"(S'ls'\nios\nsystem\n", "instruction STRING"),
    "another instance of it": (b"(ios\nsystem\n", "asks for 'os.system'"),
    "a registered extension": (b"\x82\x01", "instruction EXT1"),
    "what stands outside": (b"Nq\x00Q", "instruction BINPUT"),
    "what stands outside, too": (b"NQ", "instruction BINPERSID"),
    "a memory as large as a number": (b"Nr\xff\xff\xff\xff", "instruction LONG_BINPUT"),
    "bytes of any size": (b"\x8e" + struct.pack("<Q", 2**40), "instruction BINBYTES8"),
    "changeable bytes of any size": (b"\x96" + struct.pack("<Q", 2**40), "instruction BYTEARRAY8"),
    "a frame of any size": (b"\x95" + struct.pack("<Q", 2**40), "IndexError"),
    "an attribute of a class": (asked(RECORD) + b"N}" + text("kind") + b"Ns\x86b", "changes something of the type"),
    "an attribute of a dtype": (asked("torch.float32") + b"}" + text("kind") + b"Nsb", "of the type dtype"),
    "a record of arguments": (asked(RECORD) + b"K\x01\x85\x81", "a Metadata of arguments"),
    "a call of a dtype": (asked("torch.float32") + b")R", "calls something of the type dtype"),
    "a call of a text": (text("x") + b")R", "calls something of the type str"),
    "a key that takes for ever": (b"}" + NESTED + b"Ns", "a key of the type tuple"),
    "a call that takes for ever": (NESTED + b")R", "calls something of the type tuple"),
    "a long shape": (asked("torch.Size") + b"](" + b"K\x01" * 65 + b"e\x85R", "too many dimensions"),
    "a number": (b"K\x01", "a int where a Metadata belongs"),
    "another record": (asked(RECORD.replace("Metadata", "MetadataIndex")) + b")\x81", "a MetadataIndex where"),
    "nothing in it": (asked(RECORD) + b")\x81", "KeyError"),
    "nothing": (b"", "no description"),
}


@pytest.mark.parametrize("gadget", GADGETS)
def test_what_pickles_can_do_besides_is_refused(gadget: str) -> None:
    """Soon, without memory for what is not there, and no class of torch is another one afterwards."""
    content, why = GADGETS[gadget]
    before = dict(vars(torchs.Metadata))
    begin, memory = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    with pytest.raises(ValueError, match=why):
        read_metadata(b"\x80\x04" + content + b".", SIZES)

    assert time.process_time() - begin < SECONDS
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory) * 1024 < BYTES
    assert dict(vars(torchs.Metadata)) == before


# ---------------------------------------------------------------------------------------- what cannot be so

HALVES = (((0,), (1,)), ((1,), (1,)))
IMPOSSIBLE: dict[str, tuple[Callable[[], Any], str]] = {
    "a gap": (lambda: described(boxes=HALVES[:1]), "do not make up the whole"),
    "an overlap": (lambda: described((3,), (((0,), (2,)), ((1,), (1,)))), "do not make up the whole"),
    "outside of the tensor": (lambda: described(boxes=(((1,), (2,)),)), "do not make up the whole"),
    "no piece": (lambda: described(boxes=()), "do not make up the whole"),
    "huge": (lambda: described((2**40,), (((0,), (2**40,)),)), "more elements than its file has room for"),
    "huge beyond numbers": (lambda: described((2**62,) * 4, (((0,) * 4, (2**62,) * 4),)), "more elements"),
    "beyond its file": (lambda: described(offset=9_001), "is outside of its file"),
    "another file": (lambda: described(relative_path="../state.json"), "is outside of its file, '../state.json'"),
    "before its file": (lambda: described(offset=-1), "-1 where a number"),
    "the same bytes twice": (lambda: described(boxes=HALVES, length=6_000), "more elements than its file has room"),
    "no whole number": (lambda: described(length="1"), "str where a number"),
    "a flag as a number": (lambda: described(length=True), "bool where a number"),
    "a file of no name": (lambda: described(relative_path=1), "int where a name"),
    "compressed": (lambda: described(transform_descriptors=["zstd"]), "is transformed"),
    "the same pieces again and again": (lambda: repeating(), "the same pieces many times over"),
    "an object": (lambda: metadata_of({"x": torchs.BytesStorageMetadata()}), "is no tensor"),
    "no pieces": (lambda: metadata_of({"x": None}), "NoneType where a TensorStorageMetadata"),
    "no names": (lambda: metadata_of([]), "list where names have values"),
    "a sparse one": (lambda: _with(layout=torch.sparse_coo), "no dense tensor"),
    "no dtype": (lambda: _with(dtype="float32"), "has no dtype"),
}


def repeating() -> Any:
    """Tensors that have one list of pieces, which a pickle holds once."""
    chunk = torchs.ChunkStorageMetadata(torch.Size((0,)), torch.Size((0,)))
    tensor = torchs.TensorStorageMetadata(torchs.TensorProperties(torch.float32), torch.Size((0,)), [chunk] * 10_000)
    return metadata_of(dict.fromkeys(map(str, range(10_000)), tensor))


def _with(**of_properties: Any) -> Any:
    metadata = described()
    vars(metadata.state_dict_metadata["weight"].properties).update(of_properties)  # type: ignore[union-attr]
    return metadata


@pytest.mark.parametrize("what", IMPOSSIBLE)
def test_what_cannot_be_is_refused_before_memory_is_taken_for_it(what: str) -> None:
    metadata, why = IMPOSSIBLE[what]

    with pytest.raises(ValueError, match=why):
        read_metadata(pickle.dumps(metadata()), SIZES)


def test_pieces_of_no_elements_are_left_out() -> None:
    """A rank that has nothing of a small tensor writes an empty piece, which may begin where another one does."""
    metadata = described(boxes=(((0,), (0,)), ((0,), (2,)), ((2,), (0,))))

    (piece,) = read_metadata(pickle.dumps(metadata), SIZES)["weight"].pieces

    assert (piece.offset, piece.shape) == ((0,), (2,))


@pytest.mark.long
def test_a_mutated_one_is_read_or_refused(written: Path) -> None:
    """Each tensor that is read is whole, and its pieces lie in their files."""
    content, files = (written / ".metadata").read_bytes(), sizes_in(written)
    seed = random.SystemRandom().randrange(2**32)
    draw, refusals = random.Random(seed), 0
    for number in range(of_all(10_000, few=100)):
        changed = bytearray(content)
        for _ in range(draw.randint(1, 3)):
            draw.choice(IN_BYTES)(changed, draw)
            changed = changed or bytearray(content)
        begin = time.process_time()  # a machine may be busy
        try:
            tensors = read_metadata(bytes(changed), files)
        except ValueError:
            refusals += 1
            continue
        finally:
            assert time.process_time() - begin < SECONDS, (seed, number)
        pieces = [piece for tensor in tensors.values() for piece in tensor.pieces]
        assert all(piece.begin + piece.length <= files[piece.file] for piece in pieces), (seed, number)
    assert refusals
