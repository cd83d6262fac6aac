"""Pictures that runs chose most often, beside some that they were offered.

    python -m benchmarks.icontext.gallery --work icontext-work --runs best-0

Writes gallery_<run>.png beside the results, for the report. It needs the runs,
which must have logged their draws, and their data.
"""

import argparse
import collections
import io
import pathlib
import sys
import textwrap

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt  # noqa: E402
import numpy as np  # noqa: E402

from benchmarks.icontext import results  # noqa: E402
from jest_tf import config as config_lib  # noqa: E402
from jest_tf.data import stores  # noqa: E402
from jest_tf.runs import log  # noqa: E402

ROWS, COLUMNS = 3, 12
_RUNS = "best-0", "easy-0", "jest_2500-1"
_SEED = 0
_DPI = 110


def main(arguments=None):
    """Parse the flags and draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", default="icontext-work")
    parser.add_argument("--runs", nargs="+", default=_RUNS)
    parser.add_argument("--results", default=str(results.FOLDER))
    options = parser.parse_args(arguments)
    for run in options.runs:
        workdir = results.find_run(options.work, run)
        if workdir is None:
            print(f"no run {run!r} in {options.work!r}", file=sys.stderr)
            continue
        draw(workdir, pathlib.Path(options.results) / f"gallery_{run}.png")


def draw(workdir, path):
    """Draw the gallery of a run into a PNG file."""
    config = config_lib.load_config(workdir / "config.json")
    store = stores.open_stores(config.data)
    counts = collections.Counter()
    for line in log.read_log(workdir / "draws.jsonl"):
        counts.update(line["ids"])
    ids = store.ids(np.arange(len(store)))
    places = {int(key): place for place, key in enumerate(ids)}
    size = ROWS * COLUMNS
    # Of equal counts the smaller id, so that the choice is always the same.
    most = sorted(counts, key=lambda key: (-counts[key], key))[:size]
    offered = np.random.default_rng(_SEED).choice(len(store), size, False)
    halves = (
        ("chosen most often, of the logged draws", [places[k] for k in most]),
        ("of all that was offered, at random", np.sort(offered).tolist()),
    )
    figure = plt.figure(figsize=(COLUMNS * 1.25, 2 * ROWS * 1.55))
    for part, (title, rows) in zip(
        figure.subfigures(2, 1), halves, strict=True
    ):
        part.suptitle(title, x=0.01, y=0.98, ha="left", fontsize=11)
        axes = part.subplots(ROWS, COLUMNS)
        for axis, record in zip(
            axes.flat, store.read(np.array(rows)), strict=False
        ):
            _show(axis, record)
        part.subplots_adjust(0.01, 0.01, 0.99, 0.86, 0.1, 0.5)
    figure.savefig(path, dpi=_DPI)
    plt.close(figure)


def _show(axis, record):
    caption = record.captions[0].decode("utf-8", "replace")
    lines = textwrap.wrap(
        caption.replace("$", r"\$"), 18, max_lines=2, placeholder=" …"
    )
    axis.imshow(plt.imread(io.BytesIO(record.image), "png"), cmap="gray")
    axis.set_title("\n".join(lines), fontsize=7)
    axis.axis("off")


if __name__ == "__main__":
    main()
