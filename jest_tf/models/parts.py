"""Parts of a learner by name: freezing, and factors of the learning rate.

A variable's name is its tower's role and its path in the tower, such as
`image_tower/encoder/attention_qkv_kernel`; `log_temperature` and `bias` have no
tower. A pattern matches whole names, or the folders above them: `*` matches any
characters, so `image_tower` and `image_tower/*` both match the image tower.
"""

import fnmatch
import re
from collections.abc import Sequence

import keras

from jest_tf import config as config_lib
from jest_tf.models import layers

_ROLES = ("image_tower", "text_tower")
# Layers that LoRA adapts.
_ADAPTED = (
    keras.layers.Dense,
    keras.layers.EinsumDense,
    keras.layers.Conv1D,
    keras.layers.Conv2D,
)

# Numbered transformer blocks: KerasHub's `encoder_block_3`, and the like.
_BLOCK = re.compile(r"(?:^|/)\w*?(?:block|layer)s?_?(\d+)/")


def freeze(learner: keras.Model, patterns: Sequence[str]) -> None:
    """Makes variables untrainable: no gradient, no state of the optimizer.

    A layer whose trainable variables are all frozen runs in evaluation mode, if
    the layer has this mode, like Keras' batch normalisation.
    """
    if not patterns:
        return
    names = _names(learner)
    before = [
        layer
        for layer in learner._flatten_layers(include_self=False)
        if layer.trainable_variables
    ]
    for pattern in patterns:
        for number in _matches(pattern, names):
            learner.variables[number].trainable = False
    for layer in before:
        if not layer.trainable_variables:
            layer.trainable = False
    if not learner.trainable_variables:
        raise ValueError(
            "`model.frozen` must leave something to train. Received: "
            f"{', '.join(patterns)}, which freeze all {len(names)} variables"
        )


def add_adapters(learner: keras.Model, rank: int, seed: int) -> None:
    """Adds LoRA's adapters to dense layers and convolutions; freezes the rest.

    Only the adapters, the temperature and the bias are trained then. Keras
    saves the weights of such a layer with its adapter merged into them.

    Args:
        learner: a built learner.
        rank: of the adapters.
        seed: of their initial weights.

    Reference: Hu et al. 2021, arXiv 2106.09685.
    """
    adapted = [
        layer
        for layer in learner._flatten_layers(include_self=False)
        if isinstance(layer, _ADAPTED)
    ]
    every = learner._flatten_layers(include_self=False)
    if not adapted or any(isinstance(x, layers.Encoder) for x in every):
        raise ValueError(
            "`model.lora_rank` needs a `model.init_from` of Keras' dense "
            "layers or convolutions, such as KerasHub's models; the presets "
            "of this package have other blocks. Received: "
            f"{learner.image_tower.name} and {learner.text_tower.name}"
        )
    for role in _ROLES:
        for variable in getattr(learner, role).variables:
            variable.trainable = False
    for number, layer in enumerate(adapted):
        layer_seed = layers.child_seed(seed, f"lora{number}")
        layer.enable_lora(
            rank, a_initializer=keras.initializers.HeUniform(layer_seed)
        )


def rate_factors(
    learner: keras.Model, settings: config_lib.OptimizerConfig
) -> list[float | list[float]] | None:
    """Returns the learning-rate factors of the trained variables.

    With n blocks in a tower, `optimizer.layer_decay` gives variables before the
    first block the factor decay^(n + 1), those of block i = 0, 1, ... the
    factor decay^(n - i), and all others 1.

    Returns:
        A number for each trainable variable, in the learner's order; for
        variables stacked over blocks, a list with a number for each block. None
        without `optimizer.layer_decay`.
    """
    if settings.layer_decay is None:
        return None
    factors = _by_depth(learner, _names(learner), settings.layer_decay)
    trained = {id(variable) for variable in learner.trainable_variables}
    return [
        factor if len(factor) > 1 else factor[0]
        for variable, factor in zip(learner.variables, factors, strict=True)
        if id(variable) in trained
    ]


def _names(learner) -> list[str]:
    """Returns the names of the learner's variables, in the learner's order."""
    towers = {
        id(variable): (f"{role}/", tower.name)
        for role in _ROLES
        if (tower := getattr(learner, role, None)) is not None
        for variable in tower.variables
    }
    names = []
    for variable in learner.variables:
        role, owner = towers.get(id(variable), ("", learner.name))
        # A functional tower's variables do not name the tower.
        _, _, inside = f"/{variable.path}".partition(f"/{owner}/")
        names.append(role + (inside or variable.path))
    return names


def _matches(pattern, names):
    matches = [
        number
        for number, name in enumerate(names)
        if fnmatch.fnmatchcase(name, pattern)
        or fnmatch.fnmatchcase(name, f"{pattern}/*")
    ]
    if not matches:
        known = dict.fromkeys(re.sub(r"\d+", "*", name) for name in names)
        raise ValueError(
            "`model.frozen` must match names of the learner's variables: "
            f"{', '.join(known)}. Received: {pattern!r}"
        )
    return matches


def _by_depth(learner, names, decay):
    stacked = {
        id(variable): layer.depth
        for layer in learner._flatten_layers()
        if isinstance(layer, layers.Encoder)
        for variable in layer.parameters.values()
    }
    factors = [[1.0] for _ in names]
    for role in _ROLES:
        inside = [
            number
            for number, name in enumerate(names)
            if name.startswith(f"{role}/")
        ]
        # The blocks of each variable, by the variable's number.
        blocks = {}
        for number in inside:
            match = _BLOCK.search(names[number])
            depth = stacked.get(id(learner.variables[number]))
            if depth is not None:
                blocks[number] = range(depth)
            elif match:
                blocks[number] = range(int(match[1]), int(match[1]) + 1)
        if not blocks:
            if all(not learner.variables[i].trainable for i in inside):
                continue
            known = dict.fromkeys(names[i].split("/")[1] for i in inside)
            raise ValueError(
                "`optimizer.layer_decay` needs towers of numbered transformer "
                "blocks, such as `encoder_block_0`, or the package's own. "
                f"Received: a {role} of {', '.join(known)}; leave it unset"
            )
        depth = 1 + max(max(numbers) for numbers in blocks.values())
        first = min(blocks)
        for number in inside:
            if number in blocks:
                factors[number] = [
                    decay ** (depth - block) for block in blocks[number]
                ]
            elif number < first:
                factors[number] = [decay ** (depth + 1)]
    return factors
