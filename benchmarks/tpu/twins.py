"""Which steps are compiled: small twins of the recipes, in every variant.

A twin is a recipe with tiny towers and batches. What decides the operations of
its step, such as the sampler, chunks, losses, augmentation and clipping, is the
recipe's; what decides their sizes alone is small, and what no step sees, such
as paths and schedules, is dropped, so that recipes with the same step have the
same twin.
"""

import dataclasses
import hashlib
import pathlib
from typing import NamedTuple

from jest_tf import config as config_lib

RECIPES = pathlib.Path(__file__).parents[2] / "configs"

# Examples that a replica trains on: the least that gives a replica several and
# the 16 chunks of the paper a row each on 4 replicas.
_SHARE = 16


class Case(NamedTuple):
    """A step to compile.

    Attributes:
        recipes: names of the recipes whose twin it is.
        variant: what was varied, by name: loss, quota, reference, parts.
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
    of 16 tokens of 512. A replica trains on 16 examples; the super-batch is
    larger by the recipe's B/b, rounded up.

    Args:
        recipe: any.
        num_replicas: R.
    """
    batch_size = _SHARE * num_replicas
    ratio = -(-recipe.data.super_batch_size // recipe.batch_size)
    selection = recipe.selection
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
            dtype_policy="mixed_bfloat16",
            loss_block_size=None,
            micro_batch_size=None,
        ),
        reference=_reference("sidecar" if recipe.reference.sidecars else "live")
        if selection.needs_reference
        else config_lib.ReferenceConfig(),
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
    """Every variant of every recipe's twin, equal ones once.

    Both losses; with a selection that scores both quotas too, and the reference
    from sidecars and live; and once everything in parts: micro-batches while
    scoring and training, the loss by blocks, two steps an execution.
    """
    recipes_of = {}
    for path in sorted(RECIPES.glob("*.py")):
        small = twin(config_lib.load_config(path), num_replicas)
        recipes_of.setdefault(small, []).append(path.stem)
    return [
        Case(tuple(names), variant, config)
        for small, names in recipes_of.items()
        for variant, config in _variants(small, num_replicas)
    ]


def _variants(small, num_replicas):
    found = []
    for loss in config_lib.LOSSES:
        model = dataclasses.replace(small.model, loss=loss)
        config = dataclasses.replace(small, model=model)
        if not small.selection.scores:
            found.append(({"loss": loss}, config))
            continue
        references = ("none",)
        if small.selection.needs_reference:
            references = ("sidecar", "live")
        for quota in config_lib.QUOTAS:
            for reference in references:
                varied = dataclasses.replace(
                    config,
                    selection=dataclasses.replace(
                        config.selection, quota=quota
                    ),
                    reference=_reference(reference),
                )
                names = {"loss": loss, "quota": quota, "reference": reference}
                found.append((names, varied))
    names, config = found[0]
    found.append(
        ({**names, "parts": "in parts"}, _in_parts(config, num_replicas))
    )
    return found


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


def _reference(kind):
    return {
        "none": config_lib.ReferenceConfig(),
        "sidecar": config_lib.ReferenceConfig(sidecars=True),
        "live": config_lib.ReferenceConfig(workdir="live"),
    }[kind]
