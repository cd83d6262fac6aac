"""`JESTModel`: the training step (`step.py`) as a `keras.Model`.

The code for each backend of Keras is in `on_tensorflow.py` and `on_jax.py`.
"""

import dataclasses
import warnings
from collections.abc import Callable

import keras
import tensorflow as tf
from keras import ops

from jest_tf import config as config_lib
from jest_tf import distribution, losses
from jest_tf import embeddings as embeddings_lib
from jest_tf.config import overrides
from jest_tf.embeddings import ON_TENSORFLOW, Tensor
from jest_tf.models import patches, reference, two_tower
from jest_tf.training import finite, flops, step_outputs, sub_batch
from jest_tf.training import step as step_lib

if ON_TENSORFLOW:
    from jest_tf.training import on_tensorflow as trainer
else:
    from jest_tf.training import on_jax as trainer


@keras.saving.register_keras_serializable(package="jest_tf")
class JESTModel(trainer.Trainer, keras.Model):
    """A learner that chooses what it trains on.

    A step takes a super-batch, a dict of tensors with B rows: `image`, `text`,
    and optionally `id` (for the digest of the draw) and `caption_id` (for
    `equal_captions`). Other entries with B rows are passed through, except
    reference-only keys. Under `curated` a batch may have a dict of c further
    rows, which all enter the sub-batch. Calling the model returns the learner's
    embeddings.

    Metrics are means over the steps since the last reset: `loss`, `scale`,
    `bias`, and for each stage the values of `selection.summarize` as
    `stages/0/...`, over scoring steps only. With distillation, `loss` includes
    it and `distillation` is its unweighted value. Batches with
    `caption_replaced` or `record_replaced` add the counts
    `data/captions_replaced` (not UTF-8) and `data/records_replaced`
    (unreadable).

    If the model is created in the scope of a strategy, each of R replicas
    holds B/R rows of a super-batch and trains on b/R rows of the sub-batch.
    Draws, loss and metrics equal those of one replica; dropout differs. R must
    divide b, c and the rows into every stage.

    Args:
        learner: a `models.TwoTower`, or any Keras model that maps a batch to
            `Embeddings`.
        reference: a Keras model like the learner, or any callable that maps a
            batch to `Embeddings`. It is neither trained nor saved; attach it
            again after loading.
        selection: a `config.SelectionConfig`, whose live stages choose from
            each super-batch; the dataset runs the stored stages
            (`pipeline.super_batches`). None trains on the whole batch. If
            stages begin or end during the run, the step is compiled once for
            each set of active stages, on first use.
        loss: "sigmoid", "softmax" or a "module:function", as in
            `config.ModelConfig`.
        options: the other options of a step, see `training.StepOptions`.

    Attributes:
        step: a `training.step.Step` with the arguments.
        rows: per-row outputs of the last execution, a `step_outputs.RowReport`.

    Raises:
        TypeError: `learner`, `reference` or `selection` has the wrong type.
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
        options: step_lib.StepOptions = step_lib.StepOptions(),  # noqa: B008
        **kwargs,
    ):
        super().__init__(**kwargs)
        if not isinstance(learner, keras.layers.Layer):
            raise TypeError(
                "`learner` must be a Keras model that maps a batch to "
                "Embeddings, such as TwoTower(image_tower, text_tower). "
                f"Received: {learner!r}"
            )
        if not isinstance(selection, config_lib.SelectionConfig | None):
            raise TypeError(
                "`selection` must be a SelectionConfig, such as "
                "SelectionConfig(64, stages=(Stage(candidates=5),)), or None. "
                f"Received: {selection!r}"
            )
        self.learner = learner
        self.selection = selection
        self.projection = None
        if options.projection_dim is not None:
            self.projection = two_tower.Projection(
                options.projection_dim, seed=options.seed
            )
        # Raises for unknown losses here, not in the first step.
        losses.pair_loss(loss)
        if selection is not None and selection.loss is not None:
            losses.pair_loss(selection.loss, "selection.loss")
        self.step = step_lib.Step(
            learner,
            projection=self.projection,
            selection=selection,
            loss=loss,
            options=options,
            seed=(options.seed, 0),
        )
        stages = [stage for _, stage in self.step.stages]
        for view in (*options.views, *(stage.view for stage in stages)):
            if view != config_lib.View():
                patches.check_view(learner, view)
        self._check_placed("learner", learner)
        if reference is not None:
            self.attach_reference(reference)
            if not any("reference" in stage.needs for stage in stages) and (
                not self.step.distils
            ):
                warnings.warn(
                    "`reference` is not used: no live stage scores with it, "
                    "and `distillation_weight` is 0. To select, set selection="
                    "SelectionConfig(..., stages=(Stage(candidates=5),))",
                    stacklevel=2,
                )

        self.rows = step_outputs.RowReport({})
        self._recent_draws = None
        self._step_metrics = step_outputs.StepMetrics(
            self.selection, self.step.distils
        )
        self._next_step = None  # read when `fit` begins
        self._specs = {}  # of super-batches, by the step's selection
        self._flops = {}
        self._last_logs = {}
        if learner.built:
            self.build(None)

    def attach_reference(self, model: Callable) -> None:
        """Sets the reference, e.g. after loading; see the class.

        Raises:
            TypeError: if `model` can't be called.
            ValueError: if the replicas can't run `model`.
        """
        self._check_placed("reference", model)
        self._change_step(reference=reference.frozen(model))
        self.train_function = None  # traced with the old reference

    @property
    def drawn_ids(self) -> Tensor | None:
        """The `id`s of the last step's sub-batch, `[b]`, in the order drawn.

        None before the first step, or if the batches have no `id`.
        """
        ids = self.rows.trained_ids()
        return ids if ids is None or not ON_TENSORFLOW else tf.constant(ids)

    def step_flops(
        self,
    ) -> dict[config_lib.SelectionConfig | None, dict[str, int]]:
        """Counts a step's FLOPs on all replicas, by `SelectionConfig.in_step`.

        Covers only steps that `fit` has traced; see `flops.of_step`.

        Raises:
            ValueError: if a model's graph can't be counted, or Keras runs on
                JAX.
        """
        embeddings_lib.check_backend("`step_flops`")
        for settings, super_batch in self._specs.items():
            if settings not in self._flops:
                step = dataclasses.replace(self.step, selection=settings)
                self._flops[settings] = flops.of_step(
                    step, super_batch, self._num_replicas
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
        if self.projection is not None and not self.projection.built:
            self.projection.build((None, self.learner.embedding_dim))

    def call(self, batch, training=None):
        """Returns the learner's `Embeddings` of a batch."""
        return self.learner(batch, training=training)

    def compile(self, optimizer="adamw", **kwargs):
        """Compiles as `keras.Model` does, but with the loss of the model."""
        if kwargs.get("loss") is not None:
            raise ValueError(
                "The loss is an argument of JESTModel, not of `compile`. "
                f"Received: loss={kwargs['loss']!r}"
            )
        for name in ("metrics", "weighted_metrics"):
            if kwargs.get(name):
                raise ValueError(
                    "JESTModel has its own metrics, and no labels that Keras' "
                    f"metrics need: call `compile` without `{name}`. "
                    f"Received: {name}={kwargs[name]!r}"
                )
        super().compile(optimizer=optimizer, **kwargs)
        self._change_step(optimizer=self.optimizer)

    def compile_from_config(self, config):
        """Compiles a loaded model; Keras then loads the optimizer's state."""
        self.compile(**keras.saving.deserialize_keras_object(config))
        if self.built:
            self.optimizer.build(self.trainable_variables)

    def fit(self, *args, shuffle=False, **kwargs):
        """Trains as `keras.Model.fit` does, without shuffling by default.

        Raises:
            finite.NotFinite: after a step that scored non-finite embeddings.
            ValueError: besides Keras' own, if B varies or R does not divide it;
                a reference is missing; float pictures of the first batch do
                not fill the range of the learner's pixels; or a token id is
                not in the text tower's vocabulary.
        """
        self._check_before(args[0] if args else kwargs.get("x"))
        self._next_step = None
        self._last_logs = {}
        callbacks = kwargs.get("callbacks")
        # Positional callbacks and Keras' `CallbackList` are not changed.
        if (
            len(args) < 5
            and isinstance(callbacks, list | tuple | None)
            and kwargs.get("verbose", "auto") != 0
            and not any(
                isinstance(callback, keras.callbacks.ProgbarLogger)
                for callback in callbacks or ()
            )
        ):
            bar = step_outputs.ProgressBar()
            kwargs["callbacks"] = [*(callbacks or ()), bar]
        with two_tower.plain_id_errors():
            history = super().fit(*args, shuffle=shuffle, **kwargs)
        finite.check_scores(self._last_logs)
        return history

    def _check_before(self, data):
        """Raises errors that a step would raise within Keras, or not at all."""
        if self.step.optimizer is not None:
            settings = self.selection
            if settings is not None:
                settings = settings.at(self._steps_done())
            step = dataclasses.replace(self.step, selection=settings)
            step.check_references()
        if isinstance(self.learner, two_tower.TwoTower):
            images = sub_batch.first_images(data)
            fault = images is not None and two_tower.pixel_fault(
                images, self.learner
            )
            if fault:
                raise ValueError(
                    f"`image`: {fault}. The model rescales uint8 itself: leave "
                    "pictures as they are"
                )

    def _test_step(self, data):
        """Computes the contrastive loss of a batch, in evaluation mode."""
        may_vary = self._num_replicas == 1
        batch = sub_batch.super_batch_of(data, self._num_replicas, may_vary)
        step = dataclasses.replace(self.step, replicas=distribution.current())
        embeddings = self.learner(batch, training=False)
        loss = step_lib.contrastive_loss(step, embeddings, batch)
        self._step_metrics.update({"loss": loss}, step.replicas)
        return {"loss": self._step_metrics.result("loss")}

    def get_config(self):
        """Returns the arguments for `.keras` files, without the reference."""
        serialize = keras.saving.serialize_keras_object
        options = dict(vars(self.step.options))
        options["views"] = [
            dataclasses.asdict(view) for view in options["views"]
        ]
        options["augment"] = serialize(options["augment"])
        selection = self.selection
        return {
            **super().get_config(),
            "learner": serialize(self.learner),
            "selection": selection and dataclasses.asdict(selection),
            "loss": self.step.loss,
            "options": options,
        }

    @classmethod
    def from_config(cls, config):
        """Builds the model from `get_config`'s result, without a reference."""
        config = keras.saving.deserialize_keras_object(config)
        if config["selection"] is not None:
            config["selection"] = overrides.build(
                config_lib.SelectionConfig, config["selection"], "selection"
            )
        options = dict(config["options"])
        options["views"] = tuple(
            config_lib.View(**view) for view in options["views"]
        )
        config["options"] = step_lib.StepOptions(**options)
        return cls(**config)

    def _change_step(self, **changes):
        # Keras does not track, train or save the fields of a dataclass.
        self.step = dataclasses.replace(self.step, **changes)

    def _super_batch(self, data):
        return sub_batch.super_batch_of(data, self._num_replicas)

    def _train_step(self, super_batch, settings):
        """Returns the outputs equal on all replicas, and the row outputs."""
        replicas = distribution.current()
        number = ops.cast(self.optimizer.iterations, "int32")
        step = dataclasses.replace(
            self.step,
            selection=settings,
            seed=ops.stack([self.step.options.seed, number]),
            replicas=replicas,
        )
        outputs = step_lib.train_step(step, super_batch)
        self._step_metrics.count_replaced(super_batch)
        self._step_metrics.update(outputs.metrics, replicas)
        rows, equal = outputs.rows, {"rows": {}}
        if self._gather_rows is not None and "trained" in rows:
            # Gathered in the step: Keras reads all properties of a saved model,
            # and code outside a step must not wait for other workers.
            trained = replicas.all_gather(rows.pop("trained"))
            equal["rows"]["trained"] = trained
        if outputs.drawn is not None:
            equal["draws"] = step_outputs.with_draw(
                self._recent_draws, outputs.drawn, number
            )
        return equal, rows
