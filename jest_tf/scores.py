"""The running score of every row of a super-batch, without a matrix of pairs.

The paper's algorithm 1 forms the `B x B` matrix of pair scores. Only the rows
and columns of the chunk just chosen enter the next chunk's scores, so here
every row keeps running sums, and a chunk adds its contribution from tiles of
logits that are formed from the embeddings and thrown away. Same noise, same
draw; work O(B b dim) and memory O(B). On several replicas each keeps the sums
of the rows that it holds, and the embeddings of the chosen rows go round.

The sampling itself is in `selection.py`.
"""

import re

import numpy as np
import tensorflow as tf

from jest_tf import exchange, losses

CRITERIA = ("learnability", "easy_reference", "hard_learner")
LOSSES = ("sigmoid", "softmax")

# What an error in a graph says of embeddings that can't be scored.
_NOT_FINITE = "embeddings hold NaN or infinity"
NOT_FINITE = re.compile(rf"`\w+` {_NOT_FINITE}")

# A tile of logits is 2,048 x 1,024 float32, 8 MB: large enough for the matrix
# product to run at full speed, small enough for the elementwise part after it
# to find it in cache (benchmarks/bench_selection.py). Tiles of fewer columns,
# which small chunks make, are taller, lest the loop over them cost more.
_TILE_ROWS = 2048
_TILE_COLUMNS = 1024
_TALLEST_TILE = 8192
# Tiles from this width on are worth the launch of a fused kernel. Not from a
# size on, which would depend on the number of replicas, and the last bit on it.
_FUSED_COLUMNS = 32


class Scores:
    """The running conditional score of every row of a super-batch.

    Args:
        learner: `losses.Embeddings` `[B/R, dim]` of the rows held here, all
            B on one replica; or None.
        reference: `losses.Embeddings` `[B/R, other_dim]`, or None.
        criterion: one of `CRITERIA`, which says who may be None.
        loss: one of `LOSSES`.
        quota: one of `exchange.QUOTAS`.
        replicas: the collectives, or None on one replica.

    Attributes:
        models: the running sums of each model given, by name.
        held: the rows held here, an `exchange.Whole`.

    Raises:
        ValueError: on arguments that do not fit together.
    """

    def __init__(
        self,
        learner: losses.Embeddings | None,
        reference: losses.Embeddings | None,
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
        self.held = exchange.held(first.image.shape[0], quota, replicas)
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
        logits = embeddings.scale * cosines + embeddings.bias
        return state + _sum_softplus(logits)

    return _fold_both_ways(add_tile, embeddings, (text, image), 0.0)


def _pair_log_sums(embeddings, image, text):
    """Log-sum-exps of the logits without bias; otherwise as `_pair_sums`."""

    def add_tile(state, rows, columns):
        logits = embeddings.scale * tf.matmul(rows, columns, transpose_b=True)
        return losses.logaddexp(state, tf.reduce_logsumexp(logits, 1))

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


def _sum_softplus(logits):
    """`reduce_sum(softplus(logits), 1)`."""
    if logits.shape[1] >= _FUSED_COLUMNS:
        return tf.reduce_sum(_fused_softplus_of_eight(logits), 1)
    return tf.reduce_sum(_softplus_of_eight(logits), 1)


def _softplus_of_eight(logits):
    """Sums of softplus over groups of eight columns, with one logarithm each.

    softplus(x) = max(x, 0) + log(1 + e), e = exp(-|x|) <= 1, and a sum of
    logarithms is the logarithm of the product, here of at most 2^8. Products
    are kept less 1, which loses nothing of a small e. The groups are columns
    a fixed stride apart, so that all of it is elementwise over contiguous
    halves of the tile.

    Args:
        logits: float32 `[rows, columns]`.

    Returns:
        float32 `[rows, ceil(columns / 8)]`.
    """
    padding = [[0, 0], [0, -logits.shape[1] % 8]]
    positive = tf.pad(tf.nn.relu(logits), padding)
    product = tf.pad(tf.exp(-tf.abs(logits)), padding)
    for _ in range(3):
        half = product.shape[1] // 2
        left, right = product[:, :half], product[:, half:]
        product = left + right * (1.0 + left)  # (1 + l)(1 + r) - 1
        positive = positive[:, :half] + positive[:, half:]
    return positive + _log1p(product)


# XLA makes one pass over the tile of what are some fifteen for TensorFlow.
_fused_softplus_of_eight = tf.function(
    _softplus_of_eight, jit_compile=True, autograph=False
)


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
    parts = losses.Embeddings(
        *(tf.convert_to_tensor(part) for part in embeddings)
    )
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
    message = f"`{name}` {_NOT_FINITE}"
    try:
        parts = (tf.debugging.check_numerics(part, message) for part in parts)
        return losses.Embeddings(
            *(tf.stop_gradient(tf.cast(part, tf.float32)) for part in parts)
        )
    except tf.errors.InvalidArgumentError as error:  # only when run eagerly
        raise ValueError(f"{message}; expected finite numbers") from error
