# python -m tests.benchmarks.shards: what grows with the ranks that share out a model, and how fast.
"""What one process can tell of any number of ranks is counted and timed in it: sizes of files, and work per piece.

What takes processes is measured on as many as there are below, in processor time: on a machine with fewer cores they
wait for each other, which ranks with a core each do not.
"""

from __future__ import annotations

import hashlib
import json
import statistics
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import torch

from fsm_train.checkpoints.dcp_metadata import read_metadata
from fsm_train.checkpoints.shard_writing import metadata_of
from fsm_train.checkpoints.shards import Piece, SharedTensor, gathered, is_whole, name_of_pieces
from fsm_train.checkpoints.writing import write_saved
from fsm_train.supervised.ranks import GlooExchange
from fsm_train.worlds.rows import WIDTH
from tests.benchmarks.interleaved import arguments
from tests.forked import forked

PARAMETERS = 300  # of a language model of 32 blocks, each with a weight and AdamW's two moments
TENSORS = 3 * PARAMETERS
ROWS = 4096
RANKS = (8, 64, 1024)
PROCESSES = (2, 4, 8)


def seconds_of(call: Callable[[], Any], times: int) -> float:
    """The median of processor seconds."""
    found = []
    for _ in range(times):
        begin = time.process_time()
        call()
        found.append(time.process_time() - begin)
    return statistics.median(found)


def most_memory(call: Callable[[], Any]) -> int:
    """The most bytes of Python objects meanwhile."""
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def names(tensors: int) -> list[str]:
    kinds = ("modules.model.values.layers.{}.attention.query.weight", "optimizer.state.{}.exp_avg")
    return [kinds[min(i % 3, 1)].format(i) + "_sq" * (i % 3 == 2) for i in range(tensors)]


def shared(ranks: int, tensors: int) -> dict[str, SharedTensor]:
    """A model of so many tensors of ROWS rows, of which each rank has the same number."""
    own, length = ROWS // ranks, ROWS // ranks * ROWS * 4 + 1500
    return {
        name: SharedTensor(
            "float32",
            (ROWS, ROWS),
            tuple(
                Piece((rank * own, 0), (own, ROWS), name_of_pieces(rank), i * length, length) for rank in range(ranks)
            ),
        )
        for i, name in enumerate(names(tensors))
    }


def told(ranks: int, tensors: int) -> bytes:
    """What one rank tells the others of its pieces."""
    own = {name: [[ROWS, 0], [ROWS // ranks, ROWS], 2**33, 2**20] for name in names(tensors)}
    files = {name_of_pieces(ranks - 1): [2**33, "0" * 64], f"rank-{ranks - 1}.pt": [2**16, "0" * 64]}
    return orjson.dumps({"files": files, "pieces": own})


def of_pieces(ranks: int, times: int) -> dict[str, float]:
    """What a piece costs, of fewer tensors than a model has: ranks times tensors are pieces."""
    tensors = max(6, min(TENSORS, 20_000 // ranks))
    one, texts = shared(ranks, tensors), [told(ranks, tensors)] * ranks
    of_ranks = [{name: [tensor.pieces[rank]] for name, tensor in one.items()} for rank in range(ranks)]
    content, sizes = metadata_of(one), {name_of_pieces(rank): 2**50 for rank in range(ranks)}
    timed: dict[str, Callable[[], Any]] = {
        "hear of it": lambda: [orjson.loads(text) for text in texts],
        "join": lambda: gathered(of_ranks),
        "check": lambda: all(map(is_whole, one.values())),
        "write .metadata": lambda: metadata_of(one),
        "read .metadata": lambda: read_metadata(content, sizes),
    }
    return {
        "told, bytes": len(texts[0]) / tensors,
        "in .metadata, bytes": len(content) / tensors / ranks,
        **{f"{name}, us": seconds_of(call, times) / tensors / ranks * 1e6 for name, call in timed.items()},
        "read .metadata, bytes of memory": most_memory(lambda: read_metadata(content, sizes)) / tensors / ranks,
        "in the manifest, bytes a rank": len(json.dumps(orjson.loads(texts[0])["files"])),
    }


def of_files(times: int) -> dict[str, float]:
    """What each piece takes beside its values, and how fast bytes are hashed."""
    with tempfile.TemporaryDirectory() as folder:
        files: dict[str, tuple[int, str]] = {}
        ranges = write_saved(Path(folder) / "pieces", [torch.zeros(1000) for _ in range(50)], files)
    content = bytes(2**25)
    return {
        "a piece, bytes beside its values": statistics.mean(length for _, length in ranges) - 4000,
        "sha256, MB/s": len(content) / 1e6 / seconds_of(lambda: hashlib.sha256(content).digest(), times),
    }


def of_exchanges(ranks: int, blocks: int) -> dict[str, float]:
    """Microseconds that an exchange takes each of so many processes: the median of blocks of ten."""

    def work(rank: int) -> list[tuple[float, float]]:
        exchange, row = GlooExchange(), [0.0] * WIDTH
        found = []
        for _ in range(blocks + 2):
            processor, clock = time.process_time(), time.perf_counter()
            for _ in range(10):
                exchange(row)
            found.append((time.process_time() - processor, time.perf_counter() - clock))
        return found[2:]

    with tempfile.TemporaryDirectory() as folder:
        ends = forked(ranks, Path(folder), work, limit=300)
    processor, clock = (statistics.median(block[i] / 10 * 1e6 for end in ends for block in end) for i in (0, 1))
    return {"processor, us": processor, "clock, us": clock}


def main() -> None:
    options = arguments(__doc__)
    times = 1 if options.quick else 5
    results: dict[str, Any] = {
        "files": of_files(times),
        "pieces": {ranks: of_pieces(ranks, times) for ranks in RANKS},
        "exchanges": {ranks: of_exchanges(ranks, 6 * times) for ranks in PROCESSES},
    }
    if options.json:
        print(json.dumps(results))
        return
    for name, found in results.items():
        print(name)
        for key, value in found.items():
            if isinstance(value, dict):
                print(f"  {key} ranks: " + ", ".join(f"{what} {number:.4g}" for what, number in value.items()))
            else:
                print(f"  {key} {value:.4g}")


if __name__ == "__main__":
    main()
