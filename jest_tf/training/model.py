"""`JESTModel`: score -> select -> gather -> step, in one graph.

The model is an ordinary `keras.Model`: compile it with an optimizer, give it a
dataset of super-batches, call `fit`. What is here is the step; how a sub-batch
comes about is in `training/step.py`, the scores are in `selection/samplers.py`,
the loss in `losses.py`, the gradient by micro-batches in
`training/micro_batches.py`, the optimizer in `training/optimizer.py`, the data
in `jest_tf.data`. On R replicas a step is the one that a single replica makes;
how they meet is in `distribution/strategy.py`, `distribution/keras_fit.py` and
`distribution/placement.py`.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import keras
import numpy as np
import tensorflow as tf

from jest_tf import config as config_lib
from jest_tf import distribution, losses, selection
from jest_tf.config import overrides
from jest_tf.data import preprocessing
from jest_tf.distribution import keras_fit, placement
from jest_tf.embeddings import Embeddings
from jest_tf.models import patches, reference
from jest_tf.selection import scores
from jest_tf.training import (
    finite,
    flops,
    micro_batches,
    optimizer,
    row_outputs,
    schedule,
)
from jest_tf.training import metrics as metrics_lib
from jest_tf.training import step as step_lib

# Keeps the noise of the augmentation apart from that of the draw.
_AUGMENT_SALT = 0x0A06

_LOSSES = {"sigmoid": losses.sigmoid_loss, "softmax": losses.softmax_loss}


@keras.saving.register_keras_serializable(package="jest_tf")
class JESTModel(keras_fit.TrainerHooks, keras.Model):
    """A learner that chooses what it trains on.

    A step takes a super-batch, a dict of tensors with B rows: `image`, `text`,
    and optionally `id` (for the digest of the draw) and `caption_id` (for
    `equal_captions`). Other entries with B rows ride along, but for what only
    the reference sees. Calling the model gives the learner's embeddings.

    Metrics: `loss`, `scale`, `bias`, and with a selection those of
    `selection.summarize` as `select/...`. Where the reference is distilled,
    `loss` is with it, and `distillation` is it alone, without its weight. Each
    is the mean over the steps since the last reset, as everywhere in Keras; of
    steps without scores those of `select/...` take no notice. Batches with
    `caption_replaced` add `data/captions_replaced`, how many of the captions
    drawn were not UTF-8; with `record_replaced` likewise
    `data/records_replaced`, how many records could not be read.

    On R replicas, i.e. created in the scope of such a strategy, each holds B/R
    rows of a super-batch and trains on b/R of the sub-batch. Draws, loss and
    metrics are of all rows, and equal to those of one replica; dropout differs.
    R must divide B and b.

    Args:
        learner: a `models.TwoTower`, or any Keras model that maps a batch to
            `Embeddings`.
        reference: what scores beside it: a Keras model like the learner, or
            any callable that maps a batch to `Embeddings`. It is
            neither trained nor saved; give it again after loading.
        selection: a `config.SelectionConfig`; None, or one without a
            `batch_size`, trains on the super-batch as it comes. With a
            schedule, each kind of step is compiled when it first comes.
        loss: "sigmoid" or "softmax".
        equal_captions: what two rows with the same caption are to each other:
            "negative", "positive" or "ignore"; needs `caption_id`.
        loss_block_size: rows of the loss's logits held at a time, None all.
        views: how the learner looks at the sub-batch in training: cut by chance
            into equal parts, a part for each `config.View`, of which one loss
            is taken. () is the learner's own way. The learner's `call` must
            take a `view`, as must that of one whose `selection.view` is set.
        micro_batch_size: examples whose activations are held at a time while
            training, see `micro_batches.gradients`; must divide a replica's
            share of the sub-batch. None holds those of the share.
        distillation_weight: of `losses.feature_distillation` from the reference
            into the learner, added to the loss; 0 does without. Where a step
            has scored by the reference, or the batch holds its embeddings, that
            costs no pass; else the reference is run on the sub-batch. What it
            sees is not augmented.
        distillation_steps: over which that weight falls linearly to 0; None
            keeps it.
        augment: `(images, seed, places, batch_size) -> images`, applied to the
            sub-batch in the graph. `seed` is int32 `[2]`; `places`, int32
            `[n]`, says where the n images stand among the `batch_size` of the
            sub-batch, which on one replica are all.
        seed: of the draws and the augmentation.

    Attributes:
        rows: what the last execution told of rows, a `row_outputs.RowReport`.

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
        views: Sequence[config_lib.View] = (),
        micro_batch_size: int | None = None,
        distillation_weight: float = 0.0,
        distillation_steps: int | None = None,
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
        if not 0.0 <= distillation_weight < np.inf:
            raise ValueError(
                "`distillation_weight` must be finite and at least 0. "
                f"Received: {distillation_weight}"
            )
        if selection is not None and selection.batch_size is None:
            selection = None
        self.learner = learner
        self.selection = selection
        self.loss_name = loss
        self.equal_captions = equal_captions
        self.loss_block_size = loss_block_size
        self.views = tuple(views)
        self.micro_batch_size = micro_batch_size
        self.distillation_weight = distillation_weight
        self.distillation_steps = distillation_steps
        self.augment = augment
        self.seed = seed
        self._step_metrics = metrics_lib.StepMetrics(
            selection, distils=distillation_weight > 0.0
        )
        self.rows = row_outputs.RowReport(self.distribute_strategy, {})
        self._recent_draws = row_outputs.RecentDraws(None, 1, None)
        self._graphs = flops.StepGraphs()
        self._schedule = None
        if selection is not None:
            self._check_view(selection.view)
            self._schedule = schedule.Schedule(selection)
        for view in self.views:
            self._check_view(view)
        keras_fit.check_placed("learner", learner, self.distribute_strategy)
        self._reference = None
        if reference is not None:
            self.attach_reference(reference)

    def attach_reference(self, model: Callable) -> None:
        """Sets the reference, e.g. after loading: see the class arguments.

        Raises:
            TypeError: if it can't be called.
            ValueError: if the replicas can't run it.
        """
        keras_fit.check_placed("reference", model, self.distribute_strategy)
        # Behind a function Keras doesn't see its weights, which are not the
        # learner's to train or to save.
        self._reference = reference.frozen(model)

    @property
    def stopped_at(self) -> int | None:
        """The first step of those that don't select any more.

        None where the learner has not passed the reference, or no
        `selection.stop_when_passed` asks whether it has.
        """
        return self._schedule and self._schedule.stopped_at

    @property
    def drawn_ids(self) -> tf.Tensor | None:
        """The `id`s of the last step's sub-batch, `[b]`, in the order drawn.

        None before the first step of `fit`, or where the batches hold no `id`.
        """
        ids = self.rows.trained_ids()
        return None if ids is None else tf.constant(ids)

    def step_parts(self) -> dict[str, Callable]:
        """What a step does, on one replica, in parts that can run alone.

        Returns:
            With a selection that scores, `score`, which maps a super-batch to
            the embeddings that `score` gives, and `select`, which maps these to
            a draw; and `train`, a step that draws uniformly and scores nothing,
            super-batch to metrics.
        """
        parts = {}
        settings = self._first_that_scores()
        if settings is not None and settings.scores:

            def score(super_batch):
                some, _ = step_lib.candidates(super_batch, settings, None)
                return self.score(some, settings)

            def select(embeddings):
                return self._choose(embeddings, [self.seed, 0], settings)

            parts |= {"score": score, "select": select}
        uniform = settings and dataclasses.replace(settings, method="uniform")

        def train(super_batch):
            return self._train_step(super_batch, uniform)[0]

        return parts | {"train": train}

    def step_flops(
        self,
    ) -> dict[config_lib.SelectionConfig | None, dict[str, int]]:
        """FLOPs of a step on all replicas, by what it chooses by.

        They are read from the steps' graphs: those of steps that have been
        traced are known, and none where they are run eagerly.

        Returns:
            `flops.columns`, by settings without a schedule.

        Raises:
            ValueError: as `flops.count`.
        """
        return self._graphs.count(self.distribute_strategy.num_replicas_in_sync)

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        """The owned metrics, reset by Keras at the start of an epoch."""
        return self._step_metrics.shown

    @property
    def step_metrics(self) -> list[keras.metrics.Metric]:
        """All owned metrics, also those that `metrics` does not show yet."""
        return self._step_metrics.every

    def build(self, input_shape):
        """Builds the learner; nothing else has weights."""
        if not self.learner.built:
            self.learner.build(input_shape)

    def call(self, batch, training=None):
        """The learner's `Embeddings` of a batch."""
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
            finite.NotFinite: a model's embeddings of a super-batch are not
                finite.
            ValueError: besides Keras' own, where the replicas can't be given
                equal shares.
        """
        self._check_shares(x)
        if self._schedule is not None:
            self._schedule.restart()
        try:
            return super().fit(x, *args, shuffle=shuffle, **kwargs)
        except tf.errors.InvalidArgumentError as error:
            found = scores.NOT_FINITE.search(error.message)
            if found is None:
                raise
            raise finite.NotFinite([found["name"]]) from error

    def make_train_function(self, force=False):
        """Makes the function that `fit` calls, which also tells the ids."""
        if self.train_function is not None and not force:
            return
        functions = {}
        self._recent_draws = row_outputs.RecentDraws(
            self.distribute_strategy,
            self.steps_per_execution,
            self.selection and self.selection.batch_size,
        )

        def function(iterator):
            settings = self._next_selection()
            if settings not in functions:
                functions[settings] = self._make_function(
                    functools.partial(self._counted_step, settings=settings)
                )
            logs, told = functions[settings](iterator)
            self.rows = row_outputs.RowReport(self.distribute_strategy, told)
            return logs

        self.train_function = function

    def collect(self, outputs):
        """Of the replicas' steps: the logs of one, what all tell of rows."""
        if not isinstance(outputs, tuple):
            return super().collect(outputs)
        logs, told = outputs
        return super().collect(logs), row_outputs.collect(told)

    def train_step(self, data):
        """One step on one super-batch; returns the metrics' running means.

        Of a schedule, what the step to come chooses by when this is traced.
        """
        return self._counted_step(data, self._next_selection())[0]

    def test_step(self, data):
        """The contrastive loss of a batch as it comes, in evaluation mode."""
        batch = self._batch_of(data)
        replicas = distribution.current()
        embeddings = self.learner(batch, training=False)
        loss = self._contrastive_loss(embeddings, batch, replicas)
        self._step_metrics.update({"loss": loss}, replicas)
        return {"loss": self._step_metrics.result("loss")}

    def select(
        self,
        super_batch: dict,
        seed: tf.Tensor,
        settings: config_lib.SelectionConfig | None = None,
    ) -> selection.Draw:
        """Scores a super-batch and draws from it, as a step does.

        Args:
            super_batch: a dict of tensors with B rows; within a step on R
                replicas, with the B/R rows held here. All are scored:
                `candidates` is the step's business.
            seed: int32 `[2]`, (run seed, step).
            settings: to choose by, without a schedule; None takes the model's
                own, and of a schedule the first that scores.

        Returns:
            The draw; `indices` are rows of all.

        Raises:
            ValueError: on settings that do not fit together or to the batch.
        """
        settings = settings or self._first_that_scores()
        embeddings = self.score(super_batch, settings)
        return self._choose(embeddings, seed, settings)

    def score(
        self,
        super_batch: dict,
        settings: config_lib.SelectionConfig | None = None,
    ) -> tuple[Embeddings | None, Embeddings | None]:
        """The embeddings that a super-batch is scored by.

        Args:
            super_batch: as of `select`.
            settings: as of `select`; `view` is how the learner looks.

        Returns:
            The learner's and the reference's of the rows held here; None for
            one that the criterion does without.

        Raises:
            ValueError: as `select`.
        """
        settings = settings or self._first_that_scores()
        if settings is None or not settings.scores:
            raise ValueError(
                "`select` needs a selection that scores: a `batch_size` and a "
                f"method other than 'uniform'. Received: {settings}"
            )
        return step_lib.score(
            super_batch,
            settings,
            learner=self.learner,
            reference=self._reference,
            replicas=distribution.current(),
        )

    def save_own_variables(self, store):
        """Saves the running metrics, which Keras leaves out of its files."""
        self._step_metrics.save(store)

    def load_own_variables(self, store):
        """Loads those running metrics that the file holds."""
        self._step_metrics.load(store)

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
            "views": [dataclasses.asdict(view) for view in self.views],
            "micro_batch_size": self.micro_batch_size,
            "distillation_weight": self.distillation_weight,
            "distillation_steps": self.distillation_steps,
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
            config["selection"] = overrides.build(
                config_lib.SelectionConfig, config["selection"], "selection."
            )
        config["views"] = tuple(
            config_lib.View(**view) for view in config["views"]
        )
        return cls(**config)

    def _check_shares(self, dataset):
        """Checks B while it is known: under a strategy a step sees B/R."""
        if isinstance(dataset, tf.data.Dataset):
            spec = dataset.element_spec
            if isinstance(spec, dict) and "image" in spec:
                placement.share(
                    spec["image"].shape[0] or 0,
                    self.distribute_strategy.num_replicas_in_sync,
                    "`data.super_batch_size` (B)",
                )

    def _batch_of(self, data):
        """The super-batch of what `fit` hands to a step; builds the learner."""
        batch = step_lib.super_batch_of(
            data, self.distribute_strategy.num_replicas_in_sync
        )
        if not self.built:
            # One row, as variables can't be made inside the scoring loop.
            row = {name: value[:1] for name, value in batch.items()}
            self.learner(row, training=False)
            self.build({name: value.shape for name, value in batch.items()})
        return batch

    def _check_view(self, view):
        if view != config_lib.View():
            patches.check_view(self.learner, view)

    def _first_that_scores(self):
        kinds = () if self.selection is None else self.selection.kinds
        return next((kind for kind in kinds if kind.scores), self.selection)

    def _next_selection(self):
        """What the next execution's steps choose by, all alike."""
        if self._schedule is None:
            return None
        return self._schedule.next(self.optimizer, self.steps_per_execution)

    def _counted_step(self, data, settings):
        """`_train_step`; keeps the graph that it is traced in, for FLOPs."""
        scored = reused = 0
        if settings is not None and settings.scores:
            rows = self._batch_of(data)["image"].shape[0] or 0
            replicas = distribution.current()
            scored = settings.candidates or rows * placement.count(replicas)
            tower = getattr(self.learner, "image_tower", None)
            reused = flops.num_reused(
                settings, self.views, getattr(tower, "patch_size", None)
            )
        self._graphs.note(settings, scored=scored, reused=reused)
        return self._train_step(data, settings)

    def _train_step(self, data, settings):
        """The logs, and what is told of rows, see `training/row_outputs.py`."""
        super_batch = self._batch_of(data)
        replicas = distribution.current()
        step = tf.cast(self.optimizer.iterations, tf.int32)
        seed = tf.stack([self.seed, step])
        self._step_metrics.count_replaced(super_batch)
        indices, told = None, {}
        if settings is not None:
            super_batch, indices, told = self._draw(
                super_batch, settings, seed, replicas
            )
        batch, places = step_lib.take(
            super_batch,
            indices,
            seed,
            quota="per_replica" if settings is None else settings.quota,
            num_views=len(self.views),
            micro_batch_size=self.micro_batch_size,
            distils=self.distillation_weight > 0.0,
            replicas=replicas,
        )
        targets = None
        if self.distillation_weight:
            batch, targets = step_lib.targets(
                batch, self._reference, self.micro_batch_size
            )
        told |= row_outputs.of_trained(batch, places)
        if distribution.has_workers(self.distribute_strategy):
            # Here, as nothing outside of a step may wait for other workers:
            # Keras looks at all properties of what it saves.
            told = row_outputs.with_trained_of_all(told, replicas)
        if self.augment is not None:
            images = self.augment(
                batch["image"],
                tf.bitwise.bitwise_xor(seed, [_AUGMENT_SALT, 0]),
                places,
                places.shape[0] * placement.count(replicas),
            )
            batch = {**batch, "image": images}
        terms = {}
        weight = self.distillation_weight
        if self.distillation_steps:
            done = tf.cast(step, tf.float32) / self.distillation_steps
            weight *= tf.maximum(1.0 - done, 0.0)

        def loss_of(embeddings):
            loss = self._contrastive_loss(embeddings, batch, replicas)
            if targets is None:
                return loss
            terms["distillation"] = losses.feature_distillation(
                embeddings, targets, replicas=replicas
            )
            return loss + weight * terms["distillation"]

        variables = self.trainable_variables
        loss, embeddings, gradients = micro_batches.gradients(
            self.learner,
            batch,
            loss_of,
            variables=variables,
            micro_batch_size=self.micro_batch_size,
            scale_loss=self.optimizer.scale_loss,
            num_replicas=placement.count(replicas),
            **({"view": self.views} if self.views else {}),
        )
        self.optimizer.apply_gradients(zip(gradients, variables, strict=True))
        values = {
            "loss": loss,
            "scale": embeddings.scale,
            "bias": embeddings.bias,
            **terms,
        }
        self._step_metrics.update(values, replicas)
        return self.get_metrics_result(), told

    def _draw(self, super_batch, settings, seed, replicas):
        """The rows to draw from, the draw, and what it tells of rows.

        With the rows come the reference's embeddings of them if it has been
        asked for these and will be distilled. The draw is int32 `[b]`, of all
        rows that there are to draw from.
        """
        super_batch, stride = step_lib.candidates(
            super_batch, settings, replicas
        )
        rows = super_batch["image"].shape[0]
        if settings.scores:
            embeddings = self.score(super_batch, settings)
            draw = self._choose(embeddings, seed, settings)
            if self.distillation_weight:
                super_batch = step_lib.with_embeddings(
                    super_batch, embeddings[1]
                )
            indices = draw.indices
            summary = selection.summarize(draw, replicas)
            self._step_metrics.update(
                {f"select/{name}": value for name, value in summary.items()},
                replicas,
            )
            self._schedule.note(draw, seed[1], self.steps_per_execution)
            place = rows * distribution.replica_id() + tf.range(rows)
            told = row_outputs.of_scored(
                draw, stride * place, super_batch.get("id")
            )
        else:
            indices = step_lib.choose_uniformly(rows, seed, settings, replicas)
            told = {}
        told |= self._recent_draws.with_draw(stride * indices, seed[1])
        return super_batch, indices, told

    def _choose(self, embeddings, seed, settings):
        """The draw of `select`, given what `score` has found."""
        return step_lib.choose(
            embeddings,
            seed,
            settings,
            loss=self.loss_name,
            replicas=distribution.current(),
        )

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
        views=config.model.views,
        micro_batch_size=config.model.micro_batch_size,
        distillation_weight=config.reference.distillation_weight,
        distillation_steps=config.reference.distillation_steps,
        augment=preprocessing.Augmentation(
            flip=config.data.flip, min_area=config.data.min_crop_area
        ),
        seed=config.seed,
    )
    model.compile(
        optimizer=optimizer.build_optimizer(config.optimizer, config.steps),
        steps_per_execution=config.distribution.steps_per_execution,
        jit_compile=config.distribution.jit_compile,
    )
    return model
