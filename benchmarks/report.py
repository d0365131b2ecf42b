"""A run's output: each table for readers, and below it the line of JSON that all of the table is made from."""

import json

import acceptance
import figures

HIDDEN = ("seconds", "key", "of")  # columns that are in the JSON alone


def machine_lines(record):
    return [json.dumps(record)]


def table_lines(record):
    """Args: record: with table, title, seconds, difference, rows, notes."""
    record = json.loads(json.dumps(record, default=float))  # so that it prints as what is read back does
    lines = ["", f"{record['title']}  [{record['table']}, {record['seconds']:.0f} s]", *_align(record["rows"])]
    if record["difference"] is not None:
        lines.append(f"greatest difference of a prediction from the dense mixture's: {record['difference']:.1e}")
    return lines + record["notes"] + [json.dumps(record)]


def acceptance_lines(tables, seconds):
    """What was promised against what the rows of ``tables``, a dict, say."""
    promised = acceptance.rows(tables)
    record = {"table": "acceptance", "seconds": seconds, "rows": promised}
    return ["", *_align(promised), json.dumps(record), f"{seconds:.0f} s in all"]


def read(text):
    """The machine's record, {table: record}, and the acceptance table's record, of a run's output."""
    machine, *tables = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    tables = {record["table"]: record for record in tables}
    return machine, tables, tables.pop("acceptance")


def problems(text):
    """Where a run's output is not what this code makes of the seconds in it: sentences, none if all is well."""
    machine, tables, promised = read(text)
    found = []
    for record in tables.values():
        found += _wrong_numbers(record, machine["sizes"]["batch"])
    expected = machine_lines(machine) + [line for record in tables.values() for line in table_lines(record)]
    expected += acceptance_lines({name: record["rows"] for name, record in tables.items()}, promised["seconds"])
    lines = text.splitlines()
    if len(lines) != len(expected):
        found.append(f"there are {len(lines)} lines, not {len(expected)}")
    return found + [
        f"a line is\n  {line}\nbut should be\n  {wanted}" for line, wanted in zip(lines, expected) if line != wanted
    ]


def _wrong_numbers(record, examples):
    seconds = {row["variant"]: row["seconds"] for row in record["rows"] if "seconds" in row}
    for row in record["rows"]:
        if row["variant"] in seconds:
            against = [column[len("against ") :] for column in row if column.startswith("against ")]
            wanted = figures.columns(row["variant"], seconds, examples, against)
            wanted = json.loads(json.dumps(wanted))
            for column, value in wanted.items():
                if row[column] != value:
                    yield f"{record['table']}, {row['variant']}: {column} is {row[column]}, but its seconds say {value}"


def _align(rows):
    """Rows as text, in columns in the order in which these first occur."""
    names = [name for name in dict.fromkeys(name for row in rows for name in row) if name not in HIDDEN]
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
