"""gates/comet.py: against a slow walk down each tree in NumPy float64, and finite differences; exact zeros."""

import math

import numpy as np
import paddle
import pytest

from dselect_k_model.gates.comet import CometGate, leaf_probabilities, tree_weights
from support import oracles
from support.examples import SMALL, TABLE, TASKS, table_batches
from support.rounding import ADAM, SUMS, assert_close, assert_near
from support.seeds import random_state
from support.ways import LEGACY_3, WAYS, assert_steps_agree, config, start, trained

SHAPES = [(1, 1), (2, 1), (2, 2), (3, 1), (3, 3), (5, 2), (5, 3), (8, 1), (8, 2), (8, 3)]  # (n, k)
every_shape = pytest.mark.parametrize("expert_num,top_k", SHAPES)
both_gates = pytest.mark.parametrize("gate", ["comet", "comet_shared"])
OF_TABLE = {**SMALL, **TABLE, "tasks": TASKS, "optimizer__learning_rate": 0.01}
EXPERTS = 4


def tensor(array, dtype="float64"):
    result = paddle.to_tensor(np.asarray(array), dtype=dtype)
    result.stop_gradient = False
    return result


def walk(z, gamma):
    """v [k, n] of split logits z [k, n - 1]: down every way of each tree, from node 1."""
    leaves = np.zeros([len(z), z.shape[1] + 1])
    for j, expert in np.ndindex(*leaves.shape):
        way = [expert + leaves.shape[1]]  # the leaf's node; above node i is node i // 2
        while way[0] > 1:
            way.insert(0, way[0] // 2)
        steps = [oracles.smooth_step(z[j, node - 1], gamma) for node in way[:-1]]
        turns_right = [node % 2 for node in way[1:]]
        leaves[j, expert] = math.prod(s if right else 1 - s for s, right in zip(steps, turns_right))
    return leaves


def mixed(leaves, a):
    """q [n] of v and a, both [k, n], as the paper writes it."""
    parts = np.array([[math.exp(x) * v for x, v in zip(*tree)] for tree in zip(a, leaves)])
    return parts.sum(axis=0) / parts.sum()


def draw(expert_num, top_k, seed=3, spread=1.2):
    """Split logits [k, n - 1], some inside the band and some outside, and leaf logits [k, n]."""
    rng = random_state(seed)
    return (rng.rand(top_k, expert_num - 1) - 0.5) * spread, rng.randn(top_k, expert_num)


def weights_of(z, a, gamma=1.0):
    return tree_weights(leaf_probabilities(z, gamma), a)


@every_shape
@pytest.mark.parametrize("gamma", [0.1, 1.0])
def test_weights_and_their_jacobian_are_the_formula(expert_num, top_k, gamma):
    z, a = draw(expert_num, top_k)
    z *= gamma
    if expert_num == 1:
        assert tree_weights(tensor([[1.0]]), tensor(a)).tolist() == [1.0]
        return
    # 24 terms, each of 3 factors at most of some 6 roundings: 24 x 18 x 1.1e-16 = 5e-14
    assert_near(leaf_probabilities(tensor(z), gamma).numpy(), walk(z, gamma), 1e-14)
    assert_near(weights_of(tensor(z), tensor(a), gamma).numpy(), mixed(walk(z, gamma), a), 5e-14)
    by_z, by_a = jacobian(z, a, "float64", gamma)
    slope = oracles.central_difference(lambda x: mixed(walk(x, gamma), a), z)
    assert_near(by_z, slope, 1e-7 / gamma**3)  # a step of 1e-6: its square, times the third derivative
    assert_near(by_a, oracles.central_difference(lambda x: mixed(walk(z, gamma), x), a), 1e-7)


def jacobian(z, a, dtype, gamma=1.0):
    """d q_i / d z [n, k, n - 1] and d q_i / d a [n, k, n]."""
    by_z, by_a = [], []
    for i in range(a.shape[1]):
        tz, ta = tensor(z, dtype), tensor(a, dtype)
        weights_of(tz, ta, gamma)[i].backward()
        by_z.append(tz.grad.numpy())
        by_a.append(ta.grad.numpy())
    return np.stack(by_z), np.stack(by_a)


@pytest.mark.parametrize("expert_num,top_k", [(3, 1), (5, 2), (8, 3)])
@pytest.mark.parametrize("seed", range(4))
def test_a_weight_of_zero_has_a_slope_of_exactly_zero(expert_num, top_k, seed):
    z, a = draw(expert_num, top_k, seed, spread=3.0)
    z[:, 0] = 0.7 if seed % 2 else -0.7  # one half of each tree is out for certain,
    z[0, 1:] /= 6  # and in the other half of the first one all leaves are reached
    q = weights_of(tensor(z, "float32"), tensor(a, "float32")).numpy()
    by_z, by_a = jacobian(z, a, "float32")
    off = q == 0
    assert off.any() and not off.all(), "the draw missed the case under test"
    assert (by_z[off] == 0).all() and (by_a[off] == 0).all()  # no tolerance
    assert np.isfinite(by_z).all() and np.isfinite(by_a).all()


@pytest.mark.parametrize("expert_num", range(2, 18))
def test_a_tree_has_a_leaf_for_each_expert_and_no_other(expert_num):
    even = leaf_probabilities(paddle.zeros([1, expert_num - 1])).numpy()[0]
    assert set(np.log2(even)) <= {-math.floor(math.log2(expert_num)), -math.ceil(math.log2(expert_num))}
    assert even.sum() == 1  # of powers of 2
    z, a = draw(expert_num, 2)
    assert_near(weights_of(tensor(z), tensor(a)).numpy().sum(), 1, 1e-14)  # 34 roundings of 1.1e-16


@pytest.mark.parametrize("expert_num", [2, 5, 8])
def test_a_settled_tree_gives_one_expert_all_its_weight_whatever_the_leaves_logits(expert_num):
    for expert in range(expert_num):
        z = tensor([settled_splits(expert, expert_num)], "float32")
        a = tensor([[-900.0 if e == expert else 900.0 for e in range(expert_num)]], "float32")
        q = weights_of(z, a)
        q[expert].backward()
        assert q.tolist() == np.eye(expert_num)[expert].tolist()
        assert not z.grad.numpy().any() and not a.grad.numpy().any()


def settled_splits(expert, expert_num, distance=0.5):
    """Split logits [n - 1] whose tree leads to an expert, and to no other."""
    splits, node = np.full(expert_num - 1, distance), expert + expert_num
    while node > 1:
        splits[node // 2 - 1] = distance if node % 2 else -distance
        node //= 2
    return splits


@pytest.mark.parametrize("dtype,rounding", [("float32", 6e-8), ("float64", 1.1e-16)])
def test_weights_stay_finite_where_leaves_are_hardly_reached_and_their_logits_are_extreme(dtype, rounding):
    """A turn to the left has a chance of about the rounding squared: three of them count as never."""
    z = tensor(np.full([1, 7], np.nextafter(np.dtype(dtype).type(0.5), 0)), dtype)
    assert leaf_probabilities(z).numpy()[0, 0] < 1e-38  # in float32 0 on Paddle 2.6.2, which rounds such numbers so
    for greatest in (0, 1, 7):
        for height in (80.0, 800.0):
            a = tensor([[height if e == greatest else 0.0 for e in range(8)]], dtype)
            q = weights_of(z, a)
            q[7].backward()
            assert q.numpy()[0] == 0 and q.numpy().sum() == pytest.approx(1, abs=16 * rounding)  # 8 terms and quotients
            assert np.isfinite(z.grad.numpy()).all() and np.isfinite(a.grad.numpy()).all()


def test_settled_trees_share_out_the_weight_by_their_own_leaves_logits():
    """However far above them those of other leaves are."""
    z = tensor([settled_splits(0, 4), settled_splits(2, 4)])
    q = weights_of(z, tensor([[-900.0, 900, 900, 900], [900.0, 900, -901, 900]])).numpy()
    share = 1 / (1 + math.exp(-1))
    assert_near(q, [share, 0, 1 - share, 0], 1e-15)
    assert (q[[1, 3]] == 0).all()


def values_drawn(gate, rng):
    values = {name: rng.randn(*p.shape) * 0.3 for name, p in gate.named_parameters()}
    for name, p in gate.named_parameters():
        p.set_value(values[name])
    return values


def of_row(values, row, expert_num, top_k):
    """(q, v) by the oracle, of a row of features, or of none."""
    logits = {
        part: values[f"{part}_logits"] + (row @ values[f"{part}_weight"] if row is not None else 0)
        for part in ("split", "leaf")
        if f"{part}_logits" in values
    }
    a = logits["leaf"].reshape(top_k, expert_num)
    v = walk(logits["split"].reshape(top_k, -1), 2.0) if "split" in logits else np.ones_like(a)
    return mixed(v, a), v


@pytest.mark.usefixtures("float64")
@every_shape
@pytest.mark.parametrize("feature_size", [0, 4])
def test_a_gates_weights_entropy_and_every_gradient_are_the_formula(expert_num, top_k, feature_size, rng):
    gate, x = CometGate(expert_num, top_k, 2.0, feature_size), rng.randn(3, 4)
    values, share = values_drawn(gate, rng), rng.randn(expert_num)
    rows = x if feature_size else [None]

    def objective(values):
        q, v = zip(*[of_row(values, row, expert_num, top_k) for row in rows])
        return float(np.mean(q, axis=0) @ share + 0.7 * np.mean([oracles.entropy(one) for one in v]))

    weights, state = gate(paddle.to_tensor(x))
    expected = [of_row(values, row, expert_num, top_k)[0] for row in rows]
    assert_near(weights.numpy().reshape(-1, expert_num), expected, 5e-13)  # as above; logits of 4 products
    (entropy,) = gate.penalties(state).values()
    mean = paddle.mean(weights.reshape([-1, expert_num]), axis=0)
    value = (mean * paddle.to_tensor(share)).sum() + 0.7 * entropy
    value.backward()
    assert float(value) == pytest.approx(objective(values), abs=1e-11)
    for name, p in gate.named_parameters():
        slope = oracles.central_difference(lambda x, name=name: objective({**values, name: x}), values[name])
        # the logarithm's third derivative grows as 1 / (v + 1e-6)^2, but with v^2 z'''s slope: some 100 at most
        assert_near(p.grad.numpy(), slope, 1e-7 * max(1, np.abs(slope).max()), name)


@pytest.mark.parametrize("feature_size", [0, 300])
def test_initial_values_lie_in_the_stated_ranges(feature_size):
    for name, p in CometGate(8, 2, gamma=0.5, feature_size=feature_size).named_parameters():
        bound = 0.005 if name.startswith("split") else 0.05
        assert 0 < np.abs(p.numpy()).max() <= bound
        assert p.regularizer is not None  # decay spares it


@pytest.mark.parametrize(
    "wrong",
    [{"top_k": 0}, {"top_k": 4}, {"gamma": 0}, {"expert_num": 0}, {"feature_size": -1}, {"learning_rate_factor": 0}],
)
def test_arguments_out_of_range_are_refused_by_name(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        CometGate(**{"expert_num": 3, "top_k": 1, **wrong})


def test_features_that_do_not_fit_are_refused():
    for features in (None, paddle.ones([2, 3])):
        with pytest.raises(ValueError, match="features"):
            CometGate(3, 1, feature_size=2)(features)


@pytest.mark.parametrize("expert_num,top_k", [(5, 2), (8, 3)])
def test_the_entropy_penalty_alone_settles_every_tree(expert_num, top_k, rng):
    gate = CometGate(expert_num, top_k, feature_size=6)
    x = paddle.to_tensor(rng.randn(20, 6).astype("float32"))
    optimizer = paddle.optimizer.Adam(0.02, parameters=gate.parameters())
    for _ in range(300):
        entropy = gate.penalties(gate(x)[1])["entropy"]
        entropy.backward()
        optimizer.step()
        optimizer.clear_grad()
    weights, leaves = gate(x)
    settled = (leaves.numpy() > 0).sum(axis=-1) == 1
    assert settled.mean() > 0.8 and ((weights.numpy() > 0).sum(axis=-1) <= top_k).mean() > 0.5


# ---------------------------------------------------------------------------- in a network


def set_splits(run, *experts, split_weight=0.0):
    """Have each task's trees lead to these experts; a per-example gate's move from there by ``split_weight``."""
    state, values = run.state(), {}
    for key, name in run.names.items():
        if key.endswith("split_logits"):
            values[name] = np.concatenate([settled_splits(e, EXPERTS, 0.7) for e in experts])
        if key.endswith("split_weight"):
            values[name] = np.broadcast_to(split_weight, state[name].shape)
    run.set(values)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("way", WAYS)
@both_gates
def test_loss_and_parameters_equal_dense_while_trees_settle_and_open(way, gate, rng):
    flat = config(**OF_TABLE, gate=gate, entropy_weight=0.01)
    sparse, dense = start(way, flat), start("dense", flat)
    assert assert_steps_agree(sparse, dense, table_batches(rng, 2), ADAM)[0] == EXPERTS
    for run in (sparse, dense):
        set_splits(run, 0, 2)
    assert assert_steps_agree(sparse, dense, table_batches(rng, 2), ADAM)[0] == 2
    if gate == "comet":  # the examples choose different experts
        by_feature = rng.randn(11, 6)
        for run in (sparse, dense):
            set_splits(run, 0, 2, split_weight=by_feature)
    batches = table_batches(rng, 2)
    assert_steps_agree(sparse, dense, batches, ADAM)
    assert_close(trained(sparse), trained(dense), ADAM)
    for ours, theirs in zip(sparse.outputs(batches[0]), dense.outputs(batches[0])):
        assert_near(ours, theirs, ADAM)
    if gate == "comet":
        used = dense.net(dense.wrapper.hyper.split(dense._tensors(batches[0]))[0], details=True).weights[0].numpy() > 0
        assert len({tuple(row) for row in used}) > 2, "the draw missed the case under test"


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("expert_num,top_k", [(1, 1), (3, 2), (5, 3)])
@both_gates
def test_both_graphs_train_alike(gate, expert_num, top_k, rng):
    flat = config(**{**OF_TABLE, "expert_num": expert_num, "top_k": top_k}, gate=gate, entropy_weight=0.1)
    dynamic, static = start("eager", flat), start("static", flat)
    before = trained(dynamic)
    assert_steps_agree(dynamic, static, table_batches(rng, 4, missing=True), ADAM)
    assert dynamic.names == static.names
    assert_close(trained(dynamic), trained(static), ADAM)
    for key, name in dynamic.names.items():
        if key.startswith("gates") and expert_num > 1:
            assert (before[name] != trained(dynamic)[name]).any(), f"{key} should have moved"


@pytest.mark.usefixtures("float64")
@pytest.mark.skipif(LEGACY_3, reason="its programs compute all experts")
@pytest.mark.parametrize("way", ["eager", "static"])
@both_gates
def test_an_expert_that_no_tree_reaches_is_never_computed(way, gate, rng):
    """Infinite outputs would reach the loss as 0 x inf."""
    run = start(way, config(**OF_TABLE, gate=gate))
    set_splits(run, 0, 2)
    broken = {name for key, name in run.names.items() if key.startswith(("experts.1.", "experts.3."))}
    run.set({name: np.full_like(run.state()[name], np.inf) for name in broken})
    losses, used = zip(*[run.step(batch) for batch in table_batches(rng, 2)])
    outputs = run.outputs(table_batches(rng, 1)[0])
    assert used == (2, 2) and np.isfinite(losses).all() and all(np.isfinite(z).all() for z in outputs)
    assert all(np.isfinite(value).all() for name, value in run.state().items() if name not in broken)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("way", ["eager", "static"])
@both_gates
def test_training_continues_exactly_after_a_restart(way, gate, rng, tmp_path):
    run = start(way, config(**OF_TABLE, gate=gate))
    first, second = table_batches(rng, 2)
    run.step(first)
    again = run.reopened(tmp_path)
    run.step(second), again.step(second)
    assert_close(again.state(), run.state(), 0)  # the same operations on the same numbers


@pytest.mark.usefixtures("float64")
@both_gates
def test_the_static_graphs_constant_weights_are_those_of_the_dynamic_graph(gate):
    """What the log and an exported model take as a shared gate's weights."""
    flat = config(**OF_TABLE, gate=gate)
    dynamic, static = start("eager", flat), start("static", flat)
    assert static.wrapper.facts.per_example == (gate == "comet")
    if gate == "comet_shared":
        theirs = [list(experts.values()) for experts in dynamic.wrapper.status(dynamic.net).values()]
        with static.on():
            ours = [list(experts.values()) for experts in static.wrapper.status(static.state()).values()]
        assert_near(ours, theirs, SUMS)
