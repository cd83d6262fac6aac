"""Benchmarks the example stream: its speed, near and at a distance.

    python -m benchmarks.bench_input all

`speed` alternates the training stream with a bare loop that decodes and resizes
the same images. `distance` reads as from a bucket, with latency and bandwidth
put in. Each part replaces its block of README.md, or of the file `--out`. With
`--small` the parts are small, and write only to `--out`.
"""

import gc
import io
import os
import tempfile
import threading
import time
from unittest import mock

import fsspec
import numpy as np
import tensorflow as tf
from fsspec.implementations import local

from benchmarks import report
from jest_tf import config as config_lib
from jest_tf.data import images, pipeline, stores, tokenizers
from jest_tf.files import remote

_COMMAND = "python -m benchmarks.bench_input"
_POOL = str(report.ROOT / "examples/icontext_mini/pool-*.tfrecord")
_SEED = 0
_JPEG_QUALITY = 90
_WARM_UP = 2  # super-batches before a measurement, to fill the buffers
_TILE = 32  # pixels a side of the example images
_READAHEAD = 2**20 + 1  # as `jest-tf` sets it
_LATENCIES = (0.0, 0.02, 0.1)  # seconds
_PADDED = 44_000  # bytes of an image that decodes at once


def main(argv: list[str] | None = None) -> None:
    """Runs the requested parts and writes their blocks."""
    parts = {"speed": speed, "distance": distance}
    description = "Benchmarks the example stream."
    options = report.parser(_COMMAND, description, parts).parse_args(argv)
    for name, run in parts.items():
        if options.part in (name, "all"):
            text, page = run(options.small), report.page(options)
            report.publish(page, f"input {name}", text, _COMMAND)


def speed(small: bool) -> str:
    """Compares the stream with a bare loop; returns Markdown."""
    num_images, size, super_batch_size, steps, repeats = (
        (64, 32, 64, 2, 2) if small else (2048, 224, 1024, 4, 5)
    )
    with tempfile.TemporaryDirectory() as directory:
        store = write_images(directory, num_images)
        encoded = [record.image for record in store.read(range(num_images))]
        loop = _bare_loop(encoded, size)
        runs = {
            "bare loop": lambda: _bare_rate(loop, super_batch_size, steps),
            "stream": lambda: rate(
                open_stream(store, super_batch_size, size),
                super_batch_size,
                steps,
            ),
        }
        rates = {name: [] for name in runs}
        for i in range(repeats):
            report.log(f"speed: repeat {i + 1} of {repeats}")
            for name, run in runs.items():
                rates[name].append(run())
                gc.collect()
    bare = np.median(rates["bare loop"])
    rows = [
        [name, report.spread(found), f"{np.median(found) / bare:.1%}"]
        for name, found in rates.items()
    ]
    return f"""## How fast examples come

    {_COMMAND} speed

{report.table(["", "images/s", "of the bare loop"], rows)}

Lowest / median / highest of {repeats} repeats, in turn, of
{super_batch_size * steps:,} images each. The bare loop is
`tf.data.Dataset.map` of `tf.io.decode_jpeg` and `tf.image.resize` over JPEGs in
memory, with neither rounding nor batching. The stream is
`pipeline.super_batches` over a TFRecord shard in the page cache: read, check,
decode, resize, round to uint8, tokenise, and batch to B = {super_batch_size:,}.
Both leave their parallelism to `tf.data.AUTOTUNE`. The {num_images:,}
images are patchworks of `examples/icontext_mini`, 256 pixels high and 256 to
352 wide, as JPEG of quality {_JPEG_QUALITY}, resized to {size} x {size}.

{report.environment()}"""


class _FarFile(io.FileIO):
    """A local file at the end of the link."""

    def read(self, count=-1):
        left = os.fstat(self.fileno()).st_size - self.tell()
        # A request brings as much as TensorFlow reads ahead.
        Link.transfer(min(max(count if count >= 0 else left, _READAHEAD), left))
        return super().read(count)


class Link(local.LocalFileSystem):
    """Local files at a distance, with the scheme `far://`.

    Attributes:
        latency: seconds to an answer's first byte.
        bandwidth: bytes a second, of all requests together.
        requests, bytes: what was read.
    """

    protocol = "far"
    latency = 0.0
    bandwidth = 125e6
    requests = bytes = 0
    _lock = threading.Lock()
    _free_at = 0.0

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.removeprefix("far://"))

    def info(self, path, **options):
        """Looks up a file, in a single request."""
        time.sleep(self.latency)
        return super().info(path, **options)

    def open(self, path, mode="rb", **options):
        """Opens a file whose reads take their time."""
        del options
        return _FarFile(self._strip_protocol(path), mode)

    @classmethod
    def transfer(cls, count):
        """Waits as long as a request for so many bytes takes."""
        now = time.monotonic()
        with cls._lock:
            begin = max(now + cls.latency, cls._free_at)
            cls._free_at = begin + count / cls.bandwidth
            cls.requests += 1
            cls.bytes += count
            end = cls._free_at
        time.sleep(end - now)


def distance(small: bool) -> str:
    """Compares reads at a distance with local reads; returns Markdown."""
    num_records, copies, batch_size, steps, latencies = (
        (256, 1, 64, 1, (0.02,)) if small else (2048, 24, 1024, 8, _LATENCIES)
    )
    fsspec.register_implementation(Link.protocol, Link, clobber=True)
    rows = []
    with (
        tempfile.TemporaryDirectory() as directory,
        mock.patch.object(remote, "PIECE", _READAHEAD - 1),
    ):
        _write_padded(directory, num_records, copies)
        near, far = (
            stores.open_store(
                f"{scheme}{directory}/*.tfrecord",
                index_dir=f"{directory}/indexes",
            )
            for scheme in ("", "far://")
        )
        for block in (64, 256):
            cells, fetched = [], 0.0
            for latency in (None, *latencies):
                report.log(f"distance: {block}, {latency} s")
                Link.latency, Link.bytes = latency or 0.0, 0
                remote.PAGES = remote.Pages()
                dataset = open_stream(
                    near if latency is None else far,
                    batch_size,
                    8,
                    shuffle_block_size=block,
                )
                # A window of larger blocks is longer.
                count = steps * block // 64
                cells.append(f"{rate(dataset, batch_size, count):,.0f}")
                fetched = Link.bytes / batch_size / (count + _WARM_UP) / 1000
                gc.collect()
            rows.append([block, *cells, f"{fetched:,.0f}"])
    header = [
        *("`shuffle_block_size`", "local"),
        *(f"{1000 * seconds:.0f} ms" for seconds in latencies),
        "kB fetched a record",
    ]
    return f"""## What distance costs

    {_COMMAND} distance

Records a second that a stream brings, where decoding takes no time:

{report.table(header, rows)}

`pipeline.super_batches`, B = {batch_size:,}, {num_records * copies:,} records
of {_PADDED // 1000} kB in {copies} shards; an image of 8 pixels a side, and
zeros. At a distance local files are read through a link of 1 Gbit/s, shared by
all requests. Each of these, lookups included, has the latency and brings at
least {_READAHEAD / 2**20:.0f} MB, as those of `gs://` under `jest-tf`. A stream
that decodes no faster than its records come is as fast as a local stream.

{report.environment()}"""


def _write_padded(directory, num_records, copies):
    """Writes a shard of tiny images, each as long as a photograph."""
    image = tf.io.encode_jpeg(np.zeros([8, 8, 3], np.uint8)).numpy()
    shard = f"{directory}/shard"
    with tf.io.TFRecordWriter(shard) as writer:
        for i in range(num_records):
            example = tf.train.Example()
            features = example.features.feature
            features["image"].bytes_list.value.append(
                image.ljust(_PADDED, b"\0")
            )
            features["caption"].bytes_list.value.append(b"a b c")
            features["id"].int64_list.value.append(i)
            writer.write(example.SerializeToString())
    for i in range(copies):
        os.symlink(shard, f"{directory}/{i}.tfrecord")


def write_images(directory: str, num_images: int) -> stores.Store:
    """Writes and opens a shard of JPEGs, patchworks of the example images.

    Args:
        directory: folder to write to.
        num_images: number of images.
    """
    pool = stores.open_store(_POOL, index_dir=directory)
    rng = np.random.default_rng(_SEED)
    path = os.path.join(directory, "images.tfrecord")
    tiles = [
        images.resize_image(images.decode(record.image), _TILE).numpy()
        for record in pool.read(rng.permutation(len(pool))[:1024])
    ]
    captions = list(pool.columns(["caption"])["caption"])
    with tf.io.TFRecordWriter(path) as writer:
        for i in range(num_images):
            columns = 256 // _TILE + i % 4
            chosen = rng.integers(len(tiles), size=(256 // _TILE, columns))
            image = np.concatenate(
                [np.concatenate([tiles[j] for j in line], 1) for line in chosen]
            )
            example = tf.train.Example()
            features = example.features.feature
            features["image"].bytes_list.value.append(
                tf.io.encode_jpeg(image, quality=_JPEG_QUALITY).numpy()
            )
            features["caption"].bytes_list.value.extend(captions[i])
            features["id"].int64_list.value.append(i)
            writer.write(example.SerializeToString())
    return stores.open_store(path)


def open_stream(store, super_batch_size, size, **options):
    """Opens a stream with a tokenizer of letters; `options` of the pipeline."""
    letters = [chr(code) for code in range(33, 127)]
    vocabulary = [*letters, *(f"##{letter}" for letter in letters)]
    tokenizer = tokenizers.WordPieceTokenizer(
        [*tokenizers.RESERVED_TOKENS, *vocabulary], 64
    )
    return pipeline.super_batches(
        store,
        plan=config_lib.plan(config_lib.SelectionConfig(super_batch_size)),
        loss="sigmoid",
        seed=_SEED,
        tokenizer=tokenizer,
        image_size=size,
        options=pipeline.Options(**options),
    )


def rate(dataset, super_batch_size, steps):
    """Images a second of a stream that has been running for a while."""
    iterator = iter(dataset)
    for _ in range(_WARM_UP):
        next(iterator)
    start = time.perf_counter()
    for _ in range(steps):
        next(iterator)
    return super_batch_size * steps / (time.perf_counter() - start)


def _bare_loop(encoded, size):
    """An endless dataset of decoded and resized images."""

    def decode(encoded):
        image = tf.io.decode_jpeg(encoded, channels=3)
        return tf.image.resize(image, [size, size], antialias=True)

    return (
        tf.data.Dataset.from_tensor_slices(encoded)
        .repeat()
        .map(decode, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    )


def _bare_rate(dataset, super_batch_size, steps):
    """Images a second of the bare loop, as warm as the stream."""
    iterator = iter(dataset)

    # A loop in the graph; a loop in Python would cost more.
    @tf.function(reduce_retracing=True)
    def take(count):
        total = 0.0
        for _ in tf.range(count):
            total += next(iterator)[0, 0, 0]
        return total

    take(tf.constant(super_batch_size * _WARM_UP))
    count, start = tf.constant(super_batch_size * steps), time.perf_counter()
    take(count).numpy()
    return super_batch_size * steps / (time.perf_counter() - start)


if __name__ == "__main__":
    main()
