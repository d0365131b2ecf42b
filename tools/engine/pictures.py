"""Pictures of trainings from their logs in JSON (``runner.log_json``), of any package. Needs matplotlib."""

import argparse
import hashlib
import json
import os
from dataclasses import dataclass

from engine.shared import output_files

# of a config: what may differ between trainings that only the seed tells apart
OF_ONE_RUN = {"config_abs_dir", "yaml_path"}
OF_ONE_RUN |= {f"runner.{name}" for name in "seed log_json progress resume model_save_path infer_load_path".split()}
TASKS_IN_A_ROW = 4
HEIGHT = 3.2  # in inches: of a row of gates, and at least of a table of experts


@dataclass
class Training:
    """A training's config, flat, and the lines of its log, those of its resumed parts included."""

    config: dict
    lines: list

    def last_of(self, event, *keys):
        """The lines of an event by the values of these keys, in their order.

        A resumed run logs the steps that it takes again, again: the later line counts.
        """
        found = {tuple(line[key] for key in keys): line for line in self.lines if line["event"] == event}
        return dict(sorted(found.items()))


def read(path):
    """The last training in a log.

    Raises:
        ValueError: there is none; the message names the file.
    """
    trainings, lines = {}, []
    with open(path, encoding="utf-8") as file:
        for text in file:
            try:
                line = json.loads(text)
            except ValueError:  # a killed run's last line
                continue
            if not isinstance(line, dict) or "event" not in line:
                raise ValueError(f"{path}: it is no log that runner.log_json names.")
            if line["event"] == "start":
                run = line.get("run")  # an evaluation has none
                training = trainings.setdefault(run, Training(line.get("config", {}), []))
                lines = training.lines
            lines.append(line)
    trainings.pop(None, None)
    if not trainings:
        raise ValueError(f"{path}: there is no training in it.")
    return list(trainings.values())[-1]


# ------------------------------------------------------------------------------ weights of the gates


def weights_over_time(training):
    """(examples seen at each point, title -> expert -> its weight at each point; 0 where it is not in use).

    Raises:
        ValueError: the log has no gate weights.
    """
    points = {at: line for at, line in training.last_of("interval", "epoch", "batch").items() if line["status"]}
    if not points:
        raise ValueError("it has no gate weights. Was it written by a training of this project's model?")
    of_epochs = {epoch: line["examples"] for (epoch,), line in training.last_of("epoch", "epoch").items()}
    before = {epoch: sum(of_epochs.get(e, 0) for e in range(epoch)) for epoch, _ in points}
    seen = [before[epoch] + line["epoch_examples"] for (epoch, _), line in points.items()]
    lines, weights = list(points.values()), {}
    for title in lines[0]["status"]:
        experts = sorted({name for line in lines for name in line["status"][title]}, key=int)
        weights[title] = {name: [line["status"][title].get(name, 0.0) for line in lines] for name in experts}
    return seen, weights


def draw_gates(figure, training):
    """Each task's weights over the training: a pair of axes a task, a line an expert; up to four tasks in a row."""
    from matplotlib.ticker import EngFormatter

    seen, weights = weights_over_time(training)
    rows = -(-len(weights) // TASKS_IN_A_ROW)
    figure.set_figheight(HEIGHT * rows)
    all_axes = figure.subplots(rows, min(len(weights), TASKS_IN_A_ROW), sharey=True, squeeze=False)
    for axes in all_axes.flat[len(weights) :]:
        axes.set_visible(False)
    for axes, (title, of_expert) in zip(all_axes.flat, weights.items()):
        lines = {}
        for name, values in of_expert.items():
            (lines[name],) = axes.plot(seen, values, color=f"C{int(name) % 10}", linewidth=2)
        used = sorted((name for name in of_expert if of_expert[name][-1] > 0), key=lambda name: -of_expert[name][-1])
        axes.legend(
            [lines[name] for name in used], [f"expert {name}" for name in used], frameon=False, loc="upper left"
        )
        axes.set_title(title)
        axes.set_xlabel("examples seen in training")
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))  # 50k for 50000
        axes.set_xlim(0, seen[-1])
        axes.set_ylim(0, 1)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in all_axes[:, 0]:
        axes.set_ylabel("weight")
    figure.tight_layout()


def draw_experts(figure, training):
    """The last weights as a table of colours: a row a task, a column an expert; an empty field is a weight of 0."""
    _, weights = weights_over_time(training)
    experts = sorted({name for of_expert in weights.values() for name in of_expert}, key=int)
    last = [[of_expert.get(name, [0.0])[-1] for name in experts] for of_expert in weights.values()]
    figure.set_figheight(max(HEIGHT, 1 + 0.2 * len(weights)))
    axes = figure.subplots()
    image = axes.imshow(last, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    if len(experts) * len(weights) <= 200:  # more would not be read
        for row, of_task in enumerate(last):
            for column, weight in enumerate(of_task):
                if weight > 0:
                    colour = "white" if weight > 0.5 else "black"
                    axes.text(column, row, f"{weight:.2f}", ha="center", va="center", color=colour)
    axes.set_xticks(range(len(experts)), experts)
    axes.set_yticks(range(len(weights)), [title.removesuffix(" experts") for title in weights])
    axes.set_xlabel("expert")
    figure.colorbar(image, ax=axes, label="weight")
    figure.tight_layout()


# ----------------------------------------------------------------------------------- learning curves


def groups(trainings):
    """Trainings that differ in nothing but the seed and their files: label -> list of Training.

    A label is what the group's config has other than the others', such as gate=softmax; "mean" if there is one group.
    """
    configs = [{key: value for key, value in t.config.items() if key not in OF_ONE_RUN} for t in trainings]
    names = sorted({key for config in configs for key in config})
    differing = [key for key in names if len({str(config.get(key)) for config in configs}) > 1]
    found = {}
    for training, config in zip(trainings, configs):
        values = [f"{key.rpartition('.')[2]}={config[key]}" for key in differing if key in config]
        label = ", ".join(values) or ("as configured" if differing else "mean")
        found.setdefault(label, []).append(training)
    return found


def curve(training, metric):
    """epoch, from 1 -> the metric of the validation after it, or of its training if there is no validation.

    Raises:
        ValueError: the log has no such metric; the message names those that it has.
    """
    lines = training.last_of("validation", "epoch") or training.last_of("epoch", "epoch")
    known = sorted({name for line in lines.values() for name in line["numbers"]})
    if metric not in known:
        raise ValueError(f"--metric: {metric!r} is not in a log. It has: {', '.join(known) or 'no epoch'}.")
    found = {epoch + 1: line["numbers"][metric] for (epoch,), line in lines.items()}
    return {epoch: value for epoch, value in found.items() if value is not None}


def draw_curves(figure, trainings, metrics):
    """A metric over the epochs: by group the mean as a line, and a band from the least to the greatest."""
    all_axes = figure.subplots(1, len(metrics), squeeze=False)[0]
    for axes, metric in zip(all_axes, metrics):
        for label, of_group in groups(trainings).items():
            curves = [curve(training, metric) for training in of_group]
            epochs = sorted(set.intersection(*map(set, curves)))
            values = [[of_run[epoch] for of_run in curves] for epoch in epochs]
            runs = f" ({len(curves)} runs)" if len(curves) > 1 else ""
            (line,) = axes.plot(epochs, [sum(v) / len(v) for v in values], marker="o", markersize=3, label=label + runs)
            axes.fill_between(epochs, list(map(min, values)), list(map(max, values)), color=line.get_color(), alpha=0.2)
        axes.set_title(metric)
        axes.set_xlabel("epochs")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.spines[["top", "right"]].set_visible(False)
    figure.set_layout_engine("constrained")
    if len(trainings) > 1:
        figure.legend(*all_axes[0].get_legend_handles_labels(), loc="outside lower center", frameon=False)


# -------------------------------------------------------------------------------------- command line


def main(arguments=None):
    """The command line of tools/plot.py.

    Raises:
        SystemExit: with code 2, after one message, if the user made a mistake.
    """
    parser = argparse.ArgumentParser(
        description="Draw a picture from the logs of trainings (-o runner.log_json=run.json)."
    )
    parser.add_argument(
        "what", choices=("gates", "experts", "curves"), help="gates over time, experts by tasks, or learning curves"
    )
    parser.add_argument("logs", nargs="+", metavar="LOG", help="what runner.log_json named; several for curves only")
    parser.add_argument("--metric", nargs="+", default=["loss"], help="for curves: names of metrics (default: loss)")
    parser.add_argument("--out", help="the picture to write: .png, .svg or .pdf (default: the kind's name, .png)")
    args = parser.parse_args(arguments)
    with output_files.exit_on_error():
        _draw(args, args.out or f"{args.what}.png")


def _draw(args, out):
    if args.what != "curves" and len(args.logs) > 1:
        raise ValueError(f"{args.what} are drawn of one log, but {len(args.logs)} are given.")
    output_files.check_file(out, "--out")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    trainings = [read(path) for path in args.logs]
    figure = Figure(figsize=(max(9, 4.5 * len(args.metric)), 4))  # gates and experts set their height
    FigureCanvasAgg(figure)
    try:
        if args.what == "curves":
            draw_curves(figure, trainings, args.metric)
        else:
            {"gates": draw_gates, "experts": draw_experts}[args.what](figure, trainings[0])
    except ValueError as error:
        raise ValueError(f"{', '.join(args.logs)}: {error}") from error
    form = os.path.splitext(out)[1][1:] or "png"
    facts = {"Subject" if form == "pdf" else "Source": _source(args)}
    output_files.write_file(out, lambda file: figure.savefig(file, format=form, dpi=110, metadata=facts), "--out")
    print(f"picture: {out}")


def _source(args):
    """What a picture's file says about itself: its kind and metrics, and the names and digests of its logs."""
    words = [" ".join([args.what, *(args.metric if args.what == "curves" else ())])]
    for path in args.logs:
        with open(path, "rb") as file:
            words.append(f"{os.path.basename(path)} sha256 {hashlib.sha256(file.read()).hexdigest()}")
    return "; ".join(words)
