"""Mutated and hostile checkpoints and configs: python tests/stress/fuzz_files.py --files 2000

Each goes through what the tools do with it: a config is loaded and checked; a checkpoint is read and resumed from in
its graph, and trained for a step. A mutated file gets its new digest in the manifest, so that it reaches the loader.
It must be accepted, or refused by a UserError that names the file or the key: no code of it runs (it would make a
file, the canary), nothing else is raised, nothing hangs, and memory is bounded. tests/model/test_array_files.py runs
a few.
"""

import faulthandler
import functools
import json
import logging
import os
import pathlib
import pickle
import sys
import time

import fuzz_data
import numpy as np
from hypothesis import strategies as st

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tools")]

from dselect_k_model import hyper_parameters  # noqa: E402  (the path is set above)
from engine.checkpoints import manifests, weight_files  # noqa: E402  (likewise)
from engine.config import load_config  # noqa: E402  (likewise)
from engine.errors import UserError, user_errors  # noqa: E402  (likewise)
from engine.keys import check_unknown_keys, read_settings  # noqa: E402  (likewise)
from support.trained import GRAPHS, Trained  # noqa: E402  (likewise)

HANG_S = 120  # then the process ends, with a traceback of where it was
CONFIGS = [(ROOT / name).read_bytes() for name in ("config.yaml", "config_bigdata.yaml")]


class Files:
    """Gives files of every kind to the tools, and judges what they do.

    Args:
        folder: for the files and the canary.
    """

    def __init__(self, folder):
        self.folder, self.canary = folder, os.path.join(folder, "canary")
        self.trained = {name: Trained(name, folder) for name in GRAPHS}

    def kinds(self):
        """(graph or "config", name of the file, its good content)."""
        saved = [(name, file, good) for name, one in self.trained.items() for file, good in sorted(one.good.items())]
        return [kind for kind in saved if kind[1].endswith((".pdparams", ".pdopt", ".json"))] + [
            ("config", "config.yaml", content) for content in CONFIGS
        ]

    def check(self, where, file, content, must_fail=False):
        """Give one file to the tools; AssertionError: they did anything not allowed. True: it was accepted."""
        faulthandler.dump_traceback_later(HANG_S, exit=True)
        began, accepted = time.process_time(), False
        try:
            self._load_config(content) if where == "config" else self.trained[where].take(file, content)
            accepted = True
        except UserError as error:
            assert any(word in str(error) for word in (self.folder, "runner.", "hyper_parameters.")), error
            assert len(str(error)) < 2000, "the message is too long"
        finally:
            faulthandler.cancel_dump_traceback_later()
        taken = time.process_time() - began
        assert not (accepted and must_fail), f"a hostile {file} was accepted"
        assert taken < fuzz_data.LIMIT_S, f"{taken:.1f} s for a {file} of {len(content)} bytes"
        assert not os.path.exists(self.canary), f"code of a {file} ran"
        return accepted

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


def nested(levels, hold):
    return functools.reduce(lambda value, _: hold(value), range(levels), 1.0)


def laughs(levels=40):
    return nested(levels, lambda value: [value, value])


def hostile_weights(file, good, canary):
    """Name -> content of a .pdparams or .pdopt that must be refused."""
    content = pickle.loads(good)
    name = next(key for key, value in content.items() if isinstance(value, np.ndarray))
    others = {key: value for key, value in content.items() if key != name}
    cycle = {}
    cycle["x"] = cycle
    odd = {"None": None, "text": "x", "number": 3, "list": [1.0], "laughs": laughs(), "cycle": cycle}
    odd |= {"shape": np.zeros([7, 7], "float32"), "texts": np.array("ab"), "objects": np.array([None])}
    made = {f"{kind} for an array": pickle.dumps({**content, name: value}) for kind, value in odd.items()}
    made["a call for an array"] = pickle.dumps({**content, name: fuzz_data.Call(open, canary, "w")})
    made["a name less"] = pickle.dumps(others)
    made["names of other kinds"] = pickle.dumps({3: np.zeros(2), None: np.zeros(2), "a": np.zeros(2)})
    shape_3 = pickle.dumps({name: np.zeros(3, "float32")}, protocol=2)
    assert shape_3.count(b"K\x03\x85") == 1
    huge = b"J\xff\xff\xff\x7f" * 3 + b"t"
    for kind, claim in {"huge": b"(" + huge, "negative": b"J\xff\xff\xff\xff\x85", "zeros": b"(K\x00" + huge}.items():
        made[f"a shape that is {kind}"] = shape_3.replace(b"K\x03\x85", claim)
    if file == weight_files.DYNAMIC + ".pdparams":
        made["a table of names that is none"] = pickle.dumps({**content, weight_files.NAME_TABLE: [[name]]})
        of_data = fuzz_data.hostile(canary)  # which fuzz_data.py checks; the loader is the same
        made |= {name: of_data[name] for name in ("os.system", "open", "huge bytes", "a deep key", "a huge memo")}
    if file.endswith(".pdopt"):
        made["another optimizer"] = good.replace(b"moment1", b"momentx")
        made["another parameter"] = good.replace(b"linear_0", b"linear_7")
        made["one more"] = pickle.dumps({**content, "surplus_moment1_0": np.zeros(3, "float32")})
    return made


LONG = "x" * 100_000
SCHEDULES = [None, [], {}, {"last_epoch": 0}, {"last_epoch": 0, "lr": 1}, laughs(5)] + [
    {"last_epoch": epoch, "last_lr": rate}
    for epoch, rate in (("0", 0.1), (0.5, 0.1), (True, 0.1), (0, float("nan")), (LONG, 0.1), (1e999, 0.1), (10**60, 1))
]
SO_FAR = {"sums": {"loss": 1.0}, "examples": {"loss": 2}, "newest": {"loss": 1.0}, "counted": []}
BAD_SO_FAR = {"sums": [[], {"loss": "x"}], "examples": [{}, 3, {"loss": 0}, {"loss": 10**60}], "counted": [{}]}
BAD_SO_FAR |= {"newest": [None, {"loss": "x"}], "more": [1]}
BAD_FACTS = {
    "epoch": [LONG, -1, 1.0, True, None, "0", 10**30, [], {}],
    "batch": [-1, 1.5, 10**30, {}],
    "format": [2, "1", [], None],
    "saved_at": ["now", None, float("nan"), float("inf"), -1e999, 3],
    "graph": ["other", 3, None, [], LONG],
    "config": [None, [], "x", {"runner.seed": LONG}, {"x": 1}]
    + [{"hyper_parameters.gamma": value} for value in (laughs(9), nested(400, lambda value: [value]))],
    "numbers": [None, [], {"loss": "x"}, {"loss": True}],
    "parameters": [None, [], {"x": 1}, {}],
    "so_far": [[], {}] + [{**SO_FAR, key: value} for key, values in BAD_SO_FAR.items() for value in values],
    "run": [None, 3, []],
    "files": [None, [], {"rec.pdparams": 3}, {"../x": ""}, {"\0": ""}, {LONG: ""}, {"": ""}, {".": ""}],
}


def hostile_manifests(graph, good):
    """Name -> content of a manifest.json that must be refused."""
    facts = json.loads(good)
    changes = {**BAD_FACTS, "schedule": ["x"] + (SCHEDULES if graph == "static" else [])}
    made = {
        f"{k}: {str(v)[:40]}": json.dumps({**facts, k: v}).encode() for k, values in changes.items() for v in values
    }
    for name in {*changes} - {"run"}:
        made[f"no {name}"] = json.dumps({key: value for key, value in facts.items() if key != name}).encode()
    return {
        **made,
        "deep": b"[" * 100_000,
        "deep mapping": b'{"a":' * 50_000,
        "closed": b"[" * 50_000 + b"]" * 50_000,
        "digits": good.replace(b'"batch": 1', b'"batch": 1' + b"0" * 5000),
        "1e999": good.replace(b'"batch": 1', b'"batch": 1e999'),
        "a surrogate": good.replace(b'"graph": "', b'"graph": "\\ud800'),
        "repeated keys": good[:-1].rstrip(b"}\n ") + b', "epoch": -1}',
        **{name: name.encode() for name in ("", "null", "\0")},
        "not UTF-8": b"\xff\xfe{}",
        "UTF-16": good.decode().encode("utf-16"),
    }


def hostile_configs(canary):
    """Name -> content of a YAML file that must be refused: a good one but for one thing."""
    good = CONFIGS[0].decode()
    epochs = ["9" * 5000, '!!int ""', "!!timestamp x", "!!bool x", ".inf", "!!set {a, b}", "[" + "1, " * 3000 + "1]"]
    epochs += ["*" + "x" * 10_000, "6\n  epochs: 7", "x" * 50_000]
    epochs += ["\n" + "\n".join(f"  train_batch_size{i}: 1" for i in range(2500))]
    keys = ", ".join(f"k{i}: 1" for i in range(2000))
    sections = [
        f"!!python/object/apply:os.system ['touch {canary}']",
        f"!!python/object/new:os.system ['touch {canary}']",
        *("!!python/name:os.system", "!!python/module:os", "&a {b: *a}", "&a !!pairs [b: *a]", "\0"),
        *("[" * 50_000, "{a: " * 20_000, "\n" + "- " * 50_000, "1\n---\n" + good),
        "\na0: &a0 [x, x]\n" + "\n".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 40)),
        f"\nb: &b {{{keys}}}\nc: {{<<: [{', '.join(['*b'] * 5000)}]}}",
    ]
    path = "model_save_path: output "
    texts = ["", *(f"{good}\nx: {text}" for text in sections)]
    for old, values in {
        path: ['model_save_path: "a\\0b" ', 'model_save_path: "\\ud800" '],
        "gamma: 1.0": ["gamma: 1e999", "gamma: .nan"],
        "epochs: 6": [f"epochs: {text}" for text in epochs],
    }.items():
        assert old in good
        texts += [good.replace(old, value) for value in values]
    contents = [text.encode() for text in texts]
    contents += [good.encode() + b"\xff", good.encode("utf-16"), good.encode("utf-32")]
    return dict(enumerate(contents))


def check_hostile(files):
    """Check that every handwritten file is refused; gives their number."""
    count = 0
    for where, file, good in files.kinds():
        if where == "config":
            made = hostile_configs(files.canary) if good == CONFIGS[0] else {}
        elif file == manifests.MANIFEST:
            made = hostile_manifests(where, good)
        elif file.endswith(".json"):  # the program, which nothing reads
            continue
        else:
            made = hostile_weights(file, good, files.canary)
        for name, content in made.items():
            try:
                files.check(where, file, content, must_fail=True)
            except Exception as error:
                raise AssertionError(f"{where}, {file}, {name}") from error
            count += 1
    return count


YAML_PIECES = [
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
YAML_PIECES += [b"!!set ", b"!!pairs ", b"!!binary ", b"!!python/name:os.system ", b"'", b'"', b"\\", b"\0", b"\xff"]
YAML_PIECES += [b"1e999", b".nan", b"0x", b"1:1:1", b"null", b"true", b"2026-01-01", b"#", b"%", b"|", b"\t", b"---"]
JSON_PIECES = [b"{", b"}", b"[", b"]", b":", b",", b'"', b"1e999", b"NaN", b"-1", b"null", b"true", b"\\ud800", b"0"]


def fuzz(number, seed, files):
    """Check ``number`` mutations of good files; gives how many were accepted after all."""
    pieces = {"config.yaml": YAML_PIECES, manifests.MANIFEST: JSON_PIECES}

    def edited(kind):
        return st.tuples(st.just(kind), fuzz_data.edits(pieces.get(kind[1], fuzz_data.PIECES)))

    def judge(case):
        (where, file, good), edits = case
        return files.check(where, file, fuzz_data.mutate(good, edits))

    return fuzz_data.for_each(st.sampled_from(files.kinds()).flatmap(edited), number, seed, judge)


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)
    fuzz_data.run_and_report(__doc__, Files, check_hostile, fuzz)
