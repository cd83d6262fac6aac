"""All settings of a run, and the checks across groups."""

from dataclasses import dataclass, field, replace

from jest_tf.config import checks
from jest_tf.config.checks import Checked, Count, Seed
from jest_tf.config.groups import (
    POLICIES,
    PRESETS,
    CheckpointConfig,
    DataConfig,
    DistributionConfig,
    EvaluationConfig,
    ModelConfig,
    OptimizerConfig,
    ReferenceConfig,
)
from jest_tf.config.selection import (
    BootstrapConfig,
    CascadeConfig,
    SelectionConfig,
)


@dataclass(frozen=True)
class TrainConfig(Checked):
    """A run.

    Attributes:
        seed: seed of initial weights, data order, augmentation and draws. All
            randomness is a function of it and the step.
        steps: optimizer steps, a multiple of
            `distribution.steps_per_execution`.
        data: see `DataConfig`; the other groups likewise.
        callbacks: Keras callbacks of the run, each a "module:function" that
            takes the settings and the run directory.
    """

    seed: Seed = 0
    steps: Count = 1000
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    reference: ReferenceConfig = field(default_factory=ReferenceConfig)
    cascade: CascadeConfig = field(default_factory=CascadeConfig)
    bootstrap: BootstrapConfig = field(default_factory=BootstrapConfig)
    selection: SelectionConfig = field(default_factory=SelectionConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    distribution: DistributionConfig = field(default_factory=DistributionConfig)
    callbacks: tuple[str, ...] = ()

    def __post_init__(self):
        super().__post_init__()
        for number, name in enumerate(self.callbacks):
            checks.check(f"callbacks.{number}", name, checks.FUNCTION)
        self._expect(
            self.has_first_reference
            or self.bootstrap.renew_at
            or not self.selection.needs_reference,
            "`selection.criterion` needs a reference: set `reference.model` to "
            "a run directory or the name of a model, or `reference.sidecars`, "
            "or `bootstrap.renew_at`, or take 'hard_learner'",
        )
        self._expect(
            self.reference.sidecars
            or self.bootstrap.renew_at
            or not self.cascade.hyper_batch_size,
            "`cascade.hyper_batch_size` needs the reference's sidecars: write "
            "them with `jest-tf embed` and set `reference.sidecars`, or renew "
            "the reference, `bootstrap.renew_at`",
        )
        self._expect(
            self.data.reader == "numpy" or not self.cascade.hyper_batch_size,
            "`data.reader` 'ops' has no cascade: leave "
            "`cascade.hyper_batch_size` empty, or take 'numpy'",
        )
        self._check_bootstrap()
        for step in (0, *self.bootstrap.renew_at):
            self._check_curated(step)
        lengths = [end - start for start, end in self.schedules]
        self._expect(
            min(lengths) > 0,
            "`optimizer.restarts` must rise, from above 0 to below `steps`",
        )
        self._expect(
            not self.model.init_from
            or self.model.init_tower == "image_tower"
            or not self.data.vocabulary,
            "`model.init_from` comes with its tokenizer: leave "
            "`data.vocabulary` empty",
        )
        self._expect(
            self.optimizer.warmup_steps < min(lengths),
            "`optimizer.warmup_steps` must be less than `steps`, and than the "
            "steps between `optimizer.restarts`",
        )
        self._expect(
            self.data.augment not in POLICIES
            or self.distribution.strategy != "tpu"
            and not self.distribution.jit_compile,
            "`data.augment` has operations that XLA cannot compile, by name: "
            "on TPUs and with `distribution.jit_compile` take a "
            "'module:function' of other operations",
        )
        self._check_patches()
        self._check_executions()

    def _check_executions(self):
        """Checks that saves, stops and phases fall between executions."""
        together = self.distribution.steps_per_execution
        for rule, steps in (
            ("`steps` must be a multiple", [self.steps]),
            (
                "`checkpoint.every_steps` must be a multiple",
                [self.checkpoint.every_steps],
            ),
            (
                "`bootstrap.renew_at` must be multiples",
                self.bootstrap.renew_at,
            ),
            (
                "`selection.phases` must start at multiples",
                [phase.start for phase in self.selection.phases],
            ),
        ):
            self._expect(
                not any(step % together for step in steps),
                f"{rule} of `distribution.steps_per_execution`",
            )
        self._expect(
            all(phase.start < self.steps for phase in self.selection.phases),
            "`selection.phases` must start before the last of `steps`",
        )
        self._expect(
            together == 1 or not self.selection.uniform_every,
            "`selection.uniform_every` needs "
            "`distribution.steps_per_execution` 1: the steps of an execution "
            "are of one kind",
        )

    def _check_curated(self, step):
        """Checks the curated rows of the step after `step`, and what is chosen.

        The number of these rows, c, may be 0.
        """
        curated_rows, size = self.curated_rows(step), self.data.super_batch_size
        where = (
            "bootstrap" if curated_rows != self.data.curated_rows else "data"
        )
        self._expect(
            not curated_rows or size % curated_rows == 0,
            f"`{where}.curated_rows` (c) must divide the super-batch, "
            "`data.super_batch_size` (B)",
        )
        self._expect(
            not curated_rows or bool(self.data.curated),
            f"`{where}.curated_rows` needs `data.curated`, the shards that "
            "these rows come from",
        )
        self._expect(
            not curated_rows
            or not self.model.views
            or not self.selection.batch_size,
            "`model.views` can't be combined with curated rows beside a "
            f"selection: `{where}.curated_rows` and `selection.batch_size`",
        )
        self.selection.check_super_batch(size, curated_rows)
        if self.num_cascaded(step + 1) > self.num_cascaded(step):
            self.cascade.check_super_batch(size, curated_rows)

    def _check_bootstrap(self):
        renew_at = self.bootstrap.renew_at
        self._expect(
            self.cascade.criterion == "easy_reference"
            or renew_at
            and self.bootstrap.renews == "learner",
            "`cascade.criterion` other than 'easy_reference' scores by the "
            "learner before images are read: set `bootstrap.renew_at`, and "
            "`bootstrap.renews=learner`",
        )
        if not renew_at:
            return
        self._expect(
            renew_at[-1] < self.steps,
            "`bootstrap.renew_at` must be before the last of `steps`",
        )
        self._expect(
            self.selection.needs_reference or self.cascade.hyper_batch_size,
            "`bootstrap.renew_at` needs a use for the reference: set "
            "`cascade.hyper_batch_size`, or `selection.criterion` and "
            "`selection.batch_size`",
        )
        self._expect(
            not self.reference.model or self.reference.sidecars,
            "`bootstrap.renew_at` embeds the records once for many steps, and "
            "so must the first reference: set `reference.sidecars`",
        )
        self._expect(
            self.bootstrap.renews == "reference"
            or self.reference.sidecars
            and self.cascade.criterion != "easy_reference",
            "`bootstrap.renews` 'learner' needs `reference.sidecars`, and a "
            "`cascade.criterion` that scores by the learner",
        )
        self._expect(
            self.bootstrap.renews == "learner" or not self.reference.projection,
            "`reference.projection` must be empty with `bootstrap.renew_at`: "
            "the reference becomes the learner, whose embeddings need none",
        )
        # `uniform_every` only adds steps that score nothing.
        phases = replace(self.selection, uniform_every=None)
        starts = {0, *(phase.start for phase in phases.phases)}
        early = [phases.at(one) for one in starts if one < renew_at[0]]
        self._expect(
            self.has_first_reference
            or not any(kind.scores and kind.needs_reference for kind in early),
            "`selection.phases` must be 'uniform' before the first of "
            "`bootstrap.renew_at`, as there is no reference yet",
        )
        self._expect(
            not self.selection.stop_when_passed
            or self.bootstrap.renews == "learner",
            "`selection.stop_when_passed` compares the learner with a "
            "reference that stays, which `bootstrap.renew_at` replaces by the "
            "learner",
        )
        self._expect(
            self.distribution.strategy in ("default", "mirrored"),
            "`bootstrap.renew_at` needs `distribution.strategy` 'default' or "
            "'mirrored': one process embeds the records",
        )

    def _check_patches(self):
        model, image_size = self.model, self.data.image_size
        # Custom towers may have other patches, or none.
        patch_size = model.patch_size
        is_new = not model.init_from or model.init_tower == "text_tower"
        is_own = not model.towers and is_new
        if is_own:
            patch_size = patch_size or PRESETS[model.preset].patch_size
        sizes = [
            (name, view.patch_size or patch_size, view.image_size or image_size)
            for name, views in (
                ("selection.view", (self.selection.view,)),
                ("model.views", model.views),
            )
            for view in views
            if view.patch_size or view.image_size
        ]
        if is_own:
            # Towers are built for whole images at every patch size.
            sizes += [
                ("data.image_size", size, image_size)
                for size in (patch_size, *self.patch_sizes)
            ]
        for name, patch_size, image_size in sizes:
            if patch_size and image_size % patch_size:
                raise ValueError(
                    f"`{name}`: the patch size must divide the image size. "
                    f"Received: patch_size={patch_size}, "
                    f"image_size={image_size}"
                )
        self._expect(
            self.batch_size % max(1, len(model.views)) == 0,
            "`model.views` must cut the sub-batch into equal parts, so their "
            "number must divide `selection.batch_size` (b), or "
            "`data.super_batch_size` without one",
        )

    @property
    def schedules(self) -> list[tuple[int, int]]:
        """First step and end of each schedule of the learning rate."""
        starts = (0, *self.optimizer.restarts)
        return list(zip(starts, (*starts[1:], self.steps), strict=True))

    @property
    def batch_size(self) -> int:
        """b, examples trained per step."""
        return self.selection.batch_size or self.data.super_batch_size

    @property
    def has_first_reference(self) -> bool:
        """True if a reference exists from the first step on."""
        return bool(self.reference.model or self.reference.sidecars)

    def curated_rows(self, step: int) -> int:
        """Returns c in the step after `step` steps."""
        first = self.bootstrap.curated_rows
        if first is None or self.bootstrap.num_renewals(step):
            return self.data.curated_rows
        return first

    def num_cascaded(self, step: int) -> int:
        """Counts those of the first `step` steps that have a cascade."""
        if not self.cascade.hyper_batch_size:
            return 0
        if self.reference.sidecars:
            return step
        return max(0, step - self.bootstrap.renew_at[0])

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
        names = ("format", "image_field", "caption_fields")
        own = {name: getattr(self.evaluation, name) for name in names}
        return self.data.reading(
            self.evaluation.data,
            **{name: value for name, value in own.items() if value is not None},
        )
