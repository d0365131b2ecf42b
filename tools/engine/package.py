"""Finds a model package's wrapper and reader beside its YAML. The only place that changes ``sys.path`` for a run.

A module is looked for beside the YAML first, then in the project. But what the project's own wrappers import is the
project's, whatever a user's files are called; and a model of its own never gets the project's ``net`` by accident.
"""

import contextlib
import glob
import importlib.util
import logging
import os
import site
import sys
import sysconfig

from engine.errors import UserError
from engine.shared import PROJECT

LOG = logging.getLogger("engine")
MODEL = ("dygraph_model", "static_model", "net")  # a folder with one of them is a model of its own
TOOLS = {"engine", "__main__"}  # what the tools themselves have imported
OURS = (*MODEL, "dselect_k_model")  # the project's wrappers, and what they import


class Package:
    """The folder of a YAML file, seen as PaddleRec's interface (wrappers, ``RecDataset``).

    A folder with neither wrapper nor ``net.py`` gets the project's wrappers: a YAML and a reader make a package. A
    folder with one of the three is a model of its own, and never gets the project's other wrapper.

    Args:
        folder: absolute path. It goes to the front of ``sys.path``, so that ``import net`` finds the package's.
    """

    def __init__(self, folder):
        self.folder = folder
        self.folders = (folder, PROJECT)  # where its code may be
        self.encoding = {}  # what ``compatibility.find_encoding`` gives for its reader
        self.is_own = any(_has(folder, name) for name in MODEL)
        sys.path.insert(0, folder)
        for name in _modules(folder) - TOOLS:
            _forget_other(name, folder)
        self._warn_if_unused("engine")
        if self.is_own:
            sys.path.append(PROJECT)
        else:
            sys.path.insert(1, PROJECT)  # before installed packages and PYTHONPATH
            self._import_ours("dselect_k_model")  # before a module of that name beside the YAML

    def find(self, module_name, class_name, what):
        """Import ``class_name`` from the package's ``module_name``, or report that ``what`` is missing."""
        if module_name.endswith(".py") or not all(part.isidentifier() for part in module_name.split(".")):
            raise UserError(
                f"{module_name!r} is not a module name, {what}. Give it as in an import statement, without .py."
            )
        missing = f"{self.folder}: there is no {module_name}.py, {what}."
        if module_name in MODEL and self.is_own:
            own = ", ".join(f"{name}.py" for name in MODEL if _has(self.folder, name))
            missing += f" It has {own}, so it is a model of its own. To use the project's model, rename {own}."
            if not self.has_part(module_name):
                raise UserError(missing)
        try:
            module = self._import(module_name)
        except ModuleNotFoundError as error:
            if f"{module_name}.".startswith(f"{error.name}."):
                raise UserError(missing) from error
            raise UserError(
                f"{self.folder}: {module_name}.py needs the module {error.name}, which is not installed. "
                f"Try: pip install {error.name}"
            ) from error
        if not hasattr(module, class_name):
            raise UserError(f"{module.__file__}: there is no class {class_name}, {what}.")
        return getattr(module, class_name)

    def has_part(self, module_name):
        """Whether the package has this one of ``MODEL``: its own or, if it has none of them, the project's."""
        return _has(self.folder, module_name) or not self.is_own

    def _import(self, module_name):
        if _has(self.folder, module_name):
            return _import_from(self.folder, module_name)
        if _has(PROJECT, module_name):
            return self._import_ours(module_name)
        return importlib.import_module(module_name)

    def _import_ours(self, module_name):
        """Import a module of the project, whose imports mean the project's; a model of its own keeps its modules."""
        self._warn_if_unused(module_name.partition(".")[0])
        own = {name: sys.modules.pop(name) for name in MODEL if self.is_own and name in sys.modules}
        sys.path.insert(0, PROJECT)
        try:
            for name in OURS:
                _forget_other(name, PROJECT)
            return _import_from(PROJECT, module_name)
        finally:
            sys.path.remove(PROJECT)
            for name in MODEL if self.is_own else ():
                sys.modules.pop(name, None)
            sys.modules.update(own)

    def _warn_if_unused(self, name):
        if _has(self.folder, name):
            LOG.warning("%s: %s here is not used: the tools' or the project's own is. Rename it.", self.folder, name)


def _has(folder, module_name):
    """Whether a folder has a module, or a package with one in it."""
    path = os.path.join(folder, *module_name.split("."))
    return os.path.isfile(path + ".py") or bool(glob.glob(os.path.join(glob.escape(path), "*.py")))


def _modules(folder):
    """Names of a folder's modules and packages."""
    paths = (path for pattern in ("*.py", "*/*.py") for path in glob.glob(os.path.join(glob.escape(folder), pattern)))
    return {os.path.splitext(os.path.relpath(path, folder).split(os.sep)[0])[0] for path in paths}


def _import_from(folder, module_name):
    """Import a module of the first folder on the path; raise UserError if another module has its name already."""
    top = module_name.partition(".")[0]
    _forget_other(top, folder)
    spec = importlib.util.find_spec(top)
    if not _is_in(folder, spec.origin, spec.submodule_search_locations):
        raise UserError(
            f"{os.path.join(folder, *module_name.split('.'))}.py cannot be used: {top} is the name of "
            f"{spec.origin or 'another module'} too. Rename it."
        )
    return importlib.import_module(module_name)


def _forget_other(top, folder):
    """Forget a module from elsewhere, such as a notebook's, so that it is imported anew; libraries stay."""
    module = sys.modules.get(top)
    if module is None or _is_module_in(folder, module):
        return
    if _has(PROJECT, top) or not _is_library(module):
        for name in [name for name in sys.modules if name.partition(".")[0] == top]:
            del sys.modules[name]


def _is_library(module):
    file, paths = getattr(module, "__file__", None), sysconfig.get_paths()
    places = [paths[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")] + [site.getusersitepackages()]
    return file is None or any(os.path.realpath(file).startswith(os.path.realpath(place)) for place in places)


def _is_module_in(folder, module):
    return _is_in(folder, getattr(module, "__file__", None), getattr(module, "__path__", None))


def _is_in(folder, file, paths):
    """Whether a module of this file, or a package of these folders, is directly in a folder."""
    places = [os.path.realpath(os.path.dirname(path)) for path in paths or [file or ""]]
    return os.path.realpath(folder) in places


@contextlib.contextmanager
def modules_apart(folder):
    """Afterwards ``sys.path`` is restored, and of the package's modules those are imported that were before.

    Args:
        folder: of the package.
    """
    path, modules = sys.path[:], dict(sys.modules)
    try:
        yield
    finally:
        sys.path[:] = path
        imported = {name for name, module in sys.modules.items() if module is not modules.get(name)}
        tops = {name.partition(".")[0]: sys.modules.get(name.partition(".")[0]) for name in imported}
        ours = {top for top, module in tops.items() if any(_is_module_in(each, module) for each in (folder, PROJECT))}
        for name in imported:
            if name.partition(".")[0] in ours:
                del sys.modules[name]
        for name in set(modules) - set(sys.modules):
            sys.modules[name] = modules[name]
