"""The cost of a training step, in seconds and FLOPs, for every kind of step.

Uniform, JEST and Flexi-JEST steps side by side.

    python -m benchmarks.bench_step

Writes the block `step` of README.md or of the file `--out`, in about three
minutes on 2 quiet cores; `--small` takes a minute, says nothing, and writes
only to `--out`.
"""

import itertools
import textwrap
import time
from typing import NamedTuple

import numpy as np
import tensorflow as tf

import jest_tf
from benchmarks import report
from jest_tf import config as config_lib
from jest_tf import models, training
from jest_tf.models import towers
from jest_tf.training import funnel as funnel_lib

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


_QUICK = Sizes(16, 1, 2, 32, 4)
# As many tokens as B/16 at 256 pixels has; the text is as long as Flexi-JEST's
# 110 % want it, see docs/logs.md.
_FINE = Sizes(384, 6, 6, 256, 12)
_COARSE_VIEW = config_lib.View(patch_size=32)


def main(argv: list[str] | None = None) -> None:
    """Measures and writes the block."""
    options = report.parser(_COMMAND, "Times training steps.").parse_args(argv)
    # It takes the steps, which share a name, for a step that is traced anew.
    tf.get_logger().setLevel("ERROR")
    text = "\n\n".join(
        [
            f"## What a step costs\n\n    {_COMMAND}",
            measure_kinds(options.small),
            report.environment(),
        ]
    )
    report.publish(report.page(options), "step", text, _COMMAND)


def measure_kinds(small: bool) -> str:
    """Times and counts uniform, JEST and Flexi-JEST steps in turn; Markdown."""
    sizes, b, repeats = (_QUICK, 16, 2) if small else (_FINE, 16, 7)
    report.log("kinds: tracing")
    joint, flexi = (
        config_lib.SelectionConfig(
            b, stages=(config_lib.Stage(5, view=view, scoring_batch_size=b),)
        )
        for view in (config_lib.View(), _COARSE_VIEW)
    )
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
        ratios = [
            ours / uniform
            for ours, uniform in zip(own, seconds[0], strict=True)
        ]
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


class Step:
    """A traced training step on a super-batch that is in memory.

    Args:
        sizes: of the learner.
        super_batch_size: B.
        selection: None trains on the super-batch as it comes.
        views: that it trains in.
    """

    def __init__(
        self,
        sizes: Sizes,
        super_batch_size: int,
        selection: config_lib.SelectionConfig | None = None,
        *,
        views: tuple[config_lib.View, ...] = (),
    ):
        model = training.JESTModel(
            _learner(sizes),
            funnel_lib.Cached(10.0, -10.0),
            selection,
            options=jest_tf.StepOptions(views=views),
        )
        optimizer = jest_tf.AdamW(1e-4, global_clipnorm=1.0)
        model.compile(optimizer, jit_compile=False)
        optimizer.build(model.trainable_variables)
        self._batches = iter(_super_batches(sizes, super_batch_size))
        model.make_train_function()
        self._model, self._function = model, model.train_function

    def run(self) -> float:
        """Seconds of a step, from its call to its loss."""
        start = time.monotonic()
        float(self._function(self._batches)["loss"])
        return time.monotonic() - start

    def flops(self) -> dict[str, int]:
        """Returns `flops.columns` of the step, once it has run."""
        (columns,) = self._model.step_flops().values()
        return columns


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
