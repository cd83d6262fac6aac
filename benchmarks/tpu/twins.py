"""What is compiled: small twins of all recipes, and the paper's at full size.

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

# Kinds of step that recipes leave out are those of the paper's recipe with
# other values: with its own, every two meet.
_PAPER = "jest_b16"
_OTHERS = (
    ("sigmoid", "per_replica", "live"),
    ("softmax", "global", "live"),
    ("softmax", "per_replica", "sidecar"),
)
# Compiled at full size too. Their headers name this slice.
_FULL_SIZE = (_PAPER, "jest_l16")
CHIPS = 256
_MICRO_BATCH = 32
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
        recipes: names of the recipes whose step it is.
        variant: loss, quota and reference, and by name what else was varied:
            parts, stages, size.
        config: the run.
        is_everywhere: compiled for all kinds of chips, not for the first alone.
    """

    recipes: tuple[str, ...]
    variant: dict[str, str]
    config: config_lib.TrainConfig
    is_everywhere: bool = False

    @property
    def name(self) -> str:
        """Tells the case from all others."""
        return " ".join([" ".join(self.recipes), *self.variant.values()])

    @property
    def digest(self) -> str:
        """Eight digits that tell the settings of its step from others."""
        config = self.config
        settings = (
            config.steps,
            [(name, getattr(config.data, name)) for name in _SEEN],
            models.PRESETS[config.model.preset],
            *(config.model, config.reference, config.selection),
            *(config.optimizer, config.distribution),
        )
        return hashlib.sha256(repr(settings).encode()).hexdigest()[:8]


def twin(
    recipe: config_lib.TrainConfig, num_replicas: int
) -> config_lib.TrainConfig:
    """A recipe in small, see the module.

    The towers are of preset "tiny" in bfloat16, pictures of 32 pixels, captions
    of 16 tokens of 512; views keep to their patches' size by that of the tower.
    A replica trains on 16 examples, chosen by the recipe's stages.

    Args:
        recipe: any.
        num_replicas: R.
    """
    batch_size = _SHARE * num_replicas
    views = tuple(_small_view(recipe, view) for view in recipe.model.views)
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
            patch_size=None,
            views=views,
            dtype_policy="mixed_bfloat16",
            loss_block_size=None,
            micro_batch_size=None,
        ),
        selection=selection,
    )
    return _seen(config, batch_size)


def full_size(
    recipe: config_lib.TrainConfig, num_replicas: int
) -> config_lib.TrainConfig:
    """A recipe on the batches of that many of its slice's chips.

    Args:
        recipe: a recipe with a SentencePiece vocabulary.
        num_replicas: R, of the `CHIPS` that the recipe is written for.
    """
    data = dataclasses.replace(recipe.data, vocabulary_size=_VOCABULARY_SIZE)
    return _seen(
        dataclasses.replace(recipe, data=data),
        recipe.selection.batch_size * num_replicas // CHIPS,
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
        reference=_reference(config, _kind(config))
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
            restarts=(),
        ),
        distribution=config_lib.DistributionConfig(strategy="tpu"),
    )


def cases(num_replicas: int) -> list[Case]:
    """Every recipe's twin, equal twins once; then variants of the paper's.

    The paper's recipe is compiled once more with other losses, quotas and
    references, in parts (micro-batches while scoring and training, the loss by
    blocks, two steps an execution), with two stages, with a stage that begins
    later, and at full size.
    """
    recipes = {
        path.stem: config_lib.load_config(path)
        for path in sorted(RECIPES.glob("*.py"))
    }
    names_of = {}
    for name, recipe in recipes.items():
        names_of.setdefault(twin(recipe, num_replicas), []).append(name)
    found = [
        Case(tuple(names), _values(small), small, _PAPER in names)
        for small, names in names_of.items()
    ]
    (paper,) = (case for case in found if _PAPER in case.recipes)
    found += [
        Case(paper.recipes, _values(config) | more, config)
        for more, config in _variants(paper.config, num_replicas)
    ]
    for name in _FULL_SIZE:
        whole = full_size(recipes[name], num_replicas)
        for size, config in (
            ("whole batches", whole),
            (f"micro-batches of {_MICRO_BATCH}", _in_micro_batches(whole)),
        ):
            variant = _values(config) | {"size": size}
            found.append(Case((name,), variant, config, True))
    return found


def _values(config):
    values = {"loss": config.model.loss}
    if config.selection.scores:
        values["quota"] = config.selection.quota
        values["reference"] = _kind(config)
    return values


def _kind(config):
    return "sidecar" if config.reads_sidecars else "live"


def _variants(config, num_replicas):
    """What is varied beside the values, and the settings."""
    yield {"parts": "in parts"}, _in_parts(config, num_replicas)
    for loss, quota, reference in _OTHERS:
        yield {}, _varied(config, loss, quota, reference)
    for kind, staged in _staged(config).items():
        yield {"stages": kind}, staged


def _varied(config, loss, quota, reference):
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, loss=loss),
        selection=dataclasses.replace(config.selection, quota=quota),
        reference=_reference(config, reference),
    )


def _in_micro_batches(config):
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, micro_batch_size=_MICRO_BATCH),
        selection=_with_stages(config, scoring_batch_size=_MICRO_BATCH),
    )


def _with_stages(config, **changes):
    """The selection with changes of every stage."""
    return dataclasses.replace(
        config.selection,
        stages=tuple(
            dataclasses.replace(stage, **changes)
            for stage in config.selection.stages
        ),
    )


def _staged(config):
    """Two stages, and a stage whose first steps are uniform, by name.

    What is traced is the first step.
    """
    (stage,) = config.selection.stages
    first = dataclasses.replace(stage, candidates=2)
    later = _with_stages(config, first_step=500)
    return {
        "two stages": dataclasses.replace(
            config,
            selection=dataclasses.replace(
                config.selection, stages=(first, stage)
            ),
        ),
        "before the first stage": dataclasses.replace(
            config,
            selection=later,
            distribution=dataclasses.replace(
                config.distribution, steps_per_execution=2
            ),
        ),
    }


def _small_view(recipe, view):
    """A view of the recipe's tower, as a view of the twin's."""
    if view.patch_size is None:
        return view
    own = (
        recipe.model.patch_size
        or models.PRESETS[recipe.model.preset].patch_size
    )
    small = models.PRESETS["tiny"].patch_size
    return dataclasses.replace(view, patch_size=view.patch_size * small // own)


def _in_parts(config, num_replicas):
    share = config.selection.super_batch_size() // num_replicas
    return dataclasses.replace(
        config,
        model=dataclasses.replace(
            config.model,
            micro_batch_size=_SHARE // 2,
            # An uneven last block.
            loss_block_size=_SHARE // 2 - 1,
        ),
        selection=_with_stages(config, scoring_batch_size=share // 2),
        distribution=dataclasses.replace(
            config.distribution, steps_per_execution=2
        ),
    )


def _reference(config, kind):
    where = {"sidecar": {}, "live": {"model": "live"}}[kind]
    return config_lib.ReferenceConfig(
        distillation_weight=1.0 * bool(config.reference.distillation_weight),
        projection=config.reference.projection,
        **where,
    )
