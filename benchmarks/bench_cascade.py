"""What stage 0 costs: rows read, the choice, and the steps beside it.

    python -m benchmarks.bench_cascade all

Each part replaces its own block of README.md, or of the file `--out`. About ten
minutes on 2 quiet cores; with `--small` it takes one, says nothing, and writes
only to `--out`.
"""

import dataclasses
import itertools
import os
import tempfile
import time
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from benchmarks import index_growth, report, selection_speed
from jest_tf import config as config_lib
from jest_tf.data import cascade, stores
from jest_tf.data import sidecars as sidecars_lib
from jest_tf.data import stream as stream_lib
from jest_tf.data.sidecars import embed, file_format
from jest_tf.runs import directory

_COMMAND = "python -m benchmarks.bench_cascade"
_POOL = "examples/icontext_mini/pool-*.tfrecord"
# The width of the quickstart's embeddings.
_POOL_DIM = 64


class Case(NamedTuple):
    """One recipe whose steps are timed.

    Attributes:
        name: what the table calls it.
        hyper_batch_size: K B, None without a cascade.
        super_batch_size: B.
        selects: whether a joint selection by learnability follows.
    """

    name: str
    hyper_batch_size: int | None
    super_batch_size: int
    selects: bool


# b in all of them.
_BATCH_SIZE = 128
_CASES = (
    Case("uniform", None, 128, False),
    Case("stage 0 alone, K = 25", 3_200, 128, False),
    Case("JEST, f = 0.8", None, 640, True),
    Case("K = 5, then f = 0.8", 3_200, 640, True),
    Case("K = 12.5, then f = 0.5", 3_200, 256, True),
)


def main(argv: list[str] | None = None) -> None:
    """Measures and writes the block."""
    options = report.parser(_COMMAND, "Times stage 0.", _PARTS).parse_args(argv)
    for name, (title, measure) in _PARTS.items():
        if options.part not in (name, "all"):
            continue
        text = "\n\n".join(
            [
                f"{title}\n\n    {_COMMAND} {name}",
                measure(options.small),
                report.environment(),
            ]
        )
        page = report.page(options)
        report.publish(page, f"cascade {name}", text, _COMMAND)


def measure_rows(small: bool) -> str:
    """Sidecar rows a second on one core; the Markdown of the part."""
    num_records, num_shards = (4_000, 4) if small else (1_000_000, 50)
    sizes = (1_000,) if small else (4_096, 16_384, 32_768)
    repeats = 1 if small else 5
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        pattern = index_growth.write_shards(folder, num_records, num_shards)
        store = stores.open_store(pattern)
        write_noise(store, 128, folder)
        sidecars = sidecars_lib.Sidecars(store, folder)
        for block, size in itertools.product((None, 256), sizes):
            order = stream_lib.Order(num_records, 0, block_size=block)
            rates, alone = [], []
            for repeat in range(repeats):
                report.log(f"cascade: rows, {size:,}, blocks of {block}")
                seconds = _seconds_of_rows(store, sidecars, order, size, repeat)
                rates.append(1e-6 / seconds[0])
                alone.append(1e-6 / (seconds[0] - seconds[1]))
            lines.append(
                [
                    block or "free",
                    f"{size:,}",
                    report.spread(alone),
                    report.spread(rates),
                ]
            )
    header = ["block", "K B", "M rows/s", "M rows/s with their order"]
    return f"""Rows of sidecars a second on one core, D = 128 in float16, one
caption a row, {num_records:,} rows in {num_shards} files in the page cache: ids
compared, captions chosen, embeddings copied. The last column also finds out
which rows they are. By the processor's time; lowest / median / highest of
{repeats}.

{report.table(header, lines)}"""


def write_noise(store: stores.Store, dim: int, folder: str) -> None:
    """Writes sidecars of unit noise for a store."""
    counts = np.ones(len(store), np.int64)
    if len(store) < 100_000:
        found = store.read(np.arange(len(store)))
        counts = np.array([len(one.captions) for one in found])
    random = np.random.default_rng(0)
    image, text = (
        random.standard_normal((count, dim), np.float32)
        for count in (len(store), int(counts.sum()))
    )
    for rows in (image, text):
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    description = file_format.Description("noise", "", "", dim, 10.0, -10.0)
    embed.write_arrays(
        store, image, text, description, embed.Output(folder), captions=counts
    )


def _seconds_of_rows(store, sidecars, order, size, repeat):
    """Seconds a row to load hyper-batches, and of it to order them."""
    loading = ordering = 0.0
    count = max(1, 200_000 // size)
    for step in range(repeat * count, (repeat + 1) * count):
        positions = np.arange(step * size, (step + 1) * size)
        start = time.process_time()
        order.rows(positions)
        middle = time.process_time()
        cascade.load_rows(positions, sidecars, store, order, 0)
        loading += time.process_time() - middle
        ordering += middle - start
    return loading / (count * size), ordering / (count * size)


def measure_choice(small: bool) -> str:
    """The choice beside its own matrix products; the Markdown of the part."""
    cases = [
        selection_speed.Case(("products", "choice"), *sizes, loss=loss)
        for loss, *sizes in (
            [("sigmoid", 512, 64, 16)]
            if small
            else [
                ("sigmoid", 16_384, 1_280, 128),
                ("sigmoid", 16_384, 1_280, 512),
                ("sigmoid", 16_384, 1_280, 768),
                ("sigmoid", 12_800, 2_560, 768),
                ("softmax", 16_384, 1_280, 128),
                ("softmax", 16_384, 1_280, 768),
                # IconText's.
                ("softmax", 6_400, 256, 128),
            ]
        )
    ]
    repeats = 1 if small else 7
    lines = []
    for case in cases:
        report.log(f"cascade: choice, {case}")
        seconds, products = _seconds_of_choices(case, repeats)
        lines.append(
            [
                case.loss,
                f"{case.super_batch_size:,}",
                f"{case.batch_size:,}",
                case.dim,
                report.spread(seconds),
                report.spread(products),
                report.spread(list(np.array(seconds) / products)),
            ]
        )
    header = ["loss", "K B", "B", "D", "choice, s", "products, s", "ratio"]
    return f"""The joint choice of B of K B rows of unit noise, N = 16, on all
cores, beside the bare matrix products that it can't do without: all images by
the chosen texts and all texts by the chosen images, over the same tiles. In
turn in one process; the products are the mean of the runs before and after.
{repeats} repeats.

{report.table(header, lines)}"""


def _seconds_of_choices(case, repeats):
    """Seconds of each choice, and of the products around it."""
    reference = selection_speed.random_embeddings(case, 0)
    settings = config_lib.CascadeConfig(case.super_batch_size)

    @tf.function(autograph=False)
    def choose(reference):
        rows, _ = cascade.draw(
            reference,
            settings,
            batch_size=case.batch_size,
            seed=(0, 0),
            loss=case.loss,
        )
        return rows

    @tf.function(autograph=False)
    def multiply(reference):
        return selection_speed.products(None, reference, case)

    def run(function):
        start = time.perf_counter()
        function(reference).numpy()
        return time.perf_counter() - start

    run(choose), run(multiply)
    before, seconds, products = run(multiply), [], []
    for _ in range(repeats):
        seconds.append(run(choose))
        after = run(multiply)
        products.append((before + after) / 2)
        before = after
    return seconds, products


def measure_steps(small: bool) -> str:
    """Steps with stage 0 beside them and without; the Markdown of the part."""
    steps, repeats = (4, 1) if small else (60, 3)
    cases = _CASES[:2] if small else _CASES
    times = {case: [] for case in cases}
    with tempfile.TemporaryDirectory() as folder:
        store = stores.open_store(_POOL, index_dir=folder)
        write_noise(store, _POOL_DIM, folder)
        for repeat in range(repeats):
            for case in cases:
                workdir = os.path.join(folder, f"{repeat}-{case.name}")
                report.log(f"cascade: steps, {case.name}")
                times[case].append(_times_of_steps(case, steps, workdir))
    lines = []
    for case, found in times.items():
        seconds, waits = np.transpose(found)
        lines.append(
            [
                case.name,
                f"{case.hyper_batch_size:,}" if case.hyper_batch_size else "-",
                case.super_batch_size,
                report.spread(list(1e3 * seconds)),
                report.spread(list(1e2 * waits)),
            ]
        )
    header = ["", "K B", "B", "step, ms", "waits for input, %"]
    return f"""Steps of the quickstart's learner on its pool (18,000 pictures of
32 pixels, b = {_BATCH_SIZE}, sidecars of noise of width {_POOL_DIM}), each run
{steps} steps in a process of its own, the first half not counted; lowest /
median / highest of {repeats}. Here the learner trains on the cores that stage 0
runs on, so what stage 0 computes makes the step longer, waited for or not.

{report.table(header, lines)}"""


def recipe(case: Case, folder: str, steps: int) -> config_lib.TrainConfig:
    """The run of a case, whose sidecars are in `folder`."""
    uniform = config_lib.load_config(
        report.ROOT / "configs/quickstart_uniform.py"
    )
    return dataclasses.replace(
        uniform,
        steps=steps,
        data=dataclasses.replace(
            uniform.data,
            super_batch_size=case.super_batch_size,
            index_dir=folder,
        ),
        reference=config_lib.ReferenceConfig(sidecars=True, sidecar_dir=folder),
        cascade=config_lib.CascadeConfig(case.hyper_batch_size),
        selection=config_lib.SelectionConfig(
            method="joint",
            batch_size=_BATCH_SIZE if case.selects else None,
        ),
        optimizer=dataclasses.replace(uniform.optimizer, warmup_steps=0),
        evaluation=config_lib.EvaluationConfig(
            log_every_steps=max(1, steps // 4)
        ),
    )


def _times_of_steps(case, steps, workdir):
    """Seconds of a step, and the share of them that waits for input."""
    file = f"{workdir}.json"
    config_lib.save_config(recipe(case, os.path.dirname(workdir), steps), file)
    report.command("trainers.train", "--config", file, "--workdir", workdir)
    rows = directory.read_rows(workdir, "metrics.jsonl")
    rows = [row for row in rows if row["step"] > steps // 2]
    seconds = np.array([row["time/step_seconds"] for row in rows])
    shares = np.array([row["time/input_wait_share"] for row in rows])
    return seconds.mean(), (seconds * shares).sum() / seconds.sum()


# By name, what the block is headed and what measures it.
_PARTS = {
    "rows": ("## What a cascade costs: rows", measure_rows),
    "choice": ("## What a cascade costs: the choice", measure_choice),
    "steps": ("## What a cascade costs: steps", measure_steps),
}


if __name__ == "__main__":
    main()
