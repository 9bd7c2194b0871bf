r"""Fine-tunes trained weights on your own images.

    python jobs/prepare_imagenet.py --source ~/flowers --target flowers
    python jobs/finetune.py --initial.weights models:/preact-resnet200@champion --data.train "flowers/train-*.parquet" \
        --data.validation "flowers/validation-*.parquet"
    python jobs/finetune.py --initial.weights resnet50.pth --initial.freeze all-but-head \
        --data.train "flowers/train-*.parquet" --data.validation "flowers/validation-*.parquet"

The weights are a registered model, a run STORAGE/NAME, one of its checkpoints, or a file of this project, torchvision
or timm (docs/initial-weights.md). Network, crops and colors are those that the weights were trained with; the values
that --help shows are for published ImageNet weights. The classifier is kept if its classes are those of the images, by
name; otherwise it is new, with as many outputs as there are classes, and learns ten times as fast as the other layers.

The defaults suit some thousand images. With --initial.freeze all-but-head, only the classifier learns, which takes a
third of the time and suits some dozen images a class. The model is registered under the name of the images' folder.
"""

from dist_resnet.cli import run_job
from dist_resnet.recipe import (
    Augment,
    Checkpoints,
    Data,
    Evaluation,
    Execution,
    Model,
    Optimizer,
    Recipe,
    Schedule,
)

RECIPE = Recipe(
    model=Model(depth=50, placement="original", stride_on="conv3x3", widening="projection"),
    data=Data(train="images/train-*.parquet", validation="images/validation-*.parquet", dataset="imagenet"),
    augment=Augment(kind="inception", size=224, area=(0.25, 1.0), flip=True),
    optimizer=Optimizer(momentum=0.9, nesterov=True, weight_decay=1e-4),
    # A tenth of training's rate for layers that know something, all of it for a classifier that does not.
    schedule=Schedule(kind="cosine", learning_rate=0.01, head_factor=10, warmup=0.05, warmup_kind="linear"),
    evaluation=Evaluation(crops=(224,), shorter_sides=(256,)),
    epochs=30,
    # On up to two workers; BN with statistics of 32 images is as the published networks were trained.
    global_batch=64,
    ghost_batch=32,
)
EXECUTION = Execution(precision="fp32", checkpoints=Checkpoints(every=500))

if __name__ == "__main__":
    run_job(RECIPE, EXECUTION, doc=__doc__, follows_weights=True)
