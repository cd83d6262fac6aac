"""What has to be set before TensorFlow starts."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import lockstep  # noqa: E402, F401  Splits the CPU, for tests of replicas.
