"""Every declared key refuses wrong values with one message, and docs/keys.md is made from the declarations."""

import make_keys
import pytest

from dselect_k_model import tasks
from dselect_k_model.config_key import Key, check_all
from dselect_k_model.hyper_parameters import HyperParameters
from dselect_k_model.kinds import KINDS
from engine.errors import UserError
from engine.keys import RUNNER_KEYS, check_unknown_keys, read_settings
from support import ROOT
from support.wrong_values import wrong_values

HYPER = HyperParameters.keys()
GIVEN = {"runner.print_interval": 1, "config_abs_dir": "."}
GIVEN.update({f"runner.{name}": "x" for name in ("train_data_dir", "test_data_dir")})
GIVEN.update({f"runner.{name}": 1 for name in ("train_batch_size", "infer_batch_size", "epochs")})


def read_runner(config):
    return read_settings({**GIVEN, **config}, "train")


TABLES = {"runner": (RUNNER_KEYS, read_runner), "hyper_parameters": (HYPER, HyperParameters.from_config)}


@pytest.mark.parametrize("section,name", [(section, name) for section, (keys, _) in TABLES.items() for name in keys])
def test_a_wrong_value_of_a_key_is_refused(section, name):
    keys, read = TABLES[section]
    for value in wrong_values(keys[name]):
        with pytest.raises((UserError, ValueError)) as caught:
            read({f"{section}.{name}": value})
        assert f"{section}.{name} is {value!r}" in str(caught.value) and keys[name].meaning in str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
def test_a_wrong_value_of_a_tasks_key_is_refused(kind):
    required = {
        name: {"classes": 3, "labels": ["a", "b"]}[name] for name, key in KINDS[kind].keys.items() if key.is_required
    }
    entry = {"kind": kind, **required}
    assert tasks.parse([entry], 8)
    for name, key in {**tasks.KEYS, **KINDS[kind].keys}.items():
        for value in wrong_values(key):
            with pytest.raises(ValueError, match=r"tasks\[0\]\." + name):
                tasks.parse([{**entry, name: value}], 8)


def test_a_misspelt_key_names_the_right_one():
    for name in HYPER:
        with pytest.raises(ValueError, match=f"did you mean hyper_parameters.{name}?"):
            HyperParameters.from_config({f"hyper_parameters.{name}{name[-1]}": 1})
    for name in RUNNER_KEYS:
        with pytest.raises(UserError, match=f"did you mean runner.{name}?"):
            check_unknown_keys({f"runner.{name}{name[-1]}": 1}, strict=True)


def test_a_required_key_without_a_value_is_refused():
    for name in ("train_data_dir", "train_batch_size", "epochs", "print_interval"):
        with pytest.raises(UserError, match=f"runner.{name} is missing. {RUNNER_KEYS[name].meaning}"):
            read_settings({**GIVEN, f"runner.{name}": None}, "train")


@pytest.mark.parametrize(
    "key,value,expected",
    [
        (Key(float, 1.0, "", above=0), "1e-3", 0.001),
        (Key(int, 1, "", low=0), 16.0, 16),
        (Key(int, None, "", low=0, choices=("best",)), "best", "best"),
        (Key("choice", "auto", "", choices=(True, False, "auto")), "TRUE", True),
        (Key("path", "off", ""), False, "off"),
        (Key("path", "x", ""), 0, "0"),
        (Key("name", "a", "", choices=("a",)), "my_gate.make", "my_gate.make"),
        (Key("sizes", (), "", high=8), ["8", 1.0], (8, 1)),
    ],
)
def test_a_value_is_read_as_the_declared_type(key, value, expected):
    checked = key.check("k", value)
    assert checked == expected and type(checked) is type(expected)


def test_a_table_of_keys_fills_in_defaults_and_refuses_unknown_names():
    keys = {"rate": Key(float, 0.5, "The rate.", above=0)}
    assert check_all(keys, {}) == {"rate": 0.5}
    with pytest.raises(ValueError, match="p.rte is not a key of x; did you mean p.rate?"):
        check_all(keys, {"rte": 1}, "p.", "x")


def test_the_page_of_keys_is_made_from_the_declarations():
    page = (ROOT / "docs" / "keys.md").read_text(encoding="utf-8")
    assert page == make_keys.page(), "run: python scripts/make_keys.py"
