"""Settings that must be made before TensorFlow starts."""

import gc
import os
import tempfile

import pytest

gc.disable()
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# Of TensorFlow's gs://, which tests use on a fake bucket: retries at once (any
# other delay adds up to a second at random), and small requests.
os.environ.setdefault("GCS_RETRY_CONFIG_INIT_DELAY_TIME_US", "0")
os.environ.setdefault("GCS_READAHEAD_BUFFER_SIZE_BYTES", str(2**17))

ON_JAX = os.environ.get("KERAS_BACKEND") == "jax"
if ON_JAX:
    # Most programs run once, and take XLA longer to optimise than to run.
    os.environ["XLA_FLAGS"] = (
        "--xla_force_host_platform_device_count=4 "
        "--xla_backend_optimization_level=0 "
        "--xla_llvm_disable_expensive_passes=true"
    )
    # Several tests, and the processes that they start, compile the same step.
    cache = tempfile.TemporaryDirectory(prefix="jax-cache-")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = cache.name
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
else:
    collect_ignore = ["on_jax"]

import lockstep  # noqa: E402, F401  Splits the CPU, for tests of replicas.

# Classes of slow tests that take minutes, the longest first.
LONGEST = (
    *("PagesTest", "RunsTest", "QuickstartTest", "BucketResumeTest"),
    *("BucketTest", "WorkersTest", "HostsTest", "ResumeTest", "GuideTest"),
    "FunnelResumeTest",
)


def pytest_collection_modifyitems(items):
    """Puts the longest classes first, so that no process ends alone with them.

    A method of `tf.test.TestCase` is left out: bases then set up nothing.
    On JAX, tests of what TensorFlow alone does are skipped.
    """
    order = {name: place for place, name in enumerate(LONGEST)}
    items[:] = sorted(
        (item for item in items if item.name != "test_session"),
        key=lambda item: order.get(
            getattr(item.cls, "__name__", ""), len(order)
        ),
    )
    if ON_JAX:
        on_tensorflow = pytest.mark.skip(reason="of what TensorFlow alone does")
        for item in items:
            if item.get_closest_marker("tensorflow"):
                item.add_marker(on_tensorflow)


def pytest_collection_finish():
    """Spares the garbage collector what TensorFlow's import has made."""
    gc.enable()
    gc.freeze()
