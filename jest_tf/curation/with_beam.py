"""Curation by score on many machines, with Apache Beam."""

import functools
from collections.abc import Sequence

from jest_tf import config as config_lib
from jest_tf.curation import by_score
from jest_tf.curation import models as models_lib
from jest_tf.data import stores
from jest_tf.data.stores import manifest, shards


def curate_with_beam(
    data: config_lib.DataConfig,
    directory: str,
    chosen_by: by_score.Choice,
    models: Sequence[models_lib.Model],
    *,
    options: Sequence[str] = (),
    overwrite: bool = False,
) -> manifest.Manifest:
    """Writes the manifest of a store, a shard at a time on Beam's workers.

    Workers use the same paths for shards, runs and the manifest. A worker
    writes missing sidecars into `Model.sidecar_dir`, which need not be shared.

    Args:
        data: settings of the store.
        directory: of the manifest; may be remote.
        chosen_by: how records are chosen.
        models: the reference, and the learner if the criterion needs it.
        options: Beam's flags, such as `--runner=DataflowRunner`.
        overwrite: write all files anew.

    Raises:
        ValueError: as `curate`; a flag is unknown; or Beam, or a package that
            its runner needs, is not installed.
    """
    beam, flags = _beam_options(options)
    chosen_by = by_score.for_models(chosen_by, models)
    _opened.cache_clear()  # an earlier pipeline's, in this process
    store = stores.open_stores(data)
    manifest.check_distinct(store)
    made_by = by_score.describe(
        chosen_by, [model.description(store) for model in models]
    )
    work = functools.partial(
        _work, data, directory, made_by, chosen_by, tuple(models), overwrite
    )
    try:
        with beam.Pipeline(options=flags) as pipeline:
            _ = (
                pipeline
                | "Shards" >> beam.Create(range(len(store.shards.paths)))
                | "Spread" >> beam.Reshuffle()
                | "Choose" >> beam.Map(work)
            )
    except ImportError as error:
        # A runner's packages are imported when it is made or started.
        raise ValueError(
            "Apache Beam must be installed with what its runner needs, as "
            "apache-beam[gcp] for Dataflow. Received: "
            f"{shards.one_line(error)}"
        ) from error
    return manifest.finish(store, directory, made_by, {})


def _work(data, *arguments):
    by_score.write_shard(_opened(data), *arguments)


@functools.lru_cache(maxsize=1)
def _opened(data):
    return stores.open_stores(data)


def _beam_options(options):
    try:
        import apache_beam as beam
        from apache_beam.options import pipeline_options
    except ImportError as error:
        raise ValueError(
            "`beam` needs Apache Beam: pip install apache-beam. "
            f"Received: {shards.one_line(error)}"
        ) from error
    flags = pipeline_options.PipelineOptions(list(options))
    # Beam ignores unknown flags, and only here hands out the parser of all
    # its options.
    parsers: list = []
    flags.get_all_options(add_extra_args_fn=parsers.append)
    unknown = parsers[0].parse_known_args(list(options))[1]
    if unknown:
        raise ValueError(
            "Flags must be of this command or of Apache Beam. Received: "
            f"{' '.join(unknown)}"
        )
    return beam, flags
