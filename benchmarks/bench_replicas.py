"""Several replicas: traffic, and memory of the loss.

    python -m benchmarks.bench_replicas traffic
    python -m benchmarks.bench_replicas memory

Each part replaces its own block of docs/distribution.md, or of the file
`--out`. `traffic` is counted on paper; `memory` runs here. `--small` takes
seconds, proves nothing, and writes only to `--out`.
"""

import argparse
import json
import resource

import numpy as np
import tensorflow as tf

from benchmarks import report, traffic
from jest_tf import config as config_lib
from jest_tf import losses
from jest_tf.embeddings import Embeddings

_COMMAND = "python -m benchmarks.bench_replicas"

# The paper's batch on a slice of 256 chips; towers of ViT-B's width.
_PAPER = traffic.Setup(
    num_replicas=256,
    super_batch_size=163_840,
    batch_size=32_768,
    num_chunks=16,
    dim=768,
    reference_dim=768,
    rows={
        "image": ((256, 256, 3), "uint8"),
        "text": ((64,), "int32"),
        "id": ((), "int64"),
        "caption_id": ((), "int64"),
    },
)


def main(argv: list[str] | None = None) -> None:
    """Runs the parts asked for and writes their blocks."""
    description = "Counts and measures several replicas."
    parser = report.parser(_COMMAND, description, _PARTS)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.case:
        print(json.dumps(_measure_memory(**json.loads(options.case))))
        return
    page = report.page(options, report.ROOT / "docs" / "distribution.md")
    for part, measure in _PARTS.items():
        if options.part in (part, "all"):
            text = measure(options.small)
            report.publish(page, part, text, f"{_COMMAND} {part}")


def traffic_table(small: bool = False) -> str:
    """Bytes, work and memory a replica at the paper's size."""
    del small  # It takes seconds anyway.
    columns = [
        _PAPER._replace(quota=quota, loss=loss)
        for loss in config_lib.LOSSES
        for quota in config_lib.QUOTAS
    ]
    sections = []
    for title, count, unit, scale in (
        ("received, MB", traffic.totals, "MB", 1e6),
        ("matrix products, GFLOP", traffic.flops, "GFLOP", 1e9),
        ("held, MB", traffic.memory, "MB", 1e6),
    ):
        counts = [count(setup) for setup in columns]
        names = list(
            dict.fromkeys(name for column in counts for name in column)
        )
        rows = [
            [name, *(_number(column.get(name, 0), scale) for column in counts)]
            for name in names
        ]
        if count is not traffic.memory:  # not all of it lives at once
            sums = (_number(sum(column.values()), scale) for column in counts)
            rows.append(["in all", *sums])
        header = [
            f"a chip, {unit}: {title.split(',')[0]}",
            *(f"{setup.loss}, {setup.quota}" for setup in columns),
        ]
        sections.append(report.table(header, rows))
    setup = _PAPER
    shape = " x ".join(map(str, setup.rows["image"][0]))
    return (
        f"R = {setup.num_replicas}, B = {setup.super_batch_size:,}, "
        f"b = {setup.batch_size:,}, N = {setup.num_chunks}, D = {setup.dim} of "
        f"learner and reference, images of {shape} bytes, float32 "
        "embeddings, the loss in one block. Not measured.\n\n"
        + "\n\n".join(sections)
    )


def memory_table(small: bool = False) -> str:
    """Peak memory of the loss and its gradient against b, R and blocks."""
    size, dim = (512, 16) if small else (8192, 64)
    cases = [
        (1, None),
        (1, size // 8),
        (2, None),
        (4, None),
        (8, None),
        (8, size // 64),
    ]
    rows = []
    for loss in config_lib.LOSSES:
        for num_replicas, block in cases:
            report.log(f"memory: {loss}, R={num_replicas}, block {block}")
            case = {
                "loss": loss,
                "num_replicas": num_replicas,
                "size": size,
                "dim": dim,
                "block": block,
            }
            printed = report.command(
                *("benchmarks.bench_replicas", "memory"),
                *("--case", json.dumps(case)),
            )
            peak = json.loads(printed.splitlines()[-1])
            held = block or size // num_replicas
            rows.append(
                [
                    loss,
                    num_replicas,
                    f"{held:,} x {size:,}",
                    f"{held * size * 4 / 1e6:,.0f}",
                    f"{peak / 1e6:,.0f}",
                ]
            )
    header = ["loss", "R", "logits held", "their MB", "peak MB"]
    return (
        f"b = {size:,}, D = {dim}; value and gradients of one replica's "
        "embeddings, the others' gathered. Peak resident memory above that "
        f"before the step; a process a line. {report.environment()}\n\n"
        + report.table(header, rows)
    )


_PARTS = {"traffic": traffic_table, "memory": memory_table}


def _number(value, scale):
    """Three digits, and no more."""
    value /= scale
    if value == 0:
        return "0"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _measure_memory(loss, num_replicas, size, dim, block):
    """Peak bytes of a step on one replica."""
    share = size // num_replicas
    rows = np.random.default_rng(0).normal(size=(2, share, dim)) / dim**0.5
    parts = Embeddings(*map(np.float32, (*rows, 10.0, -10.0)))
    replicas = traffic.Echo(num_replicas) if num_replicas > 1 else None
    function = getattr(losses, f"{loss}_loss")

    @tf.function
    def step(parts, block):
        with tf.GradientTape() as tape:
            tape.watch(parts)
            value = function(parts, block_size=block, replicas=replicas)
        return value, tape.gradient(value, parts)

    parts = Embeddings(*map(tf.constant, parts))
    step.get_concrete_function(parts, block)
    # A tiny step first: kernels and threads do not belong to the loss.
    step(parts._replace(image=parts.image[:8], text=parts.text[:8]), 4)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    step(parts, block)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return 1024 * (after - before)  # ru_maxrss is in KiB on Linux


if __name__ == "__main__":
    main()
