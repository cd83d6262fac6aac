"""The rival's workflow in PyTorch, with the field's own parts, beside ours.

    python -m benchmarks.bench_rival --work photos-work

A teacher embeds photographs once; a learner of half its width trains on the
third that it matches best, and learns from it. In PyTorch (`rival_in_torch.py`)
transforms and `DistillClipLoss` are open_clip's, and tokens are given. Ours is
`jest-tf embed`, `curate` and `train`, or `embed` and `train` with a stored
stage. A part is a process on one core, and sides take turns. The teacher has
random weights. `make bench-rival` makes `.venv-peers`, which has PyTorch.
"""

import itertools
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

import numpy as np

from benchmarks import report

_COMMAND = "python -m benchmarks.bench_rival"
_PEERS = report.ROOT / ".venv-peers" / "bin" / "python"
_SHARD = "photos/part70/pool-00000-of-00004.tfrecord"
_PAIRS, _STEPS, _ROUNDS = 6144, 96, 3
_ONE_THREAD = dict.fromkeys(
    ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS", "OMP_NUM_THREADS"), "1"
)
_TRAIN = (
    "train --trust --config configs/photos.py --workdir {out} --set evaluation.data="
    " data.train={work}/pool-*.tfrecord data.vocabulary={work}/vocab.txt"
    " optimizer.learning_rate=4e-3 optimizer.warmup_steps=0 steps={steps}"
)
_OURS = {
    "embed": "embed --trust --model {work}/teacher --output {out}-sidecars"
    " --data {work}/pool-*.tfrecord",
    "cut": "curate --trust --workdir {work}/teacher --output {out}-cut"
    " --data {work}/pool-*.tfrecord --sidecar-dir {out}-sidecars"
    " --set stage.candidates=3 stage.method=top",
    "train": _TRAIN + " model.towers=benchmarks.phototext.towers:build_narrow"
    " reference.sidecar_dir={out}-sidecars reference.projection=128"
    " reference.distillation_weight=8",
}
_CUT, _STORED = (
    " data.manifest={out}-cut",
    (
        " selection.stages.0.candidates=3 selection.stages.0.embeddings=stored"
        " selection.stages.0.criterion=easy_reference"
    ),
)
_SIDES = {
    "PyTorch, cut": {"embed": "{work}", "train": "{work} {steps}"},
    "jest_tf, cut": _OURS | {"train": _OURS["train"] + _CUT},
    "jest_tf, stored stage": {
        "embed": _OURS["embed"],
        "train": _OURS["train"] + _STORED,
    },
}


def main(argv=None):
    """Measures all sides in turn, and writes the block."""
    parser = report.parser(_COMMAND, "Times a workflow beside PyTorch's.")
    add = parser.add_argument
    add("--work", type=pathlib.Path, default="photos-work", help="of PhotoText")
    add("--prepare", type=pathlib.Path, help="only write the pairs, here")
    options = parser.parse_args(argv)
    shard = options.work.resolve() / _SHARD
    if options.prepare:
        _prepare(options.prepare, shard)
        return
    if not _PEERS.exists():
        parser.error(f"expected PyTorch at {_PEERS}; run `make bench-rival`")
    steps, rounds = (16, 1) if options.small else (_STEPS, _ROUNDS)
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    figures = {side: [] for side in _SIDES}
    with tempfile.TemporaryDirectory() as work:
        # In a process of its own, as children's peaks begin at the parent's.
        prepare = "--prepare", work, "--work", options.work.resolve()
        report.command("benchmarks.bench_rival", *prepare)
        for number, side in itertools.product(range(rounds), _SIDES):
            report.log(f"round {number + 1} of {rounds}: {side}")
            out = f"{work}/{number}-{len(side)}"
            figures[side].append(_run(side, work=work, out=out, steps=steps))
    header = ["medians", *next(iter(figures.values()))[0]]
    rows = [
        [
            side,
            *(
                f"{np.median([one[name] for one in found]):.3g}"
                for name in header[1:]
            ),
        ]
        for side, found in figures.items()
    ]
    wholes = (
        report.spread([one["whole, s"] for one in found])
        for found in figures.values()
    )
    text = (
        "## The rival's workflow beside PyTorch's\n\n"
        f"    {_COMMAND} --work photos-work\n\n"
        f"{_PAIRS:,} {'photographs' if shard.exists() else 'images of noise'}, "
        f"{steps} steps of b = 256, PhotoText's towers, a core; {rounds} rounds in "
        "turn. Each part is a process, its start included. Lowest / median / "
        f"highest of the whole: {'; '.join(wholes)}.\n\n"
        f"{report.table(header, rows)}\n\n{report.processor()}."
    )
    report.publish(report.page(options), "rival", text, _COMMAND)


def _prepare(work, shard):
    """Writes the pairs, their tokens, and the teacher as a run."""
    import tensorflow as tf

    import jest_tf
    from benchmarks.icontext import full, selection, shards, sources
    from benchmarks.phototext import towers
    from jest_tf import cli, config
    from jest_tf.data import tokenizers

    def noise(number):
        random = np.random.default_rng(number)
        pixels = random.integers(256, size=(64, 64, 3)).astype(np.uint8)
        captions = (" ".join(f"word{n}" for n in random.integers(999, size=9)),)
        row = sources.Row(*[""] * 5, captions, None)
        return selection.Record(row, number, tf.io.encode_jpeg(pixels).numpy())

    found = shards.read(shard) if shard.exists() else map(noise, range(_PAIRS))
    records = [
        # With a caption, so that all sides embed as many.
        one._replace(row=one.row._replace(captions=one.row.captions[:1]))
        for one in itertools.islice(found, _PAIRS)
    ]
    shards.write(work, "pool", records)
    full.write_vocabulary(work, records)
    words = tokenizers.load_tokenizer(str(work), 32)
    captions = tf.constant([one.row.captions[0] for one in records])
    np.save(work / "tokens.npy", np.asarray(words(captions), np.int64))
    for number, one in enumerate(records):
        (work / f"{number}.jpg").write_bytes(one.png)
    facts = [words.vocabulary_size]
    for build in (towers.build_full, towers.build_narrow):
        model = jest_tf.TwoTower(*build(config.TrainConfig(), facts[0]))
        model.build({"image": (None, 64, 64, 3), "text": (None, 32)})
        sides = model.image_tower, model.text_tower
        facts.append(sum(side.count_params() for side in sides))
    (work / "towers.json").write_text(json.dumps(facts))
    cli.main(_TRAIN.format(work=work, out=work / "teacher", steps=1).split())


def _run(side, **names):
    """The figures of a run of a side, by heading."""
    figures, peak = {"embed, s": 0, "cut, s": 0, "train, s": 0}, 0
    for part, words in _SIDES[side].items():
        start = [pathlib.Path(sys.executable).with_name("jest-tf")]
        if side.startswith("PyTorch"):
            start = [_PEERS, "-m", "benchmarks.rival_in_torch"]
        begin = time.perf_counter()
        process = subprocess.Popen(
            [*start, *words.format(**names).split()],
            cwd=report.ROOT,
            env=os.environ | _ONE_THREAD | {"PYTHONPATH": str(report.ROOT)},
            stdout=subprocess.PIPE,
            text=True,
        )
        printed = process.stdout.read().split()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise RuntimeError(f"`{part}` of {side} failed: {printed}")
        figures[f"{part}, s"] = time.perf_counter() - begin
        peak = max(peak, usage.ru_maxrss)
    log = pathlib.Path(names["out"]) / "metrics.jsonl"
    step = printed[-1:]
    if log.exists():
        rows = map(json.loads, log.read_text().splitlines()[1:])
        step = [row["time/step_seconds"] for row in rows]
    return figures | {
        "whole, s": sum(figures.values()),
        "a step, s": float(np.median(np.array(step, float))),
        "peak memory, MB": peak / 1e3,
    }


if __name__ == "__main__":
    main()
