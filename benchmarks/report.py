"""A run's output, written and read back; and the READMEs' figures from it: python benchmarks/report.py [OUTPUT]

A run prints each table for readers, and below it the line of JSON from which all of the table is made. As a script,
this puts the tables of an output in RESULTS.txt, and fills both READMEs in from that.
"""

import json
import pathlib
import sys

import acceptance
import tables
from stage import columns
from worker import HERE, ROOT

ONLY_JSON = ("seconds", "key", "of")  # columns that are not printed
RESULTS = HERE / "RESULTS.txt"
BEGIN, END = "<!-- speed: made by benchmarks/report.py -->\n", "<!-- speed ends -->\n"
ACTIVE = (8, 4, 2, 1)
MEASURED_ELSEWHERE = 0.87  # examples a second of PaddleRec's own step over those of the dense mixture in plain Paddle
# rows of the README -> table step's variants, by experts in use
STEPS = {
    "**ours**, dynamic graph": {n: f"eager, {n} of 8" for n in ACTIVE},
    "**ours**, dynamic graph, `runner.to_static`": {n: f"to_static, {n} of 8" for n in ACTIVE},
    "**ours**, static graph": {n: f"static, {n} of 8" for n in ACTIVE},
    "dense mixture in plain Paddle (eager, default settings)": {8: tables.BASELINE},
    "PaddleRec's own step (default settings)": {8: tables.PADDLEREC},
    "PyTorch, dense (default settings)": {8: "PyTorch, dense"},
    "PyTorch, dense, `torch.compile`": {8: "PyTorch, dense, compiled"},
    "PyTorch, dense, experts grouped into one": {8: "PyTorch, dense, grouped"},
    "PyTorch, dense, grouped, `torch.compile`": {8: "PyTorch, dense, grouped, compiled"},
    "PyTorch, skipping experts without weight (default settings)": {2: "PyTorch, skipping, 2 of 8"},
    "PyTorch, only the two experts in use, `torch.compile`": {2: "PyTorch, fixed, compiled, 2 of 8"},
    "PyTorch, only the two experts in use, grouped, `torch.compile`": {2: "PyTorch, fixed, grouped, compiled, 2 of 8"},
}
INFERENCE = {**STEPS, "**ours**, exported, Paddle Inference with oneDNN": {8: "exported dense", 2: "exported pruned"}}
CHINESE = {  # key of a promise -> its label on the Chinese page
    "step static settled": "静态图训练，8 个专家中使用 2 个，与普通 Paddle 的稠密混合专家（动态图，默认设置）相比",
    "step eager settled": "动态图训练，8 个专家中使用 2 个，与同一基准相比",
    "step static all": "静态图训练，8 个专家全部使用，与同一基准相比",
    "step static settled torch": "静态图训练，8 个专家中使用 2 个，与 PyTorch 最快的稠密混合专家相比",
    "inference pruned": "导出并剪枝到 2 个专家后的推理，与普通 Paddle 的稠密混合专家相比",
}
ABOUT_TORCH = (
    "PyTorch runs on two threads. Rows without \"default settings\" use channels-last, the fused Adam and a glibc that",
    "keeps freed memory; the compiled ones have frozen weights at inference.",
)  # fmt: skip


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
        lines.append(f"greatest difference of a prediction from the dense mixture's: {record['difference']:.1e}")
    return lines + record["notes"] + [json.dumps(record)]


def acceptance_lines(rows, seconds):
    """What is promised against what was measured.

    Args:
        rows: {table: its rows}.
        seconds: the whole run's.
    """
    promised = acceptance.rows(rows)
    record = {"table": "acceptance", "seconds": seconds, "rows": promised}
    return ["", *_align(promised), json.dumps(record), f"{seconds:.0f} s in all"]


def _align(rows):
    """Rows as text; columns stand in the order of their first appearance."""
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
        ValueError: some would be of another machine, of other libraries or of other sizes.
    """
    (was, records, _), (machine, newer, _) = read(old), read(new)
    before, now = _ground(was), _ground(machine)
    changed = [f"{key} {before[key]} -> {now[key]}" for key in before if before[key] != now[key]]
    kept = sorted(records.keys() - newer.keys())
    if kept and changed:
        raise ValueError(f"{'; '.join(changed)}: {', '.join(kept)} would be of another run. Measure all tables.")
    records = {name: newer.get(name, record) for name, record in {**records, **newer}.items()}
    seconds = round(sum(record["seconds"] for record in records.values()), 1)
    return "\n".join(_lines(machine, records, seconds)) + "\n"


def _lines(machine, records, seconds):
    """An output's lines, from what ``read`` gives and the seconds in all."""
    of_tables = [line for record in records.values() for line in table_lines(record)]
    rows = {name: record["rows"] for name, record in records.items()}
    return [*machine_lines(machine), *of_tables, *acceptance_lines(rows, seconds)]


def _ground(machine):
    """What two outputs must share for their tables to stand together."""
    facts = {key: value for key, value in machine["machine"].items() if key not in ("load", "commit")}
    return {**facts, "sizes": machine["sizes"]}


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


def filled(page, results, lines_of):
    """A page's text with the figures of a run's output between its markers.

    Args:
        page: the text.
        results: the output.
        lines_of: ``english`` or ``chinese``.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    assert begin and end, f"the page needs the lines {BEGIN!r} and {END!r}"
    return before + begin + "\n".join(lines_of(*read(results))) + "\n" + end + after


def english(machine, records, promised):
    """The lines of README.md, from what ``read`` gives."""
    lines = [
        f"Measured at batch size {machine['sizes']['batch']} with {_libraries(machine)}, on {_processor(machine)}.",
        "",
        "Examples a second in training, by experts in use:",
        "",
    ]
    lines += _readme_table(STEPS, ACTIVE, records["step"])
    lines += ["", *ABOUT_TORCH, "", *_about_paddlerec(records["step"]), "", "Examples a second at inference:", ""]
    lines += _readme_table(INFERENCE, (8, 2), records["inference"])
    lines += _about_tables(records)
    lines += [
        "",
        "What is promised, and what this run measured; ratios are taken round by round, and their median given:",
        "",
    ]
    lines += ["| figure | promised | measured |", "| --- | --- | --- |"]
    return lines + [f"| {row['figure']} | {row['target']} | {_measured(row)} |" for row in promised["rows"]]


def chinese(machine, records, promised):
    """The lines of README.zh-CN.md: what is promised of the published network, in short."""
    measured = {row["key"]: _measured(row) for row in promised["rows"]}
    lines = [
        f"批次大小 {machine['sizes']['batch']}，{_libraries(machine)}，{machine['machine']['cores']} 核 "
        f"{machine['machine']['cpu']}；在同一次运行中测得：",
        "",
        "| 速度之比 | 倍数 |",
        "| --- | --- |",
    ]
    return lines + [f"| {label} | {measured[key]} |" for key, label in CHINESE.items()]


def _libraries(machine):
    versions = {**machine["machine"].get("of PyTorch's process", {}), **machine["machine"]["versions"]}
    return ", ".join(f"{name} {versions[name]}" for name in ("paddlepaddle", "torch") if name in versions)


def _processor(machine):
    return f"{machine['machine']['cores']} cores of an {machine['machine']['cpu']}"


def _about_tables(records):
    """Lines on the speeds on a table, if they are among the records."""
    if "table_step" not in records or "table_inference" not in records:
        return []
    size = records["table_step"]["examples"]
    lines = [
        "",
        f"On a table (MLP experts behind embeddings, sizes as in `examples/census`), batch {size}, in training:",
        "",
    ]
    lines += [*_readme_table(STEPS, (8, 2), records["table_step"]), "", "And at inference:", ""]
    return lines + _readme_table(INFERENCE, (8, 2), records["table_inference"])


def _readme_table(names, active, record):
    rates = {row["variant"]: f"{row['examples/s']:.0f}" for row in record["rows"] if "examples/s" in row}
    lines = ["| | " + " | ".join(f"{n} of 8" for n in active) + " |", "| --- |" + " --- |" * len(active)]
    for name, variants in names.items():
        cells = [rates.get(variants.get(n), "") for n in active]
        if any(cells):
            lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def _about_paddlerec(record):
    """How fast PaddleRec's own step is, in this run or where it was measured before."""
    row = next((row for row in record["rows"] if row["variant"] == tables.PADDLEREC and "ms" in row), None)
    ratio, where = MEASURED_ELSEWHERE, "on another machine"
    if row:
        ratio, where = row[f"against {tables.BASELINE}"][0], "in this run"
    lines = [
        "The dense mixture in plain Paddle is our own code: one convolution per expert, ReLU before pooling.",
        "PaddleRec's own step computes a different function (softmax twice, one gate for all tasks). It reached",
        f"{ratio:.2f} times the dense mixture's examples a second, {where}",
        "(`make bench TABLES=step PADDLEREC=FOLDER`).",
    ]
    if ratio < 1:
        lines.append("Our dense mixture is the faster of the two, and so the harder baseline.")
    return lines


def _measured(row):
    if row["measured"] is None:
        return "not measured"
    number = f"{row['measured']:.0f}" if row["measured"] >= 100 else f"{row['measured']:.3g}"
    return number + ("" if row["kept"] else ", **not kept**")


PAGES = {ROOT / "README.md": english, ROOT / "README.zh-CN.md": chinese}


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
