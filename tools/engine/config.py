"""Reads a YAML file and ``-o`` overrides into the flat config dict of a package."""

import itertools
import logging
import os
import re

import yaml

from engine.errors import UserError
from engine.keys import RUNNER_KEYS, default_values

LOG = logging.getLogger("engine")
KEPT_SECTIONS = ("workspace", "runner", "hyper_parameters")
NAMED_LISTS = ("runner", "dataset", "phase")  # lists of mappings under these become <section>.<name>.<key>


LARGEST = 100_000  # keys and values in a config; aliases of aliases grow beyond any memory


class _Loader(yaml.SafeLoader):
    """Reads ``1e-3`` as a number, which YAML 1.1 takes for text, and refuses a key that is given twice."""


def _mapping_without_repeats(loader, node):
    seen = set()
    for key, _ in node.value:
        if key.tag == "tag:yaml.org,2002:merge":  # <<: *defaults
            continue
        name = loader.construct_object(key, deep=True)
        if not isinstance(name, (str, int, float, bool, type(None))):
            raise yaml.MarkedYAMLError(problem="a key must be text", problem_mark=key.start_mark)
        if name in seen:
            raise yaml.MarkedYAMLError(problem=f"the key {name} is given twice", problem_mark=key.start_mark)
        seen.add(name)
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping_without_repeats)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def load_config(path, overrides=()):
    """Read a YAML file as PaddleRec does: flat, with dotted keys, overrides applied.

    Args:
        path: of the YAML file.
        overrides: texts KEY=VALUE.
    Returns:
        A plain dict of the keys in ``KEPT_SECTIONS``, with ``config_abs_dir`` and ``yaml_path``.
    Raises:
        UserError: the file cannot be read, an override is not KEY=VALUE or has the wrong type, or ~user has no home.
    """
    path = os.path.expanduser(path)
    content = read_yaml(path)
    flat = {}
    _flatten(content, "", flat, path)
    config = {key: value for key, value in flat.items() if key.startswith(KEPT_SECTIONS)}
    ignored = sorted({key.split(".")[0] for key in flat if key not in config})
    if ignored:
        LOG.warning("%s: these sections are not read: %s", path, ", ".join(ignored))
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise UserError(f"-o {text}: expected KEY=VALUE, for instance -o runner.epochs=2.")
        config[key] = _parse_override(key, value, config.get(key))
        if not key.startswith(tuple(section + "." for section in KEPT_SECTIONS)):
            near = _did_you_mean(key, config)
            if config.get("runner.strict"):
                raise UserError(f"-o {text}: {key} is not a key of runner or hyper_parameters (runner.strict).{near}")
            LOG.warning("-o %s: no key of runner or hyper_parameters; it is passed on to the package.%s", text, near)
    _expand_homes(config)
    config["config_abs_dir"] = os.path.dirname(os.path.abspath(path))
    config["yaml_path"] = path
    return config


def _expand_homes(config):
    """Expand ~ and ~user at the beginning of each path, as a shell does."""
    for name, key in RUNNER_KEYS.items():
        text = config.get(f"runner.{name}")
        if key.type == "path" and isinstance(text, str) and text.startswith("~"):
            config[f"runner.{name}"] = os.path.expanduser(text)
            if config[f"runner.{name}"] == text:
                raise UserError(
                    f"runner.{name} is {text}, but there is no such home. Give another path, or ./{text} for it."
                )


def _did_you_mean(key, config):
    """A question, if a key lacks its section."""
    known = {*config, *(f"runner.{name}" for name in RUNNER_KEYS)}
    found = [f"{section}.{key}" for section in KEPT_SECTIONS if f"{section}.{key}" in known]
    return f" Did you mean {found[0]}?" if found else ""


def all_defaults(package_defaults):
    """Every key of the tools and of the package (dotted key -> default) with its default; None if it is required."""
    return {**default_values(RUNNER_KEYS), **package_defaults}


def keys_in_force(config, overrides, package_defaults):
    """Every key with its value and its origin, one line of YAML each.

    Args:
        config: from ``load_config``.
        overrides: texts KEY=VALUE, as given to it.
        package_defaults: as for ``all_defaults``.
    """
    defaults = all_defaults(package_defaults)
    given_on_line = {text.partition("=")[0] for text in overrides}
    for key in sorted({*defaults, *config} - {"config_abs_dir", "yaml_path"}):
        origin = "-o" if key in given_on_line else "file" if key in config else "default"
        value = config.get(key, defaults.get(key))
        value = list(value) if isinstance(value, tuple) else value
        text = yaml.safe_dump(value, default_flow_style=True, width=float("inf"), allow_unicode=True)
        shown = f"{key}: {text.split(chr(10))[0]}"
        yield f"{shown:60}  # {origin}"


def read_yaml(path):
    """The mapping in a YAML file.

    Raises:
        UserError: the file cannot be read, or holds something else.
    """
    try:
        with open(path, encoding="utf-8-sig") as file:
            text = file.read()
    except OSError as error:
        raise UserError(f"-m {path}: cannot be read ({error.strerror}). Give the path of a YAML file.") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: it is not UTF-8 text ({error}). Save it as UTF-8.") from error
    content = _parse(text, f"{path}: this")
    if not isinstance(content, dict):
        raise UserError(
            f"{path}: expected keys, such as runner: and hyper_parameters:, found {type(content).__name__}."
        )
    return content


def _parse(text, what):
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if _size(node, {}) > LARGEST:
            raise ValueError(f"its aliases make it larger than {LARGEST} keys and values")
        return None if node is None else loader.construct_document(node)
    except Exception as error:  # PyYAML's constructors raise nearly anything, such as at 2026-99-99 or !!int ""
        raise UserError(f"{what} is not valid YAML: {str(error)[:500] or type(error).__name__}") from error


def _size(node, known):
    """The number of keys and values below a YAML node, each alias counted as what it stands for, merged or not."""
    if not isinstance(node, yaml.CollectionNode):
        return 1
    if id(node) not in known:
        known[id(node)] = LARGEST  # of a node within itself
        pairs = isinstance(node, yaml.MappingNode)
        below = itertools.chain.from_iterable(node.value) if pairs else node.value
        known[id(node)] = 1 + sum(_size(item, known) for item in below)
    return known[id(node)]


def _flatten(node, prefix, flat, path):
    for key, value in node.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict):
            _flatten(value, name + ".", flat, path)
        elif key in NAMED_LISTS and isinstance(value, list) and value and all(isinstance(v, dict) for v in value):
            for item in value:
                if "name" not in item:
                    raise UserError(f"{path}: an entry of the list {name} has no name. Give each one a name.")
                _flatten(item, f"{name}.{item['name']}.", flat, path)
        else:
            flat[name] = value


def _parse_override(key, text, present):
    """The override's value, of the type that the table gives the key, or of its value in the file."""
    known = RUNNER_KEYS.get(key[len("runner.") :]) if key.startswith("runner.") else None
    if known is not None:
        return text if known.type in (str, "path") else _yaml_value(key, text)
    if isinstance(present, str):
        return text
    if isinstance(present, bool):
        if text.lower() not in ("true", "false"):
            raise UserError(f"-o {key}={text}: must be true or false, like the value in the YAML.")
        return text.lower() == "true"
    if isinstance(present, (int, float)):
        return _parse_number(key, text, present)
    return _yaml_value(key, text)


def _parse_number(key, text, present):
    try:
        number = float(text)
    except ValueError:
        raise UserError(f"-o {key}={text}: must be a number, like {present!r} in the YAML.") from None
    if isinstance(present, float):
        return number
    if number.is_integer():
        return int(number)
    if key.startswith("hyper_parameters."):
        return number
    raise UserError(f"-o {key}={text}: must be a whole number, like {present!r} in the YAML.")


def _yaml_value(key, text):
    return _parse(text, f"-o {key}={text}: the value")
