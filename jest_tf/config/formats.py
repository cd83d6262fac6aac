"""The formats of run directories: which version wrote a run, and what is read.

`config.json` has the number of its format, from 0.4.0 on. Other files name a
version of their own where they are read: indexes, sidecars, manifests.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

FORMAT = 3  # this version's
# Values of `equal_captions`, named `false_negatives` since 0.4.0.
_EQUAL_CAPTIONS = {"negative": "keep", "ignore": "equal_captions"}


class Format(NamedTuple):
    """A format of run directories.

    Attributes:
        version: the versions of the package that wrote it.
        gone: settings that have been removed since, each with its default, at
            which it is ignored; `*` stands for the number of a group. None if
            runs of this format cannot be read.
    """

    version: str
    gone: Mapping[str, Any] | None


FORMATS = {
    1: Format("0.2.0 or earlier", None),
    2: Format(
        "0.3.0",
        {
            "data.format": "auto",
            "data.max_fault_rate": 0.01,
            "data.max_image_pixels": 2**26,
            "model.patch_size": None,
            "model.views": [],
            "model.temperature": 10.0,
            "model.bias": -10.0,
            "selection.stages.*.uniform_share": 0.0,
            "optimizer.beta_1": 0.9,
            "optimizer.beta_2": 0.95,
            "optimizer.clip_norm": 1.0,
            "optimizer.rate_factors": [],
            "evaluation.suite": "",
            "evaluation.batch_size": 256,
            "evaluation.prompts": ["{}"],
            "checkpoint.every_minutes": None,
            "checkpoint.keep": 3,
            "checkpoint.keep_best": "",
            "checkpoint.on_non_finite": "stop",
            "distribution.steps_per_execution": 1,
            "distribution.tpu": "local",
            "distribution.jit_compile": False,
        },
    ),
    FORMAT: Format("0.4.0", {}),
}


class Content(NamedTuple):
    """The content of a `config.json`.

    Attributes:
        settings: nested dicts of the settings that this version knows.
        restarts: steps at which `--extend` began the learning rate anew.
        version: the earlier version that wrote it; "" if it is of this one.
    """

    settings: dict
    restarts: list[int]
    version: str


def read(path: str, values: dict) -> Content:
    """Reads the JSON object of a `config.json`, of any format; `path` is its.

    Without a number, it is of 0.3.0, or earlier.
    """
    values = dict(values)
    number = values.pop("format", None)
    if number is None:
        number = 1 if [*_pop(values, "data.super_batch_size")] else 2
    readable = [key for key, form in FORMATS.items() if form.gone is not None]
    if number not in readable:
        written = "a later version"
        if number == 1:
            written = f"version {FORMATS[1].version}"
        raise ValueError(
            f"{path} must be of a format that this version reads, one of "
            f"{readable}. Received: format {number!r}, of {written}; use the "
            "run with the version of jest-tf that wrote it"
        )
    version, gone = FORMATS[number]
    if isinstance(model := values.get("model"), dict):
        rename_equal_captions(model, f"`model.equal_captions` of {path}")
    restarts = values.pop("restarts", [])
    if number == 2:
        for _, steps in _pop(values, "optimizer.restarts"):
            restarts = steps
    for setting, default in gone.items():
        for name, value in _pop(values, setting):
            if value != default:
                raise ValueError(
                    f"{path}, of version {version}, has a setting that this "
                    f"version does not know: expected {name}={default!r}, the "
                    f"default, or none. Received: {value!r}; use the run with "
                    f"jest-tf {version}, or delete the setting to go on "
                    "without it"
                )
    return Content(values, restarts, version if number < FORMAT else "")


def rename_equal_captions(group: dict, name: str) -> None:
    """Gives `equal_captions`, which `group` may hold, its name since 0.4.0.

    `name` is what an error calls it: the value "positive" is gone.
    """
    if "equal_captions" not in group:
        return
    value = group.pop("equal_captions")
    if value not in _EQUAL_CAPTIONS:
        raise ValueError(
            f"{name} must be one of {[*_EQUAL_CAPTIONS]}: no version after "
            "0.3.0 takes pairs of equal captions for matches. Received: "
            f"{value!r}; use it with jest-tf 0.3.0, or set 'ignore' to go on "
            "without"
        )
    group["false_negatives"] = _EQUAL_CAPTIONS[value]


def _pop(values: Any, setting: str) -> Iterator[tuple[str, Any]]:
    """Takes a setting out of nested dicts and lists; yields name and value."""
    name, _, rest = setting.partition(".")
    if name == "*" and isinstance(values, list):
        inner = {str(number): part for number, part in enumerate(values)}
    elif isinstance(values, dict) and name in values:
        inner = {name: values[name]}
    else:
        return
    for key, part in inner.items():
        if not rest:
            yield key, values.pop(key)
            continue
        for below, value in _pop(part, rest):
            yield f"{key}.{below}", value
