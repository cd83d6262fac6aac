"""The running score of every row of a super-batch, without a matrix of pairs.

The paper's algorithm 1 forms the `B x B` matrix of pair scores. Only the rows
and columns of the chunk just chosen enter the next chunk's scores, so here
every row keeps running sums, and a chunk adds its contribution from tiles of
logits that are formed from the embeddings and thrown away. Same noise, same
draw; work O(B b dim) and memory O(B). On several replicas each keeps the sums
of the rows that it holds, and the embeddings of the chosen rows go round.

The sampling itself is in `selection/samplers.py`.
"""

import functools
import re

import numpy as np
import tensorflow as tf

from jest_tf import losses
from jest_tf.distribution import placement
from jest_tf.embeddings import Embeddings

CRITERIA = ("learnability", "easy_reference", "hard_learner")
LOSSES = ("sigmoid", "softmax")

# What an error in a graph says of embeddings that can't be scored.
_NOT_FINITE = "hold NaN or infinity"
NOT_FINITE = re.compile(rf"(?P<name>`\w+` embeddings) {_NOT_FINITE}")

# A tile of logits is 4,096 x 1,024 float32, 16 MB: large enough for the matrix
# product to run at full speed and for the loop to cost little, small beside
# the embeddings (benchmarks/bench_selection.py). Tiles of fewer columns, which
# small chunks make, are taller.
_TILE_ROWS = 4096
_TILE_COLUMNS = 1024
_TALLEST_TILE = 16384
# Tiles from this width on are worth the launch of a fused kernel. Not from a
# size on, which would depend on the number of replicas, and the last bit on it.
_FUSED_COLUMNS = 32
# Columns whose terms a fused kernel brings together before they are written.
_GROUP = 16
# e^-87 is the least power that is no subnormal float32.
_LEAST_EXPONENT = -87.0
# Of e^x from 0 to log 2, lowest power first: a fit of the least largest error
# relative to e^x, 8e-8.
_EXP_COEFFICIENTS = (
    0.999999925,
    1.000008501,
    0.499848289,
    0.167634191,
    0.038942692,
    0.011734656,
)
# Added to an integer, it leaves that integer in the last bits of the float.
_TO_LAST_BITS = 1.5 * 2.0**23


class Scores:
    """The running conditional score of every row of a super-batch.

    Args:
        learner: `Embeddings` `[B/R, dim]` of the rows held here, all
            B on one replica; or None.
        reference: `Embeddings` `[B/R, other_dim]`, or None.
        criterion: one of `CRITERIA`, which says who may be None.
        loss: one of `LOSSES`.
        quota: one of `placement.QUOTAS`.
        replicas: the collectives, or None on one replica.

    Attributes:
        models: the running sums of each model given, by name.
        held: the rows held here, an `placement.Whole`.

    Raises:
        ValueError: on arguments that do not fit together.
    """

    def __init__(
        self,
        learner: Embeddings | None,
        reference: Embeddings | None,
        criterion: str,
        loss: str,
        quota: str = "global",
        replicas=None,
    ):
        models = _checked(learner, reference, criterion, loss)
        kind = _SigmoidSums if loss == "sigmoid" else _SoftmaxSums
        self.models = {
            name: kind(embeddings) for name, embeddings in models.items()
        }
        self.criterion = criterion
        first = next(iter(models.values()))
        self.held = placement.held(first.image.shape[0], quota, replicas)
        self._added = self._with_chosen
        if not self.held.in_loops:
            # Chunks that are unrolled share one graph of the tiles.
            self._added = tf.function(self._with_chosen, autograph=False)

    @property
    def state(self) -> dict:
        """What `add` changes, as a nest of tensors, to carry through a loop."""
        return {name: model.state for name, model in self.models.items()}

    @state.setter
    def state(self, state: dict) -> None:
        for name, model in self.models.items():
            model.state = state[name]

    def add(self, rows: tf.Tensor) -> None:
        """Counts `rows`, int32 `[c]` of all, among the chosen."""
        chosen = self.held.fetch(
            {name: model.embeddings[:2] for name, model in self.models.items()},
            rows,
        )
        self.state = self._added(self.state, chosen)

    def conditional(self) -> tf.Tensor:
        """float32 `[B/R]`: what each row held would add to the chosen."""
        return self.of({m: s.conditional() for m, s in self.models.items()})

    def of(self, values: dict[str, tf.Tensor]) -> tf.Tensor:
        """The criterion of one value a model."""
        if self.criterion == "learnability":
            return values["learner"] - values["reference"]
        if self.criterion == "easy_reference":
            return -values["reference"]
        return values["learner"]

    def _with_chosen(self, state, chosen):
        self.state = state
        for name, model in self.models.items():
            model.add(*chosen[name])
        return self.state


class _SigmoidSums:
    """One model's running sums of pair losses, sigmoid."""

    def __init__(self, embeddings):
        self.embeddings = embeddings
        cosines = _own_cosines(embeddings)
        logits = embeddings.scale * cosines + embeddings.bias
        self.positive = tf.math.softplus(-logits)  # [B/R], the row's own pair
        self.negative = tf.math.softplus(logits)  # [B/R], it as a negative
        # [2, B/R]: an image with the chosen texts, a text with the images.
        self.state = tf.zeros([2, *logits.shape])

    def add(self, image, text):
        self.state += _pair_sums(self.embeddings, image, text)

    def conditional(self):
        return self.positive + tf.reduce_sum(self.state, 0)

    def row_losses(self, kept):
        # A kept row met itself as a negative, once in each direction.
        others = self.state - tf.where(kept, self.negative, 0.0)
        return self.positive + 0.5 * tf.reduce_sum(others, 0)

    def sample_losses(self, size, batch_size):
        """Losses of rows in a batch, `size` rows of which are the chosen."""
        others = max(size - 1, 1)
        pairs = tf.reduce_sum(self.state - self.negative, 0)
        scale = 0.5 * (batch_size - 1) / others
        return self.positive + scale * pairs


class _SoftmaxSums:
    """One model's running log-sum-exps of logits, softmax."""

    def __init__(self, embeddings):
        self.embeddings = embeddings
        cosines = _own_cosines(embeddings)
        self.own = embeddings.scale * cosines  # [B/R]
        # [2, B/R]: an image with the chosen texts, a text with the images.
        self.state = tf.fill([2, *self.own.shape], -np.inf)

    def add(self, image, text):
        more = _pair_log_sums(self.embeddings, image, text)
        self.state = losses.logaddexp(self.state, more)

    def conditional(self):
        # Before the first row is chosen there is no normaliser to speak of.
        both = tf.where(self.state > -np.inf, self.state, 0.0)
        return -self.own + 0.5 * tf.reduce_sum(both, 0)

    def row_losses(self, kept):
        # The normaliser of a row holds the row itself; that of a kept row does.
        joined = losses.logaddexp(self.state, self.own)
        both = tf.where(kept, self.state, joined)
        return -self.own + 0.5 * tf.reduce_sum(both, 0)

    def sample_losses(self, size, batch_size):
        """Losses of rows in a batch, `size` rows of which are the chosen."""
        if size == batch_size:
            return self.conditional()
        # The row itself stays one of many, whatever their number.
        share = tf.exp(tf.minimum(self.own - self.state, 0.0))
        others = self.state + tf.math.log1p(-share)
        others += np.log((batch_size - 1) / (size - 1))
        both = losses.logaddexp(self.own, others)
        return -self.own + 0.5 * tf.reduce_sum(both, 0)


def _own_cosines(embeddings):
    """<image_i, text_i>, `[B]`; an einsum makes no `[B, dim]` of products."""
    return tf.einsum("nd,nd->n", embeddings.image, embeddings.text)


def _pair_sums(embeddings, image, text):
    """Sums of softplus(logit) over the chosen rows, in each direction.

    Args:
        embeddings: `[B/R, dim]`.
        image: float32 `[c, dim]`, the chosen rows' images.
        text: float32 `[c, dim]`, their texts.

    Returns:
        float32 `[2, B/R]`: of each image held with the chosen texts, and of
        each text held with the chosen images.
    """

    def add_tile(state, rows, columns):
        cosines = tf.matmul(rows, columns, transpose_b=True)
        return state + _sum_softplus(cosines, embeddings.scale, embeddings.bias)

    return _fold_both_ways(add_tile, embeddings, (text, image), 0.0)


def _pair_log_sums(embeddings, image, text):
    """Log-sum-exps of the logits without bias; otherwise as `_pair_sums`."""

    def add_tile(state, rows, columns):
        cosines = tf.matmul(rows, columns, transpose_b=True)
        return losses.logaddexp(state, _log_sum_exp(cosines, embeddings.scale))

    return _fold_both_ways(add_tile, embeddings, (text, image), -np.inf)


def _fold_both_ways(add_tile, embeddings, chosen, start_value):
    # Stacked and not added up: TensorFlow 2.20 rewrites a chain of additions
    # in a nested loop into temporary variables whose names collide.
    return tf.stack(
        [
            _fold_tiles(add_tile, rows, columns, start_value)
            for rows, columns in zip(embeddings[:2], chosen, strict=True)
        ]
    )


def _fold_tiles(add_tile, rows, columns, start_value):
    """Folds `add_tile` over tiles of rows x columns; float32 `[rows]`."""
    num_rows, num_columns = rows.shape[0], columns.shape[0]

    def row_block(state, start, size):
        block = losses.rows_from(rows, start, size)

        def column_block(state, start, size):
            tile = losses.rows_from(columns, start, size)
            return (add_tile(state[0], block, tile),), ()

        value, _ = losses.fold_row_blocks(
            column_block,
            num_columns,
            _TILE_COLUMNS,
            state=(tf.fill([size], start_value),),
        )
        return state, value

    _, (values,) = losses.fold_row_blocks(
        row_block, num_rows, _tile_rows(num_columns), row_shapes=((),)
    )
    return values


def _tile_rows(num_columns):
    """The rows of a tile, as many as keep it at its size."""
    rows = _TILE_ROWS * _TILE_COLUMNS // min(num_columns, _TILE_COLUMNS)
    return min(rows, _TALLEST_TILE)


def _sum_softplus(cosines, scale, bias):
    """`reduce_sum(softplus(scale * cosines + bias), 1)`."""
    if cosines.shape[1] < _FUSED_COLUMNS:
        return tf.reduce_sum(tf.math.softplus(scale * cosines + bias), 1)
    return tf.reduce_sum(_softplus_of_groups(cosines, scale, bias), 1)


def _log_sum_exp(cosines, scale):
    """`reduce_logsumexp(scale * cosines, 1)`."""
    if cosines.shape[1] < _FUSED_COLUMNS:
        return tf.reduce_logsumexp(scale * cosines, 1)
    highest = tf.reduce_max(_highest_of_groups(cosines, scale), 1)
    sums = _exp_of_groups(cosines, scale, highest)
    return highest + tf.math.log(tf.reduce_sum(sums, 1))


# XLA makes one pass over the tile of what are some fifteen for TensorFlow.
_fused = functools.partial(tf.function, jit_compile=True, autograph=False)


@_fused
def _softplus_of_groups(cosines, scale, bias):
    """Sums of softplus over groups of columns, with one logarithm each.

    softplus(x) = max(x, 0) + log(1 + e), e = exp(-|x|) <= 1, and a sum of
    logarithms is the logarithm of the product, here of at most 2^16. Products
    are kept less 1, which loses nothing of a small e.

    Args:
        cosines: float32 `[rows, columns]`.
        scale: float32 scalar, of the logits.
        bias: float32 scalar, of the logits.

    Returns:
        float32 `[rows, ceil(columns / 16)]`.
    """

    def join(left, right):
        # (1 + l)(1 + r) - 1
        product = left[1] + right[1] * (1.0 + left[1])
        return left[0] + right[0], product

    terms = [
        (tf.nn.relu(logits), _exp(-tf.abs(logits)))
        for logits in _in_groups(cosines, scale, bias)
    ]
    positive, product = _join_pairs(join, terms)
    return positive + _log1p(product)


@_fused
def _highest_of_groups(cosines, scale):
    """Highest logits of groups of columns, `[rows, ceil(columns / 16)]`."""
    return _join_pairs(tf.maximum, _in_groups(cosines, scale))


@_fused
def _exp_of_groups(cosines, scale, highest):
    """Sums of exp(logit - the row's `highest`) over groups of columns."""
    below = _in_groups(cosines, scale, -highest[:, tf.newaxis])
    return _join_pairs(tf.add, [_exp(part) for part in below])


def _in_groups(cosines, scale, bias=0.0):
    """Logits as `_GROUP` tensors that hold one column of every group each.

    A group's columns lie a fixed stride apart, so that all that is done to it
    is elementwise over contiguous parts of the tile: XLA does not vectorise
    reductions on CPUs. Logits are formed of each part, because those of the
    whole tile would be written before they are split. Columns of -inf fill the
    last groups; in a sum of exponentials they count e^-87.
    """
    num_columns = cosines.shape[1]
    width = -(-num_columns // _GROUP)
    padding = [[0, 0], [0, width * _GROUP - num_columns]]
    parts = []
    for part in tf.split(tf.pad(cosines, padding), _GROUP, 1):
        logits = scale * part + bias
        columns = len(parts) * width + np.arange(width)
        if columns[-1] >= num_columns:
            logits = tf.where(columns < num_columns, logits, -np.inf)
        parts.append(logits)
    return parts


def _join_pairs(join, parts):
    """Joins neighbours until a single part is left; as many as a power of 2."""
    while len(parts) > 1:
        parts = [
            join(left, right)
            for left, right in zip(parts[::2], parts[1::2], strict=True)
        ]
    return parts[0]


def _exp(values):
    """exp(values) for values <= 0, and as good for values a little above.

    To 3e-7 of itself, besides what a rounding of the value makes of it.

    2^n e^f with n an integer and f from 0 to log 2: a polynomial to whose
    exponent n is added. It takes less than half the time of XLA's own on CPUs.
    Values below -87 count as -87.
    """
    values = tf.maximum(values, _LEAST_EXPONENT)
    whole = tf.floor(values * (1.0 / np.log(2.0)))
    rest = values - whole * np.log(2.0)
    power = _EXP_COEFFICIENTS[-1]
    for coefficient in _EXP_COEFFICIENTS[-2::-1]:
        power = power * rest + coefficient
    # Not a cast, which takes longer on CPUs.
    whole = tf.bitcast(whole + _TO_LAST_BITS, tf.int32)
    exponent = tf.bitwise.left_shift(whole, 23)
    return tf.bitcast(tf.bitcast(power, tf.int32) + exponent, tf.float32)


def _log1p(values):
    """log(1 + values) for values >= 0, to 3e-6 of itself.

    A series where it is exact enough, because XLA's log1p is slow on CPUs.
    """
    # The series to the fifth power; its next term is below 4e-9 of the value.
    series = values * (
        1.0
        - values
        * (1 / 2 - values * (1 / 3 - values * (1 / 4 - values * (1 / 5))))
    )
    return tf.where(values < 0.03, series, tf.math.log(1.0 + values))


def _checked(learner, reference, criterion, loss):
    """The models given, by name, in float32 and cut from the gradient."""
    for name, value, allowed in (
        ("criterion", criterion, CRITERIA),
        ("loss", loss, LOSSES),
    ):
        if value not in allowed:
            raise ValueError(
                f"`{name}` must be one of {allowed}. Received: {value!r}"
            )
    models = {
        name: _checked_embeddings(name, embeddings)
        for name, embeddings in (("learner", learner), ("reference", reference))
        if embeddings is not None
    }
    needs = {
        "learnability": ("learner", "reference"),
        "easy_reference": ("reference",),
        "hard_learner": ("learner",),
    }[criterion]
    for name in needs:
        if name not in models:
            raise ValueError(
                f"`criterion={criterion!r}` needs the {name}'s embeddings. "
                f"Received: {name}=None"
            )
    sizes = {name: model.image.shape[0] for name, model in models.items()}
    if len(set(sizes.values())) > 1:
        raise ValueError(
            "`learner` and `reference` must embed the same super-batch. "
            f"Received rows: {sizes}"
        )
    return models


def _checked_embeddings(name, embeddings):
    parts = Embeddings(*(tf.convert_to_tensor(part) for part in embeddings))
    image, text = parts.image, parts.text
    if not all(part.dtype.is_floating for part in parts):
        raise ValueError(
            f"`{name}` must hold floating-point embeddings. "
            f"Received: {[part.dtype.name for part in parts]}"
        )
    if (
        image.shape.rank != 2
        or image.shape != text.shape
        or not image.shape.is_fully_defined()
    ):
        raise ValueError(
            f"`{name}.image` and `{name}.text` must both be [B, dim] with a "
            f"static shape. Received: {image.shape} and {text.shape}"
        )
    for part in ("scale", "bias"):
        if getattr(parts, part).shape.rank != 0:
            raise ValueError(
                f"`{name}.{part}` must be a scalar. "
                f"Received: shape {getattr(parts, part).shape}"
            )
    message = f"`{name}` embeddings {_NOT_FINITE}"
    try:
        parts = (tf.debugging.check_numerics(part, message) for part in parts)
        return Embeddings(
            *(tf.stop_gradient(tf.cast(part, tf.float32)) for part in parts)
        )
    except tf.errors.InvalidArgumentError as error:  # only when run eagerly
        raise ValueError(f"{message}; expected finite numbers") from error
