"""The benchmarks: their arithmetic, what they refuse, and that a table still runs from start to end."""

import json
import os
import shutil
import subprocess
import sys

import acceptance
import numpy as np
import paddle
import pytest
import report
import stage
import tables
import worker
from conftest import ROOT
from ways import config

import hyper_parameters

TIMEOUT_S = 120


@pytest.mark.parametrize("table", [{}, tables.TABLE], ids=["image", "table"])
def test_multiplications_are_those_of_the_networks_layers(table):
    counts, first = [], []

    def count(layer, _, output):
        positions = np.prod(output.shape[2:]) if isinstance(layer, paddle.nn.Conv2D) else 1
        counts.append(int(np.prod(layer.weight.shape) * positions))
        if isinstance(layer, paddle.nn.Conv2D) and layer.weight.shape[1] == 1:
            first.append(counts[-1])

    keys = {**table, "expert_num": 2, "expert_size": 7, "tower_size": 9}
    hyper = hyper_parameters.HyperParameters.from_config(config(**keys))
    network = hyper_parameters.build(hyper)
    for layer in network.sublayers():
        if isinstance(layer, (paddle.nn.Conv2D, paddle.nn.Linear)):
            layer.register_forward_post_hook(count)
    network(*[paddle.zeros([1, *shape], dtype) for _, shape, dtype in hyper.inputs()])
    forward = sum(counts) + 2 * 2 * 7  # and for each task the mixture of two experts
    assert tables.multiplications_per_example(2, training=False, **keys) == forward
    assert tables.multiplications_per_example(2, **keys) == 3 * forward - sum(first)


def test_spread_is_median_and_quartiles():
    assert stage.spread([5.0, 1.0, 4.0, 2.0, 3.0]) == (3.0, 2.0, 4.0)
    assert stage.spread([7.0]) == (7.0, 7.0, 7.0)


def test_ratio_compares_within_a_round():
    """A machine that is ten times slower for a round changes neither the ratio nor its spread."""
    assert stage.ratio([2.0, 20.0, 2.0], [1.0, 10.0, 1.0]) == (2.0, 2.0, 2.0)


def row(variant, *seconds):
    return {"variant": variant, "seconds": list(seconds), **stage.columns(variant, {variant: list(seconds)}, 256, [])}


def promised_of(**rows):
    return {row["key"]: row for row in acceptance.rows(rows)}


def test_acceptance_knows_both_senses_and_what_was_not_measured():
    step = [row(tables.BASELINE, 9.9), row("static, 2 of 8", 1.0), row("eager, 2 of 8", 9.9 / 7)]
    step.append({"variant": "static, 8 of 8", "process": "absent: no such thing"})
    growth = [row("static, 2 of 64", 1.31), row("static, 2 of 8", 1.0)]
    promised = promised_of(step=step, growth=growth)
    assert promised["step static settled"]["measured"] == 9.9 and promised["step static settled"]["kept"] is False
    assert promised["step eager settled"]["kept"] is True
    assert promised["growth static"]["measured"] == 1.31 and promised["growth static"]["kept"] is False
    for key in ("step static all", "growth eager", "reader", "long run static"):
        assert promised[key]["measured"] is None and promised[key]["kept"] is None


def test_acceptance_takes_the_fastest_opponent_and_needs_all():
    step = [row("static, 2 of 8", 1.0), *(row(name, 2.0 + i) for i, name in enumerate(tables.TORCH_DENSE))]
    assert promised_of(step=step)["step static settled torch"]["measured"] == 2.0
    assert promised_of(step=step[:-1])["step static settled torch"]["measured"] is None


def test_labels_stand_alone():
    labels = [target.figure for target in acceptance.TARGETS.values()]
    assert len(set(labels)) == len(labels) and not any("the same" in label for label in labels)


@pytest.mark.parametrize("wrong", ["logits0", "losses"])
def test_a_variant_that_computes_something_else_is_refused(wrong, tmp_path, rng):
    logits, losses = rng.rand(4, 10), np.array([4.6, 4.5])
    case = tmp_path / "case.npz"
    worker.write_case(case, {}, [0], [rng.rand(4), rng.rand(4)], [logits], losses, {})
    answers = {"logits0": logits, "losses": losses}
    on_stage = stage.Stage(str(tmp_path))
    for name, allowed in (("right", True), ("wrong", False)):
        outputs = tmp_path / f"{name}.npz"
        np.savez(outputs, **answers)
        if allowed:
            on_stage.check(name, worker.Case(case), outputs)
        else:
            with pytest.raises(stage.Disagreement, match="wrong"):
                on_stage.check(name, worker.Case(case), outputs)
        answers[wrong] = answers[wrong] + 0.01


def run_bench(*arguments, cwd):
    """What a run at tiny sizes prints."""
    command = [sys.executable, str(ROOT / "benchmarks" / "bench.py"), "--small", *arguments]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=len(arguments) * TIMEOUT_S)
    assert done.returncode == 0, done.stderr
    return done.stdout


def check(text):
    """What was promised, by key; all that is printed must follow from the seconds in it."""
    assert not report.problems(text)
    _, records, promised = report.read(text)
    return records, {row["key"]: row["measured"] for row in promised["rows"]}


@pytest.mark.bench
def test_training_steps_run_from_start_to_end(tmp_path):
    """Cases, checks, turns, lines of JSON; a package's own step, here this one's; PyTorch's rows say why not."""
    text = run_bench("step", "growth", "--paddlerec", str(ROOT), cwd=tmp_path)
    records, measured = check(text)
    assert records["step"]["difference"] < 1e-4
    rows = {row["variant"]: row for row in records["step"]["rows"]}
    assert rows[tables.PADDLEREC]["ms"][0] > 0 and "not checked" in rows[tables.PADDLEREC]["process"]
    shown = {name for names in report.STEPS.values() for n, name in names.items() if n in tables.SMALL.in_use}
    assert rows.keys() >= shown
    assert rows.keys() >= set(tables.TORCH) and "absent" in rows["PyTorch, dense"]["process"]
    assert {key for key, value in measured.items() if value} == {
        "step static settled",
        "step eager settled",
        "step static all",
    }
    names = {row["variant"] for row in records["growth"]["rows"]}
    assert names >= {"eager, 2 of 4", "static, 2 of 8", "eager, all of 4"}
    assert measured["growth eager"] is None  # it is promised of 64 experts
    refuses_changes(text, rows["eager, 8 of 8"])


def refuses_changes(text, row):
    """A number or a label changed by hand; ``row`` is of a variant of which nothing is promised."""
    label = acceptance.TARGETS["step static settled"].figure
    for old, new in (
        (label, label.replace("2 of 8", "8 of 8")),
        ('"kept": false', '"kept": true') if '"kept": false' in text else ('"kept": true', '"kept": false'),
        (json.dumps(row["ms"][0]), "0.5"),
        (json.dumps(row["seconds"][0]), "0.5"),
        ("of the limit", "of the limit "),
    ):
        assert old in text and report.problems(text.replace(old, new, 1)), old


# table -> a variant of it, how many of its figures are promised
OTHERS = {
    "inference": ("exported pruned", 1),
    "rows_inference": ("exported, rows routed", 3),
    "rows_training": ("to_static, rows routed", 3),
    "table_step": ("static, 2 of 8", 1),
    "table_inference": ("exported pruned", 1),
    "table_rows_inference": ("exported, rows routed", 0),
    "table_rows_training": ("static, rows routed", 1),
    "embeddings": ("eager, lazy_adam", 1),
    "reader": ("engine's Batches", 1),
    "start": ("tools/static_trainer.py", 0),
    "memory": ("static, 2 of 4", 0),
    "long_run": ("static", 2),
}


@pytest.mark.bench
@pytest.mark.skipif(paddle.__version__.startswith("2."), reason="the figures are of Paddle 3")
def test_the_other_tables_run(tmp_path):
    records, measured = check(run_bench(*OTHERS, cwd=tmp_path))
    for name, (variant, _) in OTHERS.items():
        assert variant in {row["variant"] for row in records[name]["rows"]}, name
    tables_of = [acceptance.TARGETS[key].table for key, value in measured.items() if value is not None]
    assert {name: tables_of.count(name) for name in OTHERS} == {name: number for name, (_, number) in OTHERS.items()}


def perf_works():
    """In many containers it is there, but not allowed."""
    command = ["perf", "record", "-q", "-o", os.devnull, "true"]
    return shutil.which("perf") is not None and subprocess.run(command, capture_output=True).returncode == 0


@pytest.mark.skipif(not perf_works(), reason="perf is missing, or not allowed")
def test_a_profile_tells_the_kinds_of_work_apart(tmp_path):
    with stage.Stage(str(tmp_path)) as on_stage:
        on_stage.add("product", "rates.MatrixProduct", "rate", None, tables.OURS, size=500)
        shares, seconds = on_stage.profile(on_stage.variants[0], 50)
    assert len(seconds) == 50 and sum(shares.values()) == pytest.approx(1.0)
    assert max(shares, key=shares.get) == "matrix products"


MADE_BEFORE = '"seconds": [' not in report.RESULTS.read_text(encoding="utf-8")
needs_new_results = pytest.mark.skipif(MADE_BEFORE, reason="RESULTS.txt is of an older bench.py: run make results")


@needs_new_results
def test_results_are_what_the_code_makes_of_its_measurements():
    _, measured = check(report.RESULTS.read_text(encoding="utf-8"))
    assert None not in measured.values(), "RESULTS.txt is of all tables, with PyTorch"


@needs_new_results
@pytest.mark.parametrize("path", report.PAGES, ids=lambda path: path.name)
def test_a_readme_has_the_figures_of_the_results(path):
    page = path.read_text(encoding="utf-8")
    assert page == report.filled(page, report.RESULTS.read_text(encoding="utf-8"), report.PAGES[path])


@needs_new_results
def test_a_table_measured_again_takes_its_place():
    old = report.RESULTS.read_text(encoding="utf-8")
    assert report.merged(old, old).splitlines()[:-2] == old.splitlines()[:-2]  # but for the seconds in all
    machine, records, _ = report.read(old)
    again = {**records["reader"], "commit": "again", "seconds": 7.0}
    lines = report.machine_lines(machine) + report.table_lines(again) + report.acceptance_lines({}, 7.0)
    new = report.merged(old, "\n".join(lines))
    assert not report.problems(new)
    _, found, _ = report.read(new)
    assert list(found) == list(records) and found["reader"] == again and found["step"] == records["step"]
    with pytest.raises(ValueError, match="cores 2 -> 64: .*step.* Measure all tables"):
        report.merged(old, "\n".join(lines).replace('"cores": 2', '"cores": 64', 1))


@pytest.mark.parametrize("paddlerec, said", [([], "0.87 times the dense"), ([2.5], "0.80 times the dense")])
def test_the_readme_is_filled_from_a_run(paddlerec, said):
    """Between its markers alone."""
    seconds = {tables.BASELINE: [2.0], "static, 2 of 8": [0.5], **({tables.PADDLEREC: paddlerec} if paddlerec else {})}
    rows = [{"variant": v, **stage.columns(v, seconds, 256, [tables.BASELINE]), "seconds": seconds[v]} for v in seconds]
    lines = report.machine_lines({"machine": {"cpu": "Abacus", "cores": 2, "versions": {}}, "sizes": {"batch": 256}})
    of_tables = {"step": rows, "inference": [row("exported pruned", 1.0)]}
    for name, found in of_tables.items():
        record = {"table": name, "title": "", "seconds": 1.0, "difference": 0.0, "examples": 256, "commit": "abc"}
        record.update(rows=found, notes=[])
        lines += report.table_lines(record)
    lines += report.acceptance_lines(of_tables, 1.0)
    readme = f"before\n{report.BEGIN}stale\n{report.END}after\n"
    filled = report.filled(readme, "\n".join(lines), report.english)
    assert filled.startswith("before\n") and filled.endswith("after\n") and "stale" not in filled
    assert "static graph |  |  | 512 |  |\n" in filled and "oneDNN |  | 256 |\n" in filled
    assert ("own step (default settings) |" in filled) == bool(paddlerec)
    assert f"| {acceptance.TARGETS['step static settled'].figure} | >= 10x | 4, **not kept** |" in filled
    chinese = report.filled(readme, "\n".join(lines), report.chinese)
    assert "（动态图，默认设置）相比 | 4, **not kept** |\n" in chinese and "Abacus" in chinese
    assert said in filled and "the harder baseline" in filled


def test_a_worker_that_ends_is_reported_and_one_that_fails_goes_on(tmp_path):
    with worker.Worker(worker.Settings(tuned=()), str(tmp_path)) as asked:
        with pytest.raises(worker.WorkerError, match="KeyError"):
            asked.ask("steps", name="none of this name", count=1)
        assert asked.ask("facts")["versions"]["numpy"] == np.__version__
        asked.process.kill()
        with pytest.raises(worker.WorkerError, match="ended"):
            asked.ask("facts")
    with pytest.raises(worker.Absent, match="no_such_python"):
        worker.Worker(worker.Settings(python="/no_such_python"), str(tmp_path))


@pytest.mark.parametrize(
    "arguments, words",
    [(["no_such_table"], "no_such_table"), (["--paddlerec", "."], "config.yaml"), (["--torch-python", "/x"], "/x")],
    ids=["table", "package", "interpreter"],
)
def test_what_does_not_exist_is_refused(arguments, words, tmp_path):
    command = [sys.executable, str(ROOT / "benchmarks" / "bench.py"), *arguments]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=TIMEOUT_S)
    assert done.returncode == 2 and words in done.stderr
