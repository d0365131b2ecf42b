"""A run's output, written and read back; and the docs' figures from it: python benchmarks/report.py [OUTPUT]

A run prints each table for readers, and below it the line of JSON from which all of the table is made. As a script,
this puts the tables of an output in RESULTS.txt, and fills docs/speed.md and both READMEs in from that.
"""

import json
import pathlib
import re
import sys

import yaml
from measuring import columns, ratio

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent
ONLY_JSON = ("seconds", "aucs", "key", "of")  # columns that are not printed
RESULTS = HERE / "RESULTS.txt"
PROMISES = yaml.safe_load((HERE / "promises.yaml").read_text(encoding="utf-8"))
BEGIN, END = "<!-- speed: made by benchmarks/report.py -->\n", "<!-- speed ends -->\n"
PADDLEREC, BASELINE = "PaddleRec's own step", "plain Paddle, dense"
LIBRARIES = {"torch-rechub": "torch-rechub", "deepctr-torch": "DeepCTR-Torch"}  # distribution -> as the rows name it
MEASURED_ELSEWHERE = 0.87  # examples a second of PaddleRec's own step over those of the baseline
READ_THE_ROWS = """
`eager`, `to_static` and `static` are this package: in the dynamic graph, there with `runner.to_static`, and in the
static graph; `exported` is its exported model in Paddle Inference, with oneDNN for batches of images. *Plain Paddle,
dense* computes every expert: one convolution per expert, ReLU before pooling. PyTorch's *grouped* computes the experts
as one network, *compiled* is `torch.compile` (at inference with frozen weights), *skipping* looks at every step for the
experts that have weight, and *fixed* has only the two experts in use.

"""
READ_THE_LIBRARIES = """
{} are networks of these libraries as they come,
with our sizes, in a plain loop with Adam. Their softmax gates weigh every expert for each example: another function
than ours, and all experts are computed. torch-rechub's layers have batch norm. The PLE has one level: three experts for
each task, and two that the tasks share.
"""
READ_THE_LATENCIES = """
Milliseconds of a call at inference, by batch size: its median (p50) and 99th percentile (p99). The exported model has
two of 8 experts, or all 8 with a per-example gate, of which each example needs two; PyTorch's forms have two. A process
is stopped while others have their turn, so the first calls of a turn do not count.
"""
READ_THE_CENSUS = """
Trained on [Census-Income](../examples/census/README.md#the-whole-file): `static` with the gate of DSelect-k and with
softmax gates (MMoE), and the networks of the two libraries. All have the sizes of the table above, the same rows in the
same order, Adam at the rate 0.003, and neither dropout nor weight decay. AUC is on the test rows: mean +- standard
deviation over the seeds, which decide initial values and the order. The rate and the number of epochs are, of eight
pairs, the best on validation for each of these networks; nothing else was searched. Examples a second are those of
the whole training, in which the gates of DSelect-k settle.
"""
NOT_MEASURED = "Not measured yet."


# ------------------------------------------------------------------------------- a run's output


def machine_lines(record):
    return [json.dumps(record)]


def table_lines(record):
    """A table's lines.

    Args:
        record: dict with table, title, seconds, commit, difference, examples (in a step), rows, notes.
    """
    record = json.loads(json.dumps(record, default=float))  # to print exactly what will be read back
    lines = [
        "",
        f"{record['title']}  [{record['table']}, {record['seconds']:.0f} s, {record['commit']}]",
        *_align(record["rows"]),
    ]
    if record["difference"] is not None:
        lines.append(f"greatest difference of a prediction from the dense network's: {record['difference']:.1e}")
    return lines + record["notes"] + [json.dumps(record)]


def acceptance_lines(rows, seconds):
    """What is promised against what was measured.

    Args:
        rows: {table: its rows}.
        seconds: of the whole run.
    """
    found = kept(rows)
    record = {"table": "acceptance", "seconds": seconds, "rows": found}
    return ["", *_align(found), json.dumps(record), f"{seconds:.0f} s in all"]


def kept(tables):
    """Which promises are kept.

    Args:
        tables: {table: its rows}; tables may be missing.
    Returns:
        A dict for each promise: key, figure, target, measured, kept, and the variants compared as "of". Measured and
        kept are None if a variant was not measured.
    """
    found = []
    for promise in PROMISES:
        rows = {row["variant"]: row for row in tables.get(promise["table"], ())}
        names = [promise["variant"], *promise.get("against", ())]
        compared = [rows[name] for name in names if name in rows and "absent" not in rows[name].get("process", "")]
        at_least, value, is_kept, of = "at_least" in promise, None, None, names[:1]
        limit = promise["at_least"] if at_least else promise["at_most"]
        if len(compared) == len(names):
            row, *others = compared
            base = min(others, key=lambda other: other["ms"][0] if "ms" in other else 0, default=None)
            value = _measured(promise, row, base)
            is_kept = value >= limit if at_least else value <= limit
            of = of + ([base["variant"]] if base else [])
        unit = "x" if "against" in promise else f" {promise['column']}"
        target = f"{'>=' if at_least else '<='} {limit}{unit}"
        found.append({"key": promise["key"], "figure": promise["figure"], "target": target})
        found[-1].update(measured=value, kept=is_kept, of=of)
    return found


def _measured(promise, row, base):
    if "column" in promise:
        value = row[promise["column"]]
        return (value[0] if isinstance(value, (list, tuple)) else value) / (base[promise["column"]] if base else 1)
    slow, fast = (base, row) if "at_least" in promise else (row, base)
    return ratio(slow["seconds"], fast["seconds"]).median


def _align(rows):
    """Rows as text; columns are in the order of their first appearance."""
    names = [name for name in dict.fromkeys(name for row in rows for name in row) if name not in ONLY_JSON]
    cells = [names] + [[_text(row.get(name, "")) for name in names] for row in rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(names))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in cells]


def _text(value):
    if isinstance(value, (list, tuple)):
        return "{:.3g} ({:.3g} to {:.3g})".format(*value)
    if isinstance(value, bool):
        return "yes" if value else "NO"
    if isinstance(value, float):
        return f"{value:.0f}" if value >= 100 else f"{value:.3g}"
    return "not measured" if value is None else str(value)


def read(text):
    """A run's output -> (the machine's record, {table: record}, the acceptance table's record)."""
    machine, *records = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    records = {record["table"]: record for record in records}
    return machine, records, records.pop("acceptance")


def merged(old, new):
    """An output with the tables of ``new``, and those of ``old`` that it lacks.

    Raises:
        ValueError: some would be of another machine, of other libraries or of other sizes; or a table would lose rows.
    """
    (was, records, _), (machine, newer, _) = read(old), read(new)
    before, now = _conditions(was), _conditions(machine)
    # what only one of them has, such as PyTorch's version or the size of a new table, decided nothing in the other
    changed = [f"{key} {before[key]} -> {now[key]}" for key in before if before[key] != now.get(key, before[key])]
    left = sorted(records.keys() - newer.keys())
    if left and changed:
        raise ValueError(f"{'; '.join(changed)}: {', '.join(left)} would be of another run. Measure all tables.")
    for name in sorted(records.keys() & newer.keys()):
        lost = sorted(_variants(records[name]) - _variants(newer[name]))
        if lost:
            raise ValueError(
                f"{name}: {', '.join(lost)} was measured before, and is absent now. Give TORCH_PYTHON and PADDLEREC if "
                "the variants are theirs; if they have other names now, measure all tables."
            )
    machine = {**machine, **{key: {**was[key], **machine[key]} for key in ("machine", "sizes")}}
    records = {name: newer.get(name, record) for name, record in {**records, **newer}.items()}
    seconds = round(sum(record["seconds"] for record in records.values()), 1)
    return "\n".join(_lines(machine, records, seconds)) + "\n"


def _lines(machine, records, seconds):
    """An output's lines, from what ``read`` returns and the seconds in all."""
    of_tables = [line for record in records.values() for line in table_lines(record)]
    rows = {name: record["rows"] for name, record in records.items()}
    return [*machine_lines(machine), *of_tables, *acceptance_lines(rows, seconds)]


def _conditions(machine):
    """What two outputs must have in common to be merged."""
    facts = {key: value for key, value in machine["machine"].items() if key not in ("load", "commit")}
    return {**facts, **{f"size {name}": value for name, value in machine["sizes"].items()}}


def _variants(record):
    """The variants of a table that were measured."""
    return {row["variant"] for row in record["rows"] if "absent" not in row.get("process", "")}


def problems(text):
    """Where a run's output does not follow from the seconds in it: a list of sentences."""
    machine, records, promised = read(text)
    found = [line for record in records.values() for line in _wrong_numbers(record)]
    expected, lines = _lines(machine, records, promised["seconds"]), text.splitlines()
    if len(lines) != len(expected):
        found.append(f"there are {len(lines)} lines, not {len(expected)}")
    return found + [
        f"a line is\n  {line}\nbut should be\n  {wanted}" for line, wanted in zip(lines, expected) if line != wanted
    ]


def _wrong_numbers(record):
    seconds = {row["variant"]: row["seconds"] for row in record["rows"] if "seconds" in row}
    for row in record["rows"]:
        if row["variant"] in seconds:
            against = [column[len("against ") :] for column in row if column.startswith("against ")]
            wanted = json.loads(json.dumps(columns(row["variant"], seconds, record["examples"], against)))
            for column, value in wanted.items():
                if row[column] != value:
                    yield f"{record['table']}, {row['variant']}: {column} is {row[column]}, but should be {value}"


# ------------------------------------------------------------------------------------ the pages


def filled(page, results, lines_of):
    """A page's text with the figures of a run's output between its markers.

    Args:
        page: the text.
        results: the output.
        lines_of: a function of what ``read`` returns: ``full``, ``short`` or ``chinese``.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    assert begin and end, f"the page needs the lines {BEGIN!r} and {END!r}"
    return before + begin + "\n".join(lines_of(*read(results))) + "\n" + end + after


def full(machine, records, promised):
    """The lines of docs/speed.md."""
    lines = [f"Measured at batch size {_conditions_in_words(machine, ' with ', ', on ', ' cores of an ')}."]
    lines += [*READ_THE_ROWS.splitlines(), *_about_paddlerec(records["step"]), *_about_libraries(machine)]
    for name, what in (
        ("step", "Examples a second in training, by experts in use"),
        ("inference", "Examples a second at inference"),
        ("table_step", "On a table (MLP experts, sizes as in `examples/census`), batch {}, in training"),
        ("table_inference", "On the table at inference"),
    ):
        if name in records:
            lines += ["", f"{what.format(records[name]['examples'])}:", "", *_speeds(records[name]["rows"])]
    lines += READ_THE_LATENCIES.splitlines()
    for name, what in (("latency", "On images"), ("table_latency", "On the table")):
        found = _latencies(records[name]["rows"]) if name in records else [NOT_MEASURED]
        lines += ["", f"{what}:", "", *found]
    found = _census(records["census"]) if "census" in records else [NOT_MEASURED]
    lines += [*READ_THE_CENSUS.splitlines(), "", *found]
    lines += [
        "",
        "What is promised, and what was measured: medians of the ratios within each round.",
        "",
    ]
    return lines + _markdown(
        ["figure", "promised", "measured"],
        [[row["figure"], row["target"], _measured_text(row)] for row in promised["rows"]],
    )


def short(machine, records, promised):
    """The lines of README.md: some figures of the published network."""
    lines = [f"Batch size {_conditions_in_words(machine, ', ', ', ', ' cores of an ')}; all in one run:", ""]
    return lines + _markdown(["figure", "measured"], _some(promised, "figure"))


def chinese(machine, records, promised):
    """The lines of README.zh-CN.md: the same figures."""
    lines = [f"批次大小 {_conditions_in_words(machine, '，', '，', ' 核 ')}；在同一次运行中测得：", ""]
    return lines + _markdown(["速度之比", "倍数"], _some(promised, "zh"))


def _conditions_in_words(machine, *between):
    facts = machine["machine"]
    versions = {**facts.get("of PyTorch's process", {}), **facts["versions"]}
    libraries = ", ".join(f"{name} {versions[name]}" for name in ("paddlepaddle", "torch") if name in versions)
    values = [machine["sizes"]["batch"], libraries, facts["cores"], facts["cpu"]]
    return "".join(f"{value}{text}" for value, text in zip(values, [*between, ""]))


def _about_libraries(machine):
    """What the rows of PyTorch's libraries are, if there are any."""
    versions = machine["machine"].get("of PyTorch's process", {})
    found = [f"*{title}* {versions[name]}" for name, title in LIBRARIES.items() if name in versions]
    return READ_THE_LIBRARIES.format(" and ".join(found)).splitlines() if found else []


def _some(promised, label):
    rows = {row["key"]: row for row in promised["rows"]}
    return [[promise[label], _measured_text(rows[promise["key"]])] for promise in PROMISES if "zh" in promise]


def _speeds(rows):
    """Examples a second: the variants "NAME, 2 of 8" and so on in one row; those without a number compute 8 of 8."""
    found, processes = {}, {}
    for row in rows:
        if "examples/s" in row:
            name, used = re.fullmatch(r"(.*?)(?:, (\d) of 8)?", row["variant"]).groups()
            found.setdefault(name, {})[int(used or 8)] = f"{row['examples/s']:.0f}"
            processes[name] = row["process"]
    used = sorted({number for cells in found.values() for number in cells}, reverse=True)
    titles = ["", "process", *(f"{number} of 8" for number in used)]
    return _markdown(
        titles, [[name, processes[name], *(cells.get(n, "") for n in used)] for name, cells in found.items()]
    )


def _latencies(rows):
    """Milliseconds of a call: the variants "NAME, batch 1" and so on in one row."""
    found, processes = {}, {}
    for row in rows:
        if "p50, ms" in row:
            name, batch = re.fullmatch(r"(.*), batch (\d+)", row["variant"]).groups()
            for column in ("p50", "p99"):
                found.setdefault(name, {})[f"{column}, batch {batch}"] = f"{row[f'{column}, ms']:.3g}"
            processes[name] = row["process"]
    columns = list(dict.fromkeys(column for cells in found.values() for column in cells))
    return _markdown(
        ["", "process", *columns],
        [[name, processes[name], *(cells.get(column, "") for column in columns)] for name, cells in found.items()],
    )


def _census(record):
    """AUCs and speed of each variant that was measured."""
    columns = ("variant", "process", "AUC income", "AUC never_married", "experts in use", "examples/s")
    rows = [[_text(row[name]) for name in columns] for row in record["rows"] if "aucs" in row]
    return [f"{record['title']}:", "", *_markdown(["", *columns[1:]], rows)]


def _about_paddlerec(record):
    """How fast PaddleRec's own step is, in this run or where it was measured before."""
    row = next((row for row in record["rows"] if row["variant"] == PADDLEREC and "ms" in row), None)
    speed, where = (row[f"against {BASELINE}"][0], "in this run") if row else (MEASURED_ELSEWHERE, "on another machine")
    lines = [
        "PaddleRec's own step computes a different function (softmax twice, one gate for all tasks). It reached",
        f"{speed:.2f} times the examples a second of *plain Paddle, dense*, {where}",
        "(`make bench TABLES=step PADDLEREC=FOLDER`).",
    ]
    return lines + ["So ours is the harder baseline."] * (speed < 1)


def _measured_text(row):
    if row["measured"] is None:
        return "not measured"
    number = f"{row['measured']:.0f}" if row["measured"] >= 100 else f"{row['measured']:.3g}"
    return number + ("" if row["kept"] else ", **not kept**")


def _markdown(titles, rows):
    return [f"| {' | '.join(cells)} |" for cells in [titles, ["---"] * len(titles), *rows]]


PAGES = {ROOT / "docs" / "speed.md": full, ROOT / "README.md": short, ROOT / "README.zh-CN.md": chinese}


if __name__ == "__main__":
    for output in sys.argv[1:]:
        try:
            text = merged(RESULTS.read_text(encoding="utf-8"), pathlib.Path(output).read_text(encoding="utf-8"))
        except ValueError as error:
            print(f"error: {RESULTS} is kept as it is: {error}", file=sys.stderr)
            sys.exit(2)
        RESULTS.write_text(text, encoding="utf-8")
    for path, lines_of in PAGES.items():
        page = filled(path.read_text(encoding="utf-8"), RESULTS.read_text(encoding="utf-8"), lines_of)
        path.write_text(page, encoding="utf-8")
