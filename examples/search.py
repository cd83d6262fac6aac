"""Searches a folder of pictures by text, with TensorFlow and without `jest_tf`.

    python examples/search.py exported/best photos 'a red car' house \
        --figure search.png

Prints the best hits of each query and draws them, a row per query.
"""

import argparse
import pathlib
from collections.abc import Sequence

import numpy as np
import tensorflow as tf
import tensorflow_text  # noqa: F401  Registers the tokenizer's operations.
from matplotlib import figure as mpl_figure

BATCH, HITS = 256, 10


def main(argv: Sequence[str] | None = None) -> None:
    """Parses the flags, searches, prints and draws."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="a SavedModel of `jest-tf export`")
    parser.add_argument("folder", help="of JPEG, PNG or WebP pictures")
    parser.add_argument("queries", nargs="+", help="texts to search for")
    parser.add_argument("--figure", required=True, help="figure to write")
    flags = parser.parse_args(argv)
    model = tf.saved_model.load(flags.model)
    paths = sorted(pathlib.Path(flags.folder).iterdir())
    texts = model.embed_texts(tf.constant(flags.queries))["embeddings"]
    cosines = texts @ embed(model, paths).T
    scores, rows = tf.math.top_k(cosines, min(HITS, len(paths)))
    hits = [[paths[row] for row in found] for found in rows.numpy()]
    for query, best, files in zip(flags.queries, scores, hits, strict=True):
        names = " ".join(file.name for file in files[:3])
        print(f"{query:20} {best[0]:.2f}  {names}")
    draw(flags.figure, flags.queries, hits)


def embed(model, paths: Sequence[pathlib.Path]) -> np.ndarray:
    """Embeds picture files, a batch at a time: float32 [n, D]."""
    parts = []
    for start in range(0, len(paths), BATCH):
        encoded = [path.read_bytes() for path in paths[start : start + BATCH]]
        parts.append(model.embed_images(tf.constant(encoded))["embeddings"])
    return np.concatenate(parts)


def draw(figure_path: str, queries: Sequence[str], hits) -> None:
    """Draws a row of hits for each query, best first."""
    size = (0.8 * HITS, 0.95 * len(queries))
    figure = mpl_figure.Figure(figsize=size, layout="constrained")
    grid = figure.subplots(len(queries), HITS, squeeze=False)
    for row, query, files in zip(grid, queries, hits, strict=True):
        row[0].set_title(query, loc="left", fontsize=9)
        for axes, file in zip(row, files, strict=False):
            image = tf.io.decode_image(file.read_bytes(), channels=3)
            axes.imshow(image, interpolation="nearest")
        for axes in row:
            axes.set_axis_off()
    figure.savefig(figure_path, dpi=120)


if __name__ == "__main__":
    main()
