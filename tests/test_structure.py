"""Who imports whom: the model never imports the tools, the tools know no model, nothing is cyclic."""

import ast
import subprocess
import sys

import pytest
from conftest import ROOT

MODEL = ["net", "dygraph_model", "static_model", "multiMNIST_reader", "array_files"]
LIBRARIES = {"paddle", "numpy", "yaml"}
# what every run of a tool takes together
OF_A_RUN = ["errors", "keys", "package", "device", "batches", "checkpoint", "visual", "meter", "loop"]
# file of tools/engine -> those it may import from there
ENGINE = {
    "errors": set(),
    "process": set(),
    "finite": {"errors"},
    "keys": {"errors"},
    "config": {"errors", "keys"},
    "package": {"errors"},
    "device": {"errors"},
    "batches": {"errors"},
    "checkpoint": {"errors", "array_files", "VERSION"},
    "visual": {"errors"},
    "meter": set(),
    "loop": {"errors"},
    "export": {"errors", "checkpoint"},
    "to_onnx": {"errors", "export"},
    "tables": set(),
    "predict": {*OF_A_RUN, "export", "tables"},
    "session": {"errors", "checkpoint", "device"},
    "dynamic": {"errors", "checkpoint", "finite", "meter"},
    "executor": set(),
    "static": {"errors", "checkpoint", "executor", "export", "finite", "meter"},
    "run": {*OF_A_RUN, "config", "session", "dynamic", "static", "executor", "export", "to_onnx"},
    "cli": {"errors", "config", "keys", "process", "run", "predict"},
    "__init__": set(),
}
TOOLS = ["trainer", "infer", "static_trainer", "static_infer", "export", "predict"]


def imports(path):
    """Dotted names that a file imports, at its top or within functions."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            if node.module == "engine":
                yield from (f"engine.{alias.name}" for alias in node.names)
            else:
                yield node.module


def is_standard(name):
    if sys.version_info >= (3, 10):
        return name in sys.stdlib_module_names
    # Python 3.9 has no list
    older = "codecs dataclasses difflib gzip io itertools logging math os pickle pickletools re struct zipfile"
    return name in older.split()


@pytest.mark.parametrize("name", MODEL)
def test_model_files_import_libraries_and_each_other_only(name):
    for module in imports(ROOT / f"{name}.py"):
        top = module.split(".")[0]
        assert top in LIBRARIES or top in MODEL or is_standard(top), f"{name}.py imports {module}"


def test_only_the_wrappers_import_net_and_nobody_imports_the_reader():
    for path in [*ROOT.glob("*.py"), *ROOT.glob("tools/**/*.py")]:
        names = set(imports(path))
        assert "multiMNIST_reader" not in names, path
        if path.stem not in ("dygraph_model", "static_model"):
            assert "net" not in names, path


@pytest.mark.parametrize("path", sorted((ROOT / "tools").glob("**/*.py")), ids=lambda p: p.stem)
def test_tools_import_along_the_arrows_and_no_model(path):
    mine = {module[len("engine.") :] for module in imports(path) if module.startswith("engine.")}
    if path.parent.name == "engine":
        assert mine == ENGINE[path.stem]
    else:
        assert path.stem in TOOLS and mine == {"cli"}
    assert not set(imports(path)) & set(MODEL)


def test_arrays_are_read_without_paddle_or_the_model():
    assert all(module == "numpy" or is_standard(module) for module in imports(ROOT / "array_files.py"))


def test_a_packages_own_array_files_is_neither_taken_nor_hidden(tmp_path):
    (tmp_path / "array_files.py").write_text("MINE = True")
    code = (
        "import sys; sys.path[:0] = sys.argv[1:]; from engine.checkpoint import loads; import array_files;"
        "print(array_files.MINE, loads(b'I3\\n.'))"
    )
    command = [sys.executable, "-c", code, str(tmp_path), str(ROOT / "tools")]
    assert subprocess.run(command, capture_output=True, text=True).stdout == "True 3\n"


def test_the_loop_imports_no_paddle():
    assert not any(m.startswith("paddle") for m in imports(ROOT / "tools" / "engine" / "loop.py"))
