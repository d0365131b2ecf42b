"""Who may import whom, as far as .importlinter cannot say it: it knows packages, and these are single files."""

import ast

import pytest

from support import ROOT

MODEL = {path.stem for path in ROOT.glob("*.py")} | {"dselect_k_model"}
ALLOWED = {path.name: {"paddle", "numpy", "yaml", *MODEL} for path in ROOT.glob("*.py")}
ALLOWED["net.py"] = {"paddle", "numpy"}  # it can be copied
ALLOWED.update((f"tools/{path.name}", {"engine"}) for path in (ROOT / "tools").glob("*.py"))
STANDARD = {"__future__", "bisect", "collections", "contextlib", "dataclasses", "functools", "glob", "inspect"}
STANDARD |= {"itertools", "json", "logging", "math", "numbers", "os", "re", "types", "typing", "warnings"}


@pytest.mark.parametrize("file", ALLOWED)
def test_a_single_file_imports_only_what_it_may(file):
    found = set()
    for node in ast.walk(ast.parse((ROOT / file).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or "").partition(".")[0] if node.level == 0 else "a relative import")
    assert found <= ALLOWED[file] | STANDARD
