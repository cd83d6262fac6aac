"""Commands: flags -> config -> library. Run each with `python -m`."""

import gc
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any

# TensorFlow reads these when it is imported. Its start-up notes say nothing to
# the person who waits for a run; errors still show.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")


def run(command: Callable[[], Any]) -> Any:
    """Runs a command; whatever stops it ends the process with a line.

    Returns:
        What the command returns.

    Raises:
        SystemExit: with "error: ..." for a `ValueError`, as a command's own
            `SystemExit` says, and with 1 for any other error, once its
            traceback is shown.
    """
    try:
        return command()
    except ValueError as error:
        code: Any = f"error: {error}"
    except SystemExit as stopped:
        code = stopped.code
    except Exception:
        traceback.print_exc()
        code = 1
    # An error holds the frames that it came through, and with them iterators
    # of tf.data, whose threads keep a process from ever ending that shuts down
    # around them. Out of its handler the error is gone.
    gc.collect()
    sys.exit(code)
