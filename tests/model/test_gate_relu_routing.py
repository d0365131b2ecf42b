"""The gate of ReMoE: its weights, its penalty, and the course of the penalty's weight, against NumPy."""

import numpy as np
import paddle
import pytest

from dselect_k_model.gates.relu_routing import LEAST, ReluRoutingGate
from support import oracles
from support.examples import SMALL, TASKS
from support.rounding import ADAM, SUMS, assert_close, assert_near
from support.ways import LEGACY_3, WAYS, assert_steps_agree, config, start, trained

pytestmark = pytest.mark.usefixtures("float64")
N = SMALL["expert_num"]
KEYS = {**SMALL, "input__dense_size": 5, "tasks": TASKS, "gate": "relu_routing"}
every_way = pytest.mark.parametrize("way", WAYS)
either_graph = pytest.mark.parametrize("way", ["eager", "static"])
# A program of Paddle's old form may round the rate, and the first weight, to float32: by 2^-24 of it
RATE_32 = 6e-8


def options(**given):
    return {f"gate_options__{name}": value for name, value in given.items()}


def batches_of(rng, number, size=12):
    labels = [rng.randint(0, 3, size), rng.randint(0, 2, size).astype("float64"), rng.randn(size)]
    return [[rng.randn(size, 5), *labels] for _ in range(number)]


def named(run, ending):
    """Values of the gates' parameters of a name, by task."""
    state = run.state()
    return [state[name] for key, name in sorted(run.names.items()) if key.startswith("gates") and key.endswith(ending)]


def set_all(run, ending, value):
    run.set({name: value for key, name in run.names.items() if key.startswith("gates") and key.endswith(ending)})


def gate_with(weight, top_k=1, **given):
    gate = ReluRoutingGate(weight.shape[1], top_k, weight.shape[0], l1_limit=1.0, **given)
    gate.weight.set_value(weight)
    return gate


def test_weights_are_the_positive_part_of_a_linear_map(rng):
    w, x = rng.randn(3, 6), rng.randn(40, 3)
    x[7] = 0.0  # a logit of exactly 0
    features = paddle.to_tensor(x, stop_gradient=False)
    weights = gate_with(w)(features)[0]
    assert_near(weights.numpy(), np.maximum(x @ w, 0), SUMS)
    assert 0.3 < (weights.numpy() == 0).mean() < 0.7 and not np.signbit(weights.numpy()[weights.numpy() == 0]).any()
    weights.sum().backward()
    assert_near(features.grad.numpy(), (x @ w > 0) @ w.T, SUMS)
    assert (features.grad.numpy()[7] == 0).all()
    x[:, 0] = np.nan
    assert np.isnan(gate_with(w)(paddle.to_tensor(x))[0].numpy()).all()


def test_a_new_gate_weighs_about_half_of_the_experts(rng):
    weights = ReluRoutingGate(16, 2, 50)(paddle.to_tensor(rng.randn(100, 50)))[0].numpy()
    shares = (weights > 0).mean(axis=1)
    assert shares.min() > 0 and shares.mean() == pytest.approx(0.5, abs=0.2)  # 800 draws, correlated within experts


@pytest.mark.parametrize("balanced", [True, False])
def test_the_penalty_and_its_gradient_are_the_papers(balanced, rng):
    w, x = rng.randn(3, 6), rng.randn(20, 3)
    gate = gate_with(w, top_k=2, l1_weight=0.3, balanced=balanced)
    users = (x @ w > 0).mean(axis=0)

    def penalty(weight):
        factors = users * 6 / 2 if balanced else np.ones(6)
        return 0.3 * (np.maximum(x @ weight, 0) * factors).sum(axis=1).mean()

    found = gate.penalties(gate(paddle.to_tensor(x))[1])["l1"]
    assert float(found) == pytest.approx(penalty(w), abs=SUMS)
    found.backward()
    assert_near(gate.weight.grad.numpy(), oracles.central_difference(penalty, w), 1e-8)  # linear in pieces


@every_way
@pytest.mark.parametrize("rate", [1.2, 3.0])
def test_the_weight_of_the_penalty_follows_the_share_of_zeros(way, rate, rng):
    run = start(
        way, config(**KEYS, optimizer__learning_rate=0.05, **options(l1_weight=0.1, l1_limit=1e3, l1_rate=rate))
    )
    batches, signs = batches_of(rng, 12), set()
    expected = np.full([3, 1], 0.1)
    for step, batch in enumerate(batches, 1):
        for task, w in enumerate(named(run, ".weight")):
            zeros = (batch[0] @ w <= 0).mean()
            signs.add(np.sign((1 - 2 / N) - zeros))  # of shares of 48: exact
            expected[task] *= rate ** np.sign((1 - 2 / N) - zeros)
        loss, _ = run.step(batch)
        assert np.isfinite(loss)
        np.testing.assert_allclose(named(run, "l1_weight"), expected, rtol=(step + 1) * RATE_32)
    assert {1, -1} <= signs, "the draw missed the case under test"
    run.evaluate(batches[0])
    np.testing.assert_allclose(named(run, "l1_weight"), expected, rtol=(step + 1) * RATE_32)


@either_graph
@pytest.mark.parametrize("top_k,first,bound", [(1, 0.25, 0.5), (N, LEAST * 5, LEAST)])
def test_the_weight_of_the_penalty_stays_within_its_bounds(way, top_k, first, bound, rng):
    keys = {**KEYS, "top_k": top_k, "optimizer__class": "sgd", "optimizer__learning_rate": 1e-9}
    run = start(way, config(**keys, **options(l1_weight=first, l1_limit=0.5, l1_rate=10.0)))
    for batch in batches_of(rng, 2):
        run.step(batch)
        np.testing.assert_allclose(named(run, "l1_weight"), np.full([3, 1], bound), rtol=2 * RATE_32)


def test_a_share_on_its_target_leaves_the_penalty_alone_however_it_is_rounded(rng):
    """Each example uses one expert of seven. In float32 one draw in six gives another mean share than 1 / 7."""
    paddle.set_default_dtype("float32")
    gate = gate_with(np.eye(7, dtype="float32"), l1_weight=0.5)
    for _ in range(200):
        gate.penalties(gate(paddle.to_tensor(np.eye(7, dtype="float32")[rng.randint(0, 7, 7)]))[1])
        assert gate.l1_weight.item() == 0.5


def test_the_share_of_zeros_is_that_of_all_processes():
    """This process's examples use all experts, those of the job one of four."""
    gate = gate_with(np.ones([2, 4]), top_k=2, l1_weight=0.5)
    gate.mean_of_rows = lambda x: paddle.mean(x, axis=0) * 0.0 + 0.25
    found = gate.penalties(gate(paddle.ones([3, 2], "float64"))[1])["l1"]
    assert float(found) == pytest.approx(0.5 * 4 * 2.0 * 0.25 * (4 / 2), abs=SUMS)  # four weights of 2
    assert gate.l1_weight.item() == pytest.approx(0.5 / 1.2, abs=SUMS)


@pytest.mark.parametrize("way", ["to_static", "static"])
def test_both_graphs_train_alike_where_the_penalty_matters(way, rng):
    """By SGD; with numbers that float32 has too, as some programs of Paddle's old form round them to it."""
    keys = {**KEYS, "optimizer__class": "sgd", "optimizer__learning_rate": 0.05}
    flat = config(**keys, **options(l1_weight=0.125, l1_limit=8.0, l1_rate=2.0))
    ours, theirs = start(way, flat), start("dense", flat)
    assert_steps_agree(ours, theirs, batches_of(rng, 6), SUMS)
    assert_close(trained(ours), trained(theirs), SUMS)


@every_way
def test_a_resumed_training_goes_on_with_the_same_bits(way, rng, tmp_path):
    run = start(way, config(**KEYS, **options(l1_weight=0.1)))
    batches = batches_of(rng, 6)
    for batch in batches[:3]:
        run.step(batch)
    again = run.reopened(tmp_path)
    assert_close(again.state(), run.state(), 0)
    for batch in batches[3:]:
        run.step(batch), again.step(batch)
    assert_close(again.state(), run.state(), 0)


@pytest.mark.skipif(LEGACY_3, reason="its programs compute all experts")
@either_graph
def test_an_expert_that_no_example_needs_is_never_computed(way, rng):
    run = start(way, config(**KEYS))
    w = np.abs(rng.randn(5, N))
    w[:, 3] *= -1
    set_all(run, ".weight", w)
    broken = {name for key, name in run.names.items() if key.startswith("experts.3.")}
    run.set({name: np.full_like(run.state()[name], np.nan) for name in broken})
    batch = batches_of(rng, 1)[0]
    batch[0] = np.abs(batch[0])
    loss, used = run.step(batch)
    assert used == 3 and np.isfinite(loss) and np.isfinite(run.evaluate(batch)[1])
    assert all(np.isfinite(value).all() for name, value in run.state().items() if name not in broken)


@every_way
def test_a_gate_without_any_weight_trains_on(way, rng):
    """All weights 0: nothing to mix, and nothing for the penalty to pull at."""
    run, dense = start(way, config(**KEYS)), start("dense", config(**KEYS))
    batch = batches_of(rng, 1)[0]
    batch[0] = np.abs(batch[0])
    for each in (run, dense):
        set_all(each, ".weight", np.full([5, N], -1.0))
    assert assert_steps_agree(run, dense, [batch] * 3, ADAM) == [0, 0, 0]
    assert_close(trained(run), trained(dense), ADAM)
    assert all((w == -1.0).all() for w in named(run, ".weight"))
    np.testing.assert_allclose(named(run, "l1_weight"), np.full([3, 1], 1e-8 / 1.2**3), rtol=4 * RATE_32)


@pytest.mark.parametrize(
    "given,words",
    [
        ({"l1_weight": 0}, "l1_weight is 0, but must be a number >= 1e-12"),
        ({"l1_weight": 0.2}, "l1_weight is 0.2, but must not exceed l1_limit, which is 0.1"),
        ({"l1_rate": 0.9}, "l1_rate is 0.9, but must be a number >= 1"),
        ({"balanced": "maybe"}, "balanced is 'maybe', but must be true or false"),
        ({"top_k": 7}, "top_k is 7, but must be a whole number from 1 to 6"),
    ],
)
def test_a_wrong_argument_is_refused(given, words):
    with pytest.raises(ValueError, match=words):
        ReluRoutingGate(**{"expert_num": 6, "top_k": 2, "feature_size": 3, **given})
