"""How well runs agree with people on photographs and captions of flickr8k.

    python -m benchmarks.phototext.judgements --work photos-work
    python -m benchmarks.phototext.judgements --learner part70_jest_350-1

The data has 5,822 pairs that three experts gave marks from 1 to 4, and 47,830
with the share of a crowd that says yes. All their photographs and captions are
of flickr8k's official test, so neither learners nor references have trained on
them (`stats.json` has the counts).

| score of a pair | of |
| --- | --- |
| similarity | the cosine of its photograph and its caption |
| easy_reference, learnability | its losses in a batch of judged pairs |

| judges | measure |
| --- | --- |
| experts | Kendall's tau-c with each mark, and Spearman's correlation |
| crowd | Kendall's tau-b with the share of yes, and Spearman's correlation |

The taus are those published for CLIPScore (arXiv 2104.08718), where experts'
marks count one by one and the 158 pairs of a photograph with its own caption
are left out. Intervals have 95 % of 500 resamples of the photographs. Lines of
`WORK/results/photos/judgements.csv` with the same runs are replaced.
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
RESAMPLES = 500
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
    try:
        judged = read(options.work / "photos")
        models = {
            pathlib.Path(name).name: jest_tf.load(
                options.work / "runs" / name, trust=True
            )
            for name in names
        }
    except (OSError, ValueError) as error:
        raise SystemExit(f"error: {error}") from error
    table = measure(judged, *models.items())
    write(options.work / "results" / "photos" / "judgements.csv", table)
    print(report.table(table.columns, table.round(4).to_numpy()))


def read(data):
    """The judged pairs of a data folder, a DataFrame.

    It has the columns of `sources.Judged`, and `image`, bytes of a JPEG.

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
    judged = pd.read_csv(path, keep_default_na=False)
    images = {record.row.name: record.png for record in shards.read(shard)}
    judged["image"] = [images[name] for name in judged["photograph"]]
    judged["ratings"] = [
        [float(rating) for rating in ratings.split()]
        for ratings in judged["ratings"].astype(str)
    ]
    return judged[(judged["judges"] != "experts") | ~judged["is_own"]]


def measure(judged, reference, learner=None):
    """The agreement of runs' scores with people, a DataFrame.

    Args:
        judged: as of `read`.
        reference, learner: name and `jest_tf.Embedder` of a run.
    """
    runs = [run for run in (reference, learner) if run]
    rows = []
    for judges, pairs in judged.groupby("judges", sort=False):
        embedded = [embed(model, pairs) for _, model in runs]
        found = [
            (run, "", "similarity", np.sum(of_run.image * of_run.text, axis=1))
            for run, of_run in zip(runs, embedded, strict=True)
        ]
        losses = pair_losses(*embedded, loss=_loss(runs[-1][1].config))
        for criterion in ("easy_reference", "learnability")[: len(runs)]:
            score = tables.criterion(criterion).score(losses)
            of = "" if criterion == "easy_reference" else reference[0]
            found.append((learner if of else reference, of, criterion, score))
        for (name, model), of, criterion, scores in found:
            settings = {"steps": model.config.steps, "seed": model.config.seed}
            for kind, value in agreement(scores, pairs, judges).items():
                key = dict(
                    zip(_KEY, (name, of, criterion, judges, kind), strict=True)
                )
                count = {"count": len(pairs)}
                rows.append(key | settings | value._asdict() | count)
    return pd.DataFrame(rows)


def embed(model, pairs):
    """`jest_tf.Embeddings` of pairs by a run's `jest_tf.Embedder`."""
    sides = []
    for column, encode in (
        ("image", model.embed_images),
        ("caption", model.embed_texts),
    ):
        places, distinct = pd.factorize(pairs[column])
        sides.append(encode(distinct)[places])
    return jest_tf.Embeddings(*sides, model.scale, model.bias)


def pair_losses(reference, learner=None, *, loss):
    """The losses of pairs in random batches, float32 [n] by model.

    A loss is the pair's share of the loss of its batch. All batches have as
    many pairs; some pairs are in two, to fill the last one, and count there.

    Args:
        reference, learner: `jest_tf.Embeddings` of n pairs.
        loss: as in `config.SelectionConfig`.
    """
    count = len(reference.image)
    size = min(BATCH_SIZE, count)
    order = np.random.default_rng(0).permutation(count)
    order = np.resize(order, (-(-count // size), size))
    found = {"reference": np.zeros(count, np.float32)}
    if learner:
        found["learner"] = np.zeros(count, np.float32)
    for rows in order:
        batch = [
            model
            and model._replace(image=model.image[rows], text=model.text[rows])
            for model in (learner, reference)
        ]
        # A draw of all pairs, which reports their losses.
        drawn = jest_tf.select_jointly(
            *batch,
            batch_size=size,
            num_chunks=1,
            seed=(0, 0),
            criterion="easy_reference",
            loss=loss,
        )
        for model, values in found.items():
            values[rows] = getattr(drawn, f"{model}_loss")
    return found


def agreement(scores, pairs, judges):
    """Kendall's tau and Spearman's correlation, `measures.Estimate`s by name.

    Args:
        scores: float [n].
        pairs: DataFrame of n judged pairs.
        judges: "experts" or "crowd".
    """
    variant = _KENDALL[judges]
    counts = pairs["ratings"].map(len)
    scores = np.repeat(scores, counts)
    ratings = np.concatenate(pairs["ratings"].to_numpy())
    photographs, names = pd.factorize(np.repeat(pairs["photograph"], counts))
    taus, correlations = [], []
    for weights in measures.weights(len(names))[: 1 + RESAMPLES]:
        rows = np.repeat(
            np.arange(len(scores)), weights[photographs].astype(int)
        )
        sides = scores[rows], ratings[rows]
        taus.append(stats.kendalltau(*sides, variant=variant).statistic)
        correlations.append(stats.spearmanr(*sides).statistic)
    return {
        f"tau_{variant}": measures.estimate(np.array(taus)),
        "spearman": measures.estimate(np.array(correlations)),
    }


def write(path, table):
    """Adds lines to a CSV file; lines with the same key are replaced."""
    if path.exists():
        old = pd.read_csv(path, keep_default_na=False)
        table = pd.concat([old, table]).drop_duplicates(_KEY, keep="last")
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = path.with_suffix(".part")
    table.to_csv(whole, index=False)
    whole.replace(path)


def _loss(config):
    return config.selection.loss or config.model.loss


if __name__ == "__main__":
    main()
