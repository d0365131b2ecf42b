"""The tables: which variants are compared, and at what sizes. What is promised of them is in ``promises.yaml``.

Each table's function takes an open ``measuring.Bench`` and returns (rows, notes).
"""

import collections
import dataclasses
import itertools
import os
import pathlib
import statistics
import subprocess
import sys
import time

import cases
import census_data
import streaming
import yaml
from measuring import ProcessSettings, WorkerError, clean_environment, columns, ratio, spread

ROOT = pathlib.Path(__file__).resolve().parent.parent
MODES = ("eager", "to_static", "static")
TOOLS, DEFAULT = ProcessSettings(), ProcessSettings("default settings", tuned=())
ONE_THREAD, TWO_THREADS = ProcessSettings(threads=1), ProcessSettings(threads=2)
FREE_TENSORS = (("FLAGS_eager_delete_tensor_gb", "0"),)  # Paddle's default, which the tools change unless it is set
LEGACY_MODE = (("FLAGS_enable_pir_api", "0"),)
# experts in use -> the two experts that each task's gate has settled on, or None for gates that have not settled
SETTLED = {8: None, 4: [[0, 1], [2, 3]], 2: [[0, 1], [0, 1]], 1: [[0, 0], [0, 0]]}
MODEL, EXPORTED, PADDLE = "variants.PackageModel", "variants.ExportedModel", "baseline.PlainPaddle"
BASELINE, PADDLEREC = "plain Paddle, dense", "PaddleRec's own step"
UNCHECKED = ", another function, not checked"
# PyTorch's variants -> options of torch_model.TorchModel, from the plain form to the fastest that one would build
TORCH = {
    "PyTorch, dense": {"experts": "each", "fast": False, "compiled": False},
    "PyTorch, dense, compiled": {"experts": "each", "fast": True, "compiled": True},
    "PyTorch, dense, grouped": {"experts": "grouped", "fast": True, "compiled": False},
    "PyTorch, dense, grouped, compiled": {"experts": "grouped", "fast": True, "compiled": True},
    "PyTorch, skipping, 2 of 8": {"experts": "needed", "fast": False, "compiled": False},
    "PyTorch, fixed, compiled, 2 of 8": {"experts": "fixed", "fast": True, "compiled": True},
    "PyTorch, fixed, grouped, compiled, 2 of 8": {"experts": "fixed grouped", "fast": True, "compiled": True},
}
# the forms of which latencies are measured
TORCH_SERVED = {
    "PyTorch, fixed": {"experts": "fixed", "fast": False, "compiled": False},
    "PyTorch, fixed, compiled": TORCH["PyTorch, fixed, compiled, 2 of 8"],
    "PyTorch, fixed, grouped, compiled": TORCH["PyTorch, fixed, grouped, compiled, 2 of 8"],
}
# networks of PyTorch's libraries for recommenders -> classes of torch_libraries
TORCH_LIBRARIES = {
    "torch-rechub, MMoE": "RecHubMMoE",
    "DeepCTR-Torch, MMoE": "DeepCTRMMoE",
    "DeepCTR-Torch, PLE": "DeepCTRPLE",
}
CENSUS = {"static, DSelect-k": "dselect_k", "static, MMoE": "softmax"}  # our variants on Census-Income -> gate
# of 1 to 4 epochs at 0.001 or 0.003 the best on validation for every network of that table, by the mean of both AUCs
CENSUS_EPOCHS, CENSUS_RATE = 2, {"optimizer__learning_rate": 0.003}
NO_NETWORK = (("https_proxy", "http://localhost:9"),)  # when imported, DeepCTR-Torch asks PyPI for its newest version
# compile without helper processes, which would run on; at inference treat weights as constants
COMPILER = (("TORCHINDUCTOR_COMPILE_THREADS", "1"), ("TORCHINDUCTOR_FREEZING", "1"))
TRAINERS = ("tools/trainer.py", "tools/static_trainer.py")
MB = 1e6
# a table as that of examples/census: numeric features, ids in as many fields, two binary tasks
TABLE = {
    "input__dense_size": 7,
    "input__vocabulary_sizes": [25] * 39,
    "input__embedding_size": 8,
    "tasks": [{"kind": "binary"}, {"kind": "binary"}],
    "expert_hidden_sizes": [128, 64],
    "expert_size": 32,
    "tower_size": 16,
    "expert_norm": "none",
}


_SIZES = yaml.safe_load((pathlib.Path(__file__).parent / "sizes.yaml").read_text(encoding="utf-8"))
# hyper: keys of all cases; torch: PyTorch's interpreter; paddlerec: folder of PaddleRec's package
Sizes = collections.namedtuple("Sizes", [*_SIZES["full"], "hyper", "torch", "paddlerec"], defaults=({}, None, None))
FULL = Sizes(**_SIZES["full"])
SMALL = FULL._replace(**_SIZES["small"], hyper={"expert_size": 8, "tower_size": 8})


def on_table(sizes):
    return sizes._replace(batch=sizes.table_batch, hyper={**TABLE, **sizes.hyper}, paddlerec=None)


def on_large_vocabulary(sizes):
    sizes = on_table(sizes)
    fields = [sizes.ids, *TABLE["input__vocabulary_sizes"][1:]]
    return sizes._replace(hyper={**sizes.hyper, "input__vocabulary_sizes": fields})


def on_census(sizes):
    """A round is a training with another seed."""
    limits = {"rounds": min(sizes.rounds, 3), "epochs": CENSUS_EPOCHS}
    return sizes._replace(hyper={**TABLE, **CENSUS_RATE, **sizes.hyper}, paddlerec=None, **limits)


def without_batch_norm(sizes):
    return sizes._replace(hyper={**sizes.hyper, "expert_norm": "none"})


def with_fewer_rounds(sizes):
    return sizes._replace(rounds=max(sizes.rounds - 2, 1))


def of_files(sizes):
    return sizes._replace(rounds=max(sizes.rounds - 4, 1), batch=streaming.BATCH)


def training_steps(bench):
    """Training steps by experts in use, and how near they come to the arithmetic limit."""
    sizes = bench.sizes
    settled = {used: bench.case(experts) for used, experts in SETTLED.items() if used in sizes.in_use}
    bench.add(BASELINE, PADDLE, "train", settled[2], DEFAULT)
    for used, case in settled.items():
        for mode in MODES:
            bench.add(f"{mode}, {used} of 8", MODEL, "train", case, mode=mode)
    for used, mode in itertools.product((8, 2), ("eager", "static")):
        bench.add(f"{mode}, Paddle's layers, {used} of 8", MODEL, "train", settled[used], mode=mode, kernels=False)
    if sizes.paddlerec is not None:
        process = dataclasses.replace(DEFAULT, environment=LEGACY_MODE)  # which PaddleRec's trainer sets
        bench.add(PADDLEREC, "paddlerec.PaddleRecStep", "rate", settled[2], process, UNCHECKED, folder=sizes.paddlerec)
    elif not on_tables(sizes):
        bench.absent[PADDLEREC] = "no folder with PaddleRec's DSelect-k was given (PADDLEREC)"
    _add_torch(bench, "train", settled[2])
    if on_tables(sizes):
        _add_torch_libraries(bench, settled[2])
    products = {"product, 1": TOOLS, "product, 2": TWO_THREADS}
    for name, process in products.items():
        bench.add(name, "variants.MatrixProduct", "rate", None, process, size=sizes.product)
    found = bench.rows(BASELINE)
    # the fastest: a ceiling
    rates = [sizes.product**3 / min(row["seconds"]) for row in found if row["variant"] in products]
    found = [row for row in found if row["variant"] not in products]
    return found, _arithmetic_limit(cases.read(settled[2]), sizes, *rates, found)


def on_tables(sizes):
    return "input__dense_size" in sizes.hyper


def _arithmetic_limit(case, sizes, one_thread, two_threads, found):
    """Notes on the limit; each settled variant's row gets the fraction of it that it reaches.

    Args:
        case: of the network.
        one_thread, two_threads: multiplications a second in a product of large matrices.
        found: the rows.
    """
    notes = [
        f"float32 product of {sizes.product} x {sizes.product}: {2e-9 * one_thread:.0f} GFLOP/s on one thread, "
        f"{2e-9 * two_threads:.0f} on two"
    ]
    for used in (n for n in (2, 1) if n in sizes.in_use):
        needed = cases.multiplications(case, used)
        limit = two_threads / needed
        notes.append(
            f"{used} of 8: {needed / 1e6:.2f} million multiplications an example, forward and backward; "
            f"limit on two threads {limit:.0f} examples/s"
        )
        for row in found:
            if row["variant"].endswith(f"{used} of 8") and "examples/s" in row:  # not absent
                row["of the limit"] = row["examples/s"] / limit
    return notes


def settings(bench):
    """Training steps without one of the tools' settings, without all of them, and with two OpenMP threads."""
    case = bench.case(SETTLED[2])
    processes = {
        "all settings": TOOLS,
        "MKL's default path": ProcessSettings("memory kept", tuned=("keep_freed_memory",)),
        "glibc returns memory": ProcessSettings("MKL's fast path", tuned=("use_fast_path",)),
        "programs free tensors": ProcessSettings(environment=FREE_TENSORS),
        "two OpenMP threads": TWO_THREADS,
    }
    for mode in MODES:
        for what, process in processes.items():
            if (mode, what) != ("eager", "programs free tensors"):
                bench.add(f"{mode}, {what}", MODEL, "train", case, process, mode=mode)
        if mode == "static":
            bench.add("static, executor unmodified", MODEL, "train", case, mode=mode, tune=False)
        none = dataclasses.replace(DEFAULT, environment=FREE_TENSORS)
        bench.add(f"{mode}, no settings", MODEL, "train", case, none, mode=mode, tune=False)
    return bench.rows("all settings"), []


def growth(bench):
    """Training steps by number of experts."""
    for n in bench.sizes.growth:
        used = {"2": SETTLED[2], **({"all": None} if n in bench.sizes.unsettled_growth else {})}
        of_n = {name: bench.case(experts, expert_num=n) for name, experts in used.items()}
        for mode in ("eager", "static"):
            for name, case in of_n.items():
                bench.add(f"{mode}, {name} of {n}", MODEL, "train", case, mode=mode)
    return bench.rows("2 of 8"), []


def inference(bench):
    """Predictions once the gates have settled."""
    case = bench.case(SETTLED[2])
    bench.add(BASELINE, PADDLE, "infer", case, DEFAULT)
    bench.add("eager, every expert computed, 8 of 8", MODEL, "infer", case, mode="eager", dense=True)
    for mode in MODES:
        bench.add(f"{mode}, 2 of 8", MODEL, "infer", case, mode=mode)
    bench.add("exported, 8 of 8", EXPORTED, "infer", case, TWO_THREADS, pruned=False, threads=2)
    bench.add("exported, 2 of 8", EXPORTED, "infer", case, TWO_THREADS, pruned=True, threads=2)
    bench.add("exported, one thread, 2 of 8", EXPORTED, "infer", case, ONE_THREAD, pruned=True, threads=1)
    _add_torch(bench, "infer", case)
    return bench.rows(BASELINE), []


def latency(bench):
    """How long a server waits for predictions, once the gates have settled."""
    for batch in bench.sizes.latency_batches:
        settled, per_example = bench.case(SETTLED[2], batch), _per_example_gates(bench, 8, batch)
        for words, process in (("one thread", ONE_THREAD), ("two threads", TWO_THREADS)):
            threads, last = process.threads, f"{words}, batch {batch}"
            for name, case in (("exported", settled), ("exported, per-example gate", per_example)):
                bench.add(f"{name}, {last}", EXPORTED, "infer", case, process, pruned=True, threads=threads)
            forms = {f"{name}, {last}": options for name, options in TORCH_SERVED.items()}
            _add_torch(bench, "infer", settled, forms, threads)
    return bench.latencies(), ["two of 8 experts are in use; per-example gates choose them for each example"]


def rows_inference(bench):
    """Predictions with a per-example gate: each expert runs on the examples that need it."""
    case = _per_example_gates(bench, bench.sizes.row_experts)
    for name, routed in (("all experts", False), ("rows routed", True)):
        bench.add(f"exported, {name}", EXPORTED, "infer", case, TWO_THREADS, pruned=routed, threads=2)
    return _routed(bench, "infer", case)


def rows_training(bench):
    """The same in training, where it is exact only without batch norm."""
    return _routed(bench, "train", _per_example_gates(bench, bench.sizes.row_experts))


def _per_example_gates(bench, expert_num, batch=None):
    return bench.case(
        "per example",
        batch,
        gate="dselect_k_per_example",
        expert_num=expert_num,
        optimizer__gate_learning_rate_factor=1e-6,  # so slow that the gates stay as they are set
    )


def _routed(bench, job, case):
    for mode in MODES:
        bench.add(f"{mode}, all experts", MODEL, job, case, mode=mode, dense=True)
        bench.add(f"{mode}, rows routed", MODEL, job, case, mode=mode)
    return bench.rows("all experts"), ["each example needs two experts, the same for both tasks"]


def embeddings(bench):
    """Training steps on a table one of whose fields has many ids: Adam trains all embeddings, lazy Adam the batch's."""
    for optimizer, modes in (("adam", ("eager", "static")), ("lazy_adam", ("eager",))):
        case = bench.case(SETTLED[2], optimizer__class=optimizer)
        for mode in modes:
            bench.add(f"{mode}, {optimizer}", MODEL, "train", case, mode=mode)
    return bench.rows("eager, adam"), []


def reader(bench):
    """Shuffled batches a second on one core."""
    data, what = _data(bench)
    options = {"data": data, "batch": bench.sizes.batch}
    for name, kind, process in (
        ("Paddle's loader", "variants.PaddleLoader", DEFAULT),
        ("engine's Batches", "variants.EngineBatches", TOOLS),
    ):
        bench.add(name, kind, "rate", None, dataclasses.replace(process, one_core=True), **options)
    examples, size = bench.workers["engine's Batches"].ask("call", "size")
    note = f"{what}: {examples} examples, {size / MB:.1f} MB in memory"
    return bench.rows("Paddle's loader"), [note]


def files(bench):
    """Rows a second of CPU that one process reads from files of a table, encodes and gives as shuffled batches."""
    folders, seconds = {}, collections.defaultdict(list)
    for name in streaming.COLUMNS:
        folders[name] = bench.path(name)
        streaming.generate(folders[name], bench.sizes.file_rows, has_lists=name == "lists")
        streaming.make_vocabulary(folders[name], name)
    for _, name, form in itertools.product(range(bench.sizes.rounds), folders, ("csv", "parquet")):
        found = streaming.measured(folders[name], form, workers=0)
        seconds[f"{form}, {name}"].append(found["cpu"] / found["rows"] * bench.sizes.batch)
    return [
        {"variant": name, "seconds": values, **columns(name, seconds, bench.sizes.batch, ["plain"])}
        for name, values in seconds.items()
    ], ["seconds of CPU; benchmarks/streaming.py says what the columns are"]


def _data(bench):
    """(folder, in words) of the full set, or if there is none, of the sample, many times."""
    full, repeat = ROOT / "data" / "full" / "train", bench.sizes.repeat
    if full.is_dir() and repeat > 1:
        return str(full), "the full set"
    folder = bench.path("sample")
    os.mkdir(folder)
    for i in range(repeat):
        os.symlink(ROOT / "data" / "train" / "train.pickle", os.path.join(folder, f"train-{i}.pickle"))
    return folder, f"the sample {repeat} times"


def start(bench):
    """From the start of a process to its first training step."""
    sizes, seconds = bench.sizes, collections.defaultdict(list)
    for _ in range(sizes.starts):
        seconds["import paddle"].append(_seconds_until("imported", "-c", "import paddle, sys; print('imported')"))
        for tool, n in itertools.product(TRAINERS, sizes.start_experts):
            output = bench.path("output")
            os.mkdir(output)
            options = ["runner.print_interval=1", f"runner.train_batch_size={sizes.epoch_batch}"]
            options += [f"hyper_parameters.expert_num={n}", f"runner.model_save_path={output}"]
            command = [str(ROOT / tool), "-m", str(ROOT / "config.yaml"), "-o", *options]
            seconds[f"{tool}, {n} experts"].append(_seconds_until("batch_id: 0", *command))
    return [  # here a ratio says how many times as long it takes
        {"variant": name, "s": spread(values), "against import paddle": ratio(values, seconds["import paddle"])}
        for name, values in seconds.items()
    ], []


def _seconds_until(words, *arguments):
    """Seconds until Python, started with these arguments, prints ``words``; it is then killed."""
    began, printed = time.perf_counter(), []
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    with subprocess.Popen([sys.executable, *arguments], text=True, env=clean_environment(), **pipes) as process:
        for line in process.stdout:
            printed.append(line)
            if words in line:
                seconds = time.perf_counter() - began
                process.kill()
                return seconds
    raise WorkerError(f"{arguments[:2]} ended without printing {words!r}:\n{''.join(printed)[-1000:]}")


def memory(bench):
    """Peak resident memory of a process that trains."""
    first = f"2 of {bench.sizes.memory[0]}"
    found = [{"variant": "import paddle", "MB": _peak_mb(bench, "variants.MatrixProduct", None, size=1)}]
    for mode in ("eager", "static"):
        peaks = {}
        for n in bench.sizes.memory:
            for used, experts in (("all", None), ("2", SETTLED[2])):
                case = bench.case(experts, expert_num=n)
                peaks[f"{used} of {n}"] = _peak_mb(bench, MODEL, case, mode=mode)
        found += [
            {"variant": f"{mode}, {name}", "MB": peak, f"against {first}": peak / peaks[first]}
            for name, peak in peaks.items()
        ]
    return found, []


def _peak_mb(bench, kind, case, **options):
    bench.add("alone", kind, "rate", case, **options)
    worker = bench.workers.pop("alone")
    worker.ask("steps", bench.sizes.memory_steps)
    peak = worker.ask("peak_bytes") / MB
    worker.close()
    return peak


def long_run(bench):
    """Epochs with six skipped experts, whose moments decay into the denormal numbers on the way.

    Each variant takes turns with a twin whose skipped experts' moments are zero: dividing by the twin takes out
    whatever the machine's own speed did between the first epoch and the last.
    """
    case, modes = bench.case(SETTLED[2], batch=bench.sizes.epoch_batch), ("eager", "static")
    for mode in modes:
        for name in (mode, f"{mode}, moments of zero"):
            bench.add(name, MODEL, "train", case, mode=mode)
            bench.steps(name, 2)
        bench.workers[mode].ask("call", "age_skipped_experts")
    at_first = {name: worker.ask("call", "denormal_share") for name, worker in bench.workers.items()}
    epochs = {name: [] for name in bench.workers}
    for _ in range(bench.sizes.epochs):
        for name in bench.workers:
            epochs[name].append([1e3 * seconds for seconds in bench.steps(name, bench.sizes.epoch_steps)])
    found = []
    for name, worker in bench.workers.items():
        first, last = spread(epochs[name][0]), spread(epochs[name][-1])
        row = {"variant": name, "denormal at first": at_first[name], "at last": worker.ask("call", "denormal_share")}
        row.update({"first epoch, ms": first, "last epoch, ms": last, "last against first": last.median / first.median})
        found.append(row)
    return found, [
        "each step Adam leaves 0.9 of a skipped expert's first moment, which is denormal after some 830 steps, and",
        "0.999 of the second, after some 70,000; here they start at 1e-30 and 2e-38, so both get there in this run",
    ]


def census(bench):
    """Training on Census-Income, on the same rows in the same order for every network, and AUCs on its test rows."""
    folder = census_data.folder(full=bench.sizes.repeat > 1)
    if not folder.is_dir():
        why = "the whole file of Census-Income was not made (examples/census/README.md)"
        bench.absent.update(dict.fromkeys([*CENSUS, *TORCH_LIBRARIES], why))
        return bench.absent_rows(), []
    hyper, train = {"expert_num": 8, "top_k": 2, **bench.sizes.hyper}, {}
    test = census_data.write(bench.path(".case"), folder, "test", hyper)
    for gate in CENSUS.values():
        train[gate] = census_data.write(bench.path(".case"), folder, "train", {**hyper, "gate": gate})
    runs = collections.defaultdict(list)
    for seed in range(bench.sizes.rounds):
        for name, gate in CENSUS.items():
            bench.add(name, MODEL, "rate", train[gate], mode="static", seed=seed)
        _add_torch_libraries(bench, train["softmax"], words="", seed=seed)
        for name in list(bench.workers):
            runs[name].append(_census_run(bench, name, test, seed))
    return census_rows(bench, runs), ["a row's experts in use are those after the last step, seed by seed"]


def _census_run(bench, name, test, seed):
    """(seconds a step, experts in use after the last, AUCs) of a variant, whose process is ended."""
    worker = bench.workers.pop(name)
    seconds, used = worker.ask("train", bench.sizes.batch, bench.sizes.epochs, seed)
    aucs = census_data.aucs(worker.ask("scores", test), cases.read(test).labels)
    worker.close()
    return statistics.fmean(seconds[1:]), used, aucs  # the first prepares much


def census_rows(bench, runs):
    """A row for each variant: means and standard deviations of its AUCs, and its speed."""
    seconds, found = {name: [run[0] for run in of_name] for name, of_name in runs.items()}, []
    for name, of_name in runs.items():
        _, used, aucs = zip(*of_name)
        row = {"variant": name, "process": bench.processes[name], "aucs": aucs}
        for task, values in zip(census_data.TASKS, zip(*aucs)):
            row[f"AUC {task}"] = f"{statistics.fmean(values):.4f} +- {statistics.stdev(values):.4f}"
        row["experts in use"] = "all" if None in used else ", ".join(map(str, used))
        row.update(seconds=seconds[name], **columns(name, seconds, bench.sizes.batch, list(CENSUS)[:1]))
        found.append(row)
    return found + bench.absent_rows()


def _add_torch(bench, job, case, forms=TORCH, threads=2):
    for name, options in forms.items():
        process = _torch_process(bench, name, threads)
        if process is None:
            continue
        if options["fast"]:
            label = "memory kept" + ", channels-last" * (not on_tables(bench.sizes)) + ", fused Adam" * (job == "train")
            process = dataclasses.replace(process, label=label, tuned=("keep_freed_memory",))
        if options["compiled"]:
            process = dataclasses.replace(process, environment=COMPILER)
        bench.add(name, "torch_model.TorchModel", job, case, process, **options, threads=threads)


def _add_torch_libraries(bench, case, words=UNCHECKED, **options):
    """Their networks are others than ours, so there is nothing to check their answers against."""
    for name, kind in TORCH_LIBRARIES.items():
        process = _torch_process(bench, name)
        if process is not None:
            process = dataclasses.replace(process, environment=NO_NETWORK)
            bench.add(name, f"torch_libraries.{kind}", "rate", case, process, words, threads=2, **options)


def _torch_process(bench, name, threads=2):
    """Default settings in PyTorch's interpreter; None, and the variant is absent, if there is no such interpreter."""
    if bench.sizes.torch is None:
        bench.absent[name] = "no interpreter with PyTorch was given (TORCH_PYTHON)"
        return None
    return dataclasses.replace(DEFAULT, python=bench.sizes.torch, threads=threads)


# title: with names of Sizes; measure: the function; sizes: changes Sizes
Table = collections.namedtuple("Table", "title measure sizes", defaults=(lambda sizes: sizes,))
TABLES = {
    "step": Table("training step, 8 experts, batch {batch}", training_steps),
    "settings": Table("the tools' settings, training, 2 of 8 experts, batch {batch}", settings),
    "growth": Table("training step by number of experts, k = 2, batch {batch}", growth, with_fewer_rounds),
    "inference": Table("inference, 8 experts, batch {batch}", inference),
    "latency": Table("latency, 8 experts, batch {latency_batches}, {latency_turns} x {latency_calls} calls", latency),
    "rows_inference": Table("per-example gate at inference, k = 2 of {row_experts}, batch {batch}", rows_inference),
    "rows_training": Table(
        "per-example gate in training, expert_norm: none, k = 2 of {row_experts}, batch {batch}",
        rows_training,
        without_batch_norm,
    ),
    "table_step": Table("training step on a table, 8 experts, batch {batch}", training_steps, on_table),
    "table_growth": Table("training step on a table by number of experts, k = 2, batch {batch}", growth, on_table),
    "table_inference": Table("inference on a table, 8 experts, batch {batch}", inference, on_table),
    "table_latency": Table(
        "latency on a table, 8 experts, batch {latency_batches}, {latency_turns} x {latency_calls} calls",
        latency,
        on_table,
    ),
    "table_rows_inference": Table(
        "per-example gate at inference on a table, k = 2 of {row_experts}, batch {batch}", rows_inference, on_table
    ),
    "table_rows_training": Table(
        "per-example gate in training on a table, k = 2 of {row_experts}, batch {batch}", rows_training, on_table
    ),
    "embeddings": Table(
        "training step on a table, {ids} ids in a field, 2 of 8 experts, batch {batch}", embeddings, on_large_vocabulary
    ),
    "census": Table("Census-Income, {epochs} epochs, {rounds} seeds, batch {batch}", census, on_census),
    "reader": Table("reader, batch {batch}", reader),
    "files": Table("reading a table from files, {file_rows} rows, in batches of {batch}", files, of_files),
    "start": Table("start to first training step, batch {epoch_batch}", start),
    "memory": Table("peak memory of {memory_steps} training steps, batch {batch}", memory),
    "long_run": Table("{epochs} epochs of {epoch_steps} steps, 2 of 8 experts, batch {epoch_batch}", long_run),
}
