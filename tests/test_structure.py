"""Who may import whom: rules, not today's list of files; and each rule finds an import planted against it."""

import ast
import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig

import pytest
from conftest import ROOT

LIBRARIES = {"paddle", "numpy", "yaml"}
EXTRAS = {"pyarrow"}  # of pyproject.toml, for a reader: imported in a function, for who uses another has none
ARRAYS = "array_files"  # beside the model; the engine has it as engine.array_files
# may import anything; model and tools import none
ASIDE = ("tests", "tests/stress", "benchmarks", "docs", "data", "examples/census", "experiments")


class Tree:
    """The Python files of the project and what each imports, at its top or within functions.

    Args:
        root: folder of the project.
    """

    def __init__(self, root):
        of_model = (*root.glob("*.py"), *root.glob("tabular/*.py"))
        self.model = {_dotted(path.relative_to(root)): path for path in of_model}
        self.entries = sorted((root / "tools").glob("*.py"))
        engine = (root / "tools" / "engine").rglob("*.py")
        self.engine = {_dotted(path.relative_to(root / "tools")): path for path in engine}
        self.aside = {path.stem for folder in ASIDE for path in [root / folder, *(root / folder).glob("*.py")]}
        self.readers = {name for name in self.model if name.endswith("_reader") or name == "tabular"}
        self.imports = {path: _imports(path) for path in (*self.model.values(), *self.entries, *self.engine.values())}
        self.at_top = {path: _imports(path, at_top=True) for path in self.model.values()}
        self.graph = {name: self._engine_imports(path) for name, path in self.engine.items()}

    def _engine_imports(self, path):
        """Modules of the engine that a file imports: ``from engine import x`` is engine.x, if there is one."""
        found = set()
        for module, name in self.imports[path]:
            whole = f"{module}.{name}"
            found |= {whole if whole in self.engine else module} & set(self.engine)
        return found

    def _beside_the_model(self, path):
        """Modules of the model's folder that a file imports as engine.x, but for the one meant to be."""
        named = {part for module, name in self.imports[path] for part in (module, f"{module}.{name}")}
        return {name[len("engine.") :] for name in named if name.startswith("engine.")} - {ARRAYS}

    def violations(self):
        """A line for each import against the rules."""
        for path, imports in self.imports.items():
            tops = {module.split(".")[0] for module, _ in imports}
            for rule, wrong in (
                ("relative import", tops & {""}),
                ("a reader, which the config names", (tops - {path.parent.name}) & self.readers),
                ("of a folder beside", tops & self.aside),
                *self._rules_of(path, tops),
            ):
                if wrong:
                    yield f"{path.name}: {rule}: {', '.join(sorted(wrong))}"
        for cycle in self._cycles():
            yield f"cycle: {' -> '.join(cycle)}"
        for name in sorted(set(self.engine) - self._reached()):
            yield f"{name}: no tool reaches it"

    def _rules_of(self, path, tops):
        if path in self.model.values():
            own = {name for name in self.model if name != "net"} if path.stem == "net" else set()
            others = {top for top in tops if not is_standard(top)} - LIBRARIES - EXTRAS - set(self.model)
            yield "an extra that all would need", {module.split(".")[0] for module, _ in self.at_top[path]} & EXTRAS
            yield "neither library nor model", others
            yield "net stands alone", tops & own
            if path.stem == ARRAYS:
                yield "arrays are read without paddle", tops & {"paddle", "yaml"}
        else:
            yield "tools know no model", (tops | self._beside_the_model(path)) & set(self.model)
        if path in self.entries:
            named = {module if module != "engine" else f"{module}.{name}" for module, name in self.imports[path]}
            yield "an entry file imports engine.cli alone", named - {"engine.cli"}
        if path in self.engine.values() and path.stem == "loop":
            yield "the loop knows no arrays", tops & LIBRARIES

    def _cycles(self):
        """Each module that can reach itself, with the way."""
        for start in sorted(self.graph):
            ways, seen = [[start]], set()
            while ways:
                way = ways.pop()
                for name in sorted(self.graph[way[-1]]):
                    if name == start:
                        yield [*way, start]
                        ways = []
                        break
                    if name not in seen:
                        seen.add(name)
                        ways.append([*way, name])

    def _reached(self):
        """The engine's modules that the entry files import, directly or not, with their packages."""
        reached, left = set(), [name for path in self.entries for name in self._engine_imports(path)]
        while left:
            name = left.pop()
            if name in self.engine and name not in reached:
                reached.add(name)
                left += [*self.graph[name], name.rpartition(".")[0]]
        return reached


def _dotted(path):
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imports(path, at_top=False):
    """Pairs (module, name): ``from a.b import c`` is (a.b, c), ``import a.b`` is (a.b, ""); relative: ("", name).

    Args:
        at_top: leave out those within functions.
    """
    found, left = set(), [ast.parse(path.read_text(encoding="utf-8"))]
    while left:
        node = left.pop()
        if not (at_top and isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))):
            left += ast.iter_child_nodes(node)
        if isinstance(node, ast.Import):
            found |= {(alias.name, "") for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {("" if node.level else node.module, alias.name) for alias in node.names}
    return found


def is_standard(name):
    """Whether a module is Python's own: built in, or in the folder of its library."""
    spec = importlib.util.find_spec(name) if name else None
    if spec is None or spec.origin in ("built-in", "frozen"):
        return spec is not None
    library, place = os.path.realpath(sysconfig.get_paths()["stdlib"]), os.path.realpath(spec.origin or "")
    return place.startswith(library + os.sep) and "site-packages" not in place


def test_the_tree_keeps_the_rules():
    tree = Tree(ROOT)
    assert {"net", "dygraph_model", "static_model"} <= set(tree.model) and len(tree.entries) >= 6
    assert tree.readers and "engine.cli" in tree.engine and tree.aside, "nothing would be looked at"
    assert list(tree.violations()) == []


PLANTED = {  # file, line in it, words of the violation
    "model, another library": ("dygraph_model.py", "import pandas", "pandas"),
    "model, the tools": ("static_model.py", "from engine import errors", "engine"),
    "model, the tests": ("dygraph_model.py", "def f():\n    import oracles", "oracles"),
    "model, the reader": ("static_model.py", "import multiMNIST_reader", "a reader"),
    "model, an extra at its top": ("tabular/files.py", "if True:\n    import pyarrow.csv", "an extra"),
    "net, a wrapper": ("net.py", "def f():\n    import dygraph_model", "net stands alone"),
    "tool, the model": ("tools/engine/deep/inner.py", "import net", "tools know no model"),
    "tool, the model as the engine's": ("tools/engine/deep/inner.py", "from engine import net", "tools know no model"),
    "arrays, paddle": ("array_files.py", "def f():\n    import paddle", "without paddle"),
    "tool, the tests": ("tools/engine/deep/inner.py", "from stress import x", "inner.py: of a folder beside"),
    "tool, data": ("tools/engine/deep/inner.py", "import mnist_files", "of a folder beside"),
    "relative": ("tools/engine/deep/inner.py", "from . import other", "relative"),
    "entry, more than the command line": ("tools/infer.py", "from engine import errors", "engine.errors"),
    "entry, a library": ("tools/infer.py", "import numpy", "numpy"),
    "loop": ("tools/engine/loop.py", "def f():\n    import paddle", "the loop"),
    "cycle of two, in a function": (
        "tools/engine/errors.py",
        "def f():\n    from engine.cli import x",
        "engine.errors",
    ),
    "cycle through a sub-package": ("tools/engine/errors.py", "import engine.deep.inner", "engine.deep.inner"),
    "cycle through the package": ("tools/engine/__init__.py", "from engine import cli", "engine.cli"),
    "dead": ("tools/engine/deep/dead.py", "", "engine.deep.dead: no tool reaches it"),
    "dead pair": ("tools/engine/deep/dead.py", "from engine.deep import inner", "engine.deep.dead: no tool"),
}


@pytest.mark.parametrize("file,line,words", PLANTED.values(), ids=PLANTED)
def test_an_import_against_the_rules_is_found(file, line, words, tmp_path):
    for folder in ("", "tabular", "tools", "tests", "tests/stress", "data"):
        (tmp_path / folder).mkdir(exist_ok=True)
        for path in (ROOT / folder).glob("*.py"):
            shutil.copy(path, tmp_path / folder)
    shutil.copytree(ROOT / "tools" / "engine", tmp_path / "tools" / "engine")
    deep = tmp_path / "tools" / "engine" / "deep"
    deep.mkdir()
    (deep / "__init__.py").touch()
    (deep / "inner.py").write_text("from engine import errors\n")
    with open(tmp_path / "tools" / "engine" / "cli.py", "a", encoding="utf-8") as cli:
        cli.write("\n\ndef f():\n    import engine.deep.inner\n")
    assert list(Tree(tmp_path).violations()) == []
    with open(tmp_path / file, "a", encoding="utf-8") as planted:
        planted.write("\n" + line + "\n")
    assert any(words in violation for violation in Tree(tmp_path).violations())


def test_a_packages_own_array_files_is_neither_taken_nor_hidden(tmp_path):
    (tmp_path / "array_files.py").write_text("MINE = True")
    code = (
        "import sys; sys.path[:0] = sys.argv[1:]; from engine.saves.weight_files import loads; import array_files;"
        "print(array_files.MINE, loads(b'I3\\n.'))"
    )
    command = [sys.executable, "-c", code, str(tmp_path), str(ROOT / "tools")]
    assert subprocess.run(command, capture_output=True, text=True).stdout == "True 3\n"
