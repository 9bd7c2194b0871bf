"""What a run computes (`Recipe`) and where and how fast it is computed (`Execution`).

A recipe decides the numbers; an execution must not change them beyond the rounding of floating-point sums, but for
`precision`, whose effect docs/paper-map.md has.
Both are frozen and keyword-only, change by `dataclasses.replace`, and check themselves when made. This file
imports neither torch nor Ray, so a job file that only describes a run starts at once.
"""

import dataclasses
import hashlib
import json
import math
import re
import types
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, Self, Union, get_args, get_origin, get_type_hints

Shortcut = Literal["identity", "constant_scaling", "exclusive_gating", "shortcut_only_gating", "conv1x1", "dropout"]
Placement = Literal[
    "original", "bn_after_addition", "relu_before_addition", "relu_only_preactivation", "full_preactivation"
]
MatchClasses = Literal["names", "numbers"]
Decode = Literal["auto", "gpu", "cpu", "pillow"]

# Marks a field that says where something lies, not what is computed: it takes no part in the fingerprint.
_LOCATION = {"location": True}
# Marks a field that came after the first release: a file without it has its default, and at its default it takes no
# part in the fingerprint, so the runs, models and names of before stay what they were.
_ADDED = {"added": True}

# What the first release said, and what it says today: (field, then, now). Its files are read, and the fingerprint keeps
# to its words, so the runs and models of before stay what they were.
_OLD_VALUES = (("recipe.augment.color", True, "full"), ("recipe.augment.color", False, "none"))

# Bytes that file systems and MLflow's databases take.
_LONGEST_NAME = 250
_NOT_IN_A_NAME = re.compile(r"[/\\\x00-\x1f\x7f-\x9f\u2028\u2029]")
_TAKEN_NAMES = ("mlflow.db", "mlartifacts")


@dataclass(frozen=True, kw_only=True)
class Model:
    """A residual network: depth, the shortcut h(x) of Fig. 2 and the BN/ReLU placement of Fig. 4."""

    depth: int
    """Number of weighted layers: 50, 101, 152, 200 with the ImageNet stem; 20, 56, 110, 164, 1001 and further
    6n+2 (basic units) or 9n+2 (bottleneck units) with the CIFAR stem."""
    num_classes: int
    """Number of outputs of the head."""
    shortcut: Shortcut = "identity"
    """The kind of shortcut h(x), Fig. 2."""
    placement: Placement = "full_preactivation"
    """The order of BN, ReLU and addition, Fig. 4."""
    gate_bias: float = -6.0
    """Initial bias b_g of the gating function g(x) = sigmoid(W_g x + b_g), Sec. 3.1."""
    shortcut_scale: float = 0.5
    """Scale of the shortcut under constant_scaling, Table 1."""
    residual_scale: float = 0.5
    """Scale of the residual branch under constant_scaling, Table 1."""
    dropout_rate: float = 0.5
    """Rate of the dropout on the shortcut under dropout, Table 1."""
    stride_on: Literal["conv1x1", "conv3x3"] = "conv3x3"
    """Which convolution of a bottleneck unit carries the stride: conv1x1 as in KaimingHe/resnet-1k-layers,
    conv3x3 as in facebook/fb.resnet.torch. Basic units have 3x3 convolutions only and stride on the first."""
    widening: Literal["auto", "projection", "zero_pad"] = "auto"
    """How a shortcut reaches a larger width: a 1x1 convolution (option B) or zero channels (option A). auto: as
    published, zero channels for basic units (20, 56, 110) and 1x1 convolutions for bottleneck units."""

    def __post_init__(self) -> None:
        _check_literals(self)
        _at_least("model.depth", self.depth, 8)
        _at_least("model.num_classes", self.num_classes, 2)
        _in_range("model.dropout_rate", self.dropout_rate, 0.0, 1.0, open_end=True)
        for name in ("gate_bias", "shortcut_scale", "residual_scale"):
            if not math.isfinite(getattr(self, name)):
                raise ValueError(f"model.{name} must be a finite number, got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class Data:
    """Parquet shards in the Hugging Face layout: a split is a glob or a folder, as a local path or URI."""

    train: str = field(metadata=_LOCATION)
    """Training shards: a glob such as /data/train-*.parquet, or a folder; a local path or URI of an object store
    (docs/data-format.md)."""
    validation: str = field(metadata=_LOCATION)
    """Validation shards, written the same way."""
    dataset: Literal["imagenet", "cifar10", "cifar100"] = "imagenet"
    """Which data set's mean and standard deviation normalize the images."""
    label_column: str | None = field(default=None, metadata=_ADDED)
    """The shards' column of labels; by default `label`, else the only one that is named as labels are."""
    match_classes: MatchClasses = field(default="names", metadata=_ADDED)
    """What says which class of the training images a validation image has. names: the class names of both, whatever
    their order. numbers: the label, whatever the names."""
    train_digest: str | None = None
    """Digest of the training shards' footers. Filled in when a run starts; given, it is insisted on."""
    validation_digest: str | None = None
    """Digest of the validation shards' footers. Filled in when a run starts; given, it is insisted on."""

    def __post_init__(self) -> None:
        _check_literals(self)
        for name in ("train", "validation"):
            if not getattr(self, name):
                raise ValueError(f"data.{name} is empty; give a glob or folder of Parquet shards: --data.{name} URI")
        if self.label_column == "":
            raise ValueError("data.label_column is empty; give the name of a column, or leave it out")


@dataclass(frozen=True, kw_only=True)
class Augment:
    """How a training image becomes an input: crop, flip, color."""

    kind: Literal["scale", "inception", "pad"] = "scale"
    """scale: shorter side drawn from `shorter_side`, then a random crop (Table 5 "scale"). inception: a random
    window of 8 % to 100 % of the area, aspect 3/4 to 4/3 (Table 5 "scale + aspect ratio"). pad: `padding` pixels
    of the mean color on each side, then a random crop (the CIFAR experiments)."""
    size: int = 224
    """Side of the training crop in pixels."""
    shorter_side: tuple[int, int] = (256, 480)
    """Range of the shorter side under scale."""
    area: tuple[float, float] = (0.08, 1.0)
    """Range of the window's share of the area under inception."""
    aspect: tuple[float, float] = (3 / 4, 4 / 3)
    """Range of the window's width over height under inception."""
    padding: int = 4
    """Pixels of the mean color, zero once normalized, that are added on each side under pad."""
    flip: bool = True
    """Whether half of the images are mirrored."""
    color: Literal["none", "lighting", "full"] = "none"
    """lighting: colors are shifted along their principal components, as arXiv:1512.03385 trained ("scale" rows of
    Table 5). full: brightness, contrast and saturation are jittered too, as in facebook/fb.resnet.torch."""

    def __post_init__(self) -> None:
        _check_literals(self)
        _at_least("augment.size", self.size, 8)
        _at_least("augment.padding", self.padding, 0)
        _rising("augment.shorter_side", self.shorter_side)
        _rising("augment.area", self.area)
        _rising("augment.aspect", self.aspect)
        if self.kind == "scale" and self.shorter_side[0] < self.size:
            raise ValueError(
                f"augment.shorter_side starts at {self.shorter_side[0]}, below the crop of {self.size} pixels; "
                "raise it or lower augment.size"
            )
        if not 0 < self.area[0] <= self.area[1] <= 1:
            raise ValueError(f"augment.area must lie in (0, 1], got {self.area}")
        if self.aspect[0] <= 0:
            raise ValueError(f"augment.aspect must be positive, got {self.aspect}")

    @property
    def image_side(self) -> int | None:
        """Side in pixels that every image of a set must have, under pad; None if images may have any size."""
        return self.size if self.kind == "pad" else None


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """Stochastic gradient descent with momentum."""

    momentum: float = 0.9
    """Momentum."""
    nesterov: bool = False
    """Whether the momentum is Nesterov's, as in facebook/fb.resnet.torch."""
    weight_decay: float = 1e-4
    """Weight decay (L2)."""
    decay_norm_and_bias: bool = False
    """Whether BN's scale and shift and the classifier's bias decay like the weights of convolutions and classifier;
    the biases of gates never do. No for the rows that the paper took from the code of arXiv:1512.03385 (CIFAR at
    mini-batch 128, ImageNet "scale"), yes for those from facebook/fb.resnet.torch (Table 4 at mini-batch 64, ImageNet
    "scale + aspect ratio"). What the first code did is known second-hand, from the second's README."""

    def __post_init__(self) -> None:
        _in_range("optimizer.momentum", self.momentum, 0.0, 1.0, open_end=True)
        _in_range("optimizer.weight_decay", self.weight_decay, 0.0, math.inf)
        if self.nesterov and self.momentum == 0:
            raise ValueError("optimizer.nesterov needs a momentum above 0, got 0.0; set --optimizer.momentum")


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """The learning rate as a function of the step. Points in time are fractions of the run."""

    kind: Literal["step", "cosine", "linear"] = "step"
    """step: multiplied by `drop_factor` at each of `drops`. cosine, linear: down to zero at the end."""
    learning_rate: float = 0.1
    """The learning rate after warm-up, for the recipe's own global batch."""
    drops: tuple[float, ...] = (30 / 90, 60 / 90)
    """When a step schedule drops, as rising fractions of the run."""
    drop_factor: float = 0.1
    """What a drop multiplies the learning rate by."""
    warmup: float = 0.0
    """Length of the warm-up as a fraction of the run."""
    warmup_kind: Literal["constant", "linear"] = "linear"
    """constant: `warmup_factor` times the learning rate throughout (the CIFAR experiments). linear: a ramp from
    there to the full learning rate."""
    warmup_factor: float = 0.1
    """The warm-up's learning rate, or where its ramp starts, over the full one."""

    def __post_init__(self) -> None:
        _check_literals(self)
        if not (self.learning_rate > 0 and math.isfinite(self.learning_rate)):
            raise ValueError(f"schedule.learning_rate must be positive, got {self.learning_rate}")
        if list(self.drops) != sorted(set(self.drops)) or any(not 0 < drop < 1 for drop in self.drops):
            raise ValueError(f"schedule.drops must rise within (0, 1), as fractions of the run, got {self.drops}")
        _in_range("schedule.drop_factor", self.drop_factor, 0.0, 1.0)
        _in_range("schedule.warmup", self.warmup, 0.0, 1.0, open_end=True)
        _in_range("schedule.warmup_factor", self.warmup_factor, 0.0, 1.0)


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """When and at which crops the validation images are classified; every image counts exactly once."""

    every_epochs: float = 1.0
    """Epochs between evaluations; the end of the run is always evaluated."""
    crops: tuple[int, ...] = (224, 320)
    """Sides of the center crop in pixels. The first one gives val/top1_error, the others val/top1_error_<side>px."""
    shorter_sides: tuple[int, ...] = (256, 320)
    """The shorter side to which images are resized before each of `crops`."""

    def __post_init__(self) -> None:
        if not self.every_epochs > 0:
            raise ValueError(f"evaluation.every_epochs must be above 0, got {self.every_epochs}")
        if not self.crops or len(self.crops) != len(self.shorter_sides):
            raise ValueError(
                f"evaluation.shorter_sides needs one entry for each of evaluation.crops {self.crops}, "
                f"got {self.shorter_sides}"
            )
        if len(set(self.crops)) != len(self.crops):
            raise ValueError(f"evaluation.crops must differ from one another, got {self.crops}")
        for crop, side in zip(self.crops, self.shorter_sides, strict=True):
            _at_least("evaluation.crops", crop, 8)
            if side < crop:
                raise ValueError(f"evaluation.shorter_sides has {side}, below its crop of {crop} pixels")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides a run's numbers."""

    model: Model
    data: Data
    augment: Augment
    optimizer: Optimizer = field(default_factory=Optimizer)
    schedule: Schedule = field(default_factory=Schedule)
    evaluation: Evaluation = field(default_factory=Evaluation)
    epochs: float = 90.0
    """Length of the run; one epoch is every whole global batch of the training images once."""
    seed: int = 0
    """Seed of the initial weights, the order and the augmentation."""
    global_batch: int = 256
    """Images per optimizer step, over all workers."""
    ghost_batch: int = 32
    """Images over which one set of BN statistics is taken; the paper's 256 over 8 GPUs = 32."""
    label_smoothing: float = 0.0
    """Share of each target that is spread over all classes."""

    def __post_init__(self) -> None:
        if not (self.epochs > 0 and math.isfinite(self.epochs)):
            raise ValueError(f"epochs must be above 0, got {self.epochs}")
        _at_least("seed", self.seed, 0)
        _at_least("global_batch", self.global_batch, 2)
        _at_least("ghost_batch", self.ghost_batch, 2)
        if self.global_batch % self.ghost_batch:
            raise ValueError(
                f"global_batch {self.global_batch} is not a multiple of ghost_batch {self.ghost_batch}; "
                "change --global-batch or --ghost-batch so that it is"
            )
        _in_range("label_smoothing", self.label_smoothing, 0.0, 1.0, open_end=True)

    @property
    def num_ghost_batches(self) -> int:
        """Ghost batches in a global batch, which is also the largest number of workers."""
        return self.global_batch // self.ghost_batch

    def to_dict(self) -> dict[str, Any]:
        """The recipe as nested dictionaries of JSON values."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """The recipe that `to_dict` of this or an earlier version wrote.

        Raises ValueError for unknown, missing or ill-typed entries.
        """
        return _from_dict(cls, values, "recipe")

    def flat(self) -> dict[str, Any]:
        """The recipe as one dictionary with dotted keys such as `model.depth`."""
        return flatten(self.to_dict())

    def fingerprint(self) -> str:
        """The name of the run's numbers: sha256 (hex) of the canonical JSON of its fields.

        The locations take no part, nor do fields that are newer than the first release while at their default.
        """
        return hashlib.sha256(_canonical_json(self).encode()).hexdigest()

    def differences(self, other: "Recipe") -> dict[str, tuple[Any, Any]]:
        """The fields that make the two fingerprints differ: dotted key -> (own value, other's value)."""
        mine, theirs = flatten(_numbers(self)), flatten(_numbers(other))
        return {key: (mine[key], theirs.get(key)) for key in mine if mine[key] != theirs.get(key)}


@dataclass(frozen=True, kw_only=True)
class Tracking:
    """Where a run is told of: the MLflow server, and the registry."""

    uri: str | None = None
    """MLflow tracking server, such as https://mlflow.example.org; by default MLFLOW_TRACKING_URI, else a sqlite file
    beside the runs, or in ~/dist_resnet on the driver's machine where the runs are on an object store."""
    experiment: str = "dist_resnet"
    """MLflow experiment that the run belongs to."""
    register: bool = True
    """Whether the model of the finished run becomes a new version of a registered model in MLflow's registry."""
    model_name: str | None = None
    """The registered model's name; by default preact-resnet<depth> for full pre-activation on ImageNet, else such as
    original-dropout-resnet110-cifar10."""

    def __post_init__(self) -> None:
        if self.model_name is not None and (not self.model_name.strip() or set(self.model_name) & set("/:\0")):
            raise ValueError(
                f"execution.tracking.model_name must be a name without slashes and colons, got {self.model_name!r}"
            )
        if not self.experiment.strip():
            raise ValueError("execution.tracking.experiment is empty; give the name of an MLflow experiment")


@dataclass(frozen=True, kw_only=True)
class Performance:
    """What makes steps faster or smaller, at the same numbers but for rounding."""

    channels_last: bool = True
    """Whether activations lie in memory as NHWC."""
    compile: bool = False
    """Whether the model goes through torch.compile."""
    cuda_graphs: bool = False
    """Whether a GPU replays the recorded work of a ghost batch, which is faster where networks and images are small;
    with one worker, without compile and recompute. The CPU has none and goes on without."""
    recompute: bool = False
    """Whether residual units are recomputed in the backward pass, which trades time for memory."""
    deterministic: bool = True
    """Whether GPUs keep to algorithms that give the same bits every time; on the CPU they always do."""
    prefetch: int = 2
    """Ghost batches per worker that are read and decoded ahead."""
    evaluation_batch: int = 128
    """Images per forward pass in evaluation."""

    def __post_init__(self) -> None:
        for name in ("prefetch", "evaluation_batch"):
            _at_least(f"execution.performance.{name}", getattr(self, name), 1)
        for name in ("compile", "recompute"):
            if self.cuda_graphs and getattr(self, name):
                raise ValueError(
                    f"execution.performance.cuda_graphs does not go with execution.performance.{name}; leave one of "
                    "them out"
                )


@dataclass(frozen=True, kw_only=True)
class Cache:
    """What is kept on each machine's own disk of what was read from an object store."""

    folder: str | None = None
    """Folder on each machine's own disk for what was read from an object store, kept between runs."""
    gigabytes: float = 50.0
    """What that folder may hold."""

    def __post_init__(self) -> None:
        _above_zero("execution.cache.gigabytes", self.gigabytes)


@dataclass(frozen=True, kw_only=True)
class Checkpoints:
    """When the state of a run is saved, and how many of its checkpoints are kept."""

    every: int = 1000
    """Steps between checkpoints; the end of an epoch with an evaluation makes one too."""
    minutes: float = 15.0
    """Longest time between checkpoints, whatever the number of steps."""
    keep: int = 2
    """Newest checkpoints that are kept, beside the one of the lowest validation error."""

    def __post_init__(self) -> None:
        _at_least("execution.checkpoints.every", self.every, 1)
        _at_least("execution.checkpoints.keep", self.keep, 1)
        _above_zero("execution.checkpoints.minutes", self.minutes)

    @property
    def seconds(self) -> float:
        """`minutes` in seconds."""
        return 60 * self.minutes


@dataclass(frozen=True, kw_only=True)
class Recovery:
    """What a run does about workers, machines and storage that fail or come and go."""

    storage_timeout_minutes: float = 30.0
    """How long the storage may fail before training gives up; checkpoints and the journal wait meanwhile."""
    hang_timeout_minutes: float = 10.0
    """Time without a step after which a worker counts as dead."""
    resize_minutes: float = 1.0
    """Time between looks whether the cluster has room for more of MIN:MAX workers."""
    max_failures: int = 3
    """Times in a row, with no new checkpoint between, that failed workers or a failed trial start again."""
    spare_processes: bool = True
    """Whether an idle process per worker waits beside a run that is a minute old, so that it goes on a few seconds
    after a failure; each holds memory (0.5 GB on a CPU, with torch imported) and a hundredth of a core."""

    def __post_init__(self) -> None:
        for name in ("storage_timeout_minutes", "hang_timeout_minutes", "resize_minutes"):
            _above_zero(f"execution.recovery.{name}", getattr(self, name))
        _at_least("execution.recovery.max_failures", self.max_failures, 0)

    @property
    def storage_seconds(self) -> float:
        """`storage_timeout_minutes` in seconds."""
        return 60 * self.storage_timeout_minutes

    @property
    def hang_seconds(self) -> float:
        """`hang_timeout_minutes` in seconds."""
        return 60 * self.hang_timeout_minutes

    @property
    def resize_seconds(self) -> float:
        """`resize_minutes` in seconds."""
        return 60 * self.resize_minutes


@dataclass(frozen=True, kw_only=True)
class Execution:
    """Where a run is computed and how fast; nothing but `precision` changes its numbers beyond rounding."""

    workers: int | str = 1
    """Ray Train workers, from 1 to the recipe's number of ghost batches; MIN:MAX goes on with as many of them as the
    cluster has room for, as machines come and go."""
    device: Literal["auto", "gpu", "cpu"] = "auto"
    """auto: a GPU per worker where the cluster has that many GPUs, else the CPU."""
    cpus_per_worker: int | None = None
    """CPU cores per worker, for its threads; by default as many as all workers find on their machines. Where the model
    trains on the CPU, another count adds numbers up in another order, as another number of workers does."""
    storage: str = "~/dist_resnet"
    """Where runs are kept: a local path or URI of an object store (docs/data-format.md) that every node can reach."""
    name: str | None = None
    """The run's name, a folder under storage. The same name continues the run. By default the job's name and the
    first digits of the recipe's fingerprint, so the same command continues and another recipe starts anew."""
    precision: Literal["fp32", "tf32", "bf16", "fp16"] = "fp32"
    """Of training; evaluation computes in fp32. fp32: as the published tables. tf32: fp32 whose products GPUs round to
    10 bits, faster. bf16: autocast to bfloat16, faster still, but gradients of deep networks change visibly
    (docs/paper-map.md), and CPUs without such instructions are slow at it. fp16: autocast, loss scaling, GPUs only."""
    decode_on: Decode = "auto"
    """Where DALI decodes JPEGs; auto: where the model trains. pillow: by Pillow on the CPU, slower, as it is where DALI
    is not installed; its pixels differ a little from DALI's where a JPEG is cut."""
    spare_outputs: bool = False
    """Whether the model may have more outputs (`--model.num-classes`) than its training images have classes."""
    max_damaged_fraction: float = 0.001
    """Share of the training images that may turn out to be damaged before the run stops with their list."""
    log_every: int = 10
    """Steps between writes of the journal; every step's numbers are in it."""
    performance: Performance = field(default_factory=Performance)
    checkpoints: Checkpoints = field(default_factory=Checkpoints)
    recovery: Recovery = field(default_factory=Recovery)
    cache: Cache = field(default_factory=Cache)
    tracking: Tracking = field(default_factory=Tracking)

    def __post_init__(self) -> None:
        _check_literals(self)
        _ = self.worker_range  # raises where the text is none
        _at_least("execution.log_every", self.log_every, 1)
        if not 0 <= self.max_damaged_fraction <= 1:
            raise ValueError(f"execution.max_damaged_fraction must be in 0 .. 1, got {self.max_damaged_fraction}")
        if self.cpus_per_worker is not None:
            _at_least("execution.cpus_per_worker", self.cpus_per_worker, 1)
        if self.name is not None:
            _check_name(self.name)
        if not self.storage:
            raise ValueError("execution.storage is empty; give a local path or URI of an object store")
        if self.performance.cuda_graphs and self.most_workers > 1:
            raise ValueError(
                f"execution.performance.cuda_graphs works with one worker, got {self.workers}; leave one of them out"
            )

    @property
    def worker_range(self) -> tuple[int, int]:
        """The smallest and the largest number of workers. Raises ValueError where `workers` says none."""
        found = re.fullmatch(r"([1-9]\d*)(?::([1-9]\d*))?", str(self.workers))
        least, most = (int(found[1]), int(found[2] or found[1])) if found else (1, 0)
        if least > most:
            raise ValueError(
                f"execution.workers must be a number from 1 on, or MIN:MAX such as 2:8, got {self.workers!r}"
            )
        return least, most

    @property
    def most_workers(self) -> int:
        """The largest number of workers."""
        return self.worker_range[1]


def check_pair(recipe: Recipe, execution: Execution) -> None:
    """Raises ValueError where a recipe cannot be computed the way an execution asks."""
    if execution.most_workers > recipe.num_ghost_batches:
        raise ValueError(
            f"execution.workers {execution.workers} exceeds the {recipe.num_ghost_batches} ghost batches of a step "
            f"(global_batch {recipe.global_batch} / ghost_batch {recipe.ghost_batch}); use at most "
            f"{recipe.num_ghost_batches} workers, or a smaller --ghost-batch"
        )


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as one with dotted keys.

    >>> flatten({"model": {"depth": 20}, "seed": 0})
    {'model.depth': 20, 'seed': 0}
    """
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _numbers(recipe: Recipe) -> dict[str, Any]:
    """A recipe's fields without the locations, as JSON values."""
    return _without(_read_back(recipe), _is_location)


def _canonical_json(recipe: Recipe) -> str:
    numbers = _without(
        _read_back(recipe), lambda entry, value: _is_location(entry, value) or _is_as_before(entry, value)
    )
    for place, then, now in _OLD_VALUES:
        _, part, name = place.split(".")
        if numbers[part][name] == now:
            numbers[part][name] = then
    return json.dumps(numbers, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _read_back(recipe: Recipe) -> Recipe:
    """The recipe as JSON gives it back, so that an epoch count of 5 and one of 5.0 are the same numbers."""
    return type(recipe).from_dict(recipe.to_dict())


def _without(config: Any, left_out: Callable[[dataclasses.Field, Any], bool]) -> dict[str, Any]:
    """A config's fields but those left out, as JSON values."""
    values = {}
    for entry in dataclasses.fields(config):
        value = getattr(config, entry.name)
        if not left_out(entry, value):
            values[entry.name] = _without(value, left_out) if dataclasses.is_dataclass(value) else value
    return json.loads(json.dumps(values))


def _is_location(entry: dataclasses.Field, _: Any) -> bool:
    return bool(entry.metadata.get("location"))


def _is_as_before(entry: dataclasses.Field, value: Any) -> bool:
    """Whether a field says what held before there was such a field."""
    if not entry.metadata.get("added"):
        return False
    return value == (entry.default if entry.default_factory is dataclasses.MISSING else entry.default_factory())


def _from_dict(cls: type, values: Any, where: str) -> Any:
    if not isinstance(values, dict):
        raise ValueError(f"{where} must be an object, got {values!r}")
    hints = get_type_hints(cls)
    fields = {entry.name: entry for entry in dataclasses.fields(cls)}
    if unknown := sorted(set(values) - set(fields)):
        raise ValueError(f"{where} has unknown entries {unknown}; allowed are {list(fields)}")
    missing = set(fields) - set(values)
    if needed := sorted(name for name in missing if not fields[name].metadata.get("added")):
        raise ValueError(f"{where} lacks the entries {needed}")
    return cls(**{name: _typed(hints[name], value, f"{where}.{name}") for name, value in values.items()})


def _typed(hint: Any, value: Any, where: str) -> Any:
    """`value`, read from JSON, as the type that a field declares. Raises ValueError where it is of another."""
    value = next((now for place, then, now in _OLD_VALUES if place == where and value is then), value)
    origin, arguments = get_origin(hint), get_args(hint)
    if dataclasses.is_dataclass(hint):
        return _from_dict(hint, value, where)  # pyrefly: ignore
    if origin in (Union, types.UnionType):
        return None if value is None else _typed(next(a for a in arguments if a is not type(None)), value, where)
    if origin is tuple and isinstance(value, list):
        kinds = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else list(arguments)
        if len(kinds) == len(value):
            return tuple(_typed(kind, entry, where) for kind, entry in zip(kinds, value, strict=True))
    if origin is Literal and value in arguments:
        return value
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if hint in (int, str, bool) and type(value) is hint:
        return value
    raise ValueError(f"{where} must be {getattr(hint, '__name__', hint)}, got {value!r}")


def _check_literals(config: Any) -> None:
    for name, hint in get_type_hints(type(config)).items():
        if get_origin(hint) is Literal and getattr(config, name) not in get_args(hint):
            raise ValueError(f"{name} must be one of {', '.join(get_args(hint))}; got {getattr(config, name)!r}")


def _check_name(name: str) -> None:
    """Raises ValueError where a run's name cannot be that of a folder, or not be typed after a command."""
    if not name.strip(". ") or name.startswith("-") or _NOT_IN_A_NAME.search(name):
        raise ValueError(
            "execution.name must be the name of one folder, without slashes and control characters, and not begin with "
            f"a dash, got {name!r}"
        )
    if (length := len(name.encode(errors="surrogateescape"))) > _LONGEST_NAME:
        raise ValueError(
            f"execution.name has {length} bytes, a folder's name at most {_LONGEST_NAME}: {name[:40]!r}..."
        )
    if name in _TAKEN_NAMES:
        raise ValueError(f"execution.name {name} is that of what MLflow keeps under the storage; give another")


def _above_zero(name: str, value: float) -> None:
    if not value > 0:
        raise ValueError(f"{name} must be above 0, got {value}")


def _at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")


def _in_range(name: str, value: float, low: float, high: float, *, open_end: bool = False) -> None:
    if not (low <= value <= high) or (open_end and value == high):
        raise ValueError(f"{name} must lie in [{low:g}, {high:g}{')' if open_end else ']'}, got {value}")


def _rising(name: str, pair: tuple[float, float]) -> None:
    if len(pair) != 2 or not pair[0] <= pair[1]:
        raise ValueError(f"{name} must be a rising pair, got {pair}")
