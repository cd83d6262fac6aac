"""Code that settings name, as "module:function", and whom it is called for.

A recipe, a flag or an argument is the user's own: the functions that it names
are called. A run directory is data: functions that its files name are refused
by `check_trust`, unless the user trusts it.
"""

import contextlib
import contextvars
import importlib
import inspect
import os
import pathlib
import sys
from collections.abc import Callable, Iterable, Iterator

from jest_tf.config import checks

# Whose classes a saved model may have without trust.
_KNOWN_PACKAGES = ("builtins", "jest_tf", "keras", "keras_hub")
_trusts = contextvars.ContextVar("trusts", default=False)
_trusted: set[str] = set()  # files of this process that needed trust


@contextlib.contextmanager
def trusting(trust: bool) -> Iterator[None]:
    """Trusts the run directories that the block reads, if `trust`."""
    token = _trusts.set(trust or _trusts.get())
    try:
        yield
    finally:
        _trusts.reset(token)


def check_trust(path: str, functions: Iterable[tuple[str, str]]) -> None:
    """Refuses functions that a file names, unless it is trusted.

    Args:
        path: the file, of a run directory or of a saved model.
        functions: settings with the "module:function" of each.
    """
    named = ", ".join(f"{setting}={name}" for setting, name in functions)
    if named and not _trusts.get():
        raise ValueError(
            f"{path} names functions, which are called only if you trust it. "
            f"Received: {named}; check what they do, then add `--trust` to the "
            "command, or `trust=True` in Python"
        )
    if named:
        _trusted.add(path)


def needed_trust(name: str) -> bool:
    """Returns whether a run directory or file, by then loaded, needed trust."""
    return any(
        name.rstrip("/") in (path, os.path.dirname(path)) for path in _trusted
    )


def search_here(trust: bool, names: Iterable[str] = ()) -> None:
    """Has Python search the working directory first, as under `python -m`.

    A directory in a run, or in one of the `names`, runs and `.keras` files that
    a command reads, is not searched without trust: it may have a namesake of
    any module.
    """
    here = os.path.realpath(os.getcwd())
    places = [
        os.path.dirname(os.path.realpath(name))
        if os.path.isfile(name)
        else os.path.realpath(name)
        for name in names
        if os.path.isfile(name)
        or os.path.isfile(os.path.join(name, "config.json"))
    ]
    is_named = any(
        os.path.commonpath([here, place]) == place for place in places
    )
    if not trust and (is_named or _lies_in_run(here)):
        sys.path[:] = [
            path for path in sys.path if os.path.realpath(path) != here
        ]
    elif not {"", here} & {*sys.path}:
        sys.path.insert(0, here)


def _lies_in_run(folder):
    """True if a folder, or one above it, is the directory of a run."""
    names = ("final.weights.h5", "checkpoints", "versions.json")
    here = pathlib.Path(folder)
    return any(
        (place / "config.json").is_file()
        and any((place / name).exists() for name in names)
        for place in (here, *here.parents)
    )


def load_function(setting: str, name: str) -> Callable:
    """Imports "module:function", the value of a `setting`."""
    expected, is_function = checks.FUNCTION
    rule = expected, lambda name: name and is_function(name)
    checks.check(setting, name, rule)
    module, function = name.split(":")
    # `os:abort`, for instance, or a module that runs local files.
    if module.partition(".")[0] in sys.stdlib_module_names:
        raise ValueError(
            f"`{setting}` must name a function of yours or of a package, not "
            f"one of Python's own library. Received: {name!r}"
        )
    imported = None
    try:
        imported = importlib.import_module(module)
        loaded = getattr(imported, function)
    except (ImportError, AttributeError) as error:
        hint = ""
        if imported:
            hint = checks.did_you_mean(function, vars(imported))
        raise ValueError(
            f"`{setting}` must name a function of a module that can be "
            f"imported from {os.getcwd()}. Received: {name!r} ({error}){hint}"
        ) from error
    if not callable(loaded):
        raise ValueError(
            f"`{setting}` must name a function. Received: {name!r}, "
            f"a {type(loaded).__name__}"
        )
    return loaded


def import_classes(path: str, serialized: dict) -> None:
    """Imports what a serialized Keras model has of other packages, on trust.

    What is registered already needs neither.

    Args:
        path: the file that it is from, of a run directory or of a saved model.
        serialized: as of `keras.saving.serialize_keras_object`.
    """
    from keras import saving

    found = {
        name: module
        for name, module, registered in classes(serialized)
        if saving.get_registered_object(registered or name) is None
    }
    check_trust(path, (("class", name) for name in sorted(found)))
    for name, module in sorted(found.items()):
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise ValueError(
                f"{path} must have classes of modules that can be imported "
                f"from {os.getcwd()}. Received: {name} ({error})"
            ) from error


def classes(serialized):
    """Yields "module:class", the module and the registered name of objects.

    Those of Keras and of this package are left out.
    """
    left = [serialized]
    while left:
        value = left.pop()
        if isinstance(value, list):
            left += value
        elif isinstance(value, dict):
            left += value.values()
            module, name = value.get("module"), value.get("class_name")
            known = str(module).partition(".")[0] in _KNOWN_PACKAGES
            if isinstance(module, str) and module and not known:
                yield f"{module}:{name}", module, value.get("registered_name")


def call_function(setting: str, name: str, result: str):
    """Calls "module:function" without arguments for a `result`."""
    function = load_function(setting, name)
    try:
        inspect.signature(function).bind()
    except TypeError as error:
        raise ValueError(
            f"`{setting}` must name a function without arguments that returns "
            f"a {result}. Received: {name!r} ({error})"
        ) from error
    return function()
