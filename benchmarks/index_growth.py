"""Cost of opening a store as its shards and records grow.

Writes synthetic TFRecord shards, then opens them in fresh processes: once to
build the index files, once to map them.

    python -m benchmarks.index_growth --records 10000000 --shards 1000
"""

import argparse
import json
import os
import resource
import struct
import tempfile
import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from benchmarks import report
from jest_tf.data import stores
from jest_tf.data.stores import tfrecords

# Rows of a timed read, and the number of reads.
_ROWS = 256
_READS = 20


class Cost(NamedTuple):
    """Measurements of one process.

    Attributes:
        records: number of records.
        shards: number of files.
        open_seconds: time to open the store.
        open_mebibytes: resident memory that opening added.
        read_mebibytes: resident memory that reading added to it.
        random_milliseconds: to read 256 records from all over the store.
        near_milliseconds: to read 256 neighbouring records.
    """

    records: int
    shards: int
    open_seconds: float
    open_mebibytes: float
    read_mebibytes: float
    random_milliseconds: float
    near_milliseconds: float


def write_shards(directory: str, num_records: int, num_shards: int) -> str:
    """Writes equal small records, fast.

    Args:
        directory: folder to write to.
        num_records: in all; must be a multiple of `num_shards`.
        num_shards: files.

    Returns:
        The pattern of the shards.
    """
    if num_records % num_shards:
        raise ValueError(
            "`num_records` must be a multiple of `num_shards`. "
            f"Received: {num_records}, {num_shards}"
        )
    example = tf.train.Example()
    features = example.features.feature
    features["image"].bytes_list.value.append(b"x" * 64)
    features["caption"].bytes_list.value.append(b"a caption")
    features["id"].int64_list.value.append(2**40)
    payload = example.SerializeToString()
    size = struct.pack("<Q", len(payload))
    frame = b"".join(
        part + struct.pack("<I", tfrecords.masked_crc32c(part))
        for part in (size, payload)
    )
    shard = frame * (num_records // num_shards)
    for i in range(num_shards):
        path = os.path.join(
            directory, f"synthetic-{i:05}-of-{num_shards:05}.tfrecord"
        )
        with open(path, "wb") as file:
            file.write(shard)
    return os.path.join(directory, "synthetic-*.tfrecord")


def measure(pattern: str) -> Cost:
    """Opens a store in a process of its own and measures what it costs."""
    printed = report.command("benchmarks.index_growth", "--open", pattern)
    return Cost(*json.loads(printed.splitlines()[-1]))


def measure_here(pattern: str) -> Cost:
    """As `measure`, in this process, whose memory may not be clean."""
    before = _resident()
    start = time.perf_counter()
    store = stores.open_store(pattern)
    seconds = time.perf_counter() - start
    opened = _resident()
    rng = np.random.default_rng(0)
    far = _milliseconds(
        store, [rng.integers(0, len(store), _ROWS) for _ in range(_READS)]
    )
    starts = rng.integers(0, max(len(store) - _ROWS, 1), _READS)
    near = _milliseconds(
        store,
        [np.arange(first, min(first + _ROWS, len(store))) for first in starts],
    )
    return Cost(
        len(store),
        len(store.shards.paths),
        seconds,
        opened - before,
        _resident() - opened,
        far,
        near,
    )


def run(num_records: int, num_shards: int) -> tuple[Cost, Cost]:
    """Costs of the first opening, which builds the index, and of the next."""
    with tempfile.TemporaryDirectory() as directory:
        pattern = write_shards(directory, num_records, num_shards)
        return measure(pattern), measure(pattern)


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the costs of both openings."""
    parser = argparse.ArgumentParser(description="Benchmarks index files.")
    parser.add_argument("--records", type=int, default=10_000_000)
    parser.add_argument("--shards", type=int, default=1000)
    parser.add_argument("--open", help="measure in this process, as JSON")
    options = parser.parse_args(argv)
    if options.open:
        print(json.dumps(measure_here(options.open)))
        return
    for name, cost in zip(
        ("first", "next"), run(options.records, options.shards), strict=True
    ):
        print(name, cost)


def _milliseconds(store, queries):
    start = time.perf_counter()
    for rows in queries:
        store.read(rows)
    return (time.perf_counter() - start) / len(queries) * 1000


def _resident():
    """MiB of memory that the process holds."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 2**20


if __name__ == "__main__":
    main()
