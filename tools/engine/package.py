"""Finds a model package's wrapper and reader beside its YAML. The only place that touches ``sys.path``."""

import importlib
import os
import sys

from engine.errors import UserError

PROJECT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
MODEL = ("dygraph_model", "static_model", "net")  # a folder with one of them is a model of its own


class Package:
    """The folder of a YAML file, seen as PaddleRec's interface (wrappers, ``RecDataset``).

    What is not in it is looked for in the folder above the tools. So a folder of a YAML and a reader is a
    package: its wrappers are the project's. A folder with one wrapper, or a ``net.py``, is a model of its own,
    and is never given the project's other half.

    Args:
        folder: absolute path. It goes to the front of ``sys.path``, after the tools' own modules
            are imported, so that ``import net`` finds the package's and nothing shadows it.
    """

    def __init__(self, folder):
        self.folder = folder
        self.folders = (folder, PROJECT)  # where its code may be
        self.encoding = {}  # the files its reader encodes inputs by, from ``saves.encodings.find``, once it is known
        sys.path.insert(0, folder)
        sys.path.append(PROJECT)

    def find(self, module_name, class_name, what):
        """Import ``class_name`` from the package's ``module_name``, or say that ``what`` is missing."""
        if module_name.endswith(".py") or not all(part.isidentifier() for part in module_name.split(".")):
            raise UserError(
                f"{module_name!r} is not a module name, {what}. Give it as in an import statement, without .py."
            )
        missing = f"{self.folder}: there is no {module_name}.py, {what}."
        if module_name in MODEL and not self.has_part(module_name):
            raise UserError(missing)
        try:
            module = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            if error.name != module_name:
                raise UserError(
                    f"{self.folder}: {module_name}.py needs the module {error.name}, which is not "
                    f"installed. Try: pip install {error.name}"
                ) from error
            raise UserError(missing) from error
        if not hasattr(module, class_name):
            raise UserError(f"{module.__file__}: there is no class {class_name}, {what}.")
        return getattr(module, class_name)

    def has_part(self, module_name):
        """Whether the package has this one of ``MODEL``, its own or, where it has none of them, the project's."""
        return self._has(module_name) or not any(map(self._has, MODEL))

    def _has(self, module_name):
        path = os.path.join(self.folder, module_name)
        return os.path.isfile(path + ".py") or os.path.isdir(path)
