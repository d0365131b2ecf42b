"""What `pip install .` gives: net.py as the module dselect_k, typed, and nothing else."""

import inspect
import subprocess
import sys
import zipfile

import net
from support import ROOT


def test_the_wheel_has_the_module_and_the_mark_of_types_alone(tmp_path):
    """The module is net.py, which imports nothing else of ours (test_structure.py), and which tests/docs runs."""
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", str(tmp_path)]
    built = subprocess.run([*command, str(ROOT)], capture_output=True, text=True)
    assert built.returncode == 0, f"{built.stdout}\n{built.stderr}\nhatchling is among what `make env` installs"
    (path,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(path) as wheel:
        content = {name: wheel.read(name) for name in wheel.namelist()}
    (metadata,) = (text.decode() for name, text in content.items() if name.endswith(".dist-info/METADATA"))
    files = {name: text for name, text in content.items() if ".dist-info/" not in name}
    source = {"dselect_k/__init__.py": "net.py", "dselect_k/py.typed": "py.typed"}
    assert files == {name: (ROOT / path).read_bytes() for name, path in source.items()}
    needed = [line for line in metadata.splitlines() if line.startswith("Requires-Dist")]
    assert [line.split()[1].split("<")[0] for line in needed if "extra ==" not in line] == ["numpy", "paddlepaddle"]


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
