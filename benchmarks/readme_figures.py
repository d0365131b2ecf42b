"""The README's figures of speed, from RESULTS.txt: python benchmarks/readme_figures.py [--check]

Writes them into the README, or with --check only says whether they are there.
"""

import pathlib
import sys

import report
import tables

HERE = pathlib.Path(__file__).resolve().parent
RESULTS, README = HERE / "RESULTS.txt", HERE.parent / "README.md"
BEGIN, END = "<!-- speed: made by benchmarks/readme_figures.py -->\n", "<!-- speed ends -->\n"
ACTIVE = (8, 4, 2, 1)
MEASURED_ELSEWHERE = 0.87  # PaddleRec's own step over the dense mixture in plain Paddle, examples a second
PLAIN = "dense mixture in plain Paddle (eager, default settings)"
# what the README calls them -> table step's variants, by experts in use
STEPS = {
    "**ours**, dynamic graph": {n: f"eager, {n} of 8" for n in ACTIVE},
    "**ours**, dynamic graph, `runner.to_static`": {n: f"to_static, {n} of 8" for n in ACTIVE},
    "**ours**, static graph": {n: f"static, {n} of 8" for n in ACTIVE},
    PLAIN: {8: tables.BASELINE},
    "PaddleRec's own step (default settings)": {8: tables.PADDLEREC},
    "PyTorch, dense (default settings)": {8: "PyTorch, dense"},
    "PyTorch, dense, `torch.compile`": {8: "PyTorch, dense, compiled"},
    "PyTorch, dense, experts as one grouped convolution": {8: "PyTorch, dense, grouped"},
    "PyTorch, dense, grouped, `torch.compile`": {8: "PyTorch, dense, grouped, compiled"},
    "PyTorch, experts without weight skipped (default settings)": {2: "PyTorch, skipping, 2 of 8"},
    "PyTorch, just two experts, `torch.compile`": {2: "PyTorch, fixed, compiled, 2 of 8"},
    "PyTorch, just two experts, grouped, `torch.compile`": {2: "PyTorch, fixed, grouped, compiled, 2 of 8"},
}
ABOUT_TORCH = (
    "PyTorch has two threads. Where its settings are not the default ones, it runs channels-last with the fused Adam,",
    "and glibc told to keep memory; where it is compiled, inference has frozen weights.",
)
INFERENCE = {**STEPS, "**ours**, exported, Paddle Inference with oneDNN": {8: "exported dense", 2: "exported pruned"}}


def section(machine, records, promised):
    """The README's lines between the markers.

    Args:
        machine, records, promised: from ``report.read``.
    """
    facts = machine["machine"]
    versions = {**facts.get("of PyTorch's process", {}), **facts["versions"]}
    libraries = ", ".join(f"{name} {versions[name]}" for name in ("paddlepaddle", "torch") if name in versions)
    where = f"batch {machine['sizes']['batch']}, {libraries}, {facts['cores']} cores of an {facts['cpu']}"
    lines = [f"Measured with {where}.", "", "Examples a second in training, by experts in use:", ""]
    lines += _table(STEPS, ACTIVE, records["step"])
    lines += ["", *ABOUT_TORCH, "", *_about_paddlerec(records["step"]), "", "Examples a second at inference:", ""]
    lines += _table(INFERENCE, (8, 2), records["inference"])
    lines += ["", "What is promised, and what this run gave; a ratio is the median of quotients within a round:", ""]
    lines += ["| figure | promised | measured |", "| --- | --- | --- |"]
    lines += [f"| {row['figure']} | {row['target']} | {_measured(row)} |" for row in promised["rows"]]
    return "\n".join(lines) + "\n"


def _table(names, columns, record):
    rates = {row["variant"]: f"{row['examples/s']:.0f}" for row in record["rows"] if "examples/s" in row}
    lines = ["| | " + " | ".join(f"{n} of 8" for n in columns) + " |", "| --- |" + " --- |" * len(columns)]
    for name, variants in names.items():
        cells = [rates.get(variants.get(n), "") for n in columns]
        if any(cells):
            lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def _about_paddlerec(record):
    """How fast PaddleRec's own step is: in this run, or else where it was measured before."""
    row = next((row for row in record["rows"] if row["variant"] == tables.PADDLEREC and "ms" in row), None)
    ratio, where = MEASURED_ELSEWHERE, "on another machine"
    if row:
        ratio, where = row[f"against {tables.BASELINE}"][0], "in this run"
    lines = [
        "The dense mixture in plain Paddle is our own code. PaddleRec's own step computes another function (softmax",
        f"twice, one gate for all tasks). It reached {ratio:.2f} times the dense mixture's examples a second, {where}",
        "(`make bench TABLES=step PADDLEREC=FOLDER`).",
    ]
    if ratio < 1:
        lines[-1] += " Our dense mixture is the faster one, so its multiples flatter PaddleRec."
    return lines


def _measured(row):
    if row["measured"] is None:
        return "not measured"
    number = f"{row['measured']:.0f}" if row["measured"] >= 100 else f"{row['measured']:.3g}"
    return number + ("" if row["kept"] else ", **not kept**")


def filled(readme, results):
    """The README's text with the figures of a run's output."""
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    assert begin and end, f"the README needs the lines {BEGIN!r} and {END!r}"
    return before + begin + section(*report.read(results)) + end + after


def main():
    readme = README.read_text(encoding="utf-8")
    wanted = filled(readme, RESULTS.read_text(encoding="utf-8"))
    if sys.argv[1:] == ["--check"]:
        sys.exit(0 if readme == wanted else "README.md: figures of speed differ from benchmarks/RESULTS.txt's")
    README.write_text(wanted, encoding="utf-8")


if __name__ == "__main__":
    main()
