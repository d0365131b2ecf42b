"""What README.md shows and says of files, run and compared."""

import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys

import paddle
import pytest
from conftest import ROOT
from toolbox import assert_refused, run_here, small_data

README = (ROOT / "README.md").read_text(encoding="utf-8")


def section(title):
    """The text under a heading, up to the next one."""
    return re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", README, re.MULTILINE | re.DOTALL).group(1)


def program_of_ones_own():
    """The program in the section on networks of one's own, as written."""
    (program,) = re.findall(r"^```python\n(.*?)^```$", section("In a network of your own"), re.MULTILINE | re.DOTALL)
    return program


def assert_trained(run):
    """The program has printed a low loss and experts left out, for each graph."""
    assert run.returncode == 0, run.stderr
    found = re.findall(r"^(dynamic|static): loss (\S+), (\d+) of 8 experts$", run.stdout, re.MULTILINE)
    assert [graph for graph, *_ in found] == ["dynamic", "static"], run.stdout
    for _, loss, used in found:
        assert float(loss) < 0.3 and 1 <= int(used) <= 4  # from about 4, and 8 experts


def test_the_program_of_ones_own_trains_in_both_graphs():
    run = subprocess.run([sys.executable, "-c", program_of_ones_own()], cwd=ROOT, capture_output=True, text=True)
    assert_trained(run)


ONE_STEP = {
    "dynamic": """
model = DygraphModel()
network = model.create_model(config)
optimizer = model.create_optimizer(network, config)
network.train()
metrics, names = model.create_metrics()
loss, metrics, _ = model.train_forward(network, metrics, batch, config)
loss.backward()
optimizer.step()
network.eval()
metrics, printed = model.infer_forward(network, metrics, batch, config)
print("done", float(loss), float(printed["loss"]))
""",
    "static": """
batch = [item.numpy() for item in batch]
paddle.enable_static()
model = StaticModel(config)
feeds = list(model.create_feeds())
fetches = model.net(feeds)
model.create_optimizer()
executor = paddle.static.Executor(paddle.CPUPlace())
executor.run(paddle.static.default_startup_program())
feed = {v.name: item for v, item in zip(feeds, batch)}
losses = [float(executor.run(feed=feed, fetch_list=[fetches["loss"]])[0]) for _ in range(2)]
print("done", *losses)
""",
}
START = """
import glob, os
import paddle, yaml
from dygraph_model import DygraphModel
from static_model import StaticModel
import multiMNIST_reader

def flat(node, prefix=""):
    for key, value in node.items():
        yield from flat(value, prefix + key + ".") if isinstance(value, dict) else [(prefix + key, value)]

config = {**dict(flat(yaml.safe_load(open("config.yaml")))), "config_abs_dir": os.getcwd()}
paddle.set_device("cpu")
files = glob.glob(os.path.join(config["runner.train_data_dir"], "*"))
dataset = multiMNIST_reader.RecDataset(files, config=config)
batch = next(iter(paddle.io.DataLoader(dataset, batch_size=16)))
"""


@pytest.fixture(scope="module")
def paddlerecs_folder(tmp_path_factory):
    """An empty folder, with what the README says to copy."""
    (words,) = re.findall(r"Copy `([^`]*)` to", section("In a PaddleRec tree"))
    folder = tmp_path_factory.mktemp("models") / "dselect_k"
    folder.mkdir()
    for pattern in words.split():
        found = sorted(ROOT.glob(pattern.rstrip("/")))
        assert found, pattern
        for path in found:
            if path.is_dir():
                shutil.copytree(path, folder / path.name, ignore=shutil.ignore_patterns("full", "__pycache__"))
            else:
                shutil.copy(path, folder)
    return folder


@pytest.mark.parametrize("graph", ONE_STEP)
def test_the_files_for_a_paddlerec_tree_are_enough(graph, paddlerecs_folder):
    env = {**os.environ, "FLAGS_enable_pir_api": "0"}  # as PaddleRec's tools set it
    command = [sys.executable, "-c", START + ONE_STEP[graph]]
    run = subprocess.run(command, cwd=paddlerecs_folder, env=env, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    done, first, second = run.stdout.split()[-3:]
    assert done == "done" and 0 < float(second) and float(first) < 20


MISTAKES = {
    "runner.test_data_dir: ... cannot be read": ("infer", ["runner.test_data_dir=nowhere"]),
    "hyper_parameters.gama is not a key": ("trainer", ["hyper_parameters.gama=2"]),
    "runner.use_gpu is true": ("trainer", ["runner.use_gpu=true"]),
    "no full batch": ("trainer", ["runner.train_batch_size=5000"]),
    "output has none of the epochs": ("infer", []),
    "these are the weights of": ("infer", ["runner.infer_load_path=trained", "hyper_parameters.gamma=2"]),
    "epoch 0, batch 1": ("trainer", ["hyper_parameters.optimizer.learning_rate=1e30", "runner.to_static=false",
                                     "hyper_parameters.optimizer.schedule=constant"]),
    "exported/signature.json": ("predict", []),
}  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a save in ``trained``."""
    folder = tmp_path_factory.mktemp("mistakes")
    data, _ = small_data(folder)
    keys = [data, "runner.model_save_path=trained", "runner.epochs=1", "runner.to_static=false"]
    assert run_here("trainer", ROOT / "config.yaml", *keys, cwd=folder).returncode == 0
    return folder


def test_the_messages_of_mistakes_are_as_shown(trained):
    shown = re.findall(r"^\| `(.*?)` \|", section("When something goes wrong"), re.MULTILINE)
    assert len(shown) == len(MISTAKES)
    for message, (beginning, (tool, overrides)) in zip(shown, MISTAKES.items()):
        assert message.startswith(beginning)
        assert_refused(run_here(tool, ROOT / "config.yaml", *overrides, cwd=trained), *message.split(" ... "))


def without_programs(page):
    return re.sub(r"^```.*?^```$", "", page, flags=re.MULTILINE | re.DOTALL)


def commands(page):
    """Every command in a block of a page, in order, without its remark."""
    return re.findall(r"^    ((?:make|python|pip) .*?)(?:  +#.*)?$", without_programs(page), re.MULTILINE)


def test_every_command_runs(tmp_path, monkeypatch, capsys):
    """As written but for small data and one epoch; of what downloads or trains for long, just the options."""
    pytest.importorskip("matplotlib")
    short = [*small_data(tmp_path / "data"), "runner.epochs=1", "runner.infer_end_epoch=1", "runner.to_static=false"]
    short += ["runner.train_batch_size=16", "runner.infer_batch_size=50"]
    shutil.copytree(ROOT / "data" / "model", tmp_path / "data" / "model")
    monkeypatch.chdir(tmp_path)
    is_paddle_2 = paddle.__version__.startswith("2.")
    for command in commands(README):
        program, script, *arguments = shlex.split(command)
        if program == "pip" or (is_paddle_2 and ("data/model" in command or "predictions.png" in command)):
            continue  # the model in data/model needs Paddle 3, as the README says
        if program == "make":
            done = subprocess.run(["make", "-n", script, *arguments], cwd=ROOT, capture_output=True, text=True)
            assert done.returncode == 0, f"{command}\n{done.stderr}"
        elif script.startswith("tools/"):
            _, config, *overrides = [argument for argument in arguments if argument != "-o"]
            run = run_here(script[len("tools/") : -len(".py")], ROOT / config, *short, *overrides, cwd=tmp_path)
            assert run.returncode == 0, f"{command}\n{run.stderr}"
        elif script in ("data/make_multi_mnist.py", "experiments/run.py"):
            monkeypatch.setattr(sys, "argv", [script, "--help"])
            with pytest.raises(SystemExit):
                runpy.run_path(str(ROOT / script), run_name="__main__")
            known = capsys.readouterr().out
            assert all(argument in known for argument in arguments if argument.startswith("-")), command
        else:
            given = [str(ROOT / argument) if argument.endswith(".yaml") else argument for argument in arguments]
            monkeypatch.setattr(sys, "argv", [script, *given])
            runpy.run_path(str(ROOT / script), run_name="__main__")
    assert (tmp_path / "gates.png").exists() and (tmp_path / "predictions.csv").exists()
    assert (tmp_path / "predictions.png").exists() or is_paddle_2


def test_the_tree_names_every_file_of_the_package():
    tree = section("The tree")
    names = [path.name for pattern in ("*.py", "*.yaml", "tools/*.py", "docs/*.md") for path in ROOT.glob(pattern)]
    assert "net.py" in names and [name for name in names if name not in tree] == []


def test_every_link_leads_to_a_file():
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", without_programs(README)) if "://" not in link]
    assert links and [link for link in links if not (ROOT / link).exists()] == []


CHINESE = (ROOT / "README.zh-CN.md").read_text(encoding="utf-8")


def outline(text):
    """What both languages must share: sections, programs, commands, files of the tree, links, figures of tables."""
    text = re.sub(r"<!-- speed.*?speed ends -->", "", text, flags=re.DOTALL)  # the Chinese page points to these
    lines = without_programs(text).splitlines()
    prose = " ".join(line for line in lines if not line.startswith("    "))
    spans = {" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose)}
    links = {link.replace("/en/", "/") for link in re.findall(r"\]\(([^)#]+)\)", prose)}
    return {
        "sections": sum(line.startswith("## ") for line in lines),
        "programs": re.findall(r"^```.*?^```$", text, re.MULTILINE | re.DOTALL),
        "commands": commands(text),
        "files": [line.split()[0] for line in lines if re.match(r" {4,8}[\w/]+(\.\w+|/) ", line)],
        "figures": re.findall(r"0\.\d{4}", prose),
        "code": sorted(span for span in spans if re.search(r"[._/=]", span) and "TORCH_PYTHON" not in span),
        "links": sorted(links - {"README.md", "README.zh-CN.md"}),
    }


@pytest.mark.parametrize("part", list(outline("")))
def test_the_chinese_readme_has_what_the_english_one_has(part):
    english, chinese = outline(README)[part], outline(CHINESE)[part]
    assert english and chinese == english
