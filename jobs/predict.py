"""Classifies images with a trained model, and writes the classes of each image to a Parquet or CSV file.

    python jobs/predict.py --model ~/dist_resnet/NAME --images ~/photos --output predictions.parquet
    python jobs/predict.py --model models:/preact-resnet200@champion --images "s3://bucket/new/*.jpg" \
        --output s3://bucket/predictions.csv --top-k 1
    python jobs/predict.py --model ~/dist_resnet/NAME --images "/data/imagenet/validation-*.parquet" \
        --output predictions.parquet --no-exif-rotation

--images takes folders with their subfolders, globs and single files: images of any format, or Parquet files with a
column of images. Labels are not needed. The output has a row for each image, in the order of the paths: `path` (for a
row of a Parquet file FILE#ROW, counted from 0), `classes`, `names` and `probabilities` of the --top-k most probable
classes, and `error`, which is empty unless the image cannot be read. In CSV, each rank has its own columns: `class_1`,
`name_1`, `probability_1` and so on. The answers are those of the served model.

Runs on a Ray cluster if there is one, otherwise on this machine's GPUs or cores. To continue a job that was stopped or
killed, run the same command again: finished blocks are in OUTPUT.parts until OUTPUT is written.
"""

from dist_resnet import cli, logs
from dist_resnet.launch.prediction.options import Options


def main() -> None:
    """Predicts, and prints how many images the output has and how many of them could not be read."""
    options = cli.parse_options(Options, doc=__doc__)
    logs.configure()
    # Imported late, so that --help does not wait for torch and Ray.
    from dist_resnet.launch.ray import predict

    with cli.bad_input_exits():
        found = predict.predict(options)
    print(f"{found.output}: {found.images} images")
    if found.unreadable:
        print(f"{found.unreadable} of them could not be read; the first: {found.first_error}")


if __name__ == "__main__":
    cli.run(main, advice="run the same command again to predict the remaining images")
