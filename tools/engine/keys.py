"""The declarations of the tools' own keys, ``runner.*``, and their settings."""

import logging
import os
import types

from engine.errors import UserError
from engine.processes import Alone
from engine.shared import config_key

Key, REQUIRED, STEP, unknown = config_key.Key, config_key.REQUIRED, config_key.STEP, config_key.unknown
LOG = logging.getLogger("engine")
BEST = "best"  # stands for an epoch
TRAIN, INFER, EXPORT = "train", "infer", "export"

RUNNER_KEYS = {
    "use_gpu": Key(
        "choice",
        "auto",
        "Whether to compute on a GPU: true ends in an error if there is none, auto uses one if there is one.",
        choices=(True, False, "auto"),
    ),
    "use_xpu": Key(bool, False, "Whether to compute on an XPU; it takes precedence over a GPU."),
    "use_npu": Key(bool, False, "Whether to compute on an NPU; it takes precedence over a GPU."),
    "train_data_dir": Key(
        "path", REQUIRED, "The folder of the training data, relative to the YAML's folder.", job=TRAIN
    ),
    "test_data_dir": Key("path", REQUIRED, "The folder of the test data, relative to the YAML's folder.", job=INFER),
    "validation_data_dir": Key(
        "path", None, "The folder of data to evaluate on after each epoch, relative to the YAML's folder.", job=TRAIN
    ),
    "train_batch_size": Key(
        int, REQUIRED, "The number of examples in a training step.", job=TRAIN, low=1, decides=STEP
    ),
    "infer_batch_size": Key(int, REQUIRED, "The number of examples in an evaluation step.", job=INFER, low=1),
    "train_reader_path": Key(
        str, "reader", "The module, beside the YAML, whose RecDataset reads the training data.", job=TRAIN, decides=STEP
    ),
    "infer_reader_path": Key(
        str, "reader", "The module, beside the YAML, whose RecDataset reads the test data.", job=INFER
    ),
    "num_workers": Key(int, 0, "The number of processes that read data; with 0 the tool itself reads.", low=0),
    "epochs": Key(int, REQUIRED, "The number of passes over the training data.", job=TRAIN, low=1),
    "print_interval": Key(int, REQUIRED, "The number of steps between two lines of the log.", low=1),
    "progress": Key(
        "choice",
        "auto",
        "Whether a progress bar replaces the interval lines (pip install tqdm); auto shows one on a "
        "terminal if tqdm is installed.",
        choices=(True, False, "auto"),
    ),
    "log_json": Key(
        "path",
        None,
        "A file to append the log to as lines of JSON, relative to the working folder. A resumed run "
        "continues the same file; steps repeated after a resume are logged again.",
    ),
    "seed": Key(int, 12345, "The seed of paddle, numpy and random.", low=0, decides=STEP),
    "model_save_path": Key(
        "path",
        "model_output",
        "The folder to write checkpoints to, one folder an epoch, relative to the working folder.",
        job=TRAIN,
    ),
    "model_init_path": Key("path", None, "A checkpoint whose weights the run starts from (warm start).", job=TRAIN),
    "infer_load_path": Key(
        "path", "model_output", "The folder of the checkpoints, relative to the working folder.", job=INFER
    ),
    "infer_run": Key(str, "newest", "The run whose checkpoints to evaluate or export: newest, all, or a run's id."),
    "infer_epoch": Key(
        int,
        None,
        "The one epoch to evaluate; best is the epoch with the best keep_best of the validation. Without it, "
        "all epochs from infer_start_epoch on are evaluated.",
        job=INFER,
        low=0,
        choices=(BEST,),
    ),
    "infer_start_epoch": Key(int, 0, "The first epoch to evaluate.", job=INFER, low=0),
    "infer_end_epoch": Key(
        int, None, "The epoch after the last one to evaluate; without it, all to the run's last.", job=INFER, low=0
    ),
    "shuffle": Key(
        bool,
        False,
        "Whether to draw a new order of the examples for each epoch, from the seed.",
        job=TRAIN,
        decides=STEP,
    ),
    "shuffle_window": Key(
        int,
        None,
        "The number of rows of an iterable reader that are shuffled among each other. The default is 100000 "
        "for a reader that gives blocks, else 4096.",
        job=TRAIN,
        low=1,
        decides=STEP,
    ),
    "drop_last": Key(
        bool, True, "Whether training skips the last, partial batch of an epoch.", job=TRAIN, decides=STEP
    ),
    "infer_drop_last": Key(bool, False, "Whether evaluation skips the last, partial batch.", job=INFER),
    "lr_step": Key(
        "choice",
        "none",
        "When the tool advances a package's learning-rate schedule: after each batch, each epoch, or never.",
        job=TRAIN,
        choices=("none", "batch", "epoch"),
        decides=STEP,
    ),
    "steps_per_epoch": Key(
        int,
        None,
        "The number of training steps an epoch, for learning-rate schedules only: it does not limit the "
        "epoch. The tool counts the steps itself where it can.",
        job=TRAIN,
        low=1,
        decides=STEP,
    ),
    "resume": Key(
        "path",
        "off",
        "Which checkpoint to continue: off for none, auto for the newest, or the folder of one.",
        job=TRAIN,
    ),
    "save_interval_steps": Key(
        int,
        0,
        "The number of steps between checkpoints inside an epoch; with 0 there is one after each epoch only.",
        job=TRAIN,
        low=0,
    ),
    "keep_last": Key(int, 0, "The number of epochs whose checkpoints are kept; 0 keeps all.", job=TRAIN, low=0),
    "keep_best": Key(
        str,
        None,
        "The metric that says which epoch is best: of the validation if there is one, else of the training. "
        "keep_last keeps that epoch too.",
    ),
    "patience": Key(
        int,
        0,
        "The number of epochs in a row without a better keep_best in the validation after which training ends; "
        "0: never.",
        job=TRAIN,
        low=0,
    ),
    "processes_timeout": Key(
        int,
        600,
        "Where several processes train: the seconds within which all must have started, and for which they wait while "
        "one works alone, as when it saves.",
        low=1,
    ),
    "skip_not_finite": Key(
        int,
        0,
        "The number of steps in a row that are undone, because a value is not finite, before the run ends.",
        job=TRAIN,
        low=0,
    ),
    "tune_process": Key(
        bool, True, "Whether to set what makes Paddle fast on this CPU (MKL on AMD, glibc, the executor)."
    ),
    "to_static": Key(
        "choice",
        False,
        "Dynamic graph: whether to compile the network (paddle.jit.to_static); auto does where that is faster.",
        choices=(True, False, "auto"),
        decides=STEP,
    ),
    "strict": Key(bool, False, "Whether unknown runner keys are refused; otherwise the tools warn of them."),
    "use_auc": Key(bool, False, "Static graph: whether every auc operator starts afresh in each training epoch."),
    "auc_num": Key(int, 1, "Ignored: the tools find the state of every auc operator themselves.", low=0),
    "use_visual": Key(bool, False, "Whether to write a VisualDL log beside the YAML."),
    "use_fleet": Key(
        "choice",
        "auto",
        "Whether the processes that a launcher has started train together, which they do unless this is false: then "
        "several are refused. true warns if there is only one.",
        choices=(True, False, "auto"),
    ),
    "reader_type": Key(
        "choice",
        "DataLoader",
        "Static graph: who makes the batches, the tool (DataLoader) or the package's "
        "create_data_loader (CustomizeDataLoader).",
        choices=("DataLoader", "CustomizeDataLoader"),
        decides=STEP,
    ),
    "thread_num": Key(int, 1, "Static graph: the value of the environment variable CPU_NUM.", low=1),
    "use_inference": Key(bool, False, "Static graph: whether to export a model after every epoch.", job=TRAIN),
    "save_inference_feed_varnames": Key(
        list, (), "The names of the exported model's inputs; if empty, what its outputs need."
    ),
    "save_inference_fetch_varnames": Key(
        list, (), "The names of the exported model's outputs; if empty, those of all tasks."
    ),
    "export_epoch": Key(
        int,
        None,
        "The epoch to export; best is the epoch with the best keep_best of the validation. Without it, the "
        "newest in infer_load_path is exported.",
        job=EXPORT,
        low=0,
        choices=(BEST,),
    ),
    "export_path": Key("path", "exported", "The folder of the exported model, relative to the working folder."),
    "export_format": Key(
        "choice",
        "paddle",
        "The format of the exported model; onnx writes an ONNX file beside Paddle's own.",
        job=EXPORT,
        choices=("paddle", "onnx"),
    ),
    "predict_path": Key(
        "path",
        "predictions.csv",
        "The file of predictions to write, .csv or .npz, relative to the working folder.",
        job=INFER,
    ),
    "predict_threads": Key(
        int, 0, "The number of threads of the exported model; 0 is one for each core.", job=INFER, low=0
    ),
    "use_save_data": Key(bool, False, "Static graph: whether to write the fetches of all batches to result.npy."),
    "use_out_vec": Key(
        bool, False, "Static graph: whether a parameter starts from the array in out_vec_path.", job=TRAIN, decides=STEP
    ),
    "emb_weight_name": Key(str, None, "The name of the parameter that use_out_vec sets.", job=TRAIN, decides=STEP),
    "out_vec_path": Key(
        "path", None, "The .npy file with the values of the parameter that use_out_vec sets.", job=TRAIN, decides=STEP
    ),
}


def default_values(keys):
    """``runner.`` and a name -> the key's default, None where a value is required; ``keys``: name -> Key."""
    return {f"runner.{name}": None if key.is_required else key.default for name, key in keys.items()}


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
    settings = types.SimpleNamespace(
        **{name: _value(f"runner.{name}", config.get(f"runner.{name}"), key, job) for name, key in RUNNER_KEYS.items()}
    )
    settings.processes = Alone()  # ``jobs.run`` joins others
    for name in ("train_data_dir", "test_data_dir", "validation_data_dir"):
        if getattr(settings, name) is not None:
            setattr(settings, name, os.path.join(config["config_abs_dir"], getattr(settings, name)))
    return settings


def _value(name, value, key, job):
    if value is None and not key.is_required:
        return key.default
    if value is None:
        if key.job in ("", job):
            raise UserError(f"{name} is missing. {key.meaning} Add it to the YAML, or give it by -o.")
        return None
    try:
        return key.check(name, value)
    except ValueError as error:
        raise UserError(str(error)) from error


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
        message = unknown(name, known, "runner.", "these tools")
        if strict:
            raise UserError(f"{message} (runner.strict is true; set it to false to pass unknown keys on.)")
        LOG.warning("%s It is passed on to the package.", message)
