"""YAML file and ``-o`` overrides -> the flat dict that packages read."""

import logging
import os
import re

import yaml

from engine.errors import UserError
from engine.keys import REQUIRED, RUNNER_KEYS

LOG = logging.getLogger("engine")
KEPT_SECTIONS = ("workspace", "runner", "hyper_parameters")
MAX_BYTES, MAX_VALUES, MAX_DEPTH = 1 << 17, 10_000, 50  # of a config
MAX_NAME, MAX_DIGITS = 200, 100  # of a key, of a number
NAMED_LISTS = ("runner", "dataset", "phase")  # lists of mappings under these become <section>.<name>.<key>


class _Loader(yaml.SafeLoader):
    """Reads ``1e-3`` as a number, which YAML 1.1 takes for text; refuses what grows beyond the file."""

    merged = 0

    def flatten_mapping(self, node):
        """Put in what ``<<`` names: a mapping that merges another twice, and so on, would double each time."""
        super().flatten_mapping(node)
        self.merged += len(node.value)
        if self.merged > MAX_VALUES:
            raise yaml.YAMLError(f"its mappings have more than {MAX_VALUES} entries{node.start_mark}")


def _short_number(construct):
    def checked(loader, node):
        if len(node.value) > MAX_DIGITS:  # which would take long to read, and could not be printed
            raise yaml.YAMLError(f"a number has more than {MAX_DIGITS} digits{node.start_mark}")
        return construct(loader, node)

    return checked


def _mapping_without_repeats(loader, node):
    seen = set()
    for key, _ in node.value:
        if key.tag == "tag:yaml.org,2002:merge":  # <<: *defaults
            continue
        name = loader.construct_object(key, deep=True)
        if not isinstance(name, (str, int, float, bool, type(None))):
            raise yaml.YAMLError(f"a key is not text{key.start_mark}")
        if name in seen:
            raise yaml.YAMLError(f"the key {name} stands twice in one mapping{key.start_mark}")
        seen.add(name)
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping_without_repeats)
_Loader.add_constructor("tag:yaml.org,2002:int", _short_number(yaml.SafeLoader.construct_yaml_int))
_Loader.add_constructor("tag:yaml.org,2002:float", _short_number(yaml.SafeLoader.construct_yaml_float))
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
        UserError: the file cannot be read, or an override is no KEY=VALUE or has the wrong type.
    """
    content = _read_yaml(path)
    flat = {}
    _flatten(content, "", flat, path)
    config = {key: value for key, value in flat.items() if key.startswith(KEPT_SECTIONS)}
    ignored = sorted({key.split(".")[0] for key in flat if key not in config})
    if ignored:
        LOG.warning("%s: these sections are not read: %s", path, ", ".join(ignored))
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise UserError(f"-o {text}: there is no KEY=VALUE in it. Write for instance -o runner.epochs=2.")
        config[key] = _parse_override(key, value, config.get(key))
        if not key.startswith(tuple(section + "." for section in KEPT_SECTIONS)):
            LOG.warning("-o %s: no key of runner or hyper_parameters; it is passed on to the package", text)
    config["config_abs_dir"] = os.path.dirname(os.path.abspath(path))
    config["yaml_path"] = path
    return config


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


def _read_yaml(path):
    try:
        with open(path, encoding="utf-8-sig") as file:
            text = file.read(MAX_BYTES + 1)
        if len(text) > MAX_BYTES:
            raise UserError(f"{path}: it is longer than {MAX_BYTES} characters, which no config is.")
    except OSError as error:
        raise UserError(f"-m {path}: cannot be read ({error.strerror}). Give the path of a YAML file.") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: it is not UTF-8 text ({error}). Save it as UTF-8.") from error
    content = _parse(text, f"{path}: this")
    if _count(content, MAX_VALUES, MAX_DEPTH) < 0:
        raise UserError(f"{path}: its aliases expand to more than {MAX_VALUES} values, or it is nested too deeply.")
    if not isinstance(content, dict):
        raise UserError(
            f"{path}: expected sections such as runner: and hyper_parameters:, found {type(content).__name__}."
        )
    return content


def _parse(text, what):
    try:
        return yaml.load(text, Loader=_Loader)
    except Exception as error:  # PyYAML's constructors raise nearly anything, such as at 2026-99-99 or !!int ""
        raise UserError(f"{what} is not valid YAML: {str(error)[:500] or type(error).__name__}") from error


def _count(node, left, depth):
    """``left`` less the number of values in ``node``, aliases expanded; negative as soon as that is too many."""
    if left <= 0 or depth <= 0:
        return -1
    left -= 1
    children = node.values() if isinstance(node, dict) else node if isinstance(node, (list, tuple, set)) else ()
    for child in children:
        left = _count(child, left, depth - 1)
        if left < 0:
            return -1
    return left


def _flatten(node, prefix, flat, path):
    for key, value in node.items():
        name = f"{prefix}{key}"
        if len(name) > MAX_NAME:
            raise UserError(f"{path}: the key {name[:50]}… is longer than {MAX_NAME} characters, which no key is.")
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
