"""What `pip install .` gives: net.py as the module dselect_k, typed, and nothing else."""

import inspect
import os
import subprocess
import sys
import zipfile

import pytest

import net
from support import ROOT
from support.docs import assert_trained, program_of_ones_own


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel's content, unpacked."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", str(folder), str(ROOT)]
    built = subprocess.run(command, capture_output=True, text=True)
    assert built.returncode == 0, f"{built.stdout}\n{built.stderr}\nhatchling is among what `make env` installs"
    (path,) = folder.glob("*.whl")
    with zipfile.ZipFile(path) as file:
        file.extractall(folder / "unpacked")
    return folder / "unpacked"


def test_the_wheel_has_the_module_and_the_mark_of_types_alone(wheel):
    files = {path.relative_to(wheel).as_posix() for path in wheel.rglob("*") if path.is_file()}
    assert {file for file in files if ".dist-info/" not in file} == {"dselect_k/__init__.py", "dselect_k/py.typed"}
    assert (wheel / "dselect_k" / "__init__.py").read_bytes() == (ROOT / "net.py").read_bytes()
    (metadata,) = wheel.glob("*.dist-info/METADATA")
    needed = [line for line in metadata.read_text(encoding="utf-8").splitlines() if line.startswith("Requires-Dist")]
    assert [line.split()[1].split("<")[0] for line in needed if "extra ==" not in line] == ["numpy", "paddlepaddle"]


def test_the_guides_program_runs_with_the_installed_module(wheel, tmp_path):
    program = program_of_ones_own().replace("from net import", "from dselect_k import")
    program += "import dselect_k\nprint(dselect_k.__file__)\n"
    run = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(wheel)},
        capture_output=True, text=True,
    )  # fmt: skip
    assert_trained(run)
    assert run.stdout.splitlines()[-1] == str(wheel / "dselect_k" / "__init__.py")


def public_callables():
    """Name -> function, for all that net.py defines and gives: functions, constructors, methods of its own."""
    for name, it in vars(net).items():
        if name.startswith("_") or getattr(it, "__module__", None) != "net":
            continue
        if inspect.isfunction(it):
            yield name, it
        elif inspect.isclass(it) and not issubclass(it, tuple):
            for part, method in vars(it).items():
                method = getattr(method, "__func__", getattr(method, "fget", method))
                if inspect.isfunction(method) and (part == "__init__" or part[0] != "_") and part != "extra_repr":
                    yield f"{name}.{part}", method


def test_every_public_signature_has_its_types():
    found = dict(public_callables())
    assert {"smooth_step", "DSelectKGate.__init__", "SparseMixture.mix", "Gate.penalties"} <= set(found)
    for name, function in found.items():
        signature = inspect.signature(function)
        named = [p for p in signature.parameters.values() if p.name not in ("self", "cls")]
        assert all(p.annotation is not p.empty for p in named), name
        assert signature.return_annotation is not inspect.Signature.empty, name
