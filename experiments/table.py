"""The table of an experiment's results: python experiments/table.py -m experiments/census.yaml

A row for each network: of each metric that the experiment reports, the mean over the seeds ± the standard deviation,
and in brackets the least and the greatest; and the mean of the metrics, if all are of one kind. Of the experts: how
many are in use, together and by task (of more than four tasks, by any task), least and greatest over the seeds; and how
many examples had been seen when a task's number changed last. That says little of per-example gates, for it is the
number in a batch. This, the export's size and the speeds are medians. Speeds are those of the runs with --speed alone.
With --by-seed NETWORK, a row for each seed of one network instead. Nothing is measured here.
"""

import itertools
import pathlib
import statistics
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / folder) for folder in ("experiments", "tools")]

import experiment as experiments  # noqa: E402  (the path is set above)

from engine.errors import UserError  # noqa: E402


def table(experiment):
    """The lines of the table, in markdown.

    Raises:
        UserError: there is no result yet, a metric is not among them, or a network has results of two settings.
    """
    found = [line for line in experiments.read_lines(experiment.results) if "error" not in line]
    names = [*experiment.networks, *dict.fromkeys(line["network"] for line in found)]  # its own first, then baselines
    rows = list(filter(None, (_row(experiment, name, found) for name in dict.fromkeys(names))))
    if not rows:
        raise UserError(f"{experiment.results}: there is no result yet. Run experiments/run.py.")
    titles = [title for title in rows[0] if any(row[title] for row in rows)]
    return markdown([titles, ["---"] * len(titles), *([row[title] for title in titles] for row in rows)])


def by_seed(experiment, network):
    """The lines of a table of one network's runs, in markdown.

    Raises:
        UserError: there is no result yet, or a metric is not among them.
    """
    final = experiments.final_lines(experiment, network, experiments.read_lines(experiment.results))
    if not final:
        raise UserError(f"{experiment.results}: there is no result of {network}. Run experiments/run.py.")
    rows = [["seed", *experiment.report, "experts in use"]]
    rows.append(["---"] * len(rows[0]))
    for line in final:
        _check_metrics(experiment, line)
        values = [f"{line['test'][name]:.4f}" for name in experiment.report]
        rows.append([str(line["seed"]), *values, least_to_greatest([line["test"].get("experts_used")])])
    return markdown(rows)


def _check_metrics(experiment, line):
    for name in experiment.report:
        if name not in line["test"]:
            raise UserError(f"{experiment.results}: a final line of {line['network']} has no {name} in test.")


def markdown(rows):
    """The lines of a table of these texts."""
    return ["| " + " | ".join(texts) + " |" for texts in rows]


def _row(experiment, network, found):
    """Title -> text; None where the network has no final run. An empty text means: not measured."""
    final = experiments.final_lines(experiment, network, found)
    if not final:
        return None
    for line in final:
        _check_metrics(experiment, line)
    values = {name: [line["test"][name] for line in final] for name in experiment.report}
    experts = [line["test"].get("experts_used") for line in final]
    if len(values) > 1 and len({name.rstrip("0123456789").partition("_")[0] for name in values}) == 1:
        values["mean"] = [statistics.fmean(of_seed) for of_seed in zip(*values.values())]
    overrides = final[0]["overrides"]
    of_network = [line for line in found if line["network"] == network]
    speed = [line for line in of_network if line["stage"] == "speed" and line["overrides"] == overrides]
    searched = {key: value for key, value in overrides.items() if key not in experiment.networks.get(network, {})}
    return {
        "": network,
        **{name: spread(numbers) for name, numbers in values.items()},
        "seeds": str(len(final)),
        "experts in use": least_to_greatest(experts),
        "by task": _by_task([*zip(*filter(None, map(_experts_by_task, final)))]),
        "number unchanged after, examples": _median(map(_last_change, final)),
        "parameters": f"{final[0]['parameters']}" if "parameters" in final[0] else "",
        "chosen": ", ".join(f"{key.rpartition('.')[2]} {value}" for key, value in searched.items()),
        "training, s": _median(line.get("training_s") for line in speed),
        "training, examples/s": _median(line.get("train_examples_s") for line in speed),
        "serving, examples/s": _median(line.get("serve_examples_s") for line in speed),
        "export, KB": _median(line["export_bytes"] / 1000 for line in final if "export_bytes" in line),
    }


def _experts_by_task(line):
    """How many experts each task ends with; [] if the line does not have it."""
    return [sum(weight > 0 for weight in of_task.values()) for of_task in line.get("test_weights", {}).values()]


def _by_task(tasks):
    """The text of each task's numbers, one a seed; of more than four tasks, of all together."""
    tasks = tasks if len(tasks) <= 4 else [[*itertools.chain(*tasks)]]
    return ", ".join(map(least_to_greatest, tasks))


def _last_change(line):
    """How many examples had been seen when a task's number of experts in use changed last; None: it is not known."""
    points = line.get("experts_in_use")
    return points[-1][0] if points else None


def spread(numbers):
    """Mean ± standard deviation (least-greatest); of one number, itself."""
    if len(numbers) == 1:
        return f"{numbers[0]:.5f}"
    ends = f"{min(numbers):.5f}-{max(numbers):.5f}"
    return f"{statistics.fmean(numbers):.5f} ± {statistics.stdev(numbers):.5f} ({ends})"


def least_to_greatest(numbers):
    """Both ends of the numbers, or the one that they all are; "" if one is not known."""
    ends = [f"{end(numbers):g}" for end in (min, max)] if None not in numbers else [""]
    return "-".join(dict.fromkeys(ends))


def _median(numbers):
    """The median of those that are not None; "" if there is none."""
    numbers = [number for number in numbers if number is not None]
    return f"{statistics.median(numbers):.0f}" if numbers else ""


def main(args):
    experiment = experiments.read(args.experiment)
    print("\n".join(by_seed(experiment, args.by_seed) if args.by_seed else table(experiment)))


if __name__ == "__main__":
    experiments.command_line(__doc__, main, by_seed={"metavar": "NETWORK", "help": "a row for each of its seeds"})
