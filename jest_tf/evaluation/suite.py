"""Evaluation of a learner on the entries of a suite.

Names of results are CLIP_benchmark's, so that its tools read the file: an
object for each data set, task and language.
"""

import functools
from collections.abc import Mapping, Sequence
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


class Outcome(NamedTuple):
    """The measures of a task, by our names; `language` may be ""."""

    task: str
    language: str
    measures: dict[str, float]


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

    Data is opened, and labels, class names, templates and captions are
    checked, when it is made.

    Args:
        entry: of the suite.
        prompts: templates of an entry without its own.
        index_dir: folder of the index files; "" is beside each shard.

    Raises:
        ValueError: data is missing, or does not fit the entry's tasks.
    """

    def __init__(
        self,
        entry: config_lib.Entry,
        prompts: Sequence[str] = ("{}",),
        index_dir: str = "",
    ):
        self.entry = entry
        self._encoder: embedding.Encoder | None = None
        self.data = data_sets.open_data(entry, index_dir)
        if "zero_shot" in entry.task:
            self._classes = data_sets.read_classes(entry, self.data)
            self._targets = data_sets.labels_of(
                self.data, self._classes, entry.label_field
            )
            self._templates = data_sets.read_templates(
                entry, self.data, prompts
            )
        self._captions = {}
        if "retrieval" in entry.task:
            self._captions = {
                language: data_sets.captions_of(
                    self.data, language, entry.max_captions
                )
                for language in self.data.captions
            }

    def attach(self, encoder: embedding.Encoder) -> None:
        """Sets the learner, which is measured with its current weights."""
        self._encoder = encoder

    def measure(self) -> dict[str, float]:
        """Returns all measures by name.

        Measures of several languages are prefixed; their means are not.
        """
        return flattened(self.outcomes())

    def outcomes(self) -> list[Outcome]:
        """Returns the measures of each task and language."""
        found = []
        for task in self.entry.task:
            if task == "zero_shot":
                found.append(Outcome(task, "", self._zero_shot()))
            else:
                found += [
                    Outcome(task, language, self._retrieval(language))
                    for language in self._captions
                ]
        return found

    @property
    def measures(self) -> tuple[str, ...]:
        """Names of what `measure` returns, means of languages only."""
        by_task = {
            "zero_shot": zero_shot.MEASURES,
            "retrieval": retrieval.MEASURES,
        }
        return tuple(name for task in self.entry.task for name in by_task[task])

    @functools.cached_property
    def chance(self) -> dict[str, float]:
        """The headline measures of a model that sees nothing."""
        outcomes = [
            Outcome("retrieval", language, retrieval.chance(range(count), rows))
            for count in [len(self.data.store)]
            for language, (_, rows) in self._captions.items()
        ]
        if "zero_shot" in self.entry.task:
            share = 1 / len(self._classes.names)
            outcomes.append(
                Outcome("zero_shot", "", {"zero_shot/accuracy@1": share})
            )
        return flattened(outcomes)

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

    def captioned(self, language: str | None = None) -> Captioned:
        """Embeds the pictures and the captions of a language, or the first."""
        if language is None:
            language = next(iter(self._captions))
        captions, rows = self._captions[language]
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

    def _retrieval(self, language):
        found = self.captioned(language)
        return retrieval.retrieval_measures(
            found.images, found.texts, range(len(found.images)), found.rows
        )


def open_suite(
    path: str, prompts: Sequence[str] = ("{}",), index_dir: str = ""
) -> dict[str, EntryEvaluation]:
    """Opens the entries of a suite, by name.

    Arguments as of `EntryEvaluation`.

    Raises:
        ValueError: a file, an entry or its data does not fit; the text names
            the entry.
    """
    opened = {}
    for name, entry in config_lib.load_suite(path).items():
        try:
            opened[name] = EntryEvaluation(entry, prompts, index_dir)
        except ValueError as error:
            raise ValueError(f"{path}, [{name}]: {error}") from error
    return opened


def flattened(outcomes: Sequence[Outcome]) -> dict[str, float]:
    """Joins outcomes to measures by name, see `EntryEvaluation.measure`."""
    several = len({outcome.language for outcome in outcomes} - {""}) > 1
    found: dict = {}
    for outcome in outcomes:
        for name, value in outcome.measures.items():
            found.setdefault(name, []).append(value)
    results = {name: float(np.mean(values)) for name, values in found.items()}
    for outcome in outcomes if several else ():
        for name, value in outcome.measures.items():
            if outcome.language:
                results[f"{outcome.language}/{name}"] = value
    return results


def results(
    outcomes: Mapping[str, Sequence[Outcome]], model: str, pretrained: str
) -> list[dict]:
    """Returns outcomes by entry in CLIP_benchmark's form."""
    return [
        {
            "dataset": name,
            "model": model,
            "pretrained": pretrained,
            "task": _TASKS[outcome.task],
            "metrics": {
                _MEASURES[measure]: value
                for measure, value in outcome.measures.items()
            },
            "language": outcome.language or "en",
        }
        for name, of_entry in outcomes.items()
        for outcome in of_entry
    ]
