"""Predictions as a file, CSV or NPZ. Each table takes a binary file, open for writing, and a model's signature."""

import csv
import io
import itertools

import numpy as np

ROUNDS = 8  # batches of each process between two times that the first one gets and writes them


class CsvFile:
    """One line an example, written as it comes.

    Columns: index; for each task its label, prediction and probability (of the class predicted, or of a
    positive), or its value; then each number of the outputs that are no task's.
    """

    def __init__(self, file, signature):
        self.file, self.rows = file, 0
        of_tasks = [name for task in signature["tasks"] for name in task["outputs"].values()]
        self.others = [o["name"] for o in signature["outputs"] if o["per_example"] and o["name"] not in of_tasks]

    def add(self, columns, outputs):
        """Write a batch: ``columns`` name -> [B], ``outputs`` name -> array, [B, ...] if per example."""
        columns = {**columns, **{key: column for name in self.others for key, column in _flat(name, outputs[name])}}
        size = len(next(iter(columns.values())))
        columns = {"index": np.arange(self.rows, self.rows + size), **columns}
        lines = [] if self.rows else [_header(columns)]
        texts = [_fields(column) for column in columns.values()]
        self.file.write("".join(line + "\n" for line in lines + [",".join(row) for row in zip(*texts)]).encode())
        self.rows += size

    def close(self):
        """Nothing is left to write."""


def _header(names):
    """The names as a line of CSV: those of tasks may have commas and quotes."""
    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow(names)
    return line.getvalue()


def _fields(column):
    """A column's fields as CSV has them."""
    if column.dtype.kind == "f":
        return [f"{x:.7g}" for x in column]
    if column.dtype.kind != "U":
        return [str(x) for x in column]
    written = {text: _header([text]) if text else "" for text in set(column.tolist())}  # few: names of classes
    return [written[text] for text in column.tolist()]


def _flat(name, values):
    """(column name, [B]) for each number that an example has."""
    rows = values.reshape(len(values), -1)
    if rows.shape[1] == 1:
        return [(name, rows[:, 0])]
    return [(f"{name}_{i}", rows[:, i]) for i in range(rows.shape[1])]


class NpzFile:
    """All columns and all outputs as arrays by name, kept until ``close`` writes them.

    An output that is not per example is written once if it is the same for all batches, else one for each.
    """

    def __init__(self, file, signature):
        self.file, self.batches = file, []
        self.of_batch = {output["name"] for output in signature["outputs"] if not output["per_example"]}

    def add(self, columns, outputs):
        """Keep a batch, as ``CsvFile.add`` takes it."""
        self.batches.append({**columns, **outputs})

    def close(self):
        """Write the file."""
        np.savez(self.file, **{name: self._whole(name) for name in self.batches[0]})

    def _whole(self, name):
        values = [batch[name] for batch in self.batches]
        if name not in self.of_batch:
            return np.concatenate(values)
        return values[0] if all(np.array_equal(value, values[0]) for value in values) else np.stack(values)


class SharedTable:
    """One process's side of a table whose batches several processes predict in turn.

    The first process writes them, in their order.

    Args:
        table: CsvFile or NpzFile, on the first process; None on the others.
        processes: of the job.
    """

    def __init__(self, table, processes):
        self.table, self.processes = table, processes
        self.kept, self.seen = [], 0  # own batches that have not been written; batches of all

    def add(self, columns, outputs):
        """Keep a batch of this process, as ``CsvFile.add`` takes it."""
        self.kept.append((columns, outputs))
        self._count()

    def leave_to_another(self):
        """A batch is another process's."""
        self._count()

    def _count(self):
        self.seen += 1
        if self.seen % (ROUNDS * self.processes.number) == 0:
            self._write()

    def _write(self):
        found = self.processes.gather(self.kept)
        self.kept = []
        if self.processes.is_first:
            for of_round in itertools.zip_longest(*found):
                for batch in of_round:
                    if batch is not None:
                        self.table.add(*batch)

    def close(self):
        """Write the rest, and close the table."""
        self._write()
        if self.processes.is_first:
            self.table.close()
