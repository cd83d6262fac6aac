"""The operations that training needs of Keras' backend, on one page.

`on_tensorflow.py` and `on_jax.py` each implement `Backend`. A step calls its
functions; `JESTModel` inherits its `Trainer`, which runs the steps of the
model's `stepper.Stepper` under `fit`.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, Protocol

import keras
from keras import ops

from jest_tf import config as config_lib
from jest_tf.embeddings import Embeddings, Tensor


class Gradients(NamedTuple):
    """Results of `Backend.gradients`.

    `terms` are the loss's scalars by name; `embeddings` are of all n rows.
    `by_variable` has None for trainable variables without effect on the loss.
    """

    terms: dict[str, Tensor]
    embeddings: Embeddings
    by_variable: list[Tensor | None]


class Trainer(Protocol):
    """Mixin of `JESTModel`, before `keras.Model`: Keras' loop of a backend.

    It overrides `make_train_function`, `test_step` and, where Keras errs,
    `compile`, `fit` and `evaluate`.

    Attributes:
        num_replicas: R, the replicas that share a super-batch.
        gather_rows: joins rows of all processes, outside a step; None with one
            process.
    """

    num_replicas: int
    gather_rows: Callable[[Tensor], Tensor] | None

    def steps_done(self) -> int:
        """Reads the number of steps so far, also while a step is traced."""

    def sync(self) -> None:
        """Gives the model's variables the values of the last step."""

    def check_placed(self, name: str, model: Any) -> None:
        """Raises ValueError if the replicas can't run `model`."""

    def averaged(self) -> AbstractContextManager[Iterator[None]]:
        """Context manager that gives the model its averaged weights."""


class Backend(Protocol):
    """A module that implements training on a backend of Keras."""

    Trainer: type[Trainer]

    def embed(
        self,
        encode: Callable[[dict], Embeddings],
        batch: dict[str, Tensor],
        size: int | None,
    ) -> Embeddings:
        """Runs `encode(batch)`, `size` rows at a time; all at once if None."""

    def gradients(
        self,
        learner: keras.Model,
        batch: dict[str, Tensor],
        loss: Callable[[Embeddings], dict[str, Tensor]],
        *,
        micro_batch_size: int | None = None,
        scale_loss: Callable[[Tensor], Tensor] = lambda value: value,
        num_replicas: int = 1,
        views: Sequence[config_lib.View] = (),
        projection: keras.layers.Layer | None = None,
    ) -> Gradients:
        """Computes a batch's loss and gradient, the learner in training mode.

        The loss couples the rows of a batch only through their embeddings. With
        a `micro_batch_size`, all rows are embedded without keeping activations;
        the loss gives the gradient of the embeddings; each micro-batch is
        embedded again and backpropagates its part. The sum is the gradient of
        the whole batch, for one more forward pass. Both passes over a row use
        the same dropout. Layers that mix rows, such as batch normalisation, see
        a micro-batch, and activity regularizers are averaged over
        micro-batches.

        Reference: Gao et al. 2021, "Scaling deep contrastive learning batch
        size under memory limited setup", arXiv 2101.06983.

        Args:
            learner: maps a batch to `Embeddings`; its regularizers enter the
                gradient, but not the returned loss.
            batch: tensors with n rows.
            loss: maps the embeddings of all n rows to scalars by name; `loss`
                is differentiated.
            micro_batch_size: rows embedded at a time; None takes all at once.
            scale_loss: applied to the loss before differentiation, for float16.
            num_replicas: replicas whose gradients will be summed; each adds its
                share of the regularizers.
            views: passed to the learner's calls, unless empty.
            projection: a layer with variables that the loss uses; their
                gradients follow those of the learner's variables.
        """


def split(tensors, size: int):
    """Splits a nest of tensors, `[n, ...]` -> `[n / size, size, ...]`."""
    return keras.tree.map_structure(
        lambda tensor: ops.reshape(tensor, [-1, size, *tensor.shape[1:]]),
        tensors,
    )
