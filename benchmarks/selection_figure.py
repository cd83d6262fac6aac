"""Learnability of the sub-batches that joint selection draws.

Repeats figure 2 of Evans et al. 2024 (arXiv 2406.17711): learnability against
the number of chunks, the iterations of a Gibbs sampler, which lives here alone,
and the filter ratio. Nothing is trained here.
"""

import dataclasses
import functools
import pathlib

import numpy as np
import tensorflow as tf

from benchmarks import report
from jest_tf import selection
from jest_tf.data import batches as batches_lib
from jest_tf.data import stores
from jest_tf.embeddings import Embeddings
from jest_tf.models import reference
from jest_tf.runs import loading

POOL = "examples/icontext_mini/pool-*.tfrecord"

# Figure 2 of the paper, digitised from the picture, +-0.01.
_PAPER_CHUNKS = {1: 0.00, 2: 0.69, 4: 0.89, 8: 0.96, 16: 0.99, 32: 1.00}
_PAPER_GIBBS = {1: 0.14, 10: 0.19, 30: 0.27, 100: 0.43, 300: 0.70, 1000: 0.94}
_PAPER_GIBBS |= {2000: 1.00}
_PAPER_RATIOS = {0.0: 0.00, 0.5: 1.00, 0.8: 1.12, 0.9: 1.15}


@dataclasses.dataclass(frozen=True)
class FigureSizes:
    """How much `figure` computes.

    Attributes:
        batch_size: b, the same at every filter ratio, as in the paper.
        num_seeds: super-batches drawn of each kind of embeddings.
        gibbs_iterations: the mean over their second half is the plateau.
    """

    batch_size: int = 512
    num_seeds: int = 10
    gibbs_iterations: int = 8_000


def synthetic(regime: str, num_rows: int, seed: int) -> tuple:
    """Clustered embeddings in 64 dimensions: a learner's and a reference's.

    An embedding is a direction that the rows of a cluster share, plus one that
    the image and the text of a row share, plus noise of each tower, normalised;
    every fifth text belongs to another row. The reference sees both parts
    clearly. A "late" learner sees the clusters but the row itself less well,
    and is about as sharp; an "early" one sees little, and still has the
    temperature and bias that SigLIP starts from.

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


def embed_runs(workdir: str, reference_workdir: str, data: str) -> tuple:
    """The embeddings that two finished runs give all records of `data`."""
    store = stores.open_store([data])
    both = []
    for folder in (workdir, reference_workdir):
        run = loading.load(folder)
        embed = tf.function(reference.frozen(run.learner))
        batches = batches_lib.examples(
            store,
            batch_size=512,
            tokenizer=run.tokenizer,
            image_size=run.config.data.image_size,
        )
        parts = [embed(batch) for batch in batches]
        both.append(
            Embeddings(
                np.concatenate([part.image for part in parts]),
                np.concatenate([part.text for part in parts]),
                *(value.numpy() for value in parts[0][2:]),
            )
        )
    return tuple(both)


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

    Starts from a uniform draw. One iteration takes a member at random out and
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


def measure_figure(embeddings: tuple, sizes: FigureSizes, seed: int) -> dict:
    """One super-batch's values, normalised as in the paper's figure.

    0 is the expectation of a uniform draw and 1 the Gibbs sampler's plateau,
    both at filter ratio 0.5. A filter ratio f draws the same b rows from the
    first b / (1 - f).

    Args:
        embeddings: learner's and reference's, of 10 b rows or more.
        sizes: how much to compute.
        seed: of the draws.

    Returns:
        "chunks", "gibbs" and "ratios", each a value by setting; "uniform",
        "plateau" and "plateau_sd" not normalised.
    """
    batch_size, half = sizes.batch_size, 2 * sizes.batch_size

    def joint(size, num_chunks):
        pool = [_take(model, slice(size)) for model in embeddings]
        noise_seed = tf.constant([seed, size])
        rows = _draw(*pool, noise_seed, batch_size, num_chunks).numpy()
        return pair_scores(*(_take(model, rows) for model in pool)).sum()

    scores = pair_scores(*(_take(model, slice(half)) for model in embeddings))
    trace = gibbs(scores, batch_size, sizes.gibbs_iterations, seed)
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
        "uniform": uniform,
        "plateau": plateau,
        "plateau_sd": settled.std(),
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


def run(
    workdirs: tuple[str, str] | None,
    small: bool,
    picture: pathlib.Path | None,
    command: str,
) -> str:
    """Measures all kinds of embeddings; the Markdown of the block.

    Args:
        workdirs: the finished runs of learner and reference, if any.
        small: seconds instead of minutes, and no news.
        picture: where the figure goes, if anywhere.
        command: what the block says that it was made by.
    """
    sizes = FigureSizes(32, 2, 800) if small else FigureSizes()
    num_rows = 10 * sizes.batch_size
    kinds = {
        "synthetic, late": lambda seed: synthetic("late", num_rows, seed),
        "synthetic, early": lambda seed: synthetic("early", num_rows, seed),
    }
    if workdirs:
        pair = embed_runs(*workdirs, POOL)

        def real(seed):
            random = np.random.default_rng([seed, 2])
            rows = random.permutation(len(pair[0].image))[:num_rows]
            return tuple(_take(model, rows) for model in pair)

        kinds["trained towers"] = real
    results = {}
    for kind, make in kinds.items():
        results[kind] = []
        for seed in range(sizes.num_seeds):
            report.log(f"figure: {kind}, seed {seed}")
            results[kind].append(measure_figure(make(seed), sizes, seed))
    if picture:
        _plot(results, picture)
    command += " figure" + " --small" * small
    if workdirs:
        # As the quickstart names its runs, wherever these lie.
        command += " --workdir runs/uniform --reference runs/reference"
    return _markdown(results, sizes, command)


def _markdown(results, sizes, command):
    b = sizes.batch_size
    tables = []
    for sweep, name, paper in (
        ("chunks", "chunks N", _PAPER_CHUNKS),
        ("gibbs", "Gibbs iterations", _PAPER_GIBBS),
        ("ratios", "filter ratio", _PAPER_RATIOS),
    ):
        settings = list(next(iter(results.values()))[0][sweep])
        rows = [["paper, digitised", *(f"{paper[s]:.2f}" for s in settings)]]
        for kind, runs in results.items():
            cells = ([run[sweep][s] for run in runs] for s in settings)
            rows.append([kind, *map(report.mean_range, cells)])
        tables.append(report.table([name, *settings], rows))
    absolute = [
        [
            kind,
            *(
                report.mean_range([run[name] for run in runs])
                for name in _ABSOLUTE
            ),
        ]
        for kind, runs in results.items()
    ]
    header = ["", "uniform", "Gibbs plateau", "its standard deviation"]
    return f"""## How learnable the sub-batch is

    {command}

![Learnability of the sub-batch](figures/selection.png)

Learnability of the sub-batch, 0 for a uniform draw (its exact expectation) and
1 for the plateau of a Gibbs sampler at filter ratio 0.5. The cells give the
mean over {sizes.num_seeds} seeds and in brackets the lowest and the highest.
b = {b} rows always, from b / (1 - f) at filter ratio f, as in the paper, whose
b is 32,768. The paper's numbers are read off its figure 2, +-0.01.

At filter ratio 0.5:

{tables[0]}

One iteration of the sampler takes a member at random out of the sub-batch and
draws its successor given all others; the paper doesn't say what its iteration
is. It samples p proportional to exp(sum of S over the pairs), and does not
maximise, so more than 1 is possible.

{tables[1]}

With N = 16 chunks:

{tables[2]}

Not normalised (sum of S over the pairs, by row):

{report.table(header, absolute)}

- synthetic: 64 clusters in 64 dimensions, a fifth of the texts belong to other
  rows; the late learner sees the clusters, the early one hardly
  (`selection_figure.synthetic`).
- trained towers: the learner and the reference that the quickstart trains, on
  its pool, `{POOL}`; a seed draws the rows.

{report.environment()}"""


_ABSOLUTE = ("uniform", "plateau", "plateau_sd")


def _plot(results, path):
    """Both panels: chunks and iterations on the left, ratios on the right."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import lines, pyplot

    paper = {
        "chunks": _PAPER_CHUNKS,
        "gibbs": _PAPER_GIBBS,
        "ratios": _PAPER_RATIOS,
    }
    everything = {"paper": [paper], **results}
    colours = dict(zip(everything, ("black", "C0", "C1", "C2"), strict=False))
    figure, (left, right) = pyplot.subplots(
        1, 2, figsize=(10.5, 4.2), width_ratios=(1.5, 1)
    )
    for panel, sweep, style in (
        (left, "chunks", "o-"),
        (left, "gibbs", "s:"),
        (right, "ratios", "o-"),
    ):
        for kind, runs in everything.items():
            settings = [s for s in paper[sweep] if s in runs[0][sweep]]
            values = np.array(
                [[run[sweep][s] for s in settings] for run in runs]
            )
            options = {"color": colours[kind], "zorder": 2 + (kind == "paper")}
            panel.plot(settings, values.mean(0), style, ms=4.5, **options)
            panel.fill_between(
                settings,
                values.min(0),
                values.max(0),
                alpha=0.15,
                lw=0,
                **options,
            )
    left.set_xscale("log")
    left.xaxis.set_major_formatter("{x:,.0f}")
    left.set_xlabel("chunks N, or Gibbs iterations (filter ratio 0.5)")
    left.set_ylabel("learnability: uniform 0, Gibbs 1")
    right.set_xlabel("filter ratio (16 chunks)")
    for panel in (left, right):
        panel.axhline(0, color="0.6", lw=0.8, zorder=1)
        panel.axhline(1, color="0.6", lw=0.8, zorder=1)
        panel.spines[["top", "right"]].set_visible(False)
    samplers = [
        lines.Line2D(
            [], [], color="0.4", marker=style[0], ls=style[1], label=name
        )
        for style, name in (("o-", "joint selection"), ("s:", "Gibbs sampler"))
    ]
    left.legend(
        handles=samplers,
        frameon=False,
        loc="lower right",
        bbox_to_anchor=(1.0, 0.12),
    )
    names = [
        lines.Line2D([], [], color=colours[kind], lw=2.5, label=kind)
        for kind in everything
    ]
    right.legend(handles=names, frameon=False, loc="upper left")
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
