"""The command `jest-tf`: its subcommands and their errors.

A command is a module with `add_arguments(parser)` and `run(flags)`. Parsing and
`--help` load no TensorFlow: `run` imports what it needs.
"""

import argparse
import gc
import importlib.util
import os
import platform
import re
import sys
import traceback
from collections.abc import Sequence

from jest_tf import files
from jest_tf.config import checks, imports, overrides
from jest_tf.files import disks

# The exit code of `runs.interruptions.Preempted`.
_AGAIN = 75
# Flags that name a run or a `.keras` file.
_NAMING_RUNS = ("workdir", "model", "reference")
COMMANDS = (
    *("train", "embed", "evaluate", "curate", "advise", "page"),
    "export",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command in this process.

    Returns:
        The exit code: 0 on success, 1 on an error, which is printed, 2 on
        arguments that cannot be parsed, 75 if the command should be run again.
    """
    try:
        execute(argv)
    except SystemExit as stopped:
        if not isinstance(stopped.code, str):
            return stopped.code or 0
        print(stopped.code, file=sys.stderr)
        return 1
    return 0


def execute(argv: Sequence[str] | None = None, command: str = "") -> None:
    """Runs a command as `main` does, but exits unless it succeeds.

    If `command` names the command, `argv` holds only what follows the name.

    Raises:
        SystemExit: with "error: ..." for a ValueError, with 1 for any other
            error, whose traceback is printed, or with an exit code.
    """
    try:
        _execute(argv, command)
    except SystemExit as stopped:
        if stopped.code:
            _leave_workers(stopped.code)
        raise


@disks.temporary()
def _execute(argv, command):
    # TensorFlow and Keras read these when they are imported.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    # JAX compiles a step for minutes; a second run takes it from this cache.
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    cache = os.path.join(cache, "jest_tf", f"jax-{platform.node()}")
    cache = os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", cache)
    if "://" not in cache:
        # A limit needs a lock, which JAX cannot take on a bucket; there, small
        # programs are compiled sooner than they are read.
        os.environ.setdefault("JAX_COMPILATION_CACHE_MAX_SIZE", str(2**32))
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    # A page of `files/remote.py`, and the byte before it.
    os.environ.setdefault("GCS_READAHEAD_BUFFER_SIZE_BYTES", str(2**20 + 1))
    thresholds = gc.get_threshold()
    # Imports and traces make a million objects that stay. Looking for garbage
    # among them again and again delays the first step.
    gc.set_threshold(100_000)
    try:
        words = sys.argv[1:] if argv is None else argv
        flags = parser().parse_args([command, *words] if command else words)
        _check_backend()
        # Before importing TensorFlow, as a run may have a module of that name.
        trust = getattr(flags, "trust", False)
        named = (getattr(flags, name, None) for name in _NAMING_RUNS)
        imports.search_here(trust, filter(None, named))
        with imports.trusting(trust):
            return flags.run(flags)
    except ValueError as error:
        code = f"error: {error}"
    except SystemExit as stopped:
        code = stopped.code
    except OSError as error:
        code = f"error: {error}"
        # An error with a file name or a remote path explains itself.
        if error.filename is None and not files.is_remote(code):
            traceback.print_exc()
            code = 1
    except Exception:
        traceback.print_exc()
        code = 1
    finally:
        gc.set_threshold(*thresholds)
    if code:
        # An error's frames hold tf.data iterators, whose threads keep the
        # process from ending. They can be freed once the handler has been left.
        gc.collect()
    sys.exit(code)


def _check_backend():
    backend = os.environ["KERAS_BACKEND"]
    checks.check("KERAS_BACKEND", backend, checks.among("tensorflow", "jax"))
    if backend == "jax" and importlib.util.find_spec("jax") is None:
        raise ValueError(
            "`KERAS_BACKEND=jax` needs JAX: pip install '.[jax]' in a clone "
            "(docs/jax.md). Received: an environment without it"
        )


def _leave_workers(code):
    """Ends a process of several on JAX that has failed.

    At its exit, JAX would wait for the others, which wait for this one.
    """
    jax = sys.modules.get("jax")
    if jax is None or not jax.distributed.is_initialized():
        return
    if code == _AGAIN:  # then all stop together
        return
    if isinstance(code, str):
        print(code, file=sys.stderr)
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def parser() -> argparse.ArgumentParser:
    """Returns the parser of the whole command line."""
    whole = _Parser(
        "jest-tf",
        description="Joint example selection for TensorFlow and Keras.",
        epilog="`jest-tf COMMAND --help` describes a command.",
        allow_abbrev=False,
    )
    commands = whole.add_subparsers(
        dest="command", required=True, metavar="COMMAND"
    )
    for name in COMMANDS:
        module = importlib.import_module(f"{__name__}.{name}")
        summary, _, rest = module.__doc__.partition("\n\n")
        command = commands.add_parser(
            name,
            help=summary,
            description=summary,
            epilog=rest,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.set_defaults(run=module.run)
        module.add_arguments(command)
    return whole


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line and say what was probably meant."""

    def parse_known_args(self, args=None, namespace=None):
        # Before required flags are checked: one of them may be misspelt.
        for place, word in enumerate(args or () if self._is_command else ()):
            flag = word.partition("=")[0]
            if (
                re.fullmatch("--?[A-Za-z][^ ]*", flag)
                and flag not in self._option_string_actions
            ):
                self.error(
                    f"unknown flag {flag}{self._meant(flag, args[place:])}"
                )
        flags, rest = super().parse_known_args(args, namespace)
        if rest and self._is_command:
            self.error(self._misplaced(rest))
        return flags, rest

    def error(self, message):
        if not message.endswith("?"):
            message += f". See `{self.prog} --help`"
        self.exit(2, f"error: {message}\n")

    @property
    def _is_command(self):
        return " " in self.prog

    def _check_value(self, action, value):
        if action.choices is not None and value not in action.choices:
            name = "/".join(action.option_strings) or action.metavar
            rule = checks.among(*action.choices)
            try:
                checks.check(name, value, rule)
            except ValueError as error:
                self.error(str(error))

    def _meant(self, flag, words):
        """Suggests what `flag`, the first of `words`, was meant to be."""
        known = [option.lstrip("-") for option in self._option_string_actions]
        name = flag.lstrip("-").replace("-", "_").removeprefix("config.")
        close, setting = checks.nearest(name.replace("_", "-"), known), ""
        if settings := self.get_default("settings"):
            setting = overrides.similar(settings, name)
        is_named = setting.rpartition(".")[2] == name.rpartition(".")[2]
        if close and (close == name or not is_named):
            return f". Did you mean --{close}?"
        if setting or "set" in known:
            _, _, value = words[0].partition("=")
            value = value or next(iter(words[1:2]), "...")
            return f". Did you mean `--set {setting or name}={value}`?"
        return ""

    def _misplaced(self, words):
        message = f"unexpected {' '.join(words)}"
        flags = self._option_string_actions
        if "--set" in flags and all("=" in word for word in words):
            return f"{message}. Did you mean `--set {' '.join(words)}`?"
        if "--config" in flags and words[0].endswith((".py", ".json")):
            return f"{message}. Did you mean `--config {words[0]}`?"
        return message
