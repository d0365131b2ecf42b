"""What the package promises of its speed, and whether a run of the benchmarks kept it."""

import collections

# sense: ">=" or "<="; unit: x for a ratio
Target = collections.namedtuple("Target", "figure sense value unit", defaults=("x",))

STEP_BASE = "against the dense eager baseline as installed"
TARGETS = {
    "step static settled": Target(f"static training, settled (2 of 8 experts), {STEP_BASE}", ">=", 10),
    "step eager settled": Target(f"eager training, settled, {STEP_BASE}", ">=", 7),
    "step static settled torch": Target("static training, settled, against PyTorch dense, two threads", ">=", 1.6),
    "step static all": Target(f"static training, all experts active, {STEP_BASE}", ">=", 3),
    "growth eager": Target("step time, settled, n = 64 against n = 8 at k = 2, eager", "<=", 1.3),
    "growth static": Target("the same, static", "<=", 1.3),
    "inference pruned": Target(f"exported and pruned inference, {STEP_BASE}", ">=", 25),
    "rows inference eager": Target("per-example gate at inference, rows routed against all experts, eager", ">=", 5),
    "rows inference to_static": Target("the same, to_static", ">=", 5),
    "rows inference static": Target("the same, static", ">=", 5),
    "rows training eager": Target("per-example gate in training, no batch norm, rows routed, eager", ">=", 3),
    "rows training to_static": Target("the same, to_static", ">=", 3),
    "rows training static": Target("the same, static", ">=", 3),
    "reader": Target("reader, shuffled, on one core", ">=", 200_000, " examples/s"),
    "long run eager": Target(
        "last epoch against first, six dead experts, over a twin without denormals, eager", "<=", 1.05
    ),
    "long run static": Target("the same, static", "<=", 1.05),
}


def rows(measured):
    """The acceptance table.

    Args:
        measured: key of ``TARGETS`` -> number, or None where a variant was absent; keys may be missing.
    Returns:
        One dict for each target: figure, target, measured, kept (None if it was not measured).
    """
    found = []
    for key, target in TARGETS.items():
        value = measured.get(key)
        kept = None
        if value is not None:
            kept = value >= target.value if target.sense == ">=" else value <= target.value
        goal = f"{target.sense} {target.value}{target.unit}"
        found.append({"figure": target.figure, "target": goal, "measured": value, "kept": kept})
    return found
