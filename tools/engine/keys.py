"""The one table of ``runner.*`` keys, and the tools' own settings read by it."""

import collections
import difflib
import logging
import os
import types

from engine.errors import UserError

LOG = logging.getLogger("engine")
REQUIRED = object()
Key = collections.namedtuple("Key", "kind default job meaning")  # job: which needs it, or "" for all

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
    "infer_run": Key(str, "newest", "", "whose epochs to evaluate or export: newest, all, or the id of a run"),
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
    "keep_best": Key(str, None, "train", "with keep_last: keep the epoch too whose mean of this number is best"),
    "skip_not_finite": Key(0, 0, "train", "not finite steps in a row that are undone before the run ends"),
    "tune_process": Key(bool, True, "", "set what makes Paddle fast on this CPU (MKL on AMD, glibc, executor)"),
    "to_static": Key(
        (True, False, "auto"), False, "", "dynamic graph: compile the network (paddle.jit.to_static); auto: if faster"
    ),
    "strict": Key(bool, False, "", "refuse unknown runner keys instead of warning"),
    "use_auc": Key(bool, False, "", "static training: start every auc op afresh in each epoch"),
    "auc_num": Key(0, 1, "", "not needed: the state of every auc op is found"),
    "use_visual": Key(bool, False, "", "write a VisualDL log beside the YAML"),
    "use_fleet": Key((False,), False, "train", "collective training, which these tools do not do yet"),
    "reader_type": Key(("DataLoader", "CustomizeDataLoader"), "DataLoader", "", "static graph: who makes batches"),
    "thread_num": Key(1, 1, "", "static graph: environment variable CPU_NUM"),
    "use_inference": Key(bool, False, "train", "static graph: export a model after every epoch"),
    "save_inference_feed_varnames": Key(list, (), "", "names of the exported model's inputs; empty: what outputs need"),
    "save_inference_fetch_varnames": Key(list, (), "", "names of its outputs; empty: all logits… and probabilities…"),
    "export_epoch": Key(0, None, "export", "saved epoch to export; if not given, the newest in infer_load_path"),
    "export_path": Key(str, "exported", "", "folder of the exported model, relative to the working one"),
    "export_format": Key(("paddle", "onnx"), "paddle", "export", "onnx: write an ONNX file beside Paddle's own"),
    "predict_path": Key(str, "predictions.csv", "infer", "file to write, .csv or .npz, relative to the working folder"),
    "predict_threads": Key(0, 0, "infer", "threads of the exported model; 0: one for each core"),
    "use_save_data": Key(bool, False, "", "static graph: write all batches' fetches to result.npy"),
    "use_out_vec": Key(bool, False, "train", "static graph: start a parameter from out_vec_path"),
    "emb_weight_name": Key(str, None, "train", "that parameter's name"),
    "out_vec_path": Key(str, None, "train", "that parameter's values, a .npy file"),
}


def read_settings(config, job):
    """The tools' own settings, from the ``runner.*`` keys.

    Args:
        config: from ``load_config``.
        job: "train", "infer" or "export".
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
