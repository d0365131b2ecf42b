"""tools/engine/graphs/finite.py and the session: a step that is not finite ends the run or is undone, and is named."""

import pickle
import shutil
import sys

import numpy as np
import pytest

from engine import loop
from engine.checkpoints import manifests, weight_files
from engine.checkpoints.session import Session
from engine.errors import NotFinite
from engine.graphs import finite
from engine.meter import Meter
from support import ROOT, resuming
from support.toolbox import assert_refused, copy_model, opened, run_here, run_tool
from support.ways import make_batches

TOOLS = list(resuming.TOOLS.values())
OVERRIDES = [*resuming.OVERRIDES, "runner.epochs=1", "runner.shuffle=false"]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """(override of the data, the checkpoint of one epoch of the dynamic graph)."""
    folder = tmp_path_factory.mktemp("not_finite")
    data = resuming.make_data(str(folder / "data"))
    assert train("trainer", folder, data).returncode == 0
    return data, folder / "output" / "0"


def train(tool, cwd, *overrides):
    return run_here(tool, ROOT / "config.yaml", *OVERRIDES, *overrides, cwd=cwd)


def start_from(base, tmp_path, factors):
    """An override: start from the weights of ``base``, of which some are multiplied."""
    state = pickle.loads((base[1] / "rec.pdparams").read_bytes())  # with its table of names
    for name, factor in factors.items():
        state[name] = state[name] * np.float32(factor)
    (tmp_path / "init").mkdir()
    (tmp_path / "init" / "rec.pdparams").write_bytes(pickle.dumps(state))
    return f"runner.model_init_path={tmp_path / 'init'}"


# the second task's tower: its activations small, its weights so large that only a gradient overflows
STEEP = {f"towers.1.layers.{layer}.weight": 10.0**power for layer, power in ((0, -20), (2, 20), (4, 20))}
STEEP.update({f"towers.1.layers.{layer}.bias": 0.0 for layer in (0, 2)})
LOSS = {"towers.1.layers.4.bias": np.nan}


@pytest.mark.parametrize("tool", TOOLS)
@pytest.mark.parametrize(
    "factors,words",
    [
        (LOSS, ["loss, loss2 are not finite"]),
        (STEEP, ["towers.1.layers.0", "(task 2)", "gradient", "finite"]),
    ],
    ids=["loss", "gradient"],
)
def test_what_is_not_finite_is_named_and_no_checkpoint_is_lost(base, tmp_path, tool, factors, words):
    shutil.copytree(base[1], tmp_path / "output" / "0")
    process = train(tool, tmp_path, base[0], start_from(base, tmp_path, factors))
    assert_refused(process, "epoch 0, batch 0", *words)
    assert manifests.read(str(tmp_path / "output" / "0")) == manifests.read(str(base[1]))


@pytest.mark.parametrize("tool", TOOLS)
def test_steps_that_are_not_finite_are_undone_if_so_configured(base, tmp_path, tool):
    """All steps are broken, so the parameters end where they began. The limit is on steps in a row."""
    broken = start_from(base, tmp_path, STEEP)
    assert_refused(train(tool, tmp_path, base[0], broken, "runner.skip_not_finite=5"), "epoch 0, batch 5")
    process = train(tool, tmp_path, base[0], broken, "runner.skip_not_finite=6")
    assert process.returncode == 0, process.stderr
    assert process.stderr.count("The step is undone") == 6 and "batch_id" not in process.stderr
    began, ended = (weight_files.read_weights(str(tmp_path / name)).by_name for name in ("init", "output/0"))
    for name, value in began.items():
        np.testing.assert_array_equal(ended[name], value, err_msg=name)


CONSTANT = ["hyper_parameters.optimizer.schedule=constant", "hyper_parameters.optimizer.class=sgd"]
MOVING = {  # schedules that move with each step; Adam
    "dynamic": ["hyper_parameters.optimizer.schedule=one_cycle"],
    "static": ["hyper_parameters.optimizer.schedule=cosine", "hyper_parameters.optimizer.warmup_steps=3"],
}
BROKEN = [0, 2, 4, 5, 8]  # of nine batches: the first, one between sound ones, two in a row, the last


@pytest.mark.parametrize("graph", MOVING)
@pytest.mark.parametrize("moves", [True, False], ids=["moving", "constant"])
def test_an_undone_step_leaves_no_trace(tmp_path, rng, graph, moves):
    """In parameters, running statistics, moments, schedule, step counter, entropy ramp and metrics, to the bit."""
    overrides = MOVING[graph] if moves else CONSTANT
    batches = make_batches(rng, 9)
    for i in BROKEN:
        batches[i][0][0] = np.nan
    sound = [batch for i, batch in enumerate(batches) if i not in BROKEN]
    with_them, without = (trained(graph, overrides, tmp_path / name, of) for name, of in (("a", batches), ("b", sound)))
    assert not resuming.differences(with_them[0], without[0])
    assert with_them[1:] == without[1:] and len(sound) == with_them[3]


def trained(graph_name, overrides, cwd, batches):
    """(weights and optimizer state, metrics, position of the schedule, rows of result.npy) after an epoch."""
    overrides = [*OVERRIDES, *overrides, "runner.steps_per_epoch=9", "runner.strict=false", "runner.skip_not_finite=2"]
    overrides += ["runner.save_interval_steps=0", f"runner.model_save_path={cwd / 'output'}"]
    with opened(graph_name, "train", [*overrides, "runner.use_save_data=true"]) as (graph, config, settings):
        meter = Meter(graph_name, "train", 100, None, graph.values_at_end())
        with Session(graph, config, settings, meter) as session:
            loop.train(graph, lambda epoch, begin: iter(batches), session.first(), 1, meter, session)
        sound = len(batches) - sum(np.isnan(batch[0]).any() for batch in batches)
        rows = len(graph.saved_data) if graph_name == "static" else sound
    manifest = manifests.read(str(cwd / "output" / "0"))
    return resuming.state(cwd, 0), manifest["numbers"], manifest["schedule"], rows


@pytest.mark.skipif(sys.platform != "linux", reason="limits the memory of a process as Linux does")
@pytest.mark.parametrize("tool", TOOLS)
def test_a_step_that_runs_out_of_memory_is_named_and_no_checkpoint_is_lost(base, tmp_path, tool):
    copy_model(tmp_path)
    shutil.copy(ROOT / "config.yaml", tmp_path)
    (tmp_path / "limited_reader.py").write_text(
        "import pathlib, resource\n"
        "import multiMNIST_reader\n"
        "class RecDataset(multiMNIST_reader.RecDataset):\n"
        "    def gather(self, indices):\n"
        "        pages = int(pathlib.Path('/proc/self/statm').read_text().split()[0])\n"
        "        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (900 << 20), -1))\n"
        "        return super().gather(indices.repeat(3000))\n"
    )
    shutil.copytree(base[1], tmp_path / "output" / "0")
    overrides = [*resuming.OVERRIDES, base[0], "runner.train_reader_path=limited_reader"]
    process = run_tool(tool, tmp_path / "config.yaml", *overrides, cwd=tmp_path)
    assert_refused(process, "epoch 0, batch 0", "out of memory", "batch size")
    assert manifests.read(str(tmp_path / "output" / "0")) == manifests.read(str(base[1]))


def test_finite_arrays_pass_and_others_are_counted():
    large = np.full([4], 3e38, "float32")  # their sum is not finite, they are
    finite.check([("a", large), ("b", np.array(["text"])), ("c", np.array([1, 2])), ("d", np.zeros([0]))])
    wrong = [(name, np.array([0.0, np.inf, -np.inf])) for name in "vwxyz"]
    with pytest.raises(NotFinite, match="v, w, x and 2 more"):
        finite.check(wrong)
