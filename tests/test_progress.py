"""On a terminal a bar stands in place of the intervals' lines; in a file there are the lines, and nothing else."""

import logging
import os
import re
import subprocess
import sys

import pytest
from conftest import ROOT
from toolbox import TIMEOUT_S, assert_refused, run_here, small_data

from engine import bar, loop, progress
from engine.errors import UserError
from engine.meter import Meter, Step

LINE = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} - (INFO|WARNING) - (.*)")
KEYS = ["runner.epochs=2", "runner.print_interval=1", "runner.train_batch_size=16", "runner.to_static=false"]
KEYS += ["hyper_parameters.expert_num=4"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return small_data(tmp_path_factory.mktemp("data"))


def messages(stderr):
    """The log's messages without their times; every line must be one of the log."""
    found = [LINE.fullmatch(line) for line in stderr.splitlines()]
    assert all(found), stderr
    return [re.sub(r"(time:|took|cost:|ips:) [\d.]+", r"\1 T", match.group(2)) for match in found]


def screen(output):
    """What a terminal shows in the end of what was written to it: \\r goes back, other characters overwrite."""
    lines = []
    for text in output.split("\n"):
        line, place = [], 0
        for character in text:
            if character == "\r":
                place = 0
                continue
            line[place : place + 1] = character
            place += 1
        lines.append("".join(line).rstrip())
    return "\n".join(lines).rstrip()


def on_a_terminal(command, cwd):
    """(exit code, all that is written) of a process whose stderr is a terminal, 200 columns wide."""
    import fcntl
    import pty
    import struct
    import termios

    ours, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 200, 0, 0))
    env = {**os.environ, "TERM": "xterm", "TQDM_MININTERVAL": "0"}  # draws after each step
    env["GLOG_minloglevel"] = "2"  # Paddle's C++ code says nothing
    process = subprocess.Popen(command, cwd=cwd, stdin=its, stdout=its, stderr=its, env=env)
    os.close(its)
    parts = []
    try:
        while part := os.read(ours, 1 << 16):
            parts.append(part)
    except OSError:  # how Linux says that the other side is closed
        pass
    finally:
        os.close(ours)
    return process.wait(TIMEOUT_S), b"".join(parts).decode()


@pytest.mark.skipif(os.name != "posix", reason="there are no pseudo-terminals")
def test_a_terminal_shows_a_bar_and_keeps_the_other_lines(data, tmp_path):
    command = [sys.executable, str(ROOT / "tools" / "static_trainer.py"), "-m", str(ROOT / "config.yaml")]
    code, output = on_a_terminal([*command, "-o", *KEYS, *data], tmp_path)
    assert code == 0, output
    left = messages(screen(output))
    kept = [re.match(r"epoch: \d (done(?=.* epoch time: T s$)|task \d experts: )|Already save", line) for line in left]
    ends = ["done", "task 1 experts: ", "task 2 experts: "]
    wanted = [text for epoch in "01" for text in (*(f"epoch: {epoch} {end}" for end in ends), "Already save")]
    assert [found.group() for found in kept if found] == wanted and not any("batch_id" in line for line in left)
    drawn = re.findall(r"\r(epoch [01]: +\d+%\|[^\r]*?\| \d/4 \[[^\r]*?examples/s[^\r]*\])", output)
    assert len(drawn) >= 8 and all(re.search(r"experts_used 4, Accuracy1 .*, loss \d", each) for each in drawn[1:5])


def test_a_bar_replaces_the_intervals_lines_and_no_other(data, tmp_path):
    keys = [*KEYS, *data]
    plain = messages(run_here("trainer", ROOT / "config.yaml", *keys, cwd=tmp_path).stderr)
    shown = run_here("trainer", ROOT / "config.yaml", *keys, "runner.progress=true", cwd=tmp_path)
    wanted = [re.sub(" runner.progress=true", "", line) for line in plain if "batch_id" not in line]
    left = [re.sub(" runner.progress=true", "", line) for line in messages(screen(shown.stderr))]
    assert len(wanted) < len(plain) and left == wanted
    assert "epoch 1:" in shown.stderr


def test_no_terminal_no_bar(data, tmp_path):
    stderr = run_here("trainer", ROOT / "config.yaml", *KEYS, *data, cwd=tmp_path).stderr
    assert "\r" not in stderr and sum("ips: " in line for line in messages(stderr)) == 8


def test_a_reader_that_cannot_be_counted_has_a_bar_without_an_end(tmp_path):
    config = ROOT / "tests" / "foreign" / "stream" / "config.yaml"
    stderr = run_here("trainer", config, "runner.progress=true", cwd=tmp_path).stderr
    assert re.search(r"\repoch 0: 0 steps \[00:00, \? examples/s\]", stderr), stderr
    assert "%|" not in stderr and "?/" not in stderr


def test_a_resumed_epochs_bar_begins_where_it_was():
    with bar.show(10, "epoch 3", 4) as shown:
        clock = shown.start_t = shown.last_print_t = 100.0
        for _ in range(2):  # of 10 examples, at 0.5 s
            clock += 0.5
            shown._time = lambda now=clock: now
            shown.step(10)
        text = str(shown)
    assert re.search(r"epoch 3:  60%\|.*\| 6/10 \[00:01<00:02, 20 examples/s\]", text), text


def test_a_line_that_comes_meanwhile_stands_above_the_bar(capsys, monkeypatch):
    log = logging.getLogger("engine")
    monkeypatch.setattr(log, "handlers", [logging.StreamHandler()])
    monkeypatch.setattr(log, "propagate", False)
    with bar.show(10, "epoch 3", 0) as shown:
        shown.step(10)
        log.warning("out of order")
        shown.refresh()
        lines = screen(capsys.readouterr().err).splitlines()
    assert lines[0] == "out of order" and lines[1].startswith("epoch 3:  10%|") and len(lines) == 2
    assert len(log.handlers) == 1 and type(log.handlers[0]) is logging.StreamHandler


@pytest.mark.parametrize("begin", [0, 2])
def test_the_loop_says_where_an_epoch_begins(begin):
    opened = []

    class Graph:
        """Takes steps that give nothing."""

        def begin_epoch(self, counted):
            pass

        def train_step(self, batch):
            return Step({}, dict), 1

        def end_epoch(self):
            pass

        metrics = status = lambda self: {}

    class Session:
        """Saves nothing."""

        def nothing(self, *_):
            return False

        is_over = before_step = after_step = after_epoch = nothing

    def open_bar(title, first):
        opened.append((title, first))
        return bar.show(4, title, first)

    meter = Meter("static", "train", 1, open_bar=open_bar)
    batches = lambda epoch, first: iter([[1]] * (4 - first))  # noqa: E731 (a callback)
    loop.train(Graph(), batches, (1, begin, None, None), 3, meter, Session())
    assert opened == [("epoch 1", begin), ("epoch 2", 0)] and meter.bar is None


def test_without_tqdm_auto_writes_lines_and_true_is_refused(monkeypatch, data, tmp_path):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert progress.bars("auto", lambda: 3) is not None and progress.bars(False, lambda: 3) is None
    for name in ("engine.bar", "tqdm", "tqdm.contrib.logging"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delattr("engine.bar")
    assert progress.bars("auto", lambda: 3) is None
    with pytest.raises(UserError, match="pip install tqdm"):
        progress.bars(True, lambda: 3)
    process = run_here("trainer", ROOT / "config.yaml", *KEYS, *data, "runner.progress=true", cwd=tmp_path)
    assert_refused(process, "runner.progress", "pip install tqdm")
