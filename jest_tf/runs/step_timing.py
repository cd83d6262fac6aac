"""Seconds of the parts of a training step, each run alone.

A step is one graph, in which parts overlap and a device is told of work long
before it is done; a clock within it would be read at the wrong time. So here
scoring, selection and training are functions of their own, compiled as the
step is, which get a super-batch and run until their results are there. They
leave no trace: weights, optimizer, metrics and random states are put back.
"""

import time
from collections.abc import Callable

import tensorflow as tf

from jest_tf import training


class Probe:
    """Times the parts of a step of a compiled model on one device.

    Args:
        model: built and compiled, its optimizer built.
        super_batch: gives a super-batch, as a step would get it.
    """

    def __init__(
        self, model: training.JESTModel, super_batch: Callable[[], dict]
    ):
        self._model = model
        self._super_batch = super_batch
        self._is_warm = False
        self._parts = {
            name: tf.function(
                function,
                autograph=False,
                jit_compile=bool(model.jit_compile) or None,
            )
            for name, function in model.step_parts().items()
        }

    def __call__(self) -> dict[str, float]:
        """Measures once; the first time everything runs twice, to be traced.

        Returns:
            Seconds by name: `time/train_seconds`, of the step on the sub-batch,
            the optimizer included; where the model scores, also
            `time/score_seconds`, of learner and reference, and
            `time/select_seconds`, of the draw. To bring the super-batch to the
            device is not counted.
        """
        # Held no longer than this, as a super-batch may be large.
        batch = tf.nest.map_structure(tf.identity, self._super_batch())
        if not self._is_warm:
            self._measure(batch)
            self._is_warm = True
        return {
            f"time/{name}_seconds": round(seconds, 6)
            for name, seconds in self._measure(batch).items()
        }

    def _measure(self, batch):
        seconds = {}
        if "score" in self._parts:
            embeddings, seconds["score"] = timed(self._parts["score"], batch)
            _, seconds["select"] = timed(self._parts["select"], embeddings)
        state = self._variables()
        before = [variable.numpy() for variable in state]
        try:
            _, seconds["train"] = timed(self._parts["train"], batch)
        finally:
            for variable, value in zip(state, before, strict=True):
                variable.assign(value)
        return seconds

    def _variables(self):
        model = self._model
        every = (
            *model.variables,
            *model.metrics_variables,
            *model.optimizer.variables,
        )
        return list({id(variable): variable for variable in every}.values())


def timed(function, argument):
    """`function(argument)`, and the seconds until it is there.

    Args:
        function: returns a nest of tensors and of None.
        argument: its only one.
    """
    start = time.monotonic()
    result = function(argument)
    for tensor in tf.nest.flatten(result):
        if tensor is not None:
            # A device that works in order has then done all that was before.
            tf.reshape(tensor, [-1])[:1].numpy()
    return result, time.monotonic() - start
