"""The table of tools, and the command line that starts one. A new tool is one script in tools/ and one row here.

For instance tools/count.py::

    from engine.cli import main

    def run(tool, config, settings, report):
        from engine.batches import find_reader, open_dataset
        from engine.package import Package

        reader = find_reader(Package(config["config_abs_dir"]), settings, "train")
        print(len(open_dataset(reader, settings, config, "train")), "examples")

    if __name__ == "__main__":
        main("count")

and its row::

        Tool("count", "dynamic", "train", "count:run", "Count the training examples."),

The row names the graph, the job whose keys are required, and the function that does the work. An existing job may do:
see jobs.py.
"""

import os
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass, field

from engine.keys import RUNNER_KEYS

SCRIPTS = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
# Label in the banner at the beginning of the log -> runner key
_DEVICE = {"use_gpu": "use_gpu", "use_xpu": "use_xpu", "use_npu": "use_npu", "use_visual": "use_visual"}
_STATIC_DEVICE = {label: key for label, key in _DEVICE.items() if key != "use_npu"}
_TRAINING = {key: key for key in ("train_batch_size", "train_data_dir", "epochs", "print_interval", "model_save_path")}
_EVALUATION = {
    "infer_batch_size": "infer_batch_size", "test_data_dir": "test_data_dir", "start_epoch": "infer_start_epoch",
    "end_epoch": "infer_end_epoch", "print_interval": "print_interval", "model_load_path": "infer_load_path",
}  # fmt: skip


@dataclass(frozen=True)
class Tool:
    """One command line tool."""

    name: str  # of the script: tools/<name>.py
    graph: str  # what computes: "dynamic", "static" or "exported"
    job: str  # "train", "infer" or "export": decides which keys are required
    run: str  # "module:function"; called with (tool, config, settings, report) once Paddle may be imported
    does: str  # for --help
    next: str = ""  # name of the tool that usually follows
    spreads: bool = True  # several processes may share the work
    banner: dict[str, str] = field(default_factory=dict)  # label -> runner key: shown at the beginning of the log


TOOLS = {
    tool.name: tool
    for tool in (
        Tool(
            "trainer", "dynamic", "train", "engine.jobs:train", "Train on the dynamic graph.",
            next="infer", banner={**_DEVICE, **_TRAINING},
        ),
        Tool(
            "static_trainer", "static", "train", "engine.jobs:train", "Train on the static graph.",
            next="static_infer", banner={**_STATIC_DEVICE, **_TRAINING},
        ),
        Tool(
            "infer", "dynamic", "infer", "engine.jobs:infer", "Evaluate checkpoints on the dynamic graph.",
            next="export", banner={**_DEVICE, **_EVALUATION},
        ),
        Tool(
            "static_infer", "static", "infer", "engine.jobs:infer", "Evaluate checkpoints on the static graph.",
            next="export", banner={**_STATIC_DEVICE, **_EVALUATION},
        ),
        Tool(
            "export", "static", "export", "engine.jobs:export", "Export a checkpoint for serving.",
            next="predict", spreads=False,
        ),
        Tool("predict", "exported", "infer", "engine.jobs:predict", "Run an exported model over the test data."),
    )
}  # fmt: skip


def command_line(tool, config_path, overrides, **changes):
    """The command that starts a tool, as it must be typed in the working folder.

    Args:
        tool: the Tool.
        config_path: of the YAML file.
        overrides: texts KEY=VALUE of this run; those that only training reads are dropped if the tool does not train.
        changes: further ``runner.*`` keys, without the prefix.
    """
    given = dict(text.split("=", 1) for text in overrides)
    if tool.job != "train":
        training = {f"runner.{name}" for name, key in RUNNER_KEYS.items() if key.job == "train"}
        given = {key: value for key, value in given.items() if key not in training}
    given.update((f"runner.{name}", value) for name, value in changes.items())
    words = [_python(), _relative(os.path.join(SCRIPTS, f"{tool.name}.py")), "-m", config_path]
    words += ["-o"] * bool(given) + [f"{key}={value}" for key, value in given.items()]
    return subprocess.list2cmdline(words) if os.name == "nt" else shlex.join(words)


def _python():
    """The shortest command that starts this interpreter."""
    for name in ("python", "python3"):
        found = shutil.which(name)
        if found and os.path.abspath(found) == os.path.abspath(sys.executable):
            return name
    path = _relative(sys.executable)
    return path if os.path.isabs(path) else os.path.join(os.curdir, path)  # a shell looks for bare names on PATH


def _relative(path):
    """The path relative to the working folder, if it is below it."""
    here = os.path.join(os.getcwd(), "")
    return path[len(here) :] if path.startswith(here) else path
