"""Serve a host of a TPU slice to the process that trains.

Run it on every host of a slice of several hosts, then `jest-tf train` on one of
them, with `distribution.tpu=grpc://HOST:PORT,grpc://HOST:PORT` (docs/tpu.md).
It is TensorFlow's server with the ops of TensorFlow Text, and runs until it is
stopped. Whoever reaches the port may run any TensorFlow code: keep the port
within the slice's network.
"""

import argparse
import signal
import time


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's flags."""
    parser.add_argument(
        "--port",
        type=int,
        default=8470,
        help="port to listen on (default: 8470)",
    )


def run(flags: argparse.Namespace) -> None:
    """Serves until the process is stopped."""
    import tensorflow as tf
    import tensorflow_text  # noqa: F401  (its import registers its ops)

    from jest_tf import distribution

    distribution.bypass_proxy()
    try:
        # The process that trains tells each host its number.
        server = tf.distribute.Server(
            {"worker": [f"0.0.0.0:{flags.port}"]}, "worker", 0
        )
    except tf.errors.OpError as error:
        raise ValueError(
            f"`--port` must be free. Received: {flags.port} ({error.message})"
        ) from error
    print(f"serving at {server.target}", flush=True)
    while True:
        # A run that is served replaces the handler of SIGTERM, and leaves it.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        time.sleep(1)
