"""Code that settings name, as "module:function".

A run directory is data: a module in it is imported only if the user trusts it.
Modules of packages are imported, and so are modules of the working directory,
unless that lies in a run directory.
"""

import contextlib
import importlib
import importlib.machinery
import inspect
import os
import sys
import sysconfig
from collections.abc import Callable, Iterable, Iterator

from jest_tf import files
from jest_tf.config import checks

# Real paths of run directories, and whether each is trusted.
_runs: dict[str, bool] = {}
_trusts_all = False
# Always trusted: a run directory may be a whole project, with its packages.
_PACKAGES = [
    os.path.dirname(os.path.dirname(os.path.realpath(__file__))),
    *(
        os.path.realpath(sysconfig.get_path(name))
        for name in ("stdlib", "platstdlib", "purelib", "platlib")
    ),
]


def begin_command(names: Iterable[str], trust: bool) -> None:
    """Begins a command that loads models by name; `trust` is for all of them.

    The working directory is searched first, as under `python -m`, unless it
    lies in a run directory that is not trusted.
    """
    global _trusts_all
    names, _trusts_all = list(names), trust
    _runs.clear()
    for name in names:
        enter(name)
    if not {"", os.getcwd()} & {*sys.path}:
        sys.path.insert(0, os.getcwd())
    sys.path[:] = [path for path in sys.path if not _is_distrusted(path)]


def enter(name: str, trust: bool | None = None) -> None:
    """Notes whether to trust a run directory, or the folder of a `.keras` file.

    None keeps the earlier note, if any. The command's trust always counts.
    """
    name = files.local_path(name)
    if not name or files.is_remote(name):
        return
    folder = os.path.dirname(name) if name.endswith(".keras") else name
    real = os.path.realpath(folder)
    if trust is None:
        trust = _runs.get(real, False)
    _runs[real] = trust or _trusts_all


@contextlib.contextmanager
def only_trusted(name: str, trust: bool) -> Iterator[None]:
    """Keeps Python from searching untrusted run directories in the block."""
    enter(name, trust)
    hidden = [path for path in sys.path if _is_distrusted(path)]
    sys.path[:] = [path for path in sys.path if path not in hidden]
    try:
        yield
    finally:
        sys.path[:0] = hidden


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
    for file in _find_files(module).values():
        if _is_distrusted(file):
            raise ValueError(
                f"`{setting}` names code in a run directory, which is data "
                f"unless you trust it. Received: {name!r}, in {file}. Once you "
                "have read it, `--trust` imports it, or in Python "
                "`jest_tf.load(..., trust=True)`"
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


def describe(names: Iterable[str]) -> str:
    """Lists the modules of some "module:function", with their files."""
    modules = dict.fromkeys(name.partition(":")[0] for name in names)
    return ", ".join(
        f"{module} ({_find_files(module).get(module, 'not found')})"
        for module in modules
    )


def _find_files(module):
    """The files of a module and of the packages around it, by name.

    Imports nothing, whereas `importlib.util.find_spec` imports packages.
    """
    origins, places, whole = {}, None, ""
    for name in module.split("."):
        whole = f"{whole}.{name}".lstrip(".")
        spec = _spec(whole, name, places)
        if spec is None:
            break
        if spec.has_location:
            origins[whole] = spec.origin
        places = spec.submodule_search_locations or []
    return origins


def _spec(whole, name, places):
    if whole in sys.modules:
        return sys.modules[whole].__spec__
    for finder in sys.meta_path:
        if finder is importlib.machinery.PathFinder:
            # Given the whole name, it would take the package of sys.modules.
            path = [*sys.path, os.getcwd()] if places is None else [*places]
            spec = finder.find_spec(name, path)
        else:
            spec = finder.find_spec(whole, places)
        if spec is not None:
            return spec
    return None


def _is_distrusted(path):
    """True if a path lies in a run directory that is not trusted."""
    folder, name = os.path.split(os.path.abspath(path))
    # The file itself, and the target if it is a link.
    for place in (
        os.path.join(os.path.realpath(folder), name),
        os.path.realpath(path),
    ):
        if any(_lies_in(place, package) for package in _PACKAGES):
            continue
        if any(
            _lies_in(place, run) for run, trust in _runs.items() if not trust
        ):
            return True
    return False


def _lies_in(path, folder):
    return os.path.commonpath([path, folder]) == folder
