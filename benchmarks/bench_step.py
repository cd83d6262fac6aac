"""What a training step costs: in seconds and FLOPs, of every kind of step.

Uniform, JEST and Flexi-JEST steps side by side; JEST's against B and a live
reference; steps on replicas.

    python -m benchmarks.bench_step

Writes the block `step` of README.md or of the file `--out`, or with
`--telemetry` the block `telemetry` alone: what following the selection costs.
About six minutes on 2 quiet cores, and four; with `--small` it takes one, says
nothing, and writes only to `--out`.
"""

import contextlib
import dataclasses
import itertools
import multiprocessing
import tempfile
import textwrap
import time
from concurrent import futures
from typing import NamedTuple
from unittest import mock

import numpy as np
import tensorflow as tf

import jest_tf
from benchmarks import report
from jest_tf import config as config_lib
from jest_tf import distribution, models, training
from jest_tf.data import stream
from jest_tf.models import reference, towers
from jest_tf.runs import draw_log
from jest_tf.training import flops, row_outputs

_COMMAND = "python -m benchmarks.bench_step"


class Sizes(NamedTuple):
    """Of the towers and what they read.

    Attributes:
        width: of a token and of the embeddings.
        depth: transformer blocks of each tower.
        num_heads: of their attention.
        image_size: pixels a side.
        text_length: tokens, of 512.
        patch_size: pixels a side of a patch.
    """

    width: int
    depth: int
    num_heads: int
    image_size: int
    text_length: int
    patch_size: int = 16


# Tokens enough that the products dominate, and not the optimizer, whose time is
# that of the weights (S/16's width at a sixth of its depth); and small enough
# that several replicas are traced in seconds.
_LARGE = Sizes(384, 2, 6, 128, 16)
_SMALL = Sizes(64, 1, 2, 64, 16)
_QUICK = Sizes(16, 1, 2, 32, 4)
# As many tokens as B/16 at 256 pixels has; the text is as long as Flexi-JEST's
# 110 % want it, see docs/ledger.md.
_FINE = Sizes(384, 6, 6, 256, 12)
_COARSE_VIEW = config_lib.View(patch_size=32)
_TINY = Sizes(64, 3, 2, 32, 16, 8)  # of the preset "tiny"


def main(argv: list[str] | None = None) -> None:
    """Measures and writes the block."""
    parser = report.parser(_COMMAND, "Times training steps.")
    parser.add_argument(
        "--telemetry", action="store_true", help="its cost, and nothing else"
    )
    options = parser.parse_args(argv)
    # It takes the steps, which are of one name, for one that is traced anew.
    tf.get_logger().setLevel("ERROR")
    name, command = "step", _COMMAND
    title = "What a step costs"
    measures = [
        measure_kinds,
        measure_view,
        measure_ratios,
        measure_replicas,
    ]
    if options.telemetry:
        name, command = "telemetry", f"{_COMMAND} --telemetry"
        title = "What following the selection costs"
        measures = [measure_telemetry]
    text = "\n\n".join(
        [
            f"## {title}\n\n    {command}",
            *(measure(options.small) for measure in measures),
            report.environment(),
        ]
    )
    report.publish(report.page(options), name, text, command)


def split_cpu(count: int) -> None:
    """Makes the CPU at least `count` devices.

    Raises:
        RuntimeError: TensorFlow's, if it has already run with fewer.
    """
    cpu = tf.config.list_physical_devices("CPU")[0]
    parts = tf.config.get_logical_device_configuration(cpu) or [None]
    if len(parts) < count:
        tf.config.set_logical_device_configuration(
            cpu, [tf.config.LogicalDeviceConfiguration()] * count
        )


def measure_kinds(small: bool) -> str:
    """Times and counts uniform, JEST and Flexi-JEST steps in turn; Markdown."""
    sizes, b, repeats = (_QUICK, 16, 2) if small else (_FINE, 16, 7)
    report.log("kinds: tracing")
    joint = config_lib.SelectionConfig(
        method="joint", batch_size=b, scoring_batch_size=b
    )
    flexi = dataclasses.replace(joint, view=_COARSE_VIEW)
    mix = (config_lib.View(), _COARSE_VIEW)
    steps = {
        "uniform": Step(sizes, b),
        "JEST": Step(sizes, 5 * b, joint),
        "Flexi-JEST": Step(sizes, 5 * b, flexi, views=mix),
    }
    seconds = take_turns(list(steps.values()), repeats)
    counts = [step.flops() for step in steps.values()]
    rows = []
    for kind, own, count in zip(steps, seconds, counts, strict=True):
        ratios = [one / two for one, two in zip(own, seconds[0], strict=True)]
        rows.append(
            [
                kind,
                report.spread(own),
                report.spread(ratios),
                f"{count['step'] / 1e9:,.1f}",
                *(
                    f"{count[name] / counts[0][name]:.2f}"
                    for name in ("step", "no_reuse", "reuse")
                ),
            ]
        )
    head = ["step", "s", "of uniform", "GFLOPs", "counted", "no_reuse"]
    head += ["reuse"]
    words = (
        f"Steps that train on b = {b} rows, of B = {5 * b} where they score, "
        "in turn in one process, on one device. Towers of width "
        f"{sizes.width} and depth {sizes.depth}, {sizes.image_size} pixels in "
        f"patches of 16, {sizes.text_length} tokens, float32; cached "
        f"reference; scored {b} "
        "rows at a time; the super-batch is in memory. Flexi-JEST scores in "
        "patches of 32 and trains on half of the rows in either. Three numbers "
        f"are the lowest, the median and the highest of {repeats} repeats. "
        "FLOPs are of the step's matrix products; beside them, as "
        "shares of the uniform step's, what is counted, and the paper's two "
        "ways to count."
    )
    return f"{textwrap.fill(words, 80)}\n\n{report.table(head, rows)}"


def measure_view(small: bool) -> str:
    """Times and counts the image tower in coarse patches; Markdown."""
    sizes, rows, repeats = (_QUICK, 16, 2) if small else (_FINE, 64, 9)
    report.log("view: tracing")
    tower = _learner(sizes).image_tower
    shape = [rows, sizes.image_size, sizes.image_size, 3]
    images = tf.random.stateless_uniform(shape, [0, 0])
    functions = [
        tf.function(
            lambda images, view=view: tower(images, training=False, view=view),
            autograph=False,
        )
        for view in (config_lib.View(), _COARSE_VIEW)
    ]
    spec = tf.TensorSpec(images.shape, images.dtype)
    counts = [flops.count(function, spec)[0] for function in functions]
    for function in functions:
        function(images)
    seconds = [
        [_seconds_of(function, images) for function in functions]
        for _ in range(repeats)
    ]
    ratios = [coarse / fine for fine, coarse in seconds]
    words = (
        f"The image tower alone, forward, on {rows} images: in patches of 32 "
        f"it takes {report.spread(ratios)} of the seconds that it takes in "
        f"patches of 16 (lowest / median / highest of {repeats}), and "
        f"{counts[1] / counts[0]:.3f} of the FLOPs."
    )
    return textwrap.fill(words, 80)


def _seconds_of(function, argument):
    start = time.monotonic()
    function(argument).numpy()
    return time.monotonic() - start


def measure_ratios(small: bool) -> str:
    """Times steps of both kinds in turn; Markdown."""
    sizes, b, repeats = (_QUICK, 16, 2) if small else (_LARGE, 64, 3)
    cases = [(2, "cached"), (5, "cached"), (10, "cached"), (5, "live")]
    report.log("ratios: tracing")
    selection = config_lib.SelectionConfig(
        method="joint", batch_size=b, scoring_batch_size=b
    )
    steps = [
        Step(sizes, factor * b, selection, live=kind == "live")
        for factor, kind in cases
    ]
    steps = [Step(sizes, b), *steps]
    seconds = take_turns(steps, repeats)
    counts = [step.flops() for step in steps]
    rows = []
    for (factor, kind), own, count in zip(
        cases, seconds[1:], counts[1:], strict=True
    ):
        expected = count["step"] / counts[0]["step"]
        ratios = [one / two for one, two in zip(own, seconds[0], strict=True)]
        off = 100 * (np.median(ratios) / expected - 1)
        rows.append(
            [
                kind,
                factor * b,
                b,
                report.spread(own),
                report.spread(ratios),
                f"{expected:.2f}",
                f"{off:+.0f} %",
            ]
        )
    head = ["reference", "B", "b", "step, s", "ratio", "FLOP ratio", "off by"]
    words = (
        "JEST's step beside a uniform step of the same b, in turn in one "
        "process, on one device. Towers of width "
        f"{sizes.width} and depth {sizes.depth}, {sizes.image_size} pixels in "
        f"patches of 16, {sizes.text_length} tokens, float32; scored {b} rows "
        "at a time; the super-batch is in memory. A cached reference costs no "
        "pass, a live one is of the learner's size. Three numbers are the "
        f"lowest, the median and the highest of {repeats} repeats; a uniform "
        f"step takes {report.spread(seconds[0])} s. The FLOP ratio is "
        "of the matrix products in the traced steps: about a forward pass an "
        "example scored, two with a live reference, and three an example "
        "trained on."
    )
    return f"{textwrap.fill(words, 80)}\n\n{report.table(head, rows)}"


def measure_replicas(small: bool) -> str:
    """Times steps against R, B and b; Markdown."""
    sizes, repeats = (_QUICK, 2) if small else (_SMALL, 10)
    b = 16 if small else 64
    cases = [(5 * b, b, "global"), (10 * b, b, "global")]
    cases += [(10 * b, 2 * b, "global"), (5 * b, b, "per_replica")]
    kept = {1: cases[:3], 2: cases, 4: [cases[0], cases[3]]}
    if small:
        kept = {1: cases[:1], 2: cases[:1]}
    rows, alone = [], {}
    for replicas, wanted in kept.items():
        report.log(f"replicas: R={replicas}")
        times = in_process(time_cases, sizes, replicas, wanted, repeats)
        for case, seconds in zip(wanted, times, strict=True):
            super_batch_size, batch_size, quota = case
            median = np.median(seconds)
            if replicas == 1:
                alone[case[:2]] = median
            rows.append(
                [
                    *(replicas, super_batch_size, batch_size),
                    quota if replicas > 1 else "-",
                    report.spread([1e3 * one for one in seconds]),
                    f"{median / alone[case[:2]]:.2f}",
                ]
            )
    head = ["R", "B", "b", "quota", "step, ms", "of R = 1"]
    words = (
        "JEST's step under MirroredStrategy on R parts of one CPU, which share "
        "its cores: no replica makes it faster, and what R = 4 takes beyond "
        "R = 1 is what they do twice and tell each other. Towers of width "
        f"{sizes.width} and depth {sizes.depth}, {sizes.image_size} pixels, 4 "
        f"chunks, cached reference; {repeats} repeats."
    )
    return f"{textwrap.fill(words, 80)}\n\n{report.table(head, rows)}"


def measure_telemetry(small: bool) -> str:
    """Times steps with and without telemetry, in turn; Markdown."""
    repeats, every = (2, 2) if small else (5, 10)
    cases = [("tiny", _TINY, 640, 128), ("larger", _LARGE, 320, 64)]
    if small:
        cases = [("small", _QUICK, 32, 16)]
    rows = []
    for name, sizes, super_batch_size, batch_size in cases:
        report.log(f"telemetry: {name}")
        with tempfile.TemporaryDirectory() as workdir:
            pair = [
                Followed(sizes, super_batch_size, batch_size, folder, every)
                for folder in (None, workdir)
            ]
            without, followed = take_turns(pair, repeats)
        ratios = [
            100 * (one / two - 1)
            for one, two in zip(followed, without, strict=True)
        ]
        rows.append(
            [
                *(name, super_batch_size, batch_size),
                report.spread([1e3 * one for one in without]),
                report.spread([1e3 * one for one in followed]),
                report.spread(ratios),
                f"{100 * pair[1].share:.2f} %",
            ]
        )
    head = ["size", "B", "b", "without, ms", "with, ms", "more, %", "of it"]
    words = (
        f"A step of JEST with and without telemetry, in turn in one process: "
        f"means over {every} steps, of which the last is logged as a run logs "
        "it, with the line of `telemetry.jsonl` and the histograms. Without, "
        "the graph of the step doesn't tell of rows either. The tiny "
        f"sizes are width {_TINY.width}, depth {_TINY.depth} and "
        f"{_TINY.image_size} pixels in patches of "
        f"{_TINY.patch_size}; the larger ones are those of the table "
        "of JEST's step beside a uniform one. Cached reference. Three numbers "
        f"are the lowest, the median and the highest of {repeats} repeats, "
        "whose noise is larger than what is looked for; the last column is "
        "the time spent in following over that of all, by the clock."
    )
    return f"{textwrap.fill(words, 80)}\n\n{report.table(head, rows)}"


def in_process(function, *arguments):
    """`function(*arguments)` in a process of its own.

    One process can't have strategies of several sizes, whose replicas
    TensorFlow takes for one group.
    """
    with futures.ProcessPoolExecutor(
        1, mp_context=multiprocessing.get_context("spawn")
    ) as pool:
        return pool.submit(function, *arguments).result()


def time_cases(
    sizes: Sizes, replicas: int, cases: list[tuple], repeats: int
) -> list[list[float]]:
    """Seconds of the steps on R replicas, by (B, b, quota)."""
    strategy = None
    if replicas > 1:
        split_cpu(replicas)
        # One for all steps, as each numbers its exchanges from 0 on.
        strategy = tf.distribute.MirroredStrategy(
            [f"CPU:{number}" for number in range(replicas)]
        )
    steps = [
        Step(
            sizes,
            super_batch_size,
            # Few chunks, as replicas of a CPU trace every one of them.
            config_lib.SelectionConfig(
                method="joint", batch_size=batch_size, num_chunks=4, quota=quota
            ),
            strategy=strategy,
        )
        for super_batch_size, batch_size, quota in cases
    ]
    return take_turns(steps, repeats)


class Step:
    """A traced training step on a super-batch that is in memory.

    Args:
        sizes: of learner and live reference.
        super_batch_size: B.
        selection: None trains on the super-batch as it comes.
        live: a reference of the learner's size, in place of embeddings that
            come with the super-batch.
        views: that it trains in.
        strategy: that it runs under; None is none.
    """

    def __init__(
        self,
        sizes: Sizes,
        super_batch_size: int,
        selection: config_lib.SelectionConfig | None = None,
        *,
        live: bool = False,
        views: tuple[config_lib.View, ...] = (),
        strategy: tf.distribute.Strategy | None = None,
    ):
        strategy = strategy or tf.distribute.get_strategy()
        with strategy.scope():
            teacher = _learner(sizes) if live else reference.cached(10.0, -10.0)
            model = training.JESTModel(
                _learner(sizes), teacher, selection, views=views
            )
            optimizer = jest_tf.AdamW(1e-4, global_clipnorm=1.0)
            model.compile(optimizer, jit_compile=False)
            optimizer.build(model.trainable_variables)
        dataset = _super_batches(sizes, super_batch_size)
        self._batches = iter(
            distribution.distribute(
                strategy, lambda host, num_hosts: dataset, super_batch_size
            )
        )
        model.make_train_function()
        self._model, self._function = model, model.train_function

    def run(self) -> float:
        """Seconds of a step, from its call to its loss."""
        start = time.monotonic()
        float(self._function(self._batches)["loss"])
        return time.monotonic() - start

    def flops(self) -> dict[str, int]:
        """What `flops.columns` says of the step, once it has run."""
        (columns,) = self._model.step_flops().values()
        return columns


class Followed(Step):
    """Several steps, the last of which is logged, with telemetry or without.

    Args:
        sizes: of the learner.
        super_batch_size: B.
        batch_size: b.
        workdir: where telemetry writes; None is without.
        num_steps: from one logged step to the next.

    Attributes:
        share: of the time of all runs but the first two, what was spent in
            following.
    """

    def __init__(
        self,
        sizes: Sizes,
        super_batch_size: int,
        batch_size: int,
        workdir: str | None,
        num_steps: int,
    ):
        selection = config_lib.SelectionConfig("joint", batch_size=batch_size)
        super().__init__(sizes, super_batch_size, selection)
        self._num_steps, self._telemetry = num_steps, None
        self._step = self._following = self._all = self._runs = 0
        if workdir is None:
            return
        config = config_lib.TrainConfig(
            data=config_lib.DataConfig(super_batch_size=super_batch_size),
            selection=selection,
            reference=config_lib.ReferenceConfig(sidecars=True),
        )
        # As many records as a small pool.
        order = stream.Order(18_000, 0)
        self._telemetry = draw_log.Telemetry(config, workdir, order=order)
        self._writer = tf.summary.create_file_writer(workdir)

    @property
    def share(self) -> float:
        """See above."""
        return self._following / self._all

    def run(self) -> float:
        """Seconds of a step, the mean over all up to a logged one."""
        untold = contextlib.nullcontext()
        if self._telemetry is None:  # when it is traced
            untold = mock.patch.object(row_outputs, "of_scored", lambda *_: {})
        with untold:
            spent = [self._run_and_follow(n) for n in range(self._num_steps)]
        self._runs += 1
        if self._runs > 2:
            self._all += sum(one for one, _ in spent)
            self._following += sum(other for _, other in spent)
        return sum(one for one, _ in spent) / self._num_steps

    def _run_and_follow(self, number):
        """Seconds of a step and, of them, of following it."""
        seconds = super().run()
        if self._telemetry is None:
            return seconds, 0.0
        start = time.monotonic()
        self._telemetry.follow(
            self._model,
            self._step,
            self._step + 1,
            number == self._num_steps - 1,
            self._writer,
        )
        self._step += 1
        followed = time.monotonic() - start
        return seconds + followed, followed


def take_turns(steps: list[Step], repeats: int) -> list[list[float]]:
    """Seconds of each step's runs, in turn; the first two are left out.

    Those trace, and let the memory grow.
    """
    for step in itertools.chain(steps, steps):
        step.run()
    rounds = [[step.run() for step in steps] for _ in range(repeats)]
    return [list(seconds) for seconds in zip(*rounds, strict=True)]


def _learner(sizes):
    shared = {
        "width": sizes.width,
        "depth": sizes.depth,
        "num_heads": sizes.num_heads,
        "embedding_dim": sizes.width,
        "seed": 0,
    }
    learner = models.TwoTower(
        towers.ImageTower(
            image_size=sizes.image_size,
            patch_size=sizes.patch_size,
            patch_sizes=(2 * sizes.patch_size,),
            **shared,
        ),
        towers.TextTower(
            vocabulary_size=512, length=sizes.text_length, **shared
        ),
    )
    learner.build(
        {
            "image": (None, sizes.image_size, sizes.image_size, 3),
            "text": (None, sizes.text_length),
        }
    )
    return learner


def _super_batches(sizes, rows):
    """The same super-batch of noise again and again."""
    random = np.random.default_rng(0)
    image_shape = (rows, sizes.image_size, sizes.image_size, 3)
    batch = {
        "image": random.integers(0, 256, image_shape, np.uint8),
        "text": np.int32(random.integers(0, 512, (rows, sizes.text_length))),
        "id": np.arange(rows),
    }
    for name in ("reference_image", "reference_text"):
        noise = random.normal(size=(rows, sizes.width))
        noise /= np.linalg.norm(noise, axis=-1, keepdims=True)
        batch[name] = np.float16(noise)
    return tf.data.Dataset.from_tensors(batch).repeat()


if __name__ == "__main__":
    main()
