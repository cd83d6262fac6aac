"""The state of a run on disk: written whole or not at all, found again.

A checkpoint is one `.weights.h5` file with the weights, the optimizer's state
and the running metrics. Data, draws and augmentation are functions of
(seed, step), so the step is all that a run needs beside it. Preemption and the
policies for non-finite losses are not here.
"""

import json
import os
import re

import keras

METRICS_FILE = "metrics.jsonl"
DRAWS_FILE = "draws.jsonl"
EVALUATION_FILE = "evaluation.jsonl"

_FOLDER = "checkpoints"
_NAME = "step-{:09d}.weights.h5"


def save_weights(model: keras.Model, path: str) -> None:
    """Writes `model`'s weights to `path` in one atomic step."""
    # Keras wants the suffix, so the half-written file carries it too.
    partial = f"{path}.partial.weights.h5"
    model.save_weights(partial)
    os.replace(partial, path)


class Checkpoints(keras.callbacks.Callback):
    """Saves the state every so many steps and after the last.

    Args:
        workdir: the run directory.
        every_steps: steps between two checkpoints.
        keep: checkpoints that stay, the newest.
        start_step: steps done before this `fit`.
        last_step: the step that ends the run.
    """

    def __init__(
        self,
        workdir: str,
        *,
        every_steps: int,
        keep: int,
        start_step: int = 0,
        last_step: int,
    ):
        super().__init__()
        self._folder = os.path.join(workdir, _FOLDER)
        self._every_steps = every_steps
        self._keep = keep
        self._start_step = start_step
        self._last_step = last_step
        os.makedirs(self._folder, exist_ok=True)

    def on_train_batch_end(self, batch, logs=None):
        """Saves if the step is due."""
        step = self._start_step + batch + 1
        if step % self._every_steps and step != self._last_step:
            return
        save_weights(self.model, os.path.join(self._folder, _NAME.format(step)))
        for old in _steps(self._folder)[: -self._keep]:
            os.remove(os.path.join(self._folder, _NAME.format(old)))


def restore(model: keras.Model, workdir: str) -> int:
    """Loads the newest checkpoint and cuts the logs back to its step.

    Args:
        model: compiled and built, its optimizer too.
        workdir: the run directory.

    Returns:
        The step that was restored, 0 if there is no checkpoint.
    """
    folder = os.path.join(workdir, _FOLDER)
    steps = _steps(folder)
    step = steps[-1] if steps else 0
    if step:
        model.load_weights(os.path.join(folder, _NAME.format(step)))
    for name in (METRICS_FILE, DRAWS_FILE, EVALUATION_FILE):
        _cut(os.path.join(workdir, name), step)
    return step


def _steps(folder):
    if not os.path.isdir(folder):
        return []
    found = (
        re.fullmatch(r"step-(\d+)\.weights\.h5", name)
        for name in os.listdir(folder)
    )
    return sorted(int(match[1]) for match in found if match)


def _cut(path, last_step):
    """Drops the lines of steps after `last_step`, and a half-written one."""
    if not os.path.isfile(path):
        return
    kept = []
    with open(path, encoding="utf-8") as file:
        for line in file:
            try:
                if json.loads(line)["step"] > last_step:
                    break
            except (ValueError, KeyError):
                break
            kept.append(line.rstrip("\n") + "\n")
    partial = f"{path}.partial"
    with open(partial, "w", encoding="utf-8") as file:
        file.writelines(kept)
    os.replace(partial, path)
