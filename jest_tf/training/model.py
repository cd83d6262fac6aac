"""`JESTModel`: the training step (`step.py`) as a `keras.Model`.

Fixes of `fit` on several replicas are in `distribution/keras_fit.py`.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import keras
import tensorflow as tf

from jest_tf import config as config_lib
from jest_tf import distribution, selection
from jest_tf.config import overrides
from jest_tf.distribution import keras_fit, placement
from jest_tf.embeddings import Embeddings
from jest_tf.models import patches, reference
from jest_tf.training import finite, flops, row_outputs, schedule, sub_batch
from jest_tf.training import metrics as metrics_lib
from jest_tf.training import step as step_lib

# Arguments of `JESTModel` passed unchanged to the step and to files.
_PLAIN_SETTINGS = (
    "equal_captions",
    "loss_block_size",
    "micro_batch_size",
    "distillation_weight",
    "distillation_steps",
)


@keras.saving.register_keras_serializable(package="jest_tf")
class JESTModel(keras_fit.TrainerHooks, keras.Model):
    """A learner that chooses what it trains on.

    A step takes a super-batch, a dict of tensors with B rows: `image`, `text`,
    and optionally `id` (for the digest of the draw) and `caption_id` (for
    `equal_captions`). Other entries with B rows are passed through, except
    reference-only keys. Calling the model gives the learner's embeddings.

    Metrics are means over the steps since the last reset: `loss`, `scale`,
    `bias`, and `selection.summarize` as `select/...`, over scoring steps only.
    With distillation, `loss` includes it and `distillation` is its unweighted
    value. Batches with `caption_replaced` or `record_replaced` add the counts
    `data/captions_replaced` (not UTF-8) and `data/records_replaced`
    (unreadable).

    Created in the scope of a strategy, each of its R replicas holds B/R rows of
    a super-batch and trains on b/R of the sub-batch. Draws, loss and metrics
    equal those of one replica; dropout differs. R must divide B and b.

    Args:
        learner: a `models.TwoTower`, or any Keras model that maps a batch to
            `Embeddings`.
        reference: a Keras model like the learner, or any callable that maps a
            batch to `Embeddings`. It is neither trained nor saved; attach it
            again after loading.
        selection: a `config.SelectionConfig`; None, or one without a
            `batch_size`, trains on the whole super-batch. With a schedule, each
            kind of step is compiled on first use.
        loss: "sigmoid" or "softmax".
        equal_captions: treatment of rows with the same caption in the loss:
            "negative", "positive" or "ignore"; needs `caption_id`.
        loss_block_size: rows of the loss's logits held at a time; None holds
            all.
        views: training views; the sub-batch is split randomly into equal
            parts, one per `config.View`, under one loss. () is the learner's
            default view. The learner's `call` must take a `view`; likewise for
            `selection.view`.
        micro_batch_size: examples whose activations are held at a time in
            training, see `micro_batches.gradients`; must divide a replica's
            share of the sub-batch. None holds the whole share.
        distillation_weight: weight of feature distillation from the reference
            on every trained row; 0 turns it off. It costs a pass of the
            reference, unless the step scores by it or the batch holds its
            embeddings. The reference's input is not augmented.
        distillation_steps: steps over which that weight falls linearly to 0;
            None keeps it.
        augment: `(images, seed, places, batch_size) -> images`, applied in the
            graph. `seed` is int32 `[2]`; `places`, int32 `[n]`, are the places
            of the n images among the `batch_size` of the sub-batch.
        seed: seed of the draws and of the augmentation.

    Attributes:
        rows: per-row outputs of the last execution, a `row_outputs.RowReport`.

    Raises:
        ValueError: at construction or with the first batch, if settings do not
            fit each other or the batch.

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
        self._reference = None
        self._step(None)  # checks the settings
        for view in (*self.views, *([selection.view] if selection else [])):
            if view != config_lib.View():
                patches.check_view(learner, view)
        keras_fit.check_placed("learner", learner, self.distribute_strategy)
        if reference is not None:
            self.attach_reference(reference)

        self.rows = row_outputs.RowReport(self.distribute_strategy, {})
        self._recent_draws = row_outputs.RecentDraws(None, 1, None)
        self._step_metrics = metrics_lib.StepMetrics(
            selection, distils=distillation_weight > 0.0
        )
        self._schedule = selection and schedule.Schedule(selection)
        self._passed = None
        if selection is not None and selection.stop_when_passed:
            self._passed = schedule.add_state(self)
        self._traced = {}  # specs of the super-batch, by the kind of step
        self._flops = {}
        self._last_logs = {}
        if learner.built:
            self.build(None)

    def attach_reference(self, model: Callable) -> None:
        """Sets the reference, e.g. after loading; see the class.

        Raises:
            TypeError: if it can't be called.
            ValueError: if the replicas can't run it.
        """
        keras_fit.check_placed("reference", model, self.distribute_strategy)
        # Wrapped in a function, so that Keras neither tracks, trains nor
        # saves its weights.
        self._reference = reference.frozen(model)

    @property
    def stopped_at(self) -> int | None:
        """First step that no longer selects; None while all do."""
        if self._passed is None:
            return None
        step = int(schedule.read(self._passed)[1])
        return None if step < 0 else step

    @property
    def drawn_ids(self) -> tf.Tensor | None:
        """The `id`s of the last step's sub-batch, `[b]`, in the order drawn.

        None before the first step, or if the batches have no `id`.
        """
        ids = self.rows.trained_ids()
        return None if ids is None else tf.constant(ids)

    def step_parts(self) -> dict[str, Callable]:
        """Parts of a step on one replica, as functions to run alone.

        Returns:
            `train` maps a super-batch to the metrics of a step with a uniform
            draw. If the selection scores, `score` maps a super-batch to its
            candidates' embeddings, and `select` these to a draw.
        """
        settings = self._first_that_scores()
        uniform = settings and dataclasses.replace(settings, method="uniform")
        step = self._step(settings)
        parts = {"train": lambda batch: self._train_step(batch, uniform)[0]}
        if not step.scores:
            return parts

        def score(super_batch):
            return step_lib.score(
                step, step_lib.candidates(step, super_batch)[0]
            )

        def select(embeddings):
            return step_lib.select(step, {}, embeddings, [self.seed, 0])[1]

        return {"score": score, "select": select} | parts

    def step_flops(
        self,
    ) -> dict[config_lib.SelectionConfig | None, dict[str, int]]:
        """FLOPs of a step on all replicas, by its selection.

        Available only for traced steps; see `flops.of_step`.

        Raises:
            ValueError: if a model's graph can't be counted.
        """
        for settings, super_batch in self._traced.items():
            if settings not in self._flops:
                self._flops[settings] = flops.of_step(
                    self._step(settings), super_batch, self._num_replicas
                )
        return dict(self._flops)

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        """The metrics with values; Keras resets them every epoch."""
        return self._step_metrics.shown

    @property
    def step_metrics(self) -> list[keras.metrics.Metric]:
        """All metrics, including those not yet in `metrics`."""
        return self._step_metrics.every

    def build(self, input_shape):
        """Builds the learner; the input's shape is unused."""
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
        """Compiles a loaded model as before; the optimizer's state follows."""
        self.compile(**keras.saving.deserialize_keras_object(config))
        if self.built:
            self.optimizer.build(self.trainable_variables)

    def fit(self, x=None, *args, shuffle=False, **kwargs):
        """As `keras.Model.fit`, without shuffling by default.

        Raises:
            finite.NotFinite: after a step that scored embeddings that are not
                finite.
            ValueError: besides Keras' own, if R does not divide B.
        """
        if isinstance(x, tf.data.Dataset):
            # B is known here; under a strategy a step sees B/R.
            spec = sub_batch.super_batch_of(x.element_spec, self._num_replicas)
            placement.share(
                spec["image"].shape[0] or 0,
                self._num_replicas,
                "`data.super_batch_size` (B)",
            )
        if self._schedule is not None:
            self._schedule.restart()
        self._last_logs = {}
        history = super().fit(x, *args, shuffle=shuffle, **kwargs)
        finite.check_scores(self._last_logs)
        return history

    def make_train_function(self, force=False):
        """Makes the function for `fit`, which keeps the row outputs."""
        if self.train_function is not None and not force:
            return
        functions = {}
        self._recent_draws = row_outputs.RecentDraws(
            self.distribute_strategy,
            self.steps_per_execution,
            self.selection and self.selection.batch_size,
        )

        def function(iterator):
            # From the last execution, so that devices don't wait for Python.
            finite.check_scores(self._last_logs)
            settings = self._next_selection()
            if settings not in functions:
                functions[settings] = self._make_function(
                    functools.partial(self._traced_step, settings=settings)
                )
            logs, rows = functions[settings](iterator)
            self.rows = row_outputs.RowReport(self.distribute_strategy, rows)
            self._last_logs = logs
            return logs

        self.train_function = function

    def collect(self, outputs):
        """The logs of one replica's step, and the row outputs of all."""
        if not isinstance(outputs, tuple):
            return super().collect(outputs)
        logs, rows = outputs
        return super().collect(logs), row_outputs.collect(rows)

    def train_step(self, data):
        """One step on one super-batch; returns the metrics' running means.

        With a schedule, the kind of step is decided when this is traced.
        """
        return self._traced_step(data, self._next_selection())[0]

    def test_step(self, data):
        """The contrastive loss of a batch as it comes, in evaluation mode."""
        batch = sub_batch.super_batch_of(data, self._num_replicas)
        replicas = distribution.current()
        loss = step_lib.contrastive_loss(
            self._step(None),
            self.learner(batch, training=False),
            batch,
            replicas,
        )
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
                replicas, the B/R local rows. `selection.candidates` is ignored.
            seed: int32 `[2]`, (run seed, step).
            settings: a selection without a schedule; None takes the model's,
                and of a schedule the first that scores.

        Raises:
            ValueError: if settings do not fit each other or the batch.
        """
        step, replicas = self._scoring_step(settings), distribution.current()
        embeddings = step_lib.score(step, super_batch, replicas)
        _, draw = step_lib.select(step, super_batch, embeddings, seed, replicas)
        return draw

    def score(
        self,
        super_batch: dict,
        settings: config_lib.SelectionConfig | None = None,
    ) -> tuple[Embeddings | None, Embeddings | None]:
        """Embeds a super-batch for scoring; arguments and errors as `select`.

        Returns:
            The learner's and the reference's embeddings; None if unused.
        """
        return step_lib.score(
            self._scoring_step(settings), super_batch, distribution.current()
        )

    def save_own_variables(self, store):
        """Saves the running metrics, which Keras omits, and `passed`."""
        self._step_metrics.save(store)
        if self._passed is not None:
            store["passed"] = schedule.read(self._passed)

    def load_own_variables(self, store):
        """Loads the running metrics in the file, and `passed`."""
        self._step_metrics.load(store)
        if self._passed is not None:
            self._passed.assign(store["passed"])

    def get_config(self):
        """Returns the arguments for `.keras` files, without the reference."""
        serialize = keras.saving.serialize_keras_object
        return {
            **super().get_config(),
            **{name: getattr(self, name) for name in _PLAIN_SETTINGS},
            "learner": serialize(self.learner),
            "selection": (
                self.selection and dataclasses.asdict(self.selection)
            ),
            "loss": self.loss_name,
            "views": [dataclasses.asdict(view) for view in self.views],
            "augment": self.augment and serialize(self.augment),
            "seed": self.seed,
        }

    @classmethod
    def from_config(cls, config):
        """Builds the model of `get_config`, without its reference."""
        config = dict(config)
        for name in ("learner", "augment"):
            if config[name] is not None:
                config[name] = keras.saving.deserialize_keras_object(
                    config[name]
                )
        if config["selection"] is not None:
            config["selection"] = overrides.build(
                config_lib.SelectionConfig, config["selection"], "selection"
            )
        config["views"] = tuple(
            config_lib.View(**view) for view in config["views"]
        )
        return cls(**config)

    @property
    def _num_replicas(self):
        return self.distribute_strategy.num_replicas_in_sync

    def _step(self, settings):
        return step_lib.Step(
            learner=self.learner,
            reference=self._reference,
            optimizer=getattr(self, "optimizer", None),
            selection=settings,
            loss=self.loss_name,
            views=self.views,
            augment=self.augment,
            **{name: getattr(self, name) for name in _PLAIN_SETTINGS},
        )

    def _traced_step(self, data, settings):
        """A step whose kind `step_flops` counts."""
        if not tf.executing_eagerly():
            self._traced[settings] = {
                name: tf.TensorSpec(value.shape, value.dtype)
                for name, value in sub_batch.super_batch_of(
                    data, self._num_replicas
                ).items()
            }
        return self._train_step(data, settings)

    def _train_step(self, data, settings):
        """The logs of a step and its row outputs, see `row_outputs.py`."""
        super_batch = sub_batch.super_batch_of(data, self._num_replicas)
        replicas = distribution.current()
        number = tf.cast(self.optimizer.iterations, tf.int32)
        outputs = step_lib.train_step(
            self._step(settings),
            super_batch,
            tf.stack([self.seed, number]),
            replicas,
        )
        self._step_metrics.count_replaced(super_batch)
        self._step_metrics.update(outputs.metrics, replicas)
        if self._passed is not None and outputs.draw is not None:
            state = schedule.passed(
                self._passed.value,
                outputs.draw,
                number,
                patience=self.selection.stop_when_passed,
                num_steps=self.steps_per_execution,
            )
            self._passed.assign(state)
        rows = outputs.rows
        if distribution.has_workers(self.distribute_strategy):
            # Inside the step: Keras reads all properties of a saved model, and
            # nothing outside a step may wait for other workers.
            rows = row_outputs.with_all_trained(rows, replicas)
        rows = rows | self._recent_draws.with_draw(outputs.drawn, number)
        return self.get_metrics_result(), rows

    def _next_selection(self):
        if self._schedule is None:
            return None
        return self._schedule.next(
            self.optimizer.iterations, self.steps_per_execution, self.stopped_at
        )

    def _first_that_scores(self):
        kinds = () if self.selection is None else self.selection.kinds
        return next((kind for kind in kinds if kind.scores), self.selection)

    def _scoring_step(self, settings):
        settings = settings or self._first_that_scores()
        if settings is None or not settings.scores:
            raise ValueError(
                "`select` needs a selection that scores: a `batch_size` and a "
                f"method other than 'uniform'. Received: {settings}"
            )
        return self._step(settings)
