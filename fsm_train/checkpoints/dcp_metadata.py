"""What `.metadata` says: which pieces of which tensors are where in the files of a torch distributed checkpoint (DCP).

Rule of this file: `.metadata` is a pickle, and is read as data. A pickle may ask for any function of Python by its
name; here a name stands for a record or a plain value, or the file is refused: nothing that it names is looked up, and
nothing of it is called. What it says is checked against the sizes of the files before a tensor is made of it.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs
import torch

from .shards import Piece, SharedTensor, is_whole

LARGEST = 2**30  # bytes of `.metadata`, which are some 200 for each piece of a tensor

_Where = Mapping[tuple[str, tuple[int, ...] | None], Any]


def read_metadata(content: bytes, files: Mapping[str, int]) -> dict[str, SharedTensor]:
    """The tensors by name, each whole and each piece of it within its file. Pieces without elements are left out.

    Args:
        content: of `.metadata`.
        files: by name, the bytes of each file that may have pieces.

    Raises:
        ValueError: it is no `.metadata` of tensors alone, in words: it asks for something else, or what it says cannot
            be so, such as a piece outside of its file.
    """
    if len(content) > LARGEST:
        raise ValueError(f"it is too large: {len(content)} bytes")
    try:
        body = _fields(_AsData(io.BytesIO(content)).load(), "Metadata")
        where = {_key(index): info for index, info in _mapping(body["storage_data"]).items()}
        described = _mapping(body["state_dict_metadata"])
        records = [saved for saved in described.values() if type(saved) is _Record]
        if sum(len(record.fields.get("chunks", ())) for record in records) > len(content):
            raise ValueError("it has the same pieces many times over")  # which takes few bytes, and any time
        tensors = {_text(name): _tensor(name, saved, where) for name, saved in described.items()}
    except ValueError:
        raise
    except Exception as error:  # of bytes that are no pickle, or one of something else
        raise ValueError(f"it is no description of tensors: {type(error).__name__}: {error}") from error
    _check_within(tensors, files)
    return tensors


@attrs.define(eq=False)
class _Record:
    """What was pickled as an object of this kind, as its fields."""

    kind: str
    fields: Mapping[str, Any] = {}


@attrs.frozen(eq=False)
class _Name:
    """A name that the pickle asks for, with what is made where it calls that."""

    make: Callable[[tuple[Any, ...]], Any]


_METADATA, _FILES = "torch.distributed.checkpoint.metadata", "torch.distributed.checkpoint.filesystem"
_PATHS = ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")


def _record_of(kind: str) -> _Name:
    def make(arguments: tuple[Any, ...]) -> _Record:
        if arguments:
            raise ValueError(f"it makes a {kind} of arguments")
        return _Record(kind)

    return _Name(make)


def _shape(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    (sizes,) = arguments
    if type(sizes) not in (tuple, list) or len(sizes) > 64:  # which torch makes of no tensor
        raise ValueError("it has a shape of too many dimensions")
    return tuple(sizes)


_KNOWN: Mapping[tuple[str, str], Any] = {
    **{
        (_METADATA, kind): _record_of(kind)
        for kind in (
            *("Metadata", "TensorStorageMetadata", "TensorProperties", "ChunkStorageMetadata"),
            *("BytesStorageMetadata", "MetadataIndex", "StorageMeta"),
        )
    },
    (_FILES, "_StorageInfo"): _record_of("_StorageInfo"),
    ("torch", "Size"): _Name(_shape),
    **{("torch", name): value for name, value in vars(torch).items() if isinstance(value, torch.dtype)},
    ("torch.serialization", "_get_layout"): _Name(lambda arguments: arguments[0]),  # its name
    (_METADATA, "_MEM_FORMAT_ENCODING"): _Name(lambda arguments: None),
    # The folder that it was written to, which it need not be in any more.
    **{(module, kind): _Name(lambda arguments: None) for module in ("pathlib", "pathlib._local") for kind in _PATHS},
}
"""All that there is in a `.metadata` of torch, by module and name."""


class _AsData(pickle._Unpickler):
    """Reads a pickle of records. It is Python's own in Python, whose memory grows with the file alone."""

    stack: list[Any]
    pop_mark: Callable[[], list[Any]]

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _KNOWN[module, name]
        except KeyError:
            asked = f"{module}.{name}"
            raise ValueError(f"it asks for {asked!r:.200}, which no description of tensors has") from None

    def _make(self) -> None:
        called, arguments = self.stack[-2:]
        if type(called) is not _Name or type(arguments) is not tuple:
            raise ValueError(f"it calls something of the type {type(called).__name__}")
        self.stack[-2:] = [called.make(arguments)]

    def _fill(self) -> None:
        record, state = self.stack[-2:]
        if type(record) is not _Record:
            raise ValueError(f"it changes something of the type {type(record).__name__}")
        if record.kind == "TensorProperties":  # whose state is a tuple
            dtype, layout, *_ = state
            record.fields = {"dtype": dtype, "layout": layout}
        else:
            record.fields = _mapping(state)
        del self.stack[-1]

    def _put_one(self) -> None:
        items, self.stack[-2:] = self.stack[-2:], []
        self._put(items)

    def _put_all(self) -> None:
        self._put(self.pop_mark())

    def _put(self, items: Sequence[Any]) -> None:
        for key, value in zip(items[::2], items[1::2], strict=True):
            if type(key) is not str and type(key) is not _Record:  # the hash of tuples in tuples may take any time
                raise ValueError(f"it has a key of the type {type(key).__name__}")
            self.stack[-1][key] = value


def _refusing(name: str) -> Callable[[Any], None]:
    def refuse(self: Any) -> None:
        raise ValueError(f"it has the instruction {name}, which no description of tensors has")

    return refuse


_AS_THEY_ARE = frozenset(
    {
        *("PROTO", "FRAME", "MEMOIZE", "BINGET", "LONG_BINGET", "MARK", "STOP", "STACK_GLOBAL", "GLOBAL", "INST"),
        *("NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1", "SHORT_BINUNICODE", "BINUNICODE"),
        *("EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "EMPTY_LIST", "APPEND", "APPENDS", "EMPTY_DICT"),
    }
)
"""Instructions that make plain values, or that ask `find_class` for a name."""

_OWN = {
    "NEWOBJ": _AsData._make,
    "REDUCE": _AsData._make,
    "BUILD": _AsData._fill,
    "SETITEM": _AsData._put_one,
    "SETITEMS": _AsData._put_all,
}
_PYTHONS: Mapping[int, Any] = pickle._Unpickler.dispatch
_INSTRUCTIONS: Any = {
    ord(opcode.code): _PYTHONS[ord(opcode.code)]
    if opcode.name in _AS_THEY_ARE
    else _OWN.get(opcode.name, _refusing(opcode.name))
    for opcode in pickletools.opcodes
}
_AsData.dispatch = _INSTRUCTIONS


def _fields(value: Any, kind: str) -> Mapping[str, Any]:
    if type(value) is not _Record or value.kind != kind:
        found = value.kind if type(value) is _Record else type(value).__name__
        raise ValueError(f"it has a {found} where a {kind} belongs")
    return value.fields


def _mapping(value: Any) -> Mapping[Any, Any]:
    if type(value) is not dict:
        raise ValueError(f"it has a {type(value).__name__} where names have values")
    return value


def _text(value: Any) -> str:
    if type(value) is not str:
        raise ValueError(f"it has a {type(value).__name__} where a name belongs")
    return value


def _number(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 2**63:
        found = value if type(value) is int else type(value).__name__
        raise ValueError(f"it has {found} where a number of elements or bytes belongs")
    return value


def _numbers(value: Any) -> tuple[int, ...]:
    if type(value) is not tuple:
        raise ValueError(f"it has a {type(value).__name__} where a shape belongs")
    return tuple(map(_number, value))


def _key(index: Any) -> tuple[str, tuple[int, ...] | None]:
    fields = _fields(index, "MetadataIndex")
    return _text(fields["fqn"]), None if fields["offset"] is None else _numbers(fields["offset"])


def _tensor(name: Any, saved: Any, where: _Where) -> SharedTensor:
    if type(saved) is _Record and saved.kind == "BytesStorageMetadata":
        raise ValueError(f"{name!r:.200} is no tensor, and would have to be unpickled")
    fields = _fields(saved, "TensorStorageMetadata")
    properties = _fields(fields["properties"], "TensorProperties")
    if properties["layout"] != "torch.strided":
        raise ValueError(f"{name!r:.200} is no dense tensor")
    if type(properties["dtype"]) is not torch.dtype:
        raise ValueError(f"{name!r:.200} has no dtype")
    pieces = []
    for chunk in fields["chunks"]:
        box = _fields(chunk, "ChunkStorageMetadata")
        offset, shape = _numbers(box["offsets"]), _numbers(box["sizes"])
        if math.prod(shape):
            pieces.append(_piece(offset, shape, where[name, offset]))
    dtype = str(properties["dtype"]).removeprefix("torch.")
    return SharedTensor(dtype, _numbers(fields["size"]), tuple(pieces))


def _piece(offset: tuple[int, ...], shape: tuple[int, ...], info: Any) -> Piece:
    fields = _fields(info, "_StorageInfo")
    if fields.get("transform_descriptors"):
        raise ValueError("a piece is transformed, compressed say")
    return Piece(offset, shape, _text(fields["relative_path"]), _number(fields["offset"]), _number(fields["length"]))


def _check_within(tensors: Mapping[str, SharedTensor], files: Mapping[str, int]) -> None:
    """Refuse what there cannot be: a piece outside of its file, or more elements than its bytes, or a tensor with gaps.

    Raises:
        ValueError: with the name of the tensor.
    """
    left = dict(files)
    for name, tensor in tensors.items():
        if not is_whole(tensor):
            raise ValueError(f"the pieces of {name!r:.200} do not make up the whole of {tensor.shape}, each part once")
        for piece in tensor.pieces:
            if piece.begin + piece.length > files.get(piece.file, 0):
                raise ValueError(f"a piece of {name!r:.200} is outside of its file, {piece.file!r:.60}")
            left[piece.file] -= piece.length
            if math.prod(piece.shape) * getattr(torch, tensor.dtype).itemsize > piece.length or left[piece.file] < 0:
                raise ValueError(f"a piece of {name!r:.200} has more elements than its file has room for")
