"""Mutated and hostile saves and configs: python tests/stress/fuzz_files.py --files 2000

Each goes through what the tools do with it: a config is loaded and checked, a save is read and resumed
from in its graph, and a step is trained. A mutated file of a save gets its new digest in the manifest, so
that it reaches the loader. Allowed are success and a UserError that names the file or the key: no code of
a file runs (a canary would show), no other exception, no hang, and memory stays bounded.
tests/test_faults.py runs a few.
"""

import faulthandler
import hashlib
import json
import logging
import os
import pathlib
import pickle
import shutil
import struct
import sys
import tempfile
import time

import fuzz_data
import numpy as np
import paddle
from hypothesis import strategies as st

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tools")]

import hyper_parameters  # noqa: E402  (the path is set above)
from engine.config import load_config  # noqa: E402  (likewise)
from engine.errors import NotFinite, UserError, user_errors  # noqa: E402  (likewise)
from engine.graphs import programs  # noqa: E402  (likewise)
from engine.graphs.dynamic import DynamicGraph  # noqa: E402  (likewise)
from engine.graphs.static import StaticGraph  # noqa: E402  (likewise)
from engine.keys import check_unknown_keys, read_settings  # noqa: E402  (likewise)
from engine.meter import Meter  # noqa: E402  (likewise)
from engine.package import Package  # noqa: E402  (likewise)
from engine.saves import manifests, weight_files  # noqa: E402  (likewise)
from engine.saves.session import Session  # noqa: E402  (likewise)

LIMIT_S = 10  # for one file
LIMIT_MB = 400  # growth of the process over a run
HANG_S = 120  # then the process ends, with a traceback of where it was
GRAPHS = {"dynamic": DynamicGraph, "static": StaticGraph}
SMALL = [
    "runner.epochs=3", "runner.steps_per_epoch=4", "runner.train_batch_size=2", "hyper_parameters.expert_num=2",
    "hyper_parameters.top_k=1", "hyper_parameters.expert_size=3", "hyper_parameters.tower_size=3",
]  # fmt: skip
CONFIGS = [(ROOT / name).read_bytes() for name in ("config.yaml", "config_bigdata.yaml")]


class Trained:
    """A tiny network of one graph, trained for a step and saved; saves of other content are taken up by it.

    Args:
        name: "dynamic" or "static".
        folder: for its saves.
        overrides: of the config, after ``SMALL``.
    """

    def __init__(self, name, folder, *overrides):
        self.name, self.folder = name, os.path.join(folder, name)
        self._switch()
        config = load_config(str(ROOT / "config.yaml"), [*SMALL, f"runner.model_save_path={self.folder}", *overrides])
        self.settings = read_settings(config, "train")
        with programs.new_programs():
            place = paddle.set_device("cpu")
            self.graph = GRAPHS[name](Package(str(ROOT)), config, self.settings, "train", place)
        self.meter = Meter(name, "train", 1)
        self.meter.begin()
        self.session = Session(self.graph, config, self.settings, self.meter)
        self.graph.begin_epoch()
        self.step()
        so_far = {**self.meter.state(), "counted": self.graph.counted()}
        self.session._save(0, 0, 1, so_far=so_far)
        self.settings.resume = os.path.join(self.folder, "0")
        self.good = {path.name: path.read_bytes() for path in pathlib.Path(self.settings.resume).iterdir()}

    def _switch(self):
        (paddle.disable_static if self.name == "dynamic" else paddle.enable_static)()

    def step(self):
        """Train a step; a loss that is not finite is an answer too."""
        self._switch()
        rng = np.random.RandomState(0)
        batch = [rng.rand(2, 1, 36, 36).astype("float32"), np.array([1, 2]), np.array([3, 4])]
        try:
            self.graph.train_step([paddle.to_tensor(a) for a in batch] if self.name == "dynamic" else batch)
        except NotFinite:
            pass

    def take(self, file, content):
        """Resume from the good save with another content of one file. UserError if it is refused."""
        self._switch()
        shutil.rmtree(self.settings.resume, ignore_errors=True)
        os.makedirs(self.settings.resume)
        for name, good in {**self.good, file: content}.items():
            pathlib.Path(self.settings.resume, name).write_bytes(good)
        if file != manifests.MANIFEST:
            self._sign(file, content)
        self.graph.read(self.settings.resume)
        so_far, counted = self.session.first()[2:]
        self.meter.begin(so_far)
        self.graph.begin_epoch(counted)
        self.step()

    def _sign(self, file, content):
        manifest = json.loads(self.good[manifests.MANIFEST])
        manifest["files"][file] = hashlib.sha256(content).hexdigest()
        pathlib.Path(self.settings.resume, manifests.MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")


class Files:
    """Takes files of every kind through the tools, and judges what comes of it.

    Args:
        folder: for the files and the canary.
    """

    def __init__(self, folder):
        self.folder, self.canary = folder, os.path.join(folder, "canary")
        self.trained = {name: Trained(name, folder) for name in GRAPHS}

    def kinds(self):
        """(graph or "config", name of the file, its good content)."""
        saves = [(name, file, good) for name, one in self.trained.items() for file, good in sorted(one.good.items())]
        return [kind for kind in saves if kind[1].endswith((".pdparams", ".pdopt", ".json"))] + [
            ("config", "config.yaml", content) for content in CONFIGS
        ]

    def check(self, where, file, content, must_fail=False):
        """Take one file through the tools; AssertionError at anything not allowed. True: it was taken."""
        faulthandler.dump_traceback_later(HANG_S, exit=True)
        began, taken = time.perf_counter(), False
        try:
            self._load_config(content) if where == "config" else self.trained[where].take(file, content)
            taken = True
        except UserError as error:
            assert any(word in str(error) for word in (self.folder, "runner.", "hyper_parameters.")), error
            assert len(str(error)) < 2000, "the message is a wall of text"
        finally:
            faulthandler.cancel_dump_traceback_later()
        assert not (taken and must_fail), f"a hostile {file} was taken"
        took = time.perf_counter() - began
        assert took < LIMIT_S, f"{took:.1f} s for a {file} of {len(content)} bytes"
        assert not os.path.exists(self.canary), f"code of a {file} ran"
        return taken

    def _load_config(self, content):
        path = os.path.join(self.folder, "config.yaml")
        pathlib.Path(path).write_bytes(content)
        config = load_config(path)
        for job in ("train", "infer"):
            settings = read_settings(config, job)
        check_unknown_keys(config, settings.strict, ("data_part", "image_scale"))
        with user_errors(path):
            hyper_parameters.HyperParameters.from_config(config)


# ------------------------------------------------------------------------------ handwritten files


def _laughs(levels=40):
    value = ["ha"]
    for _ in range(levels):
        value = [value, value]
    return value


def _deep(levels):
    value = 1.0
    for _ in range(levels):
        value = [value]
    return value


def _cycle():
    value = {}
    value["x"] = value
    return value


def _changed(good, name, value):
    """A pickle of ``good``'s dict with another value of a name, or without it."""
    content = {key: old for key, old in pickle.loads(good).items() if key != name}
    return pickle.dumps(content if value is _changed else {**content, name: value}, protocol=4)


def _claims(good, claim):
    """A dict of an array named as ``good``'s first, whose shape is ``claim``, in pickle's own codes."""
    once = pickle.dumps({next(iter(pickle.loads(good))): np.zeros(3, "float32")}, protocol=2)
    assert once.count(b"K\x03\x85") == 1
    return once.replace(b"K\x03\x85", claim)


def hostile_saves(file, good, canary):
    """Name -> content of a .pdparams or .pdopt that must be refused."""
    name = next(key for key, value in pickle.loads(good).items() if isinstance(value, np.ndarray))
    call = fuzz_data._Call(open, canary, "w")
    odd = {"None": None, "text": "x", "number": 3, "list": [1.0], "laughs": _laughs(), "cycle": _cycle()}
    odd.update({"wrong shape": np.zeros([7, 7], "float32"), "texts": np.array("ab"), "call": call, "nothing": _changed})
    made = {f"value: {kind}": lambda value=value: _changed(good, name, value) for kind, value in odd.items()}
    made.update({f"data: {key}": lambda make=make: make(canary) for key, make in fuzz_data.HOSTILE.items()})
    made["huge shape"] = lambda: _claims(good, b"(J\xff\xff\xff\x7fJ\xff\xff\xff\x7fJ\xff\xff\xff\x7ft")
    made["negative shape"] = lambda: _claims(good, b"J\xff\xff\xff\xff\x85")
    made["shape of zeros"] = lambda: _claims(good, b"(K\x00J\xff\xff\xff\x7fJ\xff\xff\xff\x7fJ\xff\xff\xff\x7ft")
    made["dtype of objects"] = lambda: pickle.dumps({name: np.array([None])}, protocol=2)
    made["keys of other kinds"] = lambda: pickle.dumps({3: np.zeros(2), None: np.zeros(2), "a": np.zeros(2)})
    made["huge memo in a dict"] = lambda: b"\x80\x02}r\xff\xff\xff\x7f."
    made["huge text"] = lambda: b"\x80\x04}\x8d" + struct.pack("<Q", 1 << 62) + b"."
    made["many containers"] = lambda: b"\x80\x04" + b"}" * 3_000_000 + b"."
    if file == weight_files.DYNAMIC + ".pdparams":
        made["a table of names that is none"] = lambda: _changed(good, weight_files.NAME_TABLE, [[name]])
    if file.endswith(".pdopt"):
        made["another optimizer"] = lambda: good.replace(b"moment1", b"momentx")
        made["another parameter"] = lambda: good.replace(b"linear_0", b"linear_7")
        made["one more"] = lambda: _changed(good, "surplus_moment1_0", np.zeros(3, "float32"))
    return made


def _so_far(**facts):
    return {"sums": {"loss": 1.0}, "examples": {"loss": 2}, "newest": {"loss": 1.0}, "counted": [], **facts}


_SCHEDULES = [None, [], {}, {"last_epoch": 0}, {"last_epoch": "0", "last_lr": 0.1}, {"last_epoch": 0.5, "last_lr": 0.1}]
_SCHEDULES += [{"last_epoch": True, "last_lr": 0.1}, {"last_epoch": 0, "last_lr": float("nan")}, _laughs(5)]
_SCHEDULES += [{"last_epoch": "x" * 100_000, "last_lr": 0.1}]
_SCHEDULES += [{"last_epoch": 1e999, "last_lr": 0.1}, {"last_epoch": 10**60, "last_lr": 1}, {"last_epoch": 0, "lr": 1}]
_FACTS = {
    "epoch": ["x" * 100_000, -1, 1.0, True, None, "0", 10**30, [], {}],
    "batch": [-1, 1.5, 10**30, {}], "format": [2, "1", [], None],
    "saved_at": ["now", None, float("nan"), float("inf"), -1e999, 3], "graph": ["other", 3, None, [], "x" * 100_000],
    "config": [None, [], "x", {"runner.seed": "x" * 100_000}, {"hyper_parameters.gamma": _laughs(9)}, {"x": 1},
               {"hyper_parameters.gamma": _deep(400)}],
    "numbers": [None, [], {"loss": "x"}, {"loss": True}], "parameters": [None, [], {"x": 1}, {}],
    "so_far": [[], {}, _so_far(sums=[]), _so_far(sums={"loss": "x"}), _so_far(examples={}), _so_far(examples=3),
               _so_far(examples={"loss": 0}), _so_far(examples={"loss": 10**60}), _so_far(newest=None),
               _so_far(newest={"loss": "x"}), _so_far(counted={}), _so_far(more=1)],
    "run": [None, 3, []],
    "files": [None, [], {"rec.pdparams": 3}, {"../x": ""}, {"\0": ""}, {"x" * 100_000: ""}, {"": ""}, {".": ""}],
}  # fmt: skip


def hostile_manifests(graph, good):
    """Name -> content of a manifest.json that must be refused."""
    facts = json.loads(good)
    changes = {**_FACTS, "schedule": [{"of": "another kind"}, "x"] + (_SCHEDULES if graph == "static" else [])}
    made = {
        f"{name}: {str(value)[:40]}": json.dumps({**facts, name: value}).encode()
        for name, values in changes.items()
        for value in values
        if not (graph == "dynamic" and name == "schedule" and isinstance(value, dict))  # which it does not read
    }
    needed = set(changes) - {"run"}
    made.update({f"no {name}": json.dumps({k: v for k, v in facts.items() if k != name}).encode() for name in needed})
    texts = {
        "deep": b"[" * 100_000, "deep mapping": b'{"a":' * 50_000, "closed": b"[" * 50_000 + b"]" * 50_000,
        "digits": good.replace(b'"batch": 1', b'"batch": 1' + b"0" * 5000), "nothing": b"", "null": b"null",
        "1e999": good.replace(b'"batch": 1', b'"batch": 1e999'), "NUL": b"\0", "not UTF-8": b"\xff\xfe{}",
        "UTF-16": good.decode().encode("utf-16"), "a surrogate": good.replace(b'"graph": "', b'"graph": "\\ud800'),
        "repeated keys": good[:-1].rstrip(b"}\n ") + b', "epoch": -1}',
    }  # fmt: skip
    return {**made, **texts}


def hostile_configs(canary):
    """Name -> content of a YAML file that must be refused: a good one but for one thing."""
    good = CONFIGS[0].decode()
    epochs = {
        "digits": "9" * 5000, "no number": '!!int ""', "no time": "!!timestamp x", "no truth": "!!bool x",
        "infinite": ".inf", "set": "!!set {a, b}", "list": "[" + "1, " * 3000 + "1]", "alias": "*" + "x" * 10_000,
        "repeated": "6\n  epochs: 7", "long": "x" * 50_000,
        "many keys": "\n" + "\n".join(f"  train_batch_size{i}: 1" for i in range(2500)),
    }  # fmt: skip
    sections = {
        "call": f"!!python/object/apply:os.system ['touch {canary}']", "function": "!!python/name:os.system",
        "module": "!!python/module:os", "object": f"!!python/object/new:os.system ['touch {canary}']",
        "cycle": "&a {b: *a}", "cycle of pairs": "&a !!pairs [b: *a]", "NUL": "\0", "deep flow": "[" * 50_000,
        "deep mapping": "{a: " * 20_000, "deep block": "\n" + "- " * 50_000, "two documents": "1\n---\n" + good,
        "laughs": "\na0: &a0 [x, x]\n" + "\n".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 40)),
        "merges": f"\nb: &b {{{', '.join(f'k{i}: 1' for i in range(2000))}}}\nc: {{<<: [{', '.join(['*b'] * 5000)}]}}",
    }  # fmt: skip
    path = "model_save_path: output "
    texts = {
        "nothing": "",
        "NUL in a path": good.replace(path, 'model_save_path: "a\\0b" '),
        "a surrogate in a path": good.replace(path, 'model_save_path: "\\ud800" '),
        "infinite gamma": good.replace("gamma: 1.0", "gamma: 1e999"),
        "gamma of nan": good.replace("gamma: 1.0", "gamma: .nan"),
        **{f"epochs: {name}": good.replace("epochs: 6", f"epochs: {text}") for name, text in epochs.items()},
        **{f"section: {name}": f"{good}\nx: {text}" for name, text in sections.items()},
    }
    made = {name: text.encode() for name, text in texts.items()}
    return {**made, "not UTF-8": good.encode() + b"\xff", **{c: good.encode(c) for c in ("utf-16", "utf-32")}}


def check_hostile(files):
    """Check that every handwritten file is refused. Gives their number."""
    count = 0
    for where, file, good in files.kinds():
        if where == "config":
            made = hostile_configs(files.canary)
        elif file == manifests.MANIFEST:
            made = hostile_manifests(where, good)
        elif file.endswith(".json"):  # the program, which nothing reads
            continue
        else:
            made = hostile_saves(file, good, files.canary)
        for name, content in made.items():
            try:
                files.check(where, file, content() if callable(content) else content, must_fail=True)
            except Exception as error:
                raise AssertionError(f"{where}, {file}, {name}") from error
            count += 1
    return count


_YAML_PIECES = [
    b": ",
    b"- ",
    b"[",
    b"]",
    b"{",
    b"}",
    b"&a ",
    b"*a",
    b"<<: ",
    b"\n",
    b"  ",
    b"? ",
    b"!!int ",
    b"!!float ",
]
_YAML_PIECES += [b"!!set ", b"!!pairs ", b"!!binary ", b"!!python/name:os.system ", b"'", b'"', b"\\", b"\0", b"\xff"]
_YAML_PIECES += [b"1e999", b".nan", b"0x", b"1:1:1", b"null", b"true", b"2026-01-01", b"#", b"%", b"|", b"\t", b"---"]
_JSON_PIECES = [b"{", b"}", b"[", b"]", b":", b",", b'"', b"1e999", b"NaN", b"-1", b"null", b"true", b"\\ud800", b"0"]


def fuzz(number, seed, files):
    """Check ``number`` mutations of good files.

    Returns:
        How many were taken after all.
    """
    kinds = files.kinds()
    pieces = {"config": _YAML_PIECES, manifests.MANIFEST: _JSON_PIECES}
    cases = st.sampled_from(kinds).flatmap(
        lambda kind: st.tuples(
            st.just(kind), fuzz_data.edits(pieces.get(kind[0], pieces.get(kind[1], fuzz_data._PIECES)))
        )
    )

    def judge(case):
        (where, file, good), edits = case
        return files.check(where, file, fuzz_data.mutate(good, edits))

    return fuzz_data.for_each(cases, number, seed, judge)


def main():
    args = fuzz_data.arguments(__doc__)
    logging.disable(logging.CRITICAL)
    with tempfile.TemporaryDirectory() as folder:
        files = Files(folder)
        before, began = fuzz_data.megabytes(), time.perf_counter()
        print(f"{check_hostile(files)} hostile files refused")
        taken = fuzz(args.files, args.seed, files)
    grown = fuzz_data.megabytes() - before
    print(
        f"{args.files} mutated files: {taken} taken, the others refused, in {time.perf_counter() - began:.0f} s; "
        f"memory grew by {grown:.0f} MB"
    )
    assert grown < LIMIT_MB, f"that is more than {LIMIT_MB} MB"


if __name__ == "__main__":
    main()
