"""tools/engine/package.py: a user's module that is named like one of the project's is not taken for it."""

import os
import shutil
import subprocess
import sys

import pytest

from support import ROOT
from support.toolbox import TIMEOUT_S, assert_refused, run_here, run_tool

EXAMPLE = ROOT / "examples" / "census"
RUNS = "raise SystemExit('a file of the user is run')\n"
READER = "from census_reader import RecDataset\n"
OVERRIDES = ["runner.epochs=1", "runner.print_interval=100", "hyper_parameters.expert_num=2"]


@pytest.fixture
def census(tmp_path):
    """A package without wrappers of its own: examples/census."""
    folder = tmp_path / "package"
    folder.mkdir()
    for name in ("config.yaml", "census_reader.py"):
        shutil.copy(EXAMPLE / name, folder)
    (folder / "data").symlink_to(EXAMPLE / "data")
    return folder


def put(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(RUNS)
    return str(folder)


ON_PATH = ["net.py", "dygraph_model.py", "static_model.py", "engine.py", "census_reader.py"]


@pytest.mark.parametrize(
    "tool,name", [("trainer", "dselect_k_model.py"), ("static_trainer", "dselect_k_model/__init__.py")]
)
def test_modules_on_pythonpath_are_not_taken_for_ours(tool, name, census, tmp_path):
    path = put(tmp_path / "path", *ON_PATH, name)
    run = run_tool(tool, census / "config.yaml", *OVERRIDES, cwd=tmp_path, env={"PYTHONPATH": path})
    assert run.returncode == 0, run.stderr


BESIDE = ["tasks.py", "array_files.py", "tabular.py", "multiMNIST_reader.py", "net/a.txt", "dygraph_model/a.txt"]


@pytest.mark.parametrize("form", ["{}.py", "{}/__init__.py"])
def test_modules_beside_the_config_are_not_taken_for_ours(form, census, tmp_path):
    put(census, *BESIDE, form.format("dselect_k_model"), form.format("engine"))
    run = run_tool("trainer", census / "config.yaml", *OVERRIDES, cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    for name in ("dselect_k_model", "engine"):
        assert run.stderr.count(f"{census}: {name} here is not used") == 1, run.stderr
    assert run.stderr.count("here is not used") == 2


def test_users_can_import_modules_named_like_files_in_our_package(census, tmp_path):
    for name in ("tasks", "training"):
        (census / f"{name}.py").write_text("MINE = True\n")
    (census / "my_reader.py").write_text(f"import tasks, training\nassert tasks.MINE and training.MINE\n{READER}")
    config = [*OVERRIDES, "runner.train_reader_path=my_reader"]
    run = run_here("static_trainer", census / "config.yaml", *config, cwd=tmp_path)
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize(
    "files,outcome",
    [
        (["tabular.py"], "ours"),
        (["tabular/a.csv"], "ours"),
        (["tabular/reader.py"], "refused"),
        (["tabular/reader.py", "tabular/__init__.py"], "theirs"),
    ],
)
def test_a_reader_is_looked_for_beside_the_config_before_the_project(files, outcome, census, tmp_path):
    """Ours asks for a vocabulary, which is the message by which it is known here."""
    put(census, *files)
    if outcome == "theirs":
        (census / "tabular" / "__init__.py").write_text("")
        (census / "tabular" / "reader.py").write_text(READER)
    config = [*OVERRIDES, "runner.train_reader_path=tabular.reader"]
    run = run_here("trainer", census / "config.yaml", *config, cwd=tmp_path)
    if outcome == "theirs":
        assert run.returncode == 0, run.stderr
    elif outcome == "refused":
        assert_refused(run, census / "tabular" / "reader.py", "cannot be used", ROOT / "tabular" / "__init__.py")
    else:
        assert_refused(run, "runner.vocabulary")
    assert "a file of the user is run" not in run.stderr


def test_a_reader_named_like_a_library_module_that_is_in_use_is_refused(census, tmp_path):
    put(census, "queue.py")
    run = run_here("trainer", census / "config.yaml", "runner.train_reader_path=queue", cwd=tmp_path)
    assert_refused(run, census / "queue.py", "cannot be used", "queue is the name of")


def test_a_model_of_its_own_with_our_reader_keeps_its_net(tmp_path):
    folder = tmp_path / "price"
    shutil.copytree(ROOT / "tests" / "foreign" / "price", folder)
    (folder / "my_reader.py").write_text("from reader import RecDataset\nimport net\nassert 'price' in net.__file__\n")
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from engine.package import Package\n"
        "package = Package(sys.argv[2])\n"
        "for reader in ('my_reader', 'tabular.reader', 'my_reader'): package.find(reader, 'RecDataset', 'the reader')\n"
        "import net, tabular.reader, dselect_k_model as ours; print(net.__file__, ours.__file__)\n"
    )
    command = [sys.executable, "-c", code, str(ROOT / "tools"), str(folder)]
    environment = {**os.environ, "PYTHONPATH": put(tmp_path / "path", "net.py")}
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, env=environment)
    assert done.stdout.split() == [str(folder / "net.py"), str(ROOT / "dselect_k_model" / "__init__.py")], done.stderr
