"""The tools on our package: what they print, save, load and refuse."""

import re
import shutil

import pytest
import yaml

from dselect_k_model import hyper_parameters
from engine import cli
from engine.config import load_config
from engine.keys import read_settings
from support import ROOT
from support.rounding import GRADIENTS_32, OUTPUTS_32, assert_near
from support.toolbox import TEST_NUM, assert_refused, copy_model, run_here, small_data

CONFIG = ROOT / "config.yaml"
SMALL = ["hyper_parameters.expert_num=4", "runner.train_batch_size=16", "runner.infer_batch_size=32"]
SMALL += ["runner.to_static=false"]  # which takes a second to compile


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The overrides that point the tools at a part of the sample."""
    return [*SMALL, *small_data(tmp_path_factory.mktemp("data ü 数据"))]


@pytest.fixture(scope="module")
def runs(data, tmp_path_factory):
    """Two epochs of training in each graph: graph -> (folder, the trainer's log)."""
    result, keys = {}, ["runner.epochs=2", "runner.print_interval=2", "runner.shuffle=false"]
    for graph, tool in (("dynamic", "trainer"), ("static", "static_trainer")):
        folder = tmp_path_factory.mktemp(graph)
        process = run_here(tool, CONFIG, *data, *keys, cwd=folder)
        assert process.returncode == 0, process.stderr
        result[graph] = folder, process.stderr
    return result


def infer(tool, folder, data, *overrides):
    process = run_here(tool, CONFIG, *data, "runner.infer_end_epoch=2", *overrides, cwd=folder)
    assert process.returncode == 0, process.stderr
    return process.stderr


COST = r"avg_reader_cost: \d+\.\d{5} sec, avg_batch_cost: \d+\.\d{5} sec, avg_samples: 16\.00000, ips: \d+\.\d{5} ins/s"

LOSSES = r"loss:\d+\.\d+,loss1:\d+\.\d+,loss2:\d+\.\d+,"
DONE = (
    r"epoch: 0 done, Accuracy1: 0\.\d{6}, Accuracy2: 0\.\d{6}, loss: \d+\.\d{6}, loss1: \d+\.\d{6}, "
    r"loss2: \d+\.\d{6}, experts_used: \d, epoch time: \d+\.\d\d s"
)
STATIC_LOSSES = LOSSES.replace(":", ": ").replace(",", ", ")


def test_the_trainers_lines_are_paddlerecs(runs):
    time = r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} - INFO - "
    dynamic, static = (log for _, log in runs.values())
    for log, lines in (
        (dynamic, [
            r"epoch: 1, batch_id: 2, Accuracy1:0\.\d{6}, Accuracy2:0\.\d{6}, " + LOSSES + r"experts_used:\d, " + COST,
            DONE,
            r"use_gpu: False, use_xpu: False, use_npu: False, use_visual: False, train_batch_size: 16, "
            r"train_data_dir: .*, epochs: 2, print_interval: 2, model_save_path: output",
        ]),
        (static, [
            r"epoch: 1, batch_id: 2, Accuracy1: 0\.\d+, Accuracy2: 0\.\d+, " + STATIC_LOSSES
            + r"experts_used: \d, " + COST,
            DONE,
            r"cpu_num: 1",
        ]),
    ):  # fmt: skip
        for line in [*lines, r"\*{14}common\.configs\*{10}", "Already save model in output.1", "device: cpu",
                     "reader path:multiMNIST_reader"]:  # fmt: skip
            assert re.search(time + line + "$", log, re.MULTILINE), line


def test_a_compiled_network_trains_and_evaluates_to_the_same_metrics(data, tmp_path):
    """By SGD: in float32 Adam makes steps of what rounding leaves of a gradient (see rounding.py)."""
    logs = []
    for name, compiled in (("plain", "false"), ("compiled", "true")):
        folder, overrides = tmp_path / name, [*data, f"runner.to_static={compiled}", "runner.print_interval=1"]
        overrides.append("hyper_parameters.expert_num=2")
        folder.mkdir()
        keys = ["hyper_parameters.optimizer.class=sgd", "runner.epochs=1"]
        process = run_here("trainer", CONFIG, *overrides, *keys, cwd=folder)
        assert process.returncode == 0, process.stderr
        assert ("compiled into a program" in process.stderr) == (name == "compiled")
        assert "Warning" not in process.stderr
        logs.append((process.stderr, infer("infer", folder, overrides)))
    logs = zip(*logs)
    for plain, other in logs:
        ours, theirs = (
            [line_numbers(line) for line in text.splitlines() if "epoch: " in line] for text in (plain, other)
        )
        assert len(ours) == len(theirs) > 2
        for a, b in zip(ours, theirs):
            assert a == pytest.approx(b, abs=GRADIENTS_32)


def line_numbers(line):
    """The losses of a line of the log. (An accuracy jumps where two scores are nearly the same.)"""
    return [float(x) for x in re.findall(r"loss\d?: ?(\d+\.\d+)", line)]


def test_either_checkpoint_gives_the_same_accuracy_in_both_graphs(runs, data):
    for folder, _ in runs.values():
        logs = infer("infer", folder, data), infer("static_infer", folder, data)
        done, other = (re.findall(r"epoch: (\d) done, Accuracy1: (\S+), Accuracy2: (\S+), (.*), epoch time", log)
                       for log in logs)  # fmt: skip
        assert done == other and [epoch for epoch, *_ in done] == ["0", "1"]
        for _, *accuracies, _ in done:
            for accuracy in accuracies:  # over all examples, the partial batch included
                whole = round(float(accuracy) * TEST_NUM)
                assert float(accuracy) * TEST_NUM == pytest.approx(whole, abs=5e-7 * TEST_NUM)  # six decimals


@pytest.mark.parametrize(
    "tool,graph,other", [("trainer", "dynamic", "static"), ("static_trainer", "static", "dynamic")]
)
def test_a_warm_start_continues_from_the_other_graphs_weights(runs, data, tmp_path, tool, graph, other):
    options = ["runner.epochs=1", "runner.shuffle=false", f"runner.model_init_path={runs[other][0] / 'output' / '1'}"]
    log = run_here(tool, CONFIG, *data, *options, cwd=tmp_path).stderr
    warm, cold = (float(re.search(r"batch_id: 0, .*?loss: ?(\S+?),", text).group(1)) for text in (log, runs[graph][1]))
    assert warm < cold, "on the same batch"


@pytest.mark.parametrize("tool", ["trainer", "static_trainer"])
def test_a_warm_start_may_lack_parameters_and_names_them(runs, data, tmp_path, tool):
    """From weights of PaddleRec's tools, which have no manifest that would say they are another network's."""
    shutil.copytree(runs["dynamic"][0] / "output" / "1", tmp_path / "start")
    (tmp_path / "start" / "manifest.json").unlink()
    options = ["runner.epochs=1", f"runner.model_init_path={tmp_path / 'start'}"]
    process = run_here(tool, CONFIG, *data, *options, "hyper_parameters.expert_norm=group", cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    assert re.search(r"it has no .*these keep their initial values", process.stderr)


def test_the_layer_can_be_exported_as_paddlerec_does(tmp_path, rng):
    """``to_static.py``: one positional argument, ``jit.save``; two predictions come back."""
    import paddle

    from support.ways import config, start

    run = start("eager", config(expert_num=4, gate="dselect_k_per_example"))
    run.net.eval()
    image = rng.rand(3, 1, 36, 36).astype("float32")
    expected = [z.numpy() for z in run.net(paddle.to_tensor(image))]
    layer = paddle.jit.to_static(
        run.net, input_spec=[paddle.static.InputSpec([None, 1, 36, 36], "float32")], full_graph=True
    )
    paddle.jit.save(layer, str(tmp_path / "tostatic"))
    for ours, theirs in zip(paddle.jit.load(str(tmp_path / "tostatic"))(paddle.to_tensor(image)), expected):
        assert_near(ours.numpy(), theirs, OUTPUTS_32)


@pytest.mark.parametrize(
    "names",
    [("config.yaml", "config_bigdata.yaml"), ("examples/census/config.yaml", "examples/census/config_full.yaml")],
)
def test_a_large_config_has_the_keys_of_the_small_one_and_both_are_read_strictly(names):
    small, big = (load_config(str(ROOT / name)) for name in names)
    assert small.keys() == big.keys()
    for config in (small, big):
        assert config["runner.strict"] is True
        for job in ("train", "infer"):
            read_settings(config, job)
        hyper_parameters.HyperParameters.from_config(config)


# ---------------------------------------------------------------------------- the user's mistakes

THREE_TASKS = ["hyper_parameters.task_num=3", "hyper_parameters.task_weights=[]"]
GET_DATA = f"run in {ROOT}: python data/make_multi_mnist.py --download --out data/full"
# docs/messages.md has more of them, which tests/docs/test_pages.py tries
MISTAKES = {
    "bad value, static": ("static_infer", ["hyper_parameters.gamma=0"], CONFIG, ["hyper_parameters.gamma", "0"]),
    "no data, static": ("static_infer", ["runner.test_data_dir=nowhere"], CONFIG, ["test_data_dir", GET_DATA]),
    "no equals sign": ("trainer", ["runner.epochs"], CONFIG, ["-o runner.epochs"]),
    "other reader type": ("static_trainer", ["runner.reader_type=QueueDataset"], CONFIG, ["reader_type"]),
    "wrong task number": ("static_trainer", THREE_TASKS, CONFIG, ["items", "label3"]),
    "wrong task number, dynamic": ("trainer", THREE_TASKS, CONFIG, ["2 labels", "task_num"]),
    "out_vec without a name": ("static_trainer", ["runner.use_out_vec=true"], CONFIG, ["emb_weight_name"]),
    "fewer classes than labels": ("trainer", ["hyper_parameters.class_num=5"], CONFIG, ["class_num", "9"]),
    "fewer classes, static": ("static_trainer", ["hyper_parameters.class_num=5"], CONFIG, ["class_num", "9"]),
    "a reader's file": ("trainer", ["runner.train_reader_path=reader.py"], CONFIG, ["reader.py", "without .py"]),
    "no module's name": ("trainer", ["runner.train_reader_path=.x"], CONFIG, [".x", "train_reader_path"]),
    "a ramp too long": ("trainer", ["hyper_parameters.entropy_ramp_steps=1000000000000"], CONFIG, ["1000000"]),
    "endless epochs": ("infer", ["runner.infer_end_epoch=2000000000"], CONFIG, ["infer_end_epoch", "1999999999"]),
    "moved twice": ("trainer", ["runner.lr_step=batch"], CONFIG, ["runner.lr_step", "none"]),
    "a file for a folder": (
        "static_trainer",
        [f"runner.model_save_path={CONFIG}/x"],
        CONFIG,
        [f"{CONFIG}/x: cannot be"],
    ),
    "no visualdl": ("trainer", ["runner.use_visual=true"], CONFIG, ["use_visual", "pip install visualdl"]),
}


@pytest.mark.parametrize("tool,overrides,config,words", MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_message_and_code_2(tool, overrides, config, words, tmp_path):
    assert_refused(run_here(tool, config, *SMALL, *overrides, cwd=tmp_path), *words)
    written = [path.name for path in tmp_path.rglob("*") if path.is_file()]
    assert written in ([], [".lock"]), "nothing should have been written"


@pytest.mark.parametrize("arguments", [[], ["-m", str(CONFIG), "--epoch", "3"]], ids=["no config", "no such option"])
def test_a_wrong_command_line_is_one_message_and_code_2(arguments, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main("trainer", arguments)
    message = capsys.readouterr().err
    assert end.value.code == 2 and message.startswith("error: ") and message.count("\n") == 1
    assert "-m config.yaml" in message


def test_repeated_o_add_up_and_a_value_may_hold_an_equals_sign(tmp_path):
    overrides = ["runner.infer_load_path=a=b", "-o", "runner.infer_start_epoch=3", "runner.infer_end_epoch=5"]
    assert_refused(run_here("infer", CONFIG, *overrides, cwd=tmp_path), "a=b", "3 to 4")


def test_a_huge_seed_is_a_seed_and_auto_does_without_a_gpu(data, tmp_path):
    keys = ["runner.epochs=1", "runner.seed=99999999999999999999999", "runner.use_gpu=auto"]
    process = run_here("trainer", CONFIG, *data, *keys, cwd=tmp_path)
    assert process.returncode == 0 and re.search("device: (cpu|gpu:0)", process.stderr), process.stderr


def test_print_config_gives_a_config_that_says_where_each_value_is_from(tmp_path, capsys):
    cli.main(
        "static_trainer", ["-m", str(CONFIG), "--print-config", "-o", "runner.epochs=9", "hyper_parameters.gamma=2"]
    )
    text = capsys.readouterr().out
    origins = {line.split(":")[0]: line.rsplit("# ", 1)[1] for line in text.splitlines()}
    for key, origin in (
        ("runner.epochs", "-o"), ("hyper_parameters.gamma", "-o"), ("runner.seed", "file"),
        ("hyper_parameters.top_k", "file"), ("runner.drop_last", "default"), ("runner.image_scale", "default"),
    ):  # fmt: skip
        assert origins[key] == origin
    written = yaml.safe_load(text)
    assert written["runner.epochs"] == 9 and written["hyper_parameters.gamma"] == 2.0
    (tmp_path / "again.yaml").write_text(text, encoding="utf-8")
    copy_model(tmp_path)
    cli.main("static_trainer", ["-m", str(tmp_path / "again.yaml"), "--print-config"])
    assert yaml.safe_load(capsys.readouterr().out) == written
