"""Measures the sub-batches of joint selection, and their cost.

    python -m benchmarks.bench_selection figure
    python -m benchmarks.bench_selection speed

`figure` repeats figure 2 of Evans et al. 2024 (arXiv 2406.17711): learnability
against the number of chunks, the iterations of a Gibbs sampler, which lives
here alone, and the filter ratio. `speed` compares the draw with algorithm 1 as
printed, which has matrices of pairs; each case runs in a process of its own, so
that its peak memory can be measured.

Each part replaces its block of README.md, or of the file `--out`. With
`--small` it takes seconds, its numbers mean nothing, and it writes only to
`--out`.
"""

import argparse
import dataclasses
import functools
import json
import pathlib
import time

import numpy as np
import tensorflow as tf

from benchmarks import report
from jest_tf import selection
from jest_tf.embeddings import Embeddings

_COMMAND = "python -m benchmarks.bench_selection"

# Figure 2 of the paper, digitised from the picture, +-0.01.
_PAPER_CHUNKS = {1: 0.00, 2: 0.69, 4: 0.89, 8: 0.96, 16: 0.99, 32: 1.00}
_PAPER_GIBBS = {1: 0.14, 10: 0.19, 30: 0.27, 100: 0.43, 300: 0.70, 1000: 0.94}
_PAPER_GIBBS |= {2000: 1.00}
_PAPER_RATIOS = {0.0: 0.00, 0.5: 1.00, 0.8: 1.12, 0.9: 1.15}


@dataclasses.dataclass(frozen=True)
class Case:
    """A process of `speed`.

    Attributes:
        super_batch_size: B.
        batch_size: b.
        dim: D.
        loss: "sigmoid" or "softmax".
        has_matrices: whether algorithm 1 as printed is run, too.
        num_chunks: N.
        num_repeats: timed runs of each form.
    """

    super_batch_size: int
    batch_size: int
    dim: int
    loss: str = "sigmoid"
    has_matrices: bool = True
    num_chunks: int = 16
    num_repeats: int = 3


_CASES = (
    Case(163_840, 32_768, 768, has_matrices=False, num_repeats=1),
    Case(163_840, 32_768, 128, has_matrices=False, num_repeats=2),
    Case(16_384, 3_277, 768, "softmax", has_matrices=False),
    *(
        Case(16_384, batch_size, dim)
        for dim in (768, 128)
        for batch_size in (3_277, 819)
    ),
)
_SMALL_CASES = (
    Case(640, 128, 8, has_matrices=False, num_chunks=4, num_repeats=1),
    Case(640, 128, 8, num_chunks=4, num_repeats=1),
)


def main(argv: list[str] | None = None) -> None:
    """Runs the parts asked for and writes their blocks."""
    parts = {"figure": figure, "speed": speed}
    parser = report.parser(_COMMAND, "Benchmarks joint selection.", parts)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.case:
        print(json.dumps(measure(Case(**json.loads(options.case)))))
        return
    for name, run in parts.items():
        if options.part in (name, "all"):
            page = report.page(options)
            report.publish(page, name, run(options.small), _COMMAND)


def synthetic(regime: str, num_rows: int, seed: int) -> tuple:
    """Clustered embeddings in 64 dimensions: a learner's and a reference's.

    An embedding is a direction that the rows of a cluster share, plus a
    direction that the image and the text of a row share, plus noise of each
    tower, normalised; every fifth text belongs to another row. The reference
    sees both parts clearly. A "late" learner sees the clusters but the row
    itself less well, and is about as sharp; an "early" learner sees little, and
    still has the temperature and bias that SigLIP starts from.

    Returns:
        Two `Embeddings` of NumPy arrays.
    """
    random = np.random.default_rng([seed, 64])
    dim, num_clusters = 64, 64
    clusters = random.standard_normal((num_clusters, dim))
    shared = clusters[random.integers(num_clusters, size=num_rows)]
    own = random.standard_normal((num_rows, dim))
    texts = np.arange(num_rows)
    wrong = np.flatnonzero(random.random(num_rows) < 0.2)
    texts[wrong] = random.permutation(wrong)

    def embed(cluster, row, scale, bias):
        meaning = cluster * shared + row * own
        towers = []
        for rows in (np.arange(num_rows), texts):
            values = meaning[rows] + random.standard_normal((num_rows, dim))
            values /= np.linalg.norm(values, axis=1, keepdims=True)
            towers.append(np.float32(values))
        return Embeddings(*towers, np.float32(scale), np.float32(bias))

    learners = {
        "late": (2.0, 0.5, 20.0, -12.0),
        "early": (0.5, 0.2, 10.0, -10.0),
    }
    return embed(*learners[regime]), embed(2.0, 2.0, 20.0, -12.0)


def pair_scores(learner: Embeddings, teacher: Embeddings):
    """Learnability of every pair, sigmoid: float64 `[B, B]`."""
    matrices = []
    for image, text, scale, bias in (learner, teacher):
        logits = np.float64(scale) * np.float64(image) @ text.T + bias
        signs = 1.0 - 2.0 * np.eye(len(logits))
        matrices.append(np.logaddexp(0.0, signs * logits))
    return matrices[0] - matrices[1]


def learnability(scores: np.ndarray, rows: np.ndarray) -> float:
    """Of a sub-batch: the sum over its pairs, by row of it."""
    return scores[np.ix_(rows, rows)].sum() / len(rows)


def uniform_learnability(scores: np.ndarray, batch_size: int) -> float:
    """The expectation of `learnability` over uniform draws, exact."""
    size, own = len(scores), np.trace(scores)
    others = (scores.sum() - own) * (batch_size - 1) / max(size - 1, 1)
    return (own + others) / size


def gibbs(
    scores: np.ndarray, batch_size: int, num_iterations: int, seed: int
) -> np.ndarray:
    """Samples sub-batches with p proportional to exp(sum of their pairs).

    Starts from a uniform draw. An iteration takes a member at random out and
    draws its successor, which may be itself, from the conditional distribution
    given the other b - 1: exp(what a row adds to the sum over pairs). The
    iteration costs O(B) with the matrix at hand.

    Returns:
        float64 `[num_iterations + 1]`: the learnability at the start and after
        each iteration.
    """
    random = np.random.default_rng([seed, 1])
    order = random.permutation(len(scores))
    chosen, rest = order[:batch_size].copy(), order[batch_size:].copy()
    both = scores + scores.T
    adds = np.diag(scores) + both[chosen].sum(0)  # [B]
    total = batch_size * learnability(scores, chosen)
    totals = [total]
    for place in random.integers(batch_size, size=num_iterations):
        leaving = chosen[place]
        adds -= both[leaving]
        candidates = np.append(rest, leaving)
        keys = adds[candidates] + random.gumbel(size=len(candidates))
        best = np.argmax(keys)
        chosen[place] = candidates[best]
        total += adds[chosen[place]] - adds[leaving]
        adds += both[chosen[place]]
        if best < len(rest):
            rest[best] = leaving
        totals.append(total)
    return np.array(totals) / batch_size


def measure_figure(embeddings, batch_size, gibbs_iterations, seed):
    """A super-batch's values, normalised as in the paper's figure.

    0 is the expectation of a uniform draw and 1 the Gibbs sampler's plateau,
    both at filter ratio 0.5. A filter ratio f draws the same b rows from the
    first b / (1 - f).

    Args:
        embeddings: learner's and reference's, of 10 b rows or more.
        batch_size: b, the same at every filter ratio, as in the paper.
        gibbs_iterations: the mean over their second half is the plateau.
        seed: of the draws.

    Returns:
        "chunks", "gibbs" and "ratios", each a value by setting.
    """
    half = 2 * batch_size

    def joint(size, num_chunks):
        pool = [_take(model, slice(size)) for model in embeddings]
        noise_seed = tf.constant([seed, size])
        rows = _draw(*pool, noise_seed, batch_size, num_chunks).numpy()
        return pair_scores(*(_take(model, rows) for model in pool)).sum()

    scores = pair_scores(*(_take(model, slice(half)) for model in embeddings))
    trace = gibbs(scores, batch_size, gibbs_iterations, seed)
    settled = trace[len(trace) // 2 :]
    uniform, plateau = uniform_learnability(scores, batch_size), settled.mean()

    def normalised(value):
        return (value - uniform) / (plateau - uniform)

    return {
        "chunks": {
            chunks: normalised(joint(half, chunks) / batch_size)
            for chunks in _PAPER_CHUNKS
        },
        "gibbs": {
            iterations: normalised(trace[iterations])
            for iterations in _PAPER_GIBBS
            if iterations < len(trace)
        },
        "ratios": {
            ratio: normalised(
                joint(round(batch_size / (1 - ratio)), 16) / batch_size
            )
            for ratio in _PAPER_RATIOS
        },
    }


# Traced once for each pair of sizes, and not for each seed.
@functools.partial(tf.function, autograph=False)
def _draw(learner, teacher, seed, batch_size, num_chunks):
    return selection.select_jointly(
        learner,
        teacher,
        batch_size=batch_size,
        num_chunks=num_chunks,
        seed=seed,
    ).indices


def _take(embeddings, rows):
    return embeddings._replace(
        image=embeddings.image[rows], text=embeddings.text[rows]
    )


def figure(small: bool) -> str:
    """Measures both kinds of embeddings; the Markdown of the block."""
    size, num_seeds, iterations = (32, 2, 800) if small else (512, 10, 8_000)
    results = {}
    for regime in ("late", "early"):
        runs = results[f"synthetic, {regime}"] = []
        for seed in range(num_seeds):
            report.log(f"figure: {regime}, seed {seed}")
            pair = synthetic(regime, 10 * size, seed)
            runs.append(measure_figure(pair, size, iterations, seed))
    tables = []
    for sweep, name, paper in (
        ("chunks", "chunks N", _PAPER_CHUNKS),
        ("gibbs", "Gibbs iterations", _PAPER_GIBBS),
        ("ratios", "filter ratio, N = 16", _PAPER_RATIOS),
    ):
        settings = list(next(iter(results.values()))[0][sweep])
        rows = [["paper, digitised", *(f"{paper[s]:.2f}" for s in settings)]]
        for kind, runs in results.items():
            cells = ([run[sweep][s] for run in runs] for s in settings)
            rows.append([kind, *map(report.mean_range, cells)])
        tables.append(report.table([name, *settings], rows))
    joined = "\n\n".join(tables)
    return f"""## How learnable the sub-batch is

    {_COMMAND} figure

Learnability of the sub-batch, 0 for a uniform draw (its exact expectation) and
1 for the plateau of a Gibbs sampler at filter ratio 0.5. The cells give the
mean over {num_seeds} seeds and in brackets the lowest and the highest.
b = {size} rows always, from b / (1 - f) at filter ratio f, as in
the paper, whose b is 32,768. The paper's numbers are read off its figure 2,
+-0.01. Synthetic: 64 clusters in 64 dimensions, a fifth of the texts belong to
other rows; the late learner sees the clusters, the early learner hardly.
One iteration of the sampler takes a member at random out of the sub-batch and
draws its successor given all others; the paper doesn't say what its iteration
is. It samples and does not maximise, so more than 1 is possible.

{joined}

{report.environment()}"""


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


def measure(case: Case) -> dict:
    """Times the forms of a case in turn, in this process.

    Returns:
        "tiled" and "matrices", seconds of each run after the first, which
        traces; "peak_gb", the process's highest resident memory.
    """
    models = [random_embeddings(case, seed) for seed in (0, 1)]
    sizes = {"batch_size": case.batch_size, "num_chunks": case.num_chunks}
    sizes["seed"] = (0, 0)
    forms = {
        "tiled": lambda *models: (
            selection.select_jointly(*models, **sizes, loss=case.loss).indices
        )
    }
    if case.has_matrices:
        forms["matrices"] = lambda *models: select_with_matrices(
            *models, **sizes
        )
    traced = {
        name: tf.function(form, autograph=False).get_concrete_function(*models)
        for name, form in forms.items()
    }
    seconds = {name: [] for name in forms}
    for repeat in range(1 + case.num_repeats):
        for name, function in traced.items():
            start = time.perf_counter()
            function(*models).numpy()
            if repeat:
                seconds[name].append(time.perf_counter() - start)
                report.log(f"speed: {name} {seconds[name][-1]:.2f} s")
    return seconds | {"peak_gb": _peak_bytes() / 1e9}


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
    # Not ru_maxrss: a child starts from what its parent had.
    status = pathlib.Path("/proc/self/status").read_text()
    fields = dict(line.split(":", 1) for line in status.splitlines())
    return 1024 * int(fields["VmHWM"].split()[0])


def speed(small: bool) -> str:
    """Runs each case in a process of its own; the Markdown of the block."""
    rows = []
    for case in _SMALL_CASES if small else _CASES:
        report.log(f"speed: {case}")
        fields = json.dumps(dataclasses.asdict(case))
        printed = report.command(
            "benchmarks.bench_selection", "speed", "--case", fields
        )
        result = json.loads(printed.splitlines()[-1])
        tiled, matrices = result["tiled"], result.get("matrices")
        both = ["-", "-"]
        if matrices:
            ratios = np.divide(matrices, tiled)
            both = [report.spread(matrices), report.spread([*ratios])]
        rows.append(
            [
                case.loss,
                f"{case.super_batch_size:,}",
                f"{case.batch_size:,}",
                case.dim,
                report.spread(tiled),
                *both,
                f"{result['peak_gb']:.2f}",
            ]
        )
    header = ["loss", "B", "b", "D", "`select_jointly`, s", "matrices, s"]
    return f"""## How fast, and in how much memory

    {_COMMAND} speed

`select_jointly` in a `tf.function`: learnability, 16 chunks, random unit-norm
float32 embeddings. Algorithm 1 as printed forms two float32 matrices [B, B] of
pair losses and makes two products with an indicator a chunk: on the same noise,
in turn in one process. Three numbers are the lowest, the median and the highest
of the repeats. The peak is the highest resident memory of the process,
TensorFlow, the embeddings and the matrices included.

{report.table([*header, "ratio", "peak GB"], rows)}

{report.environment()}"""


if __name__ == "__main__":
    main()
