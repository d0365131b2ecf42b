"""The tables: which variants are compared, and at what sizes. What is promised of them is in ``acceptance.py``.

A table is a function of a ``Plan`` and an open ``Stage`` that returns a ``Table``.
"""

import collections
import dataclasses
import os
import shutil
import statistics
import subprocess
import sys
import threading
import time

from stage import ratio, spread
from worker import ROOT, Settings, Worker, WorkerError, clean_environment

OURS, DEFAULT = Settings(), Settings(tuned=())
ONE_THREAD, TWO_THREADS = Settings(threads=1), Settings(threads=2)
ONE_CORE, ONE_CORE_DEFAULT = Settings(one_core=True), Settings(tuned=(), one_core=True)
WAYS = ("eager", "to_static", "static")
FREE_TENSORS = ("FLAGS_eager_delete_tensor_gb", "0")  # Paddle's default, which the tools change unless it is set
# experts in use -> the two experts that each task's gate has settled on, or None for gates that have not settled
SETTLED = {8: None, 4: [[0, 1], [2, 3]], 2: [[0, 1], [0, 1]], 1: [[0, 0], [0, 0]]}
BASELINE, PADDLEREC = "plain Paddle, dense", "PaddleRec's own step"
# PyTorch's rows -> options of torch_model.TorchRun, from the plain form to the fastest that one would build
TORCH = {
    "PyTorch, dense": {"experts": "each", "fast": False, "compiled": False},
    "PyTorch, dense, compiled": {"experts": "each", "fast": True, "compiled": True},
    "PyTorch, dense, grouped": {"experts": "grouped", "fast": True, "compiled": False},
    "PyTorch, dense, grouped, compiled": {"experts": "grouped", "fast": True, "compiled": True},
    "PyTorch, skipping, 2 of 8": {"experts": "needed", "fast": False, "compiled": False},
    "PyTorch, fixed, compiled, 2 of 8": {"experts": "fixed", "fast": True, "compiled": True},
    "PyTorch, fixed, grouped, compiled, 2 of 8": {"experts": "fixed grouped", "fast": True, "compiled": True},
}
# compile without helper processes, which would run on; at inference treat weights as constants
COMPILER = (("TORCHINDUCTOR_COMPILE_THREADS", "1"), ("TORCHINDUCTOR_FREEZING", "1"))
TORCH_DENSE = tuple(name for name in TORCH if "dense" in name)
TORCH_FIXED = tuple(name for name in TORCH if "fixed" in name)
TRAINERS = ("tools/trainer.py", "tools/static_trainer.py")
START_TIMEOUT_S = 120
MB = 1e6
# a table as that of examples/census: numbers, ids in as many fields, two binary tasks
TABLE = {
    "input__dense_size": 7, "input__vocabulary_sizes": [25] * 39, "input__embedding_size": 8,
    "tasks": [{"kind": "binary"}, {"kind": "binary"}], "expert_hidden_sizes": [128, 64], "expert_size": 32,
    "tower_size": 16, "expert_norm": "none",
}  # fmt: skip
# the published expert's and tower's sizes
IMAGE, KERNEL, CHANNELS, HIDDEN, CLASSES = 36, 5, (1, 10, 20), 50, 10


@dataclasses.dataclass(frozen=True)
class Plan:
    """The sizes of everything."""

    batch: int = 256
    table_batch: int = 1024
    ids: int = 1_000_000  # of the large field in the table embeddings
    rounds: int = 7
    in_use: tuple = (8, 4, 2, 1)  # numbers of experts, each with a training step of its own
    turn_s: float = 0.25
    product: int = 2048  # size of the matrices
    growth: tuple = (4, 8, 16, 32, 64)
    unsettled_growth: tuple = (4, 8, 16, 64)  # with 32 as well, they would not all fit into 24 GiB
    row_experts: int = 16
    memory: tuple = (8, 64)
    memory_steps: int = 30  # it stops growing after some twenty
    profile_steps: int = 40
    epochs: int = 20
    epoch_steps: int = 60
    epoch_batch: int = 64
    starts: int = 3
    repeat: int = 25  # how many times to read the sample if there is no full set; 1: do not look for the full set
    hyper: dict = dataclasses.field(default_factory=dict)  # keys of all cases
    torch: str = None  # PyTorch's interpreter
    paddlerec: str = None  # folder of a package to time as well


SMALL = Plan(
    batch=16,
    table_batch=16,
    ids=1000,
    rounds=2,
    in_use=(8, 2),
    turn_s=0.0,
    product=64,
    growth=(4, 8),
    unsettled_growth=(4,),
    row_experts=4,
    memory=(4,),
    memory_steps=2,
    profile_steps=2,
    epochs=2,
    epoch_steps=2,
    epoch_batch=16,
    starts=1,
    repeat=1,
    hyper={"expert_size": 8, "tower_size": 8},
)
# rows: dicts; notes: lines; examples: in a step, None for the plan's batch
Table = collections.namedtuple("Table", "title rows notes examples", defaults=((), None))


def step(plan, stage):
    """Training steps by experts in use, and how near they come to the arithmetic limit."""
    if plan.paddlerec is None:
        stage.absent[PADDLEREC] = "no folder with PaddleRec's DSelect-k was given (PADDLEREC)"
    found, notes = _training_steps(plan, stage)
    return Table(f"training step, 8 experts, batch {plan.batch}", found, notes)


def table_step(plan, stage):
    """The same on a table: MLP experts behind embeddings."""
    plan = _on_table(dataclasses.replace(plan, paddlerec=None))
    found, notes = _training_steps(plan, stage)
    return Table(f"training step on a table, 8 experts, batch {plan.batch}", found, notes, plan.batch)


def _on_table(plan):
    return dataclasses.replace(plan, batch=plan.table_batch, hyper={**TABLE, **plan.hyper})


def _training_steps(plan, stage):
    """(Rows, notes)."""
    settled = {
        active: _static_gates(plan, stage, 8, codes) for active, codes in SETTLED.items() if active in plan.in_use
    }
    stage.add(BASELINE, "baseline.Baseline", "train", settled[2], DEFAULT)
    for active, case in settled.items():
        for way in WAYS:
            stage.add(f"{way}, {active} of 8", "ours.Ours", "train", case, OURS, way=way)
    if plan.paddlerec is not None:  # as PaddleRec's trainer does, in the legacy program mode
        process = DEFAULT._replace(label=PADDLEREC, environment=(("FLAGS_enable_pir_api", "0"),))
        stage.add(PADDLEREC, "rates.PackageStep", "rate", settled[2], process, folder=plan.paddlerec)
    _add_torch(plan, stage, "train", settled[2])
    products = {"product, 1": OURS, "product, 2": TWO_THREADS}
    for name, process in products.items():
        stage.add(name, "rates.MatrixProduct", "rate", None, process, size=plan.product)
    found = _measured(plan, stage, [BASELINE])
    # the fastest: a ceiling
    rates = [plan.product**3 / min(row["seconds"]) for row in found if row["variant"] in products]
    found = [row for row in found if row["variant"] not in products]
    return found, _arithmetic_limit(plan, *rates, found)


def _arithmetic_limit(plan, one_thread, two_threads, found):
    """Notes on the limit; each settled variant's row gets the fraction of it that it reaches.

    Args:
        one_thread, two_threads: multiplications a second in a product of large matrices.
        found: the rows.
    """
    notes = [
        f"float32 product of {plan.product} x {plan.product}: {2e-9 * one_thread:.0f} GFLOP/s on one thread, "
        f"{2e-9 * two_threads:.0f} on two"
    ]
    for active in (n for n in (2, 1) if n in plan.in_use):
        needed = multiplications_per_example(active, **plan.hyper)
        limit = two_threads / needed
        notes.append(
            f"{active} of 8: {needed / 1e6:.2f} million multiplications an example, forward and backward; "
            f"limit on two threads {limit:.0f} examples/s"
        )
        for row in found:
            if row["variant"].endswith(f"{active} of 8") and "examples/s" in row:  # not absent
                row["of the limit"] = row["examples/s"] / limit
    return notes


def multiplications_per_example(used_num, training=True, **hyper):
    """Multiplications in the experts in use, their mixtures and the towers of two tasks.

    Going backward, each layer multiplies as often again for its weights and once more for its input, except for the
    first convolution: its input is the image, which needs no gradient. (A table's embeddings need theirs.)

    Args:
        used_num: how many experts are in use.
        hyper: keys as ``ways.config`` takes them.
    """
    size, wide = hyper.get("expert_size", HIDDEN), hyper.get("tower_size", HIDDEN)
    on_table = "input__vocabulary_sizes" in hyper
    expert, first = _of_linear_expert(hyper, size) if on_table else _of_convolutions(size)
    outputs = 1 if on_table else CLASSES
    towers = 2 * (used_num * size + size * wide + wide**2 + wide * outputs)
    forward = used_num * expert + towers
    return 3 * forward - used_num * first if training else forward


def _of_linear_expert(hyper, size):
    """(Multiplications in an expert on a table, of these in a first layer whose input needs no gradient)."""
    features = hyper["input__dense_size"] + len(hyper["input__vocabulary_sizes"]) * hyper["input__embedding_size"]
    sizes = [features, *hyper["expert_hidden_sizes"], size]
    return sum(wide_in * wide_out for wide_in, wide_out in zip(sizes, sizes[1:])), 0


def _of_convolutions(expert_size):
    """The same of an expert on an image."""
    size, first, layers = IMAGE, None, 0
    for channels_in, channels_out in zip(CHANNELS, CHANNELS[1:]):
        size = size - KERNEL + 1
        layer = KERNEL**2 * channels_in * channels_out * size**2
        first = layer if first is None else first
        layers += layer
        size //= 2  # max-pooling
    return layers + size**2 * CHANNELS[-1] * HIDDEN + HIDDEN * expert_size, first


def settings(plan, stage):
    """Training steps without one of the tools' settings, without all of them, and with two OpenMP threads."""
    case = _static_gates(plan, stage, 8, SETTLED[2])
    processes = {
        "all settings": OURS,
        "MKL's default path": OURS._replace(tuned=("keep_freed_memory",)),
        "glibc returns memory": OURS._replace(tuned=("use_fast_path",)),
        "programs free tensors": OURS._replace(environment=(FREE_TENSORS,)),
        "two OpenMP threads": TWO_THREADS,
    }
    for way in WAYS:
        for what, process in processes.items():
            if (way, what) != ("eager", "programs free tensors"):
                stage.add(f"{way}, {what}", "ours.Ours", "train", case, process, way=way)
        if way == "static":
            stage.add("static, executor unmodified", "ours.Ours", "train", case, OURS, way=way, tune=False)
        none = DEFAULT._replace(environment=(FREE_TENSORS,))
        stage.add(f"{way}, no settings", "ours.Ours", "train", case, none, way=way, tune=False)
    title = f"the tools' settings, training, 2 of 8 experts, batch {plan.batch}"
    return Table(title, _measured(plan, stage, ["all settings"]))


def growth(plan, stage):
    """Training steps by number of experts, at k = 2."""
    unsettled = {n: _static_gates(plan, stage, n, None) for n in plan.unsettled_growth}
    for n in plan.growth:
        case = _static_gates(plan, stage, n, SETTLED[2])
        alone = OURS._replace(label=f"2 of {n}")  # without the threads of dozens of other programs, as in a tool
        for way in ("eager", "static"):
            stage.add(f"{way}, 2 of {n}", "ours.Ours", "train", case, alone, way=way)
            if n in unsettled:
                stage.add(f"{way}, all of {n}", "ours.Ours", "train", unsettled[n], OURS, way=way)
    fewer = dataclasses.replace(plan, rounds=max(plan.rounds - 2, 1))
    title = f"training step by number of experts, k = 2, batch {plan.batch}"
    return Table(title, _measured(fewer, stage, ["2 of 8"]))


def inference(plan, stage):
    """Predictions once the gates have settled."""
    return Table(f"inference, 8 experts, batch {plan.batch}", _predictions(plan, stage))


def table_inference(plan, stage):
    """The same on a table."""
    plan = _on_table(plan)
    title = f"inference on a table, 8 experts, batch {plan.batch}"
    return Table(title, _predictions(plan, stage), examples=plan.batch)


def _predictions(plan, stage):
    case = _static_gates(plan, stage, 8, SETTLED[2])
    stage.add(BASELINE, "baseline.Baseline", "infer", case, DEFAULT)
    stage.add("eager dense", "ours.Ours", "infer", case, OURS, way="eager", dense=True)
    for way in WAYS:
        stage.add(f"{way}, 2 of 8", "ours.Ours", "infer", case, OURS, way=way)
    # not in the processes of others, during whose turns their idle threads would spin
    stage.add("exported dense", "ours.Exported", "infer", case, TWO_THREADS, pruned=False, threads=2)
    stage.add("exported pruned", "ours.Exported", "infer", case, TWO_THREADS, pruned=True, threads=2)
    stage.add("exported pruned, one thread", "ours.Exported", "infer", case, ONE_THREAD, pruned=True, threads=1)
    _add_torch(plan, stage, "infer", case)
    return _measured(plan, stage, [BASELINE])


def rows_inference(plan, stage):
    """Predictions with a per-example gate: each expert runs on the examples that need it."""
    return _routed(plan, stage, "infer", "per-example gate at inference")


def rows_training(plan, stage):
    """The same in training, where it is exact only without batch norm."""
    plan = dataclasses.replace(plan, hyper={**plan.hyper, "expert_norm": "none"})
    return _routed(plan, stage, "train", "per-example gate in training, expert_norm: none")


def table_rows_inference(plan, stage):
    """Predictions with a per-example gate on a table."""
    return _routed(_on_table(plan), stage, "infer", "per-example gate at inference on a table")


def table_rows_training(plan, stage):
    """The same in training."""
    return _routed(_on_table(plan), stage, "train", "per-example gate in training on a table")


def _routed(plan, stage, job, title):
    case = _per_example_gates(plan, stage)
    if job == "infer":
        for name, routed in (("all experts", False), ("rows routed", True)):
            stage.add(f"exported, {name}", "ours.Exported", "infer", case, TWO_THREADS, pruned=routed, threads=2)
    for way in WAYS:
        stage.add(f"{way}, all experts", "ours.Ours", job, case, OURS, way=way, dense=True)
        stage.add(f"{way}, rows routed", "ours.Ours", job, case, OURS, way=way)
    note = "each example needs two experts, the same for both tasks"
    title = f"{title}, k = 2 of {plan.row_experts}, batch {plan.batch}"
    return Table(title, _measured(plan, stage, ["all experts"]), [note], plan.batch)


def embeddings(plan, stage):
    """Training steps on a table one of whose fields has many ids, with all embeddings trained or those in the batch."""
    plan = _on_table(plan)
    fields = [plan.ids, *TABLE["input__vocabulary_sizes"][1:]]
    for optimizer, ways in (("adam", ("eager", "static")), ("lazy_adam", ("eager",))):
        hyper = {**plan.hyper, "input__vocabulary_sizes": fields, "optimizer__class": optimizer}
        case = _static_gates(dataclasses.replace(plan, hyper=hyper), stage, 8, SETTLED[2])
        for way in ways:
            stage.add(f"{way}, {optimizer}", "ours.Ours", "train", case, OURS, way=way)
    title = f"training step on a table, {plan.ids} ids in a field, 2 of 8 experts, batch {plan.batch}"
    return Table(title, _measured(plan, stage, ["eager, adam"]), examples=plan.batch)


def reader(plan, stage):
    """Shuffled batches a second on one core."""
    data, what = _data(plan, stage)
    # a process for each: Paddle's loader reads ahead, and would do so during the other's turn
    stage.add("Paddle's loader", "rates.PaddleLoader", "rate", None, ONE_CORE_DEFAULT, data=data, batch=plan.batch)
    stage.add("engine's Batches", "rates.EngineBatches", "rate", None, ONE_CORE, data=data, batch=plan.batch)
    facts = stage.worker(ONE_CORE).ask("facts")["engine's Batches"]
    note = f"{what}: {facts['examples']} examples, {facts['bytes'] / MB:.1f} MB in memory"
    return Table(f"reader, batch {plan.batch}", _measured(plan, stage, ["Paddle's loader"]), [note])


def _data(plan, stage):
    """(folder, in words) of the full set, or failing that of the sample, many times."""
    full = ROOT / "data" / "full" / "train"
    if full.is_dir() and plan.repeat > 1:
        return str(full), "the full set"
    folder = os.path.join(stage.folder, "sample")
    os.mkdir(folder)
    for i in range(plan.repeat):
        os.symlink(ROOT / "data" / "train" / "train.pickle", os.path.join(folder, f"train-{i}.pickle"))
    return folder, f"the sample {plan.repeat} times"


def start(plan, stage):
    """From the start of a process to its first training step, with 8 experts."""
    seconds = {name: [] for name in ("import paddle", *TRAINERS)}
    for i in range(plan.starts):
        seconds["import paddle"].append(_seconds_until(None, [sys.executable, "-c", "import paddle"]))
        for tool in TRAINERS:
            overrides = ["runner.print_interval=1", f"runner.train_batch_size={plan.epoch_batch}"]
            overrides.append(f"runner.model_save_path={stage.folder}/{os.path.basename(tool)}{i}")
            command = [sys.executable, str(ROOT / tool), "-m", str(ROOT / "config.yaml"), "-o", *overrides]
            seconds[tool].append(_seconds_until("batch_id: 0", command))
    least = seconds["import paddle"]
    found = [
        # here a ratio says how many times as long it takes
        {"variant": name, "s": spread(values), "against import paddle": ratio(values, least)}
        for name, values in seconds.items()
    ]
    return Table("start to first training step, 8 experts", found)


def _seconds_until(words, command):
    """Seconds until a command logs ``words``, or ends if they are None."""
    began = time.perf_counter()
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=clean_environment()
    )
    limit = threading.Timer(START_TIMEOUT_S, process.kill)
    limit.start()
    try:
        printed = ""
        for line in process.stderr:
            printed += line
            if words and words in line:
                return time.perf_counter() - began
        if words or process.wait():
            raise WorkerError(f"{command[1:3]} ended without printing {words!r}:\n{printed[-1000:]}")
        return time.perf_counter() - began
    finally:
        limit.cancel()
        process.kill()
        process.communicate()


def memory(plan, stage):
    """Peak resident memory of a process that trains, each variant in a process of its own."""
    first = plan.memory[0]
    found = [{"variant": "import paddle", "MB": _peak_mb(plan, stage, "rates.MatrixProduct", None, size=1)}]
    for way in ("eager", "static"):
        peaks = {}
        for n in plan.memory:
            for used, codes in (("all", None), ("2", SETTLED[2])):
                case = _static_gates(plan, stage, n, codes)
                peaks[f"{used} of {n}"] = _peak_mb(plan, stage, "ours.Ours", case, way=way)
        base = f"2 of {first}"
        found += [
            {"variant": f"{way}, {name}", "MB": peak, f"against {base}": peak / peaks[base]}
            for name, peak in peaks.items()
        ]
    return Table(f"peak memory of {plan.memory_steps} training steps, batch {plan.batch}", found)


def _peak_mb(plan, stage, kind, case, **options):
    outputs = os.path.join(stage.folder, "memory.npz")
    with Worker(OURS, stage.folder) as worker:
        worker.ask("build", name="only", kind=kind, job="rate", case=case, options=options, outputs=outputs)
        worker.ask("steps", name="only", count=plan.memory_steps)
        return worker.ask("facts")["peak_bytes"] / MB


def long_run(plan, stage):
    """Epochs with six skipped experts, whose moments decay into the denormal numbers on the way.

    Each variant takes turns with a twin whose skipped experts' moments are zero: dividing by the twin takes out
    whatever the machine's own speed did between the first epoch and the last.
    """
    case = _static_gates(plan, stage, 8, SETTLED[2], batch=plan.epoch_batch)
    ways = ("eager", "static")
    for way in ways:
        for name in (way, f"{way}, moments of zero"):
            stage.add(name, "ours.Ours", "train", case, OURS, way=way)
    for variant in stage.variants:
        stage.steps(variant, 2)
        if variant.name in ways:
            stage.ask(variant, "age")
    at_first = {variant.name: stage.ask(variant, "denormal")["share"] for variant in stage.variants}
    epochs = {variant.name: [] for variant in stage.variants}
    for _ in range(plan.epochs):
        for variant in stage.variants:
            epochs[variant.name].append(stage.steps(variant, plan.epoch_steps))
    found = []
    for variant in stage.variants:
        first, last = (spread([1e3 * seconds for seconds in epochs[variant.name][i]]) for i in (0, -1))
        found.append(
            {
                "variant": variant.name,
                "denormal at first": at_first[variant.name],
                "at last": stage.ask(variant, "denormal")["share"],
                "first epoch, ms": first,
                "last epoch, ms": last,
                "last against first": last.median / first.median,
            }
        )
    notes = [
        "each step Adam leaves 0.9 of a skipped expert's first moment, which is denormal after some 830 steps, and",
        "0.999 of the second, after some 70,000; here they start at 1e-30 and 2e-38, so both get there in this run",
    ]
    title = f"{plan.epochs} epochs of {plan.epoch_steps} steps, 2 of 8 experts, batch {plan.epoch_batch}"
    return Table(title, found, notes)


def profile(plan, stage):
    """Where a training step's time goes, by Linux's ``perf``, in percent of the samples of all threads."""
    if shutil.which("perf") is None:
        sys.exit("table profile needs the command perf (Debian: apt install linux-perf)")
    for active, codes in SETTLED.items():
        case = _static_gates(plan, stage, 8, codes)
        for way in ("eager", "static"):
            alone = OURS._replace(label=f"{way}, {active} of 8")  # a process for each, as in a tool
            stage.add(f"{way}, {active} of 8", "ours.Ours", "train", case, alone, way=way)
    found = []
    for variant in stage.variants:
        stage.steps(variant, max(plan.profile_steps // 5, 1))
        shares, seconds = stage.profile(variant, plan.profile_steps)
        percent = {f"{kind}, %": round(100 * share, 1) for kind, share in shares.items()}
        found.append({"variant": variant.name, "ms": 1e3 * statistics.fmean(seconds), **percent})
    return Table(f"profile of a training step, batch {plan.batch}", found)


TABLES = {
    "step": step,
    "settings": settings,
    "growth": growth,
    "inference": inference,
    "rows_inference": rows_inference,
    "rows_training": rows_training,
    "table_step": table_step,
    "table_inference": table_inference,
    "table_rows_inference": table_rows_inference,
    "table_rows_training": table_rows_training,
    "embeddings": embeddings,
    "reader": reader,
    "start": start,
    "memory": memory,
    "long_run": long_run,
    "profile": profile,
}
BY_DEFAULT = tuple(name for name in TABLES if name != "profile")  # which needs perf, and compares nothing


def _measured(plan, stage, against):
    return stage.rows(stage.times(plan.rounds, plan.turn_s), plan.batch, against)


def _static_gates(plan, stage, expert_num, settled, batch=None):
    hyper = {"expert_num": expert_num, "top_k": 2, **plan.hyper}
    return stage.case(hyper, batch or plan.batch, settled)


def _per_example_gates(plan, stage):
    hyper = {"gate": "dselect_k_per_example", "expert_num": plan.row_experts, "top_k": 2, **plan.hyper}
    # so slow that the gates stay as they are set
    return stage.case({**hyper, "optimizer__gate_learning_rate_factor": 1e-6}, plan.batch, "per example")


def _add_torch(plan, stage, job, case):
    for name, options in TORCH.items():
        if plan.torch is None:
            stage.absent[name] = "no interpreter with PyTorch was given (TORCH_PYTHON)"
            continue
        process = torch_settings(plan)
        if options["fast"]:
            process = process._replace(tuned=("keep_freed_memory",))
        if options["compiled"]:  # a process for each, as compiling for one may slow the next one down
            process = process._replace(environment=COMPILER, label=name)
        stage.add(name, "torch_model.TorchRun", job, case, process, **options, threads=process.threads)


def torch_settings(plan):
    """The process of PyTorch's plain rows: default settings with two threads."""
    return Settings(tuned=(), threads=2, python=plan.torch)
