"""How many rows a second come out of sidecars, ids and captions checked.

    python -m benchmarks.bench_sidecars --shards 50 --rows 10000 --dim 128

Writes sidecars of random unit vectors, two captions a row, into a temporary
folder and reads them from the page cache, on one core: rows scattered over all
shards, sorted, and in blocks of 256 neighbours. Seconds are those of
the processor, the best of three.
"""

import argparse
import tempfile
import time
from collections.abc import Sequence

import numpy as np

from jest_tf.data import embed, embeddings, records, sidecar_files

_READ = 2**19  # rows read for one measurement


class _Store:
    """As much of a store as sidecars need, without records."""

    def __init__(self, folder, shards, rows):
        paths = tuple(f"{folder}/{shard}" for shard in range(shards))
        self.shards = records.Shards(paths, np.full(shards, rows, np.int64))

    def __len__(self):
        return int(self.shards.lengths.sum())

    def ids(self, rows):
        return np.asarray(rows) * 7919

    def stamp(self, shard):
        return str(shard)

    def describe(self, row):
        return f"row {row}"


def main(argv: Sequence[str] | None = None) -> None:
    """Writes, reads and prints a line a pattern."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shards", type=int, default=50)
    parser.add_argument("--rows", type=int, default=10_000, help="a shard")
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--dtype", default="float16")
    flags = parser.parse_args(argv)
    random = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        store = _Store(folder, flags.shards, flags.rows)
        image = random.standard_normal((len(store), flags.dim), np.float32)
        image /= np.linalg.norm(image, axis=1, keepdims=True)
        embed.write_arrays(
            store,
            image,
            np.repeat(image, 2, 0),
            sidecar_files.Description("", "", "", flags.dim, 1.0, 0.0),
            captions=np.full(len(store), 2),
            dtype=flags.dtype,
        )
        sidecars = embeddings.Sidecars(store)
        for name, count, draw in (
            ("scattered", 2**15, lambda k: random.integers(0, len(store), k)),
            ("scattered", 2**8, lambda k: random.integers(0, len(store), k)),
            (
                "sorted",
                2**15,
                lambda k: np.sort(random.integers(0, len(store), k)),
            ),
            ("blocks of 256", 2**15, lambda k: _blocks(random, store, k)),
        ):
            rate = max(_rate(sidecars, store, count, draw) for _ in range(3))
            print(f"{rate / 1e6:6.2f} M rows/s  {name}, {count:,} a call")


def _blocks(random, store, count):
    starts = random.integers(0, len(store) // 256, count // 256) * 256
    return (starts[:, None] + np.arange(256)).ravel()


def _rate(sidecars, store, count, draw):
    seconds = 0.0
    for _ in range(_READ // count):
        rows = draw(count)
        ids, captions = store.ids(rows), rows % 2
        start = time.process_time()
        sidecars.read(rows, captions, ids)
        seconds += time.process_time() - start
    return _READ / seconds


if __name__ == "__main__":
    main()
