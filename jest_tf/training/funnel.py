"""The funnel: a selection bound to all that it chooses by, once.

A `Funnel` makes the super-batches, which pass its stored stages, and is given
to `JESTModel`, which runs its live stages. So both use the same stages, pair
loss, reference and stored embeddings.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf
from keras import ops

from jest_tf import config as config_lib
from jest_tf import embeddings, losses
from jest_tf import selection as selection_lib
from jest_tf.data import images, loading, pipeline, stores
from jest_tf.data import sidecars as sidecars_lib
from jest_tf.embeddings import Embeddings
from jest_tf.models import reference as reference_lib


class Funnel:
    """The stages of a selection, with pair loss, reference and sidecars.

    Stored stages read the reference's embeddings from its sidecars; with
    sidecars, live stages and the loss read them from the super-batches, too,
    and the reference itself does not run.

    Args:
        selection: a `config.SelectionConfig`; None trains on every row.
        store: the records, from `stores.open_store`. Only stored stages and
            `super_batches` need them.
        reference: the result of `jest_tf.load`, a Keras model, or any callable
            that maps a batch to `Embeddings`.
        loss: pair loss that trains the learner: "sigmoid", "softmax" or a
            "module:function". Scores use it, too, unless `selection.loss` is
            set.
        sidecars: folder of the reference's embeddings, which `jest-tf embed`
            wrote, or a `sidecars.Sidecars`. "" looks beside each shard; so
            does None if a stored stage needs them.
        curated_rows: c of the b rows of a step come from the curated set.
        loss_needs_reference: whether the model's loss uses the reference on
            the rows that it trains on, for distillation or false negatives.
        options: other options of the stream, see `pipeline.Options`.
        plan: the segments of a run up to the next renewal, see `config.plan`.
            None derives them from `selection` and `curated_rows`.

    Attributes:
        scoring_loss: pair loss of the scores.

    Example:
        >>> stages = (config_lib.Stage(candidates=5),)
        >>> selection = config_lib.SelectionConfig(64, stages=stages)
        >>> Funnel(selection, loss="softmax").scoring_loss
        'softmax'
    """

    def __init__(
        self,
        selection: config_lib.SelectionConfig | None,
        store: stores.Store | None = None,
        *,
        reference: Any = None,
        loss: str = "sigmoid",
        sidecars: sidecars_lib.Sidecars | str | None = None,
        curated_rows: int = 0,
        loss_needs_reference: bool = False,
        options: pipeline.Options | None = None,
        plan: Sequence[config_lib.Segment] | None = None,
    ):
        if not isinstance(selection, config_lib.SelectionConfig | None):
            raise TypeError(
                "`selection` must be a SelectionConfig, such as "
                "SelectionConfig(64, stages=(Stage(candidates=5),)), or None. "
                f"Received: {selection!r}"
            )
        if plan is None:
            plan = ()
            if selection is not None:
                plan = config_lib.plan(selection, curated_rows=curated_rows)
        self.selection, self.plan = selection, tuple(plan)
        self.store, self.loss_needs_reference = store, loss_needs_reference
        self.options = options or pipeline.Options()
        if (self.options.host, self.options.num_hosts) != (0, 1):
            raise ValueError(
                "`options` must leave `host` and `num_hosts` to "
                f"`super_batches`. Received: {self.options.host} of "
                f"{self.options.num_hosts}"
            )
        self.reference = getattr(reference, "source", reference)
        self.loss = loss
        # Raises for unknown losses here, not in the first step.
        losses.pair_loss(loss)
        self.scoring_loss = loss
        if selection is not None and selection.loss is not None:
            losses.pair_loss(selection.loss, "selection.loss")
            self.scoring_loss = selection.loss
        check_criteria(selection)
        self.is_detached = False
        self.sidecars = self._open(sidecars)

    @classmethod
    def detached(
        cls, selection: config_lib.SelectionConfig, loss: str
    ) -> "Funnel":
        """Makes a funnel without reference and store, to be replaced later.

        Its `is_detached` is true. A loaded model has such a funnel.
        """
        live = dataclasses.replace(selection, stages=selection.live)
        funnel = cls(live, loss=loss)
        funnel.selection, funnel.plan = selection, config_lib.plan(selection)
        funnel.is_detached = True
        return funnel

    def _open(self, sidecars):
        """Returns the sidecars, or None if neither given nor needed."""
        if isinstance(sidecars, sidecars_lib.Sidecars):
            return sidecars
        needed = [
            number
            for segment in self.plan
            for number, _ in segment.stored
            if number in segment.scoring
        ]
        if sidecars is None and not needed:
            return None
        setting = f"`selection.stages.{needed[0]}`" if needed else "`sidecars`"
        if self.store is None:
            raise ValueError(
                f"{setting} chooses among stored embeddings before records are "
                "read: give the Funnel the `store` of the records, and the "
                "model the Funnel, `JESTModel(learner, selection=funnel)`. "
                "Received: store=None"
            )
        expected = None
        if isinstance(
            self.reference, reference_lib.Run | reference_lib.Pretrained
        ):
            expected = reference_lib.describe(self.reference)
        elif self.reference is not None:
            raise ValueError(
                "`reference` must be loaded by `jest_tf.load`, so that its "
                "stored embeddings can be told from others', or left out. "
                f"Received: {type(self.reference).__name__}, with sidecars"
            )
        store = self.store
        if not self.loss_needs_reference:  # stages choose from the pool
            store = store.first(len(store.parts) - self.options.num_curated)
        try:
            return sidecars_lib.Sidecars(store, sidecars or "", expected)
        except ValueError as error:
            if not needed:
                raise
            raise ValueError(
                f"{setting} needs stored embeddings of every record: {error}"
            ) from None

    @property
    def steps_need_reference(self) -> bool:
        """True if a live stage scores by it, or the loss uses it."""
        return self.loss_needs_reference or any(
            "reference" in stage.needs
            for segment in self.plan
            for number, stage in segment.live
            if number in segment.scoring
        )

    @property
    def uses_reference(self) -> bool:
        """True if a stage scores by the reference, or the loss uses it."""
        return self.loss_needs_reference or (
            self.selection is not None and self.selection.needs("reference")
        )

    def step_reference(self) -> Callable | None:
        """Makes the reference that a step calls; None if it needs none.

        Call it in the scope of the strategy.
        """
        if not self.steps_need_reference:
            return None
        if self.sidecars is not None:
            about = self.sidecars
            return Cached(about.scale, about.bias)
        return getattr(self.reference, "learner", self.reference)

    def super_batches(
        self,
        tokenizer: loading.Tokenizer,
        image_size: int | images.Form,
        *,
        seed: int = 0,
        start_step: int = 0,
        host: int = 0,
        num_hosts: int = 1,
        faults: pipeline.FaultLog | None = None,
    ) -> tf.data.Dataset:
        """Returns the endless stream of the super-batches.

        Args:
            tokenizer: the learner's.
            image_size: side of the learner's images, or a form of images,
                such as the `image_form` of a loaded model.
            seed: the run's seed, in [0, 2**31).
            start_step: the first step to yield.
            host, num_hosts, faults: as in `pipeline.Options`.

        Returns:
            See `pipeline.super_batches`.
        """
        if self.store is None:
            raise ValueError(
                "`super_batches` reads records: give the Funnel a `store`, "
                "from `stores.open_store`. Received: store=None"
            )
        return pipeline.super_batches(
            self.store,
            plan=self.plan,
            loss=self.scoring_loss,
            seed=seed,
            tokenizer=tokenizer,
            image_size=image_size,
            start_step=start_step,
            reference=self.inputs,
            options=dataclasses.replace(
                self.options,
                host=host,
                num_hosts=num_hosts,
                faults=faults or self.options.faults,
            ),
        )

    @property
    def inputs(self) -> loading.ReferenceInputs:
        """The reference's part of a stream."""
        curated = self.loss_needs_reference
        if self.sidecars is not None:
            return loading.ReferenceInputs(
                self.sidecars, self.steps_need_reference, curated
            )
        return loading.ReferenceInputs(
            curated=curated,
            tokenizer=getattr(self.reference, "tokenizer", None),
            image_form=getattr(self.reference, "image_form", None),
        )


def check_criteria(selection: config_lib.SelectionConfig | None) -> None:
    """Checks the criteria of the stages that score."""
    stages = selection.stages if selection is not None else ()
    for number, stage in enumerate(stages):
        if not stage.scores:
            continue
        if stage.is_stored and "learner" in stage.needs:
            raise ValueError(
                f"`selection.stages.{number}.criterion` of a stored stage must "
                f"need only the reference. Received: {stage.criterion!r}, "
                f"which needs {', '.join(stage.needs)}"
            )
        selection_lib.check_criterion(stage.criterion)


class Cached:
    """A reference that reads embeddings from the batch, from sidecars.

    It maps a batch with `reference_image` and `reference_text`, float [n, D]
    each, to `Embeddings` in float32; it raises ValueError without them. Create
    it in the scope of the strategy, with `scale` and `bias` of the sidecars.
    """

    def __init__(self, scale: float, bias: float):
        # Variables, so that a compiled step stays valid after `assign`.
        self._scale, self._bias = self.variables = [
            keras.Variable(value, trainable=False, dtype="float32")
            for value in (scale, bias)
        ]

    def assign(self, scale: float, bias: float) -> None:
        """Changes scale and bias, for embeddings of another model."""
        self._scale.assign(scale)
        self._bias.assign(bias)

    def __call__(self, batch: dict) -> Embeddings:
        """Returns the reference's embeddings in the batch."""
        missing = {"reference_image", "reference_text"} - set(batch)
        if missing:
            raise ValueError(
                "A cached reference needs `reference_image` and "
                "`reference_text` in the batch, which the super-batches of a "
                f"Funnel with sidecars have. Received: {sorted(batch)}"
            )
        return Embeddings(
            ops.cast(batch["reference_image"], "float32"),
            ops.cast(batch["reference_text"], "float32"),
            embeddings.read(self._scale),
            embeddings.read(self._bias),
        )
