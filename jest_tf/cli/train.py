"""Train a recipe, or continue the run that a directory holds.

A run directory gets `config.json` (every setting, resolved), `versions.json`,
the vocabulary, `checkpoints/`, `final.weights.h5` (the learner), `tensorboard/`
and logs: `metrics.jsonl` (a JSON object per logged step), `evaluation.jsonl`,
`flops.json`. After SIGTERM or Ctrl-C the command finishes its step, saves, and
exits with code 75; the same command continues. A second Ctrl-C kills it.
"""

import argparse
import contextlib
import os
import re
import signal
import socket
import threading

from jest_tf import config
from jest_tf.cli import flags as flags_lib
from jest_tf.config import checks, overrides

# Seconds that a process has to end by itself after SIGTERM; a pod has 30.
GRACE = 18.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's flags, and the settings to the epilog of its help."""
    add = parser.add_argument
    add(
        "--config",
        metavar="FILE",
        help="a recipe (default: the settings of the run in the directory)",
    )
    add("--workdir", required=True, help="the run directory")
    add(
        "--set",
        **flags_lib.SETTINGS,
        help="settings to override, such as selection.batch_size=64",
    )
    add(
        "--dry-run",
        action="store_true",
        help="check the recipe and its data, print the plan, do not train",
    )
    add(
        "--extend",
        type=int,
        metavar="STEPS",
        help="train the finished run in the directory for further steps; "
        "unless constant, the learning rate begins anew",
    )
    flags_lib.add_trust(parser)
    parser.set_defaults(settings=config.TrainConfig)
    parser.epilog = (
        f"{parser.epilog}\nsettings and their defaults:\n"
        f"{overrides.describe(config.TrainConfig)}"
    )


@contextlib.contextmanager
def _signals_answered():
    """Ends the process on SIGTERM, whatever it is doing.

    It ends at once, unless `runs.train` handles the signal, and after `GRACE`
    seconds in any case. Python calls a handler once TensorFlow returns to the
    main thread, but TensorFlow may retry a bucket for minutes. So a thread
    watches a socket, also while the process waits for requests at its end.
    """

    def stop(number, frame):
        # Raises no exception: it may get lost while modules are imported.
        leave("stopped by SIGTERM; the same command goes on")

    def watch():
        with end:
            while number := end.recv(1):
                if number[0] == signal.SIGTERM and not over.wait(GRACE):
                    leave(
                        ""
                        if is_ending
                        else f"stopped by SIGTERM {GRACE:g} s ago, before the "
                        "work in progress had ended; the same command "
                        "continues from the last checkpoint"
                    )

    def leave(text):
        os.write(2, f"{text}\n".encode() if text else b"")
        os._exit(75)  # as `runs/interruptions.py`, which loads TensorFlow

    if (
        threading.current_thread() is not threading.main_thread()
        or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL
    ):
        yield
        return
    is_ending, over = False, threading.Event()
    end, signaled = socket.socketpair()
    signaled.setblocking(False)
    signal.signal(signal.SIGTERM, stop)
    before = signal.set_wakeup_fd(signaled.fileno(), warn_on_full_buffer=False)
    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    except SystemExit:
        is_ending = True
        raise
    finally:
        if not is_ending:
            over.set()
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.set_wakeup_fd(before)
            signaled.close()


@_signals_answered()
def run(flags: argparse.Namespace) -> None:
    """Trains, or prints what would be done."""
    if flags.extend is not None:
        _extend(flags)
        return
    recipe = config.load_config(flags.config or _settings(flags), flags.set)
    from jest_tf import runs
    from jest_tf.cli import dry_run

    try:
        if flags.dry_run:
            print(dry_run.report(recipe, flags.workdir))
        else:
            runs.train(recipe, flags.workdir)
    except Exception as error:
        # TensorFlow's or JAX's error may come from any device and step.
        is_full = type(error).__name__ == "ResourceExhaustedError"
        is_full |= str(error).startswith("RESOURCE_EXHAUSTED")
        if not is_full and not isinstance(error, MemoryError):
            raise
        raise ValueError(_out_of_memory(recipe, str(error))) from error


def _out_of_memory(recipe, text):
    c = recipe.data.curated_rows
    match = re.search("(OOM|Out of memory|RESOURCE_EXHAUSTED)[^\n]*", text)
    reason = match[0][:200] if match else " ".join(text.split())[:200]
    return (
        "Out of memory: lower `scoring_batch_size` of the live stages or "
        "`model.micro_batch_size` to embed fewer rows at a time, or set "
        "`model.dtype_policy=mixed_bfloat16` to halve their size. Received: "
        f"rows into and out of the stages {recipe.selection.sizes(c)}, "
        "scoring_batch_size="
        f"{[stage.scoring_batch_size for stage in recipe.selection.live]}, "
        f"model.micro_batch_size={recipe.model.micro_batch_size} ({reason})"
    )


def _settings(flags):
    from jest_tf.runs import directory

    if not directory.has(flags.workdir, directory.CONFIG_FILE):
        raise ValueError(
            "`--config` must name a recipe, unless `--workdir` holds a run "
            f"to continue. Received: no recipe, {flags.workdir!r}"
        )
    return directory.path(flags.workdir, directory.CONFIG_FILE)


def _extend(flags):
    checks.check("--extend", flags.extend, checks.at_least(1))
    others = ("config", "set", "dry_run")
    given = [
        f"--{field.replace('_', '-')}"
        for field in others
        if getattr(flags, field)
    ]
    if given:
        raise ValueError(
            "`--extend` goes on with the settings of the run: expected "
            f"`--workdir` alone beside it. Received: {', '.join(given)}"
        )
    from jest_tf import runs

    runs.extend(flags.workdir, flags.extend)
