"""Checkpoints: the state of a run on disk, written whole and restored.

A checkpoint is a folder `step-000000100` with a TensorFlow checkpoint
(`tf.train.load_checkpoint` reads it). It has every array of the state by name:
the variables of the model (random seeds included) and of the optimizer, named
by their paths, and the arrays of callbacks. All versions of Keras get the same
names. Everything else is a function of (seed, step). If the newest checkpoint
fails TensorFlow's checksums, an earlier checkpoint is used.
"""

import collections
import contextlib
import functools
import hashlib
import math
import os
import re
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from jest_tf import config as config_lib
from jest_tf import files
from jest_tf.runs import directory, progress, steps
from jest_tf.training import stepper

_NAME = "step-{:09d}"
_DAMAGED = ".damaged"
_STATE = "state"  # prefix of the files in the folder
_KEPT = 2  # the newest, and the one before it in case that is damaged

# Arrays by name.
State = dict[str, np.ndarray]


class Damaged(ValueError):
    """A checkpoint fails its checksums, or a part of it is missing."""


class Restored(NamedTuple):
    """The step of a checkpoint, or 0, and the callbacks' state by name."""

    step: int
    parts: dict[str, State]


class Checkpoints(steps.StepCallback):
    """Saves the state when it is due, and deletes old checkpoints.

    A checkpoint is due at intervals of steps, before the reference is renewed,
    and after the last step. `parts` return the state of callbacks, by name;
    `guard` is a context manager that defers signals while saving.
    """

    def __init__(
        self,
        workdir: str,
        config: config_lib.TrainConfig,
        *,
        start_step: int = 0,
        parts: Mapping[str, Callable[[], State]] | None = None,
        guard: Callable = contextlib.nullcontext,
    ):
        super().__init__(start_step)
        self.seconds = 0.0
        self._workdir = workdir
        self._every_steps = config.checkpoint.every_steps
        self._last_step = config.steps
        self._stops = {config.steps, *config.bootstrap.renew_at}
        self._parts = dict(parts or {})
        self._guard = guard

    def on_train_begin(self, logs=None):
        """Checks that there is room for a checkpoint."""
        self._check_room()

    def on_train_batch_end(self, batch, logs=None):
        """Saves if a checkpoint is due."""
        super().on_train_batch_end(batch, logs)
        if self.is_due(self._every_steps) or self.step in self._stops:
            self.save()

    def save(self) -> None:
        """Saves the current state unless it is saved already.

        Raises:
            stepper.NotFinite: a weight or the optimizer's state is not finite;
                nothing is written.
        """
        started = time.monotonic()
        with self._guard():
            if self.step and self.step not in saved_steps(self._workdir):
                names = self._find_not_finite()
                if names:
                    raise stepper.NotFinite(names)
                parts = {name: part() for name, part in self._parts.items()}
                directory.sync_logs(self._workdir)  # before the state
                save(self.model, self._workdir, self.step, parts)
            self.delete_old()
            self._check_room()  # here, a full disk costs no step
        self.seconds += time.monotonic() - started

    def delete_old(self) -> None:
        """Deletes checkpoints that are not kept."""
        for step in saved_steps(self._workdir)[:-_KEPT]:
            files.remove_folder(_folder(self._workdir, step))

    def _check_room(self):
        if self.step < self._last_step:
            variables = _variables(self.model).values()
            directory.check_room(self._workdir, variables)

    @functools.cached_property
    def _find_not_finite(self):
        model = self.model
        return stepper.finder([*model.weights, *model.optimizer.variables])


def save(
    model: keras.Model,
    workdir: str,
    step: int,
    parts: Mapping[str, State] | None = None,
) -> None:
    """Writes a checkpoint of a compiled model, whole or not at all.

    Builds the model and its optimizer if necessary. `parts` is the state of
    callbacks, by name.
    """
    _build(model)
    arrays = {
        name: variable.numpy() for name, variable in _variables(model).items()
    }
    for part, state in (parts or {}).items():
        arrays |= {f"{part}/{name}": value for name, value in state.items()}
    directory.check_room(workdir, arrays.values())
    with (
        files.written_folder(_folder(workdir, step)) as partial,
        tf.device("CPU:0"),
    ):
        tf.raw_ops.SaveV2(
            prefix=os.path.join(partial, _STATE),
            tensor_names=list(arrays),
            shape_and_slices=[""] * len(arrays),
            tensors=[tf.constant(value) for value in arrays.values()],
        )


def restore(model: keras.Model, workdir: str) -> Restored:
    """Builds a compiled model, and loads the newest intact checkpoint if any.

    Damaged checkpoints are renamed, with a line on standard error.
    """
    _build(model)
    saved = saved_steps(workdir)
    for step in reversed(saved):
        try:
            return load(model, workdir, step)
        except Damaged as error:
            folder = _folder(workdir, step)
            # Another worker may have renamed it already.
            with contextlib.suppress(FileNotFoundError):
                files.move_folder(folder, folder + _DAMAGED)
            progress.say(
                f"{error}; renamed to {folder}{_DAMAGED}, looking for the "
                "checkpoint before it"
            )
    damaged = saved_steps(workdir, _DAMAGED)
    if damaged:
        raise ValueError(
            f"All checkpoints of {workdir!r} are damaged; expected one that is "
            f"whole. Received: damaged checkpoints of steps {damaged}; put a "
            "checkpoint back from a backup, or train in another directory"
        )
    return Restored(0, {})


def load(model: keras.Model, workdir: str, step: int) -> Restored:
    """Builds a compiled model, and loads the checkpoint of a step.

    Raises:
        Damaged: the checkpoint is damaged; the model is unchanged.
    """
    if step not in saved_steps(workdir):
        raise ValueError(
            f"`step` must be one of the checkpoints of {workdir!r}, "
            f"{saved_steps(workdir)}. Received: {step}"
        )
    arrays = read(workdir, step)
    _build(model)
    variables = _variables(model)
    _check_same(_folder(workdir, step), arrays, variables)
    for name, variable in variables.items():
        variable.assign(arrays.pop(name))
    parts = collections.defaultdict(dict)
    for name, value in arrays.items():
        part, _, rest = name.partition("/")
        parts[part][rest] = value
    return Restored(step, dict(parts))


def read(workdir: str, step: int) -> State:
    """Returns all arrays of a checkpoint, by name.

    Raises:
        Damaged: TensorFlow cannot read them, though the files can be read.
        OSError: the files cannot be read.
    """
    folder = _folder(workdir, step)
    with files.staged_folder(folder) as local:
        try:
            # `tf.train.load_checkpoint` would take a folder of this name for a
            # list of checkpoints, and follow a path that is written in it.
            reader = tf.compat.v1.train.NewCheckpointReader(
                os.path.join(local, _STATE)
            )
            _check_sizes(local, reader)
            return {
                name: np.asarray(reader.get_tensor(name))
                for name in sorted(reader.get_variable_to_shape_map())
            }
        # TensorFlow's binding raises `IndexError` on a file that is too short.
        except (tf.errors.OpError, IndexError) as error:
            # A disk that does not answer raises the same OpError as damage.
            for name in os.listdir(local):
                with open(os.path.join(local, name), "rb") as file:
                    hashlib.file_digest(file, "blake2b")  # or raises OSError
            raise Damaged(f"{folder} is damaged: {error}") from error


def _check_sizes(folder, reader):
    """Refuses arrays that are larger than the files, before they are read."""
    kinds = reader.get_variable_to_dtype_map()
    arrays = sum(
        math.prod(shape) * kinds[name].size
        for name, shape in reader.get_variable_to_shape_map().items()
    )
    stored = sum(
        os.path.getsize(os.path.join(folder, name))
        for name in os.listdir(folder)
    )
    if arrays > stored:
        raise IndexError(f"{arrays:,} bytes of arrays in {stored:,} of files")


def saved_steps(workdir: str, suffix: str = "") -> list[int]:
    """Returns the steps with checkpoints, named with `suffix`, ascending."""
    folder = directory.path(workdir, directory.CHECKPOINTS_FOLDER)
    pattern = rf"step-(\d+){re.escape(suffix)}"
    matches = (
        re.fullmatch(pattern, name) for name in files.list_folder(folder)
    )
    steps = sorted(int(match[1]) for match in matches if match)
    if files.is_remote(workdir):
        # A process that was killed may have left files without an index.
        steps = [
            step
            for step in steps
            if files.is_file(f"{_folder(workdir, step)}{suffix}/{_STATE}.index")
        ]
    return steps


def _folder(workdir, step):
    folder = directory.path(workdir, directory.CHECKPOINTS_FOLDER)
    return directory.path(folder, _NAME.format(step))


def _named(paths, variables):
    """Names variables by their paths, identically in every process.

    Keras numbers layers per process, so numbers are dropped, and equal names
    are distinguished by order.
    """
    by_name, counts = {}, collections.Counter()
    for path, variable in zip(paths, variables, strict=True):
        name = re.sub(r"_\d+(?=[/_]|$)", "", path)
        counts[name] += 1
        if counts[name] > 1:
            name += f".{counts[name]}"
        by_name[name] = variable
    return by_name


def _optimizer_paths(optimizer):
    """Returns the paths of an optimizer's variables, with its class as a name.

    Paths in Keras have the optimizer's name, whose default depends on Keras'
    version: an AdamW is `adamw` in 3.12 and `adam_w` in 3.15.
    """
    inner = getattr(optimizer, "inner_optimizer", optimizer)  # loss scaling
    kinds = {
        part.name: _snake_case(type(part).__name__)
        for part in (optimizer, inner)
    }
    return [
        "/".join(kinds.get(part, part) for part in variable.path.split("/"))
        for variable in optimizer.variables
    ]


def _snake_case(name):
    name = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower()


def _build(model):
    model.build(None)
    if not model.optimizer.built:  # loss scaling would make its state anew
        model.optimizer.build(model.trainable_variables)


def _variables(model):
    """Returns every variable of a run's state, by name."""
    optimizer = model.optimizer
    groups = {
        "model": _named([v.path for v in model.variables], model.variables),
        "optimizer": _named(_optimizer_paths(optimizer), optimizer.variables),
    }
    return {
        f"{group}/{name}": variable
        for group, variables in groups.items()
        for name, variable in variables.items()
    }


def _check_same(folder, arrays, variables):
    stored = {
        name: value.shape
        for name, value in arrays.items()
        if name.startswith(("model/", "optimizer/"))
    }
    expected = {
        name: tuple(variable.shape) for name, variable in variables.items()
    }
    different = [
        f"{name} of shape {stored.get(name)}, and of {expected.get(name)} in "
        "the model"
        for name in sorted(dict(stored.items() ^ expected.items()))
    ]
    if different:
        raise ValueError(
            f"{folder} must hold the state of this very model: it is whole, "
            "but was written with other code. Received: "
            f"{stepper.shorten(different)}"
        )
