r"""The CIFAR tables of arXiv:1603.05027 as one sweep: Tables 1, 2 and 3, and a public replication at ResNet-20.

    python jobs/cifar_ablation.py --demo
    python jobs/cifar_ablation.py --list
    python jobs/prepare_cifar.py --source cifar-10-batches-py --target cifar10
    python jobs/cifar_ablation.py --data.train "cifar10/train-*.parquet" \
        --data.validation "cifar10/test-*.parquet"
    python jobs/cifar_ablation.py --tables 1 2 replication --depths 20 --seeds 1 --iterations 1600
    python jobs/cifar_ablation.py --grid full --depths 20 --shortcuts identity conv1x1
    python jobs/cifar_ablation.py --execution.name NAME --report-only

The same command resumes a sweep, whatever stopped it. The report is in STORAGE/NAME/report/; jobs/ablation_results.py
writes the results of one or more sweeps to files.

Expected after 64k steps, medians of 5 runs: Table 1 from 6.61 % (original) to 12.86 % and "fail"; Table 2 from 5.46 %
(full pre-activation, ResNet-164) to 8.17 %; Table 3 4.92 % for ResNet-1001. The row "ResNet-110 (1-layer skip)" of
Table 3 is left out: no recipe describes it.
"""

import dataclasses
import sys
from dataclasses import dataclass
from typing import Annotated

from dist_resnet import cli, logs
from dist_resnet.ablation.grid import Choice, Images, bases, choose
from dist_resnet.paper import CIFAR_ITERATIONS as ITERATIONS
from dist_resnet.recipe import (
    Augment,
    Checkpoints,
    Data,
    Evaluation,
    Execution,
    Model,
    Optimizer,
    Performance,
    Recipe,
    Schedule,
)

# What all cells share; a table's rows change the model. The iterations give a run's epochs.
RECIPE = Recipe(
    # As in KaimingHe/resnet-1k-layers: stride on the first 1x1 convolution of a bottleneck unit.
    model=Model(depth=110, num_classes=10, placement="original", stride_on="conv1x1"),
    data=Data(train="cifar10/train-*.parquet", validation="cifar10/test-*.parquet", dataset="cifar10"),
    augment=Augment(kind="pad", size=32, padding=4, flip=True),
    optimizer=Optimizer(momentum=0.9, weight_decay=1e-4, decay_norm_and_bias=False),
    # 0.01 for the first 400 iterations, then 0.1, divided by 10 at 32k and 48k.
    schedule=Schedule(
        kind="step",
        learning_rate=0.1,
        drops=(32_000 / ITERATIONS, 48_000 / ITERATIONS),
        warmup=400 / ITERATIONS,
        warmup_kind="constant",
        warmup_factor=0.1,
    ),
    evaluation=Evaluation(crops=(32,), shorter_sides=(32,)),
    # 2 GPUs of 64 images each in the paper.
    global_batch=128,
    ghost_batch=128 // 2,
)
EXECUTION = Execution(
    precision="fp32", checkpoints=Checkpoints(every=1000), performance=Performance(evaluation_batch=500)
)


@dataclass(frozen=True, kw_only=True)
class Options:
    demo: Annotated[bool, cli.FLAG] = False
    """Run Tables 1 and 2 at 8 layers on generated images, in minutes on a laptop. Other options still apply."""
    list: Annotated[bool, cli.FLAG] = False
    """Print the cells with their cost and an estimate of their time, and run nothing."""
    report_only: Annotated[bool, cli.FLAG] = False
    """Write the report of what the sweep has so far, and run nothing."""
    choice: Annotated[Choice, cli.FLAT]
    data: Images
    execution: Execution
    global_batch: int = 128
    """Images per optimizer step, in two ghost batches."""
    evaluate_every: float = 1.0
    """Epochs between evaluations."""
    trials_per_gpu: int | None = None
    """Trials that share a GPU. Unset: as many as fit into its memory by a measured step, at most 8."""
    early_stop: Annotated[bool, cli.FLAG] = False
    """Stop trials with a high error early (ASHA): after 1/8 and 1/2 of a run, a trial continues only if its error is in
    the best quarter of the earlier trials of its depth and data set. This changes the tables: a stopped trial has no
    result, and rows that start slowly, such as gates, are stopped. A resumed sweep stops the same trials."""


FULL = Options(choice=Choice(iterations=ITERATIONS), data=Images(), execution=EXECUTION)
DEMO = Options(
    choice=Choice(tables=("1", "2"), depths=(8,), seeds=1, iterations=60),
    data=Images(train="demo", validation="demo"),
    execution=dataclasses.replace(EXECUTION, log_every=1, checkpoints=Checkpoints(every=20)),
    global_batch=32,
)


def main() -> None:
    """Reads the options; lists, reports or runs the sweep."""
    options = cli.parse_options(Options, doc=__doc__, default=lambda: DEMO if "--demo" in sys.argv else FULL)
    job = "cifar_ablation-demo" if options.demo else "cifar_ablation"
    logs.configure()
    with cli.bad_input_exits():
        recipe, data, execution = recipe_of(options), options.data, options.execution
        choose(options.choice, bases(recipe, options.choice, data))
        # Imported late, so that --help and a mistyped option do not wait for torch and Ray.
        from dist_resnet.ablation import cost, sweep
        from dist_resnet.launch.demo import write_images

        if options.list:
            print(cost.listing(recipe, options.choice, data, execution), end="")
            return
        if options.report_only:
            sweep.write_report(sweep.sweep_directory(execution, job, options.choice, recipe))
            return
        if options.demo:
            drawn = write_images(dataclasses.replace(recipe, data=data.data("cifar10")), execution).data
            data = dataclasses.replace(data, train=drawn.train, validation=drawn.validation)
        planned = sweep.prepare_sweep(
            recipe,
            options.choice,
            data,
            execution,
            job=job,
            early_stop=options.early_stop,
            trials_per_gpu=options.trials_per_gpu,
        )
    with cli.failures_exit():
        lost = sweep.run(planned)
    sys.exit(1 if lost else 0)


def recipe_of(options: Options) -> Recipe:
    """The recipe that all cells share."""
    if options.global_batch % 2:
        raise ValueError(f"global_batch must be even, for two ghost batches, got {options.global_batch}")
    return dataclasses.replace(
        RECIPE,
        evaluation=dataclasses.replace(RECIPE.evaluation, every_epochs=options.evaluate_every),
        global_batch=options.global_batch,
        ghost_batch=options.global_batch // 2,
    )


if __name__ == "__main__":
    cli.run(main, advice="the same command continues the sweep")
