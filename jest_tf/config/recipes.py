"""Reading and writing the settings of a run.

A recipe is a Python file with a function `config()` that returns a
`TrainConfig`. A variant changes another recipe with `dataclasses.replace`.
"""

import dataclasses
import importlib.util
import json
import os
import traceback
from collections.abc import Sequence

from jest_tf import files
from jest_tf.config import checks, formats, imports
from jest_tf.config import overrides as overrides_lib
from jest_tf.config.run import TrainConfig


def load_config(
    path: str, overrides: Sequence[str] = (), *, trust: bool = False
) -> TrainConfig:
    """Reads a recipe, or the `config.json` of a run, and overrides settings.

    Args:
        path: a Python file with a function `config() -> TrainConfig`, or a
            `.json` file that `save_config` wrote.
        overrides: texts "a.b=c", such as "selection.batch_size=64". Commas
            separate list items; "none" unsets a setting. The result is checked
            once, after all overrides.
        trust: whether a `.json` file may name functions to be called, each a
            "module:function" (docs/models.md). A Python file always may.
    """
    if isinstance(overrides, str | dict):
        raise ValueError(
            '`overrides` must be a list of texts, such as ["steps=3"]. '
            f"Received: {overrides!r}"
        )
    path = os.fspath(path)
    read = {".json": _read_json, ".py": _run_recipe}.get(
        os.path.splitext(path)[1]
    )
    if read is None or not files.is_file(path):
        raise ValueError(
            f"No recipe at {path!r}: expected a .py or .json file"
            f"{_similar(path)}"
        )
    with files.staged(path) as local:
        values = read(local)
    version = ""
    if read is _read_json:
        values, _, version = formats.read(path, values)
    try:
        for override in overrides:
            overrides_lib.override(TrainConfig, values, override)
        config = overrides_lib.build(TrainConfig, values)
    except RecursionError as error:
        raise ValueError(f"{path!r} is nested too deeply") from error
    except ValueError as error:
        if overrides or not version:
            raise
        raise ValueError(
            f"{path}: {error}. It has no `format`, as in {version} and "
            "earlier: if that version wrote it, use it with that version"
        ) from error
    if read is _read_json:
        given = {override.partition("=")[0].strip() for override in overrides}
        named = [pair for pair in config.functions if pair[0] not in given]
        with imports.trusting(trust):
            imports.check_trust(path, named)
    return config


def to_json(config: TrainConfig) -> dict:
    """Returns the content of a `config.json`."""
    return {"format": formats.FORMAT, **dataclasses.asdict(config)}


def save_config(config: TrainConfig, path: str) -> None:
    """Writes `config` as JSON that `load_config` reads back unchanged."""
    with open(path, "w", encoding="utf-8") as file:
        json.dump(to_json(config), file, indent=2)
        file.write("\n")


def _similar(path):
    """Returns a question that names a recipe with a similar path, or ""."""
    folder, name = os.path.split(path)
    recipes = {}
    for place in (os.path.join(folder, "configs"), folder):
        if os.path.isdir(place or "."):
            recipes |= {
                file: os.path.join(place, file)
                for file in os.listdir(place or ".")
                if file.endswith((".py", ".json"))
            }
    close = checks.nearest(os.path.splitext(name)[0] + ".py", recipes)
    return f". Did you mean {recipes[close]!r}?" if close else ""


def _read_json(path):
    with open(path, encoding="utf-8") as file:
        try:
            values = json.load(file)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path!r} is not a JSON file: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(
            f"{path!r} must hold an object of settings. "
            f"Received: {type(values).__name__}"
        )
    return values


def _run_recipe(path):
    spec = importlib.util.spec_from_file_location("recipe", path)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        make = getattr(module, "config", None)
        config = make() if callable(make) else make
    except Exception as error:
        raise ValueError(_error_in(path, error)) from error
    if not isinstance(config, TrainConfig):
        raise ValueError(
            f"{path!r} must have a function `config()` that returns a "
            f"TrainConfig. Received: {type(config).__name__}"
        )
    return dataclasses.asdict(config)


def _error_in(path, error):
    """Describes what went wrong in a recipe, and in which line."""
    text = str(error)
    if isinstance(error, SyntaxError):
        return f"Recipe {path!r}: {text}"
    if not isinstance(error, ValueError):
        text = f"{type(error).__name__}: {text}"
    lines = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename == path
    ]
    where = f", line {lines[-1]}" if lines else ""
    return f"Recipe {path!r}{where}: {text}"
