"""Skipping an expert is exact: sparse equals dense, in all three ways of running."""

from unittest import mock

import numpy as np
import oracles
import paddle
import pytest
from ways import LEGACY_3, WAYS, code_logits, config, gate_values, is_running_statistic, make_batches, start

import net

EXPERTS = 4
PLAIN = {"expert_num": EXPERTS, "top_k": 2, "optimizer__learning_rate": 0.01, "expert_size": 8}
both_gates = pytest.mark.parametrize("gate", ["dselect_k", "dselect_k_per_example"])
every_way = pytest.mark.parametrize("way", WAYS)
branching_ways = pytest.mark.parametrize("way", WAYS[:1] if LEGACY_3 else WAYS)  # its programs compute all experts


class Dense:
    """A dynamic run whose every call finds the dense mixture in place of the sparse one: the oracle of all ways."""

    def __init__(self, run):
        self.run = run

    def __getattr__(self, name):
        value = getattr(self.run, name)
        if not callable(value):
            return value

        def call(*args):
            with mock.patch.object(net, "mix_needed_experts", oracles.mix_all_experts):
                return value(*args)

        return call


def start_dense(flat):
    return Dense(start("eager", flat))


def trained(run):
    """Parameters by name, without running statistics, which stand still for a skipped expert."""
    state = run.state()
    others = (is_running_statistic, lambda key: key.endswith("dropout_state"))  # a recurrent layer's, in programs
    return {name: state[name] for key, name in run.names.items() if not any(other(key) for other in others)}


def assert_close(ours, theirs, tolerance):
    assert ours.keys() == theirs.keys()
    for name in ours:
        np.testing.assert_allclose(ours[name], theirs[name], atol=tolerance, err_msg=name)


def settle(run, codes):
    run.set(gate_values(run, code_logits(codes, net.digit_num(EXPERTS), 0.7)))


@every_way
def test_loss_and_every_gradient_equal_dense(way, rng):
    """SGD without momentum at rate 1 moves each parameter by its gradient."""
    flat = config(**{**PLAIN, "optimizer__class": "sgd", "optimizer__momentum": 0, "optimizer__learning_rate": 1.0})
    batch = make_batches(rng, 1)[0]
    sparse, dense = start(way, flat), start_dense(flat)
    logits = np.array([[0.7, -0.2], [0.1, -0.7]])  # experts 0 and 1 off for one selector, 1 and 3 for the other
    for run in (sparse, dense):
        run.set(gate_values(run, logits, [0.3, -0.1]))
    before = trained(sparse)
    (loss, used), (dense_loss, _) = sparse.step(batch), dense.step(batch)
    assert used == 3, "the draw missed the case under test"
    assert loss == pytest.approx(dense_loss, abs=1e-6)
    assert_close(trained(sparse), trained(dense), 1e-6)  # float32 sums of a few numbers of order 1
    moved = [n for n, v in trained(sparse).items() if (v != before[n]).any()]
    assert len(moved) > len(before) / 2, "most parameters should have had a gradient"


@every_way
@both_gates
def test_parameters_equal_dense_after_20_adam_steps_and_a_reload(way, gate, rng, tmp_path):
    flat = config(**PLAIN, gate=gate, entropy_weight=0.01)
    sparse, dense = start(way, flat), start_dense(flat)
    batches = make_batches(rng, 25)
    supports = []
    for i, batch in enumerate(batches):
        if i in (5, 12, 17):  # settle on two experts, then on others, then open the gates again
            for run in (sparse, dense):
                reset_gates(run, i)
        if i == 20:
            sparse, dense = sparse.reopened(tmp_path), Dense(dense.reopened(tmp_path))
        (loss, used), (dense_loss, _) = sparse.step(batch), dense.step(batch)
        supports.append(used)
        assert loss == pytest.approx(dense_loss, abs=1e-5)
    assert len(set(supports)) > 1 and min(supports) < EXPERTS == max(supports), supports
    assert_close(trained(sparse), trained(dense), 1e-5)


def reset_gates(run, i):
    codes = {5: [0, 2], 12: [3, 3], 17: None}[i]
    digits = net.digit_num(EXPERTS)
    logits = np.full([2, digits], 0.05) if codes is None else code_logits(codes, digits, 0.7)
    values = gate_values(run, logits)
    for key, name in run.names.items():  # a per-example gate: only its constant part is left
        if key.endswith("selector_weight"):
            shape = run.state()[name].shape
            values[name] = np.full(shape, 0.0 if codes is not None else 1e-4, "float32")
    run.set(values)


@branching_ways
@both_gates
def test_a_skipped_expert_is_never_computed(way, gate, rng):
    """An expert full of NaN stays unnoticed, and so does one whose output is infinite.

    The latter gives the dense mixture away: 0 x inf = nan reaches the towers' and gates' gradients.
    (The loss stays finite, and NaN within the expert is lost: Paddle's ReLU turns NaN into 0.)
    """
    flat = config(**PLAIN, gate=gate)
    batches = make_batches(rng, 3)
    sparse, dense = start(way, flat), start_dense(flat)
    broken = names_of_expert(sparse, 3)
    last_bias = sparse.names["experts.3.layers.5.bias"]
    for run in (sparse, dense):
        reset_gates(run, 5)  # experts 0 and 2
    healthy = sparse.state()
    for poison in (
        {n: np.full_like(healthy[n], np.nan) for n in broken},
        {**{n: healthy[n] for n in broken}, last_bias: np.full_like(healthy[last_bias], np.inf)},
    ):
        sparse.set(poison)
        for batch in batches:
            loss, used = sparse.step(batch)
            assert used == 2 and np.isfinite(loss)
        _, loss, logits = sparse.evaluate(batches[0])
        assert np.isfinite(loss) and all(np.isfinite(z).all() for z in logits)
        assert all(np.isfinite(v).all() for n, v in sparse.state().items() if n not in broken)
    dense.set(poison)
    dense.step(batches[0])
    assert not all(np.isfinite(v).all() for n, v in dense.state().items() if n not in broken)


def names_of_expert(run, i):
    return {name for key, name in run.names.items() if key.startswith(f"experts.{i}.")}


@every_way
def test_running_statistics_of_a_skipped_expert_stand_still(way, rng):
    run = start(way, config(**PLAIN))
    settle(run, [0, 2])
    before = run.state()
    for batch in make_batches(rng, 2):
        run.step(batch)
    after = run.state()
    for key, name in run.names.items():
        if is_running_statistic(key):
            skipped = key.startswith(("experts.1.", "experts.3.")) and not (LEGACY_3 and way != "eager")
            assert (before[name] == after[name]).all() == skipped, key


def start_both_on_rows(way, flat, rng):
    """(sparse, dense, batch): a per-example gate whose rows need different experts, one needed by none."""
    sparse, dense = start(way, flat), start_dense(flat)
    batch = make_batches(rng, 1, size=12)[0]
    batch[0][:, :, :18] *= np.linspace(0, 1, 12).reshape(-1, 1, 1, 1).astype("float32")
    values = gate_values(sparse, [[-1.0, 0.6], [1.0, 0.6]])  # experts 0 or 1, and 3
    for key, name in sparse.names.items():
        if key.endswith("selector_weight"):  # the second digit of selector 0 follows the brightness
            weight = np.zeros([1296, 4], "float32")
            weight[:648, 1] = -1.2 / 324
            values[name] = weight
    for run in (sparse, dense):
        run.set(values)
    assert_rows_differ(sparse, batch)
    return sparse, dense, batch


@every_way
@pytest.mark.parametrize("norm", ["batch", "group", "none"])
def test_inference_by_row_equals_the_whole_batch(way, norm, rng):
    flat = config(**PLAIN, gate="dselect_k_per_example", expert_norm=norm)
    sparse, dense, batch = start_both_on_rows(way, flat, rng)
    ours, theirs = sparse.evaluate(batch), dense.evaluate(batch)
    assert ours[0] == pytest.approx(theirs[0])
    for a, b in zip(ours[2], theirs[2]):
        np.testing.assert_allclose(a, b, atol=1e-5)  # a convolution over fewer rows may round otherwise
    one_by_one = [sparse.evaluate([item[i : i + 1] for item in batch])[2] for i in range(12)]
    for t in range(2):
        np.testing.assert_allclose(np.concatenate([z[t] for z in one_by_one]), theirs[2][t], atol=1e-5)


@every_way
@pytest.mark.parametrize("norm", ["batch", "group", "none"])
def test_training_by_row_equals_dense(way, norm, rng):
    """Loss and every gradient (SGD at rate 1 moves by it), then ten steps; under batch norm, not by row."""
    flat = {**PLAIN, "gate": "dselect_k_per_example", "expert_norm": norm, "optimizer__class": "sgd"}
    for keys, step_num in (({**flat, "optimizer__momentum": 0, "optimizer__learning_rate": 1.0}, 1), (flat, 10)):
        sparse, dense, batch = start_both_on_rows(way, config(**keys), rng)
        before = sparse.state()
        for _ in range(step_num):
            (loss, used), (dense_loss, _) = sparse.step(batch), dense.step(batch)
            assert loss == pytest.approx(dense_loss, abs=1e-5) and used <= 3
        assert_close(trained(sparse), trained(dense), 1e-5)
        after = trained(sparse)
        moved = {key.split(".")[1] for key, name in sparse.names.items()
                 if key.startswith("experts") and name in after and (after[name] != before[name]).any()}  # fmt: skip
        assert moved == {"0", "1", "3"}


def assert_rows_differ(run, batch):
    if not hasattr(run, "net"):
        return
    weights, _ = run.net.gates[0](paddle.flatten(paddle.to_tensor(batch[0]), 1))
    needed = (weights.numpy() > 0).sum(axis=0)
    assert 0 in needed and any(0 < x < 12 for x in needed), f"the draw missed the case under test: {needed}"


@pytest.mark.parametrize("way", ["to_static", "static"])
@both_gates
def test_branches_equal_empty_batches(way, gate, rng):
    """What older releases of Paddle and exported models do instead, to the same numbers."""
    flat = config(**PLAIN, gate=gate, expert_norm="none")
    batches = make_batches(rng, 3)

    def found():
        run = start(way, flat)
        reset_gates(run, 5)  # experts 0 and 2
        steps = [run.step(batch) for batch in batches]
        assert [used for _, used in steps] == [2, 2, 2]
        return [loss for loss, _ in steps], run.predict(batches[0]), run.state()

    losses, logits, state = found()
    with mock.patch.object(net, "_run_without_rows", lambda experts: False):
        their_losses, their_logits, their_state = found()
    assert losses == pytest.approx(their_losses, abs=1e-5)
    for a, b in zip(logits, their_logits):
        np.testing.assert_allclose(a, b, atol=1e-5)
    assert_close(state, their_state, 1e-5)


@every_way
@both_gates
def test_gates_without_any_weight_mix_nothing(way, gate, rng):
    """The fourth of three experts: all weights are 0, and every example gets the same logits."""
    run = start(way, config(expert_num=3, top_k=2, gate=gate, expert_size=8))
    values = gate_values(run, code_logits([3, 3], 2, 0.7))
    values.update({run.names[k]: np.zeros([1296, 4], "float32") for k in run.names if k.endswith("selector_weight")})
    run.set(values)
    for logits in run.predict(make_batches(rng, 1)[0]):
        assert np.isfinite(logits).all() and (logits == logits[0]).all()


@pytest.mark.parametrize("weights", [[[0.0, 0.5, 0.5]], [[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]])
def test_only_the_needed_experts_are_called(weights):
    called = []

    def expert(i):
        def run(x):
            called.append(i)
            return x * 10**i

        return run

    x = paddle.ones([2, 3])
    mixtures = net.mix_needed_experts([expert(i) for i in range(3)], x, [paddle.to_tensor(w) for w in weights], 3)
    assert called == [1, 2]
    for w, mixture in zip(weights, mixtures):
        assert mixture.numpy().tolist() == [[np.dot(w, [1, 10, 100])] * 3] * 2


def test_by_row_calls_an_expert_with_just_its_rows():
    seen = []

    def expert(x):
        seen.append(x.numpy()[:, 0].tolist())
        return x * 10

    x = paddle.to_tensor([[1.0, 1.0], [2.0, 2.0], [3.0, 3.0]])
    weights = paddle.to_tensor([[1.0, 0.0], [0.0, 0.0], [0.5, 0.0]])
    (mixture,) = net.mix_needed_experts([expert, expert], x, [weights], 2, by_row=True)
    assert seen == [[1.0, 3.0]]
    assert mixture.numpy().tolist() == [[10.0, 10.0], [0.0, 0.0], [15.0, 15.0]]


@pytest.mark.parametrize("by_row", [False, True])
@pytest.mark.parametrize("weight", [1e-30, 1e-3])
def test_a_weight_that_is_small_but_not_zero_counts(weight, by_row):
    """Zero is exact, not small: the expert is computed on its row, and its output is there."""

    def expert(x):
        return paddle.ones([x.shape[0], 2]) * 1e30

    x, weights = paddle.ones([2, 2]), paddle.to_tensor([[1.0, weight], [1.0, 0.0]])
    first = paddle.nn.Linear(2, 2)
    first.weight.set_value(np.zeros([2, 2], "float32"))
    (mixture,) = net.mix_needed_experts([first, expert], x, [weights], 2, by_row=by_row)
    np.testing.assert_allclose(mixture.numpy(), [[1e30 * np.float32(weight)] * 2, [0.0, 0.0]], rtol=1e-6)
    assert int(net.experts_used([weights[0]])) == 2
