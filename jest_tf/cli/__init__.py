"""The command `jest-tf`: its subcommands and their errors.

A command is a module with `add_arguments(parser)` and `run(flags)`. Parsing and
`--help` load no TensorFlow: `run` imports what it needs.
"""

import argparse
import gc
import importlib
import os
import sys
import traceback
from collections.abc import Sequence

from jest_tf import files

COMMANDS = (
    *("train", "embed", "evaluate", "curate", "advise", "page", "export"),
    "worker",
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

    `argv` follows the name of the command if `command` has it.

    Raises:
        SystemExit: with "error: ..." for a ValueError, with 1 for any other
            error, whose traceback is printed, or with an exit code.
    """
    # TensorFlow and Keras read these when they are imported.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    os.environ.setdefault("GCS_READAHEAD_BUFFER_SIZE_BYTES", str(2**21))
    # As under `python -m`: settings may name modules of the working directory.
    if not {"", os.getcwd()} & {*sys.path}:
        sys.path.insert(0, os.getcwd())
    try:
        words = sys.argv[1:] if argv is None else argv
        flags = _parse([command, *words] if command else words)
        _check_backend()
        return flags.run(flags)
    except ValueError as error:
        code = f"error: {error}"
    except SystemExit as stopped:
        code = stopped.code
    except OSError as error:
        code = f"error: {error}"
        if not files.is_remote(code):  # a bucket says what it refuses
            traceback.print_exc()
            code = 1
    except Exception:
        traceback.print_exc()
        code = 1
    # An error's frames hold tf.data iterators, whose threads keep the process
    # from ending. They can be freed once the handler has been left.
    gc.collect()
    sys.exit(code)


def parser() -> argparse.ArgumentParser:
    """Returns the parser of the whole command line."""
    whole = argparse.ArgumentParser(
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
            # Some of Apache Beam's options, which `curate` passes on, begin
            # like ours.
            allow_abbrev=False,
        )
        command.set_defaults(run=module.run)
        module.add_arguments(command)
    return whole


def _parse(argv):
    known = parser()
    flags, rest = known.parse_known_args(argv)
    if rest and not getattr(flags, "beam", False):
        known.error(f"unrecognized arguments: {' '.join(rest)}")
    flags.beam_options = rest
    return flags


def _check_backend():
    backend = os.environ["KERAS_BACKEND"]
    if backend != "tensorflow":
        raise ValueError(
            "The environment's `KERAS_BACKEND` must be 'tensorflow': "
            f"selection runs inside its graphs. Received: {backend!r}"
        )
