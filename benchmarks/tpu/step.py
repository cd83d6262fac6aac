"""The model of a run, its super-batches, and the step that `fit` traces."""

import keras
import tensorflow as tf

from jest_tf import config as config_lib
from jest_tf import distribution, models, training
from jest_tf.models import reference
from jest_tf.training import funnel as funnel_lib

# Of the embeddings in sidecars; another than the learner's, where it may be.
_REFERENCE_DIM = 48


def build_model(config: config_lib.TrainConfig) -> training.JESTModel:
    """The model of a run, its optimizer built.

    A `reference.model` of any name is a learner of the same size, with its
    first weights. Without a model the reference's embeddings come with the
    batch.
    """
    vocabulary_size = config.data.vocabulary_size
    learner = models.build_learner(config, vocabulary_size)
    teacher = None
    if config.steps_need_reference and config.reads_sidecars:
        teacher = funnel_lib.Cached(10.0, -10.0)
    elif config.steps_need_reference:
        teacher = models.build_learner(config, vocabulary_size)
    model = training.build_model(config, learner)
    model.stepper.plan = config.plan
    if teacher is not None:
        model.stepper.change_step(reference=reference.frozen(teacher))
    model.optimizer.build(model.trainable_variables)
    return model


def trace(
    model: keras.Model, dataset: tf.data.Dataset
) -> tf.types.experimental.ConcreteFunction:
    """The function that `fit` calls for an execution, on what it is fed.

    Args:
        model: created under a TPUStrategy, real or not.
        dataset: of super-batches.
    """
    strategy = model.distribute_strategy
    batches = distribution.distribute(strategy, lambda host, num_hosts: dataset)
    if strategy.num_replicas_in_sync == 1:
        batches = strategy.experimental_distribute_dataset(batches)
    model.make_train_function()

    @tf.function(autograph=False)
    def execution(iterator):
        return model.train_function(iterator)

    return execution.get_concrete_function(iter(batches))


def super_batches(config: config_lib.TrainConfig) -> tf.data.Dataset:
    """Endless super-batches of zeros, like those of `pipeline`."""
    data = config.data
    rows = config.selection.super_batch_size(data.curated_rows)
    shapes = {
        "image": ([data.image_size, data.image_size, 3], tf.uint8),
        "text": ([data.text_length], tf.int32),
        "id": ([], tf.int64),
        "caption_id": ([], tf.int64),
        "caption_replaced": ([], tf.bool),
        "record_replaced": ([], tf.bool),
    }
    if config.steps_need_reference and config.reads_sidecars:
        dim = _REFERENCE_DIM
        if config.reference.distillation_weight:
            dim = config.reference.projection
            if dim is None:
                learner = models.build_learner(config, data.vocabulary_size)
                dim = learner.embedding_dim
        shapes["reference_image"] = ([dim], tf.float16)
        shapes["reference_text"] = ([dim], tf.float16)
    batch = {
        name: tf.zeros([rows, *shape], dtype)
        for name, (shape, dtype) in shapes.items()
    }
    if data.curated_rows:
        batch["curated"] = {
            name: values[: data.curated_rows] for name, values in batch.items()
        }
    return tf.data.Dataset.from_tensors(batch).repeat()
