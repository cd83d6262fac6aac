"""A suite: the tasks that a model is evaluated on, from a TOML or JSON file."""

import dataclasses
import json
import os
import tomllib
from dataclasses import dataclass
from typing import Annotated

from jest_tf import files
from jest_tf.config import overrides
from jest_tf.config.checks import (
    PROMPTS,
    Checked,
    Count,
    Rule,
    check,
)

_NAMES = ("zero_shot", "retrieval")
_TASKS: Rule = (
    f"one or more of {_NAMES}",
    lambda tasks: tasks and {*tasks} <= {*_NAMES},
)
# Places of the ImageNets below the suite's root: unpacked, or as
# CLIP_benchmark's tars.
_IMAGENETS = {
    "imagenet": (
        "imagenet/val",
        "ILSVRC/Data/CLS-LOC/val",
        "wds_imagenet1k",
    ),
    "imagenet_v2": (
        "imagenetv2-matched-frequency-format-val",
        "wds_imagenetv2",
    ),
    "imagenet_a": ("imagenet-a", "wds_imagenet-a"),
    "imagenet_r": ("imagenet-r", "wds_imagenet-r"),
    "imagenet_sketch": ("imagenet-sketch", "sketch", "wds_imagenet_sketch"),
}
# Defaults of entries with these names; a suite's own values replace them. The
# classes of `imagenet_a` and `imagenet_r` are 200 of the 1,000.
NAMED = {
    name: {
        "task": ("zero_shot",),
        "data": places,
        "classes": "imagenet",
        "templates": "imagenet",
        "classes_present": name in ("imagenet_a", "imagenet_r"),
    }
    for name, places in _IMAGENETS.items()
} | {
    name: {
        "task": ("retrieval",),
        "data": (place,),
        # The papers' counts: 25,000 captions of COCO's test split, not 25,010.
        "max_captions": 5,
    }
    for name, place in (
        ("coco", "wds_mscoco_captions"),
        ("flickr30k", "wds_flickr30k"),
    )
}


@dataclass(frozen=True)
class Entry(Checked):
    """A data set of a suite and the tasks on it.

    Attributes:
        task: "zero_shot", "retrieval" or both.
        data: the examples: a folder with a subfolder per class, a folder of
            CLIP_benchmark's tars, or paths and globs as in `evaluation.data`
            (docs/evaluation.md). The first of them that exists is taken.
        split: the split to read, in a folder of CLIP_benchmark's tars.
        image_field: as `data.image_field`.
        caption_fields: as `data.caption_fields`.
        label_field: the field of labels.
        classes: file of class names: a name per line, a JSON list, or a JSON
            object of names by label. "imagenet" is OpenAI's names, from
            open_clip. Empty takes the data's own names.
        classes_present: choose only among the classes that `data` has.
        templates: file of templates: one per line, or a JSON list. "imagenet"
            is OpenAI's 80, from open_clip. Empty takes `prompts`, the data's
            own templates or "{}".
        prompts: templates, each with one "{}" for the class name.
        max_captions: number of first captions to take per picture; None: all.
    """

    task: Annotated[tuple[str, ...], _TASKS] = ("zero_shot",)
    data: tuple[str, ...] = ()
    split: str = "test"
    image_field: str = ""
    caption_fields: tuple[str, ...] = ()
    label_field: str = "label"
    classes: str = ""
    classes_present: bool = False
    templates: str = ""
    prompts: tuple[str, ...] = ()
    max_captions: Count | None = None

    def __post_init__(self):
        super().__post_init__()
        if self.prompts:
            check("prompts", self.prompts, PROMPTS)
        self._expect(
            not self.prompts or not self.templates,
            "`prompts` and `templates` are two ways to say the same: set only "
            "one of them",
        )
        self._expect(
            self.data,
            "`data` must name examples; without it the entry must be one of "
            f"{', '.join(NAMED)}, whose examples have a default place",
        )


def load_suite(path: str) -> dict[str, Entry]:
    """Reads a suite: the entries by name, with absolute paths.

    The file is TOML or JSON, with a table per entry. A string may stand for a
    list with a single item. `root`, beside the tables, is the folder that paths
    start from; its default is the file's own folder.

    Raises:
        ValueError: there is no such file, or an entry does not fit.
    """
    values = _read(path)
    root = _joined(os.path.dirname(path), _root(path, values))
    entries = {}
    for name, given in values.items():
        try:
            if not isinstance(given, dict):
                raise ValueError(f"expected a table. Received: {given!r}")
            entry = overrides.build(Entry, NAMED.get(name, {}) | _listed(given))
        except ValueError as error:
            raise ValueError(f"{path}, [{name}]: {error}") from None
        entries[name] = _below(root, entry)
    if not entries:
        raise ValueError(
            f"`evaluation.suite` must have an entry, such as [imagenet]. "
            f"Received: {path}, which has none"
        )
    return entries


def _read(path):
    parse = {".json": json.loads, ".toml": tomllib.loads}.get(
        os.path.splitext(path)[1]
    )
    if parse is None:
        raise ValueError(
            "`evaluation.suite` must be a .toml or .json file "
            f"(docs/evaluation.md). Received: {path!r}"
        )
    if not files.is_file(path):
        raise ValueError(f"`evaluation.suite`: there is no file {path!r}")
    try:
        values = parse(files.read_whole(path).decode())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold a table an entry.")
    return values


def _root(path, values):
    root = values.pop("root", "")
    if not isinstance(root, str):
        raise ValueError(f"{path}: `root` must be a folder. Received: {root!r}")
    return root


def _listed(given):
    """Puts single values into lists where the field is a tuple."""
    lists = {
        field.name
        for field in dataclasses.fields(Entry)
        if isinstance(field.default, tuple)
    }
    return {
        name: [value]
        if name in lists and not isinstance(value, list)
        else value
        for name, value in given.items()
    }


def _joined(folder, path):
    if files.is_remote(path):
        return path
    return os.path.join(folder, os.path.expanduser(path))


def _below(root, entry):
    def place(path):
        return path and _joined(root, path)

    return dataclasses.replace(
        entry,
        data=tuple(map(place, entry.data)),
        **{
            name: value if value == "imagenet" else place(value)
            for name in ("classes", "templates")
            for value in [getattr(entry, name)]
        },
    )
