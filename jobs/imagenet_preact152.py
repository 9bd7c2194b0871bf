"""ImageNet, pre-activation ResNet-152, scale augmentation: Table 5 of arXiv:1603.05027.

    python jobs/imagenet_preact152.py --demo
    python jobs/imagenet_preact152.py --data.train "/data/imagenet/train-*.parquet" \
        --data.validation "/data/imagenet/validation-*.parquet" --execution.workers 8 \
        --execution.storage s3://bucket/runs

Expected after 90 epochs: top-1 error 21.1 %, top-5 error 5.5 % at a single 320 x 320 crop. The original unit
(--model.placement original) is the row above it: 21.3 %, 5.5 %.
"""

from dist_resnet.cli import run_job
from dist_resnet.recipe import Augment, Data, Evaluation, Execution, Model, Optimizer, Recipe, Schedule

RECIPE = Recipe(
    model=Model(depth=152, num_classes=1000, placement="full_preactivation", stride_on="conv3x3"),
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
