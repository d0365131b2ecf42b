"""The benchmarks: their arithmetic, what they refuse, and that every table runs from start to end."""

import json
import subprocess
import sys

import bench
import cases
import census_data
import measuring
import numpy as np
import paddle
import pytest
import report
import tables
import worker

from dselect_k_model import build, hyper_parameters
from support import ROOT
from support.ways import config

TIMEOUT_S = 300
RESULTS = report.RESULTS.read_text(encoding="utf-8")


@pytest.mark.parametrize("table", [{}, tables.TABLE], ids=["image", "table"])
def test_multiplications_are_those_of_the_networks_layers(table):
    counts, first = [], []

    def count(layer, _, output):
        positions = np.prod(output.shape[2:]) if isinstance(layer, paddle.nn.Conv2D) else 1
        counts.append(int(np.prod(layer.weight.shape) * positions))
        if isinstance(layer, paddle.nn.Conv2D) and layer.weight.shape[1] == 1:
            first.append(counts[-1])

    keys = {**table, "expert_num": 2, "expert_size": 7, "tower_size": 9, "kernels": False}
    hyper = hyper_parameters.HyperParameters.from_config(config(**keys))
    network = build.build(hyper)
    for layer in network.sublayers():
        if isinstance(layer, (paddle.nn.Conv2D, paddle.nn.Linear)):
            layer.register_forward_post_hook(count)
    network([paddle.zeros([1, *shape], dtype) for _, shape, dtype in hyper.inputs()])
    weights = {key: value.numpy() for key, value in network.state_dict().items()}
    case = cases.Case(keys, [], [0, 0], weights, [], [], [0, 1])
    forward = sum(counts) + 2 * 2 * 7  # and for each task the mixture of two experts
    assert cases.multiplications(case, 2, training=False) == forward
    assert cases.multiplications(case, 2) == 3 * forward - sum(first)


def test_spread_is_median_and_quartiles():
    assert measuring.spread([5.0, 1.0, 4.0, 2.0, 3.0]) == (3.0, 2.0, 4.0)
    assert measuring.spread([7.0]) == (7.0, 7.0, 7.0)


def test_ratio_compares_within_a_round():
    """A machine that is ten times slower for a round changes neither the ratio nor its spread."""
    assert measuring.ratio([2.0, 20.0, 2.0], [1.0, 10.0, 1.0]) == (2.0, 2.0, 2.0)


def test_percentiles_are_of_all_calls_but_the_first_of_a_turn(tmp_path):
    assert measuring.percentiles([i / 1e3 for i in range(101)]) == pytest.approx({"p50, ms": 50.0, "p99, ms": 99.0})

    class Variant:
        def ask(self, method, count):
            return [9.0] * measuring.WARM_UP + [0.001] * (count - measuring.WARM_UP - 1) + [0.003]

        def close(self):
            pass

    sizes = tables.SMALL._replace(latency_turns=3, latency_calls=2)
    with measuring.Bench(sizes, tmp_path) as of_table:
        of_table.workers["exported"], of_table.processes["exported"] = Variant(), "here"
        of_table.absent["other"] = "not here"
        measured, absent = of_table.latencies()
    assert measured == {
        "variant": "exported",
        "process": "here",
        "p50, ms": pytest.approx(2),
        "p99, ms": pytest.approx(3),
    }
    assert absent == {"variant": "other", "process": "absent: not here"}


def test_every_variant_of_the_census_gets_the_same_rows_in_the_same_order():
    """Inputs and labels stay together; an epoch has no row twice, and drops what does not fill a batch."""
    numbers = np.arange(10)
    case = cases.Case({}, [numbers, -numbers], [numbers + 0.5], {}, [], [], [])
    first, second, other = (list(case.batches(4, 2, seed)) for seed in (0, 0, 1))
    order, again, of_other = (np.concatenate([one.inputs[0] for one in found]) for found in (first, second, other))
    assert len(order) == 16 and np.array_equal(order, again) and not np.array_equal(order, of_other)
    assert len(set(order[:8])) == len(set(order[8:])) == 8 and list(order[:8]) != list(order[8:])
    assert all(np.array_equal(one.inputs[0], one.labels[0] - 0.5) for one in first)
    assert all(np.array_equal(one.inputs[0], -one.inputs[1]) for one in first)
    assert census_data.aucs([[1, 2, 3, 3], [1, 2, 3, 4]], [np.array([0, 0, 1, 0]), np.array([1, 1, 0, 0])]) == [
        pytest.approx(2.5 / 3),
        0.0,
    ]


def test_the_census_is_absent_without_its_data(tmp_path, monkeypatch):
    monkeypatch.setattr(census_data, "folder", lambda full: tmp_path / "none")
    with measuring.Bench(tables.on_census(tables.SMALL), tmp_path) as of_table:
        found, _ = tables.census(of_table)
    assert {row["variant"] for row in found} == {*tables.CENSUS, *tables.TORCH_LIBRARIES}
    assert all("absent: the whole file" in row["process"] for row in found)


def row(variant, *seconds):
    return {"variant": variant, "seconds": [*seconds], **measuring.columns(variant, {variant: [*seconds]}, 256, [])}


def kept(**rows):
    return {row["key"]: row for row in report.kept(rows)}


def test_promises_have_both_directions_and_may_be_unmeasured():
    step = [row(tables.BASELINE, 9.9), row("static, 2 of 8", 1.0), row("eager, 2 of 8", 9.9 / 7)]
    step.append({"variant": "static, 8 of 8", "process": "absent: no such thing"})
    growth = [row("static, 2 of 64", 1.61), row("static, 2 of 8", 1.0)]
    found = kept(step=step, growth=growth, reader=[row("engine's Batches", 256 / 300_000)])
    assert found["step static settled"]["measured"] == 9.9 and found["step static settled"]["kept"] is False
    assert found["step eager settled"]["kept"] is True
    assert found["growth static"]["measured"] == 1.61 and found["growth static"]["kept"] is False
    assert found["reader"]["measured"] == pytest.approx(300_000) and found["reader"]["kept"] is True
    for key in ("step static all", "growth eager", "long run static"):
        assert found[key]["measured"] is None and found[key]["kept"] is None


def test_a_promise_takes_the_fastest_opponent_and_needs_all():
    names = next(promise["against"] for promise in report.PROMISES if promise["key"] == "step static settled torch")
    step = [row("static, 2 of 8", 1.0), *(row(name, 2.0 + i) for i, name in enumerate(names))]
    assert set(names) == {name for name in tables.TORCH if "dense" in name}
    assert kept(step=step)["step static settled torch"]["measured"] == 2.0
    assert kept(step=step[:-1])["step static settled torch"]["measured"] is None


@pytest.mark.parametrize("wrong", ["logits", "losses", "used"])
def test_a_variant_that_computes_something_else_is_refused(wrong, rng, monkeypatch, tmp_path):
    case = cases.Case({}, [], [], {}, [rng.rand(4, 10)], [4.6, 4.5], [0, 1])

    class Variant:
        def __init__(self, case, error):
            self.case, self.losses = case, iter([4.6 + error * (wrong == "losses"), 4.5, 4.4])
            self.predict = lambda: [case.logits[0] + error * (wrong == "logits")]
            self.step = lambda: (next(self.losses), 2 + (error > 0) * (wrong == "used"))

    monkeypatch.setattr(cases, "read", lambda path: case)
    monkeypatch.setattr(tables, "Variant", Variant, raising=False)
    assert len(worker.Runner("tables.Variant", "train", "case", {"error": 0.0}).steps(1)) == 1
    with pytest.raises(worker.Disagreement):
        worker.Runner("tables.Variant", "train", "case", {"error": 0.01}).steps(1)


def test_a_worker_that_fails_is_reported(tmp_path):
    settings = measuring.ProcessSettings(tuned=())
    arguments = {"job": "rate", "case": None, "options": {"size": 4}}
    product = measuring.Worker(settings, tmp_path / "log", kind="variants.MatrixProduct", **arguments)
    assert len(product.ask("steps", 2)) == 2 and product.ask("peak_bytes") > 0
    with pytest.raises(measuring.WorkerError, match="no_such_method"):
        product.ask("no_such_method")
    product.close()
    with pytest.raises(measuring.Absent, match="no torch"):
        arguments["options"] = {"experts": "each", "fast": False, "compiled": False, "threads": 1}
        measuring.Worker(settings, tmp_path / "log", kind="torch_model.TorchModel", **arguments)


@pytest.mark.parametrize(
    "arguments, words",
    [(["no_such_table"], "no_such_table"), (["--paddlerec", "/x"], "config.yaml"), (["--torch-python", "/x"], "/x")],
)
def test_a_missing_table_package_or_interpreter_is_refused(arguments, words, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["bench.py", *arguments])
    with pytest.raises(SystemExit) as ended:
        bench.main()
    assert ended.value.code == 2 and words in capsys.readouterr().err


# table -> a variant of it, how many of its promises are measured at small sizes
TABLES = {
    "step": (tables.PADDLEREC, 3),
    "growth": ("eager, all of 4", 0),
    "inference": ("exported, 2 of 8", 1),
    "latency": ("exported, one thread, batch 1", 0),
    "rows_inference": ("exported, rows routed", 3),
    "rows_training": ("to_static, rows routed", 3),
    "table_step": ("static, 2 of 8", 1),
    "table_growth": ("static, 2 of 8", 0),
    "table_inference": ("exported, 2 of 8", 1),
    "table_latency": ("exported, per-example gate, two threads, batch 16", 0),
    "table_rows_inference": ("exported, rows routed", 0),
    "table_rows_training": ("static, rows routed", 1),
    "embeddings": ("eager, lazy_adam", 1),
    "census": ("static, MMoE", 0),
    "reader": ("engine's Batches", 1),
    "files": ("csv, hashed", 2),
    "start": ("tools/static_trainer.py, 8 experts", 0),
    "memory": ("static, 2 of 4", 0),
    "long_run": ("static", 2),
}


@pytest.mark.bench
@pytest.mark.parametrize("names", [("step", "growth"), tuple(TABLES)[2:]], ids=["training", "others"])
def test_the_tables_run(names, tmp_path):
    """In a step, this package stands in for PaddleRec's; PyTorch's rows say why they are absent."""
    if names[0] != "step" and paddle.__version__.startswith("2."):
        pytest.skip("the figures are of Paddle 3")
    command = [sys.executable, str(ROOT / "benchmarks" / "bench.py"), "--small", *names, "--paddlerec", str(ROOT)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=TIMEOUT_S * len(names))
    assert done.returncode == 0, done.stderr
    text = done.stdout
    assert not report.problems(text)
    _, records, promised = report.read(text)
    measured = [row["key"] for row in promised["rows"] if row["measured"] is not None]
    table_of = {promise["key"]: promise["table"] for promise in report.PROMISES}
    for name in names:
        variant, number = TABLES[name]
        rows = {row["variant"]: row for row in records[name]["rows"]}
        assert variant in rows and [table_of[key] for key in measured].count(name) == number, name
        if name == "step":
            assert records["step"]["difference"] < 1e-4
            assert rows[variant]["ms"][0] > 0 and "not checked" in rows[variant]["process"]
            assert rows.keys() >= set(tables.TORCH) and "absent" in rows["PyTorch, dense"]["process"]
        assert (rows.keys() >= set(tables.TORCH_LIBRARIES)) == (name in ("table_step", "census")), name
        if name == "census":
            assert all(0.8 < auc < 1 for one in tables.CENSUS for auc in np.ravel(rows[one]["aucs"]))
            assert rows[variant]["aucs"][0] != rows[variant]["aucs"][1], "the seed decides nothing"
        if name.endswith("latency"):
            assert records[name]["difference"] < 1e-4 and rows[variant]["p99, ms"] >= rows[variant]["p50, ms"] > 0
            assert {"tuned, 1 thread", "tuned, 2 threads"} < {row["process"] for row in rows.values()}
            assert len(rows) == 4 * (2 + len(tables.TORCH_SERVED))


def test_results_follow_from_their_measurements_and_changes_are_found():
    assert not report.problems(RESULTS)
    _, records, promised = report.read(RESULTS)
    assert all(row["measured"] is not None for row in promised["rows"]), "RESULTS.txt is of all tables, with PyTorch"
    row = next(row for row in records["step"]["rows"] if row["variant"] == "eager, 8 of 8")
    label = report.PROMISES[0]["figure"]
    for old, new in (
        (label, label.replace("2 of 8", "8 of 8")),
        ('"kept": true', '"kept": false'),
        (json.dumps(row["ms"][0]), "0.5"),
        (json.dumps(row["seconds"][0]), "0.5"),
        ("of the limit", "of the limit "),
    ):
        assert old in RESULTS and report.problems(RESULTS.replace(old, new, 1)), old


@pytest.mark.parametrize("path", report.PAGES, ids=lambda path: path.name)
def test_a_page_has_the_figures_of_the_results(path):
    page = path.read_text(encoding="utf-8")
    assert page == report.filled(page, RESULTS, report.PAGES[path])


def test_a_table_measured_again_takes_its_place():
    assert report.merged(RESULTS, RESULTS).splitlines()[:-2] == RESULTS.splitlines()[:-2]  # but for the seconds in all
    machine, records, _ = report.read(RESULTS)
    again = {**records["reader"], "commit": "again", "seconds": 7.0}
    lines = report.machine_lines(machine) + report.table_lines(again) + report.acceptance_lines({}, 7.0)
    new = report.merged(RESULTS, "\n".join(lines))
    assert not report.problems(new)
    _, found, _ = report.read(new)
    assert list(found) == list(records) and found["reader"] == again and found["step"] == records["step"]
    with pytest.raises(ValueError, match="cores 2 -> 64: .*step.* Measure all tables"):
        report.merged(RESULTS, "\n".join(lines).replace('"cores": 2', '"cores": 64', 1))


def test_a_run_without_pytorch_may_measure_a_table_that_has_no_rows_of_it():
    machine, records, _ = report.read(RESULTS)
    facts = {name: value for name, value in machine["machine"].items() if name != "of PyTorch's process"}
    machine = {"machine": facts, "sizes": machine["sizes"]}

    def measured(record):
        lines = report.machine_lines(machine) + report.table_lines(record) + report.acceptance_lines({}, 7.0)
        return report.merged(RESULTS, "\n".join(lines))

    new = measured({**records["reader"], "seconds": 7.0})
    assert report.read(new)[0]["machine"]["of PyTorch's process"]["torch"]
    rows = [
        {"variant": row["variant"], "process": "absent: none was given"} if "PyTorch" in row["variant"] else row
        for row in records["step"]["rows"]
    ]
    with pytest.raises(ValueError, match="step: .* was measured before, and is absent now. Give TORCH_PYTHON"):
        measured({**records["step"], "rows": rows})


@pytest.mark.parametrize(
    "versions, names",
    [
        ({}, []),
        ({"torch-rechub": "0.9.0"}, ["*torch-rechub* 0.9.0"]),
        ({"torch-rechub": "1", "deepctr-torch": "2"}, ["*torch-rechub* 1 and *DeepCTR-Torch* 2"]),
    ],
)
def test_a_page_says_what_the_libraries_networks_are_if_they_were_there(versions, names):
    machine, records, promised = report.read(RESULTS)
    machine["machine"]["of PyTorch's process"] = {"torch": "2.14.1", **versions}
    found = [line for line in report.full(machine, records, promised) if "are networks of" in line]
    assert [line.partition(" are ")[0] for line in found] == names
    assert {name.split(",")[0] for name in tables.TORCH_LIBRARIES} == set(report.LIBRARIES.values())


def test_a_page_has_latencies_by_batch_size_once_they_are_measured():
    machine, records, promised = report.read(RESULTS)
    absent = {"variant": "PyTorch, fixed, batch 1", "process": "absent: no such thing"}
    rows = [
        {
            "variant": f"exported, one thread, batch {batch}",
            "process": "tuned",
            "p50, ms": batch / 3,
            "p99, ms": 1.0 * batch,
        }
        for batch in (1, 16)
    ]
    without = {name: record for name, record in records.items() if not name.endswith("latency")}
    lines = report.full(machine, {**without, "table_latency": {"rows": [*rows, absent]}}, promised)
    found = lines[lines.index("On images:") :]
    assert found[:5] == ["On images:", "", report.NOT_MEASURED, "", "On the table:"]
    assert found[6:9] == [
        "|  | process | p50, batch 1 | p99, batch 1 | p50, batch 16 | p99, batch 16 |",
        "| --- | --- | --- | --- | --- | --- |",
        "| exported, one thread | tuned | 0.333 | 1 | 5.33 | 16 |",
    ]
    assert found[9] == ""


def test_a_page_has_aucs_once_they_are_measured():
    machine, records, promised = report.read(RESULTS)
    without = {name: record for name, record in records.items() if name != "census"}
    assert report.full(machine, without, promised).count(report.NOT_MEASURED) >= 1
    runs = {
        "static, MMoE": [(0.5, None, [0.9, 0.8]), (0.5, None, [0.92, 0.8])],
        "static, DSelect-k": [(0.25, 4, [0.9, 0.8])] * 2,
    }
    with measuring.Bench(tables.FULL, "none") as of_table:
        of_table.processes.update(dict.fromkeys(runs, "tuned"))
        of_table.absent["DeepCTR-Torch, PLE"] = "no such thing"
        rows = tables.census_rows(of_table, runs)
    lines = report.full(machine, {**without, "census": {"title": "T", "rows": rows}}, promised)
    at = lines.index("T:")
    assert lines[at + 2 : at + 7] == [
        "|  | process | AUC income | AUC never_married | experts in use | examples/s |",
        "| --- | --- | --- | --- | --- | --- |",
        "| static, MMoE | tuned | 0.9100 +- 0.0141 | 0.8000 +- 0.0000 | all | 512 |",
        "| static, DSelect-k | tuned | 0.9000 +- 0.0000 | 0.8000 +- 0.0000 | 4, 4 | 1024 |",
        "",
    ]


@pytest.mark.parametrize("paddlerec, speed", [([], "0.87"), ([2.5], "0.80")])
def test_a_page_is_filled_between_its_markers(paddlerec, speed):
    machine, records, _ = report.read(RESULTS)
    seconds = {tables.BASELINE: [2.0], "static, 2 of 8": [0.5], **({tables.PADDLEREC: paddlerec} if paddlerec else {})}
    rows = [
        {"variant": name, "process": "", "seconds": seconds[name]}
        | measuring.columns(name, seconds, 256, [tables.BASELINE])
        for name in seconds
    ]
    record = {**records["step"], "rows": rows}
    lines = report.machine_lines(machine) + report.table_lines(record) + report.acceptance_lines({"step": rows}, 1.0)
    page = f"before\n{report.BEGIN}stale\n{report.END}after\n"
    full, short, chinese = (
        report.filled(page, "\n".join(lines), lines_of) for lines_of in (report.full, report.short, report.chinese)
    )
    assert full.startswith("before\n") and full.endswith("after\n") and "stale" not in full
    assert "| static |  |  | 512 |\n" in full and ("| PaddleRec's own step |" in full) == bool(paddlerec)
    promise = report.PROMISES[0]
    assert f"| {promise['figure']} | >= 10x | 4, **not kept** |" in full and f"{speed} times the examples" in full
    assert f"| {promise['figure']} | 4, **not kept** |" in short and f"| {promise['zh']} | 4, **not kept** |" in chinese
