"""The table of a question's results: python experiments/table.py -m experiments/census.yaml

A row for each network: of each number that the question reports, and of their mean, the mean over the seeds and in
brackets the least and the greatest. Speeds come from the runs of --speed alone. Nothing is measured here.
"""

import argparse
import pathlib
import statistics
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / folder) for folder in ("experiments", "tools")]

import lines  # noqa: E402  (the path is set above)
import question as questions  # noqa: E402  (likewise)

from engine.errors import UserError  # noqa: E402  (likewise)


def table(question):
    """The lines of the table, in markdown.

    Raises:
        UserError: there is no result yet, a number is not among them, or a network has results of two settings.
    """
    found = [line for line in lines.read(question.results) if "error" not in line]
    names = [*question.networks, *dict.fromkeys(line["network"] for line in found)]  # its own first, then baselines
    rows = [_row(question, name, found) for name in dict.fromkeys(names)]
    rows = [row for row in rows if row is not None]
    if not rows:
        raise UserError(f"{question.results}: there is no result yet. Run experiments/run.py.")
    titles = [title for title in rows[0] if any(row[title] for row in rows)]
    cells = [titles, ["---"] * len(titles), *([row[title] for title in titles] for row in rows)]
    return ["| " + " | ".join(texts) + " |" for texts in cells]


def _row(question, network, found):
    """Title -> text; None where the network has no final run. An empty text: not measured."""
    final = [line for line in _of(found, "final", network) if line["seed"] in question.seeds]
    if not final:
        return None
    if len({str(sorted(line["overrides"].items())) for line in final}) > 1:
        raise UserError(f"{question.results}: {network} has final lines of two settings. Remove those that are older.")
    try:
        values = {name: [line["test"][name] for line in final] for name in question.report}
        experts = [line["test"].get("experts_used") for line in final]
    except KeyError as error:
        raise UserError(f"{question.results}: a final line of {network} has no {error} of the test.") from error
    if len(values) > 1:
        values["mean"] = [statistics.fmean(of_seed) for of_seed in zip(*values.values())]
    speed = [line for line in _of(found, "speed", network) if line["overrides"] == final[0]["overrides"]]
    return {
        "": network,
        **{name: _spread(numbers) for name, numbers in values.items()},
        "seeds": str(len(final)),
        "experts in use": _range(experts),
        "parameters": f"{final[0]['parameters']}" if "parameters" in final[0] else "",
        "chosen": ", ".join(
            f"{key.rpartition('.')[2]} {value}"
            for key, value in final[0]["overrides"].items()
            if key not in question.networks.get(network, {})
        ),
        "training, s": _median(speed, "training_s"),
        "training, examples/s": _median(speed, "train_examples_s"),
        "serving, examples/s": _median(speed, "serve_examples_s"),
    }


def _of(found, stage, network):
    return [line for line in found if line["stage"] == stage and line["network"] == network]


def _spread(numbers):
    """Mean (least-greatest); of one number, itself."""
    if len(numbers) == 1:
        return f"{numbers[0]:.5f}"
    return f"{statistics.fmean(numbers):.5f} ({min(numbers):.5f}-{max(numbers):.5f})"


def _range(numbers):
    known = [number for number in numbers if number is not None]
    if not known:
        return ""
    least, greatest = min(known), max(known)
    return f"{least:g}" if least == greatest else f"{least:g}-{greatest:g}"


def _median(found, key):
    numbers = [line[key] for line in found if line.get(key) is not None]
    return f"{statistics.median(numbers):.0f}" if numbers else ""


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-m", "--question", required=True, metavar="PATH", help="YAML file of a question")
    try:
        print("\n".join(table(questions.read(parser.parse_args().question))))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
