"""`JESTModel`: the training step (`step.py`) as a `keras.Model`."""

import dataclasses
import warnings
from collections.abc import Callable

import keras
import tensorflow as tf
from keras.src.saving import serialization_lib

from jest_tf import config as config_lib
from jest_tf.config import formats, imports, overrides
from jest_tf.embeddings import ON_TENSORFLOW, Tensor
from jest_tf.models import reference, towers, two_tower
from jest_tf.training import funnel as funnel_lib
from jest_tf.training import step as step_lib
from jest_tf.training import step_outputs, stepper, sub_batch


@keras.saving.register_keras_serializable(package="jest_tf")
class JESTModel(step_lib.backend.Trainer, keras.Model):
    """A learner that chooses what it trains on.

    A step takes a super-batch, a dict of tensors with B rows: `image`, `text`,
    and optionally `id` (for the digest of the draw) and `caption_id` (for
    `false_negatives`). Other entries with B rows are passed through, except
    reference-only keys. Under `curated` a batch may have a dict of c further
    rows, which all enter the sub-batch. Calling the model returns the learner's
    embeddings.

    Metrics are means over the steps since the last reset: `loss`, `scale`,
    `bias`, and for each stage the values of `selection.summarize` as
    `stages/0/...`, over scoring steps only. With distillation, `loss` includes
    it; `distillation` and `similarities` are its unweighted terms. Batches with
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
            batch to `Embeddings`. It is neither trained nor saved; after
            loading, `bind` the model again.
        selection: the `Funnel` that makes the super-batches, with reference
            and loss; or, for super-batches of your own, a `SelectionConfig` of
            live stages. None trains on the whole batch. If stages begin or end
            during training, the step is compiled once for each set of scoring
            stages, on first use.
        loss: "sigmoid", "softmax" or a "module:function", as in
            `config.ModelConfig`. None takes the funnel's, or "sigmoid".
        options: the other options of a step, see `training.StepOptions`.

    Attributes:
        funnel: the `Funnel`, given or made of the arguments.
        stepper: runs the steps, a `training.stepper.Stepper`.

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
        >>> data = tf.data.Dataset.from_tensors(batch)
        >>> history = model.fit(data, verbose=0)
        >>> sorted(history.history)
        ['bias', 'loss', 'scale']

    Reference: Evans et al. 2024, arXiv 2406.17711.
    """

    def __init__(
        self,
        learner: keras.Model,
        reference: Callable | None = None,
        selection: funnel_lib.Funnel | config_lib.SelectionConfig | None = None,
        loss: str | None = None,
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
        funnel = _funnel(
            reference, selection, loss, options.loss_needs_reference
        )
        self.learner = learner
        self.projection = None
        if options.projection_dim is not None:
            self.projection = two_tower.Projection(
                options.projection_dim, seed=options.seed
            )
        stages = funnel.selection.live if funnel.selection else ()
        for view in (*options.views, *(stage.view for stage in stages)):
            if view != config_lib.View():
                towers.check_view(learner, view)
        self.check_placed("learner", learner)
        self.stepper = stepper.Stepper(
            step_lib.Step(
                learner,
                projection=self.projection,
                loss=funnel.loss,
                options=options,
                seed=(options.seed, 0),
            ),
            funnel.plan,
            funnel.selection,
        )
        self.bind(funnel)
        if learner.built:
            self.build(None)

    def bind(self, funnel: funnel_lib.Funnel) -> None:
        """Binds the model to another funnel of its selection and loss.

        It is needed after loading, and after the reference has been renewed.
        """
        step = self.stepper.step
        ours = self.stepper.selection, step.loss
        theirs = funnel.selection, funnel.loss
        if ours != theirs:
            raise ValueError(
                "A model is bound to funnels of its own selection and loss, "
                f"{ours}. Received: {theirs}"
            )
        has_reference = funnel.loss_needs_reference or funnel.is_detached
        if step.options.loss_needs_reference and not has_reference:
            raise ValueError(
                "A model that distils, or whose false negatives the reference "
                "marks, needs the reference in its super-batches or steps: "
                "make the Funnel with `loss_needs_reference=True`. Received: "
                "loss_needs_reference=False"
            )
        self.funnel, self.stepper.plan = funnel, funnel.plan
        model = funnel.step_reference()
        old = step.reference
        if isinstance(old, funnel_lib.Cached) and funnel.sidecars is not None:
            old.assign(funnel.sidecars.scale, funnel.sidecars.bias)
        elif model is not None or old is not None:
            if model is not None and funnel.sidecars is None:
                self.check_placed("reference", model)
                model = reference.frozen(model)
            self.stepper.change_step(reference=model)
            # Traced with the old reference.
            self.train_function = self.test_function = None
        if funnel.reference is not None and not funnel.uses_reference:
            warnings.warn(
                "`reference` is not used, neither by a stage nor by the loss. "
                "To select, set selection="
                "SelectionConfig(..., stages=(Stage(candidates=5),))",
                stacklevel=3,
            )

    @property
    def selection(self) -> config_lib.SelectionConfig | None:
        """The selection of the funnel."""
        return self.stepper.selection

    @property
    def step(self) -> step_lib.Step:
        """The models and options that all steps share."""
        return self.stepper.step

    @property
    def rows(self) -> step_outputs.RowReport:
        """Per-row outputs of the last execution."""
        return self.stepper.rows

    @property
    def drawn_ids(self) -> Tensor | None:
        """The `id`s of the last step's sub-batch, `[b]`, in the order drawn.

        None before the first step, or if the batches have no `id`.
        """
        ids = self.rows.trained("id")
        return ids if ids is None or not ON_TENSORFLOW else tf.constant(ids)

    def step_flops(self) -> dict[tuple | None, dict[str, int]]:
        """Counts a step's FLOPs on all replicas, by `Segment.step_kind`.

        Covers only steps that `fit` has traced; see `flops.count_step`.
        """
        return self.stepper.count_flops(self.num_replicas)

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        """The metrics with values; Keras resets them every epoch."""
        return self.stepper.metrics.shown

    @property
    def step_metrics(self) -> list[keras.metrics.Metric]:
        """All metrics, including those not yet in `metrics`."""
        return self.stepper.metrics.every

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
        self.stepper.change_step(optimizer=self.optimizer)

    def compile_from_config(self, config):
        """Compiles a loaded model; Keras then loads the optimizer's state."""
        self.compile(**keras.saving.deserialize_keras_object(config))
        if self.built:
            self.optimizer.build(self.trainable_variables)

    def fit(self, *args, shuffle=False, **kwargs):
        """Trains as `keras.Model.fit` does, without shuffling by default.

        Raises:
            stepper.NotFinite: after a step that scored non-finite embeddings.
            ValueError: besides Keras' own, if B varies or R does not divide it;
                a reference is missing; float images of the first batch do
                not fill the range of the learner's pixels; or a token id is
                not in the text tower's vocabulary.
        """
        self._check_before(args[0] if args else kwargs.get("x"))
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
        self.stepper.check_scores()
        return history

    def _check_before(self, data):
        """Raises errors that a step would raise within Keras, or not at all."""
        settings = self.selection
        if self.funnel.is_detached and settings and settings.needs_stored:
            raise ValueError(
                "The model was loaded without what its stored stages choose "
                "by: call `bind` with a Funnel of its selection, which makes "
                "the super-batches"
            )
        self.stepper.begin_fit(self.steps_done)
        if isinstance(self.learner, two_tower.TwoTower):
            images = sub_batch.first_images(data)
            fault = images is not None and two_tower.pixel_fault(
                images, self.learner
            )
            if fault:
                raise ValueError(
                    f"`image`: {fault}. The model rescales uint8 itself: leave "
                    "images as they are"
                )

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
        loss = config["loss"]
        if not isinstance(loss, str):
            raise ValueError(f"`loss` must be a text. Received: {loss!r}")
        functions = [("loss", loss)] * (":" in loss)
        selection = config["selection"]
        if selection is not None:
            selection = overrides.build(
                config_lib.SelectionConfig, selection, "selection"
            )
            functions += selection.functions
        if serialization_lib.in_safe_mode():  # unset where a model is copied
            imports.check_trust(
                "A file that Keras loads in its safe mode (`safe_mode=False` "
                "trusts it)",
                functions,
            )
        if selection is not None:
            config["selection"] = funnel_lib.Funnel.detached(
                selection, config["loss"]
            )
            config["loss"] = None
        options = dict(config["options"])
        options["views"] = tuple(
            config_lib.View(**view) for view in options["views"]
        )
        formats.rename_equal_captions(
            options, "`equal_captions` of a `.keras` file"
        )
        config["options"] = step_lib.StepOptions(**options)
        return cls(**config)


def _funnel(reference, selection, loss, loss_needs_reference):
    if not isinstance(selection, funnel_lib.Funnel):
        return funnel_lib.Funnel(
            selection,
            reference=reference,
            loss=loss or "sigmoid",
            loss_needs_reference=loss_needs_reference,
        )
    received = {"reference": reference, "loss": loss}
    given = [name for name, value in received.items() if value is not None]
    if given:
        raise ValueError(
            f"`{given[0]}` is the Funnel's, which `selection` names: leave it "
            f"out. Received: both, {given[0]}={received[given[0]]!r}"
        )
    return selection
