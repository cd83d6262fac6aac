"""IconText's emoji art: a stored stage with distillation.

    jest-tf train --config configs/icontext_best.py \
        --workdir icontext-work/runs/best

First build the data with `make icontext-data`. Then train the reference on the
curated set and the pool, half each: this recipe with `--set steps=1500
selection.stages=none reference.distillation_weight=0
'data.train=icontext-work/data/reference-*.tfrecord,icontext-work/data/pool-*.tfrecord'
data.weights=1,1 data.flip=true data.min_crop_area=0.6
optimizer.learning_rate=2e-3 optimizer.warmup_steps=100`, and write its sidecars
with `jest-tf embed --model icontext-work/runs/reference --data
'icontext-work/data/pool-*.tfrecord'`. Validation is better with a reference
twice as wide, `model.towers=benchmarks.icontext.towers:build_wide`. To surpass
the reference, train the learner longer: `--set steps=3000
reference.distillation_steps=750 selection.stages.0.uniform_share=0.5`.
docs/recipes.md says when this recipe pays.
"""

from jest_tf import config as config_lib

DATA = "icontext-work/data"


def config() -> config_lib.TrainConfig:
    """A stored stage chooses 256 of 6,400; the reference is distilled.

    The learner scores nothing: a step takes 5 % more FLOPs than a uniform step.
    """
    return config_lib.TrainConfig(
        steps=380,  # a thirteenth of the uniform learner's
        data=config_lib.DataConfig(
            train=(f"{DATA}/pool-*.tfrecord",),
            # All runs share a vocabulary, so they differ in the method only.
            vocabulary=f"{DATA}/vocab.txt",
            image_size=32,
            text_length=16,
            flip=False,
        ),
        # Emoji art of different styles has the same captions.
        model=config_lib.ModelConfig(
            towers="benchmarks.icontext.towers:build",
            loss="softmax",
            equal_captions="ignore",
        ),
        reference=config_lib.ReferenceConfig(distillation_weight=16.0),
        selection=config_lib.SelectionConfig(
            batch_size=256,
            stages=(
                config_lib.Stage(
                    candidates=25,
                    embeddings="stored",
                    criterion="easy_reference",
                    captions="drawn",
                ),
            ),
        ),
        # Distillation bears a higher learning rate.
        optimizer=config_lib.OptimizerConfig(
            learning_rate=8e-3, warmup_steps=30, weight_decay=0.05
        ),
        evaluation=config_lib.EvaluationConfig(
            data=(
                f"{DATA}/val_concept-*.tfrecord",
                f"{DATA}/test_concept-*.tfrecord",
                f"{DATA}/test_style-*.tfrecord",
            ),
            every_steps=100,
            prompts=("{}", "{} icon", "a picture of {}"),
            log_ids=True,
        ),
    )
