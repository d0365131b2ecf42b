"""The tables: which variants each has. What is promised of them is in ``acceptance.py``.

A table is a function of a ``Plan`` and an open ``Stage``; it returns a ``Table``.
"""

import collections
import os
import subprocess
import sys
import threading
import time

import figures
import workers
from stage import rows

ROOT = workers.HERE.parent
OURS, DEFAULT = workers.Settings(), workers.Settings(tuned=())
ONE_THREAD, TWO_THREADS = workers.Settings(threads=1), workers.Settings(threads=2)
ONE_CORE, ONE_CORE_DEFAULT = workers.Settings(one_core=True), workers.Settings(tuned=(), one_core=True)
WAYS = ("eager", "to_static", "static")
NO_KEPT_TENSORS = ("FLAGS_eager_delete_tensor_gb", "0")  # the user's own setting wins
# experts in use -> the two experts that each task's gate has settled on; 8: a gate that has not settled
SETTLED = {8: None, 4: [[0, 1], [2, 3]], 2: [[0, 1], [0, 1]], 1: [[0, 0], [0, 0]]}
BASELINE, PADDLEREC = "plain Paddle, dense", "PaddleRec's own step"
# PyTorch's rows -> options of torch_model.TorchRun: from the plain form to the fastest that somebody would build
TORCH = {
    "PyTorch, dense": {"experts": "each", "fast": False, "compiled": False},
    "PyTorch, dense, compiled": {"experts": "each", "fast": True, "compiled": True},
    "PyTorch, dense, grouped": {"experts": "grouped", "fast": True, "compiled": False},
    "PyTorch, dense, grouped, compiled": {"experts": "grouped", "fast": True, "compiled": True},
    "PyTorch, skipping, 2 of 8": {"experts": "needed", "fast": False, "compiled": False},
    "PyTorch, fixed, compiled, 2 of 8": {"experts": "fixed", "fast": True, "compiled": True},
    "PyTorch, fixed, grouped, compiled, 2 of 8": {"experts": "fixed grouped", "fast": True, "compiled": True},
}
# no processes that compile beside it; at inference the weights are constants of what is compiled
COMPILER = (("TORCHINDUCTOR_COMPILE_THREADS", "1"), ("TORCHINDUCTOR_FREEZING", "1"))
TORCH_DENSE = tuple(name for name in TORCH if "dense" in name)
TORCH_FIXED = tuple(name for name in TORCH if "fixed" in name)
TRAINERS = ("tools/trainer.py", "tools/static_trainer.py")
START_TIMEOUT_S = 120
MB = 1e6

# Sizes of everything. repeat: how often the sample is read where there is no full set; 1: the sample, always.
# hyper: keys that all cases have. torch: PyTorch's interpreter, paddlerec: folder of a package to time too, or None
Plan = collections.namedtuple(
    "Plan",
    "batch rounds turn_s product growth unsettled_growth row_experts memory memory_steps "
    "epochs epoch_steps epoch_batch starts repeat hyper torch paddlerec",
)
FULL = Plan(
    batch=256,
    rounds=7,
    turn_s=0.25,
    product=2048,
    growth=(4, 8, 16, 32, 64),
    unsettled_growth=(4, 8, 16, 64),  # with 32 too, all that is held would not fit into 24 GiB
    row_experts=16,
    memory=(8, 64),
    memory_steps=30,  # some twenty until it grows no more
    epochs=20,
    epoch_steps=60,
    epoch_batch=64,
    starts=3,
    repeat=25,
    hyper={},
    torch=None,
    paddlerec=None,
)
SMALL = FULL._replace(
    batch=16,
    rounds=2,
    turn_s=0.0,
    product=64,
    growth=(4, 8),
    unsettled_growth=(4,),
    row_experts=4,
    memory=(4,),
    memory_steps=2,
    epochs=2,
    epoch_steps=2,
    epoch_batch=16,
    starts=1,
    repeat=1,
    hyper={"expert_size": 8, "tower_size": 8},
)

Table = collections.namedtuple("Table", "title rows notes")  # rows: dicts; notes: lines


def step(plan, stage):
    """Training steps by experts in use, and the arithmetic limit."""
    settled = {active: _static_gate(plan, stage, 8, codes) for active, codes in SETTLED.items()}
    stage.add(BASELINE, "baseline", "train", settled[2], DEFAULT)
    for active, case in settled.items():
        for way in WAYS:
            stage.add(f"{way}, {active} of 8", "ours", "train", case, OURS, way=way)
    _add_paddlerec(plan, stage, settled[2])
    _add_torch(plan, stage, "train", settled[2])
    for threads, settings in ((1, OURS), (2, TWO_THREADS)):
        stage.add(f"product, {threads}", "product", "rate", None, settings, size=plan.product)
    times = stage.times(plan.rounds, plan.turn_s)
    products = {threads: min(times.pop(f"product, {threads}")) for threads in (1, 2)}  # the fastest: a ceiling
    stage.variants = [variant for variant in stage.variants if variant.name in times]
    found = rows(stage, times, plan.batch, [BASELINE])
    notes = _arithmetic_limit(plan, products, found)
    return Table(f"training step, 8 experts, batch {plan.batch}", found, notes)


def _add_paddlerec(plan, stage, case):
    """Not checked: it takes softmax twice and has one gate for all tasks, so it is not the dense mixture's function."""
    if plan.paddlerec is None:
        stage.absent[PADDLEREC] = "no folder with PaddleRec's DSelect-k is given (PADDLEREC)"
        return
    # a process of its own, where modules of the same names as ours are its; the flag is what its trainer sets
    process = DEFAULT._replace(label=PADDLEREC, environment=(("FLAGS_enable_pir_api", "0"),))
    stage.add(PADDLEREC, "package", "rate", case, process, folder=plan.paddlerec)


def _arithmetic_limit(plan, products, found):
    """The rate of matrix products as the ceiling; the fraction that each settled variant reaches of it."""
    rates = {threads: plan.product**3 / seconds for threads, seconds in products.items()}
    notes = [
        f"float32 product of {plan.product} x {plan.product}: {2e-9 * rates[1]:.0f} GFLOP/s on one thread, "
        f"{2e-9 * rates[2]:.0f} on two"
    ]
    for active in (2, 1):
        needed = figures.multiplications_per_example(active, **plan.hyper)
        limit = rates[2] / needed
        notes.append(
            f"{active} of 8: {needed / 1e6:.2f} million multiplications an example, forward and backward; "
            f"limit on two threads {limit:.0f} examples/s"
        )
        for row in found:
            if row["variant"].endswith(f"{active} of 8") and "examples/s" in row:  # not absent
                row["of the limit"] = row["examples/s"] / limit
    return notes


def settings(plan, stage):
    """Training steps with each of the tools' settings left out, and with more threads."""
    case = _static_gate(plan, stage, 8, SETTLED[2])
    for way in WAYS:
        leave_out = {
            "all settings": OURS,
            "MKL's usual path": OURS._replace(tuned=("keep_freed_memory",)),
            "glibc gives memory back": OURS._replace(tuned=("use_fast_path",)),
            "programs free tensors": OURS._replace(environment=(NO_KEPT_TENSORS,)),
            "two OpenMP threads": TWO_THREADS,
        }
        if way == "eager":
            del leave_out["programs free tensors"]
        for what, process in leave_out.items():
            stage.add(f"{way}, {what}", "ours", "train", case, process, way=way)
        if way == "static":
            stage.add("static, the executor as it is", "ours", "train", case, OURS, way=way, unchanging=False)
        none = DEFAULT._replace(environment=(NO_KEPT_TENSORS,))
        stage.add(f"{way}, no settings", "ours", "train", case, none, way=way, unchanging=False)
    times = stage.times(plan.rounds, plan.turn_s)
    found = rows(stage, times, plan.batch, ["all settings"])
    return Table(f"the tools' settings, training, 2 of 8 experts, batch {plan.batch}", found, [])


def growth(plan, stage):
    """Training steps by number of experts, at k = 2."""
    unsettled = {n: _static_gate(plan, stage, n, None) for n in plan.unsettled_growth}
    for n in plan.growth:
        case = _static_gate(plan, stage, n, SETTLED[2])
        alone = OURS._replace(label=f"2 of {n}")  # as in a tool, and not beside dozens of other programs' threads
        for way in ("eager", "static"):
            stage.add(f"{way}, 2 of {n}", "ours", "train", case, alone, way=way)
            if n in unsettled:
                stage.add(f"{way}, all of {n}", "ours", "train", unsettled[n], OURS, way=way)
    times = stage.times(max(plan.rounds - 2, 1), plan.turn_s)
    found = rows(stage, times, plan.batch, ["2 of 8"])
    return Table(f"training step by number of experts, k = 2, batch {plan.batch}", found, [])


def inference(plan, stage):
    """Predictions of a settled gate."""
    case = _static_gate(plan, stage, 8, SETTLED[2])
    stage.add(BASELINE, "baseline", "infer", case, DEFAULT)
    stage.add("eager dense", "ours", "infer", case, OURS, way="eager", dense=True)
    for way in WAYS:
        stage.add(f"{way}, 2 of 8", "ours", "infer", case, OURS, way=way)
    # processes of their own, or their idle threads would spin in the next variant's turn
    stage.add("exported dense", "exported", "infer", case, TWO_THREADS, pruned=False, threads=2)
    stage.add("exported pruned", "exported", "infer", case, TWO_THREADS, pruned=True, threads=2)
    stage.add("exported pruned, one thread", "exported", "infer", case, ONE_THREAD, pruned=True, threads=1)
    _add_torch(plan, stage, "infer", case)
    times = stage.times(plan.rounds, plan.turn_s)
    return Table(f"inference, 8 experts, batch {plan.batch}", rows(stage, times, plan.batch, [BASELINE]), [])


def rows_inference(plan, stage):
    """Predictions of a per-example gate: an expert runs on the examples that need it."""
    case = _per_example_gate(plan, stage)
    for name, routed in (("all experts", False), ("rows routed", True)):
        stage.add(f"exported, {name}", "exported", "infer", case, TWO_THREADS, pruned=routed, threads=2)
    return _routed(plan, stage, case, "infer", "per-example gate at inference")


def rows_training(plan, stage):
    """The same in training, which is exact without batch norm alone."""
    case = _per_example_gate(plan, stage, expert_norm="none")
    return _routed(plan, stage, case, "train", "per-example gate in training, expert_norm: none")


def _routed(plan, stage, case, job, title):
    for way in WAYS:
        stage.add(f"{way}, all experts", "ours", job, case, OURS, way=way, dense=True)
        stage.add(f"{way}, rows routed", "ours", job, case, OURS, way=way)
    times = stage.times(plan.rounds, plan.turn_s)
    found = rows(stage, times, plan.batch, ["all experts"])
    note = "each example has two experts, the same for both tasks"
    return Table(f"{title}, k = 2 of {plan.row_experts}, batch {plan.batch}", found, [note])


def reader(plan, stage):
    """Batches a second on one core, shuffled."""
    data, what = _data(plan, stage)
    # a process for each: Paddle's loader reads ahead, and would do so in the other's turn
    stage.add("Paddle's loader", "loader", "rate", None, ONE_CORE_DEFAULT, data=data, batch=plan.batch)
    stage.add("engine's Batches", "batches", "rate", None, ONE_CORE, data=data, batch=plan.batch)
    facts = stage.worker(ONE_CORE).ask("facts")["engine's Batches"]
    note = f"{what}: {facts['examples']} examples, {facts['bytes'] / MB:.1f} MB in memory"
    times = stage.times(plan.rounds, plan.turn_s)
    return Table(f"reader, batch {plan.batch}", rows(stage, times, plan.batch, ["Paddle's loader"]), [note])


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
    """From a process's start to its first training step, at 8 experts."""
    seconds = {name: [] for name in ("import paddle", *TRAINERS)}
    for i in range(plan.starts):
        seconds["import paddle"].append(_seconds_until("", [sys.executable, "-c", "import paddle"]))
        for tool in TRAINERS:
            overrides = ["runner.print_interval=1", f"runner.train_batch_size={plan.epoch_batch}"]
            overrides.append(f"runner.model_save_path={stage.folder}/{os.path.basename(tool)}{i}")
            command = [sys.executable, str(ROOT / tool), "-m", str(ROOT / "config.yaml"), "-o", *overrides]
            seconds[tool].append(_seconds_until("batch_id: 0", command))
    least = seconds["import paddle"]
    found = [
        # seconds are compared the other way round: how many times as long
        {"variant": name, "s": figures.spread(values), "against import paddle": figures.ratio(values, least)}
        for name, values in seconds.items()
    ]
    return Table("start to first training step, 8 experts", found, [])


def _seconds_until(words, command):
    """How long a command takes until it prints ``words``; to its end if they are empty."""
    began = time.perf_counter()
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=workers.clean_environment()
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
            raise workers.WorkerError(f"{command[1:3]} ended before it printed {words!r}:\n{printed[-1000:]}")
        return time.perf_counter() - began
    finally:
        limit.cancel()
        process.kill()
        process.communicate()


def memory(plan, stage):
    """Greatest resident memory of a process that trains, each in a process of its own."""
    first, found = (
        plan.memory[0],
        [{"variant": "import paddle", "MB": _peak_bytes(plan, stage, "product", None, size=1) / MB}],
    )
    for way in ("eager", "static"):
        for n, codes in [(n, codes) for n in plan.memory for codes in (None, SETTLED[2])]:
            peak = _peak_bytes(plan, stage, "ours", _static_gate(plan, stage, n, codes), way=way)
            found.append({"variant": f"{way}, {'all' if codes is None else 2} of {n}", "MB": peak / MB})
    for row in found[1:]:
        base = next(other for other in found if other["variant"] == f"{row['variant'].split(',')[0]}, 2 of {first}")
        row[f"against 2 of {first}"] = row["MB"] / base["MB"]
    return Table(f"peak memory of {plan.memory_steps} training steps, batch {plan.batch}", found, [])


def _peak_bytes(plan, stage, kind, case, **options):
    outputs = os.path.join(stage.folder, "memory.npz")
    with workers.Worker(OURS, stage.folder) as worker:
        worker.ask("build", name="only", kind=kind, job="rate", case=case, options=options, outputs=outputs)
        worker.ask("steps", name="only", count=plan.memory_steps)
        return worker.ask("facts")["peak_bytes"]


def long_run(plan, stage):
    """Epochs of steps with six dead experts, whose moments decay into the denormal numbers on the way.

    A twin of each, whose dead experts have moments of zero, takes turns with it: what the machine's own
    speed has changed from the first epoch to the last is taken out.
    """
    case = _static_gate(plan, stage, 8, SETTLED[2], batch=plan.epoch_batch)
    twins = {way: f"{way}, moments of zero" for way in ("eager", "static")}
    for way, twin in twins.items():
        for name in (way, twin):
            stage.add(name, "ours", "train", case, OURS, way=way)
    for variant in stage.variants:
        stage.ask(variant, "steps", count=2)
        if variant.name in twins:
            stage.ask(variant, "age")
    at_first = {variant.name: stage.ask(variant, "denormal")["share"] for variant in stage.variants}
    epochs = {variant.name: [] for variant in stage.variants}
    for _ in range(plan.epochs):
        for variant in stage.variants:
            epochs[variant.name].append(stage.ask(variant, "steps", count=plan.epoch_steps)["seconds"])
    found = []
    for variant in stage.variants:
        first, last = (figures.spread(epochs[variant.name][i]) for i in (0, -1))
        found.append(
            {
                "variant": variant.name,
                "denormal at first": at_first[variant.name],
                "at last": stage.ask(variant, "denormal")["share"],
                "first epoch, ms": figures.Spread(*(1e3 * value for value in first)),
                "last epoch, ms": figures.Spread(*(1e3 * value for value in last)),
                "last against first": last.median / first.median,
            }
        )
    notes = [
        "Adam leaves 0.9 of a dead expert's first moment each step, which is denormal after some 830, and 0.999 of",
        "the second, after some 70,000; here they start at 1e-30 and 2e-38, and both get there in this run",
    ]
    title = f"{plan.epochs} epochs of {plan.epoch_steps} steps, 2 of 8 experts, batch {plan.epoch_batch}"
    return Table(title, found, notes)


TABLES = {
    "step": step,
    "settings": settings,
    "growth": growth,
    "inference": inference,
    "rows_inference": rows_inference,
    "rows_training": rows_training,
    "reader": reader,
    "start": start,
    "memory": memory,
    "long_run": long_run,
}


def _static_gate(plan, stage, expert_num, settled, batch=None):
    hyper = {"expert_num": expert_num, "top_k": 2, **plan.hyper}
    return stage.case(hyper, batch or plan.batch, settled)


def _per_example_gate(plan, stage, **keys):
    hyper = {"gate": "dselect_k_per_example", "expert_num": plan.row_experts, "top_k": 2, **plan.hyper, **keys}
    # so slow that the gates stay as they are set, however many steps there are
    return stage.case({**hyper, "optimizer__gate_learning_rate_factor": 1e-6}, plan.batch, "rows")


def _add_torch(plan, stage, job, case):
    for name, options in TORCH.items():
        if plan.torch is None:
            stage.absent[name] = "no interpreter with PyTorch is given (TORCH_PYTHON)"
            continue
        process = torch_settings(plan)
        if options["fast"]:
            process = process._replace(tuned=("keep_freed_memory",))
        if options["compiled"]:  # a process for each: what is compiled for one may slow the next one down
            process = process._replace(environment=COMPILER, label=name)
        stage.add(name, "torch", job, case, process, **options, threads=process.threads)


def torch_settings(plan):
    """The process of PyTorch's plain rows: default settings, but two threads."""
    return workers.Settings(tuned=(), threads=2, python=plan.torch)
