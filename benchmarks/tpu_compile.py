"""JEST's training step through the TPU compiler, without a TPU.

    python -m benchmarks.tpu_compile
    python -m benchmarks.tpu_compile --backends jax --only jest_l16

Compiles the step that `fit` makes, on both of Keras' backends, by libtpu for
slices that are only described: small twins of all recipes, and the paper's at
full size. The tables show planned memory, donated variables, collectives, and
operations that no TPU should get. Nothing runs, so they say nothing about speed
or numbers.

`make tpu-compile` builds the environment, from requirements-tpu-compile.txt.
Each finished case is a line of results/tpu_compile.jsonl and is skipped from
then on, unless `--again` is given or its settings have changed. The tables in
docs/tpu.md and benchmarks/tpu/README.md are written from all lines. On 2 cores
a twin takes half a minute, a case at full size two to ten minutes.
"""

import argparse
import os
import pathlib

# TensorFlow only traces and exports; JAX loads libtpu later, which must not ask
# the cloud for the kind of the machine: that takes minutes of retries.
ENVIRONMENT = {
    "TPU_LOAD_LIBRARY": "0",
    "TPU_SKIP_MDS_QUERY": "1",
    # Nothing runs, so a lock that another process left does not matter.
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "JAX_PLATFORMS": "cpu",
    "CUDA_VISIBLE_DEVICES": "",
    "KERAS_BACKEND": "tensorflow",
    "TF_CPP_MIN_LOG_LEVEL": "3",
}
BACKENDS = ("tensorflow", "jax")
TOPOLOGIES = ("v5e:2x2", "v6e:2x2")
_ROOT = pathlib.Path(__file__).resolve().parents[1]


def main(argv: list[str] | None = None) -> None:
    """Compiles what is not yet in the results, then writes the tables."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.tpu_compile",
        description="Compiles JEST's training step for TPUs.",
    )
    parser.add_argument(
        "--backends", nargs="+", choices=BACKENDS, default=BACKENDS
    )
    parser.add_argument(
        "--topologies",
        nargs="+",
        default=TOPOLOGIES,
        help="the first is for all cases, others for those at full size",
    )
    parser.add_argument(
        "--only", default="", help="cases whose name holds this"
    )
    parser.add_argument(
        "--full-size", action="store_true", help="only the cases at full size"
    )
    parser.add_argument(
        "--again", action="store_true", help="also those that are done"
    )
    parser.add_argument(
        "--minutes", type=float, default=30.0, help="limit of a case"
    )
    parser.add_argument(
        "--results",
        type=pathlib.Path,
        default=_ROOT / "benchmarks" / "results" / "tpu_compile.jsonl",
        help="file of lines, read and appended to",
    )
    options = parser.parse_args(argv)
    os.environ.update(ENVIRONMENT)
    # Imported here, as TensorFlow reads the environment when it is imported.
    from benchmarks.tpu import matrix

    matrix.run(**vars(options))


if __name__ == "__main__":
    main()
