r"""ImageNet, pre-activation ResNet-200, scale and aspect ratio augmentation: Table 5 of arXiv:1603.05027.

    python jobs/imagenet_preact200_aspect.py --demo
    python jobs/imagenet_preact200_aspect.py --data.train "/data/imagenet/train-*.parquet" \
        --data.validation "/data/imagenet/validation-*.parquet" --execution.workers 8 \
        --execution.storage s3://bucket/runs

Expected after 90 epochs: top-1 error 20.1 %, top-5 error 4.8 % at a single 320 x 320 crop. The paper took about
three weeks on 8 GPUs. The row "scale" (20.7 %, 5.3 %) is jobs/imagenet_preact200.py.

The recipe follows facebook/fb.resnet.torch, with which the authors released this row: weight decay for all weights and
biases, Nesterov's momentum, jitter of brightness, contrast, saturation and lighting, stride on the 3x3 convolution of a
bottleneck unit, fp32. With --execution.precision tf32 or bf16, GPUs are faster; the effect on the error is unknown at
this depth.

Departures, each likely worth 0.2 points of top-1 error or less (docs/paper-map.md):

- Images are resized with bilinear interpolation and antialiasing; that code uses bicubic without antialiasing.
- The logarithm of the crop's aspect ratio is drawn uniformly.
- The last images of an epoch that do not fill a batch are left out.
"""

from dist_resnet.cli import run_job
from dist_resnet.recipe import Augment, Checkpoints, Data, Evaluation, Execution, Model, Optimizer, Recipe, Schedule

RECIPE = Recipe(
    model=Model(depth=200, num_classes=1000, placement="full_preactivation", stride_on="conv3x3"),
    data=Data(train="imagenet/train-*.parquet", validation="imagenet/validation-*.parquet", dataset="imagenet"),
    augment=Augment(kind="inception", size=224, area=(0.08, 1.0), aspect=(3 / 4, 4 / 3), flip=True, color="full"),
    # Departs from the paper: its text says momentum; the released code uses Nesterov's.
    optimizer=Optimizer(momentum=0.9, nesterov=True, weight_decay=1e-4, decay_norm_and_bias=True),
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
