"""The compiled steps: small twins of all recipes, the paper's at full size.

A twin is a recipe with tiny towers and batches. What decides the operations of
its step, such as the sampler, chunks, losses, augmentation and clipping, is the
recipe's; what decides their sizes alone is small, and what no step sees, such
as paths and rates, is dropped, so that recipes with the same step have the same
twin. At full size nothing is small but the number of replicas: each has the
share that a chip of the recipe's slice has.
"""

import dataclasses
import hashlib
import pathlib
from typing import NamedTuple

from jest_tf import config as config_lib
from jest_tf import models

RECIPES = pathlib.Path(__file__).parents[2] / "configs"

# Examples that a replica trains on: the least that gives a replica several and
# the 16 chunks of the paper a row each on 4 replicas.
_SHARE = 16

# Compiled at full size, with towers of both; their headers name the slice.
_FULL_SIZE = ("jest_b16", "flexi_jest_b16")
CHIPS = 256
MICRO_BATCHES = {"b16": 32, "l16": 16}  # rows
_FITTING = {"b16": 32, "l16": 8}  # rows, for the least memory
# Of SigLIP's vocabulary, which these recipes name.
_VOCABULARY_SIZE = 32_000
# Settings of the data that a step sees.
_SEEN = (
    "curated_rows",
    "image_size",
    "text_length",
    "vocabulary_size",
    "flip",
    "min_crop_area",
    "augment",
)


class Case(NamedTuple):
    """A step to compile.

    Attributes:
        name: of its recipes; at full size of the recipe and the towers.
        config: the run.
        is_full_size: compiled for all kinds of chips, not for the first alone.
    """

    name: str
    config: config_lib.TrainConfig
    is_full_size: bool = False

    @property
    def digest(self) -> str:
        """Eight digits that tell the settings of its step from others."""
        config = self.config
        settings = (
            config.steps,
            [(name, getattr(config.data, name)) for name in _SEEN],
            models.PRESETS[config.model.preset],
            *map(_changed, (config.model, config.reference, config.selection)),
            *map(_changed, (config.optimizer, config.distribution)),
        )
        return hashlib.sha256(repr(settings).encode()).hexdigest()[:8]


def twin(
    recipe: config_lib.TrainConfig, num_replicas: int
) -> config_lib.TrainConfig:
    """A recipe in small, see the module.

    The towers are of preset "tiny" in bfloat16, images of 32 pixels, captions
    of 16 tokens of 512; views keep to their patches' size by that of the tower.
    A replica trains on 16 examples, chosen by the recipe's stages.

    Args:
        recipe: any.
        num_replicas: R.
    """
    batch_size = _SHARE * num_replicas
    selection = dataclasses.replace(
        recipe.selection,
        stages=tuple(
            dataclasses.replace(stage, view=_small_view(recipe, stage.view))
            for stage in recipe.selection.stages
        ),
    )
    config = dataclasses.replace(
        recipe,
        data=dataclasses.replace(
            recipe.data, image_size=32, text_length=16, vocabulary_size=512
        ),
        model=dataclasses.replace(
            recipe.model,
            preset="tiny",
            dtype_policy="mixed_bfloat16",
            loss_block_size=None,
            micro_batch_size=None,
        ),
        selection=selection,
    )
    return _seen(config, batch_size)


def full_size(
    recipe: config_lib.TrainConfig, preset: str, num_replicas: int, rows: int
) -> config_lib.TrainConfig:
    """A recipe on the batches of that many of its slice's chips.

    Whole batches of such towers fill a chip, so that it scores and trains in
    micro-batches.

    Args:
        recipe: a recipe with a SentencePiece vocabulary.
        preset: of both towers.
        num_replicas: R, of the `CHIPS` that the recipe is written for.
        rows: of a micro-batch.
    """
    config = _seen(
        dataclasses.replace(
            recipe,
            data=dataclasses.replace(
                recipe.data, vocabulary_size=_VOCABULARY_SIZE
            ),
        ),
        recipe.selection.batch_size * num_replicas // CHIPS,
    )
    stages = tuple(
        dataclasses.replace(stage, scoring_batch_size=rows)
        for stage in config.selection.stages
    )
    return dataclasses.replace(
        config,
        model=dataclasses.replace(
            config.model, preset=preset, micro_batch_size=rows
        ),
        selection=dataclasses.replace(config.selection, stages=stages),
    )


def _seen(config, batch_size):
    """Settings that a step sees, on other batches; the rest is dropped."""
    data = {name: getattr(config.data, name) for name in _SEEN}
    before = config.selection
    data["curated_rows"] = (
        data["curated_rows"] * batch_size // before.batch_size
    )
    curated = {"curated": ("curated",)} if data["curated_rows"] else {}
    optimizer = config_lib.OptimizerConfig()
    return config_lib.TrainConfig(
        data=config_lib.DataConfig(**data, **curated),
        # Towers of public weights are not built here: they are the preset's.
        model=dataclasses.replace(config.model, init_from="", init_tower=""),
        reference=_reference(config)
        if config.steps_need_reference
        else config_lib.ReferenceConfig(),
        # Stored stages are the stream's.
        selection=dataclasses.replace(
            before,
            batch_size=batch_size,
            stages=tuple(
                dataclasses.replace(
                    stage,
                    num_chunks=min(stage.num_chunks, batch_size),
                    scoring_batch_size=None,
                )
                for stage in before.live
            ),
        ),
        optimizer=dataclasses.replace(
            config.optimizer,
            learning_rate=optimizer.learning_rate,
            weight_decay=optimizer.weight_decay,
            warmup_steps=min(config.optimizer.warmup_steps, 10),
        ),
        distribution=config_lib.DistributionConfig(strategy="tpu"),
    )


def cases(num_replicas: int) -> list[Case]:
    """Every recipe's twin, equal twins once, and the paper's at full size."""
    recipes = {
        path.stem: config_lib.load_config(path)
        for path in sorted(RECIPES.glob("*.py"))
    }
    names_of = {}
    for name, recipe in recipes.items():
        names_of.setdefault(twin(recipe, num_replicas), []).append(name)
    return [
        *(Case(", ".join(names), small) for small, names in names_of.items()),
        *(
            Case(
                name.replace("b16", preset),
                full_size(recipes[name], preset, num_replicas, rows),
                True,
            )
            for preset, rows in MICRO_BATCHES.items()
            for name in _FULL_SIZE
        ),
        *(
            Case(
                f"flexi_jest_{preset} in two stages, distilled, in {rows}s",
                full_size(
                    _distilled(recipes["flexi_jest_b16"]),
                    preset,
                    num_replicas,
                    rows,
                ),
                True,
            )
            for preset, rows in _FITTING.items()
        ),
    ]


def _distilled(flexi):
    """Flexi-JEST, then a stage of fine patches, and both distillations.

    The reference's embeddings come with the batch, as those of a reference that
    a run has renewed.
    """
    stages = (*flexi.selection.stages, config_lib.Stage(candidates=2))
    return dataclasses.replace(
        flexi,
        reference=config_lib.ReferenceConfig(
            distillation_weight=1.0, similarity_weight=1.0
        ),
        selection=dataclasses.replace(flexi.selection, stages=stages),
    )


def _changed(settings):
    """Settings without those at their defaults: a new one changes no digest."""
    if isinstance(settings, tuple):
        return [_changed(value) for value in settings]
    if not dataclasses.is_dataclass(settings):
        return settings
    return {
        field.name: _changed(getattr(settings, field.name))
        for field in dataclasses.fields(settings)
        if getattr(settings, field.name) != field.default
    }


def _small_view(recipe, view):
    """A view of the recipe's tower, as a view of the twin's."""
    if view.patch_size is None:
        return view
    own = models.PRESETS[recipe.model.preset].patch_size
    small = models.PRESETS["tiny"].patch_size
    return dataclasses.replace(view, patch_size=view.patch_size * small // own)


def _reference(config):
    return config_lib.ReferenceConfig(
        model="" if config.reads_sidecars else "live",
        distillation_weight=1.0 * bool(config.reference.distillation_weight),
        similarity_weight=1.0 * bool(config.reference.similarity_weight),
        projection=config.reference.projection,
    )
