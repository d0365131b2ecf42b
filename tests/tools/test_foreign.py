"""Packages written for PaddleRec's interface alone run unchanged under the four tools.

The printed metrics are computed again in NumPy, from the data files and the saved weights.
"""

import os
import pickle
import re
import shutil

import numpy as np
import paddle
import pytest

from support import ROOT, oracles
from support.toolbox import run_here

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
    train = run_here(f"{graph}trainer", package / "config.yaml", cwd=work)
    assert train.returncode == 0, train.stderr
    infer = run_here(f"{graph}infer", package / "config.yaml", cwd=work)
    assert infer.returncode == 0, infer.stderr
    CHECKS[package.name](graph, train.stderr, infer.stderr, work / f"output_{package.name}")


def weights(output, epoch):
    """Name of the parameter -> array, as either graph has saved it."""
    for name in ("rec.pdparams", "rec_static.pdparams"):
        if (output / str(epoch) / name).exists():
            content = pickle.loads((output / str(epoch) / name).read_bytes())
    table = content.pop("StructuredToParameterName@@", {})
    return {table.get(key, key): np.asarray(value, float) for key, value in content.items()}


def printed(name, log):
    """(epoch, batch) -> the number that a step's line has under a name."""
    found = re.findall(rf"epoch: (\d+), batch_id: (\d+), .*?\b{name}: ?([\d.]+)", log)
    return {(int(epoch), int(batch)): float(number) for epoch, batch, number in found}


def of_epoch(name, log, epoch):
    """The number that the epoch's done line has."""
    return float(re.findall(rf"epoch: {epoch} done, .*?\b{name}: ?([\d.]+)", log)[0])


def near(numbers):
    """Means over some 20 rows of order 1: rounded by less than 20 x 6e-8 x 10, and by six decimals or five."""
    return pytest.approx(numbers, abs=2e-5)


def assert_auc(number, label, scores):
    """A score may be rounded into the next of Paddle's steps, to the better or to the worse."""
    moved = np.where(label == 1, 1e-6, -1e-6)
    assert auc(label, scores - moved) - 1e-5 <= number <= auc(label, scores + moved) + 1e-5


# ---- clicks: an embedding, AUC, an iterable reader; batches of 4 of 22 rows


def check_clicks(graph, train, infer, output):
    label, ids, dense = clicks_rows()
    accumulates = not graph or not PIR
    assert ("static.auc is per batch" in infer) == (not accumulates)
    of_infer = printed("auc", infer)
    assert list(of_infer) == [(epoch, batch) for epoch in (0, 1) for batch in (0, 2, 4)]
    for (epoch, batch), number in of_infer.items():
        rows = slice(0 if accumulates else 4 * batch, 4 * batch + 4)
        assert_auc(number, label[rows], click_scores(weights(output, epoch), ids[rows], dense[rows]))
    if not graph:
        for epoch in (0, 1):  # the partial batch included
            assert_auc(of_epoch("auc", infer, epoch), label, click_scores(weights(output, epoch), ids, dense))
    # the first step of an epoch is of the weights that were saved before it, and its AUC of its rows alone (use_auc)
    before, first = weights(output, 0), slice(0, 4)
    scores = click_scores(before, ids[first], dense[first])
    assert printed("cost" if graph else "loss", train)[1, 0] == near(log_loss(label[first], scores))
    assert_auc(printed("auc", train)[1, 0], label[first], scores)
    losses = [log_loss(label, click_scores(weights(output, epoch), ids, dense)) for epoch in (0, 1)]
    assert losses[1] < losses[0] - 0.01


def clicks_rows():
    lines = (ROOT / "tests" / "foreign" / "clicks" / "data" / "part-0.txt").read_text().splitlines()
    label, ids, dense = zip(*(line.split("\t") for line in lines))
    return np.array(label, int), np.array([row.split() for row in ids], int), np.array(dense, float)


def click_scores(saved, ids, dense):
    x = np.concatenate([saved["embedding_0.w_0"][ids].reshape(len(ids), -1), dense[:, None]], axis=1)
    x = np.maximum(x @ saved["linear_0.w_0"] + saved["linear_0.b_0"], 0)
    return 1 / (1 + np.exp(-(x @ saved["linear_1.w_0"] + saved["linear_1.b_0"])))[:, 0]


def auc(label, scores):
    """How often a click scores higher than none; equal ones, to Paddle's 4096 steps, count half."""
    return oracles.brute_force_auc((scores * 4095).astype(int), label)


def log_loss(label, scores):
    return -np.where(label == 1, np.log(scores + 1e-4), np.log(1 - scores + 1e-4)).mean()


# ---- price: batch norm and a linear layer, plain SGD; batches of 5 of 21 rows, a line for every third


def check_price(graph, train, infer, output):
    """The last epoch, step by step: a schedule that nobody moves on keeps its rate, running statistics move."""
    rows = np.loadtxt(ROOT / "tests" / "foreign" / "price" / "data" / "houses.csv", delimiter=",")
    x, y = rows[:, :3], rows[:, 3]
    saved = weights(output, 0)
    names = ["batch_norm1d_0.w_0", "batch_norm1d_0.b_0", "linear_0.w_0", "linear_0.b_0"]
    values = np.concatenate([saved[name].ravel() for name in names])
    running = np.array([saved["batch_norm1d_0.w_1"], saved["batch_norm1d_0.w_2"]])
    losses = {}
    for batch in range(4):  # the partial one is dropped
        part = slice(5 * batch, 5 * batch + 5)
        statistics = np.array([x[part].mean(axis=0), x[part].var(axis=0)])

        def loss(v, part=part, statistics=statistics):
            return price_loss(v, x[part], y[part], statistics)

        losses[1, batch] = loss(values)
        values = values - 0.05 * oracles.central_difference(loss, values)
        running = 0.9 * running + 0.1 * statistics
    of_train = printed("loss", train)
    assert list(of_train) == [(epoch, batch) for epoch in (0, 1) for batch in (0, 3)]
    assert {at: of_train[at] for at in [(1, 0), (1, 3)]} == near({at: losses[at] for at in [(1, 0), (1, 3)]})
    after = weights(output, 1)
    # four steps of SGD over sums of 5 rows: some 100 roundings of 6e-8, of numbers of order 1
    np.testing.assert_allclose(np.concatenate([after[name].ravel() for name in names]), values, atol=1e-5)
    np.testing.assert_allclose([after["batch_norm1d_0.w_1"], after["batch_norm1d_0.w_2"]], running, atol=1e-5)
    expected = {(1, b): price_loss(values, x[5 * b :][:5], y[5 * b :][:5], running) for b in (0, 3)}
    assert printed("loss", infer) == near(expected), "epoch 1 alone, by its running statistics"
    assert "load model epoch 1" in infer and "load model epoch 0" not in infer
    if graph:
        assert of_epoch("loss", infer, 1) == near(price_loss(values, x, y, running))
    assert re.search(r"guess:.*\d\.\d+", train, re.DOTALL)


def price_loss(values, x, y, statistics):
    scale, shift, weight, bias = values[:3], values[3:6], values[6:9], values[9]
    normed = (x - statistics[0]) / np.sqrt(statistics[1] + 1e-5) * scale + shift
    return ((normed @ weight + bias - y) ** 2).mean()


# ---- stream: a linear classifier, a loader of its own; batches of 6 of 24 rows


def check_stream(graph, train, infer, output):
    assert "my_section" in train and "my_own_key" in train  # warned about, and passed on
    rows = np.loadtxt(ROOT / "tests" / "foreign" / "stream" / "data" / "events.txt")
    saved, label = weights(output, 0), rows[:, 2].astype(int)
    logits = rows[:, :2] @ saved["linear_0.w_0"] + saved["linear_0.b_0"]
    right = logits.argmax(axis=1) == label
    of_infer = printed("acc", infer)
    assert list(of_infer) == [(0, 0), (0, 2)]
    for (_, batch), number in of_infer.items():
        assert number == near(right[0 if not graph else 6 * batch : 6 * batch + 6].mean())
    assert of_epoch("acc", infer, 0) == near(right.mean()) and 0.5 < right.mean() < 1
    if graph:
        costs = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(len(label)), label]
        assert printed("cost", infer) == near({(0, b): costs[6 * b : 6 * b + 6].mean() for b in (0, 2)})


CHECKS = {"clicks": check_clicks, "price": check_price, "stream": check_stream}
