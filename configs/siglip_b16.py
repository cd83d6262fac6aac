"""SigLIP B/16 at the paper's size: the uniform baseline.

    jest-tf train --config configs/siglip_b16.py \
        --workdir runs/siglip_b16 --set 'data.train=data/pool-*.tfrecord'

Hardware: 256 chips of TPU v5p, 128 examples each. Time: 1.7 days, if a chip
reaches 40 % of its 459 TFLOP/s: 6.9e21 FLOPs, three forward passes of 57
GFLOPs per example. NOT RUN BY US: we have neither the data nor the machine.
docs/tpu.md has the commands for several hosts.

Expected, with the paper's 40 billion examples of WebLI (Evans et al. 2024,
arXiv 2406.17711, table 1): ImageNet 10-shot 70.3 and zero-shot 76.7, COCO
recall@1 image to text 65.2 and text to image 47.4.

Vocabulary: SigLIP's, 32,000 SentencePiece tokens of English C4, which Google
publishes as gs://t5-data/vocabs/cc_en.32000/sentencepiece.model; copy it to the
path of `data.vocabulary`. The sizes are those of SigLIP's released model (arXiv
2303.15343), the optimizer is SigLIP 2's (arXiv 2502.14786, section 2.1).
"""

from jest_tf import config as config_lib

# Examples that the SigLIP of table 1 is trained on, in batches of 32,768.
EXAMPLES = 40_000_000_000
BATCH_SIZE = 32_768


def config() -> config_lib.TrainConfig:
    """ViT-B/16 at 256 pixels and a text tower of the same size."""
    return config_lib.TrainConfig(
        steps=EXAMPLES // BATCH_SIZE,
        data=config_lib.DataConfig(
            train=("data/pool-*.tfrecord",),
            # Hosts read blocks of neighbours, not single records.
            shuffle_block_size=64,
            image_size=256,
            text_length=64,
            vocabulary="data/c4_en.model",
            flip=False,  # many images of the web show text
        ),
        model=config_lib.ModelConfig(
            preset="b16", dtype_policy="mixed_bfloat16"
        ),
        optimizer=config_lib.OptimizerConfig(warmup_steps=20_000),
        selection=config_lib.SelectionConfig(BATCH_SIZE),
        evaluation=config_lib.EvaluationConfig(log_every_steps=50),
        distribution=config_lib.DistributionConfig(strategy="tpu"),
    )
