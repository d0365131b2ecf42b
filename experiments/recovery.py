"""Do related tasks share experts? python experiments/recovery.py -m experiments/groups.yaml --group-size 8

The overlap of two tasks is the sum over the experts of the lesser of their two weights, over that of the greater: 1 for
the same weights, 0 for no expert in common. A row for each network: its mean over the pairs of tasks of one group, and
over those of different groups. Of each, the mean over the seeds ± the standard deviation, and in brackets the least and
the greatest. The first --group-size tasks are a group, the next ones another, and so on.
"""

import itertools
import pathlib
import statistics
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / folder) for folder in ("experiments", "tools")]

import experiment as experiments  # noqa: E402  (the path is set above)
import table  # noqa: E402

from engine.errors import UserError  # noqa: E402


def overlap(one, other):
    """Of the weights of two tasks, expert -> weight: a number from 0 to 1; 0 if neither uses an expert."""
    pairs = [(one.get(expert, 0.0), other.get(expert, 0.0)) for expert in {*one, *other}]
    return sum(map(min, pairs)) / (sum(map(max, pairs)) or 1.0)


def overlaps(tasks, group_size):
    """(Mean over the pairs of tasks of one group, mean over the other pairs).

    Args:
        tasks: the weights of each task, expert -> weight.
        group_size: how many tasks a group has.
    """
    within, across = [], []
    for (i, one), (j, other) in itertools.combinations(enumerate(tasks), 2):
        (within if i // group_size == j // group_size else across).append(overlap(one, other))
    return statistics.fmean(within), statistics.fmean(across)


def recovery(experiment, group_size):
    """The lines of the table, in markdown.

    Raises:
        UserError: there is no network whose lines have weights, or the first two groups do not have two tasks each.
    """
    lines, rows = experiments.read_lines(experiment.results), []
    for name in experiment.networks:
        final = experiments.final_lines(experiment, name, lines)
        weights = [[*line["test_weights"].values()] for line in final if line.get("test_weights")]
        if any(group_size < 2 or len(tasks) < group_size + 2 for tasks in weights):
            raise UserError(f"--group-size is {group_size}, but must leave two groups of two tasks or more.")
        if weights:
            found = zip(*(overlaps(tasks, group_size) for tasks in weights))
            rows.append([name, *map(table.spread, found)])
    if not rows:
        raise UserError(f"{experiment.results}: there are no weights yet. Run experiments/run.py.")
    return table.markdown([["overlap of tasks", "of one group", "of different groups"], ["---"] * 3, *rows])


if __name__ == "__main__":
    size = {"type": int, "required": True, "metavar": "TASKS", "help": "how many tasks a group has"}
    experiments.command_line(
        __doc__,
        lambda args: print("\n".join(recovery(experiments.read(args.experiment), args.group_size))),
        group_size=size,
    )
