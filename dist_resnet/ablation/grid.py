"""The cells of the CIFAR tables, as recipes: Tables 1, 2 and 3 of arXiv:1603.05027, and the depth-20 replication.

A cell's recipe is the paper's CIFAR recipe with only the settings of the cell's row changed. As published, networks of
basic units (20, 56, 110) widen with channels of zeros, those of bottleneck units (164, 1001) with 1x1 convolutions. The
row "ResNet-110 (1-layer skip)" of Table 3 is left out: no recipe describes it.
"""

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal, get_args

from dist_resnet import paper
from dist_resnet.data.datasets import DATASETS
from dist_resnet.data.input.order import steps_per_epoch
from dist_resnet.model.depths import layout_of
from dist_resnet.recipe import Data, MatchClasses, Placement, Recipe, Shortcut
from dist_resnet.wording import some

Published = paper.Table1 | paper.Table2 | paper.Table3 | paper.Replication
Dataset = Literal["cifar10", "cifar100"]

TABLES = ("1", "2", "3", "replication")
_CIFAR_IMAGES = 50_000
_PLACEMENTS: tuple[Placement, ...] = get_args(Placement)
_SHORTCUTS: tuple[Shortcut, ...] = get_args(Shortcut)


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One number of a table: a network to train, and its published error if there is one."""

    key: str
    """Table, row and depth, such as table1/exclusive_gating_bias-6/110; safe in file names and URLs."""
    table: str
    """One of `TABLES`, or `full`."""
    row: str
    """The row's name within its table."""
    published: Published | None
    """The cell's key in `dist_resnet.paper`; None if it was not published at this depth."""
    recipe: Recipe
    """The network's recipe, with seed 0."""

    @property
    def depth(self) -> int:
        """Weighted layers."""
        return self.recipe.model.depth

    @property
    def dataset(self) -> str:
        """cifar10 or cifar100."""
        return self.recipe.data.dataset

    @property
    def paper_error(self) -> float | None:
        """The published error in percent; None if there is none or it is "fail"."""
        return _published_error(self.published)

    @property
    def paper_fail(self) -> bool:
        """Whether the paper prints "fail"."""
        return self.published is not None and self.paper_error is None


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The cells to run, for how long and how often."""

    tables: tuple[str, ...] = TABLES
    """Tables whose rows are run: 1 (shortcuts, ResNet-110), 2 (placements, ResNet-110 and 164), 3 (original and
    pre-activation, up to ResNet-1001), replication (ResNet-20)."""
    depths: tuple[int, ...] = ()
    """Numbers of layers at which rows are run; the paper has errors only for its own. Unset: the table's."""
    seeds: int = 5
    """Runs of each cell, with seeds 0, 1, ...; the paper's errors are medians of 5 runs."""
    iterations: int = paper.CIFAR_ITERATIONS
    """Optimizer steps of a run, to which the schedule scales. The paper: 64000."""
    datasets: tuple[Dataset, ...] = ("cifar10",)
    """Data sets. cifar100 adds the lower half of Table 3 and needs --data.train100 and --data.validation100."""
    shortcuts: tuple[Shortcut, ...] = ()
    """Run only rows with these shortcuts. Unset: all."""
    placements: tuple[Placement, ...] = ()
    """Run only rows with these placements. Unset: all."""
    cells: tuple[str, ...] = ()
    """Run only these cells, named as --list prints them. Unset: all."""
    grid: Literal["tables", "full"] = "tables"
    """tables: the rows of --tables. full: every shortcut with every placement, at each of --depths or at 20 layers."""

    def __post_init__(self) -> None:
        for name in self.tables:
            if name not in TABLES:
                raise ValueError(f"unknown table {name!r}; allowed are {', '.join(TABLES)}")
        for name, least in (("iterations", self.iterations), ("seeds", self.seeds)):
            if least < 1:
                raise ValueError(f"{name} must be at least 1, got {least}")
        if not self.datasets:
            raise ValueError("datasets is empty; give cifar10, cifar100 or both")


@dataclass(frozen=True, kw_only=True)
class Images:
    """The images of each data set: folders or globs of Parquet shards, as local paths or URIs of object stores."""

    train: str = "cifar10/train-*.parquet"
    """CIFAR-10's training images."""
    validation: str = "cifar10/test-*.parquet"
    """CIFAR-10's test images."""
    train100: str = "cifar100/train-*.parquet"
    """CIFAR-100's training images. Only for --datasets cifar100."""
    validation100: str = "cifar100/test-*.parquet"
    """CIFAR-100's test images. Only for --datasets cifar100."""
    label_column: str | None = None
    """Column of CIFAR-10's shards that holds the labels. Unset: `label`, or the only column with a usual name for
    labels."""
    label_column100: str | None = None
    """Column of CIFAR-100's shards that holds the labels, such as fine_label. Unset: as for CIFAR-10."""
    match_classes: MatchClasses = "names"
    """How the classes of test images are matched to those of training images. names: by class name, in any order.
    numbers: by label, whatever the names."""

    def data(self, dataset: str) -> Data:
        """A data set as the recipe's `data`."""
        is_100 = dataset == "cifar100"
        return Data(
            train=self.train100 if is_100 else self.train,
            validation=self.validation100 if is_100 else self.validation,
            dataset="cifar100" if is_100 else "cifar10",
            label_column=self.label_column100 if is_100 else self.label_column,
            match_classes=self.match_classes,
        )


def bases(
    recipe: Recipe, choice: Choice, images: Images, sizes: Mapping[str, int] = MappingProxyType({})
) -> dict[str, Recipe]:
    """The recipe for each data set, with its classes and images, and with the epochs for the chosen iterations.

    `sizes` gives the number of training images of each data set; by default that of CIFAR.
    """
    found = {}
    for dataset in ("cifar10", "cifar100"):
        steps = steps_per_epoch(sizes.get(dataset, _CIFAR_IMAGES), recipe.global_batch)
        found[dataset] = dataclasses.replace(
            recipe,
            model=dataclasses.replace(recipe.model, num_classes=DATASETS[dataset].num_classes),
            data=images.data(dataset),
            epochs=choice.iterations / steps,
        )
    return found


def choose(choice: Choice, bases: Mapping[str, Recipe]) -> list[Cell]:
    """The chosen cells, in the order of the tables.

    `bases` holds the recipe for each data set. Raises ValueError for an unknown cell, a depth that no CIFAR network
    has, and a choice without cells.
    """
    for depth in choice.depths:
        if layout_of(depth).stem != "cifar":
            raise ValueError(
                f"depth {depth} is an ImageNet network's; CIFAR networks have 6n+2 layers (basic units, such as 20, "
                "56, 110) or 9n+2 (bottleneck units, such as 164, 1001)"
            )
    cells = [
        cell
        for row in _rows(choice)
        if row.dataset in choice.datasets
        for depth in choice.depths or row.depths
        for cell in [_cell(row, depth, bases[row.dataset])]
        if not choice.shortcuts or cell.recipe.model.shortcut in choice.shortcuts
        if not choice.placements or cell.recipe.model.placement in choice.placements
    ]
    known = [cell.key for cell in cells]
    for key in choice.cells:
        if key not in known:
            raise ValueError(f"unknown cell {key!r}; the other options select {_some(known)}; --list prints all")
    cells = [cell for cell in cells if not choice.cells or cell.key in choice.cells]
    if not cells:
        raise ValueError(
            f"no cell of --tables {' '.join(choice.tables)} has the chosen data sets, shortcuts and placements; "
            "CIFAR-100 is only in table 3; leave out one of the options"
        )
    return cells


@dataclass(frozen=True, kw_only=True)
class _Row:
    table: str
    name: str
    depths: tuple[int, ...]
    """Depths at which the table has the row."""
    changes: dict[str, Any]
    """The row's settings of `recipe.Model`."""
    published: dict[int, Published]
    """By depth."""
    dataset: str = "cifar10"


def _rows(choice: Choice) -> Iterator[_Row]:
    if choice.grid == "full":
        yield from _full_rows()
        return
    makers = {"1": _table_1, "2": _table_2, "3": _table_3, "replication": _replication}
    for table in TABLES:
        if table in choice.tables:
            yield from makers[table]()


def _table_1() -> Iterator[_Row]:
    for key in paper.TABLE_1:
        # The paper has one row "0 to -5"; it is run at 0.
        if key.shortcut == "exclusive_gating" and key.gate_bias in (-1.0, -2.0, -3.0, -4.0, -5.0):
            continue
        settings = {name: value for name, value in key._asdict().items() if value is not None}
        yield _Row(
            table="1",
            name=_table_1_name(key),
            depths=(110,),
            changes=settings | {"placement": "original"},
            published={110: key},
        )


def _table_1_name(key: paper.Table1) -> str:
    """The row's name: the shortcut and the settings that distinguish it.

    >>> _table_1_name(paper.Table1("exclusive_gating", gate_bias=-6.0))
    'exclusive_gating_bias-6'
    >>> _table_1_name(paper.Table1("constant_scaling", shortcut_scale=0.5, residual_scale=1.0))
    'constant_scaling_0.5_1'
    """
    if key.gate_bias is not None:
        return f"{key.shortcut}_bias{key.gate_bias:g}"
    if key.shortcut_scale is not None:
        return f"{key.shortcut}_{key.shortcut_scale:g}_{key.residual_scale:g}"
    return "original" if key.shortcut == "identity" else key.shortcut


def _table_2() -> Iterator[_Row]:
    for placement in _PLACEMENTS:
        published: dict[int, Published] = {key.depth: key for key in paper.TABLE_2 if key.placement == placement}
        yield _Row(
            table="2",
            name=placement,
            depths=tuple(published),
            changes={"shortcut": "identity", "placement": placement},
            published=published,
        )


def _table_3() -> Iterator[_Row]:
    keys = [key for key in paper.TABLE_3 if key.layers_skipped is None]
    for dataset, placement in dict.fromkeys((key.dataset, key.placement) for key in keys):
        published: dict[int, Published] = {
            key.depth: key for key in keys if (key.dataset, key.placement) == (dataset, placement)
        }
        yield _Row(
            table="3",
            name=f"{dataset}_{placement}",
            depths=tuple(published),
            changes={"shortcut": "identity", "placement": placement},
            published=published,
            dataset=dataset,
        )


def _replication() -> Iterator[_Row]:
    """Every pair for which the replication has an error or a rank."""
    pairs = [(shortcut, "original") for shortcut in paper.REPLICATION_20_SHORTCUTS]
    pairs += [("identity", placement) for placement in paper.REPLICATION_20_PLACEMENTS]
    pairs += [(key.shortcut, key.placement) for key in paper.REPLICATION_20]
    for shortcut, placement in dict.fromkeys(pairs):
        key = paper.Replication(shortcut, placement)
        yield _pair("replication", key, {20: key} if key in paper.REPLICATION_20 else {})


def _full_rows() -> Iterator[_Row]:
    for shortcut in _SHORTCUTS:
        for placement in _PLACEMENTS:
            key = paper.Replication(shortcut, placement)
            published: dict[int, Published] = {20: key} if key in paper.REPLICATION_20 else {}
            if shortcut == "identity":
                published |= {found.depth: found for found in paper.TABLE_2 if found.placement == placement}
            yield _pair("full", key, published)


def _pair(table: str, key: paper.Replication, published: dict[int, Published]) -> _Row:
    return _Row(
        table=table,
        name=f"{key.shortcut}-{key.placement}",
        depths=(20,),
        changes={"shortcut": key.shortcut, "placement": key.placement},
        published=published,
    )


def _cell(row: _Row, depth: int, base: Recipe) -> Cell:
    model = dataclasses.replace(base.model, depth=depth, **row.changes)
    return Cell(
        key=f"{f'table{row.table}' if row.table.isdigit() else row.table}/{row.name}/{depth}",
        table=row.table,
        row=row.name,
        published=row.published.get(depth),
        recipe=dataclasses.replace(base, model=model),
    )


def _published_error(key: Published | None) -> float | None:
    match key:
        case paper.Table1():
            return paper.TABLE_1[key]
        case paper.Table2():
            return paper.TABLE_2[key]
        case paper.Table3():
            return paper.TABLE_3[key]
        case paper.Replication():
            return paper.REPLICATION_20[key]
    return None


def trial_name(cell: Cell, seed: int) -> str:
    """The folder of a cell's run with a seed, such as `table1-dropout-110-seed0`."""
    return f"{re.sub('/', '-', cell.key)}-seed{seed}"


def _some(keys: Sequence[str]) -> str:
    return some(keys) or "none"
