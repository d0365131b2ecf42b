"""experiments/: each run is done once, and the table is arithmetic on the result lines."""

import contextlib
import importlib
import json
import pathlib
import re
import runpy
import signal
import subprocess
import sys

import by_label
import compare
import experiment as experiments
import numpy as np
import pages
import pytest
import recovery
import run
import table
import time_to_accuracy
import yaml

from engine import pictures
from engine.config import load_config
from engine.errors import UserError
from support import ROOT
from support.oracles import brute_force_auc
from support.toolbox import TIMEOUT_S, assert_refused, run_here
from support.wrong_values import wrong_values

CENSUS = ROOT / "examples" / "census"
RATE = "hyper_parameters.optimizer.learning_rate"
ONE_EPOCH = {"runner.epochs": 1, "runner.validation_data_dir": "data/validation", "runner.train_batch_size": 500}
ONE = {"one": {"hyper_parameters.gate": "shared_bottom", **ONE_EPOCH}}
EXPERIMENT = {
    "config": str(CENSUS / "config.yaml"),
    "results": "found.jsonl",
    "graph": "dynamic",
    "metric": "loss",
    "report": ["auc_income", "auc_never_married"],
    "seeds": [3],
    "networks": {"two": {"hyper_parameters.expert_num": 2, **ONE_EPOCH}, **ONE},
    "search": {RATE: [1e-6, 0.01]},
}


def written(folder, **changes):
    """The path of an experiment; a change to None removes the key."""
    content = {key: value for key, value in {**EXPERIMENT, **changes}.items() if value is not None}
    path = folder / "experiment.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


@pytest.fixture
def calls(monkeypatch):
    """The tools run within this process; their names."""
    names = []

    def tool(name, config, *overrides, cwd):
        names.append(name)
        return run_here(name, config, *overrides, cwd=cwd)

    monkeypatch.setattr(run, "tool", tool)
    return names


def test_each_run_is_done_once_and_the_best_trial_is_evaluated(calls, tmp_path):
    path = written(tmp_path, logs="logs")
    run.run(path)
    found = experiments.read_lines(tmp_path / "found.jsonl")
    stages = ["search"] * 4 + ["final"] * 2
    assert [(line["stage"], line["network"]) for line in found] == list(zip(stages, "two two one one two one".split()))
    for line in found:
        assert ("test" in line) == (line["stage"] == "final"), "the search must not read the test data"
        assert line["epoch"] == 0 and line["seed"] == 3 and line["seconds"] >= line["training_s"] > 0
    losses = [line["validation"]["loss"] for line in found[:4]]
    assert losses[1] < losses[0] and losses[3] < losses[2], "a rate of 1e-6 cannot win"
    assert [line["overrides"][RATE] for line in found[4:]] == [0.01, 0.01]
    assert found[4]["validation"] == found[1]["validation"], "the same run again"
    assert found[4]["test"]["experts_used"] > found[5]["test"]["experts_used"] == 1
    assert found[4]["serve_examples_s"] > 0 and found[4]["parameters"] > found[5]["parameters"] > 0
    assert found[4]["export_bytes"] > found[5]["export_bytes"] > 4 * found[5]["parameters"]
    of_tasks = [{name: len(weights) for name, weights in line["test_weights"].items()} for line in found[4:]]
    assert len(of_tasks[0]) == 2 and of_tasks == [line["experts_in_use"][-1][1] for line in found[4:]]
    assert calls == ["trainer"] * 4 + ["trainer", "infer", "export", "predict"] * 2
    assert {file.name for file in (tmp_path / "logs").iterdir()} == {"one_3.json", "two_3.json"}
    seen, weights = pictures.weights_over_time(pictures.read(tmp_path / "logs" / "two_3.json"))
    assert seen and {task: len(experts) for task, experts in weights.items()} == of_tasks[0]

    run.run(path)
    assert len(calls) == 12 and experiments.read_lines(tmp_path / "found.jsonl") == found, "it must run nothing"
    path = written(tmp_path, networks=ONE)
    run.run(path, "speed")
    assert calls[12:] == ["trainer", "infer", "export", "predict"]
    text = "\n".join(table.table(experiments.read(path)))
    assert f"{found[4]['test']['auc_income']:.5f}" in text and "serving, examples/s" in text


def test_a_failed_run_has_a_line_and_stops_no_other(calls, tmp_path):
    path = written(tmp_path, networks={"broken": {"hyper_parameters.gate": "softmux"}, **ONE})
    with pytest.raises(UserError, match="found.jsonl: runs of broken failed"):
        run.run(path)
    found = experiments.read_lines(tmp_path / "found.jsonl")
    errors = [line["error"] for line in found if "error" in line]
    assert len(errors) == 2 and all("softmux" in error and "exit code 2" in error for error in errors)
    assert [line["network"] for line in found if line["stage"] == "final"] == ["one"]
    before = len(calls)
    with pytest.raises(UserError):
        run.run(path)
    assert len(calls) == before, "a failed run has its line too"


def test_a_metric_missing_in_the_validation_is_an_error(calls, tmp_path):
    with pytest.raises(UserError, match="runs of one failed"):
        run.run(written(tmp_path, networks=ONE, search={}, metric="auc_wealth"))
    (line,) = experiments.read_lines(tmp_path / "found.jsonl")
    assert "auc_wealth" in line["error"]


def test_only_the_networks_that_are_asked_for_run(calls, tmp_path):
    path = written(tmp_path, networks={name: {"hyper_parameters.gate": "softmux"} for name in ("a", "b")}, search={})
    with pytest.raises(UserError, match="has no network 'c', but a, b"):
        run.run(path, networks=["b", "c"])
    with pytest.raises(UserError, match="runs of b failed"):
        run.run(path, networks=["b"])
    assert [line["network"] for line in experiments.read_lines(tmp_path / "found.jsonl")] == ["b"]


def test_only_the_seeds_that_are_asked_for_run(tmp_path):
    """The search has the experiment's first seed all the same, so that all processes choose the same trial."""
    path = written(tmp_path, seeds=[3, 4, 5])
    with pytest.raises(UserError, match="has no seed 6, but 3, 4, 5"):
        run.run(path, seeds=[4, 6])

    def measure(experiment, run):
        return {"validation": {experiment.metric: run["seed"]}}

    runner = run.Runner(experiments.read(path), measure, lambda _, run: str(run))
    runner.run({"one": [{RATE: 0.1}, {RATE: 0.2}]}, [4, 5], "final")
    found = [(line["stage"], line["seed"]) for line in runner.lines]
    assert found == [("search", 3), ("search", 3), ("final", 4), ("final", 5)]


@pytest.mark.parametrize(
    "metric, scores, best",
    [("auc", [1, 3, 2], 1), ("loss", [1, 3, 2], 0), ("error_accuracy", [1, 3, 2], 1), ("auc", [2, 2, 1], 0)],
)
@pytest.mark.parametrize("failed", [[], [2], [0, 1, 2]])
def test_the_best_trial_is_the_first_of_equals_that_did_not_fail(metric, scores, best, failed, tmp_path):
    def measure(experiment, run):
        if run["overrides"]["x.y"] in failed:
            raise run_failed
        stated = {"higher_is_better": True} if metric == "error_accuracy" else {}
        return {"validation": {metric: scores[run["overrides"]["x.y"]]}, **stated}

    run_failed = run.RunFailed("it failed")
    runner = run.Runner(experiments.read(written(tmp_path, metric=metric)), measure, lambda _, run: str(run))
    chosen = runner.best_trial("network", [{"x.y": i} for i in range(3)], 1)
    assert chosen == (None if len(failed) == 3 else {"x.y": best})


def test_a_fingerprint_is_of_the_whole_config():
    def fingerprint(**overrides):
        return experiments.fingerprint(EXPERIMENT["config"], {k.replace("__", "."): v for k, v in overrides.items()})

    base = fingerprint()
    assert fingerprint(runner__seed=12345) == base, "the config's own value, given again"
    assert len({base, *(fingerprint(**{key: 1}) for key in ("runner__seed", "hyper_parameters__top_k"))}) == 3


def test_experts_in_use_are_kept_where_their_number_changes():
    def interval(epoch, batch, examples, **weights):
        numbers = {"event": "interval", "epoch": epoch, "batch": batch, "epoch_examples": examples}
        return {**numbers, "status": {"task": {"0": 0.5, "1": 0.5, **weights}}}

    events = [interval(0, 0, 8), interval(0, 5, 48), {"event": "epoch", "epoch": 0, "examples": 80}]
    events += [interval(1, 0, 8, **{"2": 0.1}), interval(1, 5, 48, **{"0": 0.0, "1": 0.0}), interval(1, 9, 80)]
    assert run.experts_in_use(events) == [[8, {"task": 2}], [88, {"task": 3}], [128, {"task": 0}], [160, {"task": 2}]]
    assert run.experts_in_use(events[2:3]) == []


def test_speeds_are_those_of_the_log():
    epochs = [{"event": "epoch", "seconds": seconds} for seconds in (4.05, 4.25)]
    intervals = [
        {"event": "interval", "batch": batch, "examples_per_s": rate}
        for batch, rate in [(0, 50.0), (100, 1000.0), (0, 50.0), (100, 1001.0)]
    ]
    found = run.training_speed([*intervals, *epochs, {"event": "validation", "seconds": 9.0}])
    assert found == {"training_s": 8.3, "epoch_s": pytest.approx(4.15), "train_examples_s": 1000.5}
    assert run.serving_speed("20 examples into predictions.npz, ips: 60.50 ins/s, the model alone 80.25 ins/s") == 80.25


WRONG = [
    ({"seed": [1]}, "seed is not a key of an experiment"),
    ({"metric": None}, "metric is missing"),
    ({"networks": {}}, "networks is empty"),
    ({"networks": [1]}, "networks is [1], but must be keys with values"),
    ({"networks": {"one": {"gate": "softmax"}}}, "one is {'gate': 'softmax'}, but must be whole keys"),
    ({"networks": {"one": 3}}, "one is 3"),
    ({"search": {"runner.print_interval": []}}, "search has [] for runner.print_interval"),
    ({"search": {"runner.epochs": [1, 2]}}, "runner.epochs is in search, and in networks for two"),
    ({"networks": {"one": {"runner.seed": 3}}}, "one sets runner.seed, which run.py sets"),
    ({"search": {"runner.keep_best": ["loss"]}}, "search sets runner.keep_best"),
    ({"report": []}, "report is empty"),
    ({"config": "nowhere.yaml"}, "nowhere.yaml"),
]


@pytest.mark.parametrize("name", experiments.KEYS)
def test_a_wrong_value_is_refused_by_key(name, tmp_path):
    for value in wrong_values(experiments.KEYS[name]):
        with pytest.raises(UserError, match=f"experiment.yaml: {name} is {re.escape(repr(value))}, but must be "):
            experiments.read(written(tmp_path, **{name: value}))


@pytest.mark.parametrize("changes, words", WRONG)
def test_a_bad_experiment_is_refused_by_key(changes, words, tmp_path):
    path = written(tmp_path, **changes)
    with pytest.raises(UserError, match=re.escape(str(path)) + ".*" + re.escape(words)):
        experiments.read(path)


@pytest.mark.parametrize("script", ["run", "table", "census_baselines"])
def test_each_command_refuses_a_bad_experiment_with_one_message(script, tmp_path, monkeypatch, capsys):
    if script == "census_baselines":
        pytest.importorskip("sklearn", "1.7", reason="scikit-learn (extra experiments) is not installed, or too old")
    path = written(tmp_path, graph="exported")
    monkeypatch.setattr(sys, "argv", [script, "-m", str(path)])
    handler = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(ROOT / "experiments" / f"{script}.py"), run_name="__main__")
    finally:
        signal.signal(signal.SIGTERM, handler)
    done = subprocess.CompletedProcess(script, ended.value.code, stderr=capsys.readouterr().err)
    assert_refused(done, path, "graph")


@pytest.mark.skipif(sys.platform != "linux", reason="the tool is found by Linux's /proc")
def test_a_signal_ends_the_running_tool_too(tmp_path):
    command = [sys.executable, str(ROOT / "experiments" / "run.py"), "-m", str(written(tmp_path))]
    process = subprocess.Popen(command, cwd=tmp_path)
    begun, proc = [], pathlib.Path("/proc")
    while not begun and process.poll() is None:  # without a pause: the signal comes while the tool starts
        with contextlib.suppress(OSError):  # a process that has ended since it was listed
            children = (proc / f"{process.pid}/task/{process.pid}/children").read_text().split()
            begun = [child for child in children if b"trainer.py" in (proc / child / "cmdline").read_bytes()]
    process.terminate()
    assert process.wait(TIMEOUT_S) == 128 + signal.SIGTERM
    assert begun and not pathlib.Path("/proc", begun[0]).exists()


def test_the_pages_have_the_tables_and_pictures_of_the_results():
    pytest.importorskip("matplotlib")
    assert not pages.differing(), "run make pages"
    for name, page in (("census", "examples/census/README.md"), ("choosing", "docs/results.md")):
        assert f"<!-- python experiments/table.py -m experiments/{name}.yaml -->\n|" in (ROOT / page).read_text("utf-8")


def test_a_page_is_brought_up_to_date(tmp_path, monkeypatch):
    monkeypatch.setattr(pages, "ROOT", tmp_path)
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "say.py").write_text("import sys\nprint('| a |')\nsys.exit(sys.argv[1] or None)")
    begin = "# Title\n<!-- python experiments/say.py {} -->\n"
    (tmp_path / "README.md").write_text(begin.format("''") + "old\n<!-- end -->\nthe rest\n")
    found = pages.differing()
    assert found == {tmp_path / "README.md": begin.format("''") + "| a |\n<!-- end -->\nthe rest\n"}
    (tmp_path / "README.md").write_text(begin.format("'it failed'") + "<!-- end -->\n")
    with pytest.raises(SystemExit, match="say.py 'it failed': it failed"):
        pages.differing()
    (tmp_path / "README.md").write_text(begin.format("''") + "prose\n" + begin.format("''") + "old\n<!-- end -->\n")
    with pytest.raises(SystemExit, match="README.md: a comment with a command has no <!-- end -->"):
        pages.differing()


def test_a_picture_is_drawn_again_if_its_log_is_another(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(pages, "PLOT", str(ROOT / pages.PLOT))
    monkeypatch.setattr(pages, "ROOT", tmp_path)
    log, picture = tmp_path / "log.json", tmp_path / "gates.png"
    line = {"event": "interval", "epoch": 0, "batch": 0, "epoch_examples": 9, "status": {"task": {"0": 1.0}}}

    def write(**more):
        log.write_text("".join(json.dumps(part) + "\n" for part in ({"event": "start", "run": "a"}, {**line, **more})))

    write()
    text = f"<!-- python {pages.PLOT} gates log.json --out gates.png -->\n![gates](gates.png)\n<!-- end -->\n"
    (tmp_path / "README.md").write_text(text)
    assert [*pages.differing()] == [picture], "there is none yet"
    picture.write_bytes(pages.differing()[picture])
    assert not pages.differing() and "log.json sha256" in picture.read_bytes().decode("latin-1")
    write(batch=1)
    assert [*pages.differing()] == [picture]
    write()
    assert not pages.differing()
    (tmp_path / "README.md").write_text(text.replace(" gates ", " experts "))
    assert [*pages.differing()] == [picture]
    (tmp_path / "README.md").write_text(text.replace(" --out", ""))
    with pytest.raises(SystemExit, match="must end with --out"):
        pages.differing()


def test_the_overlap_of_tasks_computed_by_hand(tmp_path):
    tasks = [{"0": 1.0}, {"0": 0.5, "1": 0.5}, {"2": 1.0}, {"1": 0.25, "2": 0.75}]
    assert recovery.overlap(tasks[0], tasks[1]) == 0.5 / 1.5 and recovery.overlap(tasks[1], tasks[3]) == 0.25 / 1.75
    assert recovery.overlap({}, {}) == 0
    within, across = recovery.overlaps(tasks, 2)
    assert within == pytest.approx((1 / 3 + 0.6) / 2) and across == pytest.approx(1 / 7 / 4)
    experiment = experiments.read(written(tmp_path, seeds=[1, 2]))
    with pytest.raises(UserError, match="no weights yet"):
        recovery.recovery(experiment, 2)
    for seed, weights in ((1, tasks), (2, [tasks[0]] * 4)):
        line = line_of("two", seed, 0, 0, test_weights={f"task{i}": of_task for i, of_task in enumerate(weights)})
        experiments.add_line(tmp_path / "found.jsonl", line)
    assert recovery.recovery(experiment, 2)[2:] == [
        "| two | 0.73333 ± 0.37712 (0.46667-1.00000) | 0.51786 ± 0.68185 (0.03571-1.00000) |",
    ]
    for size in (1, 3):
        with pytest.raises(UserError, match=f"--group-size is {size}"):
            recovery.recovery(experiment, size)


@pytest.mark.parametrize("name", ["census", "choosing", "fast", "best", "groups", "experts", "digits"])
def test_results_belong_to_the_experiment(name):
    experiment = experiments.read(ROOT / "experiments" / f"{name}.yaml")
    found = [line for line in experiments.read_lines(experiment.results) if line["stage"] == "final"]
    found = [line for line in found if line["network"] in experiment.networks]
    assert len(found) == len(experiment.networks) * len(experiment.seeds)
    for line in found:
        assert line["fingerprint"] == run.fingerprint_of(experiment, line), line["network"]


def line_of(network, seed, first, second, stage="final", **more):
    return {
        "stage": stage,
        "network": network,
        "overrides": {RATE: 0.01},
        "seed": seed,
        "fingerprint": f"{network} {seed}",
        "validation": {},
        "test": {"auc_income": first, "auc_never_married": second, "experts_used": 2.0},
        **more,
    }


@pytest.mark.parametrize("text", ["{", "[1]", '{"stage": "final"}', "", json.dumps(line_of("a", 1, 0, 0, "other"))])
def test_a_broken_result_line_is_named(text, tmp_path):
    path = tmp_path / "found.jsonl"
    path.write_text(json.dumps(line_of("a", 1, 0.5, 0.6)) + f"\n{text}\n")
    with pytest.raises(UserError, match="found.jsonl, line 2"):
        experiments.read_lines(path)


def table_of(folder, *lines, **changes):
    """The table of an experiment with three seeds."""
    for line in lines:
        experiments.add_line(folder / "found.jsonl", line)
    return table.table(experiments.read(written(folder, seeds=[1, 2, 3], **changes)))


def test_the_comparison_of_lines_computed_by_hand(tmp_path):
    """t of the differences 0.1, 0.2, 0.3 is 2 sqrt(3), whose p with 2 degrees of freedom is 1 - t / sqrt(2 + t^2)."""
    pytest.importorskip("scipy")
    for seed, (first, second) in enumerate(((0.5, 0.5), (0.6, 0.5), (0.7, 0.5)), 1):
        experiments.add_line(tmp_path / "found.jsonl", line_of("two", seed, 0.4, 0.5))
        experiments.add_line(tmp_path / "found.jsonl", line_of("one", seed, first, second))
    experiment = experiments.read(written(tmp_path, seeds=[1, 2, 3]))
    assert compare.comparison(experiment, "two") == [
        "| against two | auc_income | auc_never_married |",
        "| --- | --- | --- |",
        "| one | +0.20000 (p 0.148) | +0.00000 (p 1.000) |",
    ]
    assert 1 - 12**0.5 / 14**0.5 == pytest.approx(0.148 / 2, abs=3e-4), "twice that: one of two comparisons"
    with pytest.raises(UserError, match="has no result of 'three'. It has: two, one"):
        compare.comparison(experiment, "three")
    experiments.add_line(tmp_path / "found.jsonl", line_of("boosting", 1, 0.5, 0.7))
    with pytest.raises(UserError, match="boosting and two share 1 seeds; two are needed"):
        compare.comparison(experiment, "two")


def weights(**of_tasks):
    return {"test_weights": {task: dict(enumerate(values)) for task, values in of_tasks.items()}}


def changes(*examples):
    return {"experts_in_use": [[seen, {"a": 1, "b": 2}] for seen in examples]}


def test_the_table_of_lines_computed_by_hand(tmp_path):
    made = table_of(
        tmp_path,
        line_of("boosting", 1, 0.5, 0.7, parameters=12),
        line_of("two", 1, 0.8, 0.9, export_bytes=1000, **weights(a=[1], b=[0.5, 0.5]), **changes(8, 64)),
        line_of("two", 2, 0.9, 0.8, export_bytes=4000, **weights(a=[1, 0], b=[0.5, 0.5]), **changes(8)),
        line_of("two", 3, 0.7, 0.7, export_bytes=3000, **weights(a=[1], b=[0.9, 0.1, 0]), **changes(8, 32)),
        line_of("two", 3, 0.1, 0.1, stage="speed", training_s=12.4, train_examples_s=None),
        line_of("two", 3, 0.1, 0.1, stage="speed", training_s=99.0, overrides={"runner.epochs": 1}),
        line_of("two", 3, 0.1, 0.1, error="it failed"),
        line_of("two", 4, 0.1, 0.1),  # a seed that the experiment does not have
    )
    assert made == [
        "|  | auc_income | auc_never_married | mean | seeds | experts in use | by task | "
        "number unchanged after, examples | parameters | chosen | training, s | export, KB |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        "| two | 0.80000 ± 0.10000 (0.70000-0.90000) | 0.80000 ± 0.10000 (0.70000-0.90000) "
        "| 0.80000 ± 0.08660 (0.70000-0.85000) | 3 | 2 | 1, 2 | 32 |  | learning_rate 0.01 | 12 | 3 |",
        "| boosting | 0.50000 | 0.70000 | 0.60000 | 1 | 2 |  |  | 12 | learning_rate 0.01 |  |  |",
    ]


def test_a_table_of_many_tasks_and_of_metrics_of_two_kinds(tmp_path):
    tasks = {f"task{i}": [0.5] * (1 + i % 3) for i in range(5)}
    line = line_of("two", 1, 0.8, 0.9, **weights(**tasks))
    line["test"]["loss"] = 0.3
    titles, _, row = table_of(tmp_path, line, report=["loss", "auc_income"])
    assert titles.startswith("|  | loss | auc_income | seeds | experts in use | by task |")
    assert row.startswith("| two | 0.30000 | 0.80000 | 1 | 2 | 1-3 |")


def test_a_table_by_seed_has_the_runs_of_one_network(tmp_path):
    table_of(tmp_path, *(line_of("two", seed, seed / 10, 0.75) for seed in (3, 1)), line_of("one", 1, 0.5, 0.7))
    experiment = experiments.read(tmp_path / "experiment.yaml")
    assert table.by_seed(experiment, "two")[2:] == ["| 1 | 0.1000 | 0.7500 | 2 |", "| 3 | 0.3000 | 0.7500 | 2 |"]
    with pytest.raises(UserError, match="no result of three"):
        table.by_seed(experiment, "three")


def test_a_table_of_two_settings_or_of_nothing_is_refused(tmp_path):
    with pytest.raises(UserError, match="no result yet"):
        table_of(tmp_path)
    other = line_of("two", 2, 0.9, 0.8, overrides={"hyper_parameters.top_k": 1})
    with pytest.raises(UserError, match="two has final lines of two settings"):
        table_of(tmp_path, line_of("two", 1, 0.8, 0.9), other)


@pytest.fixture
def baselines():
    """The module, where scikit-learn is new enough for it."""
    pytest.importorskip("sklearn", "1.7", reason="scikit-learn (extra experiments) is not installed, or too old")
    import census_baselines

    return census_baselines


def test_the_baselines_have_lines_like_the_networks(baselines, tmp_path, monkeypatch):
    path = written(tmp_path, search={})
    with pytest.raises(UserError, match="search has 1 trials"):
        baselines.run(path)
    monkeypatch.setattr(baselines, "TRIALS", {name: trials[:1] for name, trials in baselines.TRIALS.items()})
    baselines.run(path)
    found = experiments.read_lines(tmp_path / "found.jsonl")
    assert [line["network"] for line in found] == ["gradient boosting", "logistic regression"]
    for line in found:
        assert 0.8 < line["test"]["auc_income"] < 1 and 0.9 < line["test"]["auc_never_married"] < 1
        assert line["validation"] != line["test"] and line["serve_examples_s"] > 0
    assert len(table.table(experiments.read(path))) == 4
    features, labels = baselines.read_part(baselines.load_config(str(CENSUS / "config.yaml")), "train")
    part = features[:300], labels["income"][:300]
    for fit, settings in ((baselines.boosting, (False, 15)), (baselines.logistic, (True, 1.0))):
        one, other = (fit(part, part, seed, *settings).predict_proba(features) for seed in (1, 2))
        assert (one == other).all(), "one seed must be enough"


def test_the_baselines_metrics_by_pairs_and_by_hand(baselines, rng):
    class Model:
        def predict_proba(self, features):
            return np.stack([1 - features[:, 0], features[:, 0]], axis=1)

    probabilities, labels = rng.uniform(0.1, 0.9, 50).round(1), (rng.rand(50) < 0.4).astype("float32")
    found = baselines.metrics_of({"income": Model()}, probabilities[:, None], {"income": labels})
    loss = -np.mean(np.where(labels == 1, np.log(probabilities), np.log(1 - probabilities)))
    assert found["auc_income"] == pytest.approx(brute_force_auc(probabilities, labels))
    assert found["logloss_income"] == found["loss"] == pytest.approx(loss)


def test_only_logistic_regression_uses_bins_and_only_if_asked(baselines, rng):
    features = np.concatenate([rng.randn(300, 7), rng.randint(0, 3, [300, 39])], axis=1)
    part = features, (features[:, -1] > 1).astype("float32")  # a bin alone decides
    changed = features.copy()
    changed[:, -7:] = 2 - changed[:, -7:]
    for model in (baselines.boosting(part, part, 1, False, 15), baselines.logistic(part, part, 1, False, 1.0)):
        assert (model.predict_proba(changed) == model.predict_proba(features)).all()
    with_bins = baselines.logistic(part, part, 1, True, 1.0)
    assert np.abs(with_bins.predict_proba(changed) - with_bins.predict_proba(features)).max() > 0.5


def test_the_time_to_accuracy_is_a_median_and_says_what_was_missed(tmp_path, monkeypatch):
    def line(way, seconds, *accuracies, commit="a"):
        found = {"accuracies": accuracies, "experts_used": len(accuracies)} if accuracies else {}
        return {"way": way, "seed": seconds, "seconds": seconds, "commit": commit, **found}

    def titled(*lines):
        path = tmp_path / "lines.jsonl"
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        monkeypatch.setattr(time_to_accuracy, "RESULTS", path)
        return time_to_accuracy.table()

    ours = [line("static graph", seconds, 0.94, right) for seconds, right in ((1, 0.93), (2, 0.9160), (4, 0.92))]
    plain = line(time_to_accuracy.PLAIN, 1000)
    row = "| static graph | 2 | 500 | 0.9400 | 0.9160 (missed) | 2 | 3 |"
    assert titled(*ours, plain)[2:] == [row, f"| {time_to_accuracy.PLAIN} | 1000 | 1 |  |  | 8 |  |"]
    with pytest.raises(UserError, match="two commits"):
        titled(*ours, {**plain, "commit": "b"})
    with pytest.raises(UserError, match="the same way and seed"):
        titled(*ours, ours[0], plain)
    with pytest.raises(UserError, match="no line of plain Paddle"):
        titled(*ours)


def test_config_bigdata_reaches_the_published_accuracies_with_each_seed():
    experiment = experiments.read(ROOT / "experiments" / "fast.yaml")
    lines = experiments.final_lines(experiment, "entropy weight 0.01", experiments.read_lines(experiment.results))
    config = load_config(str(ROOT / "config_bigdata.yaml"))
    assert sorted(line["seed"] for line in lines) == [1, 2, 3, 4, 12345]
    for line in lines:
        assert line["test"]["Accuracy1"] >= 0.930460 and line["test"]["Accuracy2"] >= 0.916088
        for key, value in line["overrides"].items():
            if key not in ("runner.validation_data_dir", "hyper_parameters.entropy_schedule"):
                assert config[key] == value, key


def test_the_table_by_label_has_the_experts_that_have_weight(tmp_path, monkeypatch):
    weights = {"0": [0.0, 0.25, 0.75], "1": [0.004, 0.996, 0.0]}
    of_task = {"weights": weights, "between_labels": 0.5, "experts": 1.5, "accuracy": 0.9}
    line = {"seed": 1, "tasks": {task: of_task for task in by_label.TASKS.values()}, "commit": "a"}
    monkeypatch.setattr(by_label, "RESULTS", tmp_path / "lines.jsonl")
    experiments.add_line(by_label.RESULTS, line)
    made = by_label.table()
    assert made[:5] == [
        "| top-left digit | expert 1 | expert 2 |",
        "| --- | --- | --- |",
        "| 0 | 0.25 | 0.75 |",
        "| 1 | 1.00 | 0.00 |",
        "",
    ]
    assert made[-1] == "| bottom-right digit | 0.50000 | 1.50000 | 0.90000 |"


def test_the_reader_of_two_tasks_a_digit_knows_even_digits(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "experiments" / "digits")
    digit_reader = importlib.import_module("digit_reader")
    data = digit_reader.RecDataset([str(ROOT / "data" / "test" / "test.pickle")], {})
    _, left, left_even, right, right_even = data.gather(np.arange(1000))
    assert all((even == 1 - digits % 2).all() for digits, even in ((left, left_even), (right, right_even)))
    assert (left != right).any() and left_even.dtype == right_even.dtype == np.float32


def test_the_share_between_labels_is_that_of_the_variance():
    labels = np.repeat([0, 1, 2], 200)
    noise = np.random.RandomState(0).randn(600, 4)
    noise -= np.repeat([noise[labels == label].mean(axis=0) for label in range(3)], 200, axis=0)
    means = np.array([[1.0, 0, 0, 0], [0, 2, 0, 0], [0, 0, 0, 0]])[labels]
    share = means.var(axis=0).sum() / (means.var(axis=0) + noise.var(axis=0)).sum()
    assert by_label.between_labels(means + noise, labels) == pytest.approx(share)
    assert by_label.between_labels(means, labels) == pytest.approx(1)
    assert by_label.between_labels(noise, labels) == pytest.approx(0, abs=1e-12)
    assert by_label.between_labels(np.full([600, 4], 0.25), labels) == 0
