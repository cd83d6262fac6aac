"""`JESTModel`: score -> select -> gather -> step, in one graph.

The model is an ordinary `keras.Model`: compile it with an optimizer, give it a
dataset of super-batches, call `fit`. What is here is the step and the optimizer
that SigLIP's recipe wants; the scores are in `selection.py`, the loss in
`losses.py`, the gradient by micro-batches in `microbatch.py`, the data in
`jest_tf.data`. On R replicas a step is the one that a single replica makes; how
they meet is in `distribution.py` and `exchange.py`.
"""

import dataclasses
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from jest_tf import config as config_lib
from jest_tf import (
    distribution,
    exchange,
    losses,
    microbatch,
    reference,
    row_report,
    scores,
    selection,
)
from jest_tf.data import preprocessing

# Keeps the noise of the augmentation apart from that of the draw.
_AUGMENT_SALT = 0x0A06

# What the names of arrays that a checkpoint carries begin with.
_CARRIED = "carried."

# What of a super-batch is for its scores and counts; a step leaves it behind.
_NOT_TRAINED_ON = (
    "image_for_reference",
    "text_for_reference",
    "reference_image",
    "reference_text",
    "caption_replaced",
    "record_replaced",
)

_LOSSES = {"sigmoid": losses.sigmoid_loss, "softmax": losses.softmax_loss}


@keras.saving.register_keras_serializable(package="jest_tf")
class JESTModel(distribution.TrainerHooks, keras.Model):
    """A learner that chooses what it trains on.

    A step takes a super-batch, a dict of tensors with B rows: `image`, `text`,
    and optionally `id` (for the digest of the draw) and `caption_id` (for
    `equal_captions`). Other entries with B rows ride along, but for what only
    the reference sees. Calling the model gives the learner's embeddings.

    Metrics: `loss`, `scale`, `bias`, and with a selection those of
    `selection.summarize` as `select/...`. Each is the mean over the steps since
    the last reset, as everywhere in Keras. Batches with `caption_replaced` add
    `data/captions_replaced`, how many of the captions drawn were not UTF-8;
    with `record_replaced` likewise `data/records_replaced`, how many records
    could not be read.

    On R replicas, i.e. created in the scope of such a strategy, each holds B/R
    rows of a super-batch and trains on b/R of the sub-batch. Draws, loss and
    metrics are of all rows, and equal to those of one replica; dropout differs.
    R must divide B and b.

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
        micro_batch_size: examples whose activations are held at a time while
            training, see `microbatch.gradients`; must divide a replica's share
            of the sub-batch. None holds those of the share.
        augment: `(images, seed, places, batch_size) -> images`, applied to the
            sub-batch in the graph. `seed` is int32 `[2]`; `places`, int32
            `[n]`, says where the n images stand among the `batch_size` of the
            sub-batch, which on one replica are all.
        seed: of the draws and the augmentation.

    Attributes:
        carried: NumPy arrays by name that are saved and loaded with the
            weights, for callbacks to find what they knew at the checkpoint.

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
        micro_batch_size: int | None = None,
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
        self.micro_batch_size = micro_batch_size
        self.augment = augment
        self.seed = seed
        self._means = {
            name: keras.metrics.Mean(name=name)
            for name in ("loss", "scale", "bias", *_draw_metrics(selection))
        }
        self._sums = {
            name: keras.metrics.Sum(name=f"data/{name.split('_')[0]}s_replaced")
            for name in ("caption_replaced", "record_replaced")
        }
        self._counted = ()
        self._rows = row_report.RowReport(self.distribute_strategy)
        self.carried = {}
        distribution.check_placed("learner", learner, self.distribute_strategy)
        self._reference = None
        if reference is not None:
            self.attach_reference(reference)

    def attach_reference(self, model: Callable) -> None:
        """Sets the reference, e.g. after loading: see the class arguments.

        Raises:
            TypeError: if it can't be called.
            ValueError: if the replicas can't run it.
        """
        distribution.check_placed("reference", model, self.distribute_strategy)
        # Behind a function Keras doesn't see its weights, which are not the
        # learner's to train or to save.
        self._reference = reference.frozen(model)

    @property
    def drawn_ids(self) -> tf.Tensor | None:
        """The `id`s of the last step's sub-batch, `[b]`, in the order drawn.

        None before the first step of `fit`, or where the batches hold no `id`.
        With several workers all must ask together.
        """
        return self._rows.ids()

    @property
    def drawn_rows(self) -> tf.Tensor | None:
        """The rows of the last execution's draws, integers `[steps, b]`.

        Step s, counted from 0, is in line s mod `steps_per_execution`. None
        before the first step of `fit`, or where nothing is drawn.
        """
        return self._rows.rows()

    def row_report(self) -> dict[str, np.ndarray]:
        """What the last step's draw says about rows, by name.

        Returns:
            Of every row of the super-batch, `[B]`: `own_score`, `learner_loss`
            and `reference_loss` as of `selection.Draw`, as far as it has them,
            and `id` where the batches hold it; of the rows of its uniform
            draw `uniform_learner_loss` and `uniform_reference_loss`. Nothing
            before the first step of `fit`, or where nothing is scored. With
            several workers all must ask together.
        """
        values = self._rows.values()
        return {name: value.numpy() for name, value in values.items()}

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        """The owned metrics, reset by Keras at the start of an epoch."""
        means = list(self._means.values())
        return means + [self._sums[name] for name in self._counted]

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

    def fit(self, x=None, *args, shuffle=False, **kwargs):
        """As `keras.Model.fit`; the dataset alone says what comes when.

        Raises:
            ValueError: besides Keras' own, where a model's embeddings of a
                super-batch are not finite, and where the replicas can't be
                given equal shares.
        """
        self._check_shares(x)
        try:
            return super().fit(x, *args, shuffle=shuffle, **kwargs)
        except tf.errors.InvalidArgumentError as error:
            found = scores.NOT_FINITE.search(error.message)
            if found is None:
                raise
            raise ValueError(
                f"{found[0]}; expected finite numbers. A model has diverged"
            ) from error

    def make_train_function(self, force=False):
        """Makes the function that `fit` calls, which also tells the ids."""
        if self.train_function is not None and not force:
            return
        settings = self.selection
        self._rows.start(
            self.steps_per_execution, settings and settings.batch_size
        )
        step = self._make_function(self._train_step)

        def function(iterator):
            logs, self._rows.told = step(iterator)
            return logs

        self.train_function = function

    def collect(self, outputs):
        """Of the replicas' steps: the logs of one, what all tell of rows."""
        if not isinstance(outputs, tuple):
            return super().collect(outputs)
        logs, told = outputs
        return super().collect(logs), self._rows.collect(told)

    def train_step(self, data):
        """One step on one super-batch; returns the metrics' running means."""
        return self._train_step(data)[0]

    def test_step(self, data):
        """The contrastive loss of a batch as it comes, in evaluation mode."""
        batch = self._batch_of(data)
        replicas = distribution.current()
        embeddings = self.learner(batch, training=False)
        loss = self._contrastive_loss(embeddings, batch, replicas)
        self._update({"loss": loss}, replicas)
        return {"loss": self._means["loss"].result()}

    def select(self, super_batch: dict, seed: tf.Tensor) -> selection.Draw:
        """Scores a super-batch and draws from it, as a step does.

        Args:
            super_batch: a dict of tensors with B rows; within a step on R
                replicas, with the B/R rows held here.
            seed: int32 `[2]`, (run seed, step).

        Returns:
            The draw; `indices` are rows of all.

        Raises:
            ValueError: on settings that do not fit together or to the batch.
        """
        settings = self.selection
        if settings is None or not settings.scores:
            raise ValueError(
                "`select` needs a selection that scores: a `batch_size` and a "
                f"method other than 'uniform'. Received: {settings}"
            )
        replicas = distribution.current()
        rows = super_batch["image"].shape[0]
        settings.check_super_batch(_times_replicas(rows, replicas))
        if replicas is not None and rows % (
            settings.scoring_batch_size or rows
        ):
            raise ValueError(
                "`selection.scoring_batch_size` must divide a replica's share "
                f"of the super-batch, B/R. Received: "
                f"{settings.scoring_batch_size}, B/R={rows}, "
                f"R={replicas.num_replicas}"
            )
        if settings.needs_reference and self._reference is None:
            raise ValueError(
                f"`selection.criterion={settings.criterion!r}` needs a "
                "reference: pass `reference` to JESTModel, or call "
                "`attach_reference` after loading. Received: reference=None"
            )

        def embed(encode):
            size = settings.scoring_batch_size
            return microbatch.embed(encode, super_batch, size)

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
            quota=settings.quota,
            replicas=replicas,
        )

    def save_own_variables(self, store):
        """Saves what Keras leaves out of its files: metrics and `carried`."""
        for metric in (*self._means.values(), *self._sums.values()):
            store[metric.name.replace("/", ".")] = np.array(
                [variable.numpy() for variable in metric.variables]
            )
        for name, value in self.carried.items():
            store[_CARRIED + name] = value

    def load_own_variables(self, store):
        """Loads those running metrics that the file holds, and `carried`."""
        self.carried = {
            name.removeprefix(_CARRIED): np.array(store[name])
            for name in store.keys()
            if name.startswith(_CARRIED)
        }
        for metric in (*self._means.values(), *self._sums.values()):
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
            "micro_batch_size": self.micro_batch_size,
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

    def _check_shares(self, dataset):
        """Checks B while it is known: under a strategy a step sees B/R."""
        if isinstance(dataset, tf.data.Dataset):
            spec = dataset.element_spec
            if isinstance(spec, dict) and "image" in spec:
                exchange.share(
                    spec["image"].shape[0] or 0,
                    self.distribute_strategy.num_replicas_in_sync,
                    "`data.super_batch_size` (B)",
                )

    def _batch_of(self, data):
        """The super-batch of what `fit` hands to a step."""
        batch, _, _ = keras.utils.unpack_x_y_sample_weight(data)
        if not isinstance(batch, dict) or not {"image", "text"} <= set(batch):
            raise ValueError(
                'A batch must be a dict with "image" and "text". Received: '
                f"{sorted(batch) if isinstance(batch, dict) else type(batch)}"
            )
        replicas = self.distribute_strategy.num_replicas_in_sync
        if replicas > 1 and batch["image"].shape[0] is None:
            raise ValueError(
                "Several replicas take batches of static size, equal shares of "
                "it each: a multiple of R rows with `drop_remainder=True`, and "
                "with several workers from an endless dataset. "
                f"Received: {batch['image'].shape}, R={replicas}"
            )
        if not self.built:
            # One row, as variables can't be made inside the scoring loop.
            row = {name: value[:1] for name, value in batch.items()}
            self.learner(row, training=False)
            self.build({name: value.shape for name, value in batch.items()})
        return batch

    def _train_step(self, data):
        """The logs, and what the step tells of rows; see `_sub_batch`."""
        super_batch = self._batch_of(data)
        replicas = distribution.current()
        step = tf.cast(self.optimizer.iterations, tf.int32)
        seed = tf.stack([self.seed, step])
        self._count_replaced(super_batch)
        batch, places, told = self._sub_batch(super_batch, seed, replicas)
        self._rows.batch_size = batch_size = _times_replicas(
            places.shape[0], replicas
        )
        if self.augment is not None:
            images = self.augment(
                batch["image"],
                tf.bitwise.bitwise_xor(seed, [_AUGMENT_SALT, 0]),
                places,
                batch_size,
            )
            batch = {**batch, "image": images}
        variables = self.trainable_variables
        loss, embeddings, gradients = microbatch.gradients(
            self.learner,
            batch,
            lambda embeddings: self._contrastive_loss(
                embeddings, batch, replicas
            ),
            variables=variables,
            micro_batch_size=self.micro_batch_size,
            scale_loss=self.optimizer.scale_loss,
            num_replicas=_times_replicas(1, replicas),
        )
        self.optimizer.apply_gradients(zip(gradients, variables, strict=True))
        values = {
            "loss": loss,
            "scale": embeddings.scale,
            "bias": embeddings.bias,
        }
        self._update(values, replicas)
        return self.get_metrics_result(), told

    def _sub_batch(self, super_batch, seed, replicas):
        """The rows to train on here, and their places in the sub-batch.

        And what is told of rows, see `row_report.py`.
        """
        rows = super_batch["image"].shape[0]
        super_batch_size = _times_replicas(rows, replicas)
        self._rows.super_batch_size = super_batch_size
        held = rows * distribution.replica_id() + tf.range(rows)
        batch = {
            name: value
            for name, value in super_batch.items()
            if name not in _NOT_TRAINED_ON
        }
        settings = self.selection
        if settings is None:
            return batch, held, self._rows.trained_on(batch, held)
        told = {}
        settings.check_super_batch(super_batch_size)
        if replicas is not None:
            exchange.share(
                settings.batch_size,
                replicas.num_replicas,
                "`selection.batch_size` (b)",
            )
        if settings.scores:
            draw = self.select(super_batch, seed)
            indices = draw.indices
            summary = selection.summarize(draw, replicas)
            self._update(
                {f"select/{name}": value for name, value in summary.items()},
                replicas,
            )
            told = self._rows.scored(draw, held, super_batch.get("id"))
        else:
            own = replicas is not None and settings.quota == "per_replica"
            indices = selection.uniform_rows(
                seed,
                settings.batch_size,
                super_batch_size,
                num_quotas=replicas.num_replicas if own else 1,
            )
        dealt = exchange.deal(
            indices, super_batch_size, quota=settings.quota, replicas=replicas
        )
        batch = exchange.move(batch, dealt, replicas)
        told |= self._rows.trained_on(batch, dealt.places)
        told |= self._rows.drawn(indices, seed[1])
        return batch, dealt.places, told

    def _contrastive_loss(self, embeddings, batch, replicas):
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
            replicas=replicas,
        )

    def _update(self, values, replicas):
        """Takes up values that are equal on every replica."""
        # A replica adds its share, so that sums over replicas count a step
        # once, on any number of them.
        weight = replicas and 1 / replicas.num_replicas
        for name, value in values.items():
            self._means[name].update_state(value, sample_weight=weight)

    def _count_replaced(self, super_batch):
        # Known when traced; from then on they are shown.
        self._counted = tuple(
            name for name in self._sums if name in super_batch
        )
        for name in self._counted:
            replaced = tf.cast(super_batch[name], tf.float32)
            self._sums[name].update_state(replaced)


@keras.saving.register_keras_serializable(package="jest_tf")
class AdamW(distribution.AggregateThenClip, keras.optimizers.AdamW):
    """Keras' AdamW that decays kernels alone, and clips what all replicas say.

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

    def __call__(self, images, seed, places, batch_size):
        """uint8 `[n, H, W, 3]` -> uint8 `[n, H, W, 3]`."""
        return preprocessing.augment(
            images,
            seed,
            flip=self.flip,
            min_area=self.min_area,
            places=places,
            batch_size=batch_size,
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
        micro_batch_size=config.model.micro_batch_size,
        augment=Augmentation(
            flip=config.data.flip, min_area=config.data.min_crop_area
        ),
        seed=config.seed,
    )
    model.compile(
        optimizer=build_optimizer(config.optimizer, config.steps),
        steps_per_execution=config.distribution.steps_per_execution,
        jit_compile=config.distribution.jit_compile,
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


def _times_replicas(size, replicas):
    return size if replicas is None else size * replicas.num_replicas
