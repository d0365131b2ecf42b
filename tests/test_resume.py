"""A training that was stopped or killed goes on to the same bits; what cannot go on says why."""

import json
import os
import pathlib
import pickle
import re
import shutil
import signal
import subprocess
import sys
import time
import types

import kill_resume
import pytest
from conftest import ROOT
from toolbox import assert_refused, run_here, run_tool

from engine.saves import folders, manifests

GRAPHS = list(kill_resume.TOOLS)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """(override of the data, graph -> folder of an undisturbed run)."""
    folder = tmp_path_factory.mktemp("resume")
    data = kill_resume.make_data(str(folder / "data"))
    for graph in GRAPHS:
        kill_resume.run_through(graph, str(folder / graph), data)
    return data, {graph: folder / graph for graph in GRAPHS}


def tool(graph, cwd, data, *overrides):
    return run_tool(kill_resume.TOOLS[graph], ROOT / "config.yaml", *kill_resume.OVERRIDES, data, *overrides, cwd=cwd)


def here(graph, cwd, data, *overrides):
    """``tool`` within this process: for runs that are not killed, and whose bits nobody compares with a process's."""
    return run_here(kill_resume.TOOLS[graph], ROOT / "config.yaml", *kill_resume.OVERRIDES, data, *overrides, cwd=cwd)


def wait_for(folder, text, process):
    log = pathlib.Path(folder) / "log"
    while process.poll() is None and text not in log.read_text():
        time.sleep(0.02)


@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("number,code", [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)])
def test_a_signal_saves_and_the_run_goes_on_to_the_same_bits(base, tmp_path, graph, number, code):
    data, undisturbed = base
    process = kill_resume.start(graph, str(tmp_path), data, "runner.save_interval_steps=0")
    wait_for(tmp_path, "epoch: 0, batch_id: 2", process)
    process.send_signal(number)
    assert process.wait(60) == code
    assert (tmp_path / "output" / "last_step" / "manifest.json").exists()
    log = (tmp_path / "log").read_text()
    name = signal.Signals(number).name
    assert "Traceback" not in log and f"stopped by {name} after a step, which is saved in output/last_step" in log
    (command,) = re.findall(r"next: (.*)", log)
    assert "runner.resume=auto" in command
    assert subprocess.run(command, shell=True, cwd=tmp_path, capture_output=True, timeout=120).returncode == 0
    assert not kill_resume.differences(kill_resume.state(tmp_path), kill_resume.state(undisturbed[graph]))
    assert sorted(os.listdir(tmp_path / "output")) == [".lock", "0", "1"]


def test_kills_at_random_moments_end_in_the_same_bits(tmp_path):
    """tests/stress/kill_resume.py, which runs a hundred trials outside the suite."""
    kill_resume.trials(2, seed=1, folder=str(tmp_path))


@pytest.mark.parametrize("graph", GRAPHS)
def test_one_epoch_and_then_another_is_the_same_as_two(base, tmp_path, graph):
    data, _ = base
    for name in ("two", "one"):
        (tmp_path / name).mkdir()
    constant = "hyper_parameters.optimizer.schedule=constant"  # a one-cycle's length would change with the epochs
    assert tool(graph, tmp_path / "two", data, constant).returncode == 0
    assert tool(graph, tmp_path / "one", data, constant, "runner.epochs=1").returncode == 0
    again = tool(graph, tmp_path / "one", data, constant, f"runner.resume={tmp_path / 'one' / 'output' / '0'}")
    assert again.returncode == 0 and "epoch: 0," not in again.stderr
    assert not kill_resume.differences(kill_resume.state(tmp_path / "one"), kill_resume.state(tmp_path / "two"))


@pytest.mark.parametrize("graph", GRAPHS)
def test_a_kill_between_the_last_step_and_the_epochs_save_loses_nothing(base, tmp_path, graph):
    """The save inside the epoch is of its last step (6 steps, one in two saved), so no step is left to run."""
    data, undisturbed = base
    process = kill_resume.start(graph, str(tmp_path), data)
    position = tmp_path / "output" / "last_step" / "manifest.json"
    while process.poll() is None:
        try:
            if json.loads(position.read_text())["batch"] == 6:
                process.kill()
        except (OSError, ValueError, KeyError):
            continue
    shutil.rmtree(tmp_path / "output" / "1", ignore_errors=True)  # where the kill came too late
    assert tool(graph, tmp_path, data, "runner.resume=auto").returncode == 0
    assert not kill_resume.differences(kill_resume.state(tmp_path), kill_resume.state(undisturbed[graph]))


def test_a_compiled_network_goes_on_to_the_same_bits(base, tmp_path):
    data, _ = base
    for name, epochs in (("one", 1), ("two", 2)):
        (tmp_path / name).mkdir()
        keys = [data, "hyper_parameters.optimizer.schedule=constant", "runner.to_static=true"]
        assert tool("dynamic", tmp_path / name, *keys, f"runner.epochs={epochs}").returncode == 0
    assert tool("dynamic", tmp_path / "one", *keys, "runner.resume=auto").returncode == 0
    assert not kill_resume.differences(kill_resume.state(tmp_path / "one"), kill_resume.state(tmp_path / "two"))


def test_nothing_to_resume_is_said_and_training_starts(base, tmp_path):
    data, _ = base
    process = here("dynamic", tmp_path, data, "runner.resume=auto", "runner.epochs=1")
    assert process.returncode == 0 and "nothing to resume" in process.stderr


def test_a_finished_run_has_nothing_left_to_do(base):
    data, undisturbed = base
    process = here("dynamic", undisturbed["dynamic"], data, "runner.resume=auto")
    assert process.returncode == 0 and "batch_id" not in process.stderr


@pytest.mark.parametrize(
    "overrides,words",
    [
        (["hyper_parameters.optimizer.learning_rate=0.5"], ["learning_rate", "0.003", "0.5", "model_init_path"]),
        (["runner.train_batch_size=8", "hyper_parameters.gamma=2"], ["gamma", "train_batch_size"]),
        (["runner.resume=nowhere"], ["nowhere", "manifest"]),
    ],
)
def test_a_resume_that_would_not_be_one_is_refused(base, overrides, words):
    data, undisturbed = base
    before = kill_resume.state(undisturbed["dynamic"])
    options = ["runner.epochs=3", f"runner.resume={undisturbed['dynamic'] / 'output' / '0'}", *overrides]
    assert_refused(here("dynamic", undisturbed["dynamic"], data, *options), *words)
    assert not kill_resume.differences(kill_resume.state(undisturbed["dynamic"]), before)


@pytest.mark.parametrize("graph", GRAPHS)
def test_a_key_that_is_given_its_default_or_left_out_is_the_same_config(base, tmp_path, graph):
    data, _ = base
    given = ["hyper_parameters.class_num=10", "hyper_parameters.optimizer.class=adam", "runner.drop_last=true"]
    assert here(graph, tmp_path, data, "runner.epochs=1", *given).returncode == 0
    process = here(graph, tmp_path, data, "runner.resume=auto", "hyper_parameters.expert_norm=batch")
    assert process.returncode == 0 and "resumed from" in process.stderr and "another config" not in process.stderr


def test_the_other_graphs_run_is_not_resumed_but_its_weights_are_offered(base, tmp_path):
    data, undisturbed = base
    folder = undisturbed["static"] / "output" / "0"
    assert_refused(here("dynamic", tmp_path, data, f"runner.resume={folder}"), "static", "model_init_path")


@pytest.mark.parametrize(
    "damage", ["cut", "changed", "gone", "manifest cut", "manifest of another kind", "manifest of other facts"]
)
def test_a_damaged_save_is_named_and_resume_takes_an_older_one(base, tmp_path, damage):
    data, undisturbed = base
    shutil.copytree(undisturbed["dynamic"] / "output", tmp_path / "output")
    broken = tmp_path / "output" / "1" / ("manifest.json" if "manifest" in damage else "rec.pdparams")
    content = broken.read_bytes()
    if damage == "gone":
        broken.unlink()
    elif damage == "manifest of another kind":
        broken.write_text("[1, 2]")
    elif damage == "manifest of other facts":
        broken.write_text(json.dumps({**json.loads(content), "batch": "7"}))
    else:
        broken.write_bytes(content[: len(content) // 2] if "cut" in damage else b"x" + content[1:])
    refused = run_here(
        "infer", ROOT / "config.yaml", *kill_resume.OVERRIDES, "runner.infer_start_epoch=1", cwd=tmp_path
    )
    assert_refused(refused, broken.relative_to(tmp_path))
    process = tool("dynamic", tmp_path, data, "runner.resume=auto")
    assert process.returncode == 0 and str(broken.relative_to(tmp_path)) in process.stderr
    assert not kill_resume.differences(kill_resume.state(tmp_path), kill_resume.state(undisturbed["dynamic"]))


class Canary:
    def __reduce__(self):
        return open, ("canary", "w")


@pytest.mark.parametrize("name", ["rec.pdparams", "rec_static.pdparams"])
def test_no_code_of_a_checkpoint_runs(base, tmp_path, name):
    """A folder without a manifest, as PaddleRec writes it, is read by the restricted reader all the same."""
    (tmp_path / "output" / "0").mkdir(parents=True)
    (tmp_path / "output" / "0" / name).write_bytes(pickle.dumps({"a": Canary()}))
    assert_refused(run_tool("infer", ROOT / "config.yaml", cwd=tmp_path), name, "open")
    assert not (tmp_path / "canary").exists()


def test_a_second_signal_ends_at_once(base, tmp_path):
    data, _ = base
    process = kill_resume.start("dynamic", str(tmp_path), data)
    wait_for(tmp_path, "epoch: 0, batch_id: 1", process)
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGTERM)
    try:
        assert process.wait(30) in (-15, 143)
    except subprocess.TimeoutExpired:
        process.kill()
        raise


def test_a_second_run_into_the_same_folder_is_refused(base, tmp_path):
    data, _ = base
    process = kill_resume.start("dynamic", str(tmp_path), data, "runner.epochs=500", "runner.keep_last=1")
    wait_for(tmp_path, "epoch: 0, batch_id: 0", process)
    assert_refused(tool("static", tmp_path, data), "output", "another training")
    assert process.poll() is None, "the first run goes on"
    process.kill()
    process.wait()
    assert tool("dynamic", tmp_path, data, "runner.epochs=1").returncode == 0, "a dead run's lock is none"


def test_keep_last_deletes_nothing_newer_than_it_keeps(base, tmp_path):
    """A fresh run in the folder of an older, longer one: its own saves stay."""
    data, undisturbed = base
    for epoch in ("0", "8", "9"):
        shutil.copytree(undisturbed["dynamic"] / "output" / "0", tmp_path / "output" / epoch)
    before = (tmp_path / "output" / "0" / "manifest.json").read_text()
    assert here("dynamic", tmp_path, data, "runner.epochs=3", "runner.keep_last=2").returncode == 0
    assert sorted(os.listdir(tmp_path / "output")) == [".lock", "1", "2", "8", "9"]
    assert (tmp_path / "output" / "1" / "manifest.json").read_text() != before
    again = here("dynamic", tmp_path, data, "runner.epochs=3", "runner.keep_last=2", "runner.resume=auto")
    assert f"resumed from {os.path.join('output', '2')}" in again.stderr, "the newest save, not the highest number"


def test_ctrl_c_with_workers_saves_as_well(base, tmp_path):
    """A terminal sends it to the whole group, the reader's processes included."""
    data, undisturbed = base
    process = kill_resume.start("dynamic", str(tmp_path), data, "runner.num_workers=2", new_group=True)
    wait_for(tmp_path, "epoch: 0, batch_id: 2", process)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(60) == 130, (tmp_path / "log").read_text()
    assert "Traceback" not in (tmp_path / "log").read_text()
    assert tool("dynamic", tmp_path, data, "runner.resume=auto").returncode == 0
    assert not kill_resume.differences(kill_resume.state(tmp_path), kill_resume.state(undisturbed["dynamic"]))


def test_keep_best_keeps_the_best_epoch_beside_the_newest(base, tmp_path):
    data, _ = base
    overrides = ["runner.epochs=4", "runner.keep_last=1", "hyper_parameters.optimizer.schedule=constant"]
    process = tool("static", tmp_path, data, *overrides, "runner.keep_best=loss1")
    assert process.returncode == 0, process.stderr
    means = [float(x) for x in re.findall(r"done, .*?loss1: (\S+),", process.stderr)]
    best = min(range(4), key=lambda epoch: means[epoch])
    assert sorted(os.listdir(tmp_path / "output")) == sorted({".lock", "3", str(best)})
    greatest = tool("static", tmp_path, data, *overrides, "runner.keep_best=experts_used")
    assert greatest.returncode == 0, "any other number is best where it is greatest"
    refused = tool("static", tmp_path, data, *overrides, "runner.keep_best=loss7")
    assert_refused(refused, "runner.keep_best", "loss7", "loss1", "Accuracy1")


@pytest.mark.parametrize("graph", GRAPHS)
def test_the_numbers_of_a_resumed_epoch_are_those_of_the_whole(base, tmp_path, graph):
    data, undisturbed = base
    process = kill_resume.start(graph, str(tmp_path), data, "runner.save_interval_steps=0")
    wait_for(tmp_path, "epoch: 0, batch_id: 2", process)
    process.send_signal(signal.SIGTERM)
    process.wait(60)
    assert tool(graph, tmp_path, data, "runner.resume=auto").returncode == 0
    ours, theirs = (
        json.loads((folder / "output" / "0" / "manifest.json").read_text())["numbers"]
        for folder in (tmp_path, undisturbed[graph])
    )
    assert ours == theirs and {"Accuracy1", "loss2", "experts_used"} < ours.keys()


def test_a_newest_epoch_that_cannot_be_read_back_deletes_nothing(tmp_path):
    """As on a disk that loses what it was told to flush."""
    from engine.saves.session import Session

    session = Session.__new__(Session)
    session.parent, session.settings = str(tmp_path), types.SimpleNamespace(keep_last=1, keep_best=None)
    session.run = "mine"
    for epoch in range(3):
        with folders.new_folder(str(tmp_path), epoch) as folder:
            pathlib.Path(folder, "file").write_text("x")
            manifests.write(
                folder,
                {},
                graph="static",
                epoch=epoch + 1,
                batch=0,
                config={},
                schedule=None,
                numbers={},
                so_far=None,
                run="mine",
            )
    (tmp_path / "2" / "file").write_text("y")
    session._delete_old(2)
    assert folders.saved_epochs(str(tmp_path)) == [0, 1, 2]
    session._delete_old(1)
    assert folders.saved_epochs(str(tmp_path)) == [1, 2]


@pytest.mark.skipif(os.name != "posix", reason="limits of the system")
@pytest.mark.parametrize("graph", GRAPHS)
def test_a_folder_without_room_is_found_before_the_first_step(base, tmp_path, graph):
    data, _ = base
    script = f"ulimit -f 64; trap '' XFSZ; exec {sys.executable} \"$@\""
    tool_path = str(ROOT / "tools" / f"{kill_resume.TOOLS[graph]}.py")
    command = ["bash", "-c", script, "bash", tool_path, "-m", str(ROOT / "config.yaml")]
    process = subprocess.run(
        [*command, "-o", *kill_resume.OVERRIDES, data], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert_refused(process, "output", "no room")
    assert "batch_id" not in process.stderr and os.listdir(tmp_path / "output") == [".lock"]
