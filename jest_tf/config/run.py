"""All settings of a run, and the checks across groups."""

import functools
from dataclasses import dataclass

from jest_tf.config import checks, groups, tables
from jest_tf.config.selection import Segment, SelectionConfig, View, plan


@dataclass(frozen=True)
class TrainConfig(checks.Checked):
    """All settings of a run.

    Attributes:
        seed: seed of initial weights, data order, augmentation and draws. All
            randomness is a function of the seed and the step.
        steps: optimizer steps.
        data: see `DataConfig`; the other groups likewise.
        callbacks: Keras callbacks of the run, each a "module:function" that
            takes the settings and the run directory.
    """

    seed: checks.Seed = 0
    steps: checks.Count = 1000
    data: groups.DataConfig = groups.DataConfig()
    model: groups.ModelConfig = groups.ModelConfig()
    reference: groups.ReferenceConfig = groups.ReferenceConfig()
    selection: SelectionConfig = SelectionConfig(256)
    bootstrap: groups.BootstrapConfig = groups.BootstrapConfig()
    optimizer: groups.OptimizerConfig = groups.OptimizerConfig()
    evaluation: groups.EvaluationConfig = groups.EvaluationConfig()
    checkpoint: groups.CheckpointConfig = groups.CheckpointConfig()
    distribution: groups.DistributionConfig = groups.DistributionConfig()
    callbacks: tuple[str, ...] = ()

    def __post_init__(self):
        super().__post_init__()
        for number, name in enumerate(self.callbacks):
            checks.check(f"callbacks.{number}", name, checks.FUNCTION)
        self.selection.sizes(self.data.curated_rows)
        self._expect(
            not self.data.curated_rows or not self.model.train_views,
            "`model.train_views` can't be combined with `data.curated_rows`",
        )
        self._check_bootstrap()
        self._expect(
            not self.model.init_from
            or self.model.init_tower == "image_tower"
            or not self.data.vocabulary,
            "`model.init_from` comes with its tokenizer: leave "
            "`data.vocabulary` empty",
        )
        self._expect(
            self.optimizer.warmup_steps < self.steps,
            "`optimizer.warmup_steps` must be less than `steps`",
        )
        self._check_patches()
        self._expect(
            all(
                stage.first_step < self.steps for stage in self.selection.stages
            ),
            "`selection.stages` must begin at a step below `steps`",
        )

    def _check_bootstrap(self):
        renew_at = self.bootstrap.renew_at
        self._expect(
            not self.data.curated
            or bool(self.data.curated_rows or self.bootstrap.clean_start),
            "`data.curated` needs `data.curated_rows`, its rows in a step, "
            "or `bootstrap.clean_start`",
        )
        if not renew_at:
            return
        self._expect(
            renew_at[-1] < self.steps,
            "`bootstrap.renew_at` must be before the last of `steps`",
        )
        self._expect(
            not self.bootstrap.clean_start or bool(self.data.curated),
            "`bootstrap.clean_start` needs `data.curated`, its shards",
        )
        own = {stage.criterion for stage in self.selection.stages}
        self._expect(
            # A user's criterion is not imported here.
            bool(own - {*tables.CRITERIA}) or self.uses_reference,
            "`bootstrap.renew_at` needs a use for the reference: add a stage "
            "to `selection.stages` that scores by it",
        )
        self._expect(
            self.has_first_reference or not self.loss_needs_reference,
            "`reference.distillation_weight`, `reference.similarity_weight` "
            "and 'reference' as `model.false_negatives` need a reference from "
            "the first step on: set `reference.model`",
        )
        self._expect(
            not self.reference.projection,
            "`reference.projection` must be empty with `bootstrap.renew_at`: "
            "the reference becomes the learner, whose embeddings need none",
        )

    def _check_patches(self):
        model, image_size = self.model, self.data.image_size
        # Custom towers may have other patches, or none.
        patch_size = None
        is_new = not model.init_from or model.init_tower == "text_tower"
        is_own = not model.towers and is_new
        if is_own:
            patch_size = tables.PRESETS[model.preset].patch_size
        sizes = [
            (
                "selection.stages.view",
                view.patch_size or patch_size,
                view.image_size or image_size,
            )
            for view in self._stage_views
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
            bool(self._stage_views) or not model.train_views,
            "`model.train_views` needs a live stage with a view among "
            "`selection.stages`",
        )
        self._expect(
            self.selection.batch_size % max(1, len(self.training_views)) == 0,
            "`model.train_views` cuts the sub-batch into equal parts, so their "
            "number must divide `selection.batch_size` (b)",
            parts=len(self.training_views),
        )

    @property
    def functions(self) -> list[tuple[str, str]]:
        """The settings that name code, each with its "module:function"."""
        named = [
            ("data.augment", self.data.augment),
            ("data.vocabulary", self.data.vocabulary),
            ("model.towers", self.model.towers),
            ("model.loss", self.model.loss),
            ("optimizer.name", self.optimizer.name),
            ("optimizer.schedule", self.optimizer.schedule),
            *(("callbacks", name) for name in self.callbacks),
        ]
        is_function = checks.FUNCTION[1]
        return [
            *(
                pair
                for pair in named
                if ":" in pair[1] and is_function(pair[1])
            ),
            *self.selection.functions,
        ]

    @property
    def has_first_reference(self) -> bool:
        """True if any reference that is used exists from the first step on."""
        is_named = bool(self.reference.model or self.reference.sidecar_dir)
        return is_named or not self.bootstrap.renew_at

    @property
    def loss_needs_reference(self) -> bool:
        """True if the loss uses the reference's embeddings of trained rows."""
        rule = tables.FALSE_NEGATIVES[self.model.false_negatives]
        return self.reference.distils or rule.needs_reference

    @property
    def steps_need_reference(self) -> bool:
        """True if the step uses the reference, to score or in the loss."""
        return bool(
            any("reference" in stage.needs for stage in self.selection.live)
            or self.loss_needs_reference
        )

    @property
    def uses_reference(self) -> bool:
        """True if any stage, or the loss, uses the reference."""
        return self.steps_need_reference or self.selection.needs("reference")

    @property
    def reads_sidecars(self) -> bool:
        """True if the reference's embeddings come from sidecars."""
        return self.uses_reference and bool(
            self.selection.needs_stored
            or self.reference.sidecar_dir
            or self.bootstrap.renew_at
            or not self.reference.model
        )

    @functools.cached_property
    def plan(self) -> tuple[Segment, ...]:
        """The segments of the run, see `config.plan`.

        Imports the modules of users' criteria if the run begins without a
        reference.
        """
        return plan(
            self.selection,
            steps=self.steps,
            curated_rows=self.data.curated_rows,
            bootstrap=self.bootstrap,
            has_reference=self.has_first_reference,
        )

    @property
    def _stage_views(self):
        """The views of live stages, each once, without plain images."""
        views = dict.fromkeys(stage.view for stage in self.selection.live)
        return tuple(view for view in views if view != View())

    @property
    def training_views(self) -> tuple[View, ...]:
        """The views that parts of the sub-batch are trained in; () if plain."""
        return (View(), *self._stage_views) if self.model.train_views else ()

    @property
    def patch_sizes(self) -> tuple[int, ...]:
        """Patch sizes of all views; the learner is built for these."""
        sizes = {view.patch_size for view in self._stage_views}
        return tuple(sorted(sizes - {None}))
