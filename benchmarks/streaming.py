"""Rows a second and memory of tabular/reader.py: python benchmarks/streaming.py [--rows 10000000]

Generates a table (13 numbers, 13 categories, 3 labels) as CSV parts and as Parquet parts in a temporary folder, makes
its vocabulary, and reads a shuffled epoch in batches of 1024, as the tools do, with 0, 1 and 2 worker processes. Each
reading is a process of its own; memory is the sum of the peaks of it and its workers, of what is theirs alone
(RssAnon) and what they share in /dev/shm. Linux only.

--columns pieces: the numbers are cut into pieces too; hashed: the categories' ids are hashes; lists: instead of the 13
categories there are two lists with 13 ids together, on average.
"""

import argparse
import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
import types

import numpy as np

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path[:0] = [os.path.join(ROOT, name) for name in ("", "tools", "data", "scripts")]

import machine_facts  # noqa: E402  (found by the line above)

DENSE, SPARSE, LISTS = [f"n{i}" for i in range(13)], [f"c{i}" for i in range(13)], ["l0", "l1"]
LABELS = ["rating", "bought", "spent"]
SIZES = [3, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 50_000, 100_000]  # values of the categories
TASKS = [{"classes": 3}, {"kind": "binary"}, {"kind": "regression"}]
PART_ROWS, BATCH = 250_000, 1024
LIST_SIZES, LONGEST = [1000, 100_000], 13  # values of the lists; the length of one is from 0 to 13
COLUMNS = {  # --columns -> options of make_vocabulary.py
    "plain": ["--sparse", *SPARSE, "--pieces", "0"],
    "pieces": ["--sparse", *SPARSE],
    "hashed": ["--sparse", *SPARSE, "--pieces", "0", "--hash", *(f"{name}=1000000" for name in SPARSE)],
    "lists": ["--lists", *LISTS, "--separator", "|", "--pieces", "0"],
}


def generate(folder, rows, has_lists, seed=0):
    """Write ``rows`` as CSV and Parquet parts."""
    import pyarrow as pa
    import pyarrow.compute
    import pyarrow.csv
    import pyarrow.parquet

    for form in ("csv", "parquet"):
        os.makedirs(os.path.join(folder, form))
    for part, begin in enumerate(range(0, rows, PART_ROWS)):
        rng, size = np.random.default_rng([seed, part]), min(PART_ROWS, rows - begin)
        columns = {name: rng.random(size, np.float32).round(4) for name in DENSE}
        if has_lists:
            columns.update({name: lists(rng, size, values) for name, values in zip(LISTS, LIST_SIZES)})
        else:
            columns.update({name: categories(rng, size, values) for name, values in zip(SPARSE, SIZES)})
        columns["rating"], columns["bought"] = rng.integers(3, size=size), rng.integers(2, size=size)
        columns["spent"] = pa.array(rng.random(size), mask=rng.random(size) < 0.3)
        table = pa.table(columns)
        if has_lists:
            columns.update({name: pa.compute.binary_join(columns[name], "|") for name in LISTS})
        pa.csv.write_csv(pa.table(columns), os.path.join(folder, "csv", f"part-{part:04}.csv"))
        pa.parquet.write_table(table, os.path.join(folder, "parquet", f"part-{part:04}.parquet"), row_group_size=50_000)


def categories(rng, size, values):
    """Texts [size], of which the first are the most frequent ones."""
    return np.char.add("v", (values * rng.random(size) ** 2).astype(int).astype(str))


def lists(rng, size, values):
    """Lists of such texts, an Arrow array [size]."""
    import pyarrow as pa

    ends = np.cumsum(rng.integers(0, LONGEST + 1, size))
    return pa.ListArray.from_arrays(pa.array([0, *ends], pa.int32()), pa.array(categories(rng, ends[-1], values)))


def make_vocabulary(folder, columns):
    """Make the vocabulary of the CSV parts by the command; its seconds."""
    began = time.perf_counter()
    command = [sys.executable, os.path.join(ROOT, "data", "make_vocabulary.py"), "--train", os.path.join(folder, "csv")]
    command += ["--dense", *DENSE, *COLUMNS[columns], "--labels", *LABELS]
    subprocess.run([*command, "--out", os.path.join(folder, "vocabulary.json")], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def open_batches(folder, form, workers):
    """The tools' batches of one form of the table."""
    from engine.batches import Batches
    from engine.processes import Alone
    from tabular import reader as table_reader
    from tabular.vocabulary import INPUT, Vocabulary

    vocabulary = Vocabulary(os.path.join(folder, "vocabulary.json"))
    config = {"config_abs_dir": folder, "runner.vocabulary": "vocabulary.json", "hyper_parameters.tasks": TASKS}
    config.update({INPUT + name: value for name, value in vocabulary.config().items()})
    data = os.path.join(folder, form)
    settings = types.SimpleNamespace(
        train_data_dir=data, train_batch_size=BATCH, drop_last=False, shuffle=True, shuffle_window=None,
        num_workers=workers, seed=1, processes=Alone(),
    )  # fmt: skip
    reader = table_reader.RecDataset([os.path.join(data, name) for name in os.listdir(data)], config=config)
    return Batches(reader, settings, "train")


class Memory:
    """The peak of what this process and its children have for themselves, in MB, looked at ten times a second."""

    def __init__(self):
        self.peak, self.over = 0, threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()

    def _watch(self):
        while not self.over.wait(0.1):
            self.peak = max(self.peak, sum(map(_own_memory, [os.getpid(), *_children()])))

    def end(self):
        self.over.set()
        self.thread.join()
        return self.peak


def _children():
    found = []
    for task in os.listdir(f"/proc/{os.getpid()}/task"):
        with open(f"/proc/{os.getpid()}/task/{task}/children") as file:
            found += map(int, file.read().split())
    return found


def _own_memory(pid):
    try:
        with open(f"/proc/{pid}/status") as file:
            fields = dict(line.split(":", 1) for line in file)
        return sum(int(fields[name].split()[0]) for name in ("RssAnon", "RssShmem")) / 1024
    except (OSError, KeyError):  # it has ended meanwhile
        return 0


def read(folder, form, workers):
    """Read an epoch, and print what it took as JSON."""
    batches = open_batches(folder, form, workers)
    memory, began, cpu, rows = Memory(), time.perf_counter(), time.process_time(), 0
    for batch in batches(0):
        rows += len(batch[0])
    seconds = time.perf_counter() - began
    print(json.dumps({"rows": rows, "seconds": seconds, "mb": memory.end(), "cpu": time.process_time() - cpu}))


def measured(folder, form, workers):
    command = [sys.executable, __file__, "--read", folder, form, str(workers)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main():
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--columns", choices=COLUMNS, default="plain")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--read", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.read:
        read(*args.read[:2], int(args.read[2]))
        return
    facts = {**machine_facts.machine(), "commit": machine_facts.commit("docs/tables.md")}
    facts["versions"] = {name: importlib.metadata.version(name) for name in ("paddlepaddle", "numpy", "pyarrow")}
    with tempfile.TemporaryDirectory() as folder:
        generate(folder, args.rows, args.columns == "lists")
        seconds = make_vocabulary(folder, args.columns)
        print(json.dumps({**facts, "rows": args.rows, "columns": args.columns}))
        print(f"vocabulary: {args.rows / seconds:,.0f} rows/s")
        print("| files | MB | workers | rows/s | rows for a second of CPU | peak memory, MB |")
        print("| --- | --- | --- | --- | --- | --- |")
        for form in ("csv", "parquet"):
            files = os.scandir(os.path.join(folder, form))
            size = sum(file.stat().st_size for file in files) / 1e6
            for workers in args.workers:
                found = measured(folder, form, workers)
                speed = found["rows"] / found["seconds"]
                of_cpu = f"{found['rows'] / found['cpu']:,.0f}" if not workers else ""  # the workers' is not known
                print(f"| {form} | {size:.0f} | {workers} | {speed:,.0f} | {of_cpu} | {found['mb']:.0f} |", flush=True)


if __name__ == "__main__":
    main()
