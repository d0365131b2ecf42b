"""Draw how the gates settle, from a training's log in JSON: python scripts/plot_gates.py run.json --out gates.png

A training writes the log with -o runner.log_json=run.json; runner.print_interval says how many steps lie between two
points. One picture a task, one line an expert. Needs matplotlib.
"""

import argparse
import json
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from dselect_k_model import output_files  # noqa: E402  (found by the line above)


def last_run(path):
    """The lines of the last run in a log, those of its resumed parts included.

    Raises:
        ValueError: the file is no log of a training.
    """
    runs, lines = {}, []
    with open(path, encoding="utf-8") as file:
        for text in file:
            try:
                line = json.loads(text)
            except ValueError:  # a killed run's last line
                continue
            if not isinstance(line, dict) or "event" not in line:
                raise ValueError("it is no log that runner.log_json names")
            if line["event"] == "start":
                lines = runs.setdefault(line.get("run"), [])
            lines.append(line)
    trainings = [lines for run, lines in runs.items() if run is not None]
    if not trainings:
        raise ValueError("there is no training in it")
    return trainings[-1]


def weights_over_time(lines):
    """(examples seen at each point, title -> expert's number -> its weight at each point; 0 where it is not in use)."""
    # a resumed run logs the steps that it takes again, again: the later line counts
    at = {(line["epoch"], line["batch"]): line for line in lines if line["event"] == "interval" and line["status"]}
    points = [at[place] for place in sorted(at)]
    of_epochs = {line["epoch"]: line["examples"] for line in lines if line["event"] == "epoch"}
    before = {epoch: sum(of_epochs.get(e, 0) for e in range(epoch)) for epoch, _ in at}
    seen = [before[point["epoch"]] + point["epoch_examples"] for point in points]
    titles = points[0]["status"] if points else {}
    weights = {}
    for title in titles:
        experts = sorted({name for point in points for name in point["status"][title]}, key=int)
        weights[title] = {name: [point["status"][title].get(name, 0.0) for point in points] for name in experts}
    return seen, weights


def draw(figure, log):
    """Draw the lines of a log on an empty matplotlib figure: one pair of axes a task."""
    seen, weights = weights_over_time(log)
    if not weights:
        raise ValueError("it has no gate weights. Was it written by a training of this package?")
    all_axes = figure.subplots(1, len(weights), sharey=True, squeeze=False)[0]
    for axes, (title, of_expert) in zip(all_axes, weights.items()):
        lines = {}
        for name, values in of_expert.items():
            (lines[name],) = axes.plot(seen, values, color=f"C{int(name) % 10}", linewidth=2)
        used = sorted((name for name in of_expert if of_expert[name][-1] > 0), key=lambda name: -of_expert[name][-1])
        axes.legend(
            [lines[name] for name in used], [f"expert {name}" for name in used], frameon=False, loc="upper left"
        )
        axes.set_title(title)
        axes.set_xlabel("examples seen in training")
        axes.set_xlim(0, seen[-1])
        axes.set_ylim(0, 1)
        axes.spines[["top", "right"]].set_visible(False)
    all_axes[0].set_ylabel("weight")
    figure.tight_layout()


def main():
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("log", help="what runner.log_json named")
    parser.add_argument("--out", default="gates.png", help="the picture to write (default: gates.png)")
    args = parser.parse_args()
    with output_files.exit_on_error():
        output_files.check_file(args.out, "--out")
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot

        figure = pyplot.figure(figsize=(9, 3.2))
        try:
            draw(figure, last_run(args.log))
        except ValueError as error:
            raise ValueError(f"{args.log}: {error}") from error
        form = os.path.splitext(args.out)[1][1:] or None
        output_files.write_file(args.out, lambda file: figure.savefig(file, format=form, dpi=110), "--out")
    print(f"picture: {args.out}")


if __name__ == "__main__":
    main()
