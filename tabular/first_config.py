"""What data/make_vocabulary.py prints of a table: a report by column, and lines for a config or a whole first one."""

import json
import math
import os
import re
import sys
from typing import NamedTuple

import yaml

from tabular.profile import class_names
from tabular.values import NULL_TEXTS

ID_SHARE = 0.5  # of the rows: with more different values, a sparse column is called an id
MANY_VALUES = 100  # values, from which on that is looked at


# ------------------------------------------------------------------------------------------ tasks


def suggested_task(summary):
    """(an entry of ``tasks``, without its name, that fits a column of labels; a remark)."""
    from dselect_k_model.kinds import KINDS  # it imports Paddle: that takes seconds, and warns on stderr

    return next(filter(None, (kind.suggest(summary) for kind in KINDS.values())))


def _task(columns, name):
    """(The entry of ``tasks`` for a column of labels, without its name; a remark; rows without a label)."""
    if name in columns.labels:
        summary = columns.labels[name]
        return (*(suggested_task(summary) if summary.count else ({}, "there are no labels")), summary.missing)
    counter = columns.classes[name].counter
    names, missing = class_names(counter), sum(counter[text] for text in counter if text in NULL_TEXTS)
    rarest = min(names, key=counter.get)
    task = {"classes": f"[{', '.join(map(in_yaml, names))}]"}
    if len(names) == 2:
        return {"kind": "binary", **task}, f"no, then yes: swap them if {names[0]} is what you look for", missing
    return task, f"the rarest, {rarest}, in {counter[rarest]} rows", missing


def in_yaml(name):
    """A name as YAML reads it back: in quotes unless it is a plain word without a meaning of its own."""
    plain = re.fullmatch(r"[^\W\d]\w*", name) and name.lower() not in ("y", "n") and yaml.safe_load(name) == name
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"  # standard output may be closed
    can_be_shown = name.encode(encoding, "ignore").decode(encoding) == name
    return name if plain and can_be_shown else json.dumps(name, ensure_ascii=not can_be_shown)


def input_lines(vocabulary):
    """The lines under ``input:``."""
    return [f"    {name}: {value}".replace("'", "").lower() for name, value in vocabulary.config().items()]


def task_lines(columns):
    """The lines under ``tasks:``."""
    lines = []
    for name in columns.names:
        task, remark, missing = _task(columns, name)
        entry = ", ".join(f"{key}: {value}" for key, value in {"name": in_yaml(name), **task}.items())
        lines.append(f"    - {{{entry}}}  # {remark}" + (f", missing in {missing} rows" if missing else ""))
    return lines


# ----------------------------------------------------------------------------------------- report


def report(columns, vocabulary):
    """Lines on the rows and each column of the inputs, with warnings."""
    skipped = f"; {columns.bad} bad rows were skipped, the first: {columns.first_bad}" if columns.bad else ""
    lines = [f"{vocabulary.path}: of {columns.rows} rows{skipped}"]
    for number in vocabulary.numbers:
        lines.append(f"  {number.column}: {_of_numbers(columns, number)}")
    for category in (*vocabulary.categories, *vocabulary.lists):
        lines.append(f"  {category.column}: {_of_category(columns, category)}")
    return lines


def _of_numbers(columns, number):
    made = f"{len(number.edges) - 1} pieces" if number.edges else "standardised"
    made += f", on a {number.scale} scale" if number.scale else ""
    return _of_range(columns, number.column, made)


def _of_range(columns, name, made):
    summary = columns.dense[name]
    facts = [f"{summary.least:g} to {summary.greatest:g}", *_missing(summary.missing, columns.rows), made]
    if summary.least == summary.greatest:
        facts.append("WARNING: a constant says nothing; leave it out")
    return ", ".join([*facts, *_equal_to_labels(columns, name)])


def _counted_bins(ids):
    number = len(ids.edges) + 1
    return f"{number} bins, an id each" if number > 1 else "1 bin"


def _of_category(columns, category):
    if category.ids.of_numbers:
        return _of_range(columns, category.column, _counted_bins(category.ids))
    sparse, facts = columns.all_sparse[category.column], []
    distinct = sparse.distinct()
    if category.pooling:
        facts.append(f"lists of up to {sparse.longest}, {sparse.filled / max(sparse.rows, 1):.1f} on average")
    if sparse.hash:
        about = f"some {distinct:.3g} values in" if math.isfinite(distinct) else "more values than"
        facts.append(f"{about} {sparse.hash} ids, {100 * sparse.collisions():.2g} % of all values with another's id")
    else:
        facts.append(f"{distinct} values, {category.ids.size - 1} with an id")
    facts += [f"the ids of {category.like}"] if category.like else []
    facts += _missing(sparse.missing, sparse.filled + sparse.missing)
    if not category.pooling and not sparse.hash and distinct > max(MANY_VALUES, ID_SHARE * sparse.filled):
        facts.append("WARNING: an id of the row? most of its values occur once; leave it out, or give --min-count")
    if distinct < 1.5:  # an estimate, of hashes
        facts.append(f"WARNING: {'a constant' if distinct else 'an empty column'} says nothing; leave it out")
    return ", ".join([*facts, *_equal_to_labels(columns, category.column)])


def _missing(number, rows):
    return [f"missing in {100 * number / rows:.2g} %"] if number else []


def _equal_to_labels(columns, name):
    found = [label for label in columns.names if columns.is_equal(name, label)]
    return [f"WARNING: it equals the label {label} in every row; a model would only copy it" for label in found]


# ------------------------------------------------------------------------------------- the config


class Advice(NamedTuple):
    """Settings for a training, and why."""

    batch_size: int
    epochs: int
    hidden_sizes: list
    why_epochs: str
    why_sizes: str


STEPS = 3000  # of a training
LEAST_EPOCHS, MOST_EPOCHS = 3, 40
FEW_ROWS, MANY_ROWS = 5_000, 20_000


def advice(rows):
    """Settings for a table of so many training rows."""
    batch_size = 256 if rows >= MANY_ROWS else 128 if rows >= FEW_ROWS else 32
    steps = math.ceil(rows / batch_size)
    epochs = min(max(round(STEPS / steps), LEAST_EPOCHS), MOST_EPOCHS)
    why_epochs = f"an epoch has {steps} steps; some {STEPS} steps, in {LEAST_EPOCHS} to {MOST_EPOCHS} epochs"
    if rows < FEW_ROWS:
        return Advice(batch_size, epochs, [64], why_epochs, f"small, because {rows} rows are soon known by heart")
    return Advice(batch_size, epochs, [256, 128], why_epochs, f"[64] for fewer than {FEW_ROWS} rows")


CONFIG = """\
# A first config, for {rows} training rows. docs/tables.md explains it, docs/keys.md lists all keys.
runner:
  train_data_dir: {train}  # folders and vocabulary are relative to this file
  {validation}
  test_data_dir: {test}
  train_reader_path: tabular.reader
  infer_reader_path: tabular.reader
  vocabulary: {vocabulary}
  shuffle: true
  epochs: {advice.epochs}  # {advice.why_epochs}
  train_batch_size: {advice.batch_size}
  infer_batch_size: 1024
  print_interval: 50
  model_save_path: {output}  # this and the next three are relative to where you are
  infer_load_path: {output}
  export_path: {exported}
  predict_path: {predictions}
  strict: true

hyper_parameters:
  input:
{inputs}
  tasks:  # guessed from the labels, in the order of --labels: correct them
{tasks}
  gate: dselect_k
  expert_num: 8
  top_k: 2
  entropy_weight: 0.01  # with 0.1, tasks may settle in the first epoch, on the same expert
  expert_hidden_sizes: {advice.hidden_sizes}  # {advice.why_sizes}
  expert_size: 64
  expert_norm: none
  tower_size: 64
  optimizer:
    class: adamw
    learning_rate: 0.003
    weight_decay: 0.1
    schedule: restarts  # the rate comes down three times: the best epoch may be that of a short training or a long one
    gate_learning_rate_factor: 3.0
"""
VALIDATED = """validation_data_dir: {validation}
  keep_best: loss  # the best epoch has the least loss on the validation rows
  infer_epoch: best
  export_epoch: best"""
NOT_VALIDATED = """# validation_data_dir: validation  # rows to choose the best epoch by, with keep_best: loss
  infer_epoch: {last}"""


def first_config(columns, vocabulary, folders, path):
    """The text of a config.

    Args:
        columns: profile.Columns, with labels.
        vocabulary: the Vocabulary.
        folders: "train", "validation", "test" -> path; None: there is none.
        path: of the config, to which its paths are relative.
    """
    chosen, beside = advice(columns.rows), os.path.dirname(os.path.abspath(path))

    def relative(to):
        return to and in_yaml(os.path.relpath(to, beside).replace(os.sep, "/"))

    paths = {part: relative(folder) for part, folder in folders.items()}
    written = {name: os.path.join(os.path.dirname(path), name) for name in ("output", "exported", "predictions.csv")}
    written = {name.partition(".")[0]: in_yaml(place.replace(os.sep, "/")) for name, place in written.items()}
    form = VALIDATED if paths["validation"] else NOT_VALIDATED
    return CONFIG.format(
        rows=columns.rows,
        train=paths["train"],
        validation=form.format(validation=paths["validation"], last=chosen.epochs - 1),
        test=paths["test"] or "test  # a folder of rows that the training has not seen",
        vocabulary=relative(vocabulary.path),
        **written,
        advice=chosen,
        inputs="\n".join(input_lines(vocabulary)),
        tasks="\n".join(task_lines(columns)),
    )
