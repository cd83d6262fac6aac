"""Measures of a learner on every record of a store."""

import functools
import os
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jest_tf import config as config_lib
from jest_tf.data import reader
from jest_tf.data import stores as stores_lib
from jest_tf.evaluation import embedding, retrieval, zero_shot

MEASURES = (*retrieval.MEASURES, *zero_shot.MEASURES)


class StoreEmbeddings(NamedTuple):
    """A learner's embeddings of a store.

    Attributes:
        images: float32 [N, D], of every record.
        image_groups: [N], the concept of each image or, if none, its id.
        texts: float32 [M, D], of the distinct first captions.
        text_groups: [M], of the same kind.
        labels: bytes [N], b"" where an image has none.
        class_names: bytes [C], the distinct labels, sorted.
        classes: float32 [C, D], of the labels in prompts.
    """

    images: np.ndarray
    image_groups: list
    texts: np.ndarray
    text_groups: list
    labels: np.ndarray
    class_names: np.ndarray
    classes: np.ndarray


class StoreEvaluation:
    """Evaluates a learner on a store repeatedly; reads and traces once.

    Retrieval is between all images and the distinct first captions; a group is
    the records of a `concept`, or a record without a concept. Zero-shot is over
    the distinct labels, if any, and the images that have a label.
    """

    def __init__(
        self,
        encoder: embedding.Encoder,
        store: stores_lib.Store,
    ):
        self._encoder = encoder
        self._store = store
        columns = store.columns(["caption", "concept", "label", "id"])
        self._groups = [
            ("concept", concept) if concept else ("id", str(number).encode())
            for concept, number in zip(
                columns["concept"], columns["id"], strict=True
            )
        ]
        captions = [
            _first_caption(store, row, texts)
            for row, texts in enumerate(columns["caption"])
        ]
        # A dict is a set that keeps its order.
        self._texts = list(
            dict.fromkeys(zip(captions, self._groups, strict=True))
        )
        self._labels = columns["label"]

    @functools.cached_property
    def chance(self) -> dict[str, float]:
        """The headline measures of a model that guesses at random."""
        _, groups = zip(*self._texts, strict=True)
        classes = len(np.unique(self._labels[self._labels != b""]))
        return retrieval.chance(self._groups, groups) | (
            {"zero_shot/accuracy@1": 1 / classes} if classes else {}
        )

    def embed(self) -> StoreEmbeddings:
        """Embeds the store with the current weights.

        Raises:
            ValueError: a record has no picture that can be decoded.
        """
        images = self._encoder.images(self._store)
        captions, text_groups = zip(*self._texts, strict=True)
        texts = self._encoder.texts(captions)
        names = np.unique(self._labels[self._labels != b""])
        classes = np.zeros([0, images.shape[1]], np.float32)
        if len(names):
            classes = zero_shot.class_embeddings(
                self._encoder.texts,
                [name.decode("utf-8", "replace") for name in names],
            )
        return StoreEmbeddings(
            images,
            self._groups,
            texts,
            list(text_groups),
            self._labels,
            names,
            classes,
        )

    def measure(self) -> dict[str, float]:
        """Returns `MEASURES`; zero-shot measures only if there are labels."""
        found = self.embed()
        results = retrieval.retrieval_measures(
            found.images, found.texts, found.image_groups, found.text_groups
        )
        labelled = found.labels != b""
        if labelled.any():
            classes = np.searchsorted(found.class_names, found.labels[labelled])
            results |= zero_shot.zero_shot_measures(
                found.images[labelled], classes, found.classes
            )
        return results


def open_stores(
    patterns: Sequence[str | Sequence[str]],
    data: config_lib.DataConfig | None = None,
    setting: str = "evaluation.data",
) -> dict[str, stores_lib.Store]:
    """Opens a store for every pattern, named after its first file.

    Args:
        patterns: paths or globs of shards or tables, or lists of them.
        data: fields and index folder, as `TrainConfig.data`.
        setting: name of the patterns in errors.

    Returns:
        Stores by name: `test` for `data/test-00000-of-00002.tfrecord`.

    Raises:
        ValueError: nothing can be read, or two stores share a name.
    """
    data = data or config_lib.DataConfig()
    stores: dict[str, stores_lib.Store] = {}
    for pattern in patterns:
        try:
            store = stores_lib.open_store(
                pattern,
                image_field=data.image_field,
                caption_fields=data.caption_fields,
                index_dir=data.index_dir,
                setting=setting,
            )
        except stores_lib.NoFiles:
            raise
        except ValueError as error:
            raise ValueError(
                f"Evaluation data {pattern} cannot be opened, with image_field "
                f"{data.image_field!r} and caption_fields "
                f"{data.caption_fields} of `data`: {error}"
            ) from error
        file = os.path.basename(store.shards.paths[0])
        name = re.sub(r"(-\d+-of-\d+)?(\.[^.]*)?$", "", file, count=1)
        if name in stores:
            raise ValueError(
                f"Evaluation data must have different names. Received: "
                f"{name!r} twice, from {list(patterns)}"
            )
        stores[name] = store
    return stores


def _first_caption(store, row, captions):
    choices = reader.candidates(captions)
    if not choices:
        raise ValueError(
            "Every record to evaluate on must have a caption that is not "
            f"blank. Received: {store.describe(row)}"
        )
    return captions[choices[0]]
