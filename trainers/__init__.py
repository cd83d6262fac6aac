"""Commands: flags -> config -> library. Run each with `python -m`."""

import os

# TensorFlow reads these when it is imported. Its start-up notes say nothing to
# the person who waits for a run; errors still show.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")
