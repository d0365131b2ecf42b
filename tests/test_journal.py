"""``runner.log_json``: every line is JSON, with the numbers of the log in full; a cut line breaks nothing."""

import json
import logging
import os
import re

import numpy as np
import pytest
from conftest import ROOT
from toolbox import assert_refused, run_here, small_data

from engine import journal
from engine.errors import UserError

CONFIG = ROOT / "config.yaml"
KEYS = ["runner.epochs=2", "runner.print_interval=2", "runner.train_batch_size=16", "runner.to_static=false"]
KEYS += ["hyper_parameters.expert_num=4", "hyper_parameters.expert_size=8", "runner.log_json=logs/run.json"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return small_data(tmp_path_factory.mktemp("data"))


def no_constant(name):
    raise AssertionError(f"{name} is no JSON")


def read(folder):
    """The lines of the log, which must be JSON in the narrow sense."""
    text = (folder / "logs" / "run.json").read_text()
    return [json.loads(line, parse_constant=no_constant) for line in text.splitlines()]


def test_a_run_from_its_start_to_its_end(data, tmp_path):
    keys = [*KEYS, *data, f"runner.validation_data_dir={data[1].split('=')[1]}", "runner.keep_best=loss"]
    stderr = run_here("static_trainer", CONFIG, *keys, cwd=tmp_path).stderr
    found = read(tmp_path)
    of_epoch = ["interval", "interval", "epoch", "validation", "save"]
    assert [line["event"] for line in found] == ["start", *of_epoch, *of_epoch, "end"]
    start, end = found[0], found[-1]
    manifests = [json.loads((tmp_path / "output" / str(n) / "manifest.json").read_text()) for n in (0, 1)]
    assert (start["tool"], start["run"]) == ("static_trainer", manifests[0]["run"])
    assert start["versions"] == manifests[0]["versions"] and start["config"]["runner.epochs"] == 2
    times = [line["time"] for line in found]
    assert times == sorted(times)
    for n, (epoch, validation, save) in enumerate([found[3:6], found[8:11]]):
        assert epoch["numbers"] == manifests[n]["numbers"] and validation["numbers"] == manifests[n]["validation"]
        assert epoch["epoch"] == validation["epoch"] == n and epoch["seconds"] > 0
        assert list(epoch["status"]) == ["task 1 experts", "task 2 experts"]
        assert (save["folder"], save["next_epoch"], save["next_batch"]) == (os.path.join("output", str(n)), n + 1, 0)
    lines = re.findall(r"epoch: (\d), batch_id: (\d), .* loss: (\S+),.* avg_samples: (\S+), ips: (\S+) ", stderr)
    intervals = [line for line in found if line["event"] == "interval"]
    assert len(lines) == len(intervals) == 4
    for (epoch, batch, loss, _, rate), line in zip(lines, intervals):
        assert (int(epoch), int(batch)) == (line["epoch"], line["batch"])
        assert np.float32(loss) == np.float32(line["numbers"]["loss"])
        assert float(rate) == pytest.approx(line["examples_per_s"], abs=1e-4)
        assert line["examples"] == 16 * (1 if batch == "0" else 2)
        assert list(line["status"]) == ["task 1 experts", "task 2 experts"]
        assert sum(line["status"]["task 1 experts"].values()) == pytest.approx(1.0)
    best = min((0, 1), key=lambda n: manifests[n]["validation"]["loss"])
    assert (end["outcome"], end["best_by"], end["epoch"], end["epochs"]) == ("done", "loss", best, 2)
    assert end["numbers"] == manifests[best]["validation"]


@pytest.mark.parametrize("tail", ["", '{"event": "inter'], ids=["whole", "cut"])
def test_a_resumed_run_goes_on_in_the_file_on_a_new_line(data, tmp_path, tail):
    constant = "hyper_parameters.optimizer.schedule=constant"
    run_here("trainer", CONFIG, *KEYS, *data, constant, "runner.epochs=1", cwd=tmp_path)
    first = (tmp_path / "logs" / "run.json").read_text()
    with open(tmp_path / "logs" / "run.json", "a") as file:
        file.write(tail)
    assert run_here("trainer", CONFIG, *KEYS, *data, constant, "runner.resume=auto", cwd=tmp_path).returncode == 0
    text = (tmp_path / "logs" / "run.json").read_text()
    assert text.startswith(first + tail + "\n" * bool(tail))
    went_on = [json.loads(line) for line in text[len(first + tail) :].split("\n") if line]
    assert [line["event"] for line in went_on] == ["start", "interval", "interval", "epoch", "save", "end"]
    assert went_on[0]["run"] == json.loads(first.split("\n")[0])["run"] and went_on[-1]["epochs"] == 2


def test_the_other_tools_write_one_too(data, tmp_path):
    for tool, *more in (["trainer", "runner.epochs=1"], ["infer"], ["export"], ["predict"]):
        process = run_here(tool, CONFIG, *KEYS, *data, *more, "runner.infer_end_epoch=1", cwd=tmp_path)
        assert process.returncode == 0, process.stderr
    runs = "".join(f"{line['event']} " for line in read(tmp_path)).split("start ")[1:]
    assert runs == ["interval interval epoch save end ", "interval epoch end ", "end ", "interval epoch end "]
    assert [line["tool"] for line in read(tmp_path) if "tool" in line] == ["trainer", "infer", "export", "predict"]


def test_a_run_that_fails_says_so_in_its_last_line(data, tmp_path):
    keys = [
        *KEYS,
        *data,
        "hyper_parameters.optimizer.learning_rate=1e30",
        "hyper_parameters.optimizer.schedule=constant",
    ]
    assert_refused(run_here("trainer", CONFIG, *keys, cwd=tmp_path), "not finite")
    end = read(tmp_path)[-1]
    assert (end["event"], end["outcome"]) == ("end", "error") and "not finite" in end["error"]


@pytest.mark.parametrize("there", ["folder", "text", "below a file"])
def test_a_file_that_cannot_be_the_log_is_refused_before_the_first_step(data, tmp_path, there):
    path = tmp_path / "log"
    if there == "folder":
        path.mkdir()
    else:
        path.write_text("runner:\n")
    given = path / "run.json" if there == "below a file" else path
    process = run_here("trainer", CONFIG, *KEYS, *data, f"runner.log_json={given}", cwd=tmp_path)
    assert_refused(process, "runner.log_json", given)
    assert "batch_id" not in process.stderr
    assert there == "folder" or path.read_text() == "runner:\n"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no device that is always full")
def test_a_full_disk_is_told_before_the_first_step_and_later_ends_nothing(tmp_path, caplog, monkeypatch):
    with pytest.raises(UserError, match="runner.log_json: /dev/full cannot be written"):
        journal.Journal("/dev/full").begin()
    monkeypatch.setattr(logging.getLogger("engine"), "propagate", True)
    log = journal.Journal(str(tmp_path / "log"))
    log.begin(tool="trainer")
    log.file.close()
    log.file = open("/dev/full", "ab", buffering=0)
    log.record("epoch", epoch=0)
    log.record("epoch", epoch=1)
    assert [("cannot be written any more" in message) for message in caplog.messages] == [True]


def test_what_is_no_number_is_null_and_what_json_lacks_is_text(tmp_path):
    log = journal.Journal(str(tmp_path / "log"))
    log.record("early")
    log.begin(numbers={"a": float("nan"), "b": -float("inf"), "c": 0.1, "d": 3, 4: True}, rest=[(1,), None, ROOT])
    line = json.loads((tmp_path / "log").read_text(), parse_constant=no_constant)
    assert line["numbers"] == {"a": None, "b": None, "c": 0.1, "d": 3, "4": True}
    assert line["rest"] == [[1], None, str(ROOT)]
