"""What a run computes (`Recipe`) and where and how fast it is computed (`Execution`).

A recipe decides the numbers. An execution changes them by no more than the rounding of floating-point sums, except
through `precision` (docs/paper-map.md has its effect).
Both are frozen and keyword-only, are changed by `dataclasses.replace`, and check their values when they are made. This
file imports neither torch nor Ray, so a job's --help appears at once.
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
Balance = Literal["none", "square_root", "classes"]
Color = tuple[float, float, float]
Decode = Literal["auto", "gpu", "cpu", "pillow"]
Head = Literal["auto", "keep", "new"]
Freeze = Literal["none", "stem", "stage1", "stage2", "stage3", "stage4", "all-but-head"]

# Marks a field that says where data is stored, not what is computed: the fingerprint leaves it out.
_LOCATION = {"location": True}
# Marks a field that was added after the first release: files without it get its default, and the fingerprint leaves it
# out at its default, so that older runs and models keep their fingerprints.
_ADDED = {"added": True}
# Marks a field that users of a job seldom change: its options come last in --help.
_RARE = {"rare": True}

# Values that were renamed after the first release: (field, old value, new value). Old files are read, and the
# fingerprint uses the old value, so that older runs and models keep their fingerprints.
_OLD_VALUES = (("recipe.augment.color", True, "full"), ("recipe.augment.color", False, "none"))

# In bytes: the limit of file systems and of MLflow's databases.
_LONGEST_NAME = 250
_NOT_IN_A_NAME = re.compile(r"[/\\\x00-\x1f\x7f-\x9f\u2028\u2029]")
_TAKEN_NAMES = ("mlflow.db", "mlartifacts")


@dataclass(frozen=True, kw_only=True)
class Model:
    """The residual network: depth, the shortcut h(x) of Fig. 2 and the BN/ReLU placement of Fig. 4."""

    depth: int
    """Number of weighted layers. ImageNet stem: 50, 101, 152 or 200. CIFAR stem: 6n+2 with basic units (20, 56, 110),
    9n+2 with bottleneck units (164, 1001)."""
    num_classes: int | None = None
    """Number of classes, which is the number of the head's outputs. Unset: that of the training images."""
    shortcut: Shortcut = "identity"
    """Shortcut h(x), Fig. 2."""
    placement: Placement = "full_preactivation"
    """Order of BN, ReLU and addition, Fig. 4."""
    gate_bias: float = -6.0
    """Initial bias b_g of the gate g(x) = sigmoid(W_g x + b_g), Sec. 3.1. Only for gating shortcuts."""
    shortcut_scale: float = 0.5
    """Factor on the shortcut, Table 1. Only for constant_scaling."""
    residual_scale: float = 0.5
    """Factor on the residual branch, Table 1. Only for constant_scaling."""
    dropout_rate: float = 0.5
    """Probability that dropout zeroes a value of the shortcut, Table 1. Only for dropout."""
    stride_on: Literal["conv1x1", "conv3x3"] = "conv3x3"
    """Convolution of a bottleneck unit that has the stride: the first 1x1 as in KaimingHe/resnet-1k-layers, or the 3x3
    as in facebook/fb.resnet.torch. In basic units it is always the first 3x3."""
    widening: Literal["auto", "projection", "zero_pad"] = "auto"
    """How a shortcut grows to a larger width. projection: a 1x1 convolution (option B). zero_pad: extra channels of
    zeros (option A). auto: as published, zero_pad for basic units and projection for bottleneck units."""

    def __post_init__(self) -> None:
        _check_literals(self)
        _at_least("model.depth", self.depth, 8)
        if self.num_classes is not None:
            _at_least("model.num_classes", self.num_classes, 2)
        _in_range("model.dropout_rate", self.dropout_rate, 0.0, 1.0, open_end=True)
        for name in ("gate_bias", "shortcut_scale", "residual_scale"):
            if not math.isfinite(getattr(self, name)):
                raise ValueError(f"model.{name} must be a finite number, got {getattr(self, name)}")

    @property
    def num_outputs(self) -> int:
        """The number of classes. Raises ValueError if it is left to the training images, which a run looks up."""
        if self.num_classes is None:
            raise ValueError("model.num_classes is unset, so the network has no outputs; give --model.num-classes")
        return self.num_classes


@dataclass(frozen=True, kw_only=True)
class Data:
    """The images: Parquet shards in the Hugging Face image-dataset layout (docs/data-format.md)."""

    train: str = field(metadata=_LOCATION)
    """Training shards: a folder or a glob such as /data/train-*.parquet, as a local path or URI of an object store."""
    validation: str = field(metadata=_LOCATION)
    """Validation shards: a folder or glob, like --data.train."""
    dataset: Literal["imagenet", "cifar10", "cifar100", "own"] = "imagenet"
    """Data set whose mean and standard deviation normalize the images. own: those of the training images, which
    jobs/prepare_imagenet.py measured and wrote to their manifest.json."""
    mean: Color | None = field(default=None, metadata=_ADDED | {"metavar": "RED GREEN BLUE"})
    """Mean of red, green and blue in [0, 1], in place of the data set's; together with --data.std. Unset: the data
    set's."""
    std: Color | None = field(default=None, metadata=_ADDED | {"metavar": "RED GREEN BLUE"})
    """Standard deviation of red, green and blue in (0, 1], like --data.mean. Unset: the data set's."""
    label_column: str | None = field(default=None, metadata=_ADDED)
    """Column of the shards that holds the labels. Unset: `label`, or the only column with a usual name for labels."""
    match_classes: MatchClasses = field(default="names", metadata=_ADDED)
    """How the classes of validation images are matched to those of training images. names: by class name, in any
    order. numbers: by label, whatever the names."""
    balance: Balance = field(default="none", metadata=_ADDED)
    """How often an epoch draws the images of each class. none: each image once. classes: each class equally often.
    square_root: in proportion to the square root of its number of images. The length of an epoch stays the same."""
    train_digest: str | None = field(default=None, metadata=_RARE)
    """Digest that the training shards must have; other shards are refused. Unset: any shards; the run records their
    digest."""
    validation_digest: str | None = field(default=None, metadata=_RARE)
    """Digest that the validation shards must have, like --data.train-digest. Unset: any shards."""

    def __post_init__(self) -> None:
        _check_literals(self)
        for name in ("train", "validation"):
            if not getattr(self, name):
                raise ValueError(f"data.{name} is empty; give a glob or folder of Parquet shards: --data.{name} URI")
        if self.label_column == "":
            raise ValueError("data.label_column is empty; give a column's name, or leave the option out")
        _check_colors(self.mean, self.std)


@dataclass(frozen=True, kw_only=True)
class Initial:
    """The weights that training starts from: drawn from the seed, or trained ones (docs/initial-weights.md)."""

    weights: str | None = field(default=None, metadata=_LOCATION)
    """Trained weights to start from: models:/NAME/VERSION or models:/NAME@ALIAS, a run STORAGE/NAME, one of its
    checkpoints, or a file .safetensors or .pth with the names of this project, torchvision or timm. Unset: weights are
    drawn from the seed."""
    sha256: str | None = None
    """sha256 that these weights must have, such as a run's weights_sha256; others are refused. Unset: any weights; the
    run records theirs."""
    head: Head = "auto"
    """The classifier that training starts from. keep: the one in the weights. new: drawn from the seed. auto: keep if
    its classes have the names of the training images' classes, in any order, otherwise new."""
    freeze: Freeze = "none"
    """Layers that stay as they are, from the first one to the end of this part. all-but-head: everything but the
    classifier. BN in these layers uses the running statistics of the weights."""

    def __post_init__(self) -> None:
        _check_literals(self)
        if self.weights == "":
            raise ValueError("initial.weights is empty; give trained weights, or leave the option out")
        if self.weights is None and (self.sha256 is not None or (self.head, self.freeze) != ("auto", "none")):
            raise ValueError("initial.sha256, head and freeze are about trained weights; give --initial.weights too")


@dataclass(frozen=True, kw_only=True)
class Augment:
    """How training images are augmented: crop, flip and color."""

    kind: Literal["scale", "inception", "pad"] = "scale"
    """How the crop is drawn. scale: resize to a random shorter side, then crop (Table 5, "scale"). inception: a window
    of random area and aspect ratio (Table 5, "scale + aspect ratio"). pad: pad with the mean color, then crop (the
    CIFAR experiments)."""
    size: int = 224
    """Side of the training crop in pixels."""
    shorter_side: tuple[int, int] = (256, 480)
    """Smallest and largest shorter side in pixels. Only for scale."""
    area: tuple[float, float] = (0.08, 1.0)
    """Smallest and largest area of the window, as a fraction of the image. Only for inception."""
    aspect: tuple[float, float] = (3 / 4, 4 / 3)
    """Smallest and largest ratio of the window's width to its height. Only for inception."""
    padding: int = 4
    """Pixels added on each side, in the mean color, which is zero after normalization. Only for pad."""
    flip: bool = True
    """Mirror half of the images, drawn at random."""
    color: Literal["none", "lighting", "full"] = "none"
    """Random changes of color. lighting: shift along the principal components of color, as in arXiv:1512.03385 (Table
    5, "scale"). full: also jitter brightness, contrast and saturation, as in facebook/fb.resnet.torch."""

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
            raise ValueError(f"augment.area must be in (0, 1], got {self.area}")
        if self.aspect[0] <= 0:
            raise ValueError(f"augment.aspect must be positive, got {self.aspect}")

    @property
    def image_side(self) -> int | None:
        """Side in pixels that every image must have; None if images may have any size."""
        return self.size if self.kind == "pad" else None


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """Stochastic gradient descent with momentum."""

    momentum: float = 0.9
    """Momentum, from 0 to less than 1."""
    nesterov: bool = False
    """Use Nesterov's momentum, as in facebook/fb.resnet.torch."""
    weight_decay: float = 1e-4
    """Weight decay (L2)."""
    decay_norm_and_bias: bool = False
    """Also decay BN's scale and shift and the classifier's bias, but not the biases of gates. On in
    facebook/fb.resnet.torch (Table 4 at mini-batch 64, Table 5 "scale + aspect ratio"); off in the code of
    arXiv:1512.03385 (the other rows), according to the README of the former."""

    def __post_init__(self) -> None:
        _in_range("optimizer.momentum", self.momentum, 0.0, 1.0, open_end=True)
        _in_range("optimizer.weight_decay", self.weight_decay, 0.0, math.inf)
        if self.nesterov and self.momentum == 0:
            raise ValueError("optimizer.nesterov needs a momentum above 0, got 0.0; set --optimizer.momentum")


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """The learning rate over the run. Points in time are fractions of the run."""

    kind: Literal["step", "cosine", "linear"] = "step"
    """step: multiply by the drop factor at each drop. cosine, linear: fall to zero at the end of the run."""
    learning_rate: float = 0.1
    """Learning rate after warm-up. It does not scale with --global-batch."""
    drops: tuple[float, ...] = (30 / 90, 60 / 90)
    """When the learning rate drops, as rising fractions of the run. Only for step; may be empty."""
    drop_factor: float = 0.1
    """Factor on the learning rate at each drop. Only for step."""
    warmup: float = 0.0
    """Length of the warm-up as a fraction of the run."""
    warmup_kind: Literal["constant", "linear"] = "linear"
    """constant: a constant reduced learning rate (the CIFAR experiments). linear: a ramp from the reduced to the full
    learning rate."""
    warmup_factor: float = 0.1
    """The reduced learning rate of the warm-up, as a fraction of the full one."""
    head_factor: float = field(default=1.0, metadata=_ADDED)
    """Factor on the learning rate of the classifier, such as 10 for a new one on trained weights."""

    def __post_init__(self) -> None:
        _check_literals(self)
        if not (self.learning_rate > 0 and math.isfinite(self.learning_rate)):
            raise ValueError(f"schedule.learning_rate must be positive, got {self.learning_rate}")
        if list(self.drops) != sorted(set(self.drops)) or any(not 0 < drop < 1 for drop in self.drops):
            raise ValueError(f"schedule.drops must rise within (0, 1), as fractions of the run, got {self.drops}")
        _in_range("schedule.drop_factor", self.drop_factor, 0.0, 1.0)
        _in_range("schedule.warmup", self.warmup, 0.0, 1.0, open_end=True)
        _in_range("schedule.warmup_factor", self.warmup_factor, 0.0, 1.0)
        if not (self.head_factor > 0 and math.isfinite(self.head_factor)):
            raise ValueError(f"schedule.head_factor must be positive, got {self.head_factor}")


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """When and at which crops the model is evaluated. Every validation image counts exactly once."""

    every_epochs: float = 1.0
    """Epochs between evaluations. The end of the run is always evaluated."""
    crops: tuple[int, ...] = (224, 320)
    """Sides of the center crops in pixels. The first gives val/top1_error, the others val/top1_error_<side>px."""
    shorter_sides: tuple[int, ...] = (256, 320)
    """Shorter side in pixels to which images are resized before each crop: one for each of --evaluation.crops."""

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

    data: Data
    initial: Initial = field(default_factory=Initial, metadata=_ADDED)
    model: Model = field(metadata=_RARE)
    schedule: Schedule = field(default_factory=Schedule, metadata=_RARE)
    optimizer: Optimizer = field(default_factory=Optimizer, metadata=_RARE)
    augment: Augment = field(metadata=_RARE)
    evaluation: Evaluation = field(default_factory=Evaluation, metadata=_RARE)
    epochs: float = 90.0
    """Length of the run in epochs. The last images of an epoch that do not fill a global batch are left out."""
    global_batch: int = 256
    """Images per optimizer step, over all workers."""
    ghost_batch: int = 32
    """Images per set of BN statistics; the global batch must be a multiple. The paper's 256 images on 8 GPUs: 32."""
    seed: int = 0
    """Seed of the initial weights, the order of the images and their augmentation."""
    label_smoothing: float = field(default=0.0, metadata=_RARE)
    """Share of each target that is spread over all classes, from 0 to less than 1."""

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
        """Number of ghost batches in a global batch, which is also the largest number of workers."""
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
        """The sha256 (hex) of the canonical JSON of the fields: equal fingerprints mean equal numbers.

        It leaves out locations, and fields that were added after the first release and have their default.
        """
        return hashlib.sha256(_canonical_json(self).encode()).hexdigest()

    def differences(self, other: "Recipe") -> dict[str, tuple[Any, Any]]:
        """The fields that make the two fingerprints differ: dotted key -> (own value, other's value)."""
        mine, theirs = flatten(_numbers(self)), flatten(_numbers(other))
        return {key: (mine[key], theirs.get(key)) for key in mine if mine[key] != theirs.get(key)}


@dataclass(frozen=True, kw_only=True)
class Tracking:
    """MLflow: tracking and the model registry."""

    uri: str | None = None
    """MLflow tracking server, such as https://mlflow.example.org. Unset: MLFLOW_TRACKING_URI, or else mlflow.db next to
    the runs (in ~/dist_resnet on the driver's machine if runs are stored in an object store)."""
    experiment: str = "dist_resnet"
    """MLflow experiment of the run."""
    register: bool = True
    """Register the model of the finished run as a new version in MLflow's registry."""
    model_name: str | None = None
    """Name of the registered model. Unset: preact-resnet<depth> for full pre-activation on ImageNet, otherwise
    placement, shortcut, depth and data set, such as original-dropout-resnet110-cifar10."""

    def __post_init__(self) -> None:
        if self.model_name is not None and (not self.model_name.strip() or set(self.model_name) & set("/:\0")):
            raise ValueError(
                f"execution.tracking.model_name must be a name without slashes and colons, got {self.model_name!r}"
            )
        if not self.experiment.strip():
            raise ValueError("execution.tracking.experiment is empty; give the name of an MLflow experiment")


@dataclass(frozen=True, kw_only=True)
class Performance:
    """Speed and memory. The numbers change by rounding only."""

    compile: bool = False
    """Compile each residual unit with torch.compile; units of the same shape share one compilation. Training only:
    evaluation is not compiled."""
    cuda_graphs: bool = True
    """Record a ghost batch's work on the GPU once and replay it: 1.6 to 3 times as fast in small ghost batches, with
    1 to 7 % more memory. No effect with recompute and on the CPU."""
    recompute: bool = False
    """Recompute residual units in the backward pass: less memory, more time. Excludes compile."""
    deterministic: bool = True
    """Use only deterministic algorithms on GPUs, so that runs are bit-identical. The CPU always does."""
    channels_last: bool = True
    """Store activations in the NHWC memory layout."""
    ghosts_per_pass: int | Literal["auto"] = field(default=1, metadata={"metavar": "N|auto"})
    """Ghost batches that go through the network together, each with its own BN statistics: fewer and larger kernels,
    but as many times the memory of activations. The same number gives the same bits, another changes the rounding.
    auto: as many as half of a GPU's memory holds; 1 on the CPU. Networks with dropout always take 1, because each ghost
    batch has its own masks."""
    prefetch: int | None = None
    """Ghost batches per worker that are read and decoded ahead. Unset: those of a step, from 2 to 16."""
    evaluation_batch: int = 128
    """Images per forward pass in evaluation."""

    def __post_init__(self) -> None:
        if isinstance(self.ghosts_per_pass, str) and self.ghosts_per_pass != "auto":
            raise ValueError(
                f"execution.performance.ghosts_per_pass must be a number or auto, got {self.ghosts_per_pass!r}"
            )
        for name in ("ghosts_per_pass", "prefetch", "evaluation_batch"):
            value = getattr(self, name)
            if isinstance(value, int):
                _at_least(f"execution.performance.{name}", value, 1)
        if self.compile and self.recompute:
            raise ValueError("execution.performance.compile excludes recompute; leave one of them out")


@dataclass(frozen=True, kw_only=True)
class Cache:
    """A cache on each machine's disk for shards that are read from an object store."""

    folder: str | None = None
    """Folder of the cache, which is kept between runs. Unset: no cache."""
    gigabytes: float = 50.0
    """Maximum size of the cache in GB."""

    def __post_init__(self) -> None:
        _above_zero("execution.cache.gigabytes", self.gigabytes)


@dataclass(frozen=True, kw_only=True)
class Checkpoints:
    """When checkpoints are saved, and how many are kept."""

    every: int = 1000
    """Steps between checkpoints. One is also saved with each evaluation."""
    minutes: float = 15.0
    """Maximum minutes between checkpoints, whatever the number of steps."""
    keep: int = 2
    """Number of newest checkpoints to keep. The one with the lowest validation error is kept as well."""

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
    """How a run survives failures of workers, machines and storage."""

    max_failures: int = 3
    """Restarts allowed without a new checkpoint in between, for a run and for each trial of a sweep."""
    hang_timeout_minutes: float = 10.0
    """A worker that takes no step for this many minutes is restarted."""
    storage_timeout_minutes: float = 30.0
    """Minutes that storage may fail before the run stops. Checkpoints and the journal wait meanwhile."""
    resize_minutes: float = 1.0
    """Minutes between checks for room for more workers. Only if --execution.workers is MIN:MAX."""
    spare_processes: bool = True
    """Keep an idle process per worker ready, so that the run resumes within seconds of a failure. Each takes memory
    (0.5 GB on a CPU) and 1 % of a core. They start after the run's first minute."""

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
    """Where and how fast the run is computed. Only `precision` changes its numbers by more than rounding."""

    workers: int | str = field(default=1, metadata={"metavar": "N|MIN:MAX"})
    """Number of workers, at most the number of ghost batches in a global batch. MIN:MAX: as many as the cluster has
    room for, adjusted as machines come and go."""
    device: Literal["auto", "gpu", "cpu"] = "auto"
    """Device that trains. auto: one GPU per worker if the cluster has enough, otherwise the CPU."""
    storage: str = "~/dist_resnet"
    """Where runs are stored: a local path or URI of an object store that every node can access."""
    name: str | None = None
    """Name of the run, a folder in the storage. If it exists, the run resumes. Unset: the job's name and the first
    digits of the recipe's fingerprint, so that the same command resumes and a changed recipe is a new run."""
    precision: Literal["fp32", "tf32", "bf16", "fp16"] = "fp32"
    """Precision of training; evaluation is always fp32. fp32: as the published tables. tf32: faster on GPUs, rounds
    factors to 10 bits. bf16: autocast to bfloat16, faster still on GPUs, but changes the gradients of deep networks
    visibly (docs/paper-map.md); slow on older CPUs. fp16: autocast with loss scaling, GPUs only."""
    decode_on: Decode = "auto"
    """Where DALI decodes JPEGs. auto: on the device that trains. pillow: with Pillow on the CPU, which is slower and is
    used whenever DALI is not installed; pixels of truncated JPEGs differ slightly."""
    cpus_per_worker: int | None = None
    """CPU cores per worker, which limits its threads. If the CPU trains, another number changes the rounding. Unset: as
    many as leave room for all workers; 1 for each trial of a sweep."""
    log_every: int = field(default=10, metadata=_RARE)
    """Steps between writes to the journal. Each write holds the numbers of every step."""
    max_damaged_fraction: float = field(default=0.001, metadata=_RARE)
    """Fraction of training images that may be damaged. Beyond it, the run stops and lists them."""
    spare_outputs: bool = field(default=False, metadata=_RARE)
    """Allow --model.num-classes to exceed the number of classes in the training images."""
    tracking: Tracking = field(default_factory=Tracking)
    checkpoints: Checkpoints = field(default_factory=Checkpoints)
    recovery: Recovery = field(default_factory=Recovery)
    performance: Performance = field(default_factory=Performance)
    cache: Cache = field(default_factory=Cache)

    def __post_init__(self) -> None:
        _check_literals(self)
        _ = self.worker_range  # raises ValueError if the text is not a range
        _at_least("execution.log_every", self.log_every, 1)
        if not 0 <= self.max_damaged_fraction <= 1:
            raise ValueError(f"execution.max_damaged_fraction must be in 0 .. 1, got {self.max_damaged_fraction}")
        if self.cpus_per_worker is not None:
            _at_least("execution.cpus_per_worker", self.cpus_per_worker, 1)
        if self.name is not None:
            _check_name(self.name)
        if not self.storage:
            raise ValueError("execution.storage is empty; give a local path or URI of an object store")

    @property
    def worker_range(self) -> tuple[int, int]:
        """The smallest and the largest number of workers. Raises ValueError if `workers` is neither N nor MIN:MAX."""
        found = re.fullmatch(r"([1-9]\d*)(?::([1-9]\d*))?", str(self.workers))
        least, most = (int(found[1]), int(found[2] or found[1])) if found else (1, 0)
        if least > most:
            raise ValueError(
                f"execution.workers must be a number of at least 1, or MIN:MAX such as 2:8, got {self.workers!r}"
            )
        return least, most

    @property
    def most_workers(self) -> int:
        """The largest number of workers."""
        return self.worker_range[1]


def check_pair(recipe: Recipe, execution: Execution) -> None:
    """Raises ValueError if the execution has more workers than the recipe has ghost batches."""
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
        _read_back(recipe), lambda entry, value: _is_location(entry, value) or _is_added_default(entry, value)
    )
    for path, old, new in _OLD_VALUES:
        _, part, name = path.split(".")
        if numbers[part][name] == new:
            numbers[part][name] = old
    return json.dumps(numbers, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _read_back(recipe: Recipe) -> Recipe:
    """The recipe after a round trip through JSON, so that 5 epochs and 5.0 epochs are the same."""
    return type(recipe).from_dict(recipe.to_dict())


def _without(config: Any, left_out: Callable[[dataclasses.Field, Any], bool]) -> dict[str, Any]:
    """A config's fields except those left out, as JSON values."""
    values = {}
    for entry in dataclasses.fields(config):
        value = getattr(config, entry.name)
        if not left_out(entry, value):
            values[entry.name] = _without(value, left_out) if dataclasses.is_dataclass(value) else value
    return json.loads(json.dumps(values))


def _is_location(entry: dataclasses.Field, _: Any) -> bool:
    return bool(entry.metadata.get("location"))


def _is_added_default(entry: dataclasses.Field, value: Any) -> bool:
    """Whether a field was added after the first release and has its default."""
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
    """`value`, read from JSON, as the field's type. Raises ValueError if it is of another type."""
    value = next((new for name, old, new in _OLD_VALUES if name == where and value is old), value)
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
    """Raises ValueError if a run's name cannot name a folder or be typed as an argument."""
    if not name.strip(". ") or name.startswith("-") or _NOT_IN_A_NAME.search(name):
        raise ValueError(
            "execution.name must be the name of one folder, without slashes and control characters, and must not begin "
            f"with a dash, got {name!r}"
        )
    if (length := len(name.encode(errors="surrogateescape"))) > _LONGEST_NAME:
        raise ValueError(
            f"execution.name has {length} bytes, more than the {_LONGEST_NAME} allowed: {name[:40]!r}...; shorten it"
        )
    if name in _TAKEN_NAMES:
        raise ValueError(f"execution.name {name} is used by MLflow in the storage; choose another name")


def _check_colors(mean: Color | None, std: Color | None) -> None:
    """Raises ValueError unless mean and deviation are both given or both left out, and those of values in [0, 1]."""
    if (mean is None) != (std is None):
        given, lacking = ("mean", "std") if std is None else ("std", "mean")
        raise ValueError(f"data.{given} is given without data.{lacking}; give --data.mean and --data.std, or neither")
    for name, values, least in (("mean", mean, "0"), ("std", std, "above 0")):
        low_enough = values is None or all(
            value <= 1 and (value > 0 or (name, value) == ("mean", 0)) for value in values
        )
        if values is not None and (len(values) != 3 or not low_enough):
            raise ValueError(
                f"data.{name} must be three numbers from {least} to 1, for red, green and blue, got {values}; divide "
                "levels of 0 .. 255 by 255"
            )


def _above_zero(name: str, value: float) -> None:
    if not value > 0:
        raise ValueError(f"{name} must be above 0, got {value}")


def _at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")


def _in_range(name: str, value: float, low: float, high: float, *, open_end: bool = False) -> None:
    if not (low <= value <= high) or (open_end and value == high):
        raise ValueError(f"{name} must be in [{low:g}, {high:g}{')' if open_end else ']'}, got {value}")


def _rising(name: str, pair: tuple[float, float]) -> None:
    if len(pair) != 2 or not pair[0] <= pair[1]:
        raise ValueError(f"{name} must be a rising pair, got {pair}")
