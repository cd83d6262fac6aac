"""Small twins of the recipes, in every variant that is compiled.

A twin is a recipe with tiny towers and batches. What decides the operations of
its step, such as the sampler, chunks, losses, augmentation and clipping, is the
recipe's; what decides their sizes alone is small, and what no step sees, such
as paths and rates, is dropped, so that recipes with the same step have the same
twin.
"""

import dataclasses
import hashlib
import itertools
import pathlib
from typing import NamedTuple

from jest_tf import config as config_lib
from jest_tf import models

RECIPES = pathlib.Path(__file__).parents[2] / "configs"

# Examples that a replica trains on: the least that gives a replica several and
# the 16 chunks of the paper a row each on 4 replicas.
_SHARE = 16

_CROSS = tuple(
    itertools.product(config_lib.LOSSES, config_lib.QUOTAS, ("sidecar", "live"))
)
# Which of them a recipe with JEST is compiled in: the paper's in all, the other
# one of its size in those in which every two values meet, and all others in two
# that hold every value. They differ from these in the pictures' augmentation
# and in equal captions, which know neither quota nor reference.
_PAIRS = tuple(_CROSS[number] for number in (0, 3, 5, 6))
_VALUES = tuple(_CROSS[number] for number in (1, 6))
_CROSSED = {"jest_b16": _CROSS, "flexi_jest_b16": _PAIRS}
# Those that are compiled once more in parts, with a schedule, and with the
# reference distilled.
_IN_PARTS = ("siglip_b16", "jest_b16", "flexi_jest_b16")
_SCHEDULED = ("jest_b16",)
_DISTILLED = ("jest_b16",)


class Case(NamedTuple):
    """A step to compile.

    Attributes:
        recipes: names of the recipes whose twin it is.
        variant: what was varied, by name: loss, quota, reference, parts,
            schedule, distilled.
        config: the run.
    """

    recipes: tuple[str, ...]
    variant: dict[str, str]
    config: config_lib.TrainConfig

    @property
    def name(self) -> str:
        """Tells the case from all others."""
        return " ".join([" ".join(self.recipes), *self.variant.values()])

    @property
    def digest(self) -> str:
        """Eight digits that tell its settings from others."""
        return hashlib.sha256(repr(self.config).encode()).hexdigest()[:8]


def twin(
    recipe: config_lib.TrainConfig, num_replicas: int
) -> config_lib.TrainConfig:
    """A recipe in small, see the module.

    The towers are of preset "tiny" in bfloat16, pictures of 32 pixels, captions
    of 16 tokens of 512; views keep to their patches' size by that of the tower.
    A replica trains on 16 examples; the super-batch is larger by the recipe's
    B/b, rounded up.

    Args:
        recipe: any.
        num_replicas: R.
    """
    batch_size = _SHARE * num_replicas
    ratio = -(-recipe.data.super_batch_size // recipe.batch_size)
    views = tuple(_small_view(recipe, view) for view in recipe.model.views)
    selection = dataclasses.replace(
        recipe.selection, view=_small_view(recipe, recipe.selection.view)
    )
    if selection.batch_size is not None:
        selection = dataclasses.replace(
            selection,
            batch_size=batch_size,
            num_chunks=min(selection.num_chunks, batch_size),
            scoring_batch_size=None,
        )
    return dataclasses.replace(
        recipe,
        seed=0,
        steps=1000,
        data=config_lib.DataConfig(
            super_batch_size=ratio * batch_size,
            image_size=32,
            text_length=16,
            vocabulary_size=512,
            flip=recipe.data.flip,
            min_crop_area=recipe.data.min_crop_area,
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
        reference=_reference(
            recipe, "sidecar" if recipe.reference.sidecars else "live"
        )
        if recipe.steps_need_reference
        else config_lib.ReferenceConfig(),
        cascade=config_lib.CascadeConfig(),
        bootstrap=config_lib.BootstrapConfig(),
        selection=selection,
        optimizer=dataclasses.replace(
            config_lib.OptimizerConfig(clip_norm=recipe.optimizer.clip_norm),
            warmup_steps=min(recipe.optimizer.warmup_steps, 10),
        ),
        evaluation=config_lib.EvaluationConfig(),
        checkpoint=config_lib.CheckpointConfig(),
        distribution=config_lib.DistributionConfig(strategy="tpu"),
    )


def cases(num_replicas: int) -> list[Case]:
    """Every recipe's twin in its variants, equal twins once.

    Both losses; with a selection that scores both quotas too, and the reference
    from sidecars and live, see `_CROSSED`. Those of the paper's size once more
    with everything in parts: micro-batches while scoring and training, the loss
    by blocks, two steps an execution. And with a schedule, of whose steps each
    kind is a program, and with the reference distilled.
    """
    recipes_of = {}
    for path in sorted(RECIPES.glob("*.py")):
        small = twin(config_lib.load_config(path), num_replicas)
        recipes_of.setdefault(small, []).append(path.stem)
    return [
        Case(tuple(names), variant, config)
        for small, names in recipes_of.items()
        for variant, config in _variants(small, names, num_replicas)
    ]


def _variants(small, names, num_replicas):
    found = []
    if small.selection.scores:
        crossed = next(
            (_CROSSED[name] for name in names if name in _CROSSED), _VALUES
        )
        for loss, quota, reference in crossed:
            variant = {"loss": loss, "quota": quota, "reference": reference}
            found.append((variant, _varied(small, **variant)))
    else:
        for loss in config_lib.LOSSES:
            found.append(({"loss": loss}, _varied(small, loss)))
    variant, config = found[0]
    if set(names) & set(_IN_PARTS):
        found.append(
            ({**variant, "parts": "in parts"}, _in_parts(config, num_replicas))
        )
    if set(names) & set(_SCHEDULED):
        found += [
            ({**variant, "schedule": kind}, scheduled)
            for kind, scheduled in _scheduled(config).items()
        ]
    if set(names) & set(_DISTILLED):
        own = dataclasses.replace(config.reference, distillation_weight=1.0)
        distilled = dataclasses.replace(config, reference=own)
        found.append(({**variant, "distilled": "distilled"}, distilled))
    return found


def _varied(config, loss, quota=None, reference=None):
    selection = config.selection
    if quota is not None:
        selection = dataclasses.replace(selection, quota=quota)
        config = dataclasses.replace(
            config, reference=_reference(config, reference)
        )
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, loss=loss),
        selection=selection,
    )


def _scheduled(config):
    """A schedule that begins with each kind of step, by the kind's name.

    What is traced is the first step. The rule that asks whether the learner has
    passed the reference keeps state; candidates are half of the super-batch.
    """
    phase = config_lib.Phase

    def with_phases(*phases, **changes):
        return dataclasses.replace(
            config,
            selection=dataclasses.replace(
                config.selection, phases=phases, stop_when_passed=3, **changes
            ),
        )

    half = config.data.super_batch_size // 2
    uniform = with_phases(
        phase(method="uniform"), phase(start=500, method="joint")
    )
    return {
        "schedule, drawn jointly": with_phases(
            phase(candidates=half), phase(start=500), uniform_every=10
        ),
        "schedule, drawn uniformly": dataclasses.replace(
            uniform,
            distribution=dataclasses.replace(
                config.distribution, steps_per_execution=2
            ),
        ),
    }


def _small_view(recipe, view):
    """A view of the recipe's tower as one of the twin's."""
    if view.patch_size is None:
        return view
    own = (
        recipe.model.patch_size
        or models.PRESETS[recipe.model.preset].patch_size
    )
    small = models.PRESETS["tiny"].patch_size
    return dataclasses.replace(view, patch_size=view.patch_size * small // own)


def _in_parts(config, num_replicas):
    selection = config.selection
    if selection.scores:
        share = config.data.super_batch_size // num_replicas
        selection = dataclasses.replace(
            selection, scoring_batch_size=share // 2
        )
    return dataclasses.replace(
        config,
        model=dataclasses.replace(
            config.model,
            micro_batch_size=_SHARE // 2,
            # An uneven last block.
            loss_block_size=_SHARE // 2 - 1,
        ),
        selection=selection,
        distribution=dataclasses.replace(
            config.distribution, steps_per_execution=2
        ),
    )


def _reference(config, kind):
    where = {"sidecar": {"sidecars": True}, "live": {"workdir": "live"}}[kind]
    weight = bool(config.reference.distillation_weight)
    return config_lib.ReferenceConfig(distillation_weight=1.0 * weight, **where)
