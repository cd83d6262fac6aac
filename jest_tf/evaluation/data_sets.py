"""Data of a suite's entries: records, captions, labels, class names, templates.

Besides the formats of `evaluation.data`: a folder with a subfolder per class,
and CLIP_benchmark's tars, with `classnames.txt` and
`zeroshot_classification_templates.txt` beside them. A record has one label:
hierarchies and multiple labels are not supported.
"""

import collections
import glob
import importlib.util
import json
import os
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from jest_tf import config as config_lib
from jest_tf import files
from jest_tf.data import reader
from jest_tf.data import stores as stores_lib

# Files of CLIP_benchmark beside its tars.
_CLASSES_FILE = "classnames.txt"
_TEMPLATES_FILE = "zeroshot_classification_templates.txt"
_TYPE_FILE = "dataset_type.txt"
_SLOT = re.compile(r"\{c?\}")  # {} is ours, {c} CLIP_benchmark's


class DataSet(NamedTuple):
    """The data of an entry.

    Attributes:
        store: the records.
        captions: bytes, a list for each record.
        labels: bytes [n] by kind: the `name` and the `number` of the class.
        classes, templates: files that came with the data; "" if none.
    """

    store: stores_lib.Store | stores_lib.Listed
    captions: Sequence[Sequence[bytes]]
    labels: Mapping[str, np.ndarray]
    classes: str = ""
    templates: str = ""


class Classes(NamedTuple):
    """Class names, and the label that each has in the data."""

    names: tuple[str, ...]
    labels: tuple[str, ...]


def open_data(entry: config_lib.Entry, index_dir: str = "") -> DataSet:
    """Opens the first of an entry's `data` that exists.

    Args:
        entry: of a suite; its fields set how to read the data.
        index_dir: folder of the index files; "" is beside each shard.

    Raises:
        ValueError: none exists, or it cannot be read.
    """
    path = next(filter(None, map(_find, entry.data)), None)
    if path is None:
        raise ValueError(
            "the data is not there. Expected one of "
            f"{', '.join(map(repr, entry.data))}: a folder with a subfolder "
            "per class, a folder of tars, or shards "
            "(docs/evaluation.md#preparing-data)"
        )
    if not files.is_folder(path):
        return _stored(path, entry, index_dir)
    for folder in (path, os.path.join(path, entry.split)):
        pattern = os.path.join(glob.escape(folder), "*.tar")
        if files.find(pattern):
            return _with_files(_stored(pattern, entry, index_dir), folder)
    return _folder(path)


def labels_of(data: DataSet, classes: Classes, field: str) -> np.ndarray:
    """Returns the class of every record, int64 [n], rows of `classes`.

    A record gives the label, the name, or the number from 0 of its class.

    Raises:
        ValueError: a record has no label, or one that matches no class.
    """
    rows = {str(number): number for number in range(len(classes.names))}
    by_number = dict(rows)
    rows |= {name: row for row, name in reversed([*enumerate(classes.names)])}
    rows |= {name: row for row, name in enumerate(classes.labels)}
    found = np.full(len(data.store), -1)
    unknown: dict = collections.Counter()
    for place, (name, number) in enumerate(
        zip(data.labels["name"], data.labels["number"], strict=True)
    ):
        label = (name or number).decode("utf-8", "replace")
        if not label:
            raise ValueError(
                f"every record must have a label, in `{field}` or, in tars, in "
                "a .cls file. Received: "
                f"{data.store.describe(place)}, which has no label"
            )
        found[place] = (rows if name else by_number).get(label, -1)
        unknown[label] += found[place] < 0
    unknown = {label: count for label, count in unknown.items() if count}
    if unknown:
        shown = ", ".join(map(repr, [*unknown][:5]))
        raise ValueError(
            f"`classes` must name the class of every label. Received: "
            f"{len(classes.names)} classes, the first {classes.labels[0]!r}, "
            f"and {sum(unknown.values()):,} records whose labels match none: "
            f"{shown}. As `classes`, use a JSON object of names by label"
        )
    return found


def read_classes(entry: config_lib.Entry, data: DataSet) -> Classes:
    """Returns an entry's classes: from its file, the data's, or the labels.

    With `classes_present`, returns only the classes that the data has.

    Raises:
        ValueError: the file cannot be read, or names are missing.
    """
    path = entry.classes or data.classes
    if path == "imagenet":
        classes = Classes(
            tuple(_open_clip("IMAGENET_CLASSNAMES", "classes")), _synsets()
        )
    elif path:
        found = _read_list("classes", path)
        if isinstance(found, dict):
            classes = Classes(tuple(found.values()), tuple(found))
        else:
            classes = Classes(tuple(found), tuple(found))
    else:
        labels = {
            name.decode("utf-8", "replace") for name in data.labels["name"]
        }
        labels = tuple(sorted(labels - {""}))
        if not labels:
            raise ValueError(
                "`classes` must name a file of class names: the data has "
                f"labels by number, or none in `{entry.label_field}`"
            )
        classes = Classes(labels, labels)
    if entry.classes_present:
        rows = np.unique(labels_of(data, classes, entry.label_field))
        classes = Classes(
            *(tuple(some[row] for row in rows) for some in classes)
        )
    return classes


def read_templates(entry: config_lib.Entry, data: DataSet) -> tuple[str, ...]:
    """Returns the templates of an entry, each with one "{}"; by default "{}".

    Raises:
        ValueError: the file cannot be read, or a template has no slot.
    """
    if entry.prompts:
        return entry.prompts
    path = entry.templates or data.templates
    if not path:
        return ("{}",)
    if path == "imagenet":
        made = _open_clip("OPENAI_IMAGENET_TEMPLATES", "templates")
        return tuple(template("{}") for template in made)
    templates = _read_list("templates", path)
    if isinstance(templates, dict):
        raise ValueError(
            "`templates` must be a list, the same for all classes. Received: "
            f"a JSON object in {path}"
        )
    for number, template in enumerate(templates, 1):
        if len(_SLOT.findall(template)) != 1:
            raise ValueError(
                '`templates` must each have one slot for the class name, "{}" '
                f'or "{{c}}". Received: {template!r}, number {number} of {path}'
            )
    return tuple(_SLOT.sub("{}", template) for template in templates)


def captions_of(
    data: DataSet, most: int | None
) -> tuple[list[bytes], np.ndarray]:
    """Returns up to `most` nonblank captions of each record, and their rows.

    Raises:
        ValueError: a record has none.
    """
    texts: list[bytes] = []
    rows: list[int] = []
    for row, captions in enumerate(data.captions):
        choices = reader.candidates(captions)[:most]
        if not choices:
            raise ValueError(
                "every picture must have a nonblank caption. Received: "
                f"{data.store.describe(row)}, which has none"
            )
        texts += [captions[choice] for choice in choices]
        rows += [row] * len(choices)
    return texts, np.array(rows)


def _find(path):
    """The path, a glob's last folder, or None; globs of files stay globs."""
    if files.is_file(path) or files.is_folder(path):
        return path
    found = files.find(path)
    folders = [match for match in found if files.is_folder(match)]
    if folders:
        return folders[-1]
    return path if found else None


def _stored(path, entry, index_dir):
    store = stores_lib.open_store(
        path,
        image_field=entry.image_field,
        caption_fields=entry.caption_fields,
        index_dir=index_dir,
    )
    columns = store.columns(["caption", entry.label_field, "cls"])
    labels = {"name": columns[entry.label_field], "number": columns["cls"]}
    return DataSet(store, columns["caption"], labels)


def _with_files(data, folder):
    """Adds CLIP_benchmark's files, beside its tars or in the folder above."""

    def beside(name):
        for place in (folder, os.path.dirname(folder)):
            if files.is_file(os.path.join(place, name)):
                return os.path.join(place, name)
        return ""

    kind = beside(_TYPE_FILE)
    kind = _text(kind).strip() if kind else "classification"
    if kind == "multilabel":
        raise ValueError(
            f"pictures with several labels are not evaluated. Received: "
            f"{folder}, of type {kind!r}"
        )
    if kind == "retrieval":
        captions = [
            [line for text in texts for line in text.splitlines()]
            for texts in data.captions
        ]
        return data._replace(captions=captions)
    return data._replace(
        classes=beside(_CLASSES_FILE), templates=beside(_TEMPLATES_FILE)
    )


def _folder(path):
    """The data of a folder with a subfolder per class."""
    names = stores_lib.find_pictures(path)
    labels = [name.split(os.sep)[0].encode() for name in names]
    loose = [name for name in names if os.sep not in name]
    if loose:
        raise ValueError(
            "a folder of classes must have its pictures in a subfolder for "
            f"each class, named by its label. Received: {path}, with "
            f"{loose[0]!r} in no class"
        )
    records = [
        stores_lib.Record(os.path.join(path, name), (), {}) for name in names
    ]
    return DataSet(
        stores_lib.Listed(records),
        [()] * len(names),
        {
            "name": np.array(labels, object),
            "number": np.array([b""] * len(names), object),
        },
    )


def _read_list(setting, path):
    """The lines of a text file, or a JSON list or object of strings."""
    if path.endswith(".json"):
        found = _json(path)
        values = found.values() if isinstance(found, dict) else found
    else:
        lines = _text(path).rstrip().splitlines()
        found = values = [line.strip() for line in lines]
    # A line's number is that of a class, so no line may be blank.
    if not values or not all(text and isinstance(text, str) for text in values):
        raise ValueError(
            f"`{setting}` must be a file with one nonblank text per line, or a "
            f"JSON file of texts. Received: {path}"
        )
    return found


def _json(path):
    try:
        return json.loads(_text(path))
    except ValueError as error:
        raise ValueError(f"{path} is not a JSON file: {error}") from error


def _text(path):
    try:
        return files.read_whole(path).decode()
    except (OSError, UnicodeError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error


def _open_clip(name, setting):
    """A list from open_clip (MIT licence), without importing PyTorch."""
    spec = importlib.util.find_spec("open_clip")
    if spec is None:
        raise ValueError(
            f"`{setting}`='imagenet' is read from open_clip: pip install "
            "open_clip_torch, or name a file (docs/evaluation.md#imagenet)"
        )
    path = os.path.join(os.path.dirname(spec.origin), "zero_shot_metadata.py")
    spec = importlib.util.spec_from_file_location("zero_shot_metadata", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return getattr(module, name)


def _synsets():
    """ImageNet's 1,000 synsets in order, from TensorFlow Datasets."""
    spec = importlib.util.find_spec("tensorflow_datasets")
    path = spec and os.path.join(
        os.path.dirname(spec.origin), "datasets", "imagenet2012", "labels.txt"
    )
    if not path or not os.path.isfile(path):
        raise ValueError(
            "ImageNet's synsets are read from tensorflow-datasets: pip install "
            "tensorflow-datasets, or name a JSON of names by synset as "
            "`classes`"
        )
    return tuple(_text(path).split())
