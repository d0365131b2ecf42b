"""experiments/: a question is run once, to the tools' own numbers; the table is arithmetic on its lines."""

import pathlib
import re
import signal
import subprocess
import sys
import time

import lines
import numpy as np
import pytest
import question as questions
import run
import search
import table
import yaml
from conftest import ROOT
from oracles import brute_force_auc
from toolbox import TIMEOUT_S, assert_refused, run_here

from engine.errors import UserError

CENSUS = ROOT / "examples" / "census"
ONE_EPOCH = {"runner.epochs": 1, "runner.validation_data_dir": "data/validation", "runner.train_batch_size": 500}
QUESTION = {
    "config": str(CENSUS / "config.yaml"), "results": "found.jsonl", "graph": "dynamic", "metric": "loss",
    "report": ["auc_income", "auc_never_married"], "seeds": [3],
    "networks": {
        "ours": {"hyper_parameters.gate": "dselect_k", **ONE_EPOCH},
        "one": {"hyper_parameters.gate": "shared_bottom", **ONE_EPOCH},
    },
    "search": {"hyper_parameters.optimizer.learning_rate": [1e-6, 0.01]},
}  # fmt: skip


def written(folder, **changes):
    """The path of a question; a change to None leaves the key out."""
    content = {key: value for key, value in {**QUESTION, **changes}.items() if value is not None}
    path = folder / "question.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


@pytest.fixture
def tools_here(monkeypatch):
    """The tools run within this process; what each was given."""
    given = []

    def tool(name, config, *overrides, cwd):
        given.append((name, overrides))
        return run_here(name, config, *overrides, cwd=cwd)

    monkeypatch.setattr(run, "tool", tool)
    return given


# --------------------------------------------------------------------------------------- running


def test_a_question_is_answered_once(tools_here, tmp_path):
    path = written(tmp_path)
    run.answer(path)
    found = lines.read(tmp_path / "found.jsonl")
    assert [(line["stage"], line["network"]) for line in found] == [
        *[("search", "ours")] * 2, *[("search", "one")] * 2, ("final", "ours"), ("final", "one")
    ]  # fmt: skip
    rate = "hyper_parameters.optimizer.learning_rate"
    for line in found:
        assert ("test" in line) == (line["stage"] == "final"), "the search must not look at the test data"
        assert line["epoch"] == 0 and line["seed"] == 3 and line["seconds"] >= line["training_s"] > 0
    losses = [line["validation"]["loss"] for line in found[:4]]
    assert losses[1] < losses[0] and losses[3] < losses[2], "a rate of 1e-6 cannot win"
    assert [line["overrides"][rate] for line in found[4:]] == [0.01, 0.01]
    assert found[4]["validation"] == found[1]["validation"], "the same run again"
    assert found[4]["test"]["experts_used"] > found[5]["test"]["experts_used"] == 1
    assert found[4]["serve_examples_s"] > 0
    assert [name for name, _ in tools_here] == ["trainer"] * 4 + ["trainer", "infer", "export", "predict"] * 2

    done = len(tools_here)
    run.answer(path)
    assert len(tools_here) == done and lines.read(tmp_path / "found.jsonl") == found, "a second answer runs nothing"
    path = written(tmp_path, networks={"one": QUESTION["networks"]["one"]})
    run.answer(path, "speed")
    assert [name for name, _ in tools_here[done:]] == ["trainer", "infer", "export", "predict"]
    text = "\n".join(table.table(questions.read(path)))
    assert f"{found[4]['test']['auc_income']:.5f}" in text and "serving, examples/s" in text


def test_a_run_is_told_from_others_by_its_whole_config():
    def recipe(**overrides):
        return questions.recipe(QUESTION["config"], {key.replace("__", "."): x for key, x in overrides.items()})

    base = recipe()
    assert recipe(runner__seed=12345) == base, "the config's own value, given again"
    assert len({base, recipe(runner__seed=1), recipe(hyper_parameters__top_k=1), recipe(runner__epochs=1)}) == 4


def test_a_failed_run_has_a_line_and_stops_no_other(tools_here, tmp_path):
    networks = {"broken": {"hyper_parameters.gate": "softmux"}, "one": QUESTION["networks"]["one"]}
    path = written(tmp_path, networks=networks)
    with pytest.raises(UserError, match="found.jsonl: runs of broken failed"):
        run.answer(path)
    found = lines.read(tmp_path / "found.jsonl")
    errors = [line["error"] for line in found if "error" in line]
    assert len(errors) == 2 and all("softmux" in error and "exit code 2" in error for error in errors)
    assert [line["network"] for line in found if line["stage"] == "final"] == ["one"]
    before = len(tools_here)
    with pytest.raises(UserError):
        run.answer(path)
    assert len(tools_here) == before, "a failed run has its line too"


def test_a_metric_that_the_validation_does_not_have_is_said(tools_here, tmp_path):
    path = written(tmp_path, metric="auc_wealth", networks={"one": QUESTION["networks"]["one"]}, search={})
    with pytest.raises(UserError, match="runs of one failed"):
        run.answer(path)
    (line,) = lines.read(tmp_path / "found.jsonl")
    assert "auc_wealth" in line["error"]


def scores(trials, sign, measured):
    """The chosen trial's number where each trial's validation is ``measured``."""
    found = search.Search("nowhere.jsonl", "number", sign < 0, None, lambda overrides, seed: str(overrides["x"]))
    found.lines = [
        {"stage": "search", "network": "n", "recipe": str(x), "validation": {"number": value}} if value is not None
        else {"stage": "search", "network": "n", "recipe": str(x), "error": "it failed"}
        for x, value in zip(trials, measured)
    ]  # fmt: skip
    return found._best("n", [{"x": x} for x in trials], 1)


@pytest.mark.parametrize(
    "sign,measured,best", [(1, [1, 3, 2], 1), (-1, [1, 3, 2], 0), (1, [2, 2, 1], 0), (-1, [None, 3, 2], 2)]
)
def test_the_best_trial_is_the_first_of_equals(sign, measured, best):
    assert scores([0, 1, 2], sign, measured) == {"x": best}
    assert scores([0, 1, 2], sign, [None] * 3) is None


LOG = """
x - INFO - epoch: 0, batch_id: 0, loss: 0.7, avg_samples: 256.00000, ips: 50.00000 ins/s
x - INFO - epoch: 0, batch_id: 100, loss: 0.5, avg_samples: 256.00000, ips: 1000.00000 ins/s
x - INFO - epoch: 0 done, auc_a: 0.912346, loss: 0.25, experts_used: 3, epoch time: 4.05 s
x - INFO - epoch: 0 validation, auc_a: 0.5, loss: 0.75, experts_used: 3, epoch time: 9.00 s
x - INFO - epoch: 1, batch_id: 0, loss: 0.7, avg_samples: 256.00000, ips: 50.00000 ins/s
x - INFO - epoch: 1, batch_id: 100, loss: 0.5, avg_samples: 256.00000, ips: 1001.00000 ins/s
x - INFO - epoch: 1 done, auc_a: 0.95, loss: 0.125, experts_used: 2, epoch time: 4.25 s
x - INFO - 20 examples into predictions.npz, ips: 60.50 ins/s, the model alone 80.25 ins/s
"""


def test_numbers_of_a_log():
    assert run.done_numbers(LOG) == [
        {"auc_a": 0.912346, "loss": 0.25, "experts_used": 3}, {"auc_a": 0.95, "loss": 0.125, "experts_used": 2}
    ]  # fmt: skip
    assert run.training_speed(LOG) == {
        "training_s": pytest.approx(8.3), "epoch_s": pytest.approx(4.15), "train_examples_s": 1000.5
    }  # fmt: skip
    assert run.serving_speed(LOG) == 80.25


# ------------------------------------------------------------------------------------- refusals

WRONG = {
    "unknown": ({"seed": [1]}, "seed is not a key of a question"),
    "missing": ({"metric": None}, "metric is missing"),
    "kind": ({"seeds": 3}, "seeds is 3, but must be whole numbers"),
    "no seed": ({"seeds": []}, "seeds is []"),
    "a seed": ({"seeds": ["one"]}, "seeds is ['one']"),
    "a seed twice": ({"seeds": [1, 1]}, "seeds is [1, 1]"),
    "graph": ({"graph": "exported"}, "graph is 'exported', but must be static or dynamic"),
    "no network": ({"networks": {}}, "networks is {}"),
    "a network": ({"networks": {"one": "softmax"}}, "networks is {'one': 'softmax'}"),
    "key without section": ({"networks": {"one": {"gate": "softmax"}}}, "networks is"),
    "no values": ({"search": {"runner.epochs": []}}, "search is"),
    "both": ({"search": {"runner.epochs": [1, 2]}}, "runner.epochs is in search, and in networks for ours"),
    "of the runner": ({"networks": {"one": {"runner.seed": 3}}}, "one sets runner.seed, which run.py sets"),
    "of the runner, searched": ({"search": {"runner.keep_best": ["loss"]}}, "search sets runner.keep_best"),
    "report": ({"report": [1]}, "report is [1]"),
    "no config": ({"config": "nowhere.yaml"}, "nowhere.yaml"),
}


@pytest.mark.parametrize("changes,words", WRONG.values(), ids=WRONG)
def test_a_bad_question_is_refused_by_name(changes, words, tmp_path):
    path = written(tmp_path, **changes)
    with pytest.raises(UserError, match=re.escape(words)) as refused:
        questions.read(path)
    assert str(path) in str(refused.value)


@pytest.mark.parametrize("script", ["run", "table", "census_baselines"])
def test_each_command_refuses_a_bad_question_with_one_message(script, tmp_path):
    if script == "census_baselines":
        pytest.importorskip("sklearn", "1.7", reason="scikit-learn (extra experiments) is not installed, or too old")
    path = written(tmp_path, graph="exported")
    command = [sys.executable, str(ROOT / "experiments" / f"{script}.py"), "-m", str(path)]
    assert_refused(subprocess.run(command, cwd=tmp_path, capture_output=True, text=True), path, "graph")


@pytest.mark.skipif(sys.platform != "linux", reason="the tool is found by Linux's /proc")
def test_a_signal_ends_the_tool_under_way_too(tmp_path):
    command = [sys.executable, str(ROOT / "experiments" / "run.py"), "-m", str(written(tmp_path))]
    process = subprocess.Popen(command, cwd=tmp_path)
    begun = []
    while not begun and process.poll() is None:
        time.sleep(0.05)
        children = pathlib.Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        begun = [child for child in children if b"trainer.py" in pathlib.Path(f"/proc/{child}/cmdline").read_bytes()]
    process.terminate()
    assert process.wait(TIMEOUT_S) == 128 + signal.SIGTERM
    assert begun and not pathlib.Path("/proc", begun[0]).exists()


@pytest.mark.parametrize("name", ["census", "choosing"])
def test_the_results_are_of_the_question_as_it_stands(name):
    """Each final line is a run that the question and its config still describe."""
    question = questions.read(ROOT / "experiments" / f"{name}.yaml")
    found = [line for line in lines.read(question.results) if line["stage"] == "final"]
    of_networks = [line for line in found if line["network"] in question.networks]
    assert len(of_networks) == len(question.networks) * len(question.seeds)
    for line in of_networks:
        assert line["recipe"] == run.recipe_of(question, line["overrides"], line["seed"]), line["network"]


@pytest.mark.parametrize(
    "name,page",
    [("census", "examples/census/README.md"), ("choosing", "README.md"), ("choosing", "README.zh-CN.md")],
)
def test_a_page_has_the_table_of_the_results(name, page):
    made = table.table(questions.read(ROOT / "experiments" / f"{name}.yaml"))
    assert "\n".join(made) in (ROOT / page).read_text(encoding="utf-8")


@pytest.mark.parametrize("text", ["{", "[1]", '{"stage": "final"}', "", '{"stage": "other"}'])
def test_a_line_of_no_run_is_named(text, tmp_path):
    path = tmp_path / "found.jsonl"
    lines.add(path, line_of("ours", 1, 0.5, 0.6))
    with open(path, "a") as file:
        file.write(text + "\n")
    with pytest.raises(UserError, match="found.jsonl, line 2"):
        lines.read(path)


# ------------------------------------------------------------------------------------- the table


def line_of(network, seed, first, second, stage="final", **more):
    test = {"auc_income": first, "auc_never_married": second, "experts_used": 2.0}
    overrides = {"hyper_parameters.optimizer.learning_rate": 0.01}
    return {
        "stage": stage, "network": network, "overrides": overrides, "seed": seed, "recipe": f"{network} {seed}",
        "validation": {}, "test": test, **more,
    }  # fmt: skip


def table_of(folder, *found):
    """The table of a question with three seeds."""
    for line in found:
        lines.add(folder / "found.jsonl", line)
    return table.table(questions.read(written(folder, seeds=[1, 2, 3])))


def test_the_table_of_lines_computed_by_hand(tmp_path):
    made = table_of(
        tmp_path,
        line_of("boosting", 1, 0.5, 0.7, parameters=12),
        line_of("ours", 1, 0.8, 0.9),
        line_of("ours", 2, 0.9, 0.8),
        line_of("ours", 3, 0.7, 0.7),
        line_of("ours", 3, 0.1, 0.1, stage="speed", training_s=12.4, train_examples_s=None),
        line_of("ours", 3, 0.1, 0.1, stage="speed", training_s=99.0, overrides={"runner.epochs": 1}),
        line_of("ours", 3, 0.1, 0.1, error="it failed"),
        line_of("ours", 4, 0.1, 0.1),  # a seed that the question does not have
    )
    assert made == [
        "|  | auc_income | auc_never_married | mean | seeds | experts in use | parameters | chosen | training, s |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        "| ours | 0.80000 (0.70000-0.90000) | 0.80000 (0.70000-0.90000) | 0.80000 (0.70000-0.85000) | 3 | 2 |  | "
        "learning_rate 0.01 | 12 |",
        "| boosting | 0.50000 | 0.70000 | 0.60000 | 1 | 2 | 12 | learning_rate 0.01 |  |",
    ]


def test_a_table_is_not_made_of_two_settings_or_of_nothing(tmp_path):
    with pytest.raises(UserError, match="no result yet"):
        table_of(tmp_path)
    other = {**line_of("ours", 2, 0.9, 0.8), "overrides": {"hyper_parameters.top_k": 1}}
    with pytest.raises(UserError, match="ours has final lines of two settings"):
        table_of(tmp_path, line_of("ours", 1, 0.8, 0.9), other)


# --------------------------------------------------------------------------------- the baselines


@pytest.fixture
def baselines():
    """The module, where scikit-learn is new enough for it."""
    pytest.importorskip("sklearn", "1.7", reason="scikit-learn (extra experiments) is not installed, or too old")
    import census_baselines

    return census_baselines


def test_the_baselines_lines_are_as_the_networks(baselines, tmp_path, monkeypatch):
    path = written(tmp_path, config=str(CENSUS / "config.yaml"), search={})
    with pytest.raises(UserError, match="search has 1 trials"):
        baselines.answer(path)
    monkeypatch.setattr(baselines, "TRIALS", {name: trials[:1] for name, trials in baselines.TRIALS.items()})
    baselines.answer(path)
    found = lines.read(tmp_path / "found.jsonl")
    assert [line["network"] for line in found] == ["gradient boosting", "logistic regression"]
    for line in found:
        assert 0.8 < line["test"]["auc_income"] < 1 and 0.9 < line["test"]["auc_never_married"] < 1
        assert line["validation"] != line["test"] and line["serve_examples_s"] > 0
    assert len(table.table(questions.read(path))) == 4
    features, labels = baselines.read_part(baselines.load_config(str(CENSUS / "config.yaml")), "train")
    part = features, labels["income"]
    for fit, settings in ((baselines.boosting, (False, 15)), (baselines.logistic, (True, 1.0))):
        one, other = (fit(part, part, seed, *settings).predict_proba(features) for seed in (1, 2))
        assert (one == other).all(), "one seed is said to be enough"


def test_numbers_of_the_baselines_by_pairs_and_by_hand(baselines, rng):
    class Model:
        def predict_proba(self, features):
            return np.stack([1 - features[:, 0], features[:, 0]], axis=1)

    probabilities, labels = rng.uniform(0.1, 0.9, 50).round(1), (rng.rand(50) < 0.4).astype("float32")
    found = baselines.numbers_of({"income": Model()}, probabilities[:, None], {"income": labels})
    loss = -np.mean(np.where(labels == 1, np.log(probabilities), np.log(1 - probabilities)))
    assert found["auc_income"] == pytest.approx(brute_force_auc(probabilities, labels))
    assert found["logloss_income"] == found["loss"] == pytest.approx(loss)


def test_boosting_is_given_no_bins_and_logistic_regression_none_unless_asked(baselines, rng):
    features = np.concatenate([rng.randn(300, 7), rng.randint(0, 3, [300, 39])], axis=1)
    labels = (features[:, -1] > 1).astype("float32")  # told by a bin alone
    part = features, labels
    blind = [baselines.boosting(part, part, 1, False, 15), baselines.logistic(part, part, 1, False, 1.0)]
    seeing = baselines.logistic(part, part, 1, True, 1.0)
    changed = features.copy()
    changed[:, -7:] = 2 - changed[:, -7:]
    for model in blind:
        assert (model.predict_proba(changed) == model.predict_proba(features)).all()
    assert np.abs(seeing.predict_proba(changed) - seeing.predict_proba(features)).max() > 0.5
