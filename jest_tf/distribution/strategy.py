"""The `tf.distribute.Strategy` of a run, and its dataset."""

import contextlib
import functools
from collections.abc import Callable

import keras
import tensorflow as tf

from jest_tf import config as config_lib
from jest_tf.config import imports
from jest_tf.distribution import cluster, collectives, placement
from jest_tf.distribution.halves import in_halves


def build_strategy(
    settings: config_lib.DistributionConfig,
) -> tf.distribute.Strategy:
    """Builds the strategy of `settings`, before TensorFlow runs anything.

    "mirrored" takes the virtual devices if there are any, else all GPUs, else
    the one CPU. Further calls return the same strategy, because two strategies
    in a process would use the same keys for different collectives.
    """
    if settings.virtual_devices:
        _split_cpu(settings.virtual_devices)
    return _built(settings)


@functools.cache
def _built(settings):
    build = config_lib.STRATEGIES[settings.strategy].build
    return imports.load_function("distribution.strategy", build)(settings)


def default(
    settings: config_lib.DistributionConfig | None = None,
) -> tf.distribute.Strategy:
    """Returns the strategy of the device that TensorFlow picks."""
    del settings
    return tf.distribute.get_strategy()


def peak_memory() -> list[int]:
    """Returns peak bytes in use of the devices that report them."""
    peaks = []
    for device in tf.config.list_logical_devices():
        name = device.name.rpartition("device:")[2]
        if name.startswith("CPU"):
            continue
        with contextlib.suppress(ValueError, tf.errors.OpError):
            peaks.append(tf.config.experimental.get_memory_info(name)["peak"])
    return peaks


def has_lost_worker(error: Exception) -> bool:
    """Returns whether it says that another worker cannot be reached."""
    return isinstance(
        error, (tf.errors.UnavailableError, tf.errors.AbortedError)
    )


def share(strategy: tf.distribute.Strategy) -> tuple[int, int]:
    """Returns this worker's number, and how many there are."""
    if not collectives.has_workers(strategy):
        return 0, 1
    addresses, number = cluster.workers()
    return number, len(addresses)


def mirrored(settings: config_lib.DistributionConfig) -> tf.distribute.Strategy:
    """Returns a strategy over the virtual devices, the GPUs or the CPU."""
    if settings.virtual_devices:
        return tf.distribute.MirroredStrategy(
            [f"CPU:{index}" for index in range(settings.virtual_devices)]
        )
    with _explained(settings):
        return _make_by_model_garden(settings)


def multi_worker_mirrored(
    settings: config_lib.DistributionConfig,
) -> tf.distribute.Strategy:
    """Returns a strategy over the GPUs of the machines in TF_CONFIG."""
    cluster.workers()
    cluster.bypass_proxy()
    with _explained(settings):
        return _make_by_model_garden(settings)


def tpu(settings: config_lib.DistributionConfig) -> tf.distribute.Strategy:
    """Returns a strategy over the cores of this machine's TPU."""
    with _explained(settings, "; docs/tpu.md has what a TPU needs"):
        return _make_by_model_garden(settings)


@contextlib.contextmanager
def _explained(settings, way_out=""):
    """Raises ValueError for the errors of devices that are not there."""
    try:
        yield
    except (tf.errors.OpError, OSError, RuntimeError, ValueError) as error:
        raise ValueError(
            f"`distribution.strategy={settings.strategy!r}` can't be built"
            f": {str(error).strip().splitlines()[0]}{way_out}"
        ) from error


def _make_by_model_garden(settings):
    # Imported late: it takes seconds and imports a second Keras.
    from official.common import distribute_utils

    return distribute_utils.get_distribution_strategy(
        settings.strategy,
        num_gpus=len(tf.config.list_physical_devices("GPU")),
        tpu_address="local",
    )


def distribute(
    strategy: tf.distribute.Strategy,
    super_batches: Callable[[int, int], tf.data.Dataset],
) -> tf.data.Dataset | tf.distribute.DistributedDataset:
    """Builds the dataset for `fit`; each host makes only its own rows.

    TPUs have no 64-bit integers: for them int64 `[n]` becomes int32 `[n, 2]`,
    see `join_halves`.

    Args:
        super_batches: `(host, num_hosts) -> dataset`, an endless dataset of
            that host's share of each super-batch, the `B / num_hosts` rows from
            `host * B / num_hosts` on. A nested dict may have other row counts.
    """
    replicas = strategy.num_replicas_in_sync

    def on_host(host, num_hosts):
        dataset = super_batches(host, num_hosts)
        return in_halves(dataset) if collectives.is_tpu(strategy) else dataset

    if replicas == 1:
        return on_host(0, 1)

    def make_dataset(context):
        dataset = on_host(
            context.input_pipeline_id, context.num_input_pipelines
        )
        dataset = _by_replica(dataset, replicas // context.num_input_pipelines)
        # Without this, several workers get batches of dynamic shape.
        return dataset.apply(
            tf.data.experimental.assert_cardinality(
                tf.data.INFINITE_CARDINALITY
            )
        )

    return strategy.distribute_datasets_from_function(make_dataset)


def spread(
    strategy: tf.distribute.Strategy,
    function: Callable[[tf.Tensor], tf.Tensor],
    model: keras.Model,
) -> Callable[[tf.Tensor], tf.Tensor]:
    """Compiles `function` of `model`, row by row, to run on replicas' shares.

    The result maps [R * n, ...] to [R * n, ...]. With several workers, each
    computes all rows on one of its devices.
    """
    del model  # whose variables TensorFlow finds
    num_replicas = strategy.num_replicas_in_sync
    if num_replicas == 1 or collectives.has_workers(strategy):
        return tf.function(function)
    run = tf.function(lambda rows: strategy.run(function, (rows,)))

    def call(rows):
        shares = tf.split(rows, num_replicas)
        mine = strategy.experimental_distribute_values_from_function(
            lambda context: shares[context.replica_id_in_sync_group]
        )
        return tf.concat(strategy.experimental_local_results(run(mine)), axis=0)

    return call


def describe(strategy: tf.distribute.Strategy) -> str:
    """Returns a readable list of the devices of a strategy."""
    gpus = tf.config.list_physical_devices("GPU")
    try:
        devices = [
            ":".join(device.split(":")[-2:])
            for device in strategy.extended.worker_devices
        ]
    except RuntimeError:  # the default strategy has none
        devices = ["GPU:0" if gpus else "CPU:0"]
    kinds = {
        tf.config.experimental.get_device_details(gpu).get("device_name")
        for gpu in gpus
    } - {None}
    text = ", ".join(devices)
    if kinds:
        text += f" ({', '.join(sorted(kinds))})"
    replicas = strategy.num_replicas_in_sync
    if replicas > len(devices):  # of all workers
        text += f", of {replicas} replicas"
    return text


def _by_replica(dataset, count):
    """Cuts a host's batches into those of its `count` replicas."""
    spec = dataset.element_spec
    for part in tf.nest.flatten(spec):
        placement.share(part.shape[0], count, "The rows of a batch on a host")
    if not any(isinstance(part, dict) for part in spec.values()):
        rows = next(iter(spec.values())).shape[0] // count
        return dataset.rebatch(rows, drop_remainder=True)

    def cut(value):
        rows = value.shape[0] // count
        return tf.reshape(value, [count, rows, *value.shape[1:]])

    # Batches of several sizes can't be cut by `rebatch`.
    return dataset.map(
        lambda batch: tf.nest.map_structure(cut, batch)
    ).unbatch()


def _split_cpu(parts):
    (cpu, *_) = tf.config.list_physical_devices("CPU")
    configured = tf.config.get_logical_device_configuration(cpu)
    if configured is not None and len(configured) == parts:
        return
    try:
        tf.config.set_logical_device_configuration(
            cpu, [tf.config.LogicalDeviceConfiguration()] * parts
        )
    except RuntimeError as error:
        raise ValueError(
            "`distribution.virtual_devices` must be set before TensorFlow "
            f"runs anything. Received: {parts}, after it had started with "
            f"{len(configured or [None])}"
        ) from error
