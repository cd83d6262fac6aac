"""Time and memory of joint selection.

The baselines are the matrix products that every form needs, and algorithm 1 of
Evans et al. 2024 (arXiv 2406.17711) as printed, with its matrices of pairs.
Each case runs in a separate process, so that its peak memory can be measured.
"""

import dataclasses
import functools
import json
import pathlib
import resource
import sys
import time

import numpy as np
import tensorflow as tf

from benchmarks import report
from jest_tf import selection
from jest_tf.embeddings import Embeddings
from jest_tf.selection import tiles


@dataclasses.dataclass(frozen=True)
class Case:
    """One process of `speed`.

    Attributes:
        forms: keys of `_FORMS`; two of them are run in turn.
        super_batch_size: B.
        batch_size: b.
        dim: D.
        num_chunks: N.
        loss: "sigmoid" or "softmax".
        num_repeats: timed runs of each form.
    """

    forms: tuple[str, str]
    super_batch_size: int
    batch_size: int
    dim: int
    num_chunks: int = 16
    loss: str = "sigmoid"
    num_repeats: int = 5

    @property
    def operations(self) -> float:
        """Of the products: 2 models x 2 directions x [B, D] x [D, b]."""
        return 8.0 * self.super_batch_size * self.batch_size * self.dim


_CASES = (
    Case(("products", "tiled"), 163_840, 32_768, 768, num_repeats=1),
    Case(("products", "tiled"), 163_840, 32_768, 128, num_repeats=2),
    Case(("products", "tiled"), 16_384, 3_277, 768, num_repeats=3),
    Case(
        ("products", "tiled"),
        *(16_384, 3_277, 768),
        loss="softmax",
        num_repeats=3,
    ),
    *(
        Case(("tiled", "matrix"), 16_384, batch_size, dim, num_repeats=3)
        for dim in (768, 128)
        for batch_size in (3_277, 1_638, 819)
    ),
)
_SMALL_CASES = (
    Case(("products", "tiled"), 640, 128, 8, num_chunks=4, num_repeats=1),
    Case(("tiled", "matrix"), 640, 128, 8, num_chunks=4, num_repeats=1),
)
# Cases with less work than this run each form once before they are timed.
_WARM_UP_OPERATIONS = 1e13


def select_with_matrices(
    learner: Embeddings,
    teacher: Embeddings,
    *,
    batch_size: int,
    num_chunks: int,
    seed: tuple,
) -> tf.Tensor:
    """Algorithm 1 as printed: a [B, B] matrix of pair losses for each model.

    Sigmoid, learnability, on the noise of `selection.select_jointly`; two
    products of a matrix with the indicator of the chosen rows a chunk.

    Returns:
        int32 `[batch_size]`, rows in the order drawn.
    """

    def pair_losses(embeddings):
        cosines = tf.matmul(embeddings.image, embeddings.text, transpose_b=True)
        logits = embeddings.scale * cosines + embeddings.bias
        positive = tf.math.softplus(-tf.linalg.diag_part(logits))
        return tf.linalg.set_diag(tf.math.softplus(logits), positive)

    scores = pair_losses(learner) - pair_losses(teacher)
    size = scores.shape[0]
    noise = selection.gumbel_noise(seed, num_chunks, size)
    own, chosen, indicator = tf.linalg.diag_part(scores), [], tf.zeros([size])
    sizes = selection.chunk_sizes(batch_size, num_chunks, size)
    for chunk, chunk_size in enumerate(sizes):
        keys = own + noise[chunk] - 1e8 * indicator
        keys += tf.linalg.matvec(scores, indicator)
        keys += tf.linalg.matvec(scores, indicator, transpose_a=True)
        rows = tf.math.top_k(keys, chunk_size).indices
        indicator = tf.tensor_scatter_nd_update(
            indicator, rows[:, tf.newaxis], tf.ones([chunk_size])
        )
        chosen.append(rows)
    return tf.concat(chosen, 0)


def products(
    learner: Embeddings | None, teacher: Embeddings, case: Case
) -> tf.Tensor:
    """The matrix products that a draw of `case` makes, and nothing else.

    For each chunk and model, all images by the chunk's texts and all texts by
    the chunk's images, with the loops and tiles of `selection/tiles.py`. Of
    every tile one column is added up, lest nobody use the product. All chunks
    are as large as the first, a row more where b is not a multiple of N.
    """

    size = -(-case.batch_size // case.num_chunks)
    models = [model for model in (learner, teacher) if model is not None]

    def step(index, total):
        rows = (index * size + tf.range(size)) % case.super_batch_size
        for model in models:
            image, text = (tf.gather(part, rows) for part in model[:2])
            # The package's own loops, so that the tiles are the same.
            total += tiles.reduce_pairs(
                lambda tile: tile[:, 0], model, image, text
            )
        return index + 1, total

    _, total = tf.while_loop(
        lambda index, _: index < case.num_chunks,
        step,
        (tf.constant(0), tf.zeros([2, case.super_batch_size])),
        parallel_iterations=1,
    )
    return total


def _tiled(learner, teacher, case):
    return selection.select_jointly(
        learner,
        teacher,
        batch_size=case.batch_size,
        num_chunks=case.num_chunks,
        seed=(0, 0),
        loss=case.loss,
    )


def _matrix(learner, teacher, case):
    return select_with_matrices(
        learner,
        teacher,
        batch_size=case.batch_size,
        num_chunks=case.num_chunks,
        seed=(0, 0),
    )


# Each: (learner, teacher, case) -> what to wait for.
_FORMS = {"products": products, "tiled": _tiled, "matrix": _matrix}


def measure(case: Case) -> dict:
    """Times both forms of a case in turn, in this process.

    Returns:
        "seconds" and "trace_seconds" of each form, by name; "ratios" of a run
        of the second form to the mean of the runs of the first before and
        after it; "peak_gb", the process's highest resident memory.
    """
    models = [random_embeddings(case, seed) for seed in (0, 1)]
    functions, trace_seconds = {}, {}
    for form in case.forms:
        start = time.perf_counter()
        functions[form] = _traced(_FORMS[form], case, models)
        trace_seconds[form] = time.perf_counter() - start

    def run(form):
        start = time.perf_counter()
        tf.nest.map_structure(
            lambda tensor: tensor.numpy(), functions[form](*models)
        )
        return time.perf_counter() - start

    first, second = case.forms
    if case.operations < _WARM_UP_OPERATIONS:
        run(first), run(second)
    seconds = {first: [run(first)], second: []}
    for _ in range(case.num_repeats):
        for form in (second, first):
            seconds[form].append(run(form))
            report.log(f"speed: {form} {seconds[form][-1]:.2f} s")
    neighbours = np.convolve(seconds[first], [0.5, 0.5], "valid")
    return {
        "seconds": seconds,
        "trace_seconds": trace_seconds,
        "ratios": list(np.array(seconds[second]) / neighbours),
        "peak_gb": _peak_bytes() / 1e9,
    }


def _traced(form, case, models):
    # Not a default argument or a partial, which would be traced over, too.
    function = tf.function(
        lambda learner, teacher: form(learner, teacher, case), autograph=False
    )
    return function.get_concrete_function(*models)


def random_embeddings(case: Case, seed: int) -> Embeddings:
    """Unit-norm noise."""
    shape = (case.super_batch_size, case.dim)
    image, text = (_random_rows(shape, (seed, part)) for part in (0, 1))
    return Embeddings(image, text, tf.constant(10.0), tf.constant(-10.0))


@functools.partial(tf.function, autograph=False)
def _random_rows(shape, seed):
    # Its memory is a single array: einsum makes no square of it, and the
    # product is written in place. The peak is to be the draw's.
    rows = tf.random.stateless_normal(shape, seed, alg="philox")
    squares = tf.einsum("nd,nd->n", rows, rows)
    return rows * tf.math.rsqrt(squares)[:, tf.newaxis]


def _peak_bytes():
    # Not ru_maxrss on Linux: a child starts from what its parent had.
    status = pathlib.Path("/proc/self/status")
    if status.exists():
        fields = dict(
            line.split(":", 1) for line in status.read_text().splitlines()
        )
        return 1024 * int(fields["VmHWM"].split()[0])
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def run(small: bool, command: str) -> str:
    """Runs each case in a process of its own.

    Args:
        small: sizes that take seconds.
        command: what the block says that it was made by.

    Returns:
        The Markdown of the block.
    """
    products_rows, matrix_rows = [], []
    for case in _SMALL_CASES if small else _CASES:
        report.log(f"speed: {case}")
        fields = json.dumps(dataclasses.asdict(case))
        printed = report.command("benchmarks.selection_speed", fields)
        result = json.loads(printed.splitlines()[-1])
        if "matrix" in case.forms:
            matrix_rows.append(_matrix_row(case, result))
        else:
            products_rows.append(_products_row(case, result))
    return _markdown(
        products_rows, matrix_rows, f"{command} speed{' --small' * small}"
    )


def _sizes(case):
    rows = [f"{case.super_batch_size:,}", f"{case.batch_size:,}"]
    return [*rows, case.num_chunks, case.dim]


def _products_row(case, result):
    seconds = result["seconds"]["tiled"]
    rate = case.operations / np.median(seconds) / 1e9
    embeddings = 16 * case.super_batch_size * case.dim / 1e9
    return [
        case.loss,
        *_sizes(case),
        report.spread(seconds),
        f"{rate:.0f}",
        report.spread(result["seconds"]["products"]),
        report.spread(result["ratios"]),
        f"{result['peak_gb']:.2f}",
        f"{embeddings:.2f}",
        f"{result['trace_seconds']['tiled']:.1f}",
        case.num_repeats,
    ]


def _matrix_row(case, result):
    return [
        *_sizes(case),
        report.spread(result["seconds"]["tiled"]),
        report.spread(result["seconds"]["matrix"]),
        report.spread(result["ratios"]),
        f"{result['peak_gb']:.2f}",
        case.num_repeats,
    ]


def _markdown(products_rows, matrix_rows, command):
    sizes = ["B", "b", "N", "D"]
    ours = ["s", "GFLOP/s", "products, s", "ratio", "peak GB"]
    ours += ["of it embeddings", "trace, s", "repeats"]
    both = ["`select_jointly`, s", "matrices, s", "ratio", "peak GB", "repeats"]
    return f"""## How fast, and in how much memory

    {command}

`select_jointly` in a `tf.function`: learnability, random unit-norm float32
embeddings (seeds 0 and 1; draw (0, 0)). Three numbers are the lowest, the
median and the highest of the repeats.

{report.table(["loss", *sizes, *ours], products_rows)}

The products are the ones that the draw has to make, and no more: of both models
all B images by the chosen texts and all B texts by the chosen images, 8 B b D
operations, chunk by chunk over the tiles of `selection/tiles.py`; one column of
every tile is added up. They run in the same process before and after every
selection, and the ratio is to the mean of the two. GFLOP/s counts the products'
operations over the selection's median seconds. The trace is not in the seconds.
Cases below {_WARM_UP_OPERATIONS:.0e} operations run once untimed; in others the
first selection compiles its tile, too. The peak is the highest resident memory
of the process, TensorFlow and the embeddings included.

Algorithm 1 as printed forms two float32 matrices [B, B] of pair losses and
makes two products with an indicator a chunk. On the same noise, in turn with
`select_jointly` in one process; the peak is that of the matrices:

{report.table([*sizes, *both], matrix_rows)}

{report.environment()}"""


if __name__ == "__main__":
    print(json.dumps(measure(Case(**json.loads(sys.argv[1])))))
