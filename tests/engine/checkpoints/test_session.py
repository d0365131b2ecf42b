"""tools/engine/checkpoints/session.py: a stopped or killed run resumes to the same bits; which epochs it keeps."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import time
import types

import pytest

from engine.checkpoints import folders, manifests
from engine.checkpoints.session import Session
from support import ROOT, resuming
from support.checkpoints import write_checkpoint
from support.resuming import CONSTANT, OVERRIDES, TOOLS, differences, state
from support.seeds import seeded
from support.toolbox import TIMEOUT_S, assert_refused, no_file_above, run_here, run_tool

GRAPHS = list(TOOLS)
CONFIG = ROOT / "config.yaml"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The override that points to the data."""
    return resuming.make_data(str(tmp_path_factory.mktemp("data") / "data"))


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """Graph -> folder of an uninterrupted run, a process."""
    folder = tmp_path_factory.mktemp("whole")
    for graph in GRAPHS:
        resuming.run_through(graph, str(folder / graph), data)
    return {graph: folder / graph for graph in GRAPHS}


def tool(graph, cwd, *overrides):
    """A finished process."""
    return run_tool(TOOLS[graph], CONFIG, *OVERRIDES, *overrides, cwd=cwd)


def here(graph, cwd, *overrides):
    """``tool`` within this process: for runs that are not killed, and whose bits are not compared with a process's."""
    return run_here(TOOLS[graph], CONFIG, *OVERRIDES, *overrides, cwd=cwd)


def wait_for(folder, text, process):
    while process.poll() is None and text not in (folder / "log").read_text():
        time.sleep(0.02)


def signalled(graph, folder, *overrides, send=lambda process: process.send_signal(signal.SIGTERM), **options):
    """The exit code of a run that gets a signal after the third step of twelve.

    On a busy machine the run may be over before the signal comes; then it is repeated.
    """
    for _ in range(20):
        process = resuming.start(graph, str(folder), *overrides, **options)
        wait_for(folder, "epoch: 0, batch_id: 2", process)
        send(process)
        code = process.wait(TIMEOUT_S)
        if code != 0:
            return code
        shutil.rmtree(folder / "output")
        (folder / "log").unlink()
    raise AssertionError("each of 20 runs was over before its signal came")


@pytest.mark.parametrize(
    "graph,number,code",
    [("dynamic", signal.SIGTERM, 143), ("static", signal.SIGINT, 130), ("dynamic", signal.SIGHUP, 129)],
)
def test_a_run_ended_by_a_signal_resumes_to_the_same_bits_and_metrics(data, whole, tmp_path, graph, number, code):
    send = lambda process: process.send_signal(number)  # noqa: E731 (a callback)
    assert signalled(graph, tmp_path, data, "runner.save_interval_steps=0", send=send) == code
    assert (tmp_path / "output" / "last_step" / "manifest.json").exists()
    log, name = (tmp_path / "log").read_text(), signal.Signals(number).name
    assert "Traceback" not in log and f"stopped by {name} after a step, which is saved in output/last_step" in log
    (command,) = re.findall(r"next: (.*)", log)
    assert shlex.split(command)[1] == str(ROOT / "tools" / f"{TOOLS[graph]}.py") and "runner.resume=auto" in command
    assert tool(graph, tmp_path, *shlex.split(command)[5:]).returncode == 0
    assert not differences(state(tmp_path), state(whole[graph]))
    assert sorted(os.listdir(tmp_path / "output")) == [".lock", "0", "1"]
    ours, theirs = (manifests.read(str(folder / "output" / "0")) for folder in (tmp_path, whole[graph]))
    assert ours["numbers"] == theirs["numbers"] and {"Accuracy1", "loss2", "experts_used"} < ours["numbers"].keys()


def test_ctrl_c_with_workers_saves_as_well(data, whole, tmp_path):
    """A terminal sends it to the whole group, the reader's processes included."""

    def send(process):
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGINT)

    code = signalled("dynamic", tmp_path, data, "runner.num_workers=2", new_group=True, send=send)
    log = (tmp_path / "log").read_text()
    assert code == 130 and "Traceback" not in log, log
    assert tool("dynamic", tmp_path, data, "runner.resume=auto").returncode == 0
    assert not differences(state(tmp_path), state(whole["dynamic"]))


def test_kills_at_random_moments_end_in_the_same_bits(tmp_path):
    """tests/stress/kill_resume.py runs a hundred trials."""
    resuming.trials(2, seed=seeded(1), folder=str(tmp_path))


@pytest.mark.parametrize(
    "graph,keys", [("dynamic", []), ("static", []), ("dynamic", ["runner.to_static=true"])], ids=[*GRAPHS, "compiled"]
)
def test_one_epoch_and_then_another_is_the_same_as_two(data, tmp_path, graph, keys):
    """Though the second run omits keys at their defaults that the first one gave, and gives another."""
    given = ["hyper_parameters.class_num=10", "hyper_parameters.optimizer.class=adam", "runner.drop_last=true"]
    for name, more in (("two", []), ("one", ["runner.epochs=1", *given])):
        (tmp_path / name).mkdir()
        assert here(graph, tmp_path / name, data, CONSTANT, *keys, *more).returncode == 0
    resume = [f"runner.resume={tmp_path / 'one' / 'output' / '0'}", "hyper_parameters.expert_norm=batch"]
    again = here(graph, tmp_path / "one", data, CONSTANT, *keys, *resume)
    assert again.returncode == 0 and "epoch: 0," not in again.stderr and "another config" not in again.stderr
    assert not differences(state(tmp_path / "one"), state(tmp_path / "two"))


@pytest.mark.parametrize("graph", GRAPHS)
def test_a_kill_between_the_last_step_and_the_epochs_checkpoint_loses_nothing(data, tmp_path, graph, monkeypatch):
    """The checkpoint inside the epoch is of its last step (6 steps, every second one is saved): no step is left."""
    after_epoch = Session.after_epoch

    def die_in_the_second_epoch(session, epoch, *numbers):
        if epoch == 1:
            raise KeyError("as a kill: nothing in the tools catches it")
        after_epoch(session, epoch, *numbers)

    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    assert here(graph, tmp_path / "whole", data).returncode == 0
    with monkeypatch.context() as patch:
        patch.setattr(Session, "after_epoch", die_in_the_second_epoch)
        assert here(graph, tmp_path / "killed", data).returncode == 1
    resumed = here(graph, tmp_path / "killed", data, "runner.resume=auto")
    assert resumed.returncode == 0 and "epoch 1, batch 6" in resumed.stderr and "batch_id" not in resumed.stderr
    ours, theirs = tmp_path / "killed", tmp_path / "whole"
    assert not differences(state(ours), state(theirs))
    numbers = [manifests.read(str(folder / "output" / "1"))["numbers"] for folder in (ours, theirs)]
    assert numbers[0] == numbers[1]


@pytest.mark.parametrize(
    "overrides,words",
    [
        (["hyper_parameters.optimizer.learning_rate=0.5"], ["learning_rate", "0.003", "0.5", "model_init_path"]),
        (["runner.train_batch_size=8", "hyper_parameters.gamma=2"], ["gamma", "train_batch_size"]),
        (["runner.resume=nowhere"], ["nowhere", "manifest"]),
        (["runner.resume={static}"], ["static", "model_init_path"]),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_not_resumed(data, whole, overrides, words):
    before = state(whole["dynamic"])
    resume = {graph: whole[graph] / "output" / "0" for graph in GRAPHS}
    options = ["runner.epochs=3", f"runner.resume={resume['dynamic']}", *(each.format(**resume) for each in overrides)]
    assert_refused(here("dynamic", whole["dynamic"], data, *options), *words)
    assert not differences(state(whole["dynamic"]), before)


def test_a_second_signal_ends_the_run_at_once(data, tmp_path):
    process = resuming.start("dynamic", str(tmp_path), data, "runner.epochs=500", "runner.keep_last=1")
    wait_for(tmp_path, "epoch: 0, batch_id: 1", process)
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGTERM)
    try:
        assert process.wait(TIMEOUT_S) in (-15, 143)
    except subprocess.TimeoutExpired:
        process.kill()
        raise


def test_a_second_run_into_the_same_folder_is_refused(data, tmp_path):
    process = resuming.start("dynamic", str(tmp_path), data, "runner.epochs=500", "runner.keep_last=1")
    wait_for(tmp_path, "epoch: 0, batch_id: 0", process)
    assert_refused(here("static", tmp_path, data), "output", "another run")
    assert process.poll() is None, "the first run goes on"
    process.kill()
    process.wait()
    folders.lock(str(tmp_path / "output")).close()  # a dead process holds none


def test_keep_last_deletes_nothing_newer_than_it_keeps(toy, tmp_path):
    """A new run in the folder of an older, longer one."""
    output = tmp_path / "model_output"
    assert toy("trainer").returncode == 0
    for epoch in ("8", "9"):
        shutil.copytree(output / "0", output / epoch)
    assert toy("trainer", "runner.epochs=3", "runner.keep_last=2").returncode == 0
    assert sorted(os.listdir(output)) == [".lock", "1", "2", "8", "9"]
    again = toy("trainer", "runner.epochs=3", "runner.keep_last=2", "runner.resume=auto")
    assert f"resumed from {os.path.join('model_output', '2')}" in again.stderr, "the newest, not the highest number"


def test_keep_last_deletes_nothing_if_the_newest_epoch_cannot_be_read_back(tmp_path):
    """As on a disk that loses what was flushed."""
    session = Session.__new__(Session)
    session.parent, session.run = str(tmp_path), "a"
    session.settings = types.SimpleNamespace(keep_last=1, keep_best=None)
    for epoch in range(3):
        write_checkpoint(tmp_path, epoch)
    (tmp_path / "2" / "file").write_text("changed")
    session._delete_old(2)
    assert folders.saved_epochs(str(tmp_path)) == [0, 1, 2]
    session._delete_old(1)
    assert folders.saved_epochs(str(tmp_path)) == [1, 2]


@pytest.mark.parametrize("graph", GRAPHS)
def test_the_accuracy_of_a_task_called_error_type_is_maximised(data, tmp_path, graph):
    """In training, in what it keeps and reports, in the manifests and the journal."""
    tasks = "hyper_parameters.tasks=[{name: error_type, classes: 10}, {name: other, classes: 10}]"
    name = "Accuracy_error_type"
    keys = [tasks, "runner.epochs=4", "runner.keep_last=1", CONSTANT, f"runner.keep_best={name}"]
    process = here(graph, tmp_path, data, *keys, "runner.log_json=log.json")
    assert process.returncode == 0 and "direction" not in process.stderr, process.stderr
    values = [float(x) for x in re.findall(rf"done, .*?{name}: (\S+),", process.stderr)]
    best = max(range(4), key=lambda epoch: values[epoch])
    assert min(values) < max(values) and sorted(os.listdir(tmp_path / "output")) == sorted({".lock", "3", str(best)})
    assert f"best epoch: {best} (by {name} of the training)" in process.stderr
    stated = manifests.read(str(tmp_path / "output" / "3"))["higher_is_better"]
    assert stated[name] is True and stated["loss"] is stated["loss_error_type"] is False
    epochs = [json.loads(line) for line in (tmp_path / "log.json").read_text().splitlines() if '"epoch", ' in line]
    assert len(epochs) == 4 and all(line["higher_is_better"] == stated for line in epochs)


@pytest.mark.skipif(os.name != "posix", reason="limits of the system")
@pytest.mark.parametrize("graph", GRAPHS)
def test_a_folder_without_room_is_found_before_the_first_step(data, tmp_path, graph):
    with no_file_above(64 << 10):
        process = here(graph, tmp_path, data)
    assert_refused(process, "output", "no room")
    assert "batch_id" not in process.stderr and os.listdir(tmp_path / "output") == [".lock"]
