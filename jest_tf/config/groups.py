"""Settings of the data, model, reference, optimizer, logs and devices."""

from dataclasses import dataclass
from typing import Annotated

from jest_tf.config import checks, tables


@dataclass(frozen=True)
class DataConfig(checks.Checked, path="data"):
    """The training examples and their preprocessing.

    Attributes:
        train: paths or globs of shards or tables, a store each (docs/data.md).
        weights: share of each store of `train` in the stream. If empty, a
            store's share follows its size.
        curated: shards of the curated set. Their rows are trained on without
            selection, beside the rows that are chosen from `train`.
        curated_rows: c of the b rows trained on in a step come from `curated`,
            in an order of their own; the others are chosen from `train`.
        manifest: folder of a manifest of `train`, written by `jest-tf curate`.
            Of `train`, only its records are drawn, in proportion to their
            weights. Empty draws all records equally.
        image_field: feature, extension or column of the image. Empty takes the
            format's default.
        caption_fields: features, extensions, `json` fields or columns of the
            captions. Empty takes the format's default.
        noise_field: feature, `json` field or column that is empty, 0 or false
            in clean records: a text, an integer or a boolean. The log and the
            page then show the clean share of the rows that each stage chooses.
            Empty reports no share.
        index_dir: folder of the index files. Empty puts each beside its shard.
        shuffle_block_size: neighbouring records that stay together in the
            shuffled order, so that slow storage, such as a bucket, is read in
            long pieces. None shuffles single records, best on local disks.
        image_size: side in pixels to which images are resized.
        text_length: tokens per caption, truncated or padded.
        vocabulary: a SentencePiece `.model`, a WordPiece `vocab.txt`, the
            `preprocessor.json` of KerasHub in another run, or the
            "module:function" that builds a tokenizer. Empty builds a WordPiece
            vocabulary from the training captions.
        vocabulary_size: tokens in a vocabulary built from the captions.
        flip: mirror half of the training images.
        min_crop_area: smallest area of the random training crop, as a share of
            the image. 1 turns cropping off.
        augment: distortions after flip and crop: the "module:function" that
            builds an augmentation (docs/towers.md). Empty applies none.
    """

    train: tuple[str, ...] = ()
    weights: tuple[float, ...] = ()
    curated: tuple[str, ...] = ()
    curated_rows: Annotated[int, checks.at_least(0)] = 0
    manifest: str = ""
    image_field: str = ""
    caption_fields: tuple[str, ...] = ()
    noise_field: str = ""
    index_dir: str = ""
    shuffle_block_size: checks.Count | None = None
    image_size: checks.ImageSize = 32
    # At least one token and the end mark; 16 in SigLIP's ablations (arXiv
    # 2303.15343, section 4).
    text_length: Annotated[int, checks.within("[2, 65536]")] = 16
    vocabulary: str = ""
    vocabulary_size: Annotated[int, checks.within("[2, 1048576]")] = 8192
    flip: bool = True
    min_crop_area: Annotated[float, checks.within("(0, 1]")] = 1.0
    augment: Annotated[str, checks.FUNCTION] = ""

    def __post_init__(self):
        super().__post_init__()
        weights = self.weights
        self._expect(
            not weights or len(weights) == len(self.train) and min(weights) > 0,
            "`data.weights` must hold a positive number for each store of "
            "`data.train`",
        )
        self._expect(
            not self.curated_rows or bool(self.curated),
            "`data.curated_rows` needs `data.curated`, the shards that these "
            "rows come from",
        )


@dataclass(frozen=True)
class ModelConfig(checks.Checked, path="model"):
    """The learner and its loss.

    Attributes:
        preset: size of the towers: "tiny", "s16", "b32", "b16" or "l16".
        towers: "module:function" that builds custom towers. The module must be
            importable from the working directory. The function takes the
            `TrainConfig` and the vocabulary size, and returns an image and a
            text tower, two Keras layers (see `models.TwoTower`).
        init_from: the model that the learner starts from, named as in
            `reference.model`: its towers, weights, temperature, bias, tokenizer
            and resizing of images. `preset` then has no effect.
            Learned positions are resized to `data.image_size`.
        init_tower: "image_tower" or "text_tower" takes this tower alone from
            `init_from`, with its tokenizer or its images' form. The other
            tower is new, built from `preset` with the same embedding width, and
            so are temperature and bias. Empty takes both.
        train_views: also train in the views of live stages, as Flexi-JEST
            does. The sub-batch is split randomly into equal parts, one of plain
            images and one per view, under one loss.
        dtype_policy: Keras dtype policy of the towers, "float32" or
            "mixed_bfloat16". Embeddings, losses and scores stay float32.
        loss: "sigmoid" (SigLIP), "softmax" (CLIP), or the "module:function"
            that returns a `losses.PairLoss` (docs/towers.md).
        false_negatives: pairs of different rows that the loss leaves out:
            "keep" leaves out none (the paper), "equal_captions" those with the
            same caption. "reference" leaves out these, and those that the
            reference finds at least as similar as both rows' own pairs
            (docs/fine_tuning.md).
        false_negative_margin: cosine by which the reference may find such a
            pair less similar.
        loss_block_size: rows of logits computed at a time. None computes all at
            once.
        micro_batch_size: examples embedded at a time on a replica in training,
            a divisor of its share of b. The gradient is that of the whole
            sub-batch. None embeds all at once.
        frozen: names of variables that are not trained, such as "image_tower"
            for locked-image tuning (LiT); `*` stands for any characters
            (docs/fine_tuning.md).
        lora_rank: rank of LoRA's adapters on the dense layers and convolutions
            of `init_from`, a model of Keras' layers such as KerasHub's, whose
            own weights are then frozen. None trains all weights.
    """

    preset: str = "b16"
    towers: Annotated[str, checks.FUNCTION] = ""
    init_from: Annotated[str, checks.MODEL] = ""
    init_tower: Annotated[
        str, checks.among("", "image_tower", "text_tower")
    ] = ""
    train_views: bool = False
    dtype_policy: Annotated[str, checks.among(*tables.DTYPE_POLICIES)] = (
        "float32"
    )
    loss: tables.Loss = "sigmoid"
    false_negatives: Annotated[str, checks.among(*tables.FALSE_NEGATIVES)] = (
        "keep"
    )
    false_negative_margin: Annotated[float, checks.within("[0, 2]")] = 0.0
    loss_block_size: checks.Count | None = None
    micro_batch_size: checks.Count | None = None
    frozen: tuple[str, ...] = ()
    lora_rank: checks.Count | None = None

    def __post_init__(self):
        super().__post_init__()
        self._expect(
            self.init_from or not self.lora_rank,
            "`model.lora_rank` needs `model.init_from`",
        )
        self._expect(
            not (self.lora_rank and self.init_tower),
            "`model.lora_rank` can't be combined with `model.init_tower`, "
            "whose other tower is new and must be trained whole",
        )
        self._expect(
            tables.FALSE_NEGATIVES[self.false_negatives].needs_reference
            or not self.false_negative_margin,
            "`model.false_negative_margin` needs `model.false_negatives` to be "
            "'reference'",
        )
        self._expect(
            not self.towers or not self.init_from,
            "`model.init_from` and `model.towers` both say what the learner "
            "is: set only one of them",
        )
        self._expect(
            self.init_from or not self.init_tower,
            "`model.init_tower` needs `model.init_from`",
        )
        if not self.towers:
            checks.check(
                "model.preset", self.preset, checks.among(*tables.PRESETS)
            )


@dataclass(frozen=True)
class ReferenceConfig(checks.Checked, path="reference"):
    """The frozen reference model of the learnability score.

    Stages and distillation read its embeddings from sidecars, as written by
    `jest-tf embed`, if a stage is stored, if `sidecar_dir` is set, if the
    reference is renewed, or if there is no `model`. Otherwise the step runs it.

    Attributes:
        model: the reference: a run directory, a `.keras` file with its
            tokenizer beside it, or a public model by name, such as
            "keras_hub:siglip2_base_patch16_224" (docs/models.md). Empty takes
            the sidecars of any model.
        sidecar_dir: folder of the sidecars. Empty looks beside each shard.
        distillation_weight: weight of feature distillation from the reference
            (`losses.feature_distillation`) on every trained row; the
            contrastive loss has weight 1. 0 turns distillation off. Reference
            and learner must have the same embedding width, unless there is a
            `projection`.
        similarity_weight: weight of `losses.similarity_distillation`: the
            reference's similarities within the batch become targets, for
            embeddings of any width. 0 turns it off.
        projection: the width of the reference's embeddings, if the learner's
            differs: for distillation, learned linear maps then project the
            learner's embeddings to this width. Checkpoints have the maps; the
            learner does not. None uses no projection.
        distillation_steps: steps over which both weights fall linearly to 0,
            for a learner that should surpass its reference. None keeps them.
    """

    model: Annotated[str, checks.MODEL] = ""
    sidecar_dir: str = ""
    distillation_weight: Annotated[float, checks.at_least(0)] = 0.0
    similarity_weight: Annotated[float, checks.at_least(0)] = 0.0
    distillation_steps: checks.Count | None = None
    projection: Annotated[int, checks.within("[1, 65536]")] | None = None

    def __post_init__(self):
        super().__post_init__()
        self._expect(
            self.distils or not self.distillation_steps,
            "`reference.distillation_steps` needs "
            "`reference.distillation_weight` or `reference.similarity_weight`",
        )
        self._expect(
            self.distillation_weight or not self.projection,
            "`reference.projection` needs `reference.distillation_weight`",
        )

    @property
    def distils(self) -> bool:
        """True if the learner is distilled from the reference."""
        return self.distillation_weight > 0 or self.similarity_weight > 0


@dataclass(frozen=True)
class OptimizerConfig(checks.Checked, path="optimizer"):
    """The optimizer and its learning rate; AdamW under a cosine by default.

    Attributes:
        name: "adamw", or the "module:function" that builds an optimizer
            (docs/fine_tuning.md). AdamW decays its moments by 0.9 and 0.95 and
            clips gradients to a global norm of 1.
        schedule: the rate after the warm-up: "cosine" to zero at the last step,
            "constant", or the "module:function" that builds a schedule.
        learning_rate: peak rate, at the end of the warm-up.
        warmup_steps: steps of the linear warm-up from zero.
        weight_decay: share of a weight removed per step, times the learning
            rate. Applies to variables whose name ends in `kernel`: not to
            biases, norms, positions, embeddings or temperature. SigLIP 2's
            1e-4, which its code does not multiply by the rate, is 0.1 here.
        layer_decay: factor of the learning rate from each transformer block to
            the block before it, in both towers, as in BEiT. None trains all
            blocks at the same rate.
        ema: decay per step of an exponential moving average of the trained
            weights. Evaluations then measure the average, and the run ends
            with it. It begins with the weights after the first step. None
            keeps no average.
    """

    name: Annotated[str, checks.name_or_function(*tables.OPTIMIZERS)] = "adamw"
    schedule: Annotated[str, checks.name_or_function(*tables.SCHEDULES)] = (
        "cosine"
    )
    # arXiv 2502.14786, section 2.1
    learning_rate: Annotated[float, checks.above(0)] = 1e-3
    warmup_steps: Annotated[int, checks.at_least(0)] = 0
    weight_decay: Annotated[float, checks.at_least(0)] = 0.1
    layer_decay: Annotated[float, checks.within("(0, 1]")] | None = None
    ema: Annotated[float, checks.within("[0, 1)")] | None = None


@dataclass(frozen=True)
class EvaluationStore(checks.Checked, path="evaluation.stores"):
    """A named store to evaluate on, and how (docs/evaluation.md).

    It is measured by retrieval if its records have captions, and by zero-shot
    classification if it has `classes` or labels.

    Attributes:
        name: names its measures. Empty names it after its files.
        data: paths or globs of its shards or tables, read like `data.train`.
        captions: the texts of retrieval. "first" takes each record's first
            caption, which is right for all records of its `concept`. "all",
            as CLIP_benchmark, takes every caption, a line each, for its own
            record alone.
        label_field: the field of a record's class.
        classes: file of the classes to choose from: a name per line, or a JSON
            object of names by label. A record then gives the label, the name,
            or the number from 0 of its class. Empty takes the labels as names.
        templates: file of zero-shot templates, one per line, each with one
            "{}" or "{c}" for the class name. Empty takes the name alone.
    """

    name: str = ""
    data: tuple[str, ...] = ()
    captions: Annotated[str, checks.among("first", "all")] = "first"
    label_field: str = "label"
    classes: str = ""
    templates: str = ""


@dataclass(frozen=True)
class EvaluationConfig(checks.Checked, path="evaluation"):
    """Evaluation during training, and logging.

    Attributes:
        data: paths or globs of shards or tables to evaluate on, read like
            `data.train`. Each is a store, named after its files, with the
            defaults of `stores`.
        stores: further stores, with settings of their own.
        every_steps: steps between evaluations. None evaluates at the start
            (with `model.init_from`), at each renewal, and at the end.
        log_every_steps: steps averaged in a line of the log.
        log_ids: also log the ids of the draws, in `draws.jsonl`.
    """

    data: tuple[str, ...] = ()
    stores: tuple[EvaluationStore, ...] = ()
    every_steps: checks.Count | None = None
    log_every_steps: checks.Count = 10
    log_ids: bool = False

    def __post_init__(self):
        super().__post_init__()
        for setting, store in self.named:
            checks.check(
                setting, store.data, ("one or more paths or globs", bool)
            )

    @property
    def named(self) -> list[tuple[str, EvaluationStore]]:
        """All stores, those of `data` too, each with the setting it is from."""
        return [
            *(
                ("evaluation.data", EvaluationStore(data=(x,)))
                for x in self.data
            ),
            *(
                (f"evaluation.stores.{number}.data", store)
                for number, store in enumerate(self.stores)
            ),
        ]


@dataclass(frozen=True)
class CheckpointConfig(checks.Checked, path="checkpoint"):
    """Checkpoints of a run.

    Attributes:
        every_steps: steps between checkpoints. The last step is always saved.
    """

    every_steps: checks.Count = 1000


@dataclass(frozen=True)
class DistributionConfig(checks.Checked, path="distribution"):
    """The devices of a run.

    Attributes:
        strategy: "default" (the first device), "mirrored" (all GPUs of this
            machine), "multi_worker_mirrored" (those of all machines in
            TF_CONFIG) or "tpu" (this machine's TPU; on Keras' JAX backend those
            of all hosts of a slice).
        virtual_devices: number of devices to split the CPU into. None does not
            split it.
    """

    strategy: Annotated[str, checks.among(*tables.STRATEGIES)] = "default"
    virtual_devices: Annotated[int, checks.within("[1, 256]")] | None = None

    def __post_init__(self):
        super().__post_init__()
        self._expect(
            not self.virtual_devices
            or tables.STRATEGIES[self.strategy].is_local,
            "`distribution.virtual_devices` splits the CPU for "
            "`distribution.strategy` 'default' or 'mirrored'",
        )


@dataclass(frozen=True)
class BootstrapConfig(checks.Checked, path="bootstrap"):
    """Renewal of the reference: the learner's own embeddings replace it.

    Attributes:
        renew_at: steps, ascending, after which the learner embeds the records
            of `data.train` and becomes the reference of the steps that follow;
            with `optimizer.ema`, by its averaged weights. Empty keeps the first
            reference, that of `reference`. If there is none, stages that need a
            reference begin to score with the first renewal.
        shares: share of the records that each renewal embeds, chosen anew each
            time; only these records are drawn until the next renewal. A single
            share applies to all renewals. A small share costs little, and
            still offers new records to each step; late renewals, which serve
            more steps and have a better learner, are worth a larger share.
        clean_start: train on `data.curated` alone before the first renewal,
            when nothing is chosen yet.
    """

    renew_at: tuple[int, ...] = ()
    shares: Annotated[tuple[float, ...], checks.SHARES] = (1.0,)
    clean_start: bool = False

    def __post_init__(self):
        super().__post_init__()
        self._expect(
            len(self.shares) in (1, len(self.renew_at)),
            "`bootstrap.shares` must be a single share, or a share for each of "
            f"the {len(self.renew_at)} steps of `bootstrap.renew_at`",
        )
        self._expect(
            [*self.renew_at] == sorted({*self.renew_at})
            and min(self.renew_at, default=1) > 0,
            "`bootstrap.renew_at` must be ascending steps from 1 on",
        )
        self._expect(
            not self.clean_start or bool(self.renew_at),
            "`bootstrap.clean_start` ends with the first of "
            "`bootstrap.renew_at`: set both",
        )

    def share(self, step: int) -> float:
        """Returns the share that the renewal after `step` steps embeds."""
        number = self.renew_at.index(step)
        return self.shares[number if len(self.shares) > 1 else 0]

    def num_renewals(self, step: int) -> int:
        """Returns the number of renewals before the step after `step` steps."""
        return sum(renewal <= step for renewal in self.renew_at)
