"""The models that curation chooses by: finished runs, or sidecars alone."""

import functools
from collections.abc import Callable
from typing import NamedTuple

from jest_tf import files
from jest_tf.data import sidecars as sidecars_lib
from jest_tf.data import stores
from jest_tf.data.sidecars import embed, file_format
from jest_tf.models import reference
from jest_tf.runs import directory as directory_lib
from jest_tf.runs import loading


class Model(NamedTuple):
    """The origin of a model's embeddings.

    Attributes:
        workdir: directory of its run, finished unless there is a `step`; ""
            accepts sidecars of any model.
        sidecar_dir: folder of its sidecars; "" is beside each shard.
        step: step of the checkpoint to load; None is the end of the run.
    """

    workdir: str = ""
    sidecar_dir: str = ""
    step: int | None = None

    def loss(self) -> str | None:
        """Returns the pair loss of its run, or None without a run.

        Raises:
            ValueError: there is no such run.
        """
        if not self.workdir:
            return None
        return self._load()[0].loss

    def sidecars(
        self,
        store: stores.Store,
        progress: Callable[[int, int], None] | None = None,
    ) -> sidecars_lib.Sidecars:
        """Opens the sidecars of a store, writing those that are missing.

        Raises:
            ValueError: as in `embed.write` and `sidecars.Sidecars`.
        """
        if not self.workdir:
            return sidecars_lib.Sidecars(store, self.sidecar_dir)
        run, description = self._load()
        embed.write(
            store,
            reference.encoder(run),
            description,
            embed.Output(
                self.sidecar_dir,
                _dtype(store, self.sidecar_dir),
                progress=progress,
            ),
            image_size=run.picture,
        )
        return sidecars_lib.Sidecars(store, self.sidecar_dir, description)

    def _load(self):
        path = directory_lib.path(self.workdir, directory_lib.WEIGHTS_FILE)
        # The time of writing tells a run from a later run in its directory.
        written = files.stat(path)[1] if files.is_file(path) else 0
        return _loaded(self.workdir, self.step, written)


@functools.lru_cache(maxsize=2)
def _loaded(workdir, step, written):
    del written
    run = loading.load(workdir, step)
    return run, reference.describe(run)


def _dtype(store, directory):
    for shard in range(len(store.shards.paths)):
        path = sidecars_lib.sidecar_path(store, shard, directory)
        if files.is_file(path):
            return file_format.read(path)[0].dtype
    return "float16"
