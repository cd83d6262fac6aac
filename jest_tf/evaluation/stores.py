"""How good a learner's embeddings are: retrieval and zero-shot classification.

As in the JEST paper's tables (arXiv 2406.17711) and CLIP (arXiv 2103.00020):
image-to-text and text-to-image recall, and accuracy with class names as
prompts. The measures are exact, on the host, a block of queries at a time, so
no matrix of all images by all texts is held.

Ties are broken at random and what is returned is the expectation, so a learner
that maps everything to one point scores exactly chance.

Not here: few-shot probes, and the loss on held-out data (`JESTModel.evaluate`).
"""

import json
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from jest_tf import config as config_lib
from jest_tf import models
from jest_tf.data import pipeline, preprocessing, reader
from jest_tf.data import stores as stores_lib
from jest_tf.runs import checkpoints
from jest_tf.runs import log as log_lib

_RECALLS = (1, 5, 10)
_ACCURACIES = (1, 5)
# Scores are [queries of a block, candidates]; 256 x 25,000 (the captions of
# COCO's validation images) is 50 MB in float64.
_BLOCK_SIZE = 256
_MAX_PIXELS = config_lib.DataConfig.max_image_pixels


def retrieval(
    image_embeddings: np.ndarray,
    text_embeddings: np.ndarray,
    image_groups: Sequence,
    text_groups: Sequence,
    *,
    block_size: int = _BLOCK_SIZE,
) -> dict[str, float]:
    """Recall and mean reciprocal rank, from images to texts and back.

    An image and a text match if they are of one group; a query is answered at
    the rank of its first match. Recall@k is the share of queries answered in
    the first k, MRR the mean of 1 / rank.

    Args:
        image_embeddings: float [N, D]; the score is the inner product.
        text_embeddings: float [M, D].
        image_groups: [N] integers or strings.
        text_groups: [M], of the same kind.
        block_size: queries scored at a time.

    Returns:
        `image_to_text/recall@1`, `@5`, `@10`, `image_to_text/mrr`, and the
        same of `text_to_image`, each in [0, 1].

    Raises:
        ValueError: on shapes that do not fit, embeddings that are not finite,
            or a query without a match on the other side.
    """
    results = {}
    for name, queries in _directions(
        image_embeddings, text_embeddings, image_groups, text_groups
    ):
        places = _places(name, *queries, block_size)
        for k in _RECALLS:
            results[f"{name}/recall@{k}"] = _recall(places, k)
        results[f"{name}/mrr"] = _expect(places, lambda ranks: 1 / ranks)
    return results


def ranks(
    image_embeddings: np.ndarray,
    text_embeddings: np.ndarray,
    image_groups: Sequence,
    text_groups: Sequence,
    *,
    block_size: int = _BLOCK_SIZE,
) -> dict[str, np.ndarray]:
    """The rank at which every query is answered, for statistics of one's own.

    Args:
        image_embeddings: as of `retrieval`; the others likewise.

    Returns:
        `image_to_text`, float64 [N], and `text_to_image`, float64 [M]: the
        expected rank of a query's first match, 1 for the best. It is whole
        unless scores are tied.

    Raises:
        ValueError: as `retrieval`.
    """
    found = {}
    for name, queries in _directions(
        image_embeddings, text_embeddings, image_groups, text_groups
    ):
        above, tied, matching = _places(name, *queries, block_size)
        # Of t misses among t + m in random order, t / (m + 1) come before the
        # first of the m matches.
        found[name] = above + 1 + tied / (matching + 1)
    return found


def zero_shot(
    image_embeddings: np.ndarray,
    image_classes: np.ndarray,
    class_embeddings: np.ndarray,
    *,
    block_size: int = _BLOCK_SIZE,
) -> dict[str, float]:
    """Accuracy of the nearest class embeddings.

    Args:
        image_embeddings: float [N, D].
        image_classes: integer [N], the row of each image's class.
        class_embeddings: float [C, D].
        block_size: images scored at a time.

    Returns:
        `zero_shot/accuracy@1` and `@5`: the share of images whose class is
        among the k that score highest.

    Raises:
        ValueError: on shapes that do not fit, embeddings that are not finite,
            or a class out of range.
    """
    images = _check_vectors("image_embeddings", image_embeddings)
    classes = _check_vectors("class_embeddings", class_embeddings)
    targets = np.asarray(
        _check_rows("image_classes", image_classes, len(images))
    )
    if targets.min() < 0 or targets.max() >= len(classes):
        raise ValueError(
            f"`image_classes` must be in [0, {len(classes)}). Received: "
            f"{targets.min()} to {targets.max()}"
        )
    rows = np.arange(len(classes))
    places = _places("zero_shot", images, targets, classes, rows, block_size)
    return {f"zero_shot/accuracy@{k}": _recall(places, k) for k in _ACCURACIES}


def class_embeddings(
    encode_text: Callable[[list[str]], np.ndarray],
    class_names: Sequence[str],
    prompts: Sequence[str] = ("{}",),
) -> np.ndarray:
    """Embeds class names: the mean over prompts, brought to unit length.

    Args:
        encode_text: maps n strings to unit-norm embeddings [n, D].
        class_names: C names.
        prompts: templates, each with one "{}" where the name goes.

    Returns:
        float32 [C, D].

    Raises:
        ValueError: if there are no names or no prompts, or a prompt does not
            hold exactly one "{}".
    """
    for name, values in (("class_names", class_names), ("prompts", prompts)):
        if not values:
            raise ValueError(f"`{name}` must not be empty. Received: {values}")
    for prompt in prompts:
        if prompt.count("{}") != 1:
            raise ValueError(
                f'`prompts` must each hold one "{{}}". Received: {prompt!r}'
            )
    texts = [
        prompt.replace("{}", name) for name in class_names for prompt in prompts
    ]
    embeddings = np.asarray(encode_text(texts))
    # [C * prompts, D] -> [C, D]
    mean = embeddings.reshape(len(class_names), len(prompts), -1).mean(axis=1)
    return models.unit_norm(mean).numpy()


def evaluate_store(
    learner: models.TwoTower,
    store: stores_lib.Store,
    *,
    tokenizer: Callable,
    image_size: int,
    batch_size: int = 256,
    prompts: Sequence[str] = ("{}",),
    max_image_pixels: int = _MAX_PIXELS,
) -> dict[str, float]:
    """Measures a learner on every record of a store.

    Retrieval is between all images and the distinct first captions; records of
    one `concept` are one group, and a record without a concept is one of its
    own. Zero-shot is over the distinct labels, if there are any, and the images
    that have one.

    Args:
        learner: model with `encode_image` and `encode_text`.
        store: the records.
        tokenizer: what the learner reads captions with.
        image_size: what the learner sees, in pixels a side.
        batch_size: examples a forward pass.
        prompts: templates for the labels.
        max_image_pixels: a larger picture is refused.

    Returns:
        What `retrieval` and, with labels, `zero_shot` return.
    """
    return _StoreEvaluation(
        learner,
        store,
        tokenizer=tokenizer,
        image_size=image_size,
        batch_size=batch_size,
        prompts=prompts,
        max_image_pixels=max_image_pixels,
    ).measure()


class StoreEmbeddings(NamedTuple):
    """A store in a learner's eyes.

    Attributes:
        images: float32 [N, D], of every record.
        image_groups: what each image shows, [N].
        texts: float32 [M, D], of the distinct first captions.
        text_groups: what each text tells of, [M].
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


def embed_store(
    learner: models.TwoTower,
    store: stores_lib.Store,
    *,
    tokenizer: Callable,
    image_size: int,
    batch_size: int = 256,
    prompts: Sequence[str] = ("{}",),
    max_image_pixels: int = _MAX_PIXELS,
) -> StoreEmbeddings:
    """What `evaluate_store` measures; the arguments are the same."""
    return _StoreEvaluation(
        learner,
        store,
        tokenizer=tokenizer,
        image_size=image_size,
        batch_size=batch_size,
        prompts=prompts,
        max_image_pixels=max_image_pixels,
    ).embed()


def open_stores(
    patterns: Sequence[str | Sequence[str]],
    data: config_lib.DataConfig | None = None,
) -> dict[str, stores_lib.Store]:
    """Opens one store for every pattern, named after its first file.

    Args:
        patterns: paths or globs of shards or tables, or lists of them.
        data: of which format, fields and the folder of indexes are taken, as
            `TrainConfig.evaluation_data`; None has them told by the files.

    Returns:
        Stores by name: `test` for `data/test-00000-of-00002.tfrecord`.

    Raises:
        ValueError: where nothing can be read or two stores share a name.
    """
    data = data or config_lib.DataConfig()
    stores: dict[str, stores_lib.Store] = {}
    for pattern in patterns:
        try:
            store = stores_lib.open_store(
                pattern,
                format=data.format,
                image_field=data.image_field,
                caption_fields=data.caption_fields,
                index_dir=data.index_dir,
            )
        except ValueError as error:
            raise ValueError(
                f"Evaluation data {pattern} cannot be opened, as format "
                f"{data.format!r}, image_field {data.image_field!r} and "
                f"caption_fields {data.caption_fields} of `evaluation` or, "
                f"unless set there, of `data`: {error}"
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


class Evaluation(keras.callbacks.Callback):
    """Runs `evaluate_store` in training: every so many steps and at its end.

    Measures are named `eval/<store>/<measure>`. A step is evaluated once; what
    `workdir` already holds of it is read from there.

    Args:
        learner: model with `encode_image` and `encode_text`.
        stores: what to evaluate on, by name.
        settings: how often, in what batches, and with which prompts.
        tokenizer: what the learner reads captions with.
        image_size: what the learner sees, in pixels a side.
        max_image_pixels: a larger picture is refused.
        workdir: where `evaluation.jsonl` gets a line a step; None for nowhere.
        start_step: steps done before this `fit`.
        costs: gives what the steps up to one have cost, which the line tells
            beside the measures; None tells nothing.
        log: called with the step and the measures; None for nobody.

    Attributes:
        seconds: spent evaluating.
    """

    def __init__(
        self,
        learner: models.TwoTower,
        stores: Mapping[str, stores_lib.Store],
        settings: config_lib.EvaluationConfig | None = None,
        *,
        tokenizer: Callable,
        image_size: int,
        max_image_pixels: int = _MAX_PIXELS,
        workdir: str | None = None,
        start_step: int = 0,
        costs: Callable[[int], dict[str, float]] | None = None,
        log: Callable[[int, dict[str, float]], None] | None = None,
    ):
        super().__init__()
        settings = settings or config_lib.EvaluationConfig()
        self._every_steps = settings.every_steps
        self._evaluations = {
            name: _StoreEvaluation(
                learner,
                store,
                tokenizer=tokenizer,
                image_size=image_size,
                batch_size=settings.batch_size,
                prompts=settings.prompts,
                max_image_pixels=max_image_pixels,
            )
            for name, store in stores.items()
        }
        self._path = workdir and os.path.join(
            workdir, checkpoints.EVALUATION_FILE
        )
        self._step = self._epoch_start = start_step
        self.seconds = 0.0
        self._costs = costs
        self._log = log
        self._results = _read_results(self._path)

    def on_train_begin(self, logs=None):
        """Makes up for an evaluation that a killed run still owed."""
        last = self.model.steps_per_execution
        if self._step and self._is_due(max(0, self._step - last)):
            self.run(self._step)

    def on_epoch_begin(self, epoch, logs=None):
        """Notes where the epoch starts, because Keras counts from there."""
        self._epoch_start = self._step

    def on_train_batch_end(self, batch, logs=None):
        """Evaluates if a step that is due has been made."""
        before, self._step = self._step, self._epoch_start + batch + 1
        if self._is_due(before):
            self.run(self._step)

    def on_train_end(self, logs=None):
        """Evaluates the last step."""
        self.run(self._step)

    def run(self, step: int) -> dict[str, float]:
        """Evaluates the learner as it is, unless `step` is done already.

        Args:
            step: steps done.

        Returns:
            The measures, by name.
        """
        if step in self._results or not self._evaluations:
            return self._results.get(step, {})
        started = time.monotonic()
        results = {
            f"eval/{name}/{measure}": value
            for name, evaluation in self._evaluations.items()
            for measure, value in evaluation.measure().items()
        }
        self.seconds += time.monotonic() - started
        self._results[step] = results
        if self._path:
            row = {"step": step, **results}
            if self._costs:
                row |= self._costs(step)
            with open(self._path, "a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        if self._log:
            self._log(step, results)
        return results

    def _is_due(self, before):
        every = self._every_steps
        return every is not None and self._step // every > before // every


class _StoreEvaluation:
    """A store read once, and the traced functions that embed it."""

    def __init__(
        self,
        learner,
        store,
        *,
        tokenizer,
        image_size,
        batch_size,
        prompts,
        max_image_pixels,
    ):
        self._tokenizer = tokenizer
        self._prompts = prompts
        self._batch_size = min(batch_size, len(store))
        self._images = pipeline.images(
            store, self._batch_size, image_size, max_image_pixels
        )
        self._encode_image = tf.function(
            lambda images: learner.encode_image(images, training=False)
        )
        self._encode_text = tf.function(
            lambda tokens: learner.encode_text(tokens, training=False)
        )
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

    def embed(self):
        images = np.concatenate(
            [self._embed(self._encode_image, batch) for batch in self._images]
        )
        captions, text_groups = zip(*self._texts, strict=True)
        texts = self._embed_texts(captions)
        names = np.unique(self._labels[self._labels != b""])
        classes = np.zeros([0, images.shape[1]], np.float32)
        if len(names):
            classes = class_embeddings(
                self._embed_texts,
                [name.decode("utf-8", "replace") for name in names],
                self._prompts,
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

    def measure(self):
        found = self.embed()
        results = retrieval(
            found.images, found.texts, found.image_groups, found.text_groups
        )
        labelled = found.labels != b""
        if labelled.any():
            classes = np.searchsorted(found.class_names, found.labels[labelled])
            results |= zero_shot(found.images[labelled], classes, found.classes)
        return results

    def _embed_texts(self, texts):
        clean, _ = preprocessing.sanitize_captions(tf.constant(texts))
        tokens = self._tokenizer(clean)
        return np.concatenate(
            [
                self._embed(
                    self._encode_text, tokens[start : start + self._batch_size]
                )
                for start in range(0, len(texts), self._batch_size)
            ]
        )

    def _embed(self, encode, batch):
        # The last batch is filled up with its first row, so that the function
        # is traced for one shape only.
        rows = tf.range(self._batch_size)
        rows = tf.where(rows < len(batch), rows, 0)
        return encode(tf.gather(batch, rows)).numpy()[: len(batch)]


def _first_caption(store, row, captions):
    choices = reader.candidates(captions)
    if not choices:
        raise ValueError(
            "Every record to evaluate on must have a caption that is not "
            f"blank. Received: {store.describe(row)}"
        )
    return captions[choices[0]]


class _Places(NamedTuple):
    """Where the first match of each query stands; int64 [queries] each.

    Attributes:
        above: candidates that do not match and score higher than any match.
        tied: candidates that do not match and score as the best match does.
        matching: matches that score as the best match does, at least one.
    """

    above: np.ndarray
    tied: np.ndarray
    matching: np.ndarray


def _directions(images, texts, image_groups, text_groups):
    """Names of both directions, with queries, candidates and their groups."""
    images = _check_vectors("image_embeddings", images)
    texts = _check_vectors("text_embeddings", texts)
    image_groups, text_groups = _number(
        _check_rows("image_groups", image_groups, len(images)),
        _check_rows("text_groups", text_groups, len(texts)),
    )
    return (
        ("image_to_text", (images, image_groups, texts, text_groups)),
        ("text_to_image", (texts, text_groups, images, image_groups)),
    )


def _places(name, queries, query_groups, candidates, groups, block_size):
    missing = ~np.isin(query_groups, groups)
    if missing.any():
        raise ValueError(
            f"`{name}`: every query must have a match. Received: "
            f"{missing.sum()} of {len(queries)} without one, the first in row "
            f"{np.argmax(missing)}"
        )
    blocks = [
        _places_of_block(
            queries[start : start + block_size],
            query_groups[start : start + block_size],
            candidates,
            groups,
        )
        for start in range(0, len(queries), block_size)
    ]
    return _Places(*map(np.concatenate, zip(*blocks, strict=True)))


def _places_of_block(queries, query_groups, candidates, groups):
    # Sums in float64 cut to float32, so that equal candidates score equally in
    # whatever order and blocks the product is formed.
    scores = np.float32(queries @ candidates.T)  # [b, D] -> [b, M]
    matches = query_groups[:, None] == groups[None, :]
    best = np.where(matches, scores, -np.inf).max(axis=1, keepdims=True)
    ties = scores == best
    return (
        (~matches & (scores > best)).sum(axis=1),
        (~matches & ties).sum(axis=1),
        (matches & ties).sum(axis=1),
    )


def _expect(places, value):
    """Mean over the queries of E[value(rank)], ranks int64 [queries]."""
    above, tied, matching = places
    total, missed = np.zeros(len(above)), np.ones(len(above))
    for offset in range(int(tied.max()) + 1):
        # Of the candidates of equal score that are left, each comes next with
        # equal probability; behind the last miss comes a match for certain.
        left = np.maximum(tied + matching - offset, matching)
        hit = missed * matching / left
        total += hit * value(above + offset + 1)
        missed -= hit
    return float(np.mean(total))


def _recall(places, k):
    return _expect(places, lambda ranks: ranks <= k)


def _number(*groups):
    """Numbers groups so that equal ones, on any side, have equal numbers."""
    numbers: dict = {}
    return [
        np.array([numbers.setdefault(one, len(numbers)) for one in side])
        for side in groups
    ]


def _check_vectors(name, vectors):
    vectors = np.asarray(vectors, np.float64)
    if vectors.ndim != 2 or not len(vectors):
        raise ValueError(
            f"`{name}` must be [rows, D] with at least one row. "
            f"Received: shape={vectors.shape}"
        )
    finite = np.isfinite(vectors).all(axis=1)
    if not finite.all():
        raise ValueError(
            f"`{name}` must be finite. Received: {(~finite).sum()} of "
            f"{len(vectors)} rows with NaN or infinity"
        )
    return vectors


def _check_rows(name, values, num_rows):
    if len(values) != num_rows:
        raise ValueError(
            f"`{name}` must have a value for each of {num_rows} embeddings. "
            f"Received: {len(values)}"
        )
    return values


def _read_results(path):
    if not path or not os.path.isfile(path):
        return {}
    return {
        row["step"]: {
            name: value
            for name, value in row.items()
            if name.startswith("eval/")
        }
        for row in log_lib.read_log(path)
    }
