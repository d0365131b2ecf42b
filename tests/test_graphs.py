"""Static equals dynamic: same start, same batches, same parameters, running statistics and numbers."""

import numpy as np
import pytest
from toolbox import opened
from ways import LEGACY_3, code_logits, config, gate_values, is_running_statistic, make_batches, start

import net

CASES = {
    "defaults": {},
    "per example, not a power of two": {"gate": "dselect_k_per_example", "expert_num": 5, "entropy_weight": 0.01},
    "three tasks": {"task_num": 3, "expert_num": 6, "top_k": 3, "task_weights": [1.0, 0.5, 2.0]},
    "adamw, one cycle": {
        "optimizer__class": "adamw",
        "optimizer__weight_decay": 0.1,
        "optimizer__schedule": "one_cycle",
        "runner__steps_per_epoch": 5,
        "runner__epochs": 4,
        "entropy_schedule": "linear",
        "entropy_ramp_steps": 10,
    },
    "sgd, cosine after a warm-up, clipped": {
        "optimizer__class": "sgd",
        "optimizer__learning_rate": 0.05,
        "optimizer__weight_decay": 0.01,
        "optimizer__schedule": "cosine",
        "optimizer__warmup_steps": 3,
        "optimizer__clip_norm": 0.0 if LEGACY_3 else 0.5,
        "runner__steps_per_epoch": 20,
        "runner__epochs": 1,
        "entropy_schedule": "cosine",
        "entropy_ramp_steps": 15,
    },
    "a single expert": {"expert_num": 1, "top_k": 1},
}
SMALL = {"expert_num": 4, "expert_size": 8, "tower_size": 8, "optimizer__gate_learning_rate_factor": 3.0}


@pytest.mark.parametrize("keys", CASES.values(), ids=CASES)
def test_20_steps_agree(keys, rng):
    flat = config(**{**SMALL, **keys})
    dynamic, static = start("eager", flat), start("static", flat)
    assert_equal_state(dynamic, static, 0)
    before = dynamic.state()
    for batch in make_batches(rng, 20, task_num=keys.get("task_num", 2)):
        (loss, used), (static_loss, static_used) = dynamic.step(batch), static.step(batch)
        assert loss == pytest.approx(static_loss, abs=1e-5) and used == static_used
    assert_equal_state(dynamic, static, 1e-5)
    assert int(dynamic.state()[dynamic.names["step"]][0]) == 20
    for key, name in dynamic.names.items():
        alone = key.endswith("mixing_logits") and keys.get("top_k") == 1  # softmax of one number
        if not key.startswith("experts.") and not alone:  # an expert may have been skipped
            assert (before[name] != dynamic.state()[name]).any(), f"{key} should have moved"


@pytest.mark.parametrize("gate", ["dselect_k", "dselect_k_per_example"])
def test_settled_gates_agree(gate, rng):
    """Gates far from their initial values: one selector settled, one at the edge of the band."""
    flat = config(**SMALL, gate=gate)
    dynamic, static = start("eager", flat), start("static", flat)
    logits = np.array(code_logits([1, 2], 2, 0.8))
    logits[1, 0] = 0.49
    for run in (dynamic, static):
        run.set(gate_values(run, logits, [2.0, -2.0]))
    used = set()
    for batch in make_batches(rng, 20):
        loss, used_now = dynamic.step(batch)
        assert loss == pytest.approx(static.step(batch)[0], abs=1e-5)
        used.add(used_now)
    assert min(used) < 4, "the draw missed the case under test"
    assert_equal_state(dynamic, static, 1e-5)


def assert_equal_state(dynamic, static, tolerance):
    """Parameters and running statistics; a legacy program of 3.x runs all experts, which moves theirs."""
    assert dynamic.names == static.names
    ours, theirs = dynamic.state(), static.state()
    for key, name in dynamic.names.items():
        if not (LEGACY_3 and is_running_statistic(key)):
            np.testing.assert_allclose(ours[name], theirs[name], atol=tolerance, err_msg=key)


def test_evaluation_agrees_and_moves_nothing(rng):
    flat = config(**SMALL)
    dynamic, static = start("eager", flat), start("static", flat)
    batches = make_batches(rng, 4)
    for batch in batches:
        dynamic.step(batch)
    static.set(dynamic.state())
    before = static.state()
    for batch in batches:
        ours, theirs = dynamic.evaluate(batch), static.evaluate(batch)
        assert ours[0] == pytest.approx(theirs[0]) and ours[1] == pytest.approx(theirs[1], abs=1e-6)
        for a, b in zip(ours[2], theirs[2]):
            np.testing.assert_allclose(a, b, atol=1e-6)
    for name, value in before.items():
        assert (value == static.state()[name]).all() and (value == dynamic.state()[name]).all()


def test_a_seed_gives_the_same_start_again_and_another_seed_another():
    flat = config(**SMALL)
    first, again, other = start("static", flat), start("static", flat), start("static", flat, seed=2)
    values = [run.state() for run in (first, again, other)]
    drawn = [n for k, n in first.names.items() if k.endswith(("weight", "logits")) and values[0][n].std() > 0]
    assert len(drawn) > 20
    for name in drawn:
        assert (values[0][name] == values[1][name]).all() and (values[0][name] != values[2][name]).any()


@pytest.mark.parametrize("way", ["eager", "static"])
def test_learning_rate_follows_the_schedule(way, rng):
    """SGD without momentum: a bias of the last layer moves by rate x gradient; the ratio shows the rate."""
    keys = {"optimizer__class": "sgd", "optimizer__momentum": 0.0, "optimizer__learning_rate": 0.1}
    batch = make_batches(rng, 1)[0]
    moves = {}
    for schedule in ("constant", "cosine"):
        flat = config(**SMALL, **keys, optimizer__schedule=schedule, runner__steps_per_epoch=4, runner__epochs=1)
        run = start(way, flat)
        start_values = run.state()
        name = run.names["towers.0.layers.4.bias"]
        moves[schedule] = []
        for _ in range(5):
            run.set(start_values)
            run.step(batch)
            moves[schedule].append(np.linalg.norm(run.state()[name] - start_values[name]))
    rates = np.array(moves["cosine"]) / np.array(moves["constant"])
    expected = [(1 + np.cos(np.pi * t / 4)) / 2 for t in range(5)]
    np.testing.assert_allclose(rates, expected, atol=1e-5)


@pytest.mark.parametrize("way", ["eager", "static"])
def test_weight_decay_spares_the_gates(way, rng):
    """At a vast decay the settled gates' logits, which have no gradient, stay where they are."""
    for name in ("adam", "adamw", "sgd"):
        flat = config(**SMALL, optimizer__class=name, optimizer__weight_decay=1.0, optimizer__learning_rate=0.1)
        run = start(way, flat)
        run.set(gate_values(run, code_logits([1, 1], 2, 0.8)))
        before = run.state()
        for batch in make_batches(rng, 2):
            run.step(batch)
        after = run.state()
        for key, n in run.names.items():
            if key.endswith("selector_logits"):
                assert (before[n] == after[n]).all(), (name, key)
        tower = run.names["towers.0.layers.0.weight"]
        assert np.abs(before[tower] - after[tower]).max() > 0.01


def test_the_gates_rate_is_a_multiple_of_the_others(rng):
    moves = {}
    batch = make_batches(rng, 1)[0]
    for factor in (1.0, 3.0):
        for way in ("eager", "static"):
            keys = {"optimizer__class": "sgd", "optimizer__momentum": 0.0, "optimizer__learning_rate": 0.1}
            run = start(way, config(**{**SMALL, **keys, "optimizer__gate_learning_rate_factor": factor}))
            before = run.state()
            run.step(batch)
            moves[factor, way] = {key: run.state()[n] - before[n] for key, n in run.names.items()}
    for way in ("eager", "static"):
        gate, tower = "gates.0.selector_logits", "towers.0.layers.0.weight"
        np.testing.assert_allclose(moves[3.0, way][gate], 3 * moves[1.0, way][gate], rtol=1e-4, atol=1e-7)
        np.testing.assert_allclose(moves[3.0, way][tower], moves[1.0, way][tower], atol=1e-7)


# ---- the optimizer, step by step in NumPy from the gradients of the eager graph; test_20_steps_agree ties static to it

RULES = {
    "adam, L2 penalty": {"optimizer__class": "adam", "optimizer__weight_decay": 0.1},
    "adamw, one cycle": {
        "optimizer__class": "adamw", "optimizer__weight_decay": 0.2, "optimizer__schedule": "one_cycle",
    },
    "sgd, warm-up, then cosine": {
        "optimizer__class": "sgd", "optimizer__weight_decay": 0.1, "optimizer__momentum": 0.8,
        "optimizer__schedule": "cosine", "optimizer__warmup_steps": 2,
    },
    "sgd, clipped, warm-up": {
        "optimizer__class": "sgd", "optimizer__weight_decay": 0.1, "optimizer__momentum": 0.5,
        "optimizer__clip_norm": 0.3, "optimizer__warmup_steps": 3,
    },
}  # fmt: skip
RATE, FACTOR, TOTAL = 0.02, 3.0, 6


def rate_at(step, rule):
    """The learning rate of a training step, of ``TOTAL``."""
    warmup = rule.get("optimizer__warmup_steps", 0)
    if step < warmup:
        return RATE * step / warmup
    if rule.get("optimizer__schedule") == "cosine":
        return RATE * (1 + np.cos(np.pi * (step - warmup) / (TOTAL - warmup))) / 2
    if rule.get("optimizer__schedule") == "one_cycle":  # from a 25th up to the rate in 0.3 of the time, down to 1e-4
        peak = 0.3 * (TOTAL + 1) - 1
        begin, end, progress = (RATE / 25, RATE, step / peak) if step < peak else (
            RATE, 1e-4, (step - peak) / (TOTAL - peak))  # fmt: skip
        return end + (begin - end) * (1 + np.cos(np.pi * progress)) / 2
    return RATE


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_the_optimizer_is_the_formula(rule, rng, monkeypatch):
    if rule.get("optimizer__clip_norm") and LEGACY_3:
        pytest.skip("clipping is refused in legacy programs")
    keys = {**SMALL, "optimizer__learning_rate": RATE, "optimizer__gate_learning_rate_factor": FACTOR}
    run = start("eager", config(**{**keys, **rule}, runner__steps_per_epoch=TOTAL, runner__epochs=1))
    parameters = {key: p for key, p in run.net.named_parameters() if not p.stop_gradient}
    values = {key: p.numpy().astype(float) for key, p in parameters.items()}
    first, second = ({key: np.zeros_like(value) for key, value in values.items()} for _ in range(2))
    gradients, plain_step = {}, run.optimizer.step

    def note_and_step():  # clipping changes them in place
        gradients.update({key: p.grad.numpy().astype(float) for key, p in parameters.items()})
        plain_step()

    monkeypatch.setattr(run.optimizer, "step", note_and_step)
    for step, batch in enumerate(make_batches(rng, TOTAL)):
        run.step(batch)
        norm = np.sqrt(sum((g**2).sum() for g in gradients.values()))
        limit = rule.get("optimizer__clip_norm", 0) or np.inf
        assert limit == np.inf or norm > limit, "nothing is clipped"
        for key, g in gradients.items():
            gate = key.startswith("gates.")
            rate = rate_at(step, rule) * (FACTOR if gate else 1)
            decay = 0.0 if gate else rule["optimizer__weight_decay"]
            g = g * min(1, limit / norm)
            if rule["optimizer__class"] == "adamw":
                values[key] *= 1 - rate * decay
            else:
                g = g + decay * values[key]
            if rule["optimizer__class"] == "sgd":
                first[key] = rule["optimizer__momentum"] * first[key] + g
                values[key] -= rate * first[key]
            else:
                first[key] = 0.9 * first[key] + 0.1 * g
                second[key] = 0.999 * second[key] + 0.001 * g**2
                mean, square = first[key] / (1 - 0.9 ** (step + 1)), second[key] / (1 - 0.999 ** (step + 1))
                values[key] -= rate * mean / (np.sqrt(square) + 1e-8)
        for key, p in parameters.items():
            np.testing.assert_allclose(p.numpy(), values[key], atol=2e-5, err_msg=f"step {step}: {key}")
            values[key] = p.numpy().astype(float)  # a weight near 0 may have a gradient of rounding noise alone


def test_the_entropy_weight_ramps_with_the_training_steps(rng):
    """In the loss itself: beyond its tasks' parts there is the weight of this step times the entropy."""
    import oracles

    for schedule, weights in (("linear", [0, 0.1, 0.2, 0.3, 0.4, 0.4]),
                              ("cosine", [0.2 * (1 - np.cos(np.pi * t / 4)) for t in range(5)] + [0.4])):  # fmt: skip
        keys = {"entropy_schedule": schedule, "entropy_weight": 0.4, "entropy_ramp_steps": 4}
        run = start("eager", config(**{**SMALL, **keys, "optimizer__learning_rate": 1e-9}))
        logits = [run.state()[run.names[f"gates.{t}.selector_logits"]].reshape(2, 2).astype(float) for t in range(2)]
        entropy = sum(oracles.entropy(oracles.selectors(z, 4, 1.0)) for z in logits)
        for weight in weights:
            batch = make_batches(rng, 1)[0]
            run.net.train()
            metrics, _ = run.wrapper.create_metrics()
            loss, _, printed = run.wrapper.train_forward(run.net, metrics, run._tensors(batch), run.flat)
            parts = float(printed["loss1"]) + float(printed["loss2"])
            assert float(loss) - parts == pytest.approx(weight * entropy, abs=1e-5)


def test_the_networks_sizes_and_parts_are_those_of_the_keys():
    """Names and shapes of all parameters, written down from the keys' meanings."""
    keys = {"task_num": 3, "class_num": 7, "expert_num": 5, "top_k": 3, "expert_size": 11, "tower_size": 13}
    for norm, gate in (("batch", "dselect_k"), ("group", "dselect_k_per_example"), ("none", "dselect_k")):
        run = start("eager", config(**keys, expert_norm=norm, gate=gate, gamma=4.0))
        found = {key: list(tensor.shape) for key, tensor in run.net.state_dict().items()}
        expected = {"step": [1]}
        for i in range(5):
            for block, (inputs, outputs) in enumerate([(1, 10), (10, 20)]):
                at = f"experts.{i}.layers.{block}"
                expected[f"{at}.0.weight"] = [outputs, inputs, 5, 5]
                if norm != "batch":
                    expected[f"{at}.0.bias"] = [outputs]
                if norm != "none":
                    names = ["weight", "bias"] + ["_mean", "_variance"] * (norm == "batch")
                    expected.update({f"{at}.1.{name}": [outputs] for name in names})
            expected.update(linear(f"experts.{i}.layers.3", 720, 50))
            expected.update(linear(f"experts.{i}.layers.5", 50, 11))
        for t in range(3):
            for part, size in (("selector", 3 * 3), ("mixing", 3)):  # 5 experts: 3 digits
                expected[f"gates.{t}.{part}_logits"] = [size]
                if gate != "dselect_k":
                    expected[f"gates.{t}.{part}_weight"] = [36 * 36, size]
            for layer, (inputs, outputs) in {0: (11, 13), 2: (13, 13), 4: (13, 7)}.items():
                expected.update(linear(f"towers.{t}.layers.{layer}", inputs, outputs))
        assert found == expected
        assert all(g.gamma == 4.0 and g.top_k == 3 for g in run.net.gates)


def linear(name, inputs, outputs):
    return {f"{name}.weight": [inputs, outputs], f"{name}.bias": [outputs]}


def test_loss_is_the_formula(rng):
    """From the logits and the gates, in NumPy: weights of the tasks, mean over the batch, regularisers."""
    import oracles

    flat = config(**{**SMALL, "expert_num": 3, "task_weights": [0.5, 2.0], "entropy_weight": 0.3})
    for way in ("eager", "static"):
        run = start(way, flat)
        batch = make_batches(rng, 1)[0]
        state = {key: run.state()[n] for key, n in run.names.items()}
        _, evaluated, logits = run.evaluate(batch)
        expected = 0.0
        for z, label, weight in zip(logits, batch[1:], (0.5, 2.0)):
            z = z.astype(float)
            log_p = z - np.log(np.exp(z).sum(axis=1, keepdims=True))
            expected -= weight * log_p[np.arange(len(label)), label].mean()
        assert evaluated == pytest.approx(expected, abs=1e-5)
        terms = 0.0
        for t in range(2):
            r = oracles.selectors(state[f"gates.{t}.selector_logits"].reshape(2, 2).astype(float), 3, 1.0)
            terms += 0.3 * oracles.entropy(r) + oracles.reachability(r)
        with_term = start(way, flat).step(batch)[0]
        without = start(way, config(**{**SMALL, "expert_num": 3, "task_weights": [0.5, 2.0], "entropy_weight": 0.0}))
        plain = without.step(batch)[0]
        reach = sum(
            oracles.reachability(oracles.selectors(state[f"gates.{t}.selector_logits"].reshape(2, 2), 3, 1.0))
            for t in range(2)
        )
        assert with_term - plain == pytest.approx(terms - reach, abs=1e-4)


def test_too_few_labels_are_refused(rng):
    run = start("eager", config(**{**SMALL, "task_num": 3}))
    with pytest.raises(ValueError, match="task_num"):
        run.step(make_batches(rng, 1)[0])


def test_digit_num_is_the_logarithm():
    assert [net.digit_num(n) for n in (1, 2, 3, 4, 5, 8, 9, 64)] == [0, 1, 2, 2, 3, 3, 4, 6]


def test_a_static_warm_start_takes_over_the_optimizers_state(tmp_path, rng):
    """As PaddleRec's static trainer does: Adam's moments go on, they do not begin at zero."""
    overrides = ["hyper_parameters.expert_num=2", "hyper_parameters.expert_size=8"]
    with opened("static", "train", overrides) as (graph, _, _):
        fresh = graph._state("opt")
        for batch in make_batches(rng, 2):
            graph.train_step(batch)
        graph.write(str(tmp_path))
        saved = graph._state("opt")
    with opened("static", "train", [*overrides, f"runner.model_init_path={tmp_path}"]) as (graph, _, _):
        taken = graph._state("opt")
    assert taken.keys() == saved.keys() and any((fresh[name] != saved[name]).any() for name in saved)
    for name, value in saved.items():
        np.testing.assert_array_equal(taken[name], value, name)
