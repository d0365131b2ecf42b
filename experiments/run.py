"""Answer a question by training: python experiments/run.py -m experiments/census.yaml

Each network is trained with every trial of the search; the trial with the best validation is trained with every seed,
and evaluated on the test data. Each run has a line in the question's file of results. Started again, it goes on with
the runs that have none. A run that failed has a line with its error; remove the line to try again.
"""

import argparse
import math
import os
import pathlib
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import warnings

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / folder) for folder in ("experiments", "tools", "benchmarks")]

warnings.filterwarnings("ignore", "No ccache found")  # what Paddle says when it is imported

import question as questions  # noqa: E402  (the path is set above)
from search import RunFailed, Search  # noqa: E402

from engine.commands import TOOLS  # noqa: E402
from engine.errors import UserError  # noqa: E402
from engine.saves import best, folders, manifests  # noqa: E402


def tool(name, config, *overrides, cwd):
    """The finished process of one of the project's tools, in a process of its own."""
    command = [sys.executable, str(ROOT / "tools" / f"{name}.py"), "-m", str(config), "-o", *overrides]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True)


def measure(question, run):
    """Train, and evaluate the epoch that the validation chooses.

    Args:
        question: from ``questions.read``.
        run: search.Run; in the stage search the test data are not looked at.
    Returns:
        dict: epoch, validation, parameters, training_s, epoch_s, train_examples_s and versions; of the other stages
        also test and serve_examples_s.
    Raises:
        RunFailed: a tool ended with an error.
    """
    with tempfile.TemporaryDirectory() as folder:
        options = _options(question, run.overrides, run.seed)
        log = _log(TOOLS[question.graph, "train"], question.config, options, folder)
        epoch, facts = _chosen_epoch(os.path.join(folder, "saves"), question.metric)
        measured = {"epoch": epoch, "validation": facts["validation"], **training_speed(log)}
        measured["parameters"] = sum(map(_size, facts["parameters"].values()))
        measured["versions"] = {**facts["versions"], "python": sys.version.split()[0]}
        if run.stage != "search":
            log = _log(
                TOOLS[question.graph, "infer"], question.config, [*options, f"runner.infer_epoch={epoch}"], folder
            )
            (measured["test"],) = done_numbers(log)
            _log("export", question.config, [*options, f"runner.export_epoch={epoch}"], folder)
            measured["serve_examples_s"] = serving_speed(_log("predict", question.config, options, folder))
    return measured


def _options(question, overrides, seed):
    own = {
        "runner.seed": seed, "runner.keep_best": question.metric, "runner.model_save_path": "saves",
        "runner.infer_load_path": "saves", "runner.export_path": "exported", "runner.predict_path": "predictions.npz",
    }  # fmt: skip
    return questions.as_options({**overrides, **own})


def _log(name, config, options, folder):
    """What a tool wrote to its log."""
    done = tool(name, config, *options, cwd=folder)
    if done.returncode:
        written = done.stderr.strip().splitlines()
        of_user = [line for line in written if line.startswith("error: ")]
        raise RunFailed(f"{name}: {(of_user or written or ['no message'])[-1]} (exit code {done.returncode})")
    return done.stderr


def _chosen_epoch(saves, metric):
    """The epoch with the best ``metric`` of the validation, and its manifest."""
    epoch = best.find(saves, folders.saved_epochs(saves), metric, best.VALIDATION)
    if epoch is None:
        raise RunFailed(
            f"no epoch was saved with a finite {metric} of the validation. Set runner.validation_data_dir, and a "
            "metric that the validation has."
        )
    return epoch, manifests.read_facts(os.path.join(saves, str(epoch)))


def _size(described):
    """Numbers in an array that a manifest describes as float32[720, 50]."""
    return math.prod(int(size) for size in re.findall(r"\d+", described.partition("[")[2]))


def done_numbers(log):
    """The numbers of each line ``epoch: N done``: a list of dicts, name -> number."""
    found = re.findall(r"epoch: \d+ done, (.*), epoch time", log)
    return [{name: float(number) for name, number in re.findall(r"(\w+): (\S+?)(?:,|$)", line)} for line in found]


def training_speed(log):
    """Seconds of all epochs, of one, and examples a second: the latter two medians, of the epochs and of the intervals.

    An epoch's first interval is left out: it is one step, and of the first epoch the slowest.
    """
    seconds = [float(number) for number in re.findall(r"epoch: \d+ done, .*epoch time: ([\d.]+) s", log)]
    rates = [float(rate) for rate in re.findall(r"batch_id: [1-9]\d*, .*ips: ([\d.]+) ins/s", log)]
    median_rate = round(statistics.median(rates), 1) if rates else None
    return {
        "training_s": round(sum(seconds), 2), "epoch_s": statistics.median(seconds), "train_examples_s": median_rate
    }  # fmt: skip


def serving_speed(log):
    """Examples a second of the exported model alone, from the log of ``predict``."""
    return float(re.search(r"the model alone ([\d.]+) ins/s", log).group(1))


def recipe_of(question, overrides, seed):
    """What tells a run of a question from others: see ``questions.recipe``."""
    return questions.recipe(question.config, {**overrides, "runner.seed": seed, "runner.keep_best": question.metric})


def answer(path, stage="final"):
    """Run what the question at ``path`` still needs.

    Raises:
        UserError: a mistake that the message explains.
    """
    question = questions.read(path)
    search = Search(
        question.results, question.metric, best.less_is_better(question.metric), lambda run: measure(question, run),
        lambda overrides, seed: recipe_of(question, overrides, seed),
    )  # fmt: skip
    trials = questions.trials(question.search)
    trials_of = {name: [{**keys, **trial} for trial in trials] for name, keys in question.networks.items()}
    search.answer(trials_of, question.seeds, stage)


def command_line(description, answer):
    """Answer the question that the command line names; code 2 after one message if the user made a mistake.

    Args:
        description: of the command.
        answer: (path of the question, stage).
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("-m", "--question", required=True, metavar="PATH", help="YAML file of a question")
    parser.add_argument(
        "--speed", action="store_true", help="measure speeds: the chosen trials once more; on an idle machine"
    )
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # its tool ends with it
    try:
        answer(args.question, "speed" if args.speed else "final")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    command_line(__doc__.splitlines()[0], answer)
