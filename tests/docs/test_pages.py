"""All pages: their links and paths exist, their commands run, and what they show is what the tools print."""

import os
import re
import shlex
import shutil
import subprocess
import sys

import paddle
import pytest

from support import ROOT
from support.docs import FENCED, assert_trained, indented_commands_in, program_of_ones_own, programs_in, read, section
from support.toolbox import assert_refused, run_here, small_data

PAGES = [
    path.relative_to(ROOT).as_posix()
    for pattern in ("*.md", "docs/*.md", "data/*.md", "examples/*/*.md")
    for path in sorted(ROOT.glob(pattern))
]
TRANSLATED = {
    "README.zh-CN.md": "README.md",
    "docs/guide.zh-CN.md": "docs/guide.md",
    "docs/results.zh-CN.md": "docs/results.md",
    "docs/scaling.zh-CN.md": "docs/scaling.md",
}
FOLDERS = "docs|tools|tests|scripts|support|benchmarks|experiments|examples|data|dselect_k_model|tabular"


def anchors_of(page):
    """The anchors of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)$", FENCED.sub("", page), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("name", PAGES)
def test_every_link_leads_to_a_file_and_a_heading_of_it(name):
    for link in re.findall(r"\]\(([^)]+)\)", FENCED.sub("", read(name))):
        if "://" not in link:
            path, _, anchor = link.partition("#")
            target = (ROOT / name).parent / path if path else ROOT / name
            assert target.exists(), link
            assert not anchor or anchor in anchors_of(target.read_text(encoding="utf-8")), link


@pytest.mark.parametrize("name", PAGES)
def test_every_path_of_the_project_exists(name):
    """In code spans, commands and trees, but for the data that scripts make."""
    paths = re.findall(rf"(?:`|python |^    )((?:{FOLDERS})/[\w./-]*\w)", read(name), re.MULTILINE)
    made = ("data/full", "data/mnist", "examples/census/data/full")
    here = (ROOT, (ROOT / name).parent)
    assert [path for path in paths if not path.startswith(made) and not any((at / path).exists() for at in here)] == []


@pytest.mark.parametrize("name", TRANSLATED)
def test_a_translation_shows_commands_and_programs_of_the_original(name):
    """Those are run by other tests."""
    original, translation = read(TRANSLATED[name]), read(name)
    assert set(indented_commands_in(translation)) <= set(indented_commands_in(original))
    assert set(programs_in(translation)) <= set(programs_in(original))


@pytest.mark.parametrize("name", PAGES)
def test_every_target_of_make_exists(name):
    for command in indented_commands_in(read(name)):
        if command.startswith("make "):
            done = subprocess.run(["make", "-n", *shlex.split(command)[1:]], cwd=ROOT, capture_output=True, text=True)
            assert done.returncode == 0, f"{command}\n{done.stderr}"


@pytest.mark.parametrize("name", ["docs/guide.md", "README.md", "docs/results.md", "docs/checkpoints.md"])
def test_every_command_runs(name, tmp_path):
    """As written but for small data, two experts and one epoch; of what downloads or runs for long, just the options.

    Commands of the guide run once.
    """
    pytest.importorskip("matplotlib")
    short = [*small_data(tmp_path / "data"), "runner.epochs=1", "runner.infer_end_epoch=1", "runner.to_static=false"]
    short += ["runner.train_batch_size=16", "runner.infer_batch_size=50", "hyper_parameters.expert_num=2"]
    shutil.copytree(ROOT / "data" / "model", tmp_path / "data" / "model")
    of_guide = indented_commands_in(read("docs/guide.md"))
    for command in indented_commands_in(read(name)):
        program, script, *arguments = shlex.split(command)
        if program != "python" or (command in of_guide and name != "docs/guide.md"):
            continue
        if paddle.__version__.startswith("2.") and ("data/model" in command or "predictions.png" in command):
            continue  # the model in data/model needs Paddle 3, as the README says
        if script.startswith("tools/") and "-m" in arguments:
            _, config, *overrides = [argument for argument in arguments if argument != "-o"]
            done = run_here(script[len("tools/") : -len(".py")], ROOT / config, *short, *overrides, cwd=tmp_path)
            assert done.returncode == 0, f"{command}\n{done.stderr}"
            continue
        long = script.startswith(("data/make_", "experiments/run", "experiments/time_to_accuracy", "tests/stress/"))
        given = ["--help"] if long else [str(ROOT / each) if each.endswith(".yaml") else each for each in arguments]
        done = subprocess.run([sys.executable, ROOT / script, *given], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, f"{command}\n{done.stderr}"
        assert not long or all(each in done.stdout for each in arguments if each.startswith("-")), command


def test_the_program_of_ones_own_trains_in_both_graphs():
    command = [sys.executable, "-c", program_of_ones_own()]
    assert_trained(subprocess.run(command, cwd=ROOT, capture_output=True, text=True))


# ------------------------------------------------------------------------------- what the tools print


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(A folder with a run in it, the log of a run without and of one with validation)."""
    folder = tmp_path_factory.mktemp("trained")
    keys = [*small_data(folder), "runner.epochs=1", "runner.to_static=false", "runner.train_batch_size=16"]
    log = ""
    for more in ([], [f"runner.validation_data_dir={folder / 'test'}"]):
        done = run_here("trainer", ROOT / "config.yaml", *keys, *more, cwd=folder)
        assert done.returncode == 0, done.stderr
        log += done.stderr
    return folder, log


MESSAGES = re.findall(r"^\| `(.*?)` \| `(.*?)` \|", read("docs/messages.md"), re.MULTILINE)


@pytest.mark.parametrize("message,command", MESSAGES, ids=[command for _, command in MESSAGES])
def test_a_message_is_what_its_example_prints(message, command, trained):
    script, *arguments = shlex.split(command)
    config = arguments[1] if arguments[:1] == ["-m"] else ROOT / "config.yaml"
    overrides = ["runner.to_static=false", *(arguments[1:] if arguments[:1] == ["-o"] else [])]
    assert_refused(run_here(script[: -len(".py")], config, *overrides, cwd=trained[0]), *message.split(" ... "))


def test_the_chinese_guide_shows_messages_of_that_page():
    shown = re.findall(r"^\| `(.*?)` \|", section(read("docs/guide.zh-CN.md"), "出错时"), re.MULTILINE)
    assert shown and set(shown) <= {message for message, _ in MESSAGES}


@pytest.mark.parametrize(
    "name,titles", [("guide", ("4. Read the log", "5. Validate")), ("guide.zh-CN", ("4. 看日志", "5. 验证"))]
)
def test_the_guides_lines_of_the_log_are_what_a_run_prints(name, titles, trained):
    """Word by word; figures differ."""
    text = "".join(section(read(f"docs/{name}.md"), title) for title in titles)
    for line in re.findall(r"^    (\w.*)$", text, re.MULTILINE):
        words = re.findall(r"[A-Za-z_]{2,}", line.replace("python tools/", ""))
        assert re.search(".*".join(words), trained[1]), line


# ----------------------------------------------------------------------------------- a PaddleRec tree

ONE_STEP = """
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
print(float(loss), float(printed["loss"]))

batch = [item.numpy() for item in batch]
paddle.enable_static()
model = StaticModel(config)
feeds = list(model.create_feeds())
fetches = model.net(feeds)
model.create_optimizer()
executor = paddle.static.Executor(paddle.CPUPlace())
executor.run(paddle.static.default_startup_program())
feed = {v.name: item for v, item in zip(feeds, batch)}
for _ in range(2):
    print(float(executor.run(feed=feed, fetch_list=[fetches["loss"]])[0]))
"""


def test_the_files_for_a_paddlerec_tree_are_enough(tmp_path):
    """A step in each graph, and an evaluation."""
    (patterns,) = re.findall(r"Copy `([^`]*)` to", read("README.md"))
    for pattern in patterns.split():
        found = sorted(ROOT.glob(pattern.rstrip("/")))
        assert found, pattern
        for path in found:
            if path.is_dir():
                shutil.copytree(path, tmp_path / path.name, ignore=shutil.ignore_patterns("full", "__pycache__"))
            else:
                shutil.copy(path, tmp_path)
    env = {**os.environ, "FLAGS_enable_pir_api": "0"}  # as PaddleRec's tools set it
    command = [sys.executable, "-c", ONE_STEP]
    process = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    losses = [float(text) for text in process.stdout.split()[-4:]]
    assert all(0 < loss < 20 for loss in losses)
