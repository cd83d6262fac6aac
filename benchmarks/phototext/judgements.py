"""How well runs agree with people on photographs and captions of flickr8k.

    python -m benchmarks.phototext.judgements --work photos-work
    python -m benchmarks.phototext.judgements --learner part70_jest_350-1

Three experts gave 5,822 pairs marks from 1 to 4, and a crowd said yes or no to
47,830. All photographs and captions are of the official test, so no run has
trained on them (`stats.json` has counts). Scores of a pair are its `similarity`
to a run, a cosine, and the criteria `easy_reference` and `learnability` of its
losses in a batch of judged pairs.

Measures are Spearman's correlation and the Kendall taus published for CLIPScore
(arXiv 2104.08718): tau-c with each mark of the experts, without the 158 pairs
of a photograph and its own caption, and tau-b with the crowd's share of yes.
Intervals cover 95 % of 500 resamples of photographs. Lines go to
`WORK/results/photos/judgements.csv`, in place of those of the same runs.
"""

import argparse
import pathlib

import numpy as np
import pandas as pd
from scipy import stats

import jest_tf
from benchmarks import report
from benchmarks.icontext import shards
from benchmarks.phototext import build, cells
from benchmarks.protocol import measures
from jest_tf.config import tables

BATCH_SIZE = 256  # of pairs that are each other's negatives, as in training
_RESAMPLES = 500
_KENDALL = {"experts": "c", "crowd": "b"}
_KEY = ["run", "reference", "criterion", "judges", "measure"]


def main(arguments=None):
    """Parse the flags, measure, write and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add = parser.add_argument
    add("--work", type=pathlib.Path, default="photos-work")
    add("--reference", default=f"{cells.REFERENCE}-0", help="of WORK/runs")
    add("--learner", help="of WORK/runs; without, the reference alone")
    options = parser.parse_args(arguments)
    names = [name for name in (options.reference, options.learner) if name]
    folders = [options.work / "runs" / name for name in names]
    try:
        judged = read(options.work / "photos")
        runs = [
            (folder.name, jest_tf.load(folder, trust=True))
            for folder in folders
        ]
    except (OSError, ValueError) as error:
        raise SystemExit(f"error: {error}") from error
    table = measure(judged, *runs)
    print(report.table(table.columns, table.round(4).to_numpy()))
    path = options.work / "results" / "photos" / "judgements.csv"
    if path.exists():
        old = pd.read_csv(path, keep_default_na=False)
        table = pd.concat([old, table]).drop_duplicates(_KEY, keep="last")
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = path.with_suffix(".part")
    table.to_csv(whole, index=False)
    whole.replace(path)


def read(data):
    """The pairs of a data folder, a DataFrame as `sources.Judged` with `image`.

    Raises:
        FileNotFoundError: the folder lacks judgements or tests.
    """
    path = data / build.JUDGEMENTS
    shard = data / "test_flickr8k-00000-of-00001.tfrecord"
    for needed in (path, shard):
        if not needed.exists():
            raise FileNotFoundError(
                f"'{needed}' must be of the data. Received: no such file; "
                f"remove '{data}' and build it anew with `make photos-data`"
            )
    judged = pd.read_csv(path, dtype={"ratings": str}, keep_default_na=False)
    images = {record.row.name: record.png for record in shards.read(shard)}
    judged["image"] = [images[name] for name in judged["photograph"]]
    judged["ratings"] = [
        np.array(ratings.split(), float) for ratings in judged["ratings"]
    ]
    return judged[(judged["judges"] != "experts") | ~judged["is_own"]]


def measure(judged, reference, learner=None):
    """The agreement of scores with people, a DataFrame with a line for each.

    Args:
        judged: as of `read`.
        reference, learner: name and `jest_tf.Embedder` of a run.
    """
    runs = [run for run in (reference, learner) if run]
    config = runs[-1][1].config
    loss = config.selection.loss or config.model.loss
    rows = []
    for judges, pairs in judged.groupby("judges", sort=False):
        embedded = [_embedded(model, pairs) for _, model in runs]
        losses = pair_losses(*embedded, loss=loss)
        scores = [
            (run, "", "similarity", np.sum(of_run.image * of_run.text, axis=1))
            for run, of_run in zip(runs, embedded, strict=True)
        ] + [
            (run, of, criterion, tables.criterion(criterion).score(losses))
            for run, of, criterion in (
                (reference, "", "easy_reference"),
                (learner, reference[0], "learnability"),
            )
            if run
        ]
        for (name, model), of, criterion, values in scores:
            found = agreement(values, pairs, _KENDALL[judges])
            for kind, estimate in found.items():
                names = (name, of, criterion, judges, kind)
                rows.append(
                    dict(zip(_KEY, names, strict=True))
                    | {"steps": model.config.steps, "seed": model.config.seed}
                    | estimate._asdict()
                    | {"count": len(pairs)}
                )
    return pd.DataFrame(rows)


def pair_losses(reference, learner=None, *, loss):
    """Losses of n pairs in random batches of one size, float32 [n] by model.

    Some pairs are in two batches, to fill the last one, and count there.
    Models are `jest_tf.Embeddings`, the loss is as in `SelectionConfig`.
    """
    count = len(reference.image)
    size = min(BATCH_SIZE, count)
    order = np.random.default_rng(0).permutation(count)
    found = {
        name: np.zeros(count, np.float32)
        for name, model in (("reference", reference), ("learner", learner))
        if model
    }
    for rows in np.resize(order, (-(-count // size), size)):
        batch = [
            model
            and jest_tf.Embeddings(*(x[rows] for x in model[:2]), *model[2:])
            for model in (learner, reference)
        ]
        # A draw of all pairs reports their losses.
        drawn = jest_tf.select_jointly(
            *batch,
            **{"batch_size": size, "num_chunks": 1, "seed": (0, 0)},
            **{"criterion": "easy_reference", "loss": loss},
        )
        for name, losses in found.items():
            losses[rows] = getattr(drawn, f"{name}_loss")
    return found


def agreement(scores, pairs, variant):
    """Kendall's tau of a variant and Spearman's, `measures.Estimate` by name.

    Args:
        scores: float [n].
        pairs: DataFrame of n judged pairs, each with one or more ratings.
        variant: "b" or "c".
    """
    counts = pairs["ratings"].map(len)
    scores, names = (
        np.repeat(scores, counts),
        pairs["photograph"].repeat(counts),
    )
    ratings = np.concatenate([*pairs["ratings"]])
    photographs, distinct = pd.factorize(names)
    found = {f"tau_{variant}": [], "spearman": []}
    for weights in measures.weights(len(distinct))[: 1 + _RESAMPLES]:
        times = weights[photographs].astype(int)
        sides = np.repeat(scores, times), np.repeat(ratings, times)
        tau, spearman = found.values()
        tau.append(stats.kendalltau(*sides, variant=variant).statistic)
        spearman.append(stats.spearmanr(*sides).statistic)
    return {
        name: measures.estimate(np.array(values))
        for name, values in found.items()
    }


def _embedded(model, pairs):
    sides = []
    for name, embed in (
        ("image", model.embed_images),
        ("caption", model.embed_texts),
    ):
        places, distinct = pd.factorize(pairs[name])
        sides.append(embed(distinct)[places])
    return jest_tf.Embeddings(*sides, model.scale, model.bias)


if __name__ == "__main__":
    main()
