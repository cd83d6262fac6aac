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
_PAIRS = 6144
_TRAIN = """trainers.train --trust --config configs/photos.py --workdir {out}
 --set steps={steps} evaluation.data= data.train={work}/pool-*.tfrecord
 data.vocabulary={work}/vocab.txt optimizer.warmup_steps=0
 optimizer.learning_rate=4e-3"""
_EMBED = """trainers.embed --trust --model {work}/teacher
 --data {work}/pool-*.tfrecord --output {out}-sidecars"""
_CURATE = """trainers.curate --trust --workdir {work}/teacher
 --data {work}/pool-*.tfrecord --sidecar-dir {out}-sidecars --output {out}-cut
 --set stage.candidates=3 stage.method=top"""
_DISTIL = f"""{_TRAIN} model.towers=benchmarks.phototext.towers:build_narrow
 reference.sidecar_dir={{out}}-sidecars reference.similarity_weight=1 """
_STAGE = """selection.stages.0.candidates=3
 selection.stages.0.embeddings=stored
 selection.stages.0.criterion=easy_reference"""
_TORCH = "benchmarks.rival_in_torch {work} "
_SIDES = {  # python, then what it runs to embed, to cut and to train
    "PyTorch, cut": (_PEERS, _TORCH, "", f"{_TORCH} {{steps}}"),
    "jest_tf, cut": (
        *(sys.executable, _EMBED, _CURATE),
        _DISTIL + "data.manifest={out}-cut",
    ),
    "jest_tf, stored stage": (sys.executable, _EMBED, "", _DISTIL + _STAGE),
}
_HEADER = (
    *("workflow", "embed, s", "cut, s", "train, s", "whole, s"),
    *("a step, s", "peak, GB"),
)


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
    # Whole epochs of the third.
    steps, rounds = (16, 1) if options.small else (96, 3)
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
    rows = [
        [side, *map(report.spread, zip(*found, strict=True))]
        for side, found in figures.items()
    ]
    data = "photographs" if shard.exists() else "images of noise"
    text = (
        "## The rival's workflow beside PyTorch's\n\n"
        f"    {_COMMAND} --work photos-work\n\n"
        f"{_PAIRS:,} {data}, {steps} steps of b = 256, PhotoText's towers, one "
        f"core, {rounds} rounds in turn. A part is a process, with its start; "
        "PyTorch cuts where it embeds. Lowest / median / highest.\n\n"
        f"{report.table(_HEADER, rows)}\n\n{report.processor()}."
    )
    report.publish(report.page(options), "rival", text, _COMMAND)


def _prepare(work, shard):
    """Writes the pairs, their tokens, and the teacher as a run."""
    import tensorflow as tf

    import jest_tf
    from benchmarks.phototext import towers
    from benchmarks.protocol import records as pairs
    from jest_tf import config
    from jest_tf.data import tokenizers

    def noise(number):
        random = np.random.default_rng(number)
        pixels = random.integers(256, size=(64, 64, 3)).astype(np.uint8)
        captions = (" ".join(f"word{n}" for n in random.integers(999, size=9)),)
        row = pairs.Row(*[""] * 5, captions)
        return pairs.Record(row, number, tf.io.encode_jpeg(pixels).numpy())

    found = pairs.read(shard) if shard.exists() else map(noise, range(_PAIRS))
    records = [
        # With a caption, so that all sides embed as many.
        one._replace(row=one.row._replace(captions=one.row.captions[:1]))
        for one in itertools.islice(found, _PAIRS)
    ]
    pairs.write(work, "pool", records)
    pairs.write_vocabulary(work, records)
    words = tokenizers.load_tokenizer(str(work), 32)
    captions = tf.constant([one.row.captions[0] for one in records])
    np.save(work / "tokens.npy", np.asarray(words(captions), np.int64))
    for number, one in enumerate(records):
        (work / f"{number}.jpg").write_bytes(one.image)
    facts = [words.vocabulary_size]
    for build in (towers.build_full, towers.build_narrow):
        model = jest_tf.TwoTower(*build(config.TrainConfig(), facts[0]))
        model.build({"image": (None, 64, 64, 3), "text": (None, 32)})
        sides = model.image_tower, model.text_tower
        facts.append(sum(side.count_params() for side in sides))
    (work / "towers.json").write_text(json.dumps(facts))
    teacher = _TRAIN.format(work=work, out=work / "teacher", steps=1)
    report.command(*teacher.split())


def _run(side, **names):
    """Figures of a run of a side, as in the header."""
    python, *commands = _SIDES[side]
    seconds, peak, step = [0.0] * len(commands), 0, []
    for part, words in enumerate(commands):
        if not words:
            continue
        begin = time.perf_counter()
        process = subprocess.Popen(
            [python, "-m", *words.format(**names).split()],
            cwd=report.ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )
        step = process.stdout.read().split()[-1:]  # PyTorch's prints it
        _, process.returncode, usage = os.wait4(process.pid, 0)
        if process.returncode:
            raise RuntimeError(f"`{words}` failed in {names}")
        seconds[part] = time.perf_counter() - begin
        peak = max(peak, usage.ru_maxrss / 1e6)
    log = pathlib.Path(names["out"]) / "metrics.jsonl"
    if log.exists():
        rows = map(json.loads, log.read_text().splitlines()[1:])
        step = [row["time/step_seconds"] for row in rows]
    return *seconds, sum(seconds), np.median(np.array(step, float)), peak


if __name__ == "__main__":
    main()
