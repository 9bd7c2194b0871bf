r"""ImageNet, pre-activation ResNet-200, scale augmentation: Table 5 of arXiv:1603.05027.

    python jobs/imagenet_preact200.py --demo
    python jobs/imagenet_preact200.py --data.train "/data/imagenet/train-*.parquet" \
        --data.validation "/data/imagenet/validation-*.parquet" --execution.workers 8 \
        --execution.storage s3://bucket/runs

Expected after 90 epochs: top-1 error 20.7 %, top-5 error 5.3 % at a single 320 x 320 crop. The paper took about
three weeks on 8 GPUs. The row "scale + aspect ratio" (20.1 %, 4.8 %) is jobs/imagenet_preact200_aspect.py.

The recipe follows the code of arXiv:1512.03385, which the paper used for this row: weight decay for the weights of
convolutions and classifier only, plain momentum, lighting as the only change of color, stride on the first 1x1
convolution of a bottleneck unit, fp32. With --execution.precision tf32 or bf16, GPUs are faster; the effect on the
error is unknown at this depth. docs/paper-map.md lists the departures from the paper, each likely worth 0.2 points of
top-1 error or less.
"""

from dist_resnet.cli import run_job
from dist_resnet.recipe import Augment, Checkpoints, Data, Evaluation, Execution, Model, Optimizer, Recipe, Schedule

RECIPE = Recipe(
    model=Model(depth=200, num_classes=1000, placement="full_preactivation", stride_on="conv1x1"),
    data=Data(train="imagenet/train-*.parquet", validation="imagenet/validation-*.parquet", dataset="imagenet"),
    augment=Augment(kind="scale", size=224, shorter_side=(256, 480), flip=True, color="lighting"),
    optimizer=Optimizer(momentum=0.9, weight_decay=1e-4, decay_norm_and_bias=False),
    schedule=Schedule(kind="step", learning_rate=0.1, drops=(30 / 90, 60 / 90)),
    evaluation=Evaluation(crops=(224, 320), shorter_sides=(256, 320)),
    epochs=90,
    # 8 GPUs of 32 images each in the paper: 8 ghost batches, on any number of workers up to 8.
    global_batch=256,
    ghost_batch=256 // 8,
)
EXECUTION = Execution(precision="fp32", checkpoints=Checkpoints(every=1000))

if __name__ == "__main__":
    run_job(RECIPE, EXECUTION, doc=__doc__)
