"""tools/plot.py: pictures of trainings."""

import json

import plot
import pytest

from engine import pictures
from support.toolbox import assert_refused, run_script


def written(path, *lines, tail=""):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + tail)
    return str(path)


def interval(epoch, batch, epoch_examples, **weights):
    where = {"epoch": epoch, "batch": batch, "epoch_examples": epoch_examples}
    return {"event": "interval", **where, "status": {"task 1 experts": weights}}


LOST, FIRST = interval(0, 1, 5, **{"0": 1.0}), interval(0, 1, 10, **{"0": 0.7, "3": 0.3})
EPOCH = {"event": "epoch", "epoch": 0, "examples": 25, "numbers": {"loss": 2.0, "Accuracy": None}}
AGAIN, LATER = interval(1, 0, 5, **{"0": 1.0}), interval(1, 0, 5, **{"3": 1.0})  # a step before a kill, and after


def test_the_last_training_is_read_with_its_resumed_parts(tmp_path):
    starts = [{"event": "start", "run": run} for run in ("a", "b", "b")]
    evaluation = {"event": "start", "tool": "infer"}
    parts = [starts[0], LOST, starts[1], FIRST, EPOCH, AGAIN, evaluation, LOST, starts[2], LATER]
    path = written(tmp_path / "log", *parts, tail='{"ev')
    seen, weights = pictures.weights_over_time(pictures.read(path))
    assert seen == [10, 30] and weights == {"task 1 experts": {"0": [0.7, 0.0], "3": [0.3, 1.0]}}


@pytest.mark.parametrize(
    "lines", [[{"event": "start", "tool": "infer"}], [{"event": "start", "run": "a"}], [7], [{"a": 1}]]
)
@pytest.mark.parametrize("kind", ["gates", "experts", "curves"])
def test_a_log_without_what_is_to_be_drawn_is_refused(kind, lines, tmp_path):
    pytest.importorskip("matplotlib")
    path = written(tmp_path / "log", *lines)
    assert_refused(run_script(plot, kind, path, "--out", tmp_path / "picture.png"), f"error: {path}: ")
    assert not (tmp_path / "picture.png").exists()


def test_a_metric_that_a_log_lacks_and_a_second_log_of_gates_are_refused(tmp_path):
    pytest.importorskip("matplotlib")
    path = written(tmp_path / "log", {"event": "start", "run": "a"}, FIRST, EPOCH)
    run = run_script(plot, "curves", path, "--metric", "auc", "--out", tmp_path / "picture.png")
    assert_refused(run, f"error: {path}: --metric: 'auc' is not in a log. It has: Accuracy, loss.")
    assert_refused(run_script(plot, "gates", path, path), "gates are drawn of one log, but 2 are given")


@pytest.fixture
def figure():
    pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure

    return Figure()


def test_the_picture_of_gates_names_the_experts_in_use(figure):
    pictures.draw_gates(figure, pictures.Training({}, [FIRST, LATER]))
    (axes,) = figure.axes
    assert [list(line.get_ydata()) for line in axes.lines] == [[0.7, 0.0], [0.3, 1.0]]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["expert 3"]


def test_the_picture_of_experts_has_the_last_weights(figure):
    pictures.draw_experts(figure, pictures.Training({}, [LATER, FIRST]))
    axes = figure.axes[0]
    assert axes.images[0].get_array().tolist() == [[0.0, 1.0]], "by epoch, not by line"
    assert [text.get_text() for text in axes.texts] == ["1.00"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0", "3"]


def test_pictures_of_many_tasks_have_room_for_them(figure):
    status = {f"task {i} experts": {"0": i / 10, "3": 1 - i / 10} for i in range(30)}
    pictures.draw_gates(figure, pictures.Training({}, [{**FIRST, "status": status}]))
    titles = [axes.get_title() for axes in figure.axes if axes.get_visible()]
    assert titles == [*status] and len(figure.axes) == 32, "eight rows of four"
    heights = [figure.get_figheight()]
    figure.clear()
    pictures.draw_experts(figure, pictures.Training({}, [{**FIRST, "status": status}]))
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()][:2] == ["task 0", "task 1"]
    assert [*heights, figure.get_figheight()] == pytest.approx([8 * 3.2, 1 + 0.2 * 30])


def training(gate, seed, *losses, event="validation"):
    config = {"hyper_parameters.gate": gate, "runner.seed": seed, "runner.log_json": f"{gate}-{seed}.json"}
    lines = [{"event": event, "epoch": e, "numbers": {"loss": loss}} for e, loss in enumerate(losses)]
    return pictures.Training(config, [EPOCH, *lines])


def test_curves_of_a_setting_are_one_line_and_a_band(figure):
    """The lines by NumPy's mean, least and greatest, of the epochs that all runs of the setting have."""
    runs = [training("softmax", 1, 4.0, 3.0), training("top_k", 1, 5.0), training("softmax", 2, 2.0, 2.5, 1.0)]
    pictures.draw_curves(figure, runs, ["loss"])
    (axes,) = figure.axes
    assert [line.get_label() for line in axes.lines] == ["gate=softmax (2 runs)", "gate=top_k"]
    assert list(axes.lines[0].get_xdata()) == [1, 2] and list(axes.lines[0].get_ydata()) == [3.0, 2.75]
    band = axes.collections[0].get_paths()[0].vertices
    assert {tuple(point) for point in band} == {(1, 4), (1, 2), (2, 3), (2, 2.5)}


def test_a_training_without_validation_has_the_curve_of_its_epochs():
    assert pictures.curve(training("softmax", 1), "loss") == {1: 2.0}
    assert pictures.curve(training("softmax", 1, 7.0), "loss") == {1: 7.0}, "the validation's, if there is one"
    assert pictures.curve(training("softmax", 1), "Accuracy") == {}, "not defined in that epoch"
