"""All settings of a run, and the checks across groups."""

import dataclasses
from dataclasses import dataclass, field

from jest_tf.config.checks import at_least, check
from jest_tf.config.groups import (
    PRESETS,
    CheckpointConfig,
    DataConfig,
    DistributionConfig,
    EvaluationConfig,
    ModelConfig,
    OptimizerConfig,
    ReferenceConfig,
)
from jest_tf.config.selection import CascadeConfig, SelectionConfig


@dataclass(frozen=True)
class TrainConfig:
    """A run.

    Attributes:
        seed: seed of initial weights, data order, augmentation and draws. All
            randomness is a function of it and the step.
        steps: optimizer steps, a multiple of
            `distribution.steps_per_execution`.
        data: see `DataConfig`; the other groups likewise.
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
        check(self, "", steps=at_least(1))
        if not 0 <= self.seed < 2**31:
            raise ValueError(
                f"`seed` must be in [0, 2^31). Received: {self.seed}"
            )
        self.selection.check_super_batch(self.data.super_batch_size)
        self.cascade.check_super_batch(self.data.super_batch_size)
        self._check_reference()
        if self.optimizer.warmup_steps >= self.steps:
            raise ValueError(
                "`optimizer.warmup_steps` must be less than `steps`. Received: "
                f"{self.optimizer.warmup_steps}, steps={self.steps}"
            )
        strategy = self.distribution.strategy
        if self.evaluation.time_parts and strategy != "default":
            raise ValueError(
                "`evaluation.time_parts` is for one device, "
                "`distribution.strategy='default'`. Received: it with "
                f"{strategy!r}"
            )
        self._check_executions()
        self._check_patches()
        self._check_phases()

    def _check_reference(self):
        has_reference = self.reference.workdir or self.reference.sidecars
        if self.selection.needs_reference and not has_reference:
            raise ValueError(
                f"`selection.criterion={self.selection.criterion!r}` needs a "
                "reference: set `reference.workdir` to the run directory that "
                "trained it, or `reference.sidecars`, or take criterion "
                "'hard_learner'. Received: reference.workdir='', "
                "reference.sidecars=False"
            )
        if self.cascade.hyper_batch_size and not self.reference.sidecars:
            raise ValueError(
                "`cascade.hyper_batch_size` needs the reference's sidecars: "
                "write them with `jest-tf embed` and set "
                "`reference.sidecars=true`. Received: hyper_batch_size="
                f"{self.cascade.hyper_batch_size}, reference.sidecars=False"
            )

    def _check_executions(self):
        """Checks that saves and stops fall between executions."""
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

    def _check_patches(self):
        model, image_size = self.model, self.data.image_size
        # Custom towers may have other patches, or none.
        patch_size = model.patch_size
        if not model.towers:
            patch_size = patch_size or PRESETS[model.preset].patch_size
        for name, view in (
            ("selection.view", self.selection.view),
            *(("model.views", view) for view in model.views),
        ):
            if view.patch_size or view.image_size:
                size = view.patch_size or patch_size
                _check_divides(name, size, view.image_size or image_size)
        if not model.towers:
            # Towers are built for whole images at every patch size.
            for size in (patch_size, *self.patch_sizes):
                _check_divides("data.image_size", size, image_size)
        if self.batch_size % max(1, len(model.views)):
            raise ValueError(
                "`model.views` must cut the sub-batch into equal parts, so "
                "their number must divide `selection.batch_size` (b), or "
                "`data.super_batch_size` without one. Received: "
                f"{len(model.views)} views, b={self.batch_size}"
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
                f"execution are of one kind. Received: {together}"
            )

    @property
    def batch_size(self) -> int:
        """b, examples trained per step."""
        return self.selection.batch_size or self.data.super_batch_size

    @property
    def steps_need_reference(self) -> bool:
        """True if a step uses the reference, for scores or distillation."""
        return bool(
            self.selection.needs_reference or self.reference.distillation_weight
        )

    @property
    def patch_sizes(self) -> tuple[int, ...]:
        """Patch sizes of all views; the learner is built for these."""
        views = (self.selection.view, *self.model.views)
        return tuple(
            sorted({view.patch_size for view in views if view.patch_size})
        )

    @property
    def evaluation_data(self) -> DataConfig:
        """`data` with the settings that read `evaluation.data`."""
        settings = {
            name: getattr(self.evaluation, name)
            for name in ("format", "image_field", "caption_fields")
        }
        return dataclasses.replace(
            self.data,
            train=self.evaluation.data,
            weights=(),
            manifest="",
            **{
                name: value
                for name, value in settings.items()
                if value is not None
            },
        )


def _check_divides(name, patch_size, image_size):
    if patch_size and image_size % patch_size:
        raise ValueError(
            f"`{name}`: the patch size must divide the image size. Received: "
            f"patch_size={patch_size}, image_size={image_size}"
        )
