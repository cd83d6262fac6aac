"""Trains tiny runs in processes of their own, for `test_resume.py`.

Importing TensorFlow takes most of the time of a tiny run, so this process
imports it once and forks for each run that a line of its input asks for. A line
is an object: `workdir`, `settings`, overrides like those of `--set`, and the
`number` of a signal that the run is to get `at` a place, counted in the calls
of `CALLS`, or of `REMOTE_CALLS` with a remote `workdir`; with `touching` in
those whose path has this part. With a remote `workdir`, `local` begins the
names of local files, the temporary folder's among them, a dead run's lease
expires in a second, and a request is slow after a second. A SIGTERM ends the
process after `grace` seconds. Its output is a line with the process's number,
and another with how it ended.
"""

import glob
import json
import os
import signal
import sys
import tempfile
import traceback
from unittest import mock

import keras
import tiny

from jest_tf import cli, config, models
from jest_tf.cli import train as train_command
from jest_tf.config import overrides as overrides_lib
from jest_tf.data import reader
from jest_tf.files import leases, remote, retries
from jest_tf.runs import checkpoints

# What makes a run's state durable or deletes it; between two of them nothing
# that counts changes.
CALLS = ("fsync", "replace", "remove")
REMOTE_CALLS = ("upload", "remove")


def recipe(folder, overrides=()):
    """A run of a second on the shards in `folder`."""
    shard = os.path.join(folder, "a.tfrecord")
    values = {
        "seed": 5,
        "steps": 24,
        "data": {
            "train": (shard, os.path.join(folder, "damaged.tfrecord")),
            "image_size": tiny.IMAGE_SIZE,
            "text_length": tiny.TEXT_LENGTH,
            "min_crop_area": 0.5,
            "vocabulary_size": tiny.VOCABULARY_SIZE,
        },
        # `build_learner` below takes the place of what is named.
        "model": {"towers": "run_server:build_learner"},
        "selection": {
            "batch_size": 4,
            "stages": (
                {"candidates": 3, "num_chunks": 2, "criterion": "hard_learner"},
            ),
        },
        "optimizer": {"learning_rate": 0.05, "warmup_steps": 2, "ema": 0.8},
        "evaluation": {
            "data": (shard,),
            "every_steps": 6,
            "log_every_steps": 5,
            "log_ids": True,
        },
        "checkpoint": {"every_steps": 4},
    }
    for override in overrides:
        overrides_lib.override(config.TrainConfig, values, override)
    return overrides_lib.build(config.TrainConfig, values)


def build_learner(config, vocabulary_size):
    """Has every kind of state: batch norm's means, dropout's counter."""
    extra = [
        keras.layers.BatchNormalization(),
        keras.layers.Dropout(0.1, seed=1),
    ]
    return tiny.learner(config.seed, extra=extra)


def run(
    workdir,
    settings,
    at=None,
    number=signal.SIGKILL,
    local=None,
    touching="",
    grace=train_command.GRACE,
    kept=2,
):
    """As `python -m trainers.train`, with so many checkpoints kept."""
    checkpoints._KEPT = kept
    calls = 0

    def counted(function):
        def call(*arguments, **options):
            nonlocal calls
            calls += any(touching in str(argument) for argument in arguments)
            if calls - 1 == at:
                _tear(arguments, number)
                os.kill(os.getpid(), number)
            return function(*arguments, **options)

        return call

    folder = os.path.dirname(local or workdir)
    config_file = f"{local or workdir}.json"
    config.save_config(recipe(folder, settings), config_file)
    with (
        mock.patch.object(models, "build_learner", build_learner),
        mock.patch.object(reader, "MAX_FAULT_RATE", 0.5),
    ):
        if local:
            tempfile.tempdir = f"{local}.tmp"
            os.makedirs(tempfile.tempdir, exist_ok=True)
            leases.BEAT, leases.EXPIRY, leases.PAUSE = 0.4, 1.0, 0.05
            retries.SILENCE, train_command.GRACE = 1.0, grace
            module, names = remote, REMOTE_CALLS
        else:
            module, names = checkpoints.os, CALLS
        for name in names:
            setattr(module, name, counted(getattr(module, name)))
        words = ["--config", config_file, "--workdir", workdir, "--trust"]
        cli.execute(words, "train")


def _tear(arguments, number):
    """Half of each file that has no name yet is lost."""
    if number != signal.SIGKILL or not isinstance(arguments[0], str):
        return
    for path in glob.glob(f"{arguments[0]}/*") or arguments[:1]:
        if ".partial" in path and os.path.isfile(path):
            os.truncate(path, os.path.getsize(path) // 2)


def main():
    """Forks for every line of the input."""
    for line in sys.stdin:
        request = json.loads(line)
        process = os.fork()
        if not process:
            _child(request)
        print(process, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), flush=True)


def _child(request):
    name = request.get("local", request["workdir"])
    log = os.open(f"{name}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    # A shell that starts the tests in the background has them ignore it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    code = 1
    try:
        run(**request)
        code = 0
    except SystemExit as stop:
        print(stop, file=sys.stderr)
        code = stop.code if isinstance(stop.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    main()
