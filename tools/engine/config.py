"""YAML file and ``-o`` overrides -> the flat dict that packages read, and the tools' own settings, checked."""

import collections
import difflib
import logging
import os
import re
import types

import yaml

from engine.errors import UserError

LOG = logging.getLogger("engine")
KEPT_SECTIONS = ("workspace", "runner", "hyper_parameters")
MAX_BYTES, MAX_VALUES, MAX_DEPTH = 1 << 17, 10_000, 50  # of a config
MAX_NAME, MAX_DIGITS = 200, 100  # of a key, of a number
NAMED_LISTS = ("runner", "dataset", "phase")  # lists of mappings under these become <section>.<name>.<key>

REQUIRED = object()
Key = collections.namedtuple("Key", "kind default job meaning")  # job: which needs it, or "" for both

# Every runner.* key that a tool reads. kind: bool, int (with its least value), str, list, or a tuple of choices.
RUNNER_KEYS = {
    "use_gpu": Key((True, False, "auto"), "auto", "", "true: a GPU, or an error; auto: a GPU if there is one"),
    "use_xpu": Key(bool, False, "", "use an XPU; wins over a GPU"),
    "use_npu": Key(bool, False, "", "use an NPU; wins over a GPU"),
    "train_data_dir": Key(str, REQUIRED, "train", "folder of the training data, relative to the YAML's folder"),
    "test_data_dir": Key(str, REQUIRED, "infer", "folder of the test data, relative to the YAML's folder"),
    "train_batch_size": Key(1, REQUIRED, "train", "examples in a training step"),
    "infer_batch_size": Key(1, REQUIRED, "infer", "examples in an evaluation step"),
    "train_reader_path": Key(str, "reader", "train", "module, beside the YAML, with RecDataset"),
    "infer_reader_path": Key(str, "reader", "infer", "module, beside the YAML, with RecDataset"),
    "num_workers": Key(0, 0, "", "processes that read data; 0: the tool itself reads"),
    "epochs": Key(1, REQUIRED, "train", "passes over the training data"),
    "print_interval": Key(1, REQUIRED, "", "steps between two lines of the log"),
    "seed": Key(0, 12345, "", "of paddle, numpy and random"),
    "model_save_path": Key(str, "model_output", "train", "folder of the epoch folders, relative to the working one"),
    "model_init_path": Key(str, None, "train", "epoch folder with the weights to start from"),
    "infer_load_path": Key(str, "model_output", "infer", "folder of the epoch folders, relative to the working one"),
    "infer_start_epoch": Key(0, 0, "infer", "first epoch to evaluate"),
    "infer_end_epoch": Key(0, 10, "infer", "the epoch after the last one to evaluate"),
    "shuffle": Key(bool, False, "train", "another order in each epoch, drawn from the seed"),
    "drop_last": Key(bool, True, "train", "leave out the last, partial batch when training"),
    "infer_drop_last": Key(bool, False, "infer", "leave it out when evaluating"),
    "lr_step": Key(("none", "batch", "epoch"), "none", "train", "when the tool moves on a package's schedule"),
    "steps_per_epoch": Key(1, None, "train", "training steps an epoch; counted by the tool where it can be"),
    "resume": Key(str, "off", "train", "go on where a run ended: off, auto (from the newest save) or a folder"),
    "save_interval_steps": Key(0, 0, "train", "also save inside an epoch, every so many steps; 0: only after it"),
    "keep_last": Key(0, 0, "train", "how many epochs' folders to keep; 0: all"),
    "strict": Key(bool, False, "", "refuse unknown runner keys instead of warning"),
    "use_auc": Key(bool, False, "", "static training: start every auc op afresh in each epoch"),
    "auc_num": Key(0, 1, "", "not needed: the state of every auc op is found"),
    "use_visual": Key(bool, False, "", "write a VisualDL log beside the YAML"),
    "use_fleet": Key((False,), False, "train", "collective training, which these tools do not do yet"),
    "reader_type": Key(("DataLoader", "CustomizeDataLoader"), "DataLoader", "", "static graph: who makes batches"),
    "thread_num": Key(1, 1, "", "static graph: environment variable CPU_NUM"),
    "use_inference": Key(bool, False, "train", "static graph: export a model after every epoch"),
    "save_inference_feed_varnames": Key(list, (), "train", "names of the exported model's inputs"),
    "save_inference_fetch_varnames": Key(list, (), "train", "names of the exported model's outputs"),
    "use_save_data": Key(bool, False, "", "static graph: write all batches' fetches to result.npy"),
    "use_out_vec": Key(bool, False, "train", "static graph: start a parameter from out_vec_path"),
    "emb_weight_name": Key(str, None, "train", "that parameter's name"),
    "out_vec_path": Key(str, None, "train", "that parameter's values, a .npy file"),
}


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
            raise yaml.YAMLError(f"a key is no text{key.start_mark}")
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


def _read_yaml(path):
    try:
        with open(path, encoding="utf-8-sig") as file:
            text = file.read(MAX_BYTES + 1)
        if len(text) > MAX_BYTES:
            raise UserError(f"{path}: it is longer than {MAX_BYTES} characters, which no config is.")
    except OSError as error:
        raise UserError(f"-m {path}: cannot be read ({error.strerror}). Give the path of a YAML file.") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: it is no text in UTF-8 ({error}). Save it as UTF-8.") from error
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
        raise UserError(f"{what} is no valid YAML: {str(error)[:500] or type(error).__name__}") from error


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


def read_settings(config, job):
    """The tools' own settings, from the ``runner.*`` keys.

    Args:
        config: from ``load_config``.
        job: "train" or "infer".
    Returns:
        A namespace with one attribute for each of ``RUNNER_KEYS``.
    Raises:
        UserError: a value has the wrong type or is out of range, or a needed key is missing.
    """
    given = {key[len("runner.") :]: value for key, value in config.items() if key.startswith("runner.")}
    settings = types.SimpleNamespace(
        **{name: _checked(name, given.get(name), key, job) for name, key in RUNNER_KEYS.items()}
    )
    for name in ("train_data_dir", "test_data_dir"):
        if getattr(settings, name) is not None:
            setattr(settings, name, os.path.join(config["config_abs_dir"], getattr(settings, name)))
    return settings


def check_unknown_keys(config, strict, declared=()):
    """Warn of each ``runner.*`` key that neither the tools nor the package know, or refuse it.

    Args:
        config: from ``load_config``.
        strict: refuse.
        declared: names, without ``runner.``, that the package's reader says it reads
            (``RecDataset.config_keys``).
    Raises:
        UserError: under ``strict``.
    """
    known = [*RUNNER_KEYS, *declared]
    given = {key[len("runner.") :] for key in config if key.startswith("runner.")}
    for name in sorted(given - set(known)):
        near = difflib.get_close_matches(name, known, 1)
        message = f"runner.{name} is no key of these tools" + (f"; did you mean runner.{near[0]}?" if near else ".")
        if strict:
            raise UserError(message + " (runner.strict is true; set it to false to pass unknown keys on.)")
        LOG.warning("%s It is passed on to the package.", message)


def _checked(name, value, key, job):
    if value is None:
        if key.default is not REQUIRED:
            return key.default
        if key.job in ("", job):
            raise UserError(f"runner.{name} is missing: {key.meaning}. Add it to the YAML, or give it by -o.")
        return None
    if isinstance(key.kind, tuple):
        text = str(value).lower()
        for choice in key.kind:
            if text == str(choice).lower():
                return choice
        wanted = " or ".join(str(choice).lower() if isinstance(choice, bool) else choice for choice in key.kind)
    elif isinstance(key.kind, type):
        if isinstance(value, key.kind):
            return value if key.kind is not str else _checked_text(name, value)
        if value is False and key.default == "off":  # YAML 1.1 reads off as false
            return "off"
        if key.kind is str and isinstance(value, (int, float)):  # a folder may be named 0
            return str(value)
        wanted = {bool: "true or false", str: "a text", list: "a list"}[key.kind]
    else:
        whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
        if whole and not isinstance(value, bool) and value >= key.kind:
            return int(value)
        wanted = f"a whole number >= {key.kind}"
    raise UserError(f"runner.{name} is {repr(value)[:200]}, but must be {wanted}: {key.meaning}.")


def _checked_text(name, text):
    """A text that the system can take for a path."""
    try:
        known = b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:
        known = False
    if not known:
        raise UserError(f"runner.{name} is {text[:200]!a}, which has a character that no path has.")
    return text
