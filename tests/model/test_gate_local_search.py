"""gates/local_search.py: against NumPy loops in float64; during a search, after it, and resumed within one."""

import itertools

import numpy as np
import paddle
import pytest

import net
from dselect_k_model import build, processes
from dselect_k_model.gates.comet import CometGate
from dselect_k_model.gates.local_search import LocalSearch, greedy_permutation, soft_permutation
from dselect_k_model.hyper_parameters import HyperParameters
from support.examples import SMALL, TABLE, TASKS, table_batches
from support.rounding import ADAM, SUMS, assert_close, assert_near
from support.ways import LEGACY_3, WAYS, code_logits, config, gate_values, start, trained

pytestmark = pytest.mark.usefixtures("float64")
OF_TABLE = {**SMALL, **TABLE, "tasks": TASKS, "optimizer__learning_rate": 0.01}
STEPS, EXPERTS = 3, 4


def sinkhorn(logits):
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    p = p / p.sum(axis=1, keepdims=True)
    for _ in range(20):
        for j in range(len(p)):
            p[:, j] /= p[:, j].sum()
        for i in range(len(p)):
            p[i] /= p[i].sum()
    return p


def greedy(scores):
    chosen = np.zeros(scores.shape)
    for i, j in sorted(np.ndindex(*scores.shape), key=lambda place: -scores[place]):
        if not chosen[i].any() and not chosen[:, j].any():
            chosen[i, j] = 1
    return chosen


def is_permutation(p):
    return ((p == 0) | (p == 1)).all() and (p.sum(axis=0) == 1).all() and (p.sum(axis=1) == 1).all()


@pytest.mark.parametrize("size", [2, 5, 8])
@pytest.mark.parametrize("spread", [0.3, 1.0])
def test_a_soft_permutation_is_sinkhorns_loop_and_its_rows_and_columns_sum_to_1(size, spread, rng):
    logits = rng.randn(2, size, size) * spread
    found = soft_permutation(paddle.to_tensor(logits)).numpy()
    rounding = 40 * (size + 2) * 1.1e-16  # 40 divisions by sums of ``size`` numbers
    assert_near(found, [sinkhorn(matrix) for matrix in logits], rounding)
    assert_near(found.sum(axis=2), 1, rounding)
    for p, matrix in zip(found, logits):
        # Birkhoff: positive matrices shrink log(max / min) by tanh(D / 4), D being the log of the greatest ratio of two
        # entries' product to that of those crosswise: so each division by sums shrinks the sums' own distance from 1
        crosswise = np.ptp(matrix[:, None] - matrix[None], axis=2).max()
        softmax = np.exp(matrix) / np.exp(matrix).sum(axis=1, keepdims=True)
        at_first = np.ptp(np.log(softmax.sum(axis=0)))
        assert_near(p.sum(axis=0), 1, np.expm1(np.tanh(crosswise / 4) ** 40 * at_first) + rounding)


def test_a_soft_permutation_has_no_zero():
    """On a CPU, Paddle's softmax has no share below exp(-64) = 1.6e-28, elsewhere it has exact zeros."""
    p = soft_permutation(paddle.to_tensor([[0.0, -1000], [-1000, 0]], "float32")).numpy()
    assert_near(p / [[1, 1e-20], [1e-20, 1]], 1, 1e-5)  # 80 divisions in float32
    p = soft_permutation(paddle.to_tensor([[0.0, -1000], [0, -1000]], "float32")).numpy()
    assert_near(p, 0.5, 1e-5)


@pytest.mark.parametrize("size", [2, 3, 8])
def test_a_hard_permutation_is_the_greedy_choice(size, rng):
    for scores in (rng.randn(size, size), rng.randn(size, size) * 1e4):
        found = greedy_permutation(paddle.to_tensor(scores)).numpy()
        assert is_permutation(found)
        np.testing.assert_array_equal(found, greedy(scores))
    for ties in (np.zeros([size, size]), rng.randint(0, 2, [size, size]) - 0.5, np.eye(size)[::-1] * 3):
        assert is_permutation(greedy_permutation(paddle.to_tensor(ties)).numpy())
        assert is_permutation(greedy_permutation(paddle.to_tensor(ties, "float32")).numpy())


@pytest.mark.parametrize("feature_size", [0, 6])
def test_before_the_first_step_the_weights_in_evaluation_are_the_gates_own(feature_size, rng):
    gate, x = CometGate(5, 2, feature_size=feature_size), paddle.to_tensor(rng.randn(3, 6))
    search = LocalSearch(gate, STEPS)
    search.eval()
    np.testing.assert_array_equal(search(x)[0].numpy(), gate(x)[0].numpy())
    assert (search.per_example, search.feature_size) == (gate.per_example, gate.feature_size)


@pytest.mark.parametrize("feature_size", [0, 6])
def test_weights_in_a_search_are_those_of_the_soft_permutation_and_after_it_of_the_hard_one(feature_size, rng):
    gate, x = CometGate(5, 2, feature_size=feature_size), paddle.to_tensor(rng.randn(3, 6))
    search, scores = LocalSearch(gate, STEPS), rng.randn(5, 5)
    search.scores.set_value(scores)
    q, state = gate(x)
    q = q.numpy()
    for temperature in (1.0, 0.1**0.5, 0.1):
        paddle.seed(5)
        noise = paddle.randn([5, 5]).numpy()
        paddle.seed(5)
        weights, of_search = search(x)
        # entries of size 1 whose logits, of 30 at most, are rounded: 30 x 1.1e-16, and sinkhorn's 3e-14
        assert_near(weights.numpy(), q @ sinkhorn(scores / temperature + 0.5 * noise), 1e-13)
        hard = greedy(sinkhorn(scores / temperature))
        np.testing.assert_array_equal(search.permutation.numpy(), hard)
    assert float(search.penalties(of_search)["entropy"]) == float(gate.penalties(state)["entropy"])

    search.scores.set_value(-scores)  # of no use any more
    for training in (True, False):
        (search.train if training else search.eval)()
        np.testing.assert_array_equal(search(x)[0].numpy(), q @ hard)
    np.testing.assert_array_equal(search.permutation.numpy(), hard)
    assert search.step.tolist() == [STEPS + 1]


def test_the_hard_permutation_weighs_all_rows_against_each_other_as_the_soft_one_does():
    """Greedy by the scores would keep the identity, of the scores 1 and 0, and give up 0.9 twice."""
    search = LocalSearch(CometGate(2, 1), 1)
    search.scores.set_value(np.array([[1.0, 0.9], [0.9, 0.0]]))
    search()
    assert search.permutation.tolist() == [[0, 1], [1, 0]]


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"expert_num": 1}, {"learning_rate_factor": 0}])
def test_arguments_out_of_range_are_refused_by_name(wrong):
    gate = CometGate(wrong.get("expert_num", 2), 1)
    with pytest.raises(ValueError, match=next(iter(wrong))):
        LocalSearch(gate, **{"steps": 1, **{name: value for name, value in wrong.items() if name != "expert_num"}})


@pytest.mark.parametrize(
    "keys,words",
    [
        *(({"gate": gate}, f"the gate {gate} has fixed weights") for gate in ("random", "single_task")),
        ({"gate": "support.users_parts.gate_with_keys", "gate_options__chosen": 1}, "the gate .* has fixed weights"),
        ({"gate": "shared_bottom"}, "the gate shared_bottom has one expert only"),
        ({"expert_num": 1, "top_k": 1}, "the gate dselect_k has one expert only"),
        ({"gate": "cgc"}, "the gate cgc may use some experts only"),
    ],
)
def test_a_gate_with_nothing_to_search_is_refused_by_the_key(keys, words):
    hyper = HyperParameters.from_config(config(**{**OF_TABLE, **keys}, gate_search_steps=3))
    with pytest.raises(ValueError, match=f"hyper_parameters.gate_search_steps is 3, but {words}.* Set it to 0"):
        build.build(hyper)


def test_a_users_gate_and_one_with_a_mean_over_the_job_are_searched_around():
    keys = {**OF_TABLE, "gate": "support.users_parts.gate_of_two", "optimizer__gate_learning_rate_factor": 3.0}
    (gate, *_) = build.build(HyperParameters.from_config(config(**keys, gate_search_steps=3))).gates
    assert isinstance(gate, LocalSearch) and type(gate.gate).__name__ == "GateOfTwo"
    assert {p.optimize_attr["learning_rate"] for p in gate.parameters() if not p.stop_gradient} == {3.0}
    hyper = HyperParameters.from_config(config(**OF_TABLE, gate="top_k", gate_search_steps=3))
    network = build.build(hyper)
    build._spread(network, hyper)
    assert network.gates[0].gate.mean_of_rows is processes.mean_of_rows


def settled(way, codes):
    """A run whose gates' selectors have settled on these experts, before the permutation."""
    run = start(way, config(**OF_TABLE, gate_search_steps=STEPS))
    run.set(gate_values(run, code_logits(codes, net.digit_num(EXPERTS), 0.7)))
    return run


def stepped(run, batch, seed):
    paddle.seed(seed)
    return run.step(batch)


def permutations(run):
    return {key: run.state()[name] for key, name in run.names.items() if key.endswith("permutation")}


@pytest.mark.parametrize("way", WAYS)
def test_all_experts_train_in_a_search_and_after_it_those_of_the_gate_alone(way, rng):
    run, dense = settled(way, (0, 0)), settled("dense", (0, 0))
    used = []
    for seed, batch in enumerate(table_batches(rng, STEPS + 2)):
        (loss, number), (theirs, _) = stepped(run, batch, seed), stepped(dense, batch, seed)
        assert_near(loss, theirs, ADAM, "loss")
        used.append(number)
    found = permutations(run)
    needed = {int(p[0].argmax()) for p in found.values()}  # of three tasks: 3 of 4 experts at most
    assert used == [EXPERTS] * STEPS + [len(needed)] * 2
    assert all(is_permutation(p) for p in found.values()) and any((p != np.eye(EXPERTS)).any() for p in found.values())
    assert_close(trained(run), trained(dense), ADAM)
    if LEGACY_3 and way != "eager":
        return  # its programs compute all experts
    unneeded = {n for k, n in run.names.items() for i in {*range(EXPERTS)} - needed if k.startswith(f"experts.{i}.")}
    run.set({name: np.full_like(run.state()[name], np.nan) for name in unneeded})
    batch = table_batches(rng, 1)[0]
    assert np.isfinite([stepped(run, batch, 0)[0], run.evaluate(batch)[1]]).all()
    assert all(np.isfinite(value).all() for name, value in run.state().items() if name not in unneeded)


@pytest.mark.parametrize("way,gate", itertools.product(["eager", "static"], ["comet", "noisy_top_k"]))
def test_a_search_continues_exactly_after_a_restart(way, gate, rng, tmp_path):
    run = start(way, config(**OF_TABLE, gate=gate, gate_search_steps=STEPS))
    first, *others = table_batches(rng, 4)
    stepped(run, first, 0)
    again = run.reopened(tmp_path)
    for seed, batch in enumerate(others):
        stepped(run, batch, seed), stepped(again, batch, seed)
    assert_close(again.state(), run.state(), 0)  # the same operations on the same numbers


def test_the_static_graphs_constant_weights_are_those_of_the_dynamic_graph_within_a_search(rng):
    """What the log and an exported model take as a shared gate's weights."""
    dynamic, static = settled("eager", (0, 2)), settled("static", (0, 2))
    batch = table_batches(rng, 1)[0]
    stepped(dynamic, batch, 0), stepped(static, batch, 0)
    theirs = dynamic.wrapper.status(dynamic.net)
    with static.on():
        ours = static.wrapper.status(static.state())
    assert [[*experts] for experts in ours.values()] == [[*experts] for experts in theirs.values()]
    for of_task, experts in zip(permutations(dynamic).values(), theirs.values()):
        assert [*experts] == [str(i) for i in sorted(of_task[[0, 2]].argmax(axis=1))]
    assert_near([[*e.values()] for e in ours.values()], [[*e.values()] for e in theirs.values()], SUMS)
