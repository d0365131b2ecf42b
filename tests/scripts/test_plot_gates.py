"""scripts/plot_gates.py: pictures of gates that settle."""

import json

import plot_gates
import pytest

from support.toolbox import assert_refused, run_script


def written(path, *lines, tail=""):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + tail)
    return str(path)


def interval(epoch, batch, epoch_examples, **weights):
    where = {"epoch": epoch, "batch": batch, "epoch_examples": epoch_examples}
    return {"event": "interval", **where, "status": {"task 1 experts": weights}}


LOST, FIRST = interval(0, 1, 5, **{"0": 1.0}), interval(0, 1, 10, **{"0": 0.7, "3": 0.3})
EPOCH = {"event": "epoch", "epoch": 0, "examples": 25}
AGAIN, LATER = interval(1, 0, 5, **{"0": 1.0}), interval(1, 0, 5, **{"3": 1.0})  # a step before a kill, and after


def test_the_last_run_is_drawn_with_its_resumed_parts(tmp_path):
    starts = [{"event": "start", "run": run} for run in ("a", "b", "b")]
    evaluation = {"event": "start", "tool": "infer"}
    parts = [starts[0], LOST, starts[1], FIRST, EPOCH, AGAIN, evaluation, LOST, starts[2], LATER]
    path = written(tmp_path / "log", *parts, tail='{"ev')
    seen, weights = plot_gates.weights_over_time(plot_gates.last_run(path))
    assert seen == [10, 30] and weights == {"task 1 experts": {"0": [0.7, 0.0], "3": [0.3, 1.0]}}


@pytest.mark.parametrize(
    "lines", [[{"event": "start", "tool": "infer"}], [{"event": "start", "run": "a"}], [7], [{"a": 1}]]
)
def test_a_log_without_gates_is_refused(lines, tmp_path):
    pytest.importorskip("matplotlib")
    path = written(tmp_path / "log", *lines)
    assert_refused(run_script(plot_gates, path, "--out", tmp_path / "picture.png"), f"error: {path}: ")
    assert not (tmp_path / "picture.png").exists()


def test_the_picture_names_the_experts_in_use():
    pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure

    figure = Figure()
    plot_gates.draw(figure, [FIRST, LATER])
    (axes,) = figure.axes
    assert [list(line.get_ydata()) for line in axes.lines] == [[0.7, 0.0], [0.3, 1.0]]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["expert 3"]
