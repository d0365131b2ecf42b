"""Reads a YAML file and ``-o`` overrides into the flat dict that packages get."""

import logging
import os
import re

import yaml

from engine.errors import UserError
from engine.keys import REQUIRED, RUNNER_KEYS

LOG = logging.getLogger("engine")
KEPT_SECTIONS = ("workspace", "runner", "hyper_parameters")
MAX_NODES = 10_000  # of a file, aliases expanded
NAMED_LISTS = ("runner", "dataset", "phase")  # lists of mappings under these become <section>.<name>.<key>


class _Loader(yaml.SafeLoader):
    """Reads ``1e-3`` as a number, which YAML 1.1 takes for text, and refuses aliases that expand without bounds."""

    def __init__(self, stream):
        super().__init__(stream)
        self.sizes = {}  # node -> nodes in it, aliases expanded

    def compose_node(self, parent, index):
        node = super().compose_node(parent, index)
        if node.end_mark is None:
            raise yaml.MarkedYAMLError(problem="a value contains itself", problem_mark=node.start_mark)
        if node not in self.sizes:
            parts = [] if isinstance(node, yaml.ScalarNode) else node.value
            pairs = parts if isinstance(node, yaml.MappingNode) else [[part] for part in parts]
            self.sizes[node] = 1 + sum(self.sizes[part] for pair in pairs for part in pair)
            if self.sizes[node] > MAX_NODES:
                problem = f"with aliases expanded there are more than {MAX_NODES} values"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
        return node


def _mapping_without_repeats(loader, node):
    seen = set()
    for key, _ in node.value:
        if key.tag == "tag:yaml.org,2002:merge":  # <<: *defaults
            continue
        name = loader.construct_object(key, deep=True)
        if not isinstance(name, (str, int, float, bool, type(None))):
            raise yaml.MarkedYAMLError(problem="a key must be text", problem_mark=key.start_mark)
        if name in seen:
            problem = f"the key {name} stands twice in one mapping"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
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
        UserError: the file cannot be read, or an override is not KEY=VALUE or has the wrong type.
    """
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
    config["config_abs_dir"] = os.path.dirname(os.path.abspath(path))
    config["yaml_path"] = path
    return config


def _did_you_mean(key, config):
    """A question, if a section is missing before a key."""
    known = {*config, *(f"runner.{name}" for name in RUNNER_KEYS)}
    found = [f"{section}.{key}" for section in KEPT_SECTIONS if f"{section}.{key}" in known]
    return f" Did you mean {found[0]}?" if found else ""


def all_defaults(package_defaults):
    """Every key of the tools and of the package with its default; None where it must be given.

    Args:
        package_defaults: dotted keys of the package and their defaults.
    """
    defaults = {f"runner.{name}": None if key.default is REQUIRED else key.default for name, key in RUNNER_KEYS.items()}
    return {**defaults, **package_defaults}


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
        return yaml.load(text, Loader=_Loader)
    except Exception as error:  # PyYAML's constructors raise nearly anything, such as at 2026-99-99 or !!int ""
        raise UserError(f"{what} is not valid YAML: {str(error)[:500] or type(error).__name__}") from error


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
    """The override's value, of the kind the key has in the table, or of its present value's type."""
    known = RUNNER_KEYS.get(key[len("runner.") :]) if key.startswith("runner.") else None
    if known is not None:
        return text if known.kind is str else _yaml_value(key, text)
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
