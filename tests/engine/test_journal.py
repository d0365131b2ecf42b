"""tools/engine/journal.py: each line of ``runner.log_json`` is JSON, with the log's metrics in full."""

import json
import os
import re

import numpy as np
import pytest

from engine import journal
from engine.errors import UserError
from support import ROOT
from support.toolbox import assert_refused, run_here, small_data

CONFIG = ROOT / "config.yaml"
KEYS = ["runner.epochs=2", "runner.print_interval=2", "runner.train_batch_size=16", "runner.to_static=false"]
KEYS += ["hyper_parameters.expert_num=2", "hyper_parameters.expert_size=8", "runner.log_json=logs/run.json"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return small_data(tmp_path_factory.mktemp("data"))


def no_constant(name):
    raise AssertionError(f"{name} is no JSON")


def read(path):
    """The lines of the log, which must be JSON without NaN and Infinity."""
    return [json.loads(line, parse_constant=no_constant) for line in path.read_text().split("\n") if line]


def events(lines):
    return [line["event"] for line in lines]


def test_every_tool_records_its_run(data, tmp_path):
    keys = [*KEYS, *data, f"runner.validation_data_dir={data[1].split('=')[1]}", "runner.keep_best=loss"]
    keys += ["runner.infer_load_path=output", "runner.infer_end_epoch=2"]
    stderr = run_here("static_trainer", CONFIG, *keys, cwd=tmp_path).stderr
    found = read(tmp_path / "logs" / "run.json")
    check_training(found, stderr, tmp_path)
    for tool, wanted in (
        ("static_infer", ["interval", "epoch", "interval", "epoch"]), ("export", []), ("predict", ["interval", "epoch"])
    ):  # fmt: skip
        run = run_here(tool, CONFIG, *keys, cwd=tmp_path)
        before, found = len(found), read(tmp_path / "logs" / "run.json")
        assert run.returncode == 0 and events(found[before:]) == ["start", *wanted, "end"], run.stderr
        assert found[before]["tool"] == tool and found[-1]["outcome"] == "done"


def check_training(found, stderr, folder):
    """The lines of a training run of two epochs, against its log and its manifests."""
    of_epoch = ["interval", "interval", "epoch", "validation", "save"]
    assert events(found) == ["start", *of_epoch, *of_epoch, "end"]
    start, end = found[0], found[-1]
    manifests = [json.loads((folder / "output" / str(n) / "manifest.json").read_text()) for n in (0, 1)]
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
        assert sum(line["status"]["task 1 experts"].values()) == pytest.approx(1.0)
    best = min((0, 1), key=lambda n: manifests[n]["validation"]["loss"])
    assert (end["outcome"], end["best_by"], end["epoch"], end["epochs"]) == ("done", "loss", best, 2)
    assert end["numbers"] == manifests[best]["validation"]


def test_a_failed_run_ends_with_its_error(data, tmp_path):
    keys = ["hyper_parameters.optimizer.learning_rate=1e30", "hyper_parameters.optimizer.schedule=constant"]
    assert_refused(run_here("trainer", CONFIG, *KEYS, *data, *keys, cwd=tmp_path), "not finite")
    end = read(tmp_path / "logs" / "run.json")[-1]
    assert (end["event"], end["outcome"]) == ("end", "error") and "not finite" in end["error"]


@pytest.mark.parametrize("tail", ["", '{"event": "inter'], ids=["whole", "incomplete"])
def test_a_later_run_appends_on_a_new_line(tmp_path, tail):
    path = tmp_path / "logs" / "run.json"
    for tool in ("trainer", "infer"):
        log = journal.Journal(str(path))
        log.begin(tool=tool)
        log.record("end")
        log.close()
        log.record("after it is closed")
        if tool == "trainer":
            path.write_text(path.read_text() + tail)
    lines = path.read_text().splitlines()
    assert [text for text in lines if text == tail] == [tail] * bool(tail)
    assert events(json.loads(text) for text in lines if text != tail) == ["start", "end"] * 2


def test_a_file_that_is_no_log_is_refused_before_the_first_step_and_left_alone(data, tmp_path):
    (tmp_path / "file").write_text("runner:\n")
    process = run_here("trainer", CONFIG, *KEYS, *data, "runner.log_json=file", cwd=tmp_path)
    assert_refused(process, "runner.log_json", "file")
    assert "batch_id" not in process.stderr and (tmp_path / "file").read_text() == "runner:\n"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no device that is always full")
def test_a_full_disk_is_an_error_at_the_start_and_one_warning_later(tmp_path, caplog):
    with pytest.raises(UserError, match="runner.log_json: /dev/full cannot be written"):
        journal.Journal("/dev/full").begin()
    log = journal.Journal(str(tmp_path / "log"))
    log.begin(tool="trainer")
    log.file.close()
    log.file = open("/dev/full", "ab", buffering=0)
    log.record("epoch", epoch=0)
    log.record("epoch", epoch=1)
    assert ["cannot be written any more" in message for message in caplog.messages] == [True]


def test_numbers_that_are_not_finite_are_null_and_other_types_are_text(tmp_path):
    log = journal.Journal(str(tmp_path / "log"))
    log.record("early")
    log.begin(numbers={"a": float("nan"), "b": -float("inf"), "c": 0.1, "d": 3, 4: True}, rest=[(1,), None, ROOT])
    (line,) = read(tmp_path / "log")
    assert line["numbers"] == {"a": None, "b": None, "c": 0.1, "d": 3, "4": True}
    assert line["rest"] == [[1], None, str(ROOT)]
