"""Related tasks in groups: python experiments/make_groups.py --out experiments/groups [--tasks 32] [--groups 4]

Each group has a hidden layer of its own, and each of its tasks is a linear function of that layer, with some noise. So
tasks of one group can share experts, and tasks of different groups have nothing to share. Written as Parquet, with a
vocabulary and a config. Tasks 0 to T/G - 1 are of group 0, and so on:

    x ~ N(0, 1) in 20 dimensions; h_g = max(A_g x + b_g, 0) with 16 units, A_g ~ N(0, 1/20), b_g ~ N(0, 1/4)
    y_t = w_t h_g, less its mean and in units of its deviation, + N(0, 0.1^2)
    w_t = sqrt(r) c_g + sqrt(1 - r) u_t, both ~ N(0, 1)

r (--likeness) is how alike the functions of a group are.
"""

import argparse
import pathlib
import subprocess
import sys

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parent.parent
INPUTS, UNITS, NOISE = 20, 16, 0.1
ROWS = {"train": 20_000, "validation": 5_000, "test": 10_000}


def labels_of(x, task_num, group_num, likeness, rng):
    """Labels [rows, tasks] of inputs [rows, INPUTS], without noise."""
    labels = []
    for _ in range(group_num):
        weight = rng.standard_normal([INPUTS, UNITS]) / INPUTS**0.5
        hidden = np.maximum(x @ weight + rng.standard_normal(UNITS) / 2, 0)
        common, own = rng.standard_normal([UNITS, 1]), rng.standard_normal([UNITS, task_num // group_num])
        labels.append(hidden @ (likeness**0.5 * common + (1 - likeness) ** 0.5 * own))
    labels = np.concatenate(labels, axis=1)
    return (labels - labels.mean(axis=0)) / labels.std(axis=0)


def main():
    import pyarrow
    import pyarrow.parquet

    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=pathlib.Path, required=True, help="folder to write")
    parser.add_argument("--tasks", type=int, default=32)
    parser.add_argument("--groups", type=int, default=4)
    parser.add_argument("--likeness", type=float, default=0.8)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    if args.groups < 1 or args.tasks < args.groups or args.tasks % args.groups:
        parser.error("--tasks must be a multiple of --groups")
    if not 0 <= args.likeness <= 1:
        parser.error("--likeness must be from 0 to 1")
    rng = np.random.default_rng(args.seed)
    x = rng.standard_normal([sum(ROWS.values()), INPUTS])
    y = labels_of(x, args.tasks, args.groups, args.likeness, rng)
    y += NOISE * rng.standard_normal(y.shape)
    inputs, labels = [f"x{i}" for i in range(INPUTS)], [f"task{i}" for i in range(args.tasks)]
    columns = {**dict(zip(inputs, x.T)), **dict(zip(labels, y.T))}
    table, begin, options = pyarrow.table(columns), 0, []
    for part, size in ROWS.items():
        (args.out / part).mkdir(parents=True, exist_ok=True)
        pyarrow.parquet.write_table(table.slice(begin, size), args.out / part / "rows.parquet")
        begin, options = begin + size, [*options, f"--{part}", args.out / part]
    made = args.out / "vocabulary.json", args.out / "config.yaml"
    for path in made:
        path.unlink(missing_ok=True)
    options += ["--dense", *inputs, "--labels", *labels, "--pieces", "0", "--out", made[0], "--config", made[1]]
    command = [sys.executable, ROOT / "data" / "make_vocabulary.py", *options]
    sys.exit(subprocess.run([*map(str, command)]).returncode)


if __name__ == "__main__":
    main()
