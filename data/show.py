"""Look at a Multi-MNIST folder: python data/show.py FOLDER

Prints how often each class occurs, and writes a contact sheet: a PNG of examples with their labels (top left, bottom
right). With --predictions, a file of tools/predict.py, it shows the predictions instead, in red where they are wrong.
Needs matplotlib.
"""

import argparse
import csv
import itertools
import os
import sys
import warnings

import numpy as np

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)
warnings.filterwarnings("ignore", "No ccache found")  # what Paddle says when it is imported

from dselect_k_model import output_files  # noqa: E402  (found by the path above)
from make_multi_mnist import describe  # noqa: E402  (beside this file)
from multiMNIST_reader import RecDataset  # noqa: E402  (likewise)

ROWS, COLUMNS = 5, 10


def read_predictions(path):
    """The (top left, bottom right) that tools/predict.py wrote for the first examples.

    Raises:
        ValueError: the file has no such columns.
    """
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(itertools.islice(csv.DictReader(file), ROWS * COLUMNS))
    try:
        return [(int(row["prediction1"]), int(row["prediction2"])) for row in rows]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} has no columns prediction1 and prediction2 of whole numbers") from error


def contact_sheet(images, labels, path, predictions=None):
    """Write examples as a PNG, with their labels or with the predictions, which are red where wrong."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(ROWS, COLUMNS, figsize=(COLUMNS * 1.1, ROWS * 1.3))
    for axis in axes.flat:
        axis.axis("off")
    shown = labels if predictions is None else predictions
    for axis, image, label, pair in zip(axes.flat, images, labels, shown):
        axis.imshow(image, cmap="gray", vmin=0, vmax=255)
        is_wrong = any(known >= 0 and one != known for one, known in zip(pair, label))
        axis.set_title(f"{pair[0]}, {pair[1]}", fontsize=9, color="red" if is_wrong else "black")
    shown_are = "labels" if predictions is None else "predictions, red where wrong"
    figure.suptitle(f"{shown_are} (top left, bottom right)", fontsize=10)
    figure.tight_layout()
    form = os.path.splitext(path)[1][1:] or None
    output_files.write_file(path, lambda file: figure.savefig(file, format=form, dpi=100), "--out")


def main():
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("folder")
    parser.add_argument("--out", default="contact_sheet.png", help="the PNG (default: contact_sheet.png)")
    parser.add_argument("--part", choices=("train", "test"), help="the half of a four-array file")
    parser.add_argument("--predictions", metavar="CSV", help="what tools/predict.py wrote for this folder")
    args = parser.parse_args()
    with output_files.exit_on_error():
        output_files.check_file(args.out, "--out")
        if not os.listdir(args.folder):
            raise ValueError(f"{args.folder} is empty")
        paths = [os.path.join(args.folder, name) for name in sorted(os.listdir(args.folder))]
        data = RecDataset(paths, config={"runner.data_part": args.part})
        print(describe(args.folder, data.labels))
        predictions = read_predictions(args.predictions) if args.predictions else None
        first = np.arange(min(len(data), ROWS * COLUMNS))
        contact_sheet(data.images[first], data.labels[first], args.out, predictions)
    print(f"contact sheet: {args.out}")


if __name__ == "__main__":
    main()
