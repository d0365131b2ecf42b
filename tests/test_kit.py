"""Every gate, expert, bottom, input and kind of task: sparse equals dense, static equals dynamic, numbers by NumPy."""

import contextlib
import math

import numpy as np
import paddle
import pytest
from oracles import brute_force_auc
from test_sparse import assert_close, start_dense, trained
from toolbox import opened
from ways import LEGACY_3, WAYS, code_logits, config, gate_values, start

import hyper_parameters
import net
import tasks
from engine.errors import UserError
from engine.meter import Meter

SMALL = {"expert_num": 4, "top_k": 2, "expert_size": 8, "tower_size": 8, "expert_norm": "none"}
DESCRIBED = [{"classes": 3}, {"name": "buys", "kind": "binary", "positive_weight": 2.0}, {"kind": "regression"}]
TABLE = {"input__dense_size": 5, "input__vocabulary_sizes": [4, 7], "input__embedding_size": 3}
every_way = pytest.mark.parametrize("way", WAYS)


def table_batches(rng, number, size=12, missing=False):
    """Batches of a table: dense, ids, and labels for ``DESCRIBED``, some of which may be missing."""
    batches = []
    for _ in range(number):
        labels = [rng.randint(0, 3, size), rng.randint(0, 2, size).astype("float32"), rng.randn(size).astype("float32")]
        if missing:
            labels[0][:3], labels[1][2:5], labels[2][4:9] = -1, -1, np.nan
        ids = np.stack([rng.randint(0, 4, size), rng.randint(0, 7, size)], axis=1)
        batches.append([rng.randn(size, 5).astype("float32"), ids, *labels])
    return batches


# ---------------------------------------------------------------------- gates: one suite for all

GATES = [gate for gate in hyper_parameters.GATES if gate != "noisy_top_k"]  # noise has a test of its own


@every_way
@pytest.mark.parametrize("gate", GATES)
def test_every_gate_trains_to_the_dense_mixtures_parameters(way, gate, rng):
    flat = config(**{**SMALL, **TABLE, "tasks": DESCRIBED, "gate": gate, "optimizer__learning_rate": 0.01})
    sparse, dense = start(way, flat), start_dense(flat)
    for batch in table_batches(rng, 6):
        (loss, used), (dense_loss, _) = sparse.step(batch), dense.step(batch)
        assert loss == pytest.approx(dense_loss, abs=1e-5)
        assert used <= {"shared_bottom": 1, "single_task": 3}.get(gate, 4)
    assert_close(trained(sparse), trained(dense), 2e-5)


@pytest.mark.parametrize("gate", GATES)
def test_every_gate_gives_the_same_in_both_graphs(gate, rng):
    flat = config(**{**SMALL, **TABLE, "tasks": DESCRIBED, "gate": gate})
    dynamic, static = start("eager", flat), start("static", flat)
    assert dynamic.names == static.names
    batches = table_batches(rng, 8, missing=True)
    for batch in batches:
        assert dynamic.step(batch)[0] == pytest.approx(static.step(batch)[0], abs=1e-5)
    assert_close(dynamic.state(), static.state(), 2e-5)


@pytest.mark.parametrize("way", ["eager", "static"])
@pytest.mark.parametrize("gate", GATES)
def test_every_gate_and_task_goes_on_from_a_save_as_if_uninterrupted(way, gate, tmp_path, rng):
    flat = config(**{**SMALL, **TABLE, "tasks": DESCRIBED, "gate": gate, "optimizer__learning_rate": 0.01})
    batches = table_batches(rng, 4, missing=True)
    whole = start(way, flat)
    for batch in batches[:2]:
        whole.step(batch)
    run = whole.reopened(str(tmp_path))
    for batch in batches[2:]:
        whole.step(batch)
        run.step(batch)
    assert_close(run.state(), whole.state(), 1e-7)


@pytest.mark.parametrize("top_k", [1, 2, 4])
def test_top_k_weights_are_a_softmax_over_the_largest_and_zero_elsewhere(top_k, rng):
    gate = net.TopKGate(4, top_k, 6)
    x = rng.randn(50, 6).astype("float32")
    weights, _ = gate(paddle.to_tensor(x))
    logits = x.astype(float) @ gate.weight.numpy()
    for q, h in zip(weights.numpy(), logits):
        largest = np.argsort(-h)[:top_k]
        e = np.exp(h[largest] - h.max())
        expected = np.zeros(4)
        expected[largest] = e / e.sum()
        np.testing.assert_allclose(q, expected, atol=1e-6)
        assert np.count_nonzero(q) == top_k


def normal_cdf(x):
    return np.array([0.5 * (1 + math.erf(v / math.sqrt(2))) for v in np.ravel(x)]).reshape(np.shape(x))


def test_noisy_top_k_is_noisy_in_training_alone_and_its_balance_is_shazeers(rng):
    gate = net.TopKGate(5, 2, 6, noisy=True)
    gate.noise_weight.set_value(rng.randn(6, 5).astype("float32"))
    x = paddle.to_tensor(rng.randn(40, 6).astype("float32"))
    drawn = []
    original = paddle.randn
    with contextlib.ExitStack() as stack:
        monkey = stack.enter_context(pytest.MonkeyPatch.context())
        monkey.setattr(paddle, "randn", lambda *args, **kwargs: drawn.append(original(*args, **kwargs)) or drawn[-1])
        weights, state = gate(x)
    clean = x.numpy().astype(float) @ gate.weight.numpy()
    scale = np.log1p(np.exp(x.numpy().astype(float) @ gate.noise_weight.numpy())) + 1e-2
    noisy = clean + scale * drawn[0].numpy()
    chosen = np.zeros_like(clean)
    for row in range(40):
        for i in range(5):
            others = np.sort(np.delete(noisy[row], i))[::-1]
            chosen[row, i] = normal_cdf((clean[row, i] - others[1]) / scale[row, i])
    importance, load = weights.numpy().astype(float).sum(axis=0), chosen.sum(axis=0)
    expected = importance.var() / importance.mean() ** 2 + load.var() / load.mean() ** 2
    assert float(gate.penalties(state)["balance"]) == pytest.approx(expected, rel=1e-4)
    gate.eval()
    assert (gate(x)[0].numpy() == gate(x)[0].numpy()).all() and len(drawn) == 1


def test_a_noisy_gate_trains_in_every_way(rng):
    for way in WAYS:
        run = start(way, config(**{**SMALL, **TABLE, "tasks": DESCRIBED, "gate": "noisy_top_k"}))
        before = run.state()
        losses = [run.step(batch)[0] for batch in table_batches(rng, 3)]
        assert np.isfinite(losses).all()
        assert any((before[n] != run.state()[n]).any() for k, n in run.names.items() if k.endswith("noise_weight"))


def test_fixed_gates_do_not_train_and_are_drawn_from_their_seed():
    first, again, other = (net.FixedGate.of_random_experts(8, 3, seed) for seed in (0, 0, 1))
    assert (first.weights == again.weights).all() and (first.weights != other.weights).any()
    assert sorted(first.weights)[-3:] == pytest.approx([1 / 3] * 3) and not list(first.parameters())


# ----------------------------------------------------------------- experts, bottoms, other shapes


@every_way
@pytest.mark.parametrize("gate", ["dselect_k", "dselect_k_per_example"])
@pytest.mark.parametrize(
    "keys",
    [{"bottom": "cnn"}, {"bottom": "mlp", "bottom_sizes": [9, 6]}, {"expert": "mlp", "expert_activation": "silu"}, {}],
    ids=["cnn bottom", "mlp bottom", "mlp experts", "plain"],
)
def test_images_of_any_shape_through_any_bottom_and_expert(way, gate, keys, rng):
    flat = config(**{**SMALL, "input__image": [2, 20, 24], "gate": gate, **keys})
    sparse, dense = start(way, flat), start_dense(flat)
    for _ in range(3):
        batch = [rng.rand(6, 2, 20, 24).astype("float32"), rng.randint(0, 10, 6), rng.randint(0, 10, 6)]
        assert sparse.step(batch)[0] == pytest.approx(dense.step(batch)[0], abs=1e-5)
    assert_close(trained(sparse), trained(dense), 1e-5)


def test_a_bottom_is_computed_once_and_the_gate_reads_it():
    network = hyper_parameters.build(
        hyper_parameters.HyperParameters(bottom="cnn", gate="dselect_k_per_example", expert_num=4)
    )
    calls = []
    network.bottom.register_forward_post_hook(lambda *_: calls.append(1))
    network(paddle.rand([2, 1, 36, 36]))
    assert calls == [1] and network.gates[0].feature_size == network.bottom.out_size == 720


def own_expert(shape, expert_size):
    return net.MLP(math.prod(shape), [expert_size])


def own_gate(expert_num, top_k, feature_size):
    return net.SoftmaxGate(expert_num, feature_size)


def test_an_expert_and_a_gate_of_ones_own_are_named_in_the_config(rng):
    keys = {**SMALL, **TABLE, "tasks": DESCRIBED, "expert": "test_kit.own_expert", "gate": "test_kit.own_gate"}
    for way in ("eager", "static"):
        run = start(way, config(**keys))
        assert np.isfinite(run.step(table_batches(rng, 1)[0])[0])
    with pytest.raises(ValueError, match="expert.*test_kit.nothing"):
        start("eager", config(**{**keys, "expert": "test_kit.nothing"}))


class RestlessGate(net.Gate):
    """The same for every example: one expert; in training others too, whichever the noise adds."""

    def __init__(self, expert_num):
        super().__init__(expert_num)
        self.add_weight("logits", [expert_num], paddle.nn.initializer.Assign(np.eye(expert_num, dtype="float32")[1]))

    def forward(self, features=None):
        noise = paddle.rand([self.expert_num]) if self.training else 0.0
        return paddle.clip(self.logits + noise, 0.0, 1.0), None


def restless_gate(expert_num, top_k, feature_size):
    return RestlessGate(expert_num)


def no_layer(*sizes):
    return "an expert"


def wide_expert(shape, expert_size):
    return net.MLP(math.prod(shape), [expert_size + 1])


@pytest.mark.parametrize("way", ["eager", "static"])
def test_the_gates_rate_is_that_of_a_gate_of_ones_own_too(way, rng):
    """Plain SGD: three times the rate, three times the step."""
    keys = {**SMALL, **TABLE, "gate": "test_kit.own_gate", "optimizer__class": "sgd", "optimizer__momentum": 0.0}
    moved = []
    for factor in (1.0, 3.0):
        flat = config(**keys, optimizer__learning_rate=0.1, optimizer__gate_learning_rate_factor=factor)
        run = start(way, flat)
        run.set({name: np.full([11, 4], 0.1, "float32") for key, name in run.names.items() if "gates" in key})
        before = run.state()
        run.step([*table_batches(np.random.RandomState(1), 1)[0][:2], np.arange(12) % 10, np.arange(12) % 10])
        moved.append([run.state()[n] - before[n] for k, n in run.names.items() if k.endswith("gates.0.weight")])
    np.testing.assert_allclose(moved[1], 3 * np.array(moved[0]), rtol=1e-3, atol=1e-7)
    assert np.any(moved[0])


@pytest.mark.parametrize("way", ["eager", "static"])
@pytest.mark.parametrize(
    "key,name,words",
    [("expert", "no_layer", "gives a str, not a paddle.nn.Layer"), ("gate", "no_layer", "gives a str, not a net.Gate"),
     ("expert", "wide_expert", "an expert's output has the shape .*9., but must be .any, 8")],
)  # fmt: skip
def test_what_a_config_names_must_be_an_expert_or_a_gate(way, key, name, words, rng):
    with pytest.raises(ValueError, match=words):
        start(way, config(**{**SMALL, **TABLE, "tasks": DESCRIBED, key: f"test_kit.{name}"})).step(
            table_batches(rng, 1)[0]
        )


EXPERTS_ON_FEATURES = {
    "mlp": {"expert": "mlp", "expert_norm": "none"},
    "mlp, batch norm": {"expert": "mlp", "expert_norm": "batch"},
    "mlp, layer norm first": {"expert": "test_kit.normed_expert"},
    "recurrent": {"expert": "test_kit.recurrent_expert"},
    "prelu": {"expert": "test_kit.prelu_expert"},
}


def normed_expert(shape, expert_size):
    return paddle.nn.Sequential(paddle.nn.LayerNorm(shape), net.MLP(math.prod(shape), [expert_size]))


class recurrent_expert(paddle.nn.Layer):  # noqa: N801  (named as a config names it)
    def __init__(self, shape, expert_size):
        super().__init__()
        self.rnn = paddle.nn.SimpleRNN(1, expert_size)

    def forward(self, x):
        return self.rnn(paddle.unsqueeze(x, axis=2))[0][:, -1]


def prelu_expert(shape, expert_size):
    return paddle.nn.Sequential(paddle.nn.Linear(math.prod(shape), expert_size), paddle.nn.PReLU())


@every_way
@pytest.mark.parametrize("gate", ["dselect_k", "test_kit.half_of_them"])
def test_experts_that_nobody_needs_read_embeddings(way, gate, rng):
    """Paddle 2.6.2 finds no gradient for an empty part of the rows, which those of embeddings need."""
    flat = config(**{**SMALL, **TABLE, "tasks": DESCRIBED, "gate": gate, "optimizer__learning_rate": 0.01})
    sparse, dense = start(way, flat), start_dense(flat)
    for run in (sparse, dense):
        run.set(gate_values(run, code_logits([0, 2], 2, 0.7)))
    for batch in table_batches(rng, 4):
        (loss, used), (dense_loss, _) = sparse.step(batch), dense.step(batch)
        assert used <= 2 and loss == pytest.approx(dense_loss, abs=1e-5)
    assert_close(trained(sparse), trained(dense), 2e-5)


class HalfOfThem(net.SoftmaxGate):
    """Softmax, then 0 for all but the first two experts: no row needs the others."""

    def forward(self, features=None):
        weights, state = net.SoftmaxGate.forward(self, features)  # super() is lost under 2.6.2's to_static
        return weights * paddle.assign(np.array([1, 1, 0, 0], "float32")), state


def half_of_them(expert_num, top_k, feature_size):
    return HalfOfThem(expert_num, feature_size)


@every_way
@pytest.mark.parametrize("keys", EXPERTS_ON_FEATURES.values(), ids=EXPERTS_ON_FEATURES)
def test_experts_that_nobody_needs_read_data_that_need_no_gradient(way, keys, rng):
    """Paddle 3.3.1 refuses an empty batch there in most layers' gradients, and in some layers anywhere.

    By SGD: Adam would make much of what rounding leaves of the gradient of a bias before a norm, which is 0.
    """
    if way != "eager" and not paddle.framework.use_pir_api() and "recurrent" in keys["expert"]:
        pytest.skip("legacy programs build no recurrent layer (3.x), or lose its gradient in a branch (2.6.2)")
    flat = config(**{**SMALL, "input__dense_size": 5, "tasks": DESCRIBED, "optimizer__class": "sgd", **keys})
    sparse, dense = start(way, flat), start_dense(flat)
    dense.set(sparse.state())  # recurrent layers draw others in a program
    for run in (sparse, dense):
        run.set(gate_values(run, code_logits([0, 2], 2, 0.7)))
    for batch in table_batches(rng, 4):
        del batch[1]  # the ids
        (loss, used), (dense_loss, _) = sparse.step(batch), dense.step(batch)
        assert used == 2 and loss == pytest.approx(dense_loss, abs=1e-5)
    assert_close(trained(sparse), trained(dense), 2e-5)
    for ours, theirs in zip(sparse.outputs(batch), dense.outputs(batch)):
        np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_group_norm_takes_five_channels_together(rng):
    block = net.CNN([1, 16, 16], "group").blocks[1]
    x = rng.randn(3, 10, 12, 12).astype("float32")
    convolved = block[0](paddle.to_tensor(x)).numpy().astype(float)  # [3, 20, 8, 8]
    groups = convolved.reshape(3, 4, 5 * 8 * 8)
    normed = (groups - groups.mean(axis=2, keepdims=True)) / np.sqrt(groups.var(axis=2, keepdims=True) + 1e-5)
    pooled = normed.reshape(3, 20, 4, 2, 4, 2).max(axis=(3, 5))
    np.testing.assert_allclose(block(paddle.to_tensor(x)).numpy(), np.maximum(pooled, 0), atol=1e-4)


@pytest.mark.parametrize("dropout", [0.0, 0.25])
def test_dropout_leaves_out_its_share_of_hidden_numbers_in_training_alone(dropout):
    """10000 hidden ones, averaged: those that stay are scaled up, so the mean stays, and its spread tells the share."""
    mlp, width = net.MLP(1, [10000, 1], dropout=dropout), 10000
    for layer, value in zip([mlp.layers[0], mlp.layers[-1]], [1.0, 1.0 / width]):
        layer.weight.set_value(np.full(layer.weight.shape, value, "float32"))
        layer.bias.set_value(np.zeros(layer.bias.shape, "float32"))
    paddle.seed(1)
    means = np.array([mlp(paddle.ones([1, 1])).item() for _ in range(200)])
    assert means.mean() == pytest.approx(1.0, abs=2e-3)
    spread = math.sqrt(dropout / (1 - dropout) / width)  # of the mean of scaled Bernoulli draws
    assert means.std() == pytest.approx(spread, rel=0.2, abs=1e-6)  # 200 draws: 5 % off is usual
    mlp.eval()
    assert mlp(paddle.ones([1, 1])).item() == pytest.approx(1.0, abs=1e-3)


def test_a_table_is_its_features_and_each_fields_row(rng):
    layer = net.TableInput(5, [4, 7], 3)
    dense, ids = table_batches(rng, 1)[0][:2]
    joined = layer(paddle.to_tensor(dense), paddle.to_tensor(ids)).numpy()
    rows = layer.embedding.weight.numpy()
    expected = np.concatenate([dense, rows[ids[:, 0]], rows[4 + ids[:, 1]]], axis=1)
    np.testing.assert_array_equal(joined, expected)


@pytest.mark.parametrize("graph", ["dynamic", "static"])
@pytest.mark.parametrize("wrong,words", [((1, 1, 7), "id 7 in sparse field 1"), ((2, None, 3), "label of task 1 is 3")])
def test_an_id_or_a_class_that_there_is_not_is_named(graph, wrong, words, rng):
    keys = ["hyper_parameters.expert_num=4", "hyper_parameters.input.dense_size=5", "runner.to_static=false"]
    keys += ["hyper_parameters.input.vocabulary_sizes=[4, 7]", "runner.steps_per_epoch=3"]
    keys += ["hyper_parameters.tasks=[{classes: 3}, {kind: binary}, {kind: regression}]"]
    batch = table_batches(rng, 1)[0]
    item, field, value = wrong
    if field is None:
        batch[item][4] = value
    else:
        batch[item][4, field] = value
    with opened(graph, "train", keys) as (opened_graph, _, _):
        opened_graph.begin_epoch()
        with pytest.raises(UserError, match=words):
            opened_graph.train_step(batch)


# ------------------------------------------------------------------------------------------ tasks


def expected_losses(outputs, labels):
    """Each task's loss of ``DESCRIBED``, over its labelled examples, in float64."""
    outputs = [np.asarray(output, float) for output in outputs]
    there = [labels[0] >= 0, labels[1] >= 0, ~np.isnan(labels[2])]
    z, y = outputs[0][there[0]], labels[0][there[0]]
    log_p = z - np.log(np.exp(z).sum(axis=1, keepdims=True))
    first = -log_p[np.arange(len(y)), y].mean()
    p, y = 1 / (1 + np.exp(-outputs[1][there[1], 0])), labels[1][there[1]]
    second = -(2.0 * y * np.log(p) + (1 - y) * np.log(1 - p)).mean()
    third = ((outputs[2][there[2], 0] - labels[2][there[2]]) ** 2).mean()
    return [first, second, third]


@pytest.mark.parametrize("way", ["eager", "static"])
@pytest.mark.parametrize("missing", [False, True])
def test_losses_are_the_formulas_over_the_labelled_examples(way, missing, rng):
    run = start(way, config(**{**SMALL, **TABLE, "tasks": DESCRIBED}))
    batch = table_batches(rng, 1, missing=missing)[0]
    _, loss, _ = run.evaluate(batch)
    assert loss == pytest.approx(sum(expected_losses(run.outputs(batch), batch[2:])), abs=1e-5)


@every_way
def test_an_example_without_a_label_teaches_its_task_nothing(way, rng):
    """Its tower's gradient is that of a batch without the example; SGD at rate 1 moves by it."""
    flat = config(
        **{**SMALL, **TABLE, "tasks": DESCRIBED, "optimizer__class": "sgd", "optimizer__momentum": 0.0,
           "optimizer__learning_rate": 1.0, "entropy_weight": 0.0}
    )  # fmt: skip
    whole = table_batches(rng, 1)[0]
    partly = [item.copy() for item in whole]
    partly[4][8:] = np.nan
    first, second = start(way, flat), start(way, flat)
    first.step(partly)
    second.step([item[:8] for item in whole])
    for key, name in first.names.items():
        if key.startswith("towers.2."):
            np.testing.assert_allclose(first.state()[name], second.state()[name], atol=1e-6, err_msg=key)
    nothing = [item.copy() for item in whole]
    nothing[4][:] = np.nan
    third = start(way, flat)
    before = third.state()
    assert np.isfinite(third.step(nothing)[0])
    assert all((before[n] == third.state()[n]).all() for k, n in third.names.items() if k.startswith("towers.2."))


@pytest.mark.parametrize("delta", [0.0, 0.7])
def test_huber_is_squared_near_and_linear_far(delta, rng):
    error = np.linspace(-3, 3, 41)
    kind = tasks.Regression(delta)
    ours = kind.losses(paddle.to_tensor(error[:, None]), paddle.zeros([41, 1], "float64")).numpy()[:, 0]
    expected = error**2
    if delta:
        expected = np.where(abs(error) <= delta, error**2 / 2, delta * (abs(error) - delta / 2))
    np.testing.assert_allclose(ours, expected, atol=1e-12)
    np.testing.assert_allclose(kind.numpy_losses(error[:, None], np.zeros(41)), expected, atol=1e-12)


def test_learned_variances_weigh_the_losses_as_kendall_does(rng):
    flat = {**SMALL, **TABLE, "tasks": DESCRIBED, "task_balance": "uncertainty", "entropy_weight": 0.0}
    batch = table_batches(rng, 1)[0]
    for way in ("eager", "static"):
        run = start(way, config(**flat))
        s = np.array([0.3, -0.2, 0.5])
        run.set({run.names["log_variances"]: s.astype("float32")})
        parts = np.array(expected_losses(run.outputs(batch), batch[2:]))
        expected = (np.exp(-s) * parts * [1, 1, 0.5] + s / 2).sum()
        assert run.step(batch)[0] == pytest.approx(expected, abs=1e-4)
        assert (run.state()[run.names["log_variances"]] != s.astype("float32")).all(), "they are trained"


@pytest.mark.parametrize("graph", ["dynamic", "static"])
def test_metrics_over_an_epoch_are_exact_whatever_the_batches(graph, rng):
    keys = ["hyper_parameters.expert_num=4", "hyper_parameters.input.dense_size=5", "runner.to_static=false"]
    keys += ["hyper_parameters.input.vocabulary_sizes=[4, 7]"]
    keys += ["hyper_parameters.tasks=[{classes: 3}, {name: buys, kind: binary}, {kind: regression}]"]
    batches = [table_batches(rng, 1, size=size, missing=True)[0] for size in (10, 11, 30)]
    batches[1][0][:5], batches[1][1][:5] = batches[1][0][5], batches[1][1][5]  # equal scores
    with opened(graph, "infer", keys) as (opened_graph, _, _):
        opened_graph.begin_evaluation()
        for batch in batches:
            opened_graph.infer_step(batch)
        found = opened_graph.metrics()
        if graph == "dynamic":
            outputs = [[z.numpy() for z in opened_graph.net(*map(paddle.to_tensor, b[:2]))] for b in batches]
            KEPT["outputs"], KEPT["found"] = [np.concatenate(z) for z in zip(*outputs)], found
            labels = [np.concatenate([b[2 + t] for b in batches]) for t in range(3)]
            z, p, v = KEPT["outputs"]
            there = [labels[0] >= 0, labels[1] >= 0, ~np.isnan(labels[2])]
            assert found["Accuracy1"] == np.mean((z.argmax(axis=1) == labels[0])[there[0]])
            assert found["auc_buys"] == pytest.approx(brute_force_auc(p[there[1], 0], labels[1][there[1]]), abs=1e-12)
            q = 1 / (1 + np.exp(-p[there[1], 0].astype(float)))
            y = labels[1][there[1]]
            assert found["logloss_buys"] == pytest.approx(-np.mean(y * np.log(q) + (1 - y) * np.log(1 - q)), abs=1e-7)
            error = v[there[2], 0].astype(float) - labels[2][there[2]]
            assert found["mae3"] == pytest.approx(abs(error).mean()) and found["rmse3"] == pytest.approx(
                math.sqrt((error**2).mean())
            )
        else:
            assert set(found) == {
                "Accuracy1",
                "auc_buys",
                "logloss_buys",
                "mae3",
                "rmse3",
                "loss",
                "loss1",
                "loss_buys",
                "loss3",
            }
            if KEPT:
                assert found == pytest.approx(KEPT["found"], abs=1e-6)


KEPT = {}


@pytest.mark.parametrize("graph", ["dynamic", "static"])
def test_the_epochs_loss_is_the_weighted_sum_of_its_tasks_however_the_labels_lie(graph, rng):
    """And a done line names all numbers in one order, whatever the kinds of the tasks."""
    keys = ["hyper_parameters.expert_num=4", "hyper_parameters.input.dense_size=5", "runner.to_static=false"]
    keys += ["hyper_parameters.input.vocabulary_sizes=[4, 7]"]
    keys += ["hyper_parameters.tasks=[{classes: 3}, {kind: binary, weight: 2}, {kind: regression, weight: 0.5}]"]
    whole = table_batches(rng, 1, size=24, missing=True)[0]
    found = {}
    for size in (5, 24):
        with opened(graph, "infer", keys) as (opened_graph, _, _):
            meter = Meter(graph, "infer", None)
            meter.begin()
            opened_graph.begin_evaluation()
            for begin in range(0, 24, size):
                step, examples = opened_graph.infer_step([item[begin : begin + size] for item in whole])
                meter.add(0, begin, step, examples, 0.0, 0.0)
            found[size] = meter.close(0, opened_graph.metrics())
    numbers = found[5]
    assert numbers == pytest.approx(found[24], abs=1e-6)
    expected = numbers["loss1"] + 2 * numbers["loss2"] + 0.5 * numbers["loss3"]
    assert numbers["loss"] == pytest.approx(expected, abs=1e-9)
    names = "Accuracy1 auc2 logloss2 mae3 rmse3 loss loss1 loss2 loss3 experts_used"
    assert " ".join(numbers) == names


def test_metrics_go_on_from_their_state(rng):
    hyper = hyper_parameters.HyperParameters(tasks=DESCRIBED)
    kinds = hyper.task_list()
    outputs = [rng.randn(20, 3), rng.randn(20, 1), rng.randn(20, 1)]
    labels = [rng.randint(0, 3, 20), rng.randint(0, 2, 20), rng.randn(20)]
    (whole, names), (first, _), (second, _) = (tasks.create_metrics(kinds) for _ in range(3))
    tasks.update_metrics(kinds, whole, outputs, labels)
    tasks.update_metrics(kinds, first, [z[:7] for z in outputs], [y[:7] for y in labels])
    for a, b in zip(first, second):
        b.set_state_dict(a.state_dict())
    tasks.update_metrics(kinds, second, [z[7:] for z in outputs], [y[7:] for y in labels])
    for a, b, name in zip(whole, second, names):
        assert a.accumulate() == pytest.approx(b.accumulate(), abs=1e-12), name


@pytest.mark.parametrize(
    "entry,word",
    [
        ({"kind": "ranking"}, "ranking"), ({"classes": 1}, "classes"), ({"kind": "binary", "classes": 3}, "classes"),
        ({"kind": "binary", "wieght": 1}, "wieght"), ({"kind": "binary", "name": "a b"}, "name"),
        ({"kind": "regression", "positive_weight": 2}, "positive_weight"), ({"kind": "binary", "weight": -1}, "weight"),
        ({"classes": 3, "tower_sizes": [0]}, "tower_sizes"), ({}, "classes: n"),
    ],
)  # fmt: skip
def test_a_task_described_wrongly_is_named(entry, word):
    with pytest.raises(ValueError, match=f"tasks.0..*{word}"):
        hyper_parameters.HyperParameters(tasks=[entry])


# ------------------------------------------------------------------- layers check their arguments

WRONG = {
    "top_k above n": (lambda: net.DSelectKGate(4, 9), "top_k is 9"),
    "no selector": (lambda: net.DSelectKGate(4, 0), "top_k is 0"),
    "no expert": (lambda: net.DSelectKGate(0, 1), "expert_num is 0"),
    "no band": (lambda: net.DSelectKGate(4, 2, gamma=-1.0), "gamma is -1.0"),
    "half a feature": (lambda: net.DSelectKGate(4, 2, feature_size=1.5), "feature_size is 1.5"),
    "no rate": (lambda: net.DSelectKGate(4, 2, learning_rate_factor=0), "learning_rate_factor is 0"),
    "features of rank 3": (lambda: net.DSelectKGate(4, 2, feature_size=5)(paddle.zeros([2, 3, 5])), "features"),
    "no features": (lambda: net.DSelectKGate(4, 2, feature_size=5)(), "needs features"),
    "other features": (lambda: net.SoftmaxGate(4, 5)(paddle.zeros([2, 6])), "must be .any, 5"),
    "digits": (lambda: net.single_expert_selectors(paddle.zeros([2, 3]), 4), "4 experts have 2 digits"),
    "norm": (lambda: net.CNN([1, 36, 36], "layer"), "norm is 'layer'"),
    "small image": (lambda: net.CNN([1, 8, 8]), "8"),
    "image of rank 3": (lambda: net.CNN([1, 36, 36])(paddle.zeros([2, 36, 36])), "image has the shape"),
    "no layer": (lambda: net.MLP(3, []), "sizes is empty"),
    "dropout": (lambda: net.MLP(3, [2], dropout=1.0), "dropout is 1.0"),
    "no table": (lambda: net.TableInput(0), "dense_size is 0"),
    "no expert in a mixture": (lambda: net.SparseMixture([], [net.FixedGate([1.0])]), "at least one expert"),
    "gate of others": (lambda: net.SparseMixture([net.MLP(3, [2])], [net.DSelectKGate(4, 2)]), "there are 1 experts"),
    "negative weight": (lambda: net.FixedGate([1.0, -1.0]), "weights are"),
    "weights of others": (
        lambda: net.mix_needed_experts([net.MLP(3, [2])], paddle.zeros([4, 3]), [paddle.ones([2])], 2), "weights"
    ),
    "gate's name": (lambda: hyper_parameters.HyperParameters(gate="sotfmax"), "gate is 'sotfmax'"),
    "keys together": (lambda: hyper_parameters.HyperParameters(top_k=9, expert_num=2), "top_k is 9"),
}  # fmt: skip


@pytest.mark.parametrize("make,words", WRONG.values(), ids=WRONG)
@pytest.mark.parametrize("static", [False, True], ids=["eager", "static"])
def test_a_wrong_argument_is_named_with_its_range(make, words, static):
    (paddle.enable_static if static else paddle.disable_static)()
    program = paddle.static.program_guard(paddle.static.Program(), paddle.static.Program())
    with program, pytest.raises(ValueError, match=words):
        make()


def test_a_layers_repr_says_what_it_is():
    network = hyper_parameters.build(hyper_parameters.HyperParameters(expert_num=2, gate="dselect_k_per_example"))
    for words in ("DSelectKGate(expert_num=2, top_k=2, gamma=1.0, feature_size=1296)", "image_shape=[1, 36, 36]"):
        assert words in repr(network)


# ------------------------------------------------------------------- a network of one's own


@pytest.mark.parametrize("graph", ["dynamic", "static"])
def test_the_mixture_stands_in_a_network_of_ones_own(graph, rng):
    """Twenty lines of a user's: two gates over four experts, in either graph."""

    def build(x):
        experts = [net.MLP(6, [16, 8], activate_output=True) for _ in range(4)]
        mixture = net.SparseMixture(experts, [net.DSelectKGate(4, 2), net.DSelectKGate(4, 2, feature_size=6)])
        outputs, weights, penalties = mixture(x)
        return paddle.mean(paddle.concat(outputs) ** 2) + 0.1 * paddle.mean(penalties["entropy"]), mixture

    x = rng.randn(5, 6).astype("float32")
    if graph == "dynamic":
        loss, mixture = build(paddle.to_tensor(x))
        loss.backward()
        assert all(p.grad is not None for p in mixture.gates.parameters())
        return
    paddle.enable_static()
    main, startup = paddle.static.Program(), paddle.static.Program()
    with paddle.static.program_guard(main, startup), paddle.static.scope_guard(paddle.static.Scope()):
        loss, _ = build(paddle.static.data("x", [-1, 6], "float32"))
        paddle.optimizer.Adam(0.01).minimize(loss)
        executor = paddle.static.Executor(paddle.CPUPlace())
        executor.run(startup)
        losses = [float(executor.run(main, feed={"x": x}, fetch_list=[loss])[0]) for _ in range(20)]
    assert losses[-1] < losses[0]


@pytest.mark.skipif(LEGACY_3, reason="the legacy mode leaves no expert out")
@every_way
@pytest.mark.parametrize("gate", ["top_k", "random"])
def test_an_expert_of_weight_zero_is_never_computed(way, gate, rng):
    """In evaluation, expert by expert full of NaN: no example notices for which all tasks give it weight 0."""
    keys = {**SMALL, **TABLE, "tasks": DESCRIBED, "gate": gate, "expert_num": 8, "top_k": 1}
    flat = config(**keys, expert="test_kit.own_expert")
    run, eager = start(way, flat), start("eager", flat)
    batch = table_batches(rng, 1, size=30)[0]
    sound, state = run.outputs(batch), run.state()
    eager.set(state)
    features = eager.net.shared(*eager.wrapper.hyper.split(eager._tensors(batch))[0])
    weights = [np.broadcast_to(gate(features)[0].numpy(), [30, 8]) for gate in eager.net.gates]
    needed = np.any([w > 0 for w in weights], axis=0)
    assert not needed.all(), "the draw missed the case under test"
    for i in range(8):
        broken = {n: np.full_like(state[n], np.nan) for k, n in run.names.items() if k.startswith(f"experts.{i}.")}
        run.set(broken)
        for mine, a, b in zip(weights, sound, run.outputs(batch)):
            noticed = ~np.isclose(a, b, atol=1e-6).all(axis=1)
            used = noticed[mine[:, i] > 0]  # not all of them notice: a ReLU turns NaN into 0
            assert (used.any() or not used.size) and not noticed[~needed[:, i]].any()
        run.set({n: state[n] for n in broken})
