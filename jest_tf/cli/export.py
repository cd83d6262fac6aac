"""Export a trained learner for programs without this package.

A `saved_model` takes encoded images and strings, and runs with TensorFlow and
TensorFlow Text. `onnx` has both towers, which take pixels and tokens.
docs/models.md shows how to load each.
"""

import argparse
import os

from jest_tf.cli import flags as flags_lib
from jest_tf.config import imports

# Functions of (model, path).
FORMATS = {
    "saved_model": "jest_tf.inference.export:saved_model",
    "onnx": "jest_tf.inference.export:onnx",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's flags."""
    add = parser.add_argument
    add(
        "--model",
        required=True,
        help="a finished run's directory, a public model by name "
        "(docs/models.md), or a .keras file",
    )
    add("--format", required=True, choices=FORMATS, help="what is written")
    add("--output", required=True, metavar="PATH", help="the folder to make")
    flags_lib.add_mix(parser)
    flags_lib.add_trust(parser)


def run(flags: argparse.Namespace) -> None:
    """Writes the export and prints where."""
    if os.environ["KERAS_BACKEND"] != "tensorflow":
        # A run's files are the same on both backends.
        print("TensorFlow makes the export: JAX writes neither format")
    os.environ["KERAS_BACKEND"] = "tensorflow"
    from jest_tf import inference
    from jest_tf.runs import loading

    loading.check_model(flags.model, "--model")
    model = inference.load(flags.model, mix=flags.mix)
    write = imports.load_function("--format", FORMATS[flags.format])
    if functions := write(model, flags.output):
        print(f"functions: {', '.join(functions)}")
    print(
        f"{flags.output}: {flags.format} of {flags.model}, embeddings of width "
        f"{model.dim}, scale {model.scale:.3f}, bias {model.bias:.3f}"
    )
