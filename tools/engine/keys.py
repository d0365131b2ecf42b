"""The one table of ``runner.*`` keys, and the tools' own settings read by it."""

import collections
import difflib
import logging
import os
import types

from engine.errors import UserError

LOG = logging.getLogger("engine")
REQUIRED = object()
CHOICE = "choice"  # a kind: one of ``choices``
BEST = "best"  # stands for an epoch

# One key. job: the one that needs it, "" for all; steps: whether it decides what a training step computes, so that
# a resumed run is told of another value, or refused. kind, low and choices are as in a package's own table; a
# number may have choices beside it.
Key = collections.namedtuple("Key", "default kind meaning job low choices steps")


def _key(default, kind, meaning, job="", low=None, choices=None, steps=False):
    return Key(default, kind, meaning, job, low, choices, steps)


RUNNER_KEYS = {
    "use_gpu": _key(
        "auto", CHOICE, "true: a GPU, or an error; auto: a GPU if there is one", choices=(True, False, "auto")
    ),
    "use_xpu": _key(False, bool, "use an XPU; wins over a GPU"),
    "use_npu": _key(False, bool, "use an NPU; wins over a GPU"),
    "train_data_dir": _key(REQUIRED, str, "folder of the training data, relative to the YAML's folder", job="train"),
    "test_data_dir": _key(REQUIRED, str, "folder of the test data, relative to the YAML's folder", job="infer"),
    "validation_data_dir": _key(
        None, str, "folder of data to evaluate on after each epoch, relative to the YAML's folder", job="train"
    ),
    "train_batch_size": _key(REQUIRED, int, "examples in a training step", job="train", low=1, steps=True),
    "infer_batch_size": _key(REQUIRED, int, "examples in an evaluation step", job="infer", low=1),
    "train_reader_path": _key("reader", str, "module, beside the YAML, with RecDataset", job="train", steps=True),
    "infer_reader_path": _key("reader", str, "module, beside the YAML, with RecDataset", job="infer"),
    "num_workers": _key(0, int, "processes that read data; 0: the tool itself reads", low=0),
    "epochs": _key(REQUIRED, int, "passes over the training data", job="train", low=1),
    "print_interval": _key(REQUIRED, int, "steps between two lines of the log", low=1),
    "progress": _key(
        "auto",
        CHOICE,
        "a progress bar in place of the interval lines (pip install tqdm); auto: on a terminal, if tqdm is installed",
        choices=(True, False, "auto"),
    ),
    "log_json": _key(
        None,
        str,
        "file to append the log to as lines of JSON, relative to the working folder; a resumed run goes on in the same "
        "file, and steps repeated after a resume are logged again",
    ),
    "seed": _key(12345, int, "of paddle, numpy and random", low=0, steps=True),
    "model_save_path": _key(
        "model_output", str, "folder of the epoch folders, relative to the working one", job="train"
    ),
    "model_init_path": _key(None, str, "epoch folder with the weights to start from", job="train"),
    "infer_load_path": _key(
        "model_output", str, "folder of the epoch folders, relative to the working one", job="infer"
    ),
    "infer_run": _key("newest", str, "whose epochs to evaluate or export: newest, all, or the id of a run"),
    "infer_epoch": _key(
        None,
        int,
        "the one epoch to evaluate; best: the one with the validation's best keep_best; if not given, those from "
        "infer_start_epoch on",
        job="infer",
        low=0,
        choices=(BEST,),
    ),
    "infer_start_epoch": _key(0, int, "first epoch to evaluate", job="infer", low=0),
    "infer_end_epoch": _key(10, int, "the epoch after the last one to evaluate", job="infer", low=0),
    "shuffle": _key(False, bool, "another order in each epoch, drawn from the seed", job="train", steps=True),
    "shuffle_window": _key(
        None,
        int,
        "rows of an iterable reader that are shuffled among one another; if not given, 100000 of a reader that gives "
        "blocks, 4096 of another",
        job="train",
        low=1,
        steps=True,
    ),
    "drop_last": _key(True, bool, "leave out the last, partial batch when training", job="train", steps=True),
    "infer_drop_last": _key(False, bool, "leave it out when evaluating", job="infer"),
    "lr_step": _key(
        "none",
        CHOICE,
        "when the tool moves on a package's schedule",
        job="train",
        choices=("none", "batch", "epoch"),
        steps=True,
    ),
    "steps_per_epoch": _key(
        None,
        int,
        "training steps an epoch, for schedules: it makes no epoch shorter; counted by the tool where it can be",
        job="train",
        low=1,
        steps=True,
    ),
    "resume": _key(
        "off", str, "continue a run: off, auto (from the newest save), or the folder of a save", job="train"
    ),
    "save_interval_steps": _key(
        0, int, "also save inside an epoch, each time after this many steps; 0: only after it", job="train", low=0
    ),
    "keep_last": _key(0, int, "how many epochs' folders to keep; 0: all", job="train", low=0),
    "keep_best": _key(
        None,
        str,
        "the number that says which epoch is best: of the validation, if there is one, else of the training; "
        "keep_last keeps that epoch too",
    ),
    "patience": _key(
        0,
        int,
        "end the training after this many epochs in a row in which the validation's keep_best has not been better; "
        "0: never",
        job="train",
        low=0,
    ),
    "skip_not_finite": _key(
        0, int, "not finite steps in a row that are undone before the run ends", job="train", low=0
    ),
    "tune_process": _key(True, bool, "set what makes Paddle fast on this CPU (MKL on AMD, glibc, executor)"),
    "to_static": _key(
        False,
        CHOICE,
        "dynamic graph: compile the network (paddle.jit.to_static); auto: if faster",
        choices=(True, False, "auto"),
        steps=True,
    ),
    "strict": _key(False, bool, "refuse unknown runner keys instead of warning"),
    "use_auc": _key(False, bool, "static training: start every auc op afresh in each epoch"),
    "auc_num": _key(1, int, "not needed: the state of every auc op is found", low=0),
    "use_visual": _key(False, bool, "write a VisualDL log beside the YAML"),
    "use_fleet": _key(
        False, CHOICE, "collective training, which these tools do not do yet", job="train", choices=(False,), steps=True
    ),
    "reader_type": _key(
        "DataLoader",
        CHOICE,
        "static graph: who makes batches",
        choices=("DataLoader", "CustomizeDataLoader"),
        steps=True,
    ),
    "thread_num": _key(1, int, "static graph: environment variable CPU_NUM", low=1),
    "use_inference": _key(False, bool, "static graph: export a model after every epoch", job="train"),
    "save_inference_feed_varnames": _key((), list, "names of the exported model's inputs; empty: what outputs need"),
    "save_inference_fetch_varnames": _key((), list, "names of its outputs; empty: all logits… and probabilities…"),
    "export_epoch": _key(
        None,
        int,
        "saved epoch to export; best: the one with the validation's best keep_best; if not given, the newest in "
        "infer_load_path",
        job="export",
        low=0,
        choices=(BEST,),
    ),
    "export_path": _key("exported", str, "folder of the exported model, relative to the working one"),
    "export_format": _key(
        "paddle", CHOICE, "onnx: write an ONNX file beside Paddle's own", job="export", choices=("paddle", "onnx")
    ),
    "predict_path": _key(
        "predictions.csv", str, "file to write, .csv or .npz, relative to the working folder", job="infer"
    ),
    "predict_threads": _key(0, int, "threads of the exported model; 0: one for each core", job="infer", low=0),
    "use_save_data": _key(False, bool, "static graph: write all batches' fetches to result.npy"),
    "use_out_vec": _key(False, bool, "static graph: start a parameter from out_vec_path", job="train", steps=True),
    "emb_weight_name": _key(None, str, "that parameter's name", job="train", steps=True),
    "out_vec_path": _key(None, str, "that parameter's values, a .npy file", job="train", steps=True),
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
    for name in ("train_data_dir", "test_data_dir", "validation_data_dir"):
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
        message = f"runner.{name} is not a key of these tools" + (f"; did you mean runner.{near[0]}?" if near else ".")
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
    if key.kind is CHOICE:
        text = str(value).lower()
        for choice in key.choices:
            if text == str(choice).lower():
                return choice
        wanted = " or ".join(str(choice).lower() if isinstance(choice, bool) else choice for choice in key.choices)
    elif key.kind is not int:
        if isinstance(value, key.kind):
            return value if key.kind is not str else _checked_text(name, value)
        if value is False and key.default == "off":  # YAML 1.1 reads off as false
            return "off"
        if key.kind is str and isinstance(value, (int, float)):  # a folder may be named 0
            return str(value)
        wanted = {bool: "true or false", str: "a text", list: "a list"}[key.kind]
    else:
        whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
        if whole and not isinstance(value, bool) and value >= key.low:
            return int(value)
        if value in (key.choices or ()):
            return value
        wanted = " or ".join([f"a whole number >= {key.low}", *(key.choices or ())])
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
