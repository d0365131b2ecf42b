"""data/show.py: the contact sheet of a folder, and of predictions."""

import re

import numpy as np
import paddle
import pytest
import show

from support import ROOT
from support.toolbox import assert_refused, run_here, run_script


def test_a_folder_is_counted_and_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    result = run_script(show, ROOT / "data" / "test", "--out", tmp_path / "sheet.png")
    assert result.returncode == 0, result.stderr
    assert "1000 examples" in result.stdout and "label 2: 0: 96" in result.stdout
    from PIL import Image

    sheet = np.asarray(Image.open(tmp_path / "sheet.png").convert("L"))
    assert min(sheet.shape) > 300 and 0.1 < (sheet < 50).mean() < 0.9


def test_memory_mapped_parts_are_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    for i in range(2):
        np.save(tmp_path / f"images_{i}.npy", np.zeros([3, 36, 36], np.uint8))
        np.save(tmp_path / f"labels_{i}.npy", np.zeros([3, 2], np.uint8))
    result = run_script(show, tmp_path, "--out", tmp_path / "sheet.png")
    assert result.returncode == 0 and (tmp_path / "sheet.png").exists(), result.stderr


def test_a_folder_without_data_is_refused(tmp_path):
    assert_refused(run_script(show, tmp_path), tmp_path)


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
