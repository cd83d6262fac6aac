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

import functools
import gc
import os
import tempfile
import time

import numpy as np
import tensorflow as tf

from benchmarks import index_growth, input_distance, input_streams, report
from jest_tf import config as config_lib
from jest_tf.data import (
    pipeline,
    stores,
    stream,
    tokenizers,
)
from jest_tf.data.stores import tfrecords
from jest_tf.runs import directory as directory_lib

_COMMAND = "python -m benchmarks.bench_input"


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
        store = input_streams.write_pictures(directory, num_pictures)
        encoded = [record.image for record in store.read(range(num_pictures))]
        loop = _bare_loop(encoded, size)
        dataset = input_streams.open_stream(store, super_batch_size, size)
        bare, full = [], []
        for i in range(repeats):
            report.log(f"speed: repeat {i + 1} of {repeats}")
            bare.append(_bare_rate(loop, super_batch_size, steps))
            full.append(input_streams.rate(dataset, super_batch_size, steps))
            gc.collect()
        bytes_read = sum(map(len, encoded)) / num_pictures
        checks = [_checksum_seconds(encoded) for _ in range(repeats)]
    # Of all cores, at the stream's speed.
    share = np.median(checks) * np.median(full) / os.cpu_count()
    quality = input_streams.JPEG_QUALITY
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
JPEG of quality {quality} ({bytes_read / 1000:.0f} kB on average), resized to
{size} x {size}. To compare the checksum of one of them takes
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
        store = input_streams.write_pictures(directory, num_pictures)
        rates = {one: [] for one in readers}
        cores = {one: [] for one in readers}
        for i in range(repeats):
            report.log(f"ops: repeat {i + 1} of {repeats}")
            for one in readers:
                dataset = input_streams.open_stream(
                    store, super_batch_size, size, reader=one
                )
                before = time.process_time()
                rates[one].append(
                    input_streams.rate(dataset, super_batch_size, steps)
                )
                spent = time.process_time() - before
                drawn = super_batch_size * (steps + input_streams.WARM_UP)
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
        order = stream.Order(
            num_records, input_streams.SEED, block_size=block_size
        )
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


def distance(small: bool) -> str:
    """Compares reads at a distance with local ones; returns Markdown."""
    return input_distance.measure(small, _COMMAND)


def wait(small: bool) -> str:
    """Reads how long runs waited for input; returns Markdown."""
    steps, skipped = (6, 2) if small else (80, 20)
    rows = []
    with tempfile.TemporaryDirectory() as directory:
        reference = os.path.join(directory, "reference")
        for recipe, *overrides in (
            ("reference",),
            ("uniform",),
            ("jest", f"reference.model={reference}"),
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
    return input_streams.rate(dataset, data.super_batch_size, 20)


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
    """Pictures a second of the bare loop, as warm as the stream."""
    iterator = iter(dataset)

    # A loop in the graph: one in Python would cost more.
    @tf.function(reduce_retracing=True)
    def take(count):
        total = 0.0
        for _ in tf.range(count):
            total += next(iterator)[0, 0, 0]
        return total

    take(tf.constant(super_batch_size * input_streams.WARM_UP))
    count = tf.constant(super_batch_size * steps)
    return (
        super_batch_size
        * steps
        / input_streams.seconds(lambda: take(count).numpy())
    )


def _checksum_seconds(encoded):
    """Seconds of the processor to compute the checksum of one picture."""
    start = time.process_time()
    for one in encoded:
        tfrecords.masked_crc32c(one)
    return (time.process_time() - start) / len(encoded)


def _order_milliseconds(num_records):
    order = stream.Order(num_records, input_streams.SEED)
    repeats = 20
    seconds = input_streams.seconds(
        lambda: [order.rows(np.arange(i, i + 256)) for i in range(repeats)]
    )
    return 1000 * seconds / repeats


def _start_times(small):
    repeats = 2 if small else 5
    rows = []
    with tempfile.TemporaryDirectory() as directory:
        store = input_streams.write_pictures(directory, 64)

        def start(step):
            next(iter(input_streams.open_stream(store, 64, 224, step)))

        start(0)  # whatever only happens once
        for step in (0, 1_000_000):
            call = functools.partial(start, step)
            times = [input_streams.seconds(call) for _ in range(repeats)]
            rows.append([f"{step:,}", report.spread(times)])
    return rows


if __name__ == "__main__":
    main()
