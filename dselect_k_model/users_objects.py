"""Finds what a config names: a row of a registry, or an object of the user's as module.name."""

import importlib


def find(registry, name, where, base=None):
    """The object that ``name`` stands for.

    Args:
        registry: name -> object.
        name: a name of the registry, or module.name, where the module lies beside the config or is installed.
        where: the config key, for messages.
        base: the class that an object of the user's must be derived from; None: it may be anything.
    Raises:
        ValueError: there is no such object.
    """
    if name in registry:
        return registry[name]
    module_name, _, attribute = name.rpartition(".")
    if not module_name:
        raise ValueError(f"{where} is {name!r}, but must be one of {', '.join(registry)}, or module.name.")
    try:
        found = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"{where} is {name!r}, but {attribute} cannot be imported from {module_name} ({error})."
        ) from error
    if base is not None and not (isinstance(found, type) and issubclass(found, base)):
        raise ValueError(f"{where} is {name!r}, but that is not a subclass of {base.__module__}.{base.__qualname__}.")
    return found
