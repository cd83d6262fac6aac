"""Every setting of a run, as frozen dataclasses, and the recipes that set them.

A recipe is a Python file with a function `config()` that returns a
`TrainConfig`; a variant is `dataclasses.replace` of another recipe, so the diff
of two recipes is the method. Settings that do not fit together are refused
here, before any data is read. Nothing here imports TensorFlow.
"""

import dataclasses
import importlib.util
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from jest_tf.config import overrides as overrides_lib
from jest_tf.config.selection import (
    CRITERIA,
    FIRST_CHUNKS,
    LOSSES,
    QUOTAS,
    SAMPLERS,
    CascadeConfig,
    Phase,
    SelectionConfig,
    View,
)

__all__ = [
    "CRITERIA",
    "DTYPE_POLICIES",
    "EQUAL_CAPTIONS",
    "FIRST_CHUNKS",
    "FORMATS",
    "LOSSES",
    "ON_NON_FINITE",
    "QUOTAS",
    "SAMPLERS",
    "STRATEGIES",
    "CascadeConfig",
    "CheckpointConfig",
    "DataConfig",
    "DistributionConfig",
    "EvaluationConfig",
    "ModelConfig",
    "OptimizerConfig",
    "Phase",
    "ReferenceConfig",
    "SelectionConfig",
    "TrainConfig",
    "View",
    "load_config",
    "save_config",
]

EQUAL_CAPTIONS = ("negative", "positive", "ignore")
DTYPE_POLICIES = ("float32", "mixed_bfloat16")
FORMATS = ("auto", "tfrecord", "webdataset", "tfds", "table")
ON_NON_FINITE = ("stop", "rollback")
_FUNCTION = r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*"
STRATEGIES = ("default", "mirrored", "multi_worker_mirrored", "tpu")


@dataclass(frozen=True)
class DataConfig:
    """What is drawn, and how an example becomes numbers.

    Attributes:
        train: where the examples are, one store each: paths or globs of
            shards, tables or prepared TFDS directories, see docs/data.md.
        weights: shares of the stores of `train` in the stream, one each; ()
            takes each by its size.
        manifest: folder of a manifest of `train`, as `trainers.curate` writes
            it: only the records in it are drawn, as often as their weights
            say; "" draws all alike.
        format: "tfrecord", "webdataset", "tfds" or "table"; "auto" tells by
            the file names.
        image_field: feature, extension or column of the picture; "" is the
            format's usual one.
        caption_fields: features, extensions, `json` fields or columns that
            captions are taken from; () are the format's usual ones.
        index_dir: folder of the index files; "" puts each beside its shard.
        shuffle_block_size: neighbouring records that stay together in the
            shuffled order, so that reads are local; None shuffles freely.
        max_fault_rate: share of the records drawn that may turn out unreadable
            and be replaced, before the run stops.
        max_image_pixels: a larger picture is not decoded but replaced.
        super_batch_size: B, examples drawn a step.
        image_size: pixels a side; other pictures are resized to it.
        text_length: tokens a caption, cut or padded.
        vocabulary: a SentencePiece `.model`, a WordPiece `vocab.txt`, or ""
            to build a WordPiece vocabulary from the training captions.
        vocabulary_size: words of a vocabulary that is built.
        flip: mirror half of the trained images.
        min_crop_area: a trained image is a random crop of at least this share
            of the picture; 1 does not crop.
    """

    train: tuple[str, ...] = ()
    weights: tuple[float, ...] = ()
    manifest: str = ""
    format: str = "auto"
    image_field: str = ""
    caption_fields: tuple[str, ...] = ()
    index_dir: str = ""
    shuffle_block_size: int | None = None
    max_fault_rate: float = 0.01
    max_image_pixels: int = 2**26  # 8,192 x 8,192, 200 MB decoded
    super_batch_size: int = 1280
    image_size: int = 32
    text_length: int = 16  # SigLIP's ablation setting (arXiv 2303.15343, 4)
    vocabulary: str = ""
    vocabulary_size: int = 8192
    flip: bool = True
    min_crop_area: float = 1.0

    def __post_init__(self):
        overrides_lib.check_types(self, "data")
        overrides_lib.check_one_of(self, "data", "format", FORMATS)
        overrides_lib.check_at_least(
            self, "data", 1, "shuffle_block_size", "max_image_pixels"
        )
        if self.weights and (
            len(self.weights) != len(self.train) or min(self.weights) <= 0.0
        ):
            raise ValueError(
                "`data.weights` must hold a positive number for each store of "
                f"`data.train`. Received: {self.weights} for "
                f"{len(self.train)} stores"
            )
        if not 0.0 <= self.max_fault_rate <= 1.0:
            raise ValueError(
                "`data.max_fault_rate` must be in [0, 1]. "
                f"Received: {self.max_fault_rate}"
            )
        overrides_lib.check_at_least(
            self, "data", 1, "super_batch_size", "image_size"
        )
        # A caption is at least one token and the end mark.
        overrides_lib.check_at_least(
            self, "data", 2, "text_length", "vocabulary_size"
        )
        if not 0.0 < self.min_crop_area <= 1.0:
            raise ValueError(
                "`data.min_crop_area` must be in (0, 1]. "
                f"Received: {self.min_crop_area}"
            )


@dataclass(frozen=True)
class ModelConfig:
    """The learner and its loss.

    Attributes:
        preset: size of the towers, a name in `models.PRESETS`.
        towers: "module:function" that builds towers of another make in place
            of a preset. The module is imported, so it must be installed or lie
            in the folder that the command starts in. The function is given the
            `TrainConfig` and the number of token ids, and returns two Keras
            layers or models, image and text tower, see `models.TwoTower`.
        patch_size: pixels a side of an image patch; None is the preset's.
        views: how the sub-batch is looked at in the training step, cut by
            chance into equal parts of one loss, a part a view; () is the
            tower's own way. Flexi-JEST has two, fine and coarse.
        dtype_policy: Keras dtype policy of the towers, and of those layers of
            `towers` that name none; the embeddings, losses and scores are
            float32 under any.
        loss: "sigmoid" (SigLIP) or "softmax" (CLIP).
        equal_captions: what two different rows with the same caption are to
            each other: "negative" (the paper), "positive" or "ignore".
        loss_block_size: rows of the loss's logits held at a time; None all.
        micro_batch_size: examples a replica embeds at a time in the training
            step, which must divide its share of b; the gradient is that of
            the whole sub-batch. None embeds all at once.
        temperature: initial scale t of the logits, learned in log space.
        bias: initial bias of the logits.
    """

    preset: str = "b16"
    towers: str = ""
    patch_size: int | None = None
    views: tuple[View, ...] = ()
    dtype_policy: str = "float32"
    loss: str = "sigmoid"
    equal_captions: str = "negative"
    loss_block_size: int | None = None
    micro_batch_size: int | None = None
    temperature: float = 10.0  # arXiv 2303.15343, algorithm 1
    bias: float = -10.0

    def __post_init__(self):
        overrides_lib.check_types(self, "model")
        if self.towers and not re.fullmatch(_FUNCTION, self.towers):
            raise ValueError(
                "`model.towers` must be 'module:function', such as "
                f"'my_towers:build'. Received: {self.towers!r}"
            )
        overrides_lib.check_one_of(
            self, "model", "dtype_policy", DTYPE_POLICIES
        )
        overrides_lib.check_one_of(self, "model", "loss", LOSSES)
        overrides_lib.check_one_of(
            self, "model", "equal_captions", EQUAL_CAPTIONS
        )
        overrides_lib.check_at_least(
            self,
            "model",
            1,
            "patch_size",
            "loss_block_size",
            "micro_batch_size",
        )
        if not self.temperature > 0.0:
            raise ValueError(
                f"`model.temperature` must be > 0. Received: {self.temperature}"
            )


@dataclass(frozen=True)
class ReferenceConfig:
    """The frozen model that says which examples are worth learning.

    It can also say what to learn of them: with a `distillation_weight` the
    learner is drawn to its embeddings of what is trained on, on every step,
    whatever was drawn and how (`losses.feature_distillation`).

    Attributes:
        workdir: the run directory that trained it; "" is no reference, or
            one that is known by its sidecars alone.
        sidecars: take its embeddings from the sidecars that `trainers.embed`
            wrote, in place of running it.
        sidecar_dir: folder of the sidecars; "" looks beside each shard.
        distillation_weight: of the feature distillation in the loss, beside
            the contrastive loss's 1; 0 does without. The reference's embeddings
            must be as wide as the learner's.
        distillation_steps: over which that weight falls linearly to 0, for a
            learner that is to end above its reference; None keeps it. A
            reference that is not read from sidecars is run to the end.
    """

    workdir: str = ""
    sidecars: bool = False
    sidecar_dir: str = ""
    distillation_weight: float = 0.0
    distillation_steps: int | None = None

    def __post_init__(self):
        overrides_lib.check_types(self, "reference")
        if self.sidecar_dir and not self.sidecars:
            raise ValueError(
                "`reference.sidecar_dir` needs `reference.sidecars=true`. "
                f"Received: {self.sidecar_dir!r}"
            )
        overrides_lib.check_at_least(
            self, "reference", 0, "distillation_weight"
        )
        overrides_lib.check_at_least(self, "reference", 1, "distillation_steps")
        if self.distillation_weight and not (self.workdir or self.sidecars):
            raise ValueError(
                "`reference.distillation_weight` needs a reference: set "
                "`reference.workdir`, or `reference.sidecars`. Received: "
                f"{self.distillation_weight} without"
            )
        if self.distillation_steps and not self.distillation_weight:
            raise ValueError(
                "`reference.distillation_steps` needs "
                "`reference.distillation_weight`. Received: "
                f"{self.distillation_steps} without"
            )


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with linear warm-up and a cosine to zero.

    Attributes:
        learning_rate: at the end of the warm-up.
        warmup_steps: steps from zero to it.
        weight_decay: what a step takes from a weight is this times the rate
            of the step; SigLIP 2's 1e-4 (2.1), which its code multiplies by
            the schedule and not by the rate of 1e-3, is 0.1 here. Only of
            variables whose name ends in `kernel`, as in Keras's dense and
            convolutional layers, and so not of biases, norms, positions,
            embeddings, temperature or bias.
        beta_1: decay of the first moment.
        beta_2: decay of the second moment.
        clip_norm: global norm that the gradient is clipped to; None does not.
    """

    learning_rate: float = 1e-3  # arXiv 2502.14786, 2.1
    warmup_steps: int = 0
    weight_decay: float = 0.1
    beta_1: float = 0.9
    beta_2: float = 0.95  # for stability at large b, arXiv 2303.15343, 4.7
    clip_norm: float | None = 1.0

    def __post_init__(self):
        overrides_lib.check_types(self, "optimizer")
        overrides_lib.check_at_least(
            self, "optimizer", 0, "warmup_steps", "weight_decay"
        )
        for name in ("learning_rate", "clip_norm"):
            value = getattr(self, name)
            if value is not None and not value > 0.0:
                raise ValueError(
                    f"`optimizer.{name}` must be > 0. Received: {value}"
                )
        for name in ("beta_1", "beta_2"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ValueError(
                    f"`optimizer.{name}` must be in [0, 1). "
                    f"Received: {getattr(self, name)}"
                )


@dataclass(frozen=True)
class EvaluationConfig:
    """What is measured on the way, and what is written down.

    Attributes:
        data: paths or globs of shards or tables to evaluate on, each a set of
            its own, named after its files.
        format: of that data, as `data.format`, which None takes.
        image_field: of that data, as `data.image_field`, which None takes.
        caption_fields: of that data, as `data.caption_fields`, which None
            takes.
        every_steps: steps from one evaluation to the next; None evaluates
            only at the end.
        batch_size: examples a forward pass.
        prompts: templates with one "{}" for the class name, zero-shot.
        log_every_steps: steps that one line of the log averages over.
        log_ids: also write down the ids of the logged draws, `draws.jsonl`.
        time_parts: time scoring, selection and training apart, each alone on
            a super-batch, after the first step and at each `every_steps`; on
            one device. Leaves no trace in the run, but costs about as much as
            two steps each time, and tracing them once.
        energy: measure the energy that the machine takes; needs codecarbon,
            `pip install codecarbon`.
        telemetry: follow the selection, see docs/telemetry.md: repeats and
            overlaps of draws in the log, and at every logged step a line of
            `telemetry.jsonl` and histograms in TensorBoard.
    """

    data: tuple[str, ...] = ()
    format: str | None = None
    image_field: str | None = None
    caption_fields: tuple[str, ...] | None = None
    every_steps: int | None = None
    batch_size: int = 256
    prompts: tuple[str, ...] = ("{}",)
    log_every_steps: int = 10
    log_ids: bool = False
    time_parts: bool = False
    energy: bool = False
    telemetry: bool = True

    def __post_init__(self):
        overrides_lib.check_types(self, "evaluation")
        overrides_lib.check_one_of(
            self, "evaluation", "format", (None, *FORMATS)
        )
        overrides_lib.check_at_least(
            self,
            "evaluation",
            1,
            "every_steps",
            "batch_size",
            "log_every_steps",
        )
        for prompt in self.prompts:
            if prompt.count("{}") != 1:
                raise ValueError(
                    '`evaluation.prompts` must each hold one "{}". '
                    f"Received: {prompt!r}"
                )


@dataclass(frozen=True)
class CheckpointConfig:
    """When the state of a run is saved.

    Attributes:
        every_steps: steps from one checkpoint to the next, a multiple of
            `distribution.steps_per_execution`; the last step is always saved.
        every_minutes: also save when so many minutes have passed since the
            last, by the clock of the worker that writes; None does not.
        keep: checkpoints that are kept, the newest.
        keep_best: a measure of `evaluation.data`, named as in
            `evaluation.jsonl`; the checkpoint of the step where it was highest
            is kept too. "" keeps none.
        on_non_finite: at a loss, a weight or a score that is not finite,
            "stop" the run, or "rollback" to the newest checkpoint and leave
            out the super-batch, at most three times within 1,000 of them.
    """

    every_steps: int = 1000
    every_minutes: float | None = None
    keep: int = 3
    keep_best: str = ""
    on_non_finite: str = "stop"

    def __post_init__(self):
        overrides_lib.check_types(self, "checkpoint")
        overrides_lib.check_one_of(
            self, "checkpoint", "on_non_finite", ON_NON_FINITE
        )
        overrides_lib.check_at_least(
            self, "checkpoint", 1, "every_steps", "keep"
        )
        if self.every_minutes is not None and not self.every_minutes > 0.0:
            raise ValueError(
                "`checkpoint.every_minutes` must be > 0. "
                f"Received: {self.every_minutes}"
            )


@dataclass(frozen=True)
class DistributionConfig:
    """Where it runs.

    Attributes:
        strategy: "default", the one device that TensorFlow picks; "mirrored",
            all devices of this machine; "multi_worker_mirrored", those of all
            machines in TF_CONFIG; "tpu".
        tpu: name or address of the TPU; "local" is this machine's.
        virtual_devices: split the CPU into so many devices; None does not.
        steps_per_execution: steps that run on the devices before Python looks
            at the results; callbacks see only the last. Must divide `steps`
            and `checkpoint.every_steps`.
        jit_compile: compile the step with XLA, on one device alone; TPUs
            always do.
    """

    strategy: str = "default"
    tpu: str = "local"
    virtual_devices: int | None = None
    steps_per_execution: int = 1
    jit_compile: bool = False

    def __post_init__(self):
        overrides_lib.check_types(self, "distribution")
        overrides_lib.check_one_of(self, "distribution", "strategy", STRATEGIES)
        overrides_lib.check_at_least(
            self, "distribution", 1, "virtual_devices", "steps_per_execution"
        )


@dataclass(frozen=True)
class TrainConfig:
    """A run.

    Attributes:
        seed: of initial weights, data order, augmentation and draws; together
            with the step it is the only source of randomness.
        steps: optimizer steps, a multiple of
            `distribution.steps_per_execution`.
        data: see `DataConfig`; the others likewise.
    """

    seed: int = 0
    steps: int = 1000
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    reference: ReferenceConfig = field(default_factory=ReferenceConfig)
    cascade: CascadeConfig = field(default_factory=CascadeConfig)
    selection: SelectionConfig = field(default_factory=SelectionConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    distribution: DistributionConfig = field(default_factory=DistributionConfig)

    def __post_init__(self):
        overrides_lib.check_types(self, "")
        overrides_lib.check_at_least(self, "", 1, "steps")
        if not 0 <= self.seed < 2**31:
            raise ValueError(
                f"`seed` must be in [0, 2^31). Received: {self.seed}"
            )
        self.selection.check_super_batch(self.data.super_batch_size)
        has_reference = self.reference.workdir or self.reference.sidecars
        if self.selection.needs_reference and not has_reference:
            raise ValueError(
                f"`selection.criterion={self.selection.criterion!r}` needs a "
                "reference: set `reference.workdir` to the run directory that "
                "trained it, or `reference.sidecars`, or take criterion "
                "'hard_learner'. Received: reference.workdir='', "
                "reference.sidecars=False"
            )
        if self.optimizer.warmup_steps >= self.steps:
            raise ValueError(
                "`optimizer.warmup_steps` must be less than `steps`. Received: "
                f"{self.optimizer.warmup_steps}, steps={self.steps}"
            )
        self._check_cascade()
        self._check_executions()
        self._check_probe()
        self._check_views()
        self._check_phases()

    def _check_views(self):
        for name, view in (
            ("selection.view", self.selection.view),
            *(("model.views", view) for view in self.model.views),
        ):
            image_size = view.image_size or self.data.image_size
            patch_size = view.patch_size or self.model.patch_size
            if patch_size and image_size % patch_size:
                raise ValueError(
                    f"`{name}`: the patch size must divide the images' size, "
                    "`data.image_size` or the view's. Received: "
                    f"patch_size={patch_size}, image_size={image_size}"
                )
        if self.batch_size % max(1, len(self.model.views)):
            raise ValueError(
                "`model.views` must cut the sub-batch into equal parts, so "
                "their number must divide `selection.batch_size` (b), or "
                "`data.super_batch_size` without one. Received: "
                f"{len(self.model.views)} views, b={self.batch_size}"
            )

    def _check_phases(self):
        together = self.distribution.steps_per_execution
        for phase in self.selection.phases:
            if phase.start >= self.steps:
                raise ValueError(
                    "`selection.phases` must start before the last of `steps`. "
                    f"Received: start={phase.start}, steps={self.steps}"
                )
            if phase.start % together:
                raise ValueError(
                    "`selection.phases` must start at multiples of "
                    "`distribution.steps_per_execution`. Received: "
                    f"start={phase.start}, steps_per_execution={together}"
                )
        if self.selection.uniform_every and together > 1:
            raise ValueError(
                "`selection.uniform_every` needs "
                "`distribution.steps_per_execution=1`: the steps of an "
                f"execution are one kind. Received: {together}"
            )

    def _check_cascade(self):
        self.cascade.check_super_batch(self.data.super_batch_size)
        if self.cascade.hyper_batch_size and not self.reference.sidecars:
            raise ValueError(
                "`cascade.hyper_batch_size` needs the reference's sidecars: "
                "write them with `python -m trainers.embed` and set "
                "`reference.sidecars=true`. Received: hyper_batch_size="
                f"{self.cascade.hyper_batch_size}, reference.sidecars=False"
            )

    def _check_probe(self):
        strategy = self.distribution.strategy
        if self.evaluation.time_parts and strategy != "default":
            raise ValueError(
                "`evaluation.time_parts` is for one device, "
                "`distribution.strategy='default'`. Received: it with "
                f"{strategy!r}"
            )

    def _check_executions(self):
        """Python sees a step, to save it or to stop, between executions."""
        together = self.distribution.steps_per_execution
        for name, steps in (
            ("steps", self.steps),
            ("checkpoint.every_steps", self.checkpoint.every_steps),
        ):
            if steps % together:
                raise ValueError(
                    f"`{name}` must be a multiple of "
                    f"`distribution.steps_per_execution`. Received: {steps}, "
                    f"steps_per_execution={together}"
                )

    @property
    def batch_size(self) -> int:
        """Examples trained a step, b."""
        return self.selection.batch_size or self.data.super_batch_size

    @property
    def steps_need_reference(self) -> bool:
        """Whether a step asks the reference: what to draw, or to distil it."""
        return bool(
            self.selection.needs_reference or self.reference.distillation_weight
        )

    @property
    def patch_sizes(self) -> tuple[int, ...]:
        """The patch sizes of all views, which the learner is built for."""
        views = (self.selection.view, *self.model.views)
        return tuple(
            sorted({view.patch_size for view in views if view.patch_size})
        )

    @property
    def evaluation_data(self) -> DataConfig:
        """`data` as it is where `evaluation.data` is read."""
        own = {
            name: getattr(self.evaluation, name)
            for name in ("format", "image_field", "caption_fields")
        }
        return dataclasses.replace(
            self.data,
            train=self.evaluation.data,
            weights=(),
            manifest="",
            **{name: one for name, one in own.items() if one is not None},
        )


def load_config(path: str, overrides: Sequence[str] = ()) -> TrainConfig:
    """Reads a recipe, or the `config.json` of a run, and overrides settings.

    Args:
        path: a Python file with a function `config() -> TrainConfig`, or a
            `.json` file that `save_config` wrote.
        overrides: "a.b=c" each, e.g. "selection.batch_size=64". Lists are
            separated by commas; "none" unsets a setting that may be unset. All
            are applied before the result is checked.

    Returns:
        The resolved, checked `TrainConfig`.

    Raises:
        ValueError: on a file that is no recipe, a field that does not exist, or
            a value that does not fit.
    """
    path = os.fspath(path)
    if not os.path.isfile(path):
        raise ValueError(f"No recipe at {path!r}: expected a .py or .json file")
    if path.endswith(".json"):
        values = _read_json(path)
    else:
        values = dataclasses.asdict(_run_recipe(path))
    for override in overrides:
        overrides_lib.override(TrainConfig, values, override)
    return overrides_lib.build(TrainConfig, values)


def save_config(config: TrainConfig, path: str) -> None:
    """Writes `config` as JSON that `load_config` reads back equal."""
    with open(path, "w", encoding="utf-8") as file:
        json.dump(dataclasses.asdict(config), file, indent=2)
        file.write("\n")


def _read_json(path):
    with open(path, encoding="utf-8") as file:
        try:
            values = json.load(file)
        except ValueError as error:
            raise ValueError(f"{path!r} is no JSON file: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(
            f"{path!r} must hold an object of settings. "
            f"Received: {type(values).__name__}"
        )
    return values


def _run_recipe(path):
    spec = importlib.util.spec_from_file_location("recipe", path)
    module = importlib.util.module_from_spec(spec) if spec else None
    if module is None:
        raise ValueError(f"{path!r} is no recipe: expected a .py file")
    spec.loader.exec_module(module)
    config = getattr(module, "config", None)
    if not callable(config):
        raise ValueError(
            f"{path!r} is no recipe: expected a function `config()` that "
            "returns a TrainConfig"
        )
    config = config()
    if not isinstance(config, TrainConfig):
        raise ValueError(
            f"`config()` of {path!r} must return a TrainConfig. "
            f"Received: {type(config).__name__}"
        )
    return config
