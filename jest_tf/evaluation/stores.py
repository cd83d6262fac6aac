"""Measures of a learner on the records of a store, by retrieval and classes."""

import collections
import functools
import json
import os
import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np

from jest_tf import config as config_lib
from jest_tf import files
from jest_tf.data import reader
from jest_tf.data import stores as stores_lib
from jest_tf.evaluation import embedding, retrieval, zero_shot

_SLOT = re.compile(r"\{c?\}")  # CLIP_benchmark writes {c}


class StoreEmbeddings(NamedTuple):
    """A learner's embeddings of a store.

    Attributes:
        images: float32 [N, D], of every record.
        texts: float32 [M, D], of the captions; None without retrieval.
        classes: float32 [C, D], of the class names; None without zero-shot.
    """

    images: np.ndarray
    texts: np.ndarray | None
    classes: np.ndarray | None


class StoreEvaluation:
    """Evaluates learners on a store; reads captions, labels and classes once.

    Args:
        store: the records.
        settings: how records take part in the measures.

    Attributes:
        image_keys: int64 [N], of `known_images.image_key`.
        tasks: "retrieval" and "zero_shot", or one of them.
        captions: bytes [M], the texts of retrieval.
        rows: int64 [M], the first record of each caption.
        image_groups, text_groups: [N] and [M]; an image and a text match if
            their groups are equal.
        class_names: the C class names, as prompts name them.
        labelled: int64 [n], the records that have a label.
        targets: int64 [n], the class of each.
    """

    def __init__(
        self,
        store: stores_lib.Store,
        settings: config_lib.EvaluationStore | None = None,
    ):
        settings = settings or config_lib.EvaluationStore()
        self.store = store
        names = ["caption", "concept", "id", "cls", "image_key"]
        columns = store.columns([*names, settings.label_field])
        self.image_keys = columns["image_key"]
        labels, numbers = columns[settings.label_field], columns["cls"]
        # A field that is named must have labels, or its name is misspelt.
        has_classes = (
            bool(settings.classes)
            or settings.label_field != config_lib.EvaluationStore.label_field
            or bool((labels != b"").any())
        )
        has_captions = any(map(reader.candidates, columns["caption"]))
        self.tasks = ("retrieval",) * has_captions
        self.tasks += ("zero_shot",) * has_classes
        if not self.tasks:
            raise ValueError(
                "Records to evaluate on must have captions, for retrieval, or "
                "`classes` or labels in `label_field`, for zero-shot "
                f"classification. Received: {len(store):,} records without a "
                f"caption, and none with a value of {settings.label_field!r}"
            )
        if has_captions and settings.captions == "all":
            self._take_all_captions(columns["caption"])
        elif has_captions:
            self._take_first_captions(columns)
        if has_classes:
            self._templates = ("{}",)
            if settings.templates:
                self._templates = _read_templates(settings.templates)
            if settings.classes:
                classes = _read_classes(settings.classes)
                targets = _by_name(store, labels, numbers, classes)
                self.class_names = tuple(classes.values())
            else:
                self.class_names, targets = _by_label(labels)
            self.labelled = np.flatnonzero(targets >= 0)
            self.targets = targets[self.labelled]
            if not len(self.labelled):
                raise ValueError(
                    "`label_field` must name a field of the records that has "
                    "the label or, with `classes`, the number of their class. "
                    f"Received: {settings.label_field!r}, which is empty in "
                    f"all {len(store):,} records"
                )

    @functools.cached_property
    def chance(self) -> dict[str, float]:
        """The headline measures of a model that guesses at random."""
        measures = {}
        if "retrieval" in self.tasks:
            measures = retrieval.chance(self.image_groups, self.text_groups)
        if "zero_shot" in self.tasks:
            measures["zero_shot/accuracy@1"] = 1 / len(self.class_names)
        return measures

    def embed(self, encoder: embedding.Encoder) -> StoreEmbeddings:
        """Embeds the store with the encoder's current weights."""
        texts = classes = None
        images = encoder.images(self.store)
        if "retrieval" in self.tasks:
            texts = encoder.texts(self.captions)
        if "zero_shot" in self.tasks:
            classes = zero_shot.class_embeddings(
                encoder.texts, self.class_names, self._templates
            )
        return StoreEmbeddings(images, texts, classes)

    def measure(self, encoder: embedding.Encoder) -> dict[str, float]:
        """Returns the measures of all tasks by name."""
        embedded, results = self.embed(encoder), {}
        if "retrieval" in self.tasks:
            results |= retrieval.retrieval_measures(
                embedded.images,
                embedded.texts,
                self.image_groups,
                self.text_groups,
            )
        if "zero_shot" in self.tasks:
            results |= zero_shot.zero_shot_measures(
                embedded.images[self.labelled], self.targets, embedded.classes
            )
        return results

    def _take_first_captions(self, columns):
        """Takes distinct first captions; records of a concept share them."""
        self.image_groups = [
            ("concept", concept) if concept else ("id", str(number).encode())
            for concept, number in zip(
                columns["concept"], columns["id"], strict=True
            )
        ]
        first: dict = {}
        for row, captions in enumerate(columns["caption"]):
            caption = self._list_captions(row, captions)[0]
            first.setdefault((caption, self.image_groups[row]), row)
        self.captions, self.text_groups = map(list, zip(*first, strict=True))
        self.rows = np.array([*first.values()])

    def _take_all_captions(self, captions):
        """Takes every caption, for its own record alone."""
        self.captions, rows = [], []
        for row, texts in enumerate(captions):
            texts = [line for text in texts for line in text.splitlines()]
            texts = self._list_captions(row, texts)
            self.captions += texts
            rows += [row] * len(texts)
        self.rows = np.array(rows)
        self.image_groups, self.text_groups = range(len(self.store)), rows

    def _list_captions(self, row, captions):
        """The nonblank captions of a record, at least one."""
        choices = reader.candidates(captions)
        if not choices:
            raise ValueError(
                "Every record to evaluate on must have a caption that is not "
                f"blank. Received: {self.store.describe(row)}"
            )
        return [captions[choice] for choice in choices]


def open_stores(
    named: Iterable[tuple[str, config_lib.EvaluationStore]],
    data: config_lib.DataConfig | None = None,
) -> dict[str, StoreEvaluation]:
    """Opens stores to evaluate on, by name.

    A store without a name has that of its files: `test` for
    `data/test-00000-of-00002.tfrecord`.

    Args:
        named: pairs of a setting, for errors, and the store that it names, as
            `EvaluationConfig.named`.
        data: fields and index folder, as `TrainConfig.data`.
    """
    data = data or config_lib.DataConfig()
    opened: dict[str, StoreEvaluation] = {}
    for setting, settings in named:
        try:
            store = stores_lib.open_store(
                settings.data,
                image_field=data.image_field,
                caption_fields=data.caption_fields,
                index_dir=data.index_dir,
                setting=setting,
            )
        except stores_lib.NoFiles:
            raise
        except ValueError as error:
            raise ValueError(
                f"Evaluation data {', '.join(settings.data)} cannot be opened, "
                f"with image_field {data.image_field!r} and caption_fields "
                f"{data.caption_fields} of `data`: {error}"
            ) from error
        file = os.path.basename(store.shards.paths[0])
        name = settings.name or re.sub(
            r"(-\d+-of-\d+)?(\.[^.]*)?$", "", file, count=1
        )
        if name in opened:
            raise ValueError(
                "Evaluation data must have different names. Received: "
                f"{name!r} twice, the second in `{setting}`"
            )
        try:
            opened[name] = StoreEvaluation(store, settings)
        except ValueError as error:
            raise ValueError(f"Evaluation data {name}: {error}") from error
    return opened


def _by_label(labels):
    """Class names and the class of each record, -1 if none, from its label."""
    names, targets = np.unique(labels, return_inverse=True)
    if len(names) and not names[0]:
        names, targets = names[1:], targets - 1
    return tuple(name.decode("utf-8", "replace") for name in names), targets


def _by_name(store, labels, numbers, classes):
    """The class of each record, int64 [N], -1 if it has none.

    A record gives the label, the name, or the number from 0 of its class.
    """
    by_number = {str(number): number for number in range(len(classes))}
    by_label = dict(by_number)
    for names in (classes.values(), classes):
        # The first of equal names counts.
        by_label |= {name: row for row, name in reversed([*enumerate(names)])}
    targets = np.full(len(store), -1)
    unknown: dict[str, int] = collections.Counter()
    for row, (label, number) in enumerate(zip(labels, numbers, strict=True)):
        text = (label or number).decode("utf-8", "replace")
        targets[row] = (by_label if label else by_number).get(text, -1)
        unknown[text] += bool(text) and targets[row] < 0
    unknown = {label: count for label, count in unknown.items() if count}
    if unknown:
        shown = ", ".join(map(repr, [*unknown][:5]))
        raise ValueError(
            "`classes` must name the class of every label. Received: "
            f"{len(classes)} classes, the first {next(iter(classes))!r}, and "
            f"{sum(unknown.values()):,} records whose labels match none: "
            f"{shown}. Use a JSON object of names by label"
        )
    return targets


def _read_classes(path) -> Mapping[str, str]:
    """Class names by label, from a JSON object or the lines of a text file."""
    if not path.endswith(".json"):
        return {name: name for name in _lines("classes", path)}
    try:
        names = json.loads(_text("classes", path))
    except ValueError as error:
        raise ValueError(f"`classes`: {path} is not JSON: {error}") from error
    if (
        not isinstance(names, dict)
        or not names
        or not all(name and isinstance(name, str) for name in names.values())
    ):
        raise ValueError(
            "`classes` must be a JSON object of nonblank names by label, or a "
            f"text file with a name per line. Received: {path}"
        )
    return names


def _read_templates(path) -> tuple[str, ...]:
    templates = _lines("templates", path)
    for number, template in enumerate(templates, 1):
        if len(_SLOT.findall(template)) != 1:
            raise ValueError(
                '`templates` must each have one slot for the class name, "{}" '
                f'or "{{c}}". Received: {template!r}, number {number} of {path}'
            )
    return tuple(_SLOT.sub("{}", template) for template in templates)


def _lines(setting, path):
    lines = [line.strip() for line in _text(setting, path).rstrip().split("\n")]
    # A line's number is that of a class, so no line may be blank.
    if not all(lines):
        raise ValueError(
            f"`{setting}` must be a file with one nonblank text per line. "
            f"Received: {path}, with a blank line"
        )
    return lines


def _text(setting, path):
    try:
        return files.read_whole(path).decode()
    except (OSError, UnicodeError) as error:
        raise ValueError(
            f"`{setting}` must be a text file. Received: {path}, {error}"
        ) from error
