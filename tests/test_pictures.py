"""Pictures: of gates that settle (docs/plot_gates.py), and of predictions (data/show.py)."""

import json
import re
import sys

import numpy as np
import paddle
import plot_gates
import pytest
import show
from conftest import ROOT
from toolbox import run_here


def written(path, *lines, tail=""):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + tail)
    return str(path)


def interval(epoch, batch, epoch_examples, **weights):
    where = {"epoch": epoch, "batch": batch, "epoch_examples": epoch_examples}
    return {"event": "interval", **where, "status": {"task 1 experts": weights}}


LOST, FIRST = interval(0, 1, 5, **{"0": 1.0}), interval(0, 1, 10, **{"0": 0.7, "3": 0.3})
EPOCH = {"event": "epoch", "epoch": 0, "examples": 25}
AGAIN, LATER = interval(1, 0, 5, **{"0": 1.0}), interval(1, 0, 5, **{"3": 1.0})  # a step before a kill, and after


def test_the_last_run_is_taken_with_its_resumed_parts(tmp_path):
    starts = [{"event": "start", "run": run} for run in ("a", "b", "b")]
    evaluation = {"event": "start", "tool": "infer"}
    parts = [starts[0], LOST, starts[1], FIRST, EPOCH, AGAIN, evaluation, LOST, starts[2], LATER]
    path = written(tmp_path / "log", *parts, tail='{"ev')
    seen, weights = plot_gates.weights_over_time(plot_gates.last_run(path))
    assert seen == [10, 30] and weights == {"task 1 experts": {"0": [0.7, 0.0], "3": [0.3, 1.0]}}


NO_LOGS = [[{"event": "start", "tool": "infer"}], [{"event": "start", "run": "a"}], [7], [{"a": 1}]]


@pytest.mark.parametrize("lines", NO_LOGS)
def test_a_log_without_gates_is_refused(lines, tmp_path, monkeypatch, capsys):
    pytest.importorskip("matplotlib")
    path = written(tmp_path / "log", *lines)
    monkeypatch.setattr(sys, "argv", ["plot_gates.py", path, "--out", str(tmp_path / "picture.png")])
    with pytest.raises(SystemExit) as end:
        plot_gates.main()
    assert end.value.code == 2 and capsys.readouterr().err.startswith(f"error: {path}: ")
    assert not (tmp_path / "picture.png").exists()


def test_an_expert_in_use_has_its_name_on_the_picture():
    pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure

    figure = Figure()
    plot_gates.draw(figure, [FIRST, LATER])
    (axes,) = figure.axes
    assert [list(line.get_ydata()) for line in axes.lines] == [[0.7, 0.0], [0.3, 1.0]]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["expert 3"]


def test_wrong_predictions_are_red(tmp_path):
    pytest.importorskip("matplotlib")
    from matplotlib import image

    images, labels = np.zeros([2, 36, 36], "uint8"), np.array([[1, 2], [3, 4]])
    text = (
        "index,label1,prediction1,probability1,label2,prediction2,probability2\n0,1,1,0.9,2,2,0.9\n1,3,3,0.9,4,{},0.9\n"
    )
    reds = {}
    for last in (4, 5):
        (tmp_path / "predictions.csv").write_text(text.format(last))
        pairs = show.read_predictions(tmp_path / "predictions.csv")
        assert pairs == [(1, 2), (3, last)]
        show.contact_sheet(images, labels, tmp_path / "sheet.png", pairs)
        picture = image.imread(tmp_path / "sheet.png")[..., :3]
        reds[last] = int((picture @ np.array([1.0, -1.0, -1.0]) > 0.5).sum())
    assert reds[4] == 0 and reds[5] > 5


def test_a_file_of_no_predictions_is_refused(tmp_path):
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="other.csv.*prediction1"):
        show.read_predictions(tmp_path / "other.csv")


def test_the_notebook_is_small_and_shows_no_error():
    """Its outputs are of the last `make notebook`; CI runs it from top to bottom."""
    path = ROOT / "notebook.ipynb"
    cells = [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert path.stat().st_size < 1_000_000 and all(cell["execution_count"] for cell in cells)
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 4
    assert not [output for output in outputs if output["output_type"] == "error"]


@pytest.mark.skipif(paddle.__version__.startswith("2."), reason="Paddle 3 exported it, in a form that 2.6 cannot read")
def test_the_committed_model_reads_the_sample(tmp_path):
    """As `make predict` does; it was trained on other images."""
    overrides = [f"runner.export_path={ROOT / 'data' / 'model'}"]
    run = run_here("predict", ROOT / "config.yaml", *overrides, cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    first, second = re.search(r"done, Accuracy1: (\S+), Accuracy2: (\S+),", run.stderr).groups()
    assert float(first) > 0.9 and float(second) > 0.9
    assert sum(path.stat().st_size for path in (ROOT / "data" / "model").iterdir()) < 1_000_000
    pairs = show.read_predictions(tmp_path / "predictions.csv")
    assert len(pairs) == show.ROWS * show.COLUMNS
