"""tools/engine/interface.py names every hook that the tools look for, and no other."""

import ast

import pytest
from conftest import ROOT

import dygraph_model
import multiMNIST_reader
import static_model
from engine import interface

REQUIRED = {
    interface.RecDataset: multiMNIST_reader.RecDataset, interface.DygraphModel: dygraph_model.DygraphModel,
    interface.StaticModel: static_model.StaticModel,
}  # fmt: skip


def hooks():
    """Names of all optional hooks."""
    kinds = (interface.OptionalOfReader, interface.OptionalOfModel, interface.OptionalOfStaticModel)
    return {name for kind in kinds for name in vars(kind).get("__annotations__", {})}


def used_by_the_engine():
    """Names that the engine looks up by ``offered``; names of attributes that it reads; those it asks for otherwise."""
    looked_up, read, otherwise = set(), set(), set()
    for path in (ROOT / "tools" / "engine").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute):
                read.add(node.attr)
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and len(node.args) > 1:
                names = {arg.value for arg in node.args[1:2] if isinstance(arg, ast.Constant)}
                if node.func.id == "offered":
                    looked_up |= names
                elif node.func.id in ("getattr", "hasattr") and path.name != "interface.py":
                    otherwise |= names
    return looked_up, read, otherwise


def test_the_engine_looks_up_hooks_in_one_way_and_none_is_dead():
    looked_up, read, otherwise = used_by_the_engine()
    assert looked_up and looked_up <= hooks()
    assert not otherwise & hooks()
    assert hooks() <= looked_up | read | {"gather"}  # which batches.py looks up where it was defined


@pytest.mark.parametrize("protocol", REQUIRED, ids=lambda p: p.__name__)
def test_our_package_has_what_a_package_must_have(protocol):
    needed = {name for name, value in vars(protocol).items() if callable(value) and not name.startswith("_")}
    assert all(callable(getattr(REQUIRED[protocol], name)) for name in needed)


def test_a_hook_that_is_missing_has_its_default_and_another_name_is_a_mistake_of_ours():
    class Bare:
        values_at_end = ("experts_used",)

    assert interface.offered(Bare(), "values_at_end") == ("experts_used",)
    assert interface.offered(Bare(), "export_net") is None and interface.offered(Bare, "config_keys") == ()
    with pytest.raises(AttributeError, match="export_nets"):
        interface.offered(Bare(), "export_nets")
