"""`JESTModel`: score -> select -> gather -> step, in one graph.

The model is an ordinary `keras.Model`: compile it with an optimizer, give it a
dataset of super-batches, call `fit`. What is here is the step and the optimizer
that SigLIP's recipe wants; the scores are in `selection.py`, the loss in
`losses.py`, the data in `jest_tf.data`. Several replicas are not here.
"""

import dataclasses
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from jest_tf import config as config_lib
from jest_tf import losses, reference, scores, selection
from jest_tf.data import preprocessing

# Keeps the noise of the augmentation apart from that of the draw.
_AUGMENT_SALT = 0x0A06

_LOSSES = {"sigmoid": losses.sigmoid_loss, "softmax": losses.softmax_loss}


@keras.saving.register_keras_serializable(package="jest_tf")
class JESTModel(keras.Model):
    """A learner that chooses what it trains on.

    A step takes a super-batch, a dict of tensors with B rows: `image`, `text`,
    and optionally `id` (for the digest of the draw) and `caption_id` (for
    `equal_captions`). Other entries with B rows ride along. Calling the model
    gives the learner's embeddings.

    Metrics: `loss`, `scale`, `bias`, and with a selection those of
    `selection.summarize` as `select/...`. Each is the mean over the steps since
    the last reset, as everywhere in Keras. Batches with `caption_replaced` add
    `data/captions_replaced`, how many of the captions drawn were not UTF-8.

    Args:
        learner: a `models.TwoTower`, or any Keras model that maps a batch to
            `losses.Embeddings`.
        reference: what scores beside it: a Keras model like the learner, or
            any callable that maps a batch to `losses.Embeddings`. It is
            neither trained nor saved; give it again after loading.
        selection: a `config.SelectionConfig`; None, or one without a
            `batch_size`, trains on the super-batch as it comes.
        loss: "sigmoid" or "softmax".
        equal_captions: what two rows with the same caption are to each other:
            "negative", "positive" or "ignore"; needs `caption_id`.
        loss_block_size: rows of the loss's logits held at a time, None all.
        augment: `(images, seed) -> images`, applied to the sub-batch in the
            graph; `seed` is int32 `[2]`.
        seed: of the draws and the augmentation.

    Raises:
        ValueError: at construction or with the first batch, on settings that
            do not fit together or to the batch.

    Example:
        >>> from jest_tf import models
        >>> learner = models.build_two_tower(
        ...     "tiny", image_size=32, vocabulary_size=99, text_length=16
        ... )
        >>> model = JESTModel(learner)
        >>> model.compile(optimizer=keras.optimizers.AdamW(1e-3))
        >>> batch = {
        ...     "image": tf.zeros([4, 32, 32, 3], tf.uint8),
        ...     "text": tf.zeros([4, 16], tf.int32),
        ... }
        >>> history = model.fit(
        ...     tf.data.Dataset.from_tensors(batch), verbose=0
        ... )
        >>> sorted(history.history)
        ['bias', 'loss', 'scale']

    Reference: Evans et al. 2024, arXiv 2406.17711.
    """

    def __init__(
        self,
        learner: keras.Model,
        reference: Callable | None = None,
        selection: config_lib.SelectionConfig | None = None,
        loss: str = "sigmoid",
        *,
        equal_captions: str = "negative",
        loss_block_size: int | None = None,
        augment: Callable | None = None,
        seed: int = 0,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if keras.backend.backend() != "tensorflow":
            raise ValueError(
                "JESTModel needs Keras to run on TensorFlow: set "
                "KERAS_BACKEND=tensorflow before Keras is imported. Received: "
                f"backend {keras.backend.backend()!r}"
            )
        replicas = tf.distribute.get_strategy().num_replicas_in_sync
        if replicas > 1:
            raise ValueError(
                "JESTModel trains on one replica; expected a strategy with 1. "
                f"Received: {replicas} replicas"
            )
        if loss not in _LOSSES:
            raise ValueError(
                f"`loss` must be one of {tuple(_LOSSES)}. Received: {loss!r}"
            )
        if equal_captions not in config_lib.EQUAL_CAPTIONS:
            raise ValueError(
                f"`equal_captions` must be one of {config_lib.EQUAL_CAPTIONS}. "
                f"Received: {equal_captions!r}"
            )
        if selection is not None and selection.batch_size is None:
            selection = None
        self.learner = learner
        self.selection = selection
        self.loss_name = loss
        self.equal_captions = equal_captions
        self.loss_block_size = loss_block_size
        self.augment = augment
        self.seed = seed
        self._means = {
            name: keras.metrics.Mean(name=name)
            for name in ("loss", "scale", "bias", *_draw_metrics(selection))
        }
        self._captions_replaced = keras.metrics.Sum(
            name="data/captions_replaced"
        )
        self._counts_captions = False
        self._drawn_ids = None
        self._reference = None
        if reference is not None:
            self.attach_reference(reference)

    def attach_reference(self, model: Callable) -> None:
        """Sets the reference, e.g. after loading: see the class arguments."""
        # Behind a function Keras doesn't see its weights, which are not the
        # learner's to train or to save.
        self._reference = reference.frozen(model)

    @property
    def drawn_ids(self) -> tf.Tensor | None:
        """The `id`s of the last step's sub-batch, `[b]`, in the order drawn.

        None before the first step, or where the batches hold no `id`.
        """
        return None if self._drawn_ids is None else self._drawn_ids.value()

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        """The owned metrics, reset by Keras at the start of an epoch."""
        means = list(self._means.values())
        return means + [self._captions_replaced] * self._counts_captions

    def build(self, input_shape):
        """Builds the learner; nothing else has weights."""
        if not self.learner.built:
            self.learner.build(input_shape)

    def call(self, batch, training=None):
        """The learner's `losses.Embeddings` of a batch."""
        return self.learner(batch, training=training)

    def compile(self, optimizer="adamw", **kwargs):
        """As `keras.Model.compile`, but the loss belongs to the model."""
        if kwargs.get("loss") is not None:
            raise ValueError(
                "The loss is an argument of JESTModel, not of `compile`. "
                f"Received: loss={kwargs['loss']!r}"
            )
        super().compile(optimizer=optimizer, **kwargs)

    def compile_from_config(self, config):
        """Compiles a loaded model as it was; its optimizer's state follows."""
        self.compile(**keras.saving.deserialize_keras_object(config))
        if self.built:
            self.optimizer.build(self.trainable_variables)

    def fit(self, *args, shuffle=False, **kwargs):
        """As `keras.Model.fit`; the dataset alone says what comes when.

        Raises:
            ValueError: besides Keras' own, where a model's embeddings of a
                super-batch are not finite.
        """
        try:
            return super().fit(*args, shuffle=shuffle, **kwargs)
        except tf.errors.InvalidArgumentError as error:
            found = scores.NOT_FINITE.search(error.message)
            if found is None:
                raise
            raise ValueError(
                f"{found[0]}; expected finite numbers. A model has diverged"
            ) from error

    def train_step(self, data):
        """One step on one super-batch; returns the metrics' running means."""
        batch = self._batch_of(data)
        step = tf.cast(self.optimizer.iterations, tf.int32)
        seed = tf.stack([self.seed, step])
        self._count_captions(batch)
        if self.selection is not None:
            rows = self._choose(batch, seed)
            batch = {
                name: tf.gather(value, rows) for name, value in batch.items()
            }
        self._remember_ids(batch)
        if self.augment is not None:
            salted = tf.bitwise.bitwise_xor(seed, [_AUGMENT_SALT, 0])
            batch = {**batch, "image": self.augment(batch["image"], salted)}
        with tf.GradientTape() as tape:
            embeddings = self.learner(batch, training=True)
            loss = self._contrastive_loss(embeddings, batch)
            regularizers = sum(
                tf.cast(term, tf.float32) for term in self.learner.losses
            )
            scaled = self.optimizer.scale_loss(loss + regularizers)
        variables = self.trainable_variables
        gradients = tape.gradient(scaled, variables)
        self.optimizer.apply_gradients(zip(gradients, variables, strict=True))
        self._update("loss", loss)
        self._update("scale", embeddings.scale)
        self._update("bias", embeddings.bias)
        return self.get_metrics_result()

    def test_step(self, data):
        """The contrastive loss of a batch as it comes, in evaluation mode."""
        batch = self._batch_of(data)
        embeddings = self.learner(batch, training=False)
        self._update("loss", self._contrastive_loss(embeddings, batch))
        return {"loss": self._means["loss"].result()}

    def select(self, super_batch: dict, seed: tf.Tensor) -> selection.Draw:
        """Scores a super-batch and draws from it, as a step does.

        Args:
            super_batch: a dict of tensors with B rows.
            seed: int32 `[2]`, (run seed, step).

        Returns:
            The draw; `indices` are rows of `super_batch`.
        """
        settings = self.selection
        if settings is None or not settings.scores:
            raise ValueError(
                "`select` needs a selection that scores: a `batch_size` and a "
                f"method other than 'uniform'. Received: {settings}"
            )
        settings.check_super_batch(super_batch["image"].shape[0])
        if settings.needs_reference and self._reference is None:
            raise ValueError(
                f"`selection.criterion={settings.criterion!r}` needs a "
                "reference: pass `reference` to JESTModel, or call "
                "`attach_reference` after loading. Received: reference=None"
            )

        def embed(encode):
            size = settings.scoring_batch_size
            return _in_micro_batches(encode, super_batch, size)

        # What the criterion doesn't need isn't paid for.
        learner, frozen = None, None
        if settings.needs_learner:
            learner = embed(lambda part: self.learner(part, training=False))
        if settings.needs_reference:
            frozen = embed(self._reference)
        return selection.SAMPLERS[settings.method](
            learner,
            frozen,
            batch_size=settings.batch_size,
            num_chunks=settings.num_chunks,
            seed=seed,
            criterion=settings.criterion,
            loss=settings.loss or self.loss_name,
            first_chunk=settings.first_chunk,
            gain=settings.gain,
        )

    def save_own_variables(self, store):
        """Saves the running metrics, which Keras leaves out of its files."""
        for metric in (*self._means.values(), self._captions_replaced):
            store[metric.name.replace("/", ".")] = np.array(
                [variable.numpy() for variable in metric.variables]
            )

    def load_own_variables(self, store):
        """Loads those running metrics that the file holds."""
        for metric in (*self._means.values(), self._captions_replaced):
            name = metric.name.replace("/", ".")
            if name in store.keys():
                for variable, value in zip(
                    metric.variables, store[name], strict=True
                ):
                    variable.assign(value)

    def get_config(self):
        """The arguments but for the reference, for `.keras` files."""
        serialize = keras.saving.serialize_keras_object
        return {
            **super().get_config(),
            "learner": serialize(self.learner),
            "selection": (
                self.selection and dataclasses.asdict(self.selection)
            ),
            "loss": self.loss_name,
            "equal_captions": self.equal_captions,
            "loss_block_size": self.loss_block_size,
            "augment": self.augment and serialize(self.augment),
            "seed": self.seed,
        }

    @classmethod
    def from_config(cls, config):
        """The model that `get_config` describes, without its reference."""
        config = dict(config)
        for name in ("learner", "augment"):
            if config[name] is not None:
                config[name] = keras.saving.deserialize_keras_object(
                    config[name]
                )
        if config["selection"] is not None:
            config["selection"] = config_lib.SelectionConfig(
                **config["selection"]
            )
        return cls(**config)

    def _batch_of(self, data):
        """The super-batch of what `fit` hands to a step."""
        batch, _, _ = keras.utils.unpack_x_y_sample_weight(data)
        if not isinstance(batch, dict) or not {"image", "text"} <= set(batch):
            raise ValueError(
                'A batch must be a dict with "image" and "text". Received: '
                f"{sorted(batch) if isinstance(batch, dict) else type(batch)}"
            )
        if not self.built:
            # One row, as variables can't be made inside the scoring loop.
            row = {name: value[:1] for name, value in batch.items()}
            self.learner(row, training=False)
            self.build({name: value.shape for name, value in batch.items()})
        return batch

    def _choose(self, super_batch, seed):
        """The rows of the sub-batch, and the metrics of their draw."""
        settings = self.selection
        if not settings.scores:
            size = super_batch["image"].shape[0]
            settings.check_super_batch(size)
            return selection.uniform_rows(seed, settings.batch_size, size)
        draw = self.select(super_batch, seed)
        for name, value in selection.summarize(draw).items():
            self._update(f"select/{name}", value)
        return draw.indices

    def _contrastive_loss(self, embeddings, batch):
        ids = None
        if self.equal_captions != "negative":
            if "caption_id" not in batch:
                raise ValueError(
                    f"`equal_captions={self.equal_captions!r}` needs "
                    f"`caption_id` in the batch. Received: {sorted(batch)}"
                )
            ids = batch["caption_id"]
        return _LOSSES[self.loss_name](
            embeddings,
            ids=ids,
            equal_ids=self.equal_captions,
            block_size=self.loss_block_size,
        )

    def _update(self, name, value):
        self._means[name].update_state(value)

    def _count_captions(self, super_batch):
        if "caption_replaced" not in super_batch:
            return
        self._counts_captions = True  # when traced; from now on it is shown
        replaced = tf.cast(super_batch["caption_replaced"], tf.float32)
        self._captions_replaced.update_state(replaced)

    def _remember_ids(self, batch):
        if "id" not in batch:
            return
        ids = batch["id"]
        if self._drawn_ids is None:
            with tf.init_scope():
                self._drawn_ids = tf.Variable(
                    tf.zeros(ids.shape, ids.dtype), trainable=False
                )
        self._drawn_ids.assign(ids)


@keras.saving.register_keras_serializable(package="jest_tf")
class AdamW(keras.optimizers.AdamW):
    """Keras' AdamW that decays kernels alone.

    Biases, norms, embeddings, positions, the temperature and the bias of the
    logits keep their size, as in SigLIP's published recipe.
    """

    def _use_weight_decay(self, variable):
        # Keras asks with its own variable, or with TensorFlow's, "a/kernel:0".
        return variable.name.split(":")[0].endswith("kernel")


@keras.saving.register_keras_serializable(package="jest_tf")
class Augmentation:
    """`preprocessing.augment` with its settings, as `JESTModel` wants it.

    Args:
        flip: mirror half of the images.
        min_area: least share of the picture that a crop keeps.
    """

    def __init__(self, *, flip: bool, min_area: float):
        self.flip = flip
        self.min_area = min_area

    def __call__(self, images, seed):
        """uint8 `[b, H, W, 3]`, int32 `[2]` -> uint8 `[b, H, W, 3]`."""
        return preprocessing.augment(
            images, seed, flip=self.flip, min_area=self.min_area
        )

    def get_config(self):
        """The arguments, for `.keras` files."""
        return {"flip": self.flip, "min_area": self.min_area}

    @classmethod
    def from_config(cls, config):
        """The augmentation that `get_config` describes."""
        return cls(**config)


def build_optimizer(
    settings: config_lib.OptimizerConfig, steps: int
) -> keras.optimizers.Optimizer:
    """AdamW with linear warm-up to the learning rate and a cosine to zero.

    Args:
        settings: see `config.OptimizerConfig`.
        steps: optimizer steps in all; the schedule ends with them.
    """
    warmup = settings.warmup_steps
    schedule = keras.optimizers.schedules.CosineDecay(
        0.0 if warmup else settings.learning_rate,
        decay_steps=steps - warmup,
        warmup_target=settings.learning_rate if warmup else None,
        warmup_steps=warmup,
    )
    return AdamW(
        learning_rate=schedule,
        weight_decay=settings.weight_decay,
        beta_1=settings.beta_1,
        beta_2=settings.beta_2,
        global_clipnorm=settings.clip_norm,
    )


def build_model(
    config: config_lib.TrainConfig,
    learner: keras.Model,
    reference: Callable | None = None,
) -> JESTModel:
    """The compiled model of a run.

    Args:
        config: the run.
        learner: see `JESTModel`.
        reference: see `JESTModel`.
    """
    model = JESTModel(
        learner,
        reference,
        config.selection,
        config.model.loss,
        equal_captions=config.model.equal_captions,
        loss_block_size=config.model.loss_block_size,
        augment=Augmentation(
            flip=config.data.flip, min_area=config.data.min_crop_area
        ),
        seed=config.seed,
    )
    model.compile(
        optimizer=build_optimizer(config.optimizer, config.steps),
        jit_compile=False,
    )
    return model


def _draw_metrics(settings):
    """The names under which a step reports its draw."""
    if settings is None or not settings.scores:
        return ()
    scored = (
        ("learner", settings.needs_learner),
        ("reference", settings.needs_reference),
    )
    return (
        "select/score",
        "select/uniform_score",
        *(
            f"select/{model}_loss_{rows}"
            for model, needed in scored
            if needed
            for rows in ("kept", "dropped")
        ),
    )


def _in_micro_batches(encode, batch, size):
    """`encode(batch)`, `size` rows at a time; None takes all at once."""
    rows = batch["image"].shape[0]
    if size in (None, rows):
        return encode(batch)
    parts = {
        name: tf.reshape(value, [rows // size, size, *value.shape[1:]])
        for name, value in batch.items()
    }
    embeddings = tf.map_fn(
        encode,
        parts,
        parallel_iterations=1,
        fn_output_signature=losses.Embeddings(*[tf.float32] * 4),
    )
    image, text = (
        tf.reshape(part, [rows, part.shape[-1]]) for part in embeddings[:2]
    )
    # Every part tells the same scale and bias.
    return losses.Embeddings(
        image, text, embeddings.scale[0], embeddings.bias[0]
    )
