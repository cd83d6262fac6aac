"""Every setting of a run, as frozen dataclasses, and the recipes that set them.

A recipe is a Python file with a function `config()` that returns a
`TrainConfig`; a variant is `dataclasses.replace` of another recipe, so the diff
of two recipes is the method. Settings that do not fit together are refused
here, before any data is read. Nothing here imports TensorFlow.
"""

import dataclasses
import importlib.util
import json
import math
import os
import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

SAMPLERS = ("uniform", "joint", "independent", "top")
CRITERIA = ("learnability", "easy_reference", "hard_learner")
LOSSES = ("sigmoid", "softmax")
FIRST_CHUNKS = ("diagonal", "uniform")
EQUAL_CAPTIONS = ("negative", "positive", "ignore")
DTYPE_POLICIES = ("float32", "mixed_bfloat16")
STRATEGIES = ("default",)


@dataclass(frozen=True)
class DataConfig:
    """What is drawn, and how an example becomes numbers.

    Attributes:
        train: paths or globs of TFRecord shards with `image` and `caption`.
        super_batch_size: B, examples drawn a step.
        image_size: pixels a side; other pictures are resized to it.
        text_length: tokens a caption, cut or padded.
        vocabulary: a SentencePiece `.model`, a WordPiece `vocab.txt`, or ""
            to build a WordPiece vocabulary from the training captions.
        vocabulary_size: words of a vocabulary that is built.
        flip: mirror half of the trained images.
        min_crop_area: a trained image is a random crop of at least this share
            of the picture; 1 does not crop.
    """

    train: tuple[str, ...] = ()
    super_batch_size: int = 1280
    image_size: int = 32
    text_length: int = 16  # SigLIP's ablation setting (arXiv 2303.15343, 4)
    vocabulary: str = ""
    vocabulary_size: int = 8192
    flip: bool = True
    min_crop_area: float = 1.0

    def __post_init__(self):
        _check_types(self, "data")
        _check_at_least(self, "data", 1, "super_batch_size", "image_size")
        # A caption is at least one token and the end mark.
        _check_at_least(self, "data", 2, "text_length", "vocabulary_size")
        if not 0.0 < self.min_crop_area <= 1.0:
            raise ValueError(
                "`data.min_crop_area` must be in (0, 1]. "
                f"Received: {self.min_crop_area}"
            )


@dataclass(frozen=True)
class ModelConfig:
    """The learner and its loss.

    Attributes:
        preset: size of the towers, a name in `models.PRESETS`.
        patch_size: pixels a side of an image patch; None is the preset's.
        dtype_policy: Keras dtype policy of the towers; the embeddings, losses
            and scores are float32 under any.
        loss: "sigmoid" (SigLIP) or "softmax" (CLIP).
        equal_captions: what two different rows with the same caption are to
            each other: "negative" (the paper), "positive" or "ignore".
        loss_block_size: rows of the loss's logits held at a time; None all.
        temperature: initial scale t of the logits, learned in log space.
        bias: initial bias of the logits.
    """

    preset: str = "b16"
    patch_size: int | None = None
    dtype_policy: str = "float32"
    loss: str = "sigmoid"
    equal_captions: str = "negative"
    loss_block_size: int | None = None
    temperature: float = 10.0  # arXiv 2303.15343, algorithm 1
    bias: float = -10.0

    def __post_init__(self):
        _check_types(self, "model")
        _check_one_of(self, "model", "dtype_policy", DTYPE_POLICIES)
        _check_one_of(self, "model", "loss", LOSSES)
        _check_one_of(self, "model", "equal_captions", EQUAL_CAPTIONS)
        _check_at_least(self, "model", 1, "patch_size", "loss_block_size")
        if not self.temperature > 0.0:
            raise ValueError(
                f"`model.temperature` must be > 0. Received: {self.temperature}"
            )


@dataclass(frozen=True)
class ReferenceConfig:
    """The frozen model that says which examples are worth learning.

    Attributes:
        workdir: the run directory that trained it; "" is no reference.
    """

    workdir: str = ""

    def __post_init__(self):
        _check_types(self, "reference")


@dataclass(frozen=True)
class SelectionConfig:
    """How the sub-batch is chosen from the super-batch.

    Attributes:
        method: "joint" (the paper's), "independent", "top", or "uniform",
            which scores nothing.
        batch_size: b, examples trained a step; None trains on the whole
            super-batch, with nothing scored.
        num_chunks: N, chunks that a joint draw is made in.
        criterion: "learnability", "easy_reference" or "hard_learner".
        loss: pair loss of the scores, "sigmoid" or "softmax"; None is the
            loss that the model is trained with.
        first_chunk: "diagonal" or "uniform", see `selection.select_jointly`.
        gain: multiplies every score; 0 is uniform.
        scoring_batch_size: examples a forward pass while scoring; must divide
            B. None scores the super-batch at once.
    """

    method: str = "uniform"
    batch_size: int | None = None
    num_chunks: int = 16  # arXiv 2406.17711, algorithm 1
    criterion: str = "learnability"
    loss: str | None = None
    first_chunk: str = "diagonal"
    gain: float = 1.0
    scoring_batch_size: int | None = None

    def __post_init__(self):
        _check_types(self, "selection")
        _check_one_of(self, "selection", "method", SAMPLERS)
        _check_one_of(self, "selection", "criterion", CRITERIA)
        _check_one_of(self, "selection", "loss", (*LOSSES, None))
        _check_one_of(self, "selection", "first_chunk", FIRST_CHUNKS)
        _check_at_least(self, "selection", 1, "batch_size", "num_chunks")
        _check_at_least(self, "selection", 1, "scoring_batch_size")
        if self.batch_size and self.method == "joint":
            if self.num_chunks > self.batch_size:
                raise ValueError(
                    "`selection.num_chunks` must be at most "
                    "`selection.batch_size`, so that every chunk draws a row. "
                    f"Received: num_chunks={self.num_chunks}, "
                    f"batch_size={self.batch_size}"
                )

    @property
    def scores(self) -> bool:
        """Whether rows are scored before they are drawn."""
        return self.batch_size is not None and self.method != "uniform"

    @property
    def needs_reference(self) -> bool:
        """Whether the scores are made with a reference."""
        return self.scores and self.criterion != "hard_learner"

    @property
    def needs_learner(self) -> bool:
        """Whether the scores are made with the learner."""
        return self.scores and self.criterion != "easy_reference"

    def check_super_batch(self, size: int) -> None:
        """Raises ValueError unless a super-batch of `size` rows will do."""
        if self.batch_size is None:
            return
        if self.batch_size > size:
            raise ValueError(
                "`selection.batch_size` (b) must be at most the super-batch, "
                f"`data.super_batch_size` (B). Received: b={self.batch_size}, "
                f"B={size}"
            )
        if size % (self.scoring_batch_size or size):
            raise ValueError(
                "`selection.scoring_batch_size` must divide the super-batch, "
                f"`data.super_batch_size`. Received: {self.scoring_batch_size}"
                f", B={size}"
            )


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with linear warm-up and a cosine to zero.

    Attributes:
        learning_rate: at the end of the warm-up.
        warmup_steps: steps from zero to it.
        weight_decay: decoupled; matrices only, not biases, norms, embeddings'
            positions, temperature or bias.
        beta_1: decay of the first moment.
        beta_2: decay of the second moment.
        clip_norm: global norm that the gradient is clipped to; None does not.
    """

    learning_rate: float = 1e-3  # arXiv 2502.14786, 2.1
    warmup_steps: int = 0
    weight_decay: float = 1e-4
    beta_1: float = 0.9
    beta_2: float = 0.95  # for stability at large b, arXiv 2303.15343, 4.7
    clip_norm: float | None = 1.0

    def __post_init__(self):
        _check_types(self, "optimizer")
        _check_at_least(self, "optimizer", 0, "warmup_steps", "weight_decay")
        for name in ("learning_rate", "clip_norm"):
            value = getattr(self, name)
            if value is not None and not value > 0.0:
                raise ValueError(
                    f"`optimizer.{name}` must be > 0. Received: {value}"
                )
        for name in ("beta_1", "beta_2"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ValueError(
                    f"`optimizer.{name}` must be in [0, 1). "
                    f"Received: {getattr(self, name)}"
                )


@dataclass(frozen=True)
class EvaluationConfig:
    """What is measured on the way, and what is written down.

    Attributes:
        data: paths or globs of TFRecord shards to evaluate on, each a set of
            its own, named after its files.
        every_steps: steps from one evaluation to the next; None evaluates
            only at the end.
        batch_size: examples a forward pass.
        prompts: templates with one "{}" for the class name, zero-shot.
        log_every_steps: steps that one line of the log averages over.
        log_ids: also write down the ids of the logged draws, `draws.jsonl`.
    """

    data: tuple[str, ...] = ()
    every_steps: int | None = None
    batch_size: int = 256
    prompts: tuple[str, ...] = ("{}",)
    log_every_steps: int = 10
    log_ids: bool = False

    def __post_init__(self):
        _check_types(self, "evaluation")
        _check_at_least(
            self,
            "evaluation",
            1,
            "every_steps",
            "batch_size",
            "log_every_steps",
        )
        for prompt in self.prompts:
            if prompt.count("{}") != 1:
                raise ValueError(
                    '`evaluation.prompts` must each hold one "{}". '
                    f"Received: {prompt!r}"
                )


@dataclass(frozen=True)
class CheckpointConfig:
    """When the state of a run is saved.

    Attributes:
        every_steps: steps from one checkpoint to the next; the last step is
            always saved.
        keep: checkpoints that are kept, the newest.
    """

    every_steps: int = 1000
    keep: int = 3

    def __post_init__(self):
        _check_types(self, "checkpoint")
        _check_at_least(self, "checkpoint", 1, "every_steps", "keep")


@dataclass(frozen=True)
class DistributionConfig:
    """Where it runs.

    Attributes:
        strategy: "default", the one device that TensorFlow picks.
    """

    strategy: str = "default"

    def __post_init__(self):
        _check_types(self, "distribution")
        _check_one_of(self, "distribution", "strategy", STRATEGIES)


@dataclass(frozen=True)
class TrainConfig:
    """A run.

    Attributes:
        seed: of initial weights, data order, augmentation and draws; together
            with the step it is the only source of randomness.
        steps: optimizer steps.
        data: see `DataConfig`; the others likewise.
    """

    seed: int = 0
    steps: int = 1000
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    reference: ReferenceConfig = field(default_factory=ReferenceConfig)
    selection: SelectionConfig = field(default_factory=SelectionConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    distribution: DistributionConfig = field(default_factory=DistributionConfig)

    def __post_init__(self):
        _check_types(self, "")
        _check_at_least(self, "", 1, "steps")
        if not 0 <= self.seed < 2**31:
            raise ValueError(
                f"`seed` must be in [0, 2^31). Received: {self.seed}"
            )
        self.selection.check_super_batch(self.data.super_batch_size)
        if self.selection.needs_reference and not self.reference.workdir:
            raise ValueError(
                f"`selection.criterion={self.selection.criterion!r}` needs a "
                "reference: set `reference.workdir` to the run directory that "
                "trained it, or take criterion 'hard_learner'. Received: "
                "reference.workdir=''"
            )
        if self.optimizer.warmup_steps >= self.steps:
            raise ValueError(
                "`optimizer.warmup_steps` must be less than `steps`. Received: "
                f"{self.optimizer.warmup_steps}, steps={self.steps}"
            )

    @property
    def batch_size(self) -> int:
        """Examples trained a step, b."""
        return self.selection.batch_size or self.data.super_batch_size


def load_config(path: str, overrides: Sequence[str] = ()) -> TrainConfig:
    """Reads a recipe, or the `config.json` of a run, and overrides settings.

    Args:
        path: a Python file with a function `config() -> TrainConfig`, or a
            `.json` file that `save_config` wrote.
        overrides: "a.b=c" each, e.g. "selection.batch_size=64". Lists are
            separated by commas; "none" unsets a setting that may be unset. All
            are applied before the result is checked.

    Returns:
        The resolved, checked `TrainConfig`.

    Raises:
        ValueError: on a file that is no recipe, a field that does not exist, or
            a value that does not fit.
    """
    path = os.fspath(path)
    if not os.path.isfile(path):
        raise ValueError(f"No recipe at {path!r}: expected a .py or .json file")
    if path.endswith(".json"):
        values = _read_json(path)
    else:
        values = dataclasses.asdict(_run_recipe(path))
    for override in overrides:
        _override(values, override)
    return _build(TrainConfig, values, "")


def save_config(config: TrainConfig, path: str) -> None:
    """Writes `config` as JSON that `load_config` reads back equal."""
    with open(path, "w", encoding="utf-8") as file:
        json.dump(dataclasses.asdict(config), file, indent=2)
        file.write("\n")


def _read_json(path):
    with open(path, encoding="utf-8") as file:
        try:
            values = json.load(file)
        except ValueError as error:
            raise ValueError(f"{path!r} is no JSON file: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(
            f"{path!r} must hold an object of settings. "
            f"Received: {type(values).__name__}"
        )
    return values


def _run_recipe(path):
    spec = importlib.util.spec_from_file_location("recipe", path)
    module = importlib.util.module_from_spec(spec) if spec else None
    if module is None:
        raise ValueError(f"{path!r} is no recipe: expected a .py file")
    spec.loader.exec_module(module)
    config = getattr(module, "config", None)
    if not callable(config):
        raise ValueError(
            f"{path!r} is no recipe: expected a function `config()` that "
            "returns a TrainConfig"
        )
    config = config()
    if not isinstance(config, TrainConfig):
        raise ValueError(
            f"`config()` of {path!r} must return a TrainConfig. "
            f"Received: {type(config).__name__}"
        )
    return config


def _override(values, override):
    """Sets one "a.b=c" in the nested dict `values`."""
    name, separator, text = override.partition("=")
    name = name.strip()
    if not separator:
        raise ValueError(
            f'An override must read "a.b=c". Received: {override!r}'
        )
    *parents, last = name.split(".")
    owner = TrainConfig
    for parent in parents:
        owner = _field_type(owner, parent, name)
        values = values.setdefault(parent, {})
    values[last] = _parse(_field_type(owner, last, name), name, text.strip())


def _field_type(owner, name, path):
    if not dataclasses.is_dataclass(owner):
        raise ValueError(f"No setting `{path}`: nothing lies below that field")
    hints = typing.get_type_hints(owner)
    if name not in hints:
        raise ValueError(
            f"No setting `{path}`. Fields of {owner.__name__}: "
            f"{', '.join(hints)}"
        )
    return hints[name]


def _parse(kind, name, text):
    """The value that `text` spells, of the type annotation `kind`."""
    if dataclasses.is_dataclass(kind):
        raise ValueError(
            f"`{name}` is a group of settings; set one of its fields: "
            f"{', '.join(f.name for f in dataclasses.fields(kind))}"
        )
    options = _options(kind)
    if type(None) in options and text.lower() == "none":
        return None
    kind = options[0]
    try:
        if kind is bool:
            return {"true": True, "false": False}[text.lower()]
        if kind in (int, float):
            return kind(text)
    except (KeyError, ValueError):
        raise ValueError(
            f"`{name}` must be of type {_type_name(kind)}. Received: {text!r}"
        ) from None
    if typing.get_origin(kind) is tuple:
        return tuple(part.strip() for part in text.split(",") if part.strip())
    return text


def _build(kind, values, path):
    """A config dataclass from nested dicts, every field known and typed."""
    hints = typing.get_type_hints(kind)
    unknown = set(values) - set(hints)
    if unknown:
        raise ValueError(
            f"No setting `{path}{min(unknown)}`. Fields of {kind.__name__}: "
            f"{', '.join(hints)}"
        )
    arguments = {}
    for name, value in values.items():
        hint = hints[name]
        if dataclasses.is_dataclass(hint):
            if not isinstance(value, dict):
                raise ValueError(
                    f"`{path}{name}` is a group of settings. "
                    f"Received: {value!r}"
                )
            value = _build(hint, value, f"{path}{name}.")
        elif isinstance(value, list):  # JSON has no tuples
            value = tuple(value)
        arguments[name] = value
    return kind(**arguments)


def _check_types(config, path):
    """Refuses a value that is not of the annotated type, or not finite."""
    for name, kind in typing.get_type_hints(type(config)).items():
        value = getattr(config, name)
        if not any(_is_a(value, option) for option in _options(kind)):
            raise ValueError(
                f"`{_join(path, name)}` must be of type {_type_name(kind)}. "
                f"Received: {value!r}"
            )
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(
                f"`{_join(path, name)}` must be finite. Received: {value}"
            )


def _is_a(value: Any, kind) -> bool:
    if typing.get_origin(kind) is tuple:
        return isinstance(value, tuple) and all(
            isinstance(part, typing.get_args(kind)[0]) for part in value
        )
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, kind)


def _options(kind):
    is_union = typing.get_origin(kind) in (types.UnionType, typing.Union)
    return typing.get_args(kind) if is_union else (kind,)


def _type_name(kind):
    return kind.__name__ if isinstance(kind, type) else str(kind)


def _check_one_of(config, path, name, allowed):
    value = getattr(config, name)
    if value not in allowed:
        raise ValueError(
            f"`{_join(path, name)}` must be one of {allowed}. "
            f"Received: {value!r}"
        )


def _check_at_least(config, path, least, *names):
    for name in names:
        value = getattr(config, name)
        if value is not None and not value >= least:
            raise ValueError(
                f"`{_join(path, name)}` must be at least {least}. "
                f"Received: {value}"
            )


def _join(path, name):
    return f"{path}.{name}" if path else name
