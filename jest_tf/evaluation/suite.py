"""Evaluation of a learner on the entries of a suite.

Results have CLIP_benchmark's names and form, an object for each data set and
task, so that its tools read the file.
"""

import functools
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from jest_tf import config as config_lib
from jest_tf.evaluation import data_sets, embedding, retrieval, zero_shot

# CLIP_benchmark's names of tasks and measures. Image retrieval goes from a text
# to the images.
_TASKS = {
    "zero_shot": "zeroshot_classification",
    "retrieval": "zeroshot_retrieval",
}
_MEASURES = {
    "zero_shot/accuracy@1": "acc1",
    "zero_shot/accuracy@5": "acc5",
    "zero_shot/mean_per_class": "mean_per_class_recall",
} | {
    name: f"{side}_retrieval_{name.rpartition('/')[2]}"
    for name in retrieval.MEASURES
    for side in ["text" if name.startswith("image_to") else "image"]
}


class Labelled(NamedTuple):
    """Labelled pictures and the classes to choose from.

    Attributes:
        images: float32 [N, D].
        targets: int64 [N], the row of each image's class.
        classes: float32 [C, D], of class names in templates.
        names: the C class names.
    """

    images: np.ndarray
    targets: np.ndarray
    classes: np.ndarray
    names: tuple[str, ...]


class Captioned(NamedTuple):
    """Pictures and their captions.

    Attributes:
        images: float32 [N, D].
        texts: float32 [M, D], of all captions.
        rows: int64 [M], the image of each caption.
        captions: the M captions.
    """

    images: np.ndarray
    texts: np.ndarray
    rows: np.ndarray
    captions: list[bytes]


class EntryEvaluation:
    """Evaluates an attached learner on an entry, repeatedly.

    The constructor opens the data, and checks labels, class names, templates
    and captions.

    Args:
        entry: an entry of the suite.
        index_dir: folder of the index files; "" is beside each shard.

    Raises:
        ValueError: data is missing, or does not fit the entry's tasks.
    """

    def __init__(self, entry: config_lib.Entry, index_dir: str = ""):
        self.entry = entry
        self._encoder: embedding.Encoder | None = None
        self.data = data_sets.open_data(entry, index_dir)
        if "zero_shot" in entry.task:
            self._classes = data_sets.read_classes(entry, self.data)
            self._targets = data_sets.labels_of(
                self.data, self._classes, entry.label_field
            )
            self._templates = data_sets.read_templates(entry, self.data)
        if "retrieval" in entry.task:
            self._captions = data_sets.captions_of(
                self.data, entry.max_captions
            )

    def attach(self, encoder: embedding.Encoder) -> None:
        """Sets the learner, which is measured with its current weights."""
        self._encoder = encoder

    def outcomes(self) -> dict[str, dict[str, float]]:
        """Returns the measures, by task and by name."""
        measure = {"zero_shot": self._zero_shot, "retrieval": self._retrieval}
        return {task: measure[task]() for task in self.entry.task}

    def measure(self) -> dict[str, float]:
        """Returns the measures of all tasks by name."""
        return {
            name: value
            for measures in self.outcomes().values()
            for name, value in measures.items()
        }

    @functools.cached_property
    def chance(self) -> dict[str, float]:
        """The headline measures of a model that guesses at random."""
        found = {}
        if "retrieval" in self.entry.task:
            _, rows = self._captions
            found |= retrieval.chance(range(len(self.data.store)), rows)
        if "zero_shot" in self.entry.task:
            found["zero_shot/accuracy@1"] = 1 / len(self._classes.names)
        return found

    def labelled(self) -> Labelled:
        """Embeds the pictures and the classes."""
        names = self._classes.names
        return Labelled(
            self._encoder.images(self.data.store),
            self._targets,
            zero_shot.class_embeddings(
                self._encoder.texts, names, self._templates
            ),
            names,
        )

    def captioned(self) -> Captioned:
        """Embeds the pictures and the captions."""
        captions, rows = self._captions
        return Captioned(
            self._encoder.images(self.data.store),
            self._encoder.texts(captions),
            rows,
            captions,
        )

    def _zero_shot(self):
        found = self.labelled()
        measures = zero_shot.zero_shot_measures(
            found.images, found.targets, found.classes
        )
        if len(found.names) < 5:
            del measures["zero_shot/accuracy@5"]  # always 1
        return measures

    def _retrieval(self):
        found = self.captioned()
        return retrieval.retrieval_measures(
            found.images, found.texts, range(len(found.images)), found.rows
        )


def open_suite(path: str, index_dir: str = "") -> dict[str, EntryEvaluation]:
    """Opens the entries of a suite, by name.

    Other arguments are as for `EntryEvaluation`.

    Raises:
        ValueError: a file, an entry or its data does not fit; the message names
            the entry.
    """
    opened = {}
    for name, entry in config_lib.load_suite(path).items():
        try:
            opened[name] = EntryEvaluation(entry, index_dir)
        except ValueError as error:
            raise ValueError(f"{path}, [{name}]: {error}") from error
    return opened


def results(
    outcomes: Mapping[str, Mapping[str, Mapping[str, float]]],
    model: str,
    pretrained: str,
) -> list[dict]:
    """Returns measures by entry and task in CLIP_benchmark's form."""
    return [
        {
            "dataset": name,
            "model": model,
            "pretrained": pretrained,
            "task": _TASKS[task],
            "metrics": {
                _MEASURES[measure]: value for measure, value in measures.items()
            },
            "language": "en",
        }
        for name, of_entry in outcomes.items()
        for task, measures in of_entry.items()
    ]
