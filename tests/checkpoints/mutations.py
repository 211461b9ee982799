"""Random changes of the files of a checkpoint: of bytes, and of values in them, with digests that fit again."""

from __future__ import annotations

import copy
import hashlib
import io
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from fsm_train.checkpoints.manifest import MANIFEST, STATE, TENSORS
from fsm_train.checkpoints.rank_names import name_of_rank
from tests.eventlog.mutations import IN_BYTES, IN_LINES, Lines, odd_value, places

Draw = random.Random

KINDS = (MANIFEST, STATE, TENSORS, "history", "frozen")
"""The kinds of files of a checkpoint; the last two are one of those of a long history, and what does not change."""


def file_of(kind: str, checkpoint: Path) -> Path:
    """The file of this kind in a checkpoint."""
    if kind in ("history", "frozen"):
        return next(checkpoint.glob(f"{kind}-*"))
    return checkpoint / kind


def seal(checkpoint: Path, body: dict[str, Any] | None = None) -> None:
    """Make the digests of a checkpoint fit its files, or make this its manifest."""
    if body is None:
        body = body_of(checkpoint)
        for name in body["files"]:
            content = (checkpoint / name).read_bytes()
            body["files"][name] = [len(content), hashlib.sha256(content).hexdigest()]
    write_sealed(checkpoint, json.dumps(body).encode())


def body_of(checkpoint: Path) -> dict[str, Any]:
    """What the manifest of a checkpoint says."""
    body: dict[str, Any] = json.loads((checkpoint / MANIFEST).read_bytes().partition(b"\n")[2])
    return body


def write_sealed(checkpoint: Path, text: bytes) -> None:
    (checkpoint / MANIFEST).write_bytes(hashlib.sha256(text).hexdigest().encode() + b"\n" + text)


def mutate(kind: str, checkpoint: Path, draw: Draw) -> None:
    """Change one file of a checkpoint: its values three times in four, else its bytes, and mostly seal it again."""
    path = file_of(kind, checkpoint)
    in_bytes, sealed = draw.random() < 0.25, draw.random() < 0.95
    if kind == MANIFEST:
        text = path.read_bytes() if not sealed else path.read_bytes().partition(b"\n")[2]
        changed = _bytes(text, draw) if in_bytes or not sealed else _json(text, draw)
        write_sealed(checkpoint, changed) if sealed else path.write_bytes(changed)
        return
    data = path.read_bytes()
    path.unlink()  # it is linked to that of another checkpoint
    path.write_bytes(_bytes(data, draw) if in_bytes else _CHANGED[kind](data, draw))
    if sealed:
        seal(checkpoint)


def _bytes(data: bytes, draw: Draw) -> bytes:
    changed = bytearray(data)
    for _ in range(draw.randint(1, 3)):
        if changed:
            draw.choice(IN_BYTES)(changed, draw)
    return bytes(changed)


def _json(data: bytes, draw: Draw) -> bytes:
    lines: Lines = [json.loads(data)]
    for _ in range(draw.randint(1, 3)):
        _in_a_value(lines, draw, lambda: odd_value(draw))
        lines = lines or [{}]
    return json.dumps(lines[0]).encode()


def _lines(data: bytes, draw: Draw) -> bytes:
    lines: Lines = [json.loads(line) for line in data.splitlines()]
    for _ in range(draw.randint(1, 3)):
        draw.choice(IN_LINES)(lines, draw)
        lines = [line for line in lines if line] or [{"x": 1}]
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


def _in_a_value(inside: Any, draw: Draw, odd: Callable[[], Any]) -> None:
    """Replace a value by an odd one or by a copy of another, or leave it out, or add one, at any depth."""
    everywhere = places(inside)
    if not everywhere:
        return
    (place, key), (source, name) = draw.choice(everywhere), draw.choice(everywhere)
    match draw.randrange(8):
        case 0:
            del place[key]
        case 1:
            place[key] = copy.deepcopy(source[name])
        case 2 if isinstance(place, dict):
            place[draw.choice(("x", "", 0, "model", key))] = odd()
        case _:
            place[key] = odd()


def _tensors(data: bytes, draw: Draw) -> bytes:
    parts = torch.load(io.BytesIO(data), weights_only=True)
    for _ in range(draw.randint(1, 2)):
        _in_a_value([parts], draw, lambda: _odd_part(parts, draw))
    file = io.BytesIO()
    torch.save(parts, file)
    return file.getvalue()


def _odd_part(parts: Any, draw: Draw) -> Any:
    """A value as no part has it, or only elsewhere: a tensor of another shape, dtype or layout, or any other value."""
    tensors = [place[key] for place, key in places([parts]) if isinstance(place[key], torch.Tensor)]
    plain = [t for t in tensors if t.layout is torch.strided and not t.is_meta and t.is_floating_point()]
    one: Any = draw.choice([t for t in plain if 0 < t.numel() < 2**20] or [torch.ones(2)])
    match draw.randrange(8):
        case 0:
            return draw.choice((one.to(torch.complex64), one.bool(), one.half(), one.long(), one.double()))
        case 1:
            return draw.choice((one.reshape(-1)[:1].expand(2**40), one[None], one.flatten(), one.reshape(-1)[:0]))
        case 2:
            return draw.choice(
                (one.to("meta"), one.float().to_sparse() if one.dim() else one, one.float() * float("nan"))
            )
        case 3:
            return draw.choice(
                (torch.zeros(3), one.clone(), complex(1), b"x", torch.float16, torch.Size([1]), {1}, (1,))
            )
        case 4:
            return draw.choice(
                (torch.ones(2, requires_grad=True), one.to(torch.complex64).conj(), torch.nn.Parameter(torch.ones(1)))
            )
        case _:
            return odd_value(draw)


_CHANGED: dict[str, Callable[[bytes, Draw], bytes]] = {
    STATE: _json,
    TENSORS: _tensors,
    "history": _lines,
    "frozen": _tensors,
    name_of_rank(1): _tensors,
}
