"""ImageNet, pre-activation ResNet-200, scale augmentation: Table 5 of arXiv:1603.05027.

    python jobs/imagenet_preact200.py --demo
    python jobs/imagenet_preact200.py --data.train "/data/imagenet/train-*.parquet" \
        --data.validation "/data/imagenet/validation-*.parquet" --execution.workers 8 \
        --execution.storage s3://bucket/runs

Expected after 90 epochs: top-1 error 20.7 %, top-5 error 5.3 % at a single 320 x 320 crop. The row "scale + aspect
ratio" (20.1 %, 4.8 %) is the same with --augment.kind inception. About three weeks on the paper's 8 GPUs.
"""

from dist_resnet.cli import run_job
from dist_resnet.recipe import Augment, Data, Evaluation, Execution, Model, Optimizer, Recipe, Schedule

RECIPE = Recipe(
    # As released in facebook/fb.resnet.torch: stride on the 3x3 convolution.
    model=Model(depth=200, num_classes=1000, placement="full_preactivation", stride_on="conv3x3"),
    data=Data(train="imagenet/train-*.parquet", validation="imagenet/validation-*.parquet", dataset="imagenet"),
    augment=Augment(kind="scale", size=224, shorter_side=(256, 480), flip=True, color=True),
    # Departs from the paper: its text says momentum; the released code, facebook/fb.resnet.torch, takes Nesterov's.
    optimizer=Optimizer(momentum=0.9, nesterov=True, weight_decay=1e-4),
    schedule=Schedule(kind="step", learning_rate=0.1, drops=(30 / 90, 60 / 90)),
    evaluation=Evaluation(crops=(224, 320), shorter_sides=(256, 320)),
    epochs=90,
    # 8 GPUs of 32 pictures each in the paper: 8 ghost batches, on any number of workers up to 8.
    global_batch=256,
    ghost_batch=256 // 8,
)
EXECUTION = Execution(checkpoint_every=1000)

if __name__ == "__main__":
    run_job(RECIPE, EXECUTION, doc=__doc__)
