"""Several processes of a job: the same training, evaluation and predictions as one process, in both graphs.

The network is in float64 where numbers are compared: rounding is 1e-16, and what an error in a weight, a share or an
order does is far above what twenty steps make of that.
"""

import json
import re

import numpy as np
import paddle
import pytest

from support import ROOT, several
from support.toolbox import run_tool, small_data

PACKAGE = ROOT / "tests" / "several" / "config.yaml"
PIR = int(paddle.__version__.split(".")[0]) >= 3
GRAPHS = {"dynamic": ("trainer", [])}
if PIR:  # refused elsewhere: see below
    GRAPHS["to_static"] = ("trainer", ["runner.to_static=true"])
    GRAPHS["static"] = ("static_trainer", [])
ADAM = ["expert_norm=none", "optimizer.class=adam", "optimizer.learning_rate=0.01"]
SETTLED = ["top_k=1", "entropy_weight=5", "optimizer.gate_learning_rate_factor=30"]
CASES = {
    "batch norm": [],
    "settled, batch norm": SETTLED,
    "adam, settled": [*ADAM, *SETTLED, "optimizer.clip_norm=1"],
    "per example, group norm": ["gate=dselect_k_per_example", "expert_norm=group"],
    "per example, batch norm": ["gate=dselect_k_per_example"],
    "top k": ["gate=top_k", "balance_weight=1", *ADAM],
    "uncertainty": ["task_balance=uncertainty", "optimizer.weight_decay=0.01"],
}
DEAREST = "per example, batch norm"  # to compile takes long, and so do four processes on two cores
ROUNDING = 1e-9  # relative, of float64, after twenty steps; wrong averages were seen to give 1e-3 and more
pytestmark = pytest.mark.xdist_group("several")


def commands(number):
    """By case: the training of it, with the folder it writes to."""
    found = {}
    for graph, (tool, keys) in GRAPHS.items():
        for case, hyper in CASES.items():
            if (case != DEAREST and (graph == "to_static" or number == 4)) or (graph, number) == ("to_static", 4):
                continue
            overrides = [*keys, f"runner.model_save_path={graph} {case}".replace(" ", "_")]
            overrides += [f"hyper_parameters.{key}" for key in hyper]
            found[graph, case] = (tool, ["-m", PACKAGE, "-o", *overrides])
    return found


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Number of processes -> the folder in which the cases have been trained by so many."""
    folders = {}
    for number in (1, 2, 4):
        folders[number] = tmp_path_factory.mktemp(f"of{number}")
        codes, logs = several.run(number, commands(number).values(), folders[number])
        assert codes == [0] * number, logs
    return folders


def weights(folder, graph, case):
    saved = folder / f"{graph} {case}".replace(" ", "_") / "0"
    manifest = json.loads((saved / "manifest.json").read_text())
    path = next(saved.glob("*.pdparams"))
    return {name: np.asarray(value) for name, value in paddle.load(str(path)).items()}, manifest["numbers"]


@pytest.mark.parametrize("number", [2, 4])
@pytest.mark.parametrize("graph,case", commands(1))
def test_several_processes_train_what_one_does(trained, graph, case, number):
    if (graph, case) not in commands(number):
        pytest.skip("tried with two processes")
    alone, numbers = weights(trained[1], graph, case)
    together, of_all = weights(trained[number], graph, case)
    for name, value in alone.items():
        np.testing.assert_allclose(together[name], value, rtol=ROUNDING, atol=ROUNDING, err_msg=name)
    assert of_all == pytest.approx(numbers, rel=1e-6, nan_ok=True)  # experts_used is in float32


def test_some_experts_are_skipped_where_gates_have_settled(trained):
    for graph in GRAPHS:
        if graph != "to_static":
            assert weights(trained[2], graph, "settled, batch norm")[1]["experts_used"] < 4


def lines(log):
    """The numbers in a log, without times."""
    found = [line.partition("INFO - ")[2] for line in log.splitlines() if "INFO - epoch: " in line]
    return [re.sub(r"avg_reader_cost.*|epoch time.*", "", line) for line in found]


def test_the_first_process_logs_the_numbers_of_all_and_the_others_nothing(trained):
    alone, (first, *others) = (
        [path.read_text() for path in sorted(trained[number].glob("*.log"))] for number in (1, 2)
    )
    assert len(lines(alone[0])) == len(lines(first)) > 20
    for one, of_all in zip(lines(alone[0]), lines(first)):
        numbers = [re.findall(r"-?\d+\.?\d*(?:e-?\d+)?", line) for line in (one, of_all)]
        assert np.allclose(*(np.array(found, float) for found in numbers), rtol=1e-5, atol=2e-6), (one, of_all)
    assert "INFO" not in others[0] and "error" not in others[0]


EVALUATION = ["runner.infer_batch_size=64", "runner.print_interval=4", "runner.infer_load_path=saved"]


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """Number of processes -> (folder, logs) of evaluations of one checkpoint in both graphs, and of predictions."""
    folder = tmp_path_factory.mktemp("evaluated")
    data = small_data(folder)
    config = ROOT / "config.yaml"
    keys = [*data, "runner.epochs=1", "runner.model_save_path=saved", "hyper_parameters.expert_num=3"]
    assert run_tool("trainer", config, *keys, cwd=folder).returncode == 0
    found = {}
    for number in (1, 3):
        runs = [("infer", [*EVALUATION, "runner.infer_end_epoch=1", "hyper_parameters.expert_num=3"])]
        if PIR:
            runs.append(("static_infer", [*runs[0][1], "runner.use_save_data=true"]))
        for kind in ("csv", "npz"):
            path = f"runner.predict_path=by{number}.{kind}"
            runs.append(("predict", [path, f"runner.export_path={ROOT / 'data' / 'model'}", EVALUATION[0]]))
        runs = [(tool, ["-m", config, "-o", *data, *overrides]) for tool, overrides in runs]
        codes, logs = several.run(number, runs, folder)
        assert codes == [0] * number, logs
        result = (folder / "saved" / "result.npy").read_bytes() if PIR else b""
        found[number] = logs[0], result, [(folder / f"by{number}.{kind}").read_bytes() for kind in ("csv", "npz")]
    return found


def test_an_evaluation_by_several_is_that_of_one_to_the_digit(evaluated):
    assert lines(evaluated[1][0]) == lines(evaluated[3][0]) != []
    assert evaluated[1][1] == evaluated[3][1]


def test_predictions_by_several_are_the_same_bytes(evaluated):
    assert evaluated[1][2][0] == evaluated[3][2][0]
    assert evaluated[1][2][1] == evaluated[3][2][1]
