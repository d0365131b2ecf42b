"""Run an experiment: python experiments/run.py -m experiments/census.yaml

Each network is trained with every trial of the search; the trial with the best validation is trained with every seed,
and evaluated on the test data. Each run adds a line to the experiment's file of results. Started again, this runs only
what has no line. A run that failed has a line with its error; remove the line to try again. Two processes may share the
work, each with its --networks; or, once the search is done, with its --seeds.
"""

import json
import math
import os
import pathlib
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.parse
import warnings

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / folder) for folder in ("experiments", "tools", "scripts")]

warnings.filterwarnings("ignore", "No ccache found")  # Paddle's, when it is imported

import experiment as experiments  # noqa: E402  (the path is set above)
import machine_facts  # noqa: E402

from engine import directions, pictures  # noqa: E402
from engine.checkpoints import manifests  # noqa: E402
from engine.errors import UserError, shown  # noqa: E402


class RunFailed(UserError):
    """A run ended with an error, which its line will have."""


TOOLS = {
    ("dynamic", "train"): "trainer",
    ("dynamic", "infer"): "infer",
    ("static", "train"): "static_trainer",
    ("static", "infer"): "static_infer",
}


def tool(name, config, *overrides, cwd):
    """The finished process of one of the project's tools; it ends when this process is ended."""
    command = [sys.executable, str(ROOT / "tools" / f"{name}.py"), "-m", str(config), "-o", *overrides]
    # A handler that raised before Popen returns would leave a process that nobody ends.
    arrived = []
    handler = signal.signal(signal.SIGTERM, lambda number, frame: arrived.append(number))
    with subprocess.Popen(command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            signal.signal(signal.SIGTERM, handler)
            if arrived:
                signal.raise_signal(signal.SIGTERM)
            stdout, stderr = process.communicate()
        except BaseException:
            process.kill()
            raise
    return subprocess.CompletedProcess(command, process.returncode, stdout, stderr)


def train_and_evaluate(experiment, run):
    """Train, and evaluate the epoch that the validation chooses.

    Args:
        experiment: experiments.Experiment.
        run: dict with stage, overrides and seed; in the stage search the test data are not read.
    Returns:
        dict: epoch, validation, higher_is_better (of the metric), parameters, training_s, epoch_s, train_examples_s,
        experts_in_use (see below) and versions; of the other stages also test, test_weights (title of a task's weights
        in the log -> expert -> weight), serve_examples_s and export_bytes.
    Raises:
        RunFailed: a tool ended with an error.
    """
    config, graph, metric = experiment.config, experiment.graph, experiment.metric
    with tempfile.TemporaryDirectory() as folder:
        own = {"runner.seed": run["seed"], "runner.keep_best": metric, "runner.log_json": "log.json"}
        own.update({"runner.model_save_path": "output", "runner.infer_load_path": "output"})
        own.update({"runner.export_path": "exported", "runner.predict_path": "predictions.npz"})
        options = experiments.as_options({**run["overrides"], **own})
        run_tool(TOOLS[graph, "train"], config, options, folder)
        if run["stage"] == "final" and experiment.logs:
            keep_log(experiment, run, folder)
        events = events_of(folder)
        validation = {event["epoch"]: event["numbers"] for event in events if event["event"] == "validation"}
        epoch = events[-1]["epoch"] if events[-1].get("best_by") == metric else None
        if epoch not in validation:
            raise RunFailed(
                f"no epoch has a finite {metric} of the validation. Set runner.validation_data_dir, and a metric that "
                "the validation has."
            )
        facts = manifests.read_facts(os.path.join(folder, "output", str(epoch)))
        found = {"epoch": epoch, "validation": validation[epoch], **training_speed(events)}
        stated = directions.stated([metric], facts.get("higher_is_better", {}))
        found["higher_is_better"] = stated.get(metric, directions.guessed(metric))
        found["parameters"] = sum(map(_size, facts["parameters"].values()))
        found["experts_in_use"] = experts_in_use(events)
        found["versions"] = {**events[0]["versions"], "python": sys.version.split()[0]}
        if run["stage"] != "search":
            run_tool(TOOLS[graph, "infer"], config, [*options, f"runner.infer_epoch={epoch}"], folder)
            evaluated = [event for event in events_of(folder) if event["event"] == "epoch"][-1]
            found["test"], found["test_weights"] = evaluated["numbers"], evaluated["status"]
            run_tool("export", config, [*options, f"runner.export_epoch={epoch}"], folder)
            files = pathlib.Path(folder, "exported").rglob("*")
            found["export_bytes"] = sum(path.stat().st_size for path in files if path.is_file())
            found["serve_examples_s"] = serving_speed(run_tool("predict", config, options, folder))
    return found


def run_tool(name, config, options, folder):
    """Run a tool; returns its log."""
    done = tool(name, config, *options, cwd=folder)
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        errors = [line for line in lines if line.startswith("error: ")]
        raise RunFailed(f"{name}: {(errors or lines or ['no message'])[-1]} (exit code {done.returncode})")
    return done.stderr


def events_of(folder):
    """What the tools have written to ``runner.log_json``."""
    with open(os.path.join(folder, "log.json"), encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def keep_log(experiment, run, folder):
    """Copy the log of a run's training into the experiment's folder of logs."""
    os.makedirs(experiment.logs, exist_ok=True)
    name = f"{urllib.parse.quote(run['network'], safe='')}_{run['seed']}.json"
    shutil.copyfile(os.path.join(folder, "log.json"), os.path.join(experiment.logs, name))


def training_speed(events):
    """Seconds of all epochs; the medians of an epoch's seconds, and of the examples a second of the intervals.

    An epoch's first interval does not count: it is one step, and that of the first epoch is the slowest.
    """
    seconds = [event["seconds"] for event in events if event["event"] == "epoch"]
    rates = [event["examples_per_s"] for event in events if event["event"] == "interval" and event["batch"] > 0]
    return {
        "training_s": round(sum(seconds), 2),
        "epoch_s": round(statistics.median(seconds), 2),
        "train_examples_s": round(statistics.median(rates), 1) if rates else None,
    }


def experts_in_use(events):
    """How many experts each task uses over a training, as the log's intervals say: per example, in the last batch.

    Returns:
        [[examples seen, title of a task's weights -> number of experts with a weight above 0], ...], the first point
        and then those at which a number changes; [] if the log has no weights.
    """
    try:
        seen, weights = pictures.weights_over_time(pictures.Training({}, events))
    except ValueError:
        return []
    found = []
    for i, examples in enumerate(seen):
        numbers = {task: sum(values[i] > 0 for values in experts.values()) for task, experts in weights.items()}
        if not found or found[-1][1] != numbers:
            found.append([examples, numbers])
    return found


def serving_speed(log):
    """Examples a second of the exported model alone, from the log of ``predict``."""
    return float(re.search(r"the model alone ([\d.]+) ins/s", log).group(1))


def _size(described):
    """How many numbers are in an array that a manifest describes as float32[720, 50]."""
    return math.prod(int(size) for size in re.findall(r"\d+", described.partition("[")[2]))


def fingerprint_of(experiment, run):
    own = {"runner.seed": run["seed"], "runner.keep_best": experiment.metric}
    return experiments.fingerprint(experiment.config, {**run["overrides"], **own})


class Runner:
    """Runs what has no result line yet, and adds the lines.

    Args:
        experiment: experiments.Experiment.
        measure: (experiment, run) -> dict with "validation"; may raise RunFailed. A run is a dict with stage, network,
            overrides and seed.
        fingerprint: (experiment, run) -> text.
    """

    def __init__(self, experiment, measure=train_and_evaluate, fingerprint=fingerprint_of):
        self.experiment, self.measure, self.fingerprint = experiment, measure, fingerprint
        self.lines = experiments.read_lines(experiment.results)

    def run(self, trials_of, seeds, stage):
        """All runs of an experiment.

        Args:
            trials_of: network -> its trials, each a dict of overrides.
            seeds: of the chosen trials; the search uses the experiment's first.
            stage: "final"; or "speed": the chosen trials once more, with the first seed.
        Raises:
            UserError: runs failed; those of the other networks have been done all the same.
        """
        failed = []
        first = self.experiment.seeds[0]
        chosen = {network: self.best_trial(network, trials, first) for network, trials in trials_of.items()}
        for seed in seeds if stage == "final" else seeds[:1]:
            for network, overrides in chosen.items():
                if overrides is None or "error" in self._line(stage, network, overrides, seed):
                    failed.append(network)
        if failed:
            raise UserError(
                f"{self.experiment.results}: runs of {', '.join(dict.fromkeys(failed))} failed. Their lines have the "
                "errors; remove them to try again."
            )

    def best_trial(self, network, trials, seed):
        """The trial whose validation is best, the first of equals; None if every one failed."""
        if len(trials) == 1:
            return trials[0]
        lines = [self._line("search", network, overrides, seed) for overrides in trials]
        scores = [line.get("validation", {}).get(self.experiment.metric) for line in lines]
        known = [place for place, score in enumerate(scores) if score is not None]
        stated = [line["higher_is_better"] for line in lines if "higher_is_better" in line]
        sign = 1 if (stated or [directions.guessed(self.experiment.metric)])[0] else -1
        return trials[max(known, key=lambda place: (sign * scores[place], -place))] if known else None

    def _line(self, stage, network, overrides, seed):
        """The line of a run, after running it if it has none."""
        run = {"stage": stage, "network": network, "overrides": overrides, "seed": seed}
        run["fingerprint"] = self.fingerprint(self.experiment, run)
        for line in self.lines:
            if all(line[key] == run[key] for key in ("stage", "network", "fingerprint")):
                return line
        facts = machine_facts.measured_on("*.jsonl", "experiments/logs/*")
        began = time.perf_counter()
        try:
            found = self.measure(self.experiment, run)
            outcome = f"validation {self.experiment.metric} {found['validation'][self.experiment.metric]}"
        except RunFailed as error:
            outcome, found = str(error), {"error": str(error)}
        line = {**run, **found, "seconds": round(time.perf_counter() - began, 2), **facts}
        experiments.add_line(self.experiment.results, line)
        self.lines.append(line)
        keys = " ".join(f"{key}={value}" for key, value in overrides.items())
        print(f"{stage}, {network}, {keys}, seed {seed}: {outcome} ({line['seconds']:.0f} s)")
        return line


def run(path, stage="final", networks=None, seeds=None):
    """Run what the experiment at ``path`` still needs.

    Args:
        networks, seeds: those to run; None: all.
    Raises:
        UserError: a mistake that the message explains.
    """
    experiment = experiments.read(path)
    for kind, wanted, known in (("network", networks, [*experiment.networks]), ("seed", seeds, experiment.seeds)):
        unknown = [one for one in wanted or [] if one not in known]
        if unknown:
            raise UserError(f"{path} has no {kind} {shown(unknown[0])}, but {', '.join(map(str, known))}.")
    trials = experiments.trials(experiment.search)
    trials_of = {
        name: [{**keys, **trial} for trial in trials]
        for name, keys in experiment.networks.items()
        if networks is None or name in networks
    }
    Runner(experiment).run(trials_of, seeds or experiment.seeds, stage)


def command_line(description, run, **options):
    """Call run(path of the experiment, stage, and the values of further options) by the command line."""

    def act(args):
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # its tool ends with it
        further = {name: getattr(args, name) for name in options}
        run(args.experiment, "speed" if args.speed else "final", **further)

    words = "measure speeds: the chosen trials once more; on an idle machine"
    experiments.command_line(description, act, speed={"action": "store_true", "help": words}, **options)


if __name__ == "__main__":
    words = "run only these; another process may run others at the same time"
    of_networks = {"nargs": "+", "metavar": "NAME", "help": words}
    command_line(__doc__, run, networks=of_networks, seeds={**of_networks, "type": int, "metavar": "SEED"})
