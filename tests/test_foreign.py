"""Packages written from PaddleRec's interface alone run, unchanged, under the four tools."""

import os
import re
import shutil

import paddle
import pytest
from conftest import ROOT
from toolbox import run_tool

PIR = os.environ.get("FLAGS_enable_pir_api") != "0" and not paddle.__version__.startswith("2.")
PACKAGES = ["clicks", "price", "stream"]


@pytest.fixture(scope="module", params=PACKAGES)
def package(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param) / request.param
    shutil.copytree(ROOT / "tests" / "foreign" / request.param, folder)
    return folder


@pytest.mark.parametrize("graph", ["", "static_"])
def test_train_and_infer(package, graph):
    work = package.parent / f"work_{graph}"
    work.mkdir()
    train = run_tool(f"{graph}trainer", package / "config.yaml", cwd=work)
    assert train.returncode == 0, train.stderr
    infer = run_tool(f"{graph}infer" if graph else "infer", package / "config.yaml", cwd=work)
    assert infer.returncode == 0, infer.stderr
    CHECKS[package.name](graph, train.stderr, infer.stderr)


def numbers(pattern, text):
    return [float(x) for x in re.findall(pattern, text)]


def check_clicks(graph, train, infer):
    auc = r"auc: (\d\.\d+)"
    assert ("static.auc is per batch" in infer) == (bool(graph) and PIR)
    losses = numbers(r"loss:(\d+\.\d+)" if not graph else r"cost: (\d+\.\d+)", train)
    assert len(losses) >= 6 and all(0 < x < 5 for x in losses)
    assert "epoch: 1 done" in train and "epoch: 1 done" in infer
    values = numbers(auc, infer)
    assert values and all(0 <= x <= 1 for x in values)


def check_price(graph, train, infer):
    losses = numbers(r"loss: ?(\d+\.\d+)", train)
    assert losses[-1] < losses[0]
    assert re.search(r"guess:.*\d\.\d+", train, re.DOTALL)
    assert "load model epoch 1" in infer and "epoch: 1 done" in infer and "load model epoch 0" not in infer


def check_stream(graph, train, infer):
    assert "my_section" in train and "my_own_key" in train  # warned about, and passed on
    accuracy = numbers(r"acc: (\d\.\d+)", infer)
    assert accuracy and all(0 <= x <= 1 for x in accuracy)


CHECKS = {"clicks": check_clicks, "price": check_price, "stream": check_stream}
