"""How fast sidecars are written and read, and how large they are.

    python -m benchmarks.bench_sidecars

Written by `embed.write` with constant embeddings, as fast as any reference can
be served; read from the page cache, ids and captions checked. Replaces its
block of README.md, or of the file `--out`. With `--small` it says nothing, and
writes only to `--out`.
"""

import os
import tempfile
import time
from collections.abc import Sequence

import numpy as np

from benchmarks import bench_input, report
from jest_tf.data import sidecars as sidecars_lib
from jest_tf.data import stores
from jest_tf.data.sidecars import embed, file_format

_COMMAND = "python -m benchmarks.bench_sidecars"
_SEED = 0
# Pixels a side of the larger pictures, once decoded.
_SIZE = 224
# Width of the embeddings where there is no reference.
_DIM = 128


class _Store:
    """As much of a store as sidecars need, without records."""

    def __init__(self, folder, shards, rows):
        paths = tuple(f"{folder}/{shard}" for shard in range(shards))
        self.shards = stores.Shards(paths, np.full(shards, rows, np.int64))

    def __len__(self):
        return int(self.shards.lengths.sum())

    def ids(self, rows):
        return np.asarray(rows) * 7919

    def stamp(self, shard):
        return str(shard)

    def describe(self, row):
        return f"row {row}"


def main(argv: Sequence[str] | None = None) -> None:
    """Writes and reads sidecars, and writes the block."""
    description = __doc__.splitlines()[0]
    options = report.parser(_COMMAND, description).parse_args(argv)
    text, page = measure(options.small), report.page(options)
    report.publish(page, "sidecars", text, _COMMAND)


def measure(small: bool) -> str:
    """Writing and reading, as Markdown."""
    repeats = 2 if small else 5
    with tempfile.TemporaryDirectory() as directory:
        written = _write(directory, 64 if small else 2048, repeats)
    shards, rows = (4, 1000) if small else (50, 10_000)
    with tempfile.TemporaryDirectory() as directory:
        read = _read_rates(directory, shards, rows, repeats)
    header = "pictures", "captions each", "records/s", "bytes a record"
    return f"""## What sidecars cost

    {_COMMAND}

{report.table(header, [written])}

Lowest / median / highest of {repeats} repeats, float16, batches of 256. The
records a second are those of `embed.write` once its functions are traced: read,
check, decode, resize, tokenise, write and bring to the disk. The embeddings are
constant, of width {_DIM}, for JPEGs of 256 pixels and more, resized to {_SIZE},
as in [How fast examples come](#how-fast-examples-come); a reference takes the
time of its forward pass in addition.

Reading, on one core, in seconds of the processor:

{report.table(["rows", "a call", "M rows/s"], read)}

Random unit vectors of width {_DIM}, two captions a row, {shards} sidecars of
{rows:,} rows each in the page cache.

{report.environment()}"""


def _write(directory, num_pictures, repeats):
    """Cells of a table: records, captions, records a second, bytes."""
    store = bench_input.write_pictures(directory, num_pictures)
    unit = np.eye(1, _DIM, dtype=np.float32)

    def encode(images, captions):
        return unit.repeat(len(images), 0), unit.repeat(len(captions), 0)

    description = file_format.Description("", "", "", _DIM, 1.0, 0.0)
    rates = []
    for i in range(repeats + 1):
        report.log(f"sidecars: {len(store):,} records, write {i}")
        start = time.perf_counter()
        output = f"{directory}/{i}"
        os.makedirs(output)
        summary = embed.write(
            store, encode, description, embed.Output(output), image_size=_SIZE
        )
        rates.append(summary.rows / (time.perf_counter() - start))
    paths = [
        sidecars_lib.sidecar_path(store, shard, output)
        for shard in range(len(store.shards.paths))
    ]
    captions = store.columns(["caption"])["caption"]
    return [
        f"{len(store):,}",
        f"{np.mean([len(some) for some in captions]):.1f}",
        report.spread(rates[1:]),  # the first one traces
        f"{sum(map(os.path.getsize, paths)) / len(store):,.0f}",
    ]


def _read_rates(folder, shards, rows, repeats):
    """Rows of a table, one a pattern of reading."""
    random = np.random.default_rng(_SEED)
    store = _Store(folder, shards, rows)
    image = random.standard_normal((len(store), _DIM), np.float32)
    image /= np.linalg.norm(image, axis=1, keepdims=True)
    embed.write_arrays(
        store,
        image,
        np.repeat(image, 2, 0),
        file_format.Description("", "", "", _DIM, 1.0, 0.0),
        captions=np.full(len(store), 2),
    )
    sidecars = sidecars_lib.Sidecars(store)
    found = []
    for name, count, draw in (
        ("scattered", 2**15, lambda k: random.integers(0, len(store), k)),
        ("scattered", 2**8, lambda k: random.integers(0, len(store), k)),
        ("sorted", 2**15, lambda k: np.sort(random.integers(0, len(store), k))),
        ("blocks of 256", 2**15, lambda k: _blocks(random, store, k)),
    ):
        rates = [
            _rate(sidecars, store, count, draw) / 1e6 for _ in range(repeats)
        ]
        found.append([name, f"{count:,}", report.spread(rates)])
    return found


def _blocks(random, store, count):
    starts = random.integers(0, len(store) // 256, count // 256) * 256
    return (starts[:, None] + np.arange(256)).ravel()


def _rate(sidecars, store, count, draw):
    """Rows a second, of the same number of rows for every pattern."""
    num_rows = len(store)
    seconds, calls = 0.0, -(-num_rows // count)
    for _ in range(calls):
        rows = draw(count)
        ids, captions = store.ids(rows), rows % 2
        start = time.process_time()
        sidecars.read(rows, captions, ids)
        seconds += time.process_time() - start
    return calls * count / seconds


if __name__ == "__main__":
    main()
