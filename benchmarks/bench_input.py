"""Benchmarks the example stream: speed, size, mixing, distance, waiting.

    python -m benchmarks.bench_input all

`speed` alternates the training stream with a bare loop that decodes and resizes
the same pictures, and `ops` its two readers. `growth` opens ever larger stores
and starts at late steps. `mixing` compares orders of different block sizes.
`distance` reads as from a bucket, with latency and bandwidth put in. `wait`
trains, and reads how long the runs waited for input. Each part replaces its
block of README.md, or of the file `--out`. `--small` makes the parts small, and
writes only to `--out`.
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

from benchmarks import index_growth, report
from jest_tf import config as config_lib
from jest_tf.data import cascade as cascade_lib
from jest_tf.data import (
    pictures,
    pipeline,
    stores,
    stream,
    tokenizers,
)
from jest_tf.data import sidecars as sidecars_lib
from jest_tf.data.sidecars import embed, file_format
from jest_tf.data.stores import tfrecords
from jest_tf.files import remote, retries
from jest_tf.runs import directory as directory_lib

_COMMAND = "python -m benchmarks.bench_input"
_POOL = str(report.ROOT / "examples/icontext_mini/pool-*.tfrecord")

# A tile of a picture is one of the example pictures, 32 pixels a side.
_TILE = 32
_JPEG_QUALITY = 90
_SEED = 0
_READAHEAD = 2**20 + 1  # as `jest-tf` sets it
_LATENCIES = (0.0, 0.02, 0.1)  # seconds
_PADDED = 44_000  # bytes of a picture that decodes at once
_WIDTH = 768  # of the embeddings in sidecars
_CASCADE = 4  # rows that a cascade chooses one from
_PACE = 450  # records a second, half of what two cores decode

# Super-batches before a measurement, to fill the buffers.
_WARM_UP = 2


def main(argv: list[str] | None = None) -> None:
    """Runs the requested parts and writes their blocks."""
    parts = {
        "speed": speed,
        "ops": ops,
        "growth": growth,
        "mixing": mixing,
        "distance": distance,
        "wait": wait,
    }
    description = "Benchmarks the example stream."
    options = report.parser(_COMMAND, description, parts).parse_args(argv)
    for name, run in parts.items():
        if options.part in (name, "all"):
            text, page = run(options.small), report.page(options)
            report.publish(page, f"input {name}", text, _COMMAND)


def speed(small: bool) -> str:
    """Compares the stream with a bare loop; returns Markdown."""
    num_pictures, size, super_batch_size, steps, repeats = (
        (64, 224, 64, 2, 2) if small else (2048, 224, 1024, 4, 5)
    )
    with tempfile.TemporaryDirectory() as directory:
        store = write_pictures(directory, num_pictures)
        encoded = [record.image for record in store.read(range(num_pictures))]
        loop = _bare_loop(encoded, size)
        dataset = _stream(store, super_batch_size, size)
        bare, full = [], []
        for i in range(repeats):
            report.log(f"speed: repeat {i + 1} of {repeats}")
            bare.append(_bare_rate(loop, super_batch_size, steps))
            full.append(_rate(dataset, super_batch_size, steps))
            gc.collect()
        bytes_read = sum(map(len, encoded)) / num_pictures
        checks = [_checksum_seconds(encoded) for _ in range(repeats)]
    # Of all cores, at the stream's speed.
    share = np.median(checks) * np.median(full) / os.cpu_count()
    rows = [
        ["bare loop", report.spread(bare), ""],
        [
            "stream",
            report.spread(full),
            f"{np.median(full) / np.median(bare):.1%}",
        ],
    ]
    return f"""## How fast examples come

    {_COMMAND} speed

{report.table(["", "images/s", "of the bare loop"], rows)}

Lowest / median / highest of {repeats} repeats, in turn, of
{super_batch_size * steps:,} pictures each. The bare loop is
`tf.data.Dataset.map` of `tf.io.decode_jpeg` and `tf.image.resize` (bilinear,
anti-aliased, to float32) over JPEGs in memory, with neither rounding nor
batching. The stream is `pipeline.super_batches` over a TFRecord shard in the
page cache: read, check, decode, resize, round to uint8, tokenise, and batch to
B = {super_batch_size:,}; augmentation is in the training step. Both leave
their parallelism to `tf.data.AUTOTUNE`. The {num_pictures:,} pictures are
patchworks of `examples/icontext_mini`, 256 pixels high and 256 to 352 wide, as
JPEG of quality {_JPEG_QUALITY} ({bytes_read / 1000:.0f} kB on average), resized
to {size} x {size}. To compare the checksum of one of them takes
{1e6 * np.median(checks):.0f} microseconds of a core, {share:.1%} of the cores'
time at the stream's speed.

{report.environment()}"""


def ops(small: bool) -> str:
    """Compares the stream by ops with that by NumPy; returns Markdown."""
    num_pictures, size, super_batch_size, steps, repeats = (
        (64, 32, 64, 2, 2) if small else (1024, 224, 1024, 2, 3)
    )
    readers = ("numpy", "ops")
    with tempfile.TemporaryDirectory() as directory:
        store = write_pictures(directory, num_pictures)
        rates = {one: [] for one in readers}
        cores = {one: [] for one in readers}
        for i in range(repeats):
            report.log(f"ops: repeat {i + 1} of {repeats}")
            for one in readers:
                dataset = _stream(store, super_batch_size, size, reader=one)
                before = time.process_time()
                rates[one].append(_rate(dataset, super_batch_size, steps))
                spent = time.process_time() - before
                drawn = super_batch_size * (steps + _WARM_UP)
                cores[one].append(1000 * spent / drawn)
                gc.collect()
    rows = [
        [f"`{one}`", report.spread(rates[one]), report.spread(cores[one])]
        for one in readers
    ]
    header = ["`data.reader`", "images/s", "CPU, ms an image"]
    return f"""## How fast ops read

    {_COMMAND} ops

{report.table(header, rows)}

Lowest / median / highest of {repeats} repeats, in turn, of
{super_batch_size * steps:,} pictures each, as in `speed`, of {size} x {size}
pixels. CPU time is that of the whole process, with what was read ahead.

{report.environment()}"""


def growth(small: bool) -> str:
    """Measures ever larger stores and late starts; returns Markdown."""
    sizes = (
        [(10_000, 10)]
        if small
        else [(100_000, 10), (1_000_000, 100), (10_000_000, 1000)]
    )
    rows = []
    for num_records, num_shards in sizes:
        report.log(f"growth: {num_records:,} records")
        first, later = index_growth.run(num_records, num_shards)
        rows.append(
            [
                f"{num_records:,}",
                f"{num_shards:,}",
                f"{first.open_seconds:.2f}",
                f"{later.open_seconds:.2f}",
                f"{later.open_mebibytes:.0f}",
                f"{later.random_milliseconds:.1f}",
                f"{later.near_milliseconds:.1f}",
                f"{_order_milliseconds(num_records):.2f}",
            ]
        )
    opening = report.table(
        [
            "records",
            "shards",
            "index, s",
            "open, s",
            "MiB",
            "256 far rows, ms",
            "256 near rows, ms",
            "order of 256, ms",
        ],
        rows,
    )
    starts = report.table(
        ["first step", "seconds to its super-batch"], _start_times(small)
    )
    return f"""## What large stores cost

    {_COMMAND} growth

{opening}

Synthetic TFRecord shards of records of 130 bytes, in fresh processes: to build
the indexes, to open a store that has them, the memory that adds, to read 256
records from all over and 256 neighbours, and to find out which 256 come next.

{starts}

From the call of `pipeline.super_batches` to its first super-batch of 64
pictures, tracing included; lowest / median / highest of the repeats.

{report.environment()}"""


def mixing(small: bool) -> str:
    """Measures how orders of several block sizes mix; returns Markdown."""
    num_records, shard_size = (20_000, 1000) if small else (1_000_000, 10_000)
    rows = []
    for block_size in (None, 16, 64, 256, 1024, shard_size):
        order = stream.Order(num_records, _SEED, block_size=block_size)
        for size in (1280, 32_768)[: 1 if small else 2]:
            found = mix(order, size, block_size or 1, shard_size)
            rows.append(
                [
                    block_size or "free",
                    f"{size:,}",
                    f"{found['places']:,.0f}",
                    f"{found['shards']:.0f}",
                    f"{found['correlation']:.3f}",
                    f"{found['effective']:,.0f}",
                ]
            )
    header = ["block", "B", "places", "shards", "correlation", "worth"]
    return f"""## How well blocks mix

    {_COMMAND} mixing

{report.table(header, rows)}

{num_records:,} records in shards of {shard_size:,}, means over one epoch.
Places are the blocks that a super-batch touches (records, where the shuffle is
free), shards the files. The other two take the worst case, a data set in which
all records of a shard are alike: the correlation of neighbouring positions, and
how many freely shuffled records a super-batch of B is worth, by the variance of
its mean. Shards whose records were shuffled before they were written lose
nothing by any block size."""


def mix(
    order: stream.Order, super_batch_size: int, block_size: int, shard_size: int
) -> dict[str, float]:
    """Measures how well an order mixes the shards, on average over an epoch.

    Let v be a random number of variance 1 for each shard. The mean of v over a
    super-batch has the variance sum_s (c_s / B)^2, where c_s of its rows are in
    shard s. The part 1 / S, the variance of the mean over all shards, does not
    depend on the order.

    Args:
        order: of n records.
        super_batch_size: B.
        block_size: rows of a place.
        shard_size: rows of a shard; must divide n.

    Returns:
        `places` and `shards` that a super-batch touches; the `correlation` of v
        between neighbouring positions; `effective`, the number of freely
        shuffled records whose mean varies as much.
    """
    n = order.num_records
    num_shards = n // shard_size
    rows = order.rows(np.arange(n - n % super_batch_size))
    batches = rows.reshape(-1, super_batch_size)
    shares = np.stack(
        [
            np.bincount(batch // shard_size, minlength=num_shards)
            / super_batch_size
            for batch in batches
        ]
    )  # [steps, shards]
    excess = (shares**2).sum(1).mean() - 1 / num_shards
    same = (rows[1:] // shard_size == rows[:-1] // shard_size).mean()
    return {
        "places": np.mean([len(np.unique(b // block_size)) for b in batches]),
        "shards": (shares > 0).sum(1).mean(),
        "correlation": (same - 1 / num_shards) / (1 - 1 / num_shards),
        # Rows dealt out evenly have no excess but rounding.
        "effective": (1 - 1 / num_shards) / max(excess, 1e-12),
    }


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
        """Looks up a file, in one request."""
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
    """Compares reads at a distance with local ones; returns Markdown."""
    num_records, copies, batch_size, steps, latencies = (
        (256, 1, 64, 1, (0.02,)) if small else (2048, 24, 1024, 8, _LATENCIES)
    )
    fsspec.register_implementation(Link.protocol, Link, clobber=True)
    with (
        tempfile.TemporaryDirectory() as directory,
        mock.patch.object(remote, "PIECE", _READAHEAD - 1),
    ):
        _write_padded(f"{directory}/padded", num_records, copies)
        padded = _Distances(f"{directory}/padded", 8, batch_size, latencies)
        block_rows = [
            # Every record costs a request, so this takes long.
            ["none", *padded.row(None, 1, only=(0.02,))],
            [64, *padded.row(64, steps)],
            # A window is four times as long.
            [256, *padded.row(256, 2 * steps)],
        ]
        request_rows, sidecar_rows = [], []
        for requests in (1, 4):
            with mock.patch.object(retries, "_REMOTE_REQUESTS", requests):
                row = padded.row(64, steps, only=(0.02, 0.1))
            request_rows.append([requests, *row])
        for kind in ("selection", "cascade"):
            sidecar_rows.append([kind, *padded.row(64, steps, kind=kind)])
        pace = padded.row(64, steps, kind="cascade", pace=_PACE)
        sidecar_rows.append([f"cascade, at {_PACE} a second", *pace])
    header = [
        "local",
        *(f"{1000 * one:.0f} ms" for one in latencies),
        "kB fetched a record",
    ]
    return f"""## What distance costs

    {_COMMAND} distance

Records a second that a stream brings, where decoding takes no time:

{report.table(["`shuffle_block_size`", *header], block_rows)}

With blocks of 64, by the requests at a time that one read may make, 16 above:

{report.table(["requests", *header], request_rows)}

With blocks of 64 and sidecars at the same distance, of a reference of width
{_WIDTH} in float16: for a selection, which takes them with the pictures, and
for a cascade, which chooses from {_CASCADE} times as many rows, read as fast as
possible, or by steps that take {_PACE} records a second:

{report.table(["sidecars of a", *header], sidecar_rows)}

`pipeline.super_batches`, B = {batch_size:,}, {num_records * copies:,} records
of {_PADDED // 1000} kB in {copies} shards; a picture of 8 pixels a side, and
zeros. At a distance local files are read through a link of 1 Gbit/s, shared by
all requests. Each of these, lookups included, has the latency and brings at
least {_READAHEAD / 2**20:.0f} MB, as those of `gs://` under `jest-tf`. Local
and far streams take turns, each {steps} super-batches after {_WARM_UP}; with
blocks of 256 {2 * steps}, without blocks one. A stream that decodes no faster
than its records come is as fast as a local one.

{report.environment()}"""


def _write_padded(directory, num_records, copies):
    """Writes a shard of tiny pictures, each as long as a photograph."""
    os.mkdir(directory)
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
        os.symlink(shard, f"{directory}/{i}.rec")


class _Distances:
    """Measures streams of one store, local and at a distance."""

    def __init__(self, directory, size, batch_size, latencies):
        self._directory, self._size = directory, size
        self._batch_size, self._latencies = batch_size, latencies
        indexes = f"{directory}/indexes"
        self._stores = [
            stores.open_store(
                f"{scheme}{directory}/*.rec",
                format="tfrecord",
                index_dir=indexes,
            )
            for scheme in ("", "far://")
        ]
        rng = np.random.default_rng(_SEED)
        n = len(self._stores[0])
        unit = rng.normal(size=[1024, _WIDTH]).astype(np.float32)
        unit /= np.linalg.norm(unit, axis=1, keepdims=True)
        unit = unit[np.arange(n) % len(unit)]
        captions = [
            len(one) for one in self._stores[0].columns(["caption"])["caption"]
        ]
        description = file_format.Description(
            "random", "none", "none", _WIDTH, 10.0, -10.0
        )
        embed.write_arrays(
            self._stores[0],
            unit,
            np.repeat(unit, captions, axis=0),
            description,
            embed.Output(f"{directory}/sidecars"),
            captions=captions,
        )

    def row(self, block, steps, *, only=_LATENCIES, kind="", pace=None):
        """Records a second, local and far, and what was fetched for one."""
        wanted = [one for one in self._latencies if one in only]
        rates = dict.fromkeys((None, *wanted))
        for latency in rates:
            report.log(f"distance: {block}, {kind}, {latency} s")
            Link.latency, Link.bytes = latency or 0.0, 0
            is_far = latency is not None
            rates[latency] = self._rate(is_far, block, steps, kind, pace)
            gc.collect()
        drawn = self._batch_size * (steps + _WARM_UP)
        return [
            *(
                f"{rates[latency]:,.0f}" if latency in rates else ""
                for latency in (None, *self._latencies)
            ),
            f"{Link.bytes / drawn / 1000:,.0f}",
        ]

    def _rate(self, is_far, block, steps, kind, pace):
        store = self._stores[is_far]
        options = {"shuffle_block_size": block}
        remote.PAGES = remote.Pages()
        if kind:
            scheme = "far://" if is_far else ""
            found = sidecars_lib.Sidecars(
                store, f"{scheme}{self._directory}/sidecars"
            )
            options["sidecars"] = found
        if kind == "cascade":
            settings = config_lib.CascadeConfig(
                hyper_batch_size=_CASCADE * self._batch_size
            )
            del options["sidecars"]
            options["cascade"] = cascade_lib.Cascade(settings, found, "sigmoid")
        return _rate(
            _stream(store, self._batch_size, self._size, **options),
            self._batch_size,
            steps,
            pace,
        )


def wait(small: bool) -> str:
    """Reads how long runs waited for input; returns Markdown."""
    steps, skipped = (6, 2) if small else (80, 20)
    rows = []
    with tempfile.TemporaryDirectory() as directory:
        reference = os.path.join(directory, "reference")
        for recipe, *overrides in (
            ("reference",),
            ("uniform",),
            ("jest", f"reference.workdir={reference}"),
        )[: 1 if small else 3]:
            report.log(f"wait: {recipe}")
            workdir = os.path.join(directory, recipe)
            config = _train(
                recipe,
                workdir,
                *(f"steps={steps}", f"evaluation.log_every_steps={skipped}"),
                f"data.index_dir={directory}/indexes",
                *overrides,
            )
            # The first line holds what the stream had made before.
            log = directory_lib.read_rows(workdir, directory_lib.METRICS_FILE)[
                1:
            ]
            size = config.data.super_batch_size
            seconds = [line["time/step_seconds"] for line in log]
            alone = [_rate_of_run(config, workdir) for _ in range(3)]
            waited = [line["time/input_wait_share"] for line in log]
            rows.append(
                [
                    f"`quickstart_{recipe}`",
                    size,
                    report.spread(alone),
                    report.spread([size / one for one in seconds]),
                    " / ".join(
                        f"{value:.2%}"
                        for value in (
                            min(waited),
                            np.median(waited),
                            max(waited),
                        )
                    ),
                ]
            )
    header = ["recipe", "B", "stream alone", "run", "waited for input"]
    return f"""## How long steps wait

    {_COMMAND} wait

{report.table(header, rows)}

Examples drawn a second by the stream with nothing else to do, and by a run of
the recipe, {steps} steps; and the part of the steps' time in which the run says
that it waited for input (`time/input_wait_share`). Lowest / median / highest,
of 3 repeats of the stream and of the lines of the log, {skipped} steps each,
without the first. Steps and stream share the cores, so that a run is slower
than either would be alone.

{report.environment()}"""


def write_pictures(directory: str, num_pictures: int) -> stores.Store:
    """Writes and opens a shard of JPEGs, patchworks of the example pictures.

    Args:
        directory: folder to write to.
        num_pictures: number of pictures.
    """
    pool = stores.open_store(_POOL, index_dir=directory)
    rng = np.random.default_rng(_SEED)
    path = os.path.join(directory, "pictures.tfrecord")
    tiles = [
        pictures.decode_image(record.image, _TILE).numpy()
        for record in pool.read(rng.permutation(len(pool))[:1024])
    ]
    captions = list(pool.columns(["caption"])["caption"])
    with tf.io.TFRecordWriter(path) as writer:
        for i in range(num_pictures):
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


def _train(recipe, workdir, *overrides):
    """Trains a quickstart recipe; returns its settings."""
    report.command(
        *("trainers.train", "--workdir", workdir),
        *("--config", f"configs/quickstart_{recipe}.py", "--set"),
        *("evaluation.data=", "optimizer.warmup_steps=1", *overrides),
    )
    return config_lib.load_config(os.path.join(workdir, "config.json"))


def _rate_of_run(config, workdir):
    """Examples a second of a run's stream without the run."""
    data = config.data
    paths = [str(report.ROOT / pattern) for pattern in data.train]
    dataset = pipeline.super_batches(
        stores.open_store(paths, index_dir=data.index_dir),
        super_batch_size=data.super_batch_size,
        seed=config.seed,
        tokenizer=tokenizers.load_tokenizer(workdir, data.text_length),
        image_size=data.image_size,
    )
    return _rate(dataset, data.super_batch_size, 20)


def _bare_loop(encoded, size):
    """An endless dataset of decoded and resized pictures."""

    def decode(encoded):
        image = tf.io.decode_jpeg(encoded, channels=3)
        return tf.image.resize(image, [size, size], antialias=True)

    return (
        tf.data.Dataset.from_tensor_slices(encoded)
        .repeat()
        .map(decode, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    )


def _bare_rate(dataset, super_batch_size, steps):
    """Pictures a second of the bare loop, as warm as `_rate`'s stream."""
    iterator = iter(dataset)

    # A loop in the graph: one in Python would cost more.
    @tf.function(reduce_retracing=True)
    def take(count):
        total = 0.0
        for _ in tf.range(count):
            total += next(iterator)[0, 0, 0]
        return total

    take(tf.constant(super_batch_size * _WARM_UP))
    count = tf.constant(super_batch_size * steps)
    return super_batch_size * steps / _seconds(lambda: take(count).numpy())


def _stream(store, super_batch_size, size, start_step=0, **options):
    letters = [chr(code) for code in range(33, 127)]
    vocabulary = [*letters, *(f"##{letter}" for letter in letters)]
    tokenizer = tokenizers.WordPieceTokenizer(
        [*tokenizers.RESERVED_TOKENS, *vocabulary], 64
    )
    return pipeline.super_batches(
        store,
        super_batch_size=super_batch_size,
        seed=_SEED,
        tokenizer=tokenizer,
        image_size=size,
        start_step=start_step,
        options=pipeline.Options(**options),
    )


def _rate(dataset, super_batch_size, steps, pace=None):
    """Images a second of a stream that has been running for a while.

    `pace` is how many of them a step takes a second, None as many as come.
    """
    iterator = iter(dataset)
    for _ in range(_WARM_UP):
        next(iterator)

    def take():
        for _ in range(steps):
            next(iterator)
            time.sleep(super_batch_size / pace if pace else 0.0)

    return super_batch_size * steps / _seconds(take)


def _checksum_seconds(encoded):
    """Seconds of the processor to compute the checksum of one picture."""
    start = time.process_time()
    for one in encoded:
        tfrecords.masked_crc32c(one)
    return (time.process_time() - start) / len(encoded)


def _seconds(function):
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def _order_milliseconds(num_records):
    order = stream.Order(num_records, _SEED)
    repeats = 20
    seconds = _seconds(
        lambda: [order.rows(np.arange(i, i + 256)) for i in range(repeats)]
    )
    return 1000 * seconds / repeats


def _start_times(small):
    repeats = 2 if small else 5
    rows = []
    with tempfile.TemporaryDirectory() as directory:
        store = write_pictures(directory, 64)
        next(iter(_stream(store, 64, 224)))  # whatever only happens once
        for step in (0, 1_000_000):
            times = [
                _seconds(lambda: next(iter(_stream(store, 64, 224, step))))  # noqa: B023
                for _ in range(repeats)
            ]
            rows.append([f"{step:,}", report.spread(times)])
    return rows


if __name__ == "__main__":
    main()
