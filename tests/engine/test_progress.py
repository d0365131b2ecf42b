"""tools/engine/progress.py: a bar on a terminal in place of the interval lines; in a file, lines and nothing else."""

import logging
import os
import re
import subprocess
import sys
import types

import pytest

from engine import loop, progress
from engine.errors import UserError
from engine.graphs.graph import Step
from engine.meter import Meter
from engine.processes import Alone
from support import ROOT
from support.toolbox import TIMEOUT_S, run_here, small_data

# how two lines of Paddle's own begin, where a user sets two threads
PADDLES = ("WARNING: OMP_NUM_THREADS", "PLEASE USE OMP_NUM_THREADS")
LINE = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} - (INFO|WARNING) - (.*)")
KEYS = ["runner.epochs=2", "runner.print_interval=1", "runner.train_batch_size=16", "runner.to_static=false"]
KEYS += ["hyper_parameters.expert_num=4"]


def messages(stderr):
    """The log's messages without times and commands; every line must be one of the log."""
    found = [LINE.fullmatch(line) for line in stderr.splitlines() if not line.startswith(PADDLES)]
    assert all(found), stderr
    texts = [re.sub(r"(time:|took|cost:|ips:) [\d.]+", r"\1 T", match.group(2)) for match in found]
    return [text for text in texts if not text.startswith("next: ")]


def screen(output):
    """What a terminal shows in the end: \\r goes back to the start of a line, other characters overwrite."""
    lines = []
    for text in output.split("\n"):
        line = []
        for part in text.split("\r"):
            line[: len(part)] = part
        lines.append("".join(line).rstrip())
    return "\n".join(lines).rstrip()


def on_a_terminal(command, cwd):
    """(exit code, all that is written) of a process whose stderr is a terminal, 200 columns wide."""
    import fcntl
    import pty
    import struct
    import termios

    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 200, 0, 0))
    env = {**os.environ, "TERM": "xterm", "TQDM_MININTERVAL": "0", "GLOG_minloglevel": "2"}  # draws after each step
    process = subprocess.Popen(command, cwd=cwd, stdin=theirs, stdout=theirs, stderr=theirs, env=env)
    os.close(theirs)
    parts = []
    try:
        while part := os.read(ours, 1 << 16):
            parts.append(part)
    except OSError:  # on Linux: the other side is closed
        pass
    finally:
        os.close(ours)
    return process.wait(TIMEOUT_S), b"".join(parts).decode()


@pytest.mark.skipif(os.name != "posix", reason="there are no pseudo-terminals")
def test_a_terminal_shows_a_bar_and_keeps_the_other_lines(tmp_path):
    command = [sys.executable, str(ROOT / "tools" / "static_trainer.py"), "-m", str(ROOT / "config.yaml")]
    code, output = on_a_terminal([*command, "-o", *KEYS, *small_data(tmp_path)], tmp_path)
    assert code == 0, output
    left = messages(screen(output))
    kept = [re.match(r"epoch: \d (done(?=.* epoch time: T s$)|task \d experts: )|Already save", line) for line in left]
    ends = ["done", "task 1 experts: ", "task 2 experts: "]
    wanted = [text for epoch in "01" for text in (*(f"epoch: {epoch} {end}" for end in ends), "Already save")]
    assert [found.group() for found in kept if found] == wanted and not any("batch_id" in line for line in left)
    drawn = re.findall(r"\r(epoch [01]: +\d+%\|[^\r]*?\| \d/4 \[[^\r]*?examples/s[^\r]*\])", output)
    assert len(drawn) >= 8 and all(re.search(r"experts_used 4, Accuracy1 .*, loss \d", each) for each in drawn[1:5])


def test_a_bar_replaces_the_interval_lines_and_no_other(toy):
    """Without a terminal there is no bar unless it is asked for."""
    plain, shown = (toy("trainer", "runner.epochs=2", *more).stderr for more in ([], ["runner.progress=true"]))
    assert "\r" not in plain and sum("ips: " in line for line in messages(plain)) == 10
    assert messages(screen(shown)) == [line for line in messages(plain) if "batch_id" not in line]
    assert "epoch 1:" in shown


def test_a_reader_that_cannot_be_counted_has_a_bar_without_an_end(tmp_path):
    config = ROOT / "tests" / "foreign" / "stream" / "config.yaml"
    stderr = run_here("trainer", config, "runner.progress=true", cwd=tmp_path).stderr
    assert re.search(r"\repoch 0: 0 steps \[00:00, \? examples/s\]", stderr), stderr
    assert "%|" not in stderr and "?/" not in stderr


def test_the_bar_of_a_resumed_epoch_begins_where_it_was_and_counts_examples():
    with progress.show(10, "epoch 3", 4) as bar:
        clock = bar.start_t = bar.last_print_t = 100.0
        for _ in range(2):  # of 10 examples, at 0.5 s
            clock += 0.5
            bar._time = lambda now=clock: now
            bar.step(10)
        text = str(bar)
    assert re.search(r"epoch 3:  60%\|.*\| 6/10 \[00:01<00:02, 20 examples/s\]", text), text


@pytest.mark.parametrize("begin", [0, 2])
def test_the_loop_gives_each_bar_its_first_step(begin):
    opened = []

    def open_bar(title, first):
        opened.append((title, first))
        return progress.show(4, title, first)

    nothing = lambda *_: {}  # noqa: E731
    graph = types.SimpleNamespace(
        train_step=lambda batch: (Step({}, dict), 1), **dict.fromkeys(["begin_epoch", "end_epoch", "metrics"], nothing),
        status=nothing, processes=Alone(),
    )  # fmt: skip
    hooks = ["is_over", "before_batch", "before_step", "after_step", "after_epoch"]
    session = types.SimpleNamespace(**dict.fromkeys(hooks, nothing))
    meter = Meter("static", "train", 1, open_bar=open_bar)
    loop.train(graph, lambda epoch, at: iter([[1]] * (4 - at)), (1, begin, None, None), 3, meter, session)
    assert opened == [("epoch 1", begin), ("epoch 2", 0)] and meter.bar is None


def test_a_log_line_goes_above_the_bar(capsys, monkeypatch):
    log = logging.getLogger("engine")
    monkeypatch.setattr(log, "handlers", [logging.StreamHandler()])
    monkeypatch.setattr(log, "propagate", False)
    with progress.show(10, "epoch 3", 0) as bar:
        bar.step(10)
        log.warning("out of order")
        bar.refresh()
        lines = screen(capsys.readouterr().err).splitlines()
    assert lines[0] == "out of order" and lines[1].startswith("epoch 3:  10%|") and len(lines) == 2
    assert len(log.handlers) == 1 and type(log.handlers[0]) is logging.StreamHandler


def test_without_tqdm_auto_writes_lines_and_true_is_refused(monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert progress.bars("auto", lambda: 3) is not None and progress.bars(False, lambda: 3) is None
    for name in ("tqdm", "tqdm.contrib", "tqdm.contrib.logging"):
        monkeypatch.setitem(sys.modules, name, None)
    assert progress.bars("auto", lambda: 3) is None
    with pytest.raises(UserError, match="runner.progress.*pip install tqdm"):
        progress.bars(True, lambda: 3)
