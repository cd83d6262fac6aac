"""Loading models: the learner of a run, or any model by name."""

from collections.abc import Sequence

from jest_tf import models, training
from jest_tf.data import tokenizers
from jest_tf.models import pretrained, reference
from jest_tf.runs import checkpoints, directory


def load_run(
    workdir: str, step: int | None = None, patch_sizes: Sequence[int] = ()
) -> reference.Run:
    """Loads the learner of a run; only the run directory is read.

    Args:
        workdir: the run directory.
        step: of the checkpoint to load; None takes the final weights.
        patch_sizes: further ones that the learner will be called with.

    Raises:
        ValueError: there is no run, no such checkpoint, or, without `step`, the
            run has not finished.
    """
    if step is None:
        check_finished(workdir)
    config = directory.load_config(workdir)
    tokenizer = tokenizers.load_tokenizer(workdir, config.data.text_length)
    learner = models.build_learner(
        config, tokenizer.vocabulary_size, patch_sizes
    )
    if step is None:
        learner.load_weights(directory.path(workdir, directory.WEIGHTS_FILE))
    else:
        # A checkpoint is of the whole model, which has no other weights.
        model = training.build_model(
            config, learner, reference.cached(1.0, 0.0)
        )
        checkpoints.load(model, workdir, step)
        # With `optimizer.ema`, the average, as evaluations have it.
        model.optimizer.finalize_variable_values(model.trainable_variables)
    return reference.Run(config, tokenizer, learner, workdir)


def load_model(name: str) -> reference.Run | reference.Pretrained:
    """Loads a model by name: a finished run's learner, or a pretrained one.

    Args:
        name: a run directory, or a name that `pretrained.load` takes.

    Raises:
        ValueError: there is no such model, or what it needs is not installed.
    """
    if pretrained.is_name(name):
        return pretrained.load(name)
    return load_run(name)


def check_model(name: str, setting: str) -> None:
    """Raises ValueError unless `load_model` knows `name`, a `setting`."""
    if pretrained.is_name(name):
        pretrained.check(name, setting)
    else:
        check_finished(name, setting)


def check_finished(workdir: str, setting: str = "workdir") -> None:
    """Raises ValueError unless `workdir`, a `setting`, holds a finished run."""
    for name in (directory.CONFIG_FILE, directory.WEIGHTS_FILE):
        if not directory.has(workdir, name):
            raise ValueError(
                f"`{setting}` must be the directory of a finished run, with "
                f"{name}: train that first. Received: {workdir!r}"
            )
