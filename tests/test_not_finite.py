"""A loss or gradient that is not finite ends the training, or is undone; epoch, step and task are named."""

import pickle
import shutil

import kill_resume
import numpy as np
import pytest
from conftest import ROOT
from toolbox import assert_refused, run_tool

from engine import checkpoint, finite
from engine.errors import NotFinite

TOOLS = list(kill_resume.TOOLS.values())
SAVED = {"trainer": "rec.pdparams", "static_trainer": "rec_static.pdparams"}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """(override of the data, the output folder of one epoch, trained by the dynamic graph)."""
    folder = tmp_path_factory.mktemp("not_finite")
    data = kill_resume.make_data(str(folder / "data"))
    assert train("trainer", folder, data).returncode == 0
    return data, folder / "output"


def train(tool, cwd, *overrides):
    fixed = [*kill_resume.OVERRIDES, "runner.epochs=1", "runner.shuffle=false"]
    return run_tool(tool, ROOT / "config.yaml", *fixed, *overrides, cwd=cwd)


def start_from(base, tmp_path, changes):
    """An override: start from the weights of ``base``, of which some are multiplied by a number."""
    state = pickle.loads((base[1] / "0" / "rec.pdparams").read_bytes())  # with its table of names
    for name, value in changes.items():
        state[name] = state[name] * np.float32(value)
    (tmp_path / "init").mkdir()
    (tmp_path / "init" / "rec.pdparams").write_bytes(pickle.dumps(state))
    return f"runner.model_init_path={tmp_path / 'init'}"


# the second task's tower: its activations small, its weights so large that only a gradient overflows
STEEP = {f"towers.1.layers.{layer}.weight": 10.0**power for layer, power in ((0, -20), (2, 20), (4, 20))}
STEEP.update({f"towers.1.layers.{layer}.bias": 0.0 for layer in (0, 2)})


@pytest.mark.parametrize("tool", TOOLS)
def test_a_task_whose_loss_is_not_finite_is_named_and_nothing_saved_is_lost(base, tmp_path, tool):
    shutil.copytree(base[1] / "0", tmp_path / "output" / "0")
    before = (tmp_path / "output" / "0" / "rec.pdparams").read_bytes()
    broken = start_from(base, tmp_path, {"towers.1.layers.4.bias": np.nan})
    process = train(tool, tmp_path, base[0], broken)
    assert_refused(process, "epoch 0, batch 0", "loss, loss2 is not finite")
    assert (tmp_path / "output" / "0" / "rec.pdparams").read_bytes() == before


@pytest.mark.parametrize("tool", TOOLS)
def test_a_gradient_that_is_not_finite_is_named_with_its_task(base, tmp_path, tool):
    process = train(tool, tmp_path, base[0], start_from(base, tmp_path, STEEP))
    assert_refused(process, "epoch 0, batch 0", "towers.1.layers.0", "(task 2)", "gradient", "finite")


@pytest.mark.parametrize("tool", TOOLS)
def test_steps_that_are_not_finite_are_undone_if_so_configured(base, tmp_path, tool):
    """All steps are broken, so the parameters end where they began, and the limit is on steps in a row."""
    broken = start_from(base, tmp_path, STEEP)
    assert_refused(train(tool, tmp_path, base[0], broken, "runner.skip_not_finite=5"), "epoch 0, batch 5")
    process = train(tool, tmp_path, base[0], broken, "runner.skip_not_finite=6")
    assert process.returncode == 0, process.stderr
    assert process.stderr.count("The step is undone") == 6 and "batch_id" not in process.stderr
    began = checkpoint.read_weights(str(tmp_path / "init")).by_name
    ended = checkpoint.read_weights(str(tmp_path / "output" / "0")).by_name
    for name, value in began.items():
        np.testing.assert_array_equal(ended[name], value, err_msg=name)


@pytest.mark.parametrize("tool", TOOLS)
def test_one_step_is_undone_and_the_others_are_made(base, tmp_path, tool):
    """A reader with one broken batch: all goes on as if the batch had not been there."""
    for name in ("net.py", "dygraph_model.py", "static_model.py", "multiMNIST_reader.py", "config.yaml"):
        shutil.copy(ROOT / name, tmp_path)
    for name, at in (("broken", 40), ("sound", -1)):
        (tmp_path / f"{name}_reader.py").write_text(
            "import multiMNIST_reader\n"
            "class RecDataset(multiMNIST_reader.RecDataset):\n"
            "    def __getitem__(self, i):\n"
            "        image, *labels = super().__getitem__(i)\n"
            f"        return [image * float('nan') if i == {at} else image, *labels]\n"
        )
    overrides = [*kill_resume.OVERRIDES, "runner.epochs=1", "runner.shuffle=false", base[0]]
    overrides += ["runner.skip_not_finite=1", "hyper_parameters.optimizer.schedule=constant"]
    logs = {}
    for name in ("broken", "sound"):
        (tmp_path / name).mkdir()
        process = run_tool(
            tool, tmp_path / "config.yaml", *overrides, f"runner.train_reader_path={name}_reader", cwd=tmp_path / name
        )
        assert process.returncode == 0, process.stderr
        logs[name] = [line.split("batch_id")[1] for line in process.stderr.splitlines() if "batch_id" in line]
    assert [line.split(",")[0] for line in logs["broken"]] == [": 0", ": 1", ": 3", ": 4", ": 5"]
    before_it = [line.split("avg_reader")[0] for line in logs["broken"][:2]]
    assert before_it == [line.split("avg_reader")[0] for line in logs["sound"][:2]]
    weights = checkpoint.read_weights(str(tmp_path / "broken" / "output" / "0")).by_name
    assert all(np.isfinite(value).all() for value in weights.values())


def test_what_is_finite_passes_and_what_is_not_is_counted():
    large = np.full([4], 3e38, "float32")  # their sum is not finite, they are
    finite.check([("a", large), ("b", np.array(["text"])), ("c", np.array([1, 2])), ("d", np.zeros([0]))])
    wrong = [(name, np.array([0.0, np.inf, -np.inf])) for name in "vwxyz"]
    with pytest.raises(NotFinite, match="v, w, x and 2 more"):
        finite.check(wrong)
