"""The step that `fit` runs under a TPUStrategy, compiled for TPUs."""

from benchmarks.tpu import compiler, fake_strategy, lifter, step
from jest_tf import config as config_lib


class Program:
    """A run's step on R devices, without the devices.

    Args:
        config: the run.
        num_replicas: R.
    """

    def __init__(self, config: config_lib.TrainConfig, num_replicas: int):
        strategy = fake_strategy.build_strategy(num_replicas)
        with strategy.scope():
            model = step.build_model(config)
        program = lifter.Program(step.trace(model, step.super_batches(config)))
        self._exported = compiler.export(program)
        self._donated = program.donated  # known by then
        self._num_replicas = num_replicas

    def compile(self, topology: str) -> compiler.Executable:
        """Compiles it for the first chips of a topology.

        Raises:
            Exception: the compiler's own, where it refuses the program.
        """
        return compiler.compile_program(
            self._exported, self._donated, topology, self._num_replicas
        )
