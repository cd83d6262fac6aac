"""How well runs agree with people on photographs and captions of flickr8k.

    python -m benchmarks.phototext.judgements --work photos-work
    python -m benchmarks.phototext.judgements --learner part70_jest_350-1

Three experts gave 5,822 pairs marks from 1 to 4, and a crowd said yes or no to
47,830. All photographs and captions are of the official test, so no run has
trained on them. A run scores a pair by its cosine, `similarity`, and by the
criteria `easy_reference` and `learnability` in a batch of judged pairs.

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
from benchmarks.phototext import build, cells
from benchmarks.protocol import measures, records
from jest_tf.config import tables

BATCH_SIZE = 256  # of pairs that are each other's negatives, as in training
_RESAMPLES = 500
_KENDALL = {"experts": "c", "crowd": "b"}
_KEY = ["run", "reference", "criterion", "judges", "measure"]
_COLUMNS = [*_KEY, "steps", "seed", "value", "low", "high", "count"]


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
    images = {record.row.name: record.image for record in records.read(shard)}
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
    rows = []
    for judges, pairs in judged.groupby("judges", sort=False):
        embedded = [_embedded(model, pairs) for _, model in runs]
        losses = pair_losses(*embedded, config=runs[-1][1].config)
        scores = [
            (*run, "", "similarity", np.sum(both.image * both.text, axis=1))
            for run, both in zip(runs, embedded, strict=True)
        ] + [
            (*run, of, criterion, tables.criterion(criterion).score(losses))
            for run, of, criterion in (
                (reference, "", "easy_reference"),
                (learner, reference[0], "learnability"),
            )
            if run
        ]
        for name, model, of, criterion, values in scores:
            found = agreement(values, pairs, _KENDALL[judges])
            for kind, estimate in found.items():
                key = name, of, criterion, judges, kind
                facts = model.config.steps, model.config.seed
                rows.append((*key, *facts, *estimate, len(pairs)))
    return pd.DataFrame(rows, columns=_COLUMNS)


def pair_losses(reference, learner=None, *, config):
    """Losses of n pairs in random batches of one size, float32 [n] by model.

    Some pairs are in two batches, to fill the last one, and count there.
    Models are `jest_tf.Embeddings`; the loss is of a run's settings.
    """
    size = min(BATCH_SIZE, len(reference.image))
    order = np.random.default_rng(0).permutation(len(reference.image))
    models = {"reference": reference} | (
        {"learner": learner} if learner else {}
    )
    found = {name: np.zeros(len(order), np.float32) for name in models}
    for rows in np.resize(order, (-(-len(order) // size), size)):
        batch = {
            name: model._replace(image=model.image[rows], text=model.text[rows])
            for name, model in models.items()
        }
        # A draw of all pairs reports their losses.
        drawn = jest_tf.select_jointly(
            **{"learner": None} | batch,
            **{"batch_size": size, "num_chunks": 1, "seed": (0, 0)},
            criterion="easy_reference",
            loss=config.selection.loss or config.model.loss,
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
    scores, ratings = np.repeat(scores, counts), np.hstack(pairs["ratings"])
    places, names = pd.factorize(pairs["photograph"].repeat(counts))
    found = []
    for weights in measures.weights(len(names))[: 1 + _RESAMPLES]:
        times = weights[places].astype(int)
        sides = np.repeat(scores, times), np.repeat(ratings, times)
        tau = stats.kendalltau(*sides, variant=variant).statistic
        found.append((tau, stats.spearmanr(*sides).statistic))
    kinds = f"tau_{variant}", "spearman"
    return dict(
        zip(kinds, map(measures.estimate, np.transpose(found)), strict=True)
    )


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
