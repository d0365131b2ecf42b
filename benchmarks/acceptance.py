"""What is promised of the speed: the targets with their labels, and how each is computed from the tables' rows."""

import collections

from stage import ratio
from tables import BASELINE, TORCH_DENSE, TORCH_FIXED, WAYS


def times_as_fast(row, base):
    return ratio(base["seconds"], row["seconds"]).median


def times_as_long(row, base):
    return ratio(row["seconds"], base["seconds"]).median


def slowdown(row, base):
    """The last epoch's time over the first's, divided by the same of the base."""
    own, others = (each["last epoch, ms"][0] / each["first epoch, ms"][0] for each in (row, base))
    return own / others


def rate(row):
    return row["examples/s"]


# figure: the label, which must say on its own what is compared with what; sense: ">=" or "<="; measure: of the
# variant's row and that of the fastest of the bases; unit: x for a ratio
Target = collections.namedtuple("Target", "figure sense value table measure variant bases unit", defaults=("x",))

PLAIN = "the dense mixture in plain Paddle (eager, default settings)"
ON_ITS_OWN = "times as fast with each expert on its own examples as with every expert on all"
TARGETS = {
    "step static settled": Target(
        f"static training, 2 of 8 experts in use: times as fast as {PLAIN}",
        ">=", 10, "step", times_as_fast, "static, 2 of 8", (BASELINE,),
    ),
    "step eager settled": Target(
        f"eager training, 2 of 8 experts in use: times as fast as {PLAIN}",
        ">=", 7, "step", times_as_fast, "eager, 2 of 8", (BASELINE,),
    ),
    "step static all": Target(
        f"static training, 8 of 8 experts in use: times as fast as {PLAIN}",
        ">=", 3, "step", times_as_fast, "static, 8 of 8", (BASELINE,),
    ),
    "step static settled torch": Target(
        "static training, 2 of 8 experts in use: times as fast as the fastest dense mixture in PyTorch",
        ">=", 1.6, "step", times_as_fast, "static, 2 of 8", TORCH_DENSE,
    ),
    "step static settled torch fixed": Target(
        "static training, 2 of 8 experts in use: times as fast as the fastest PyTorch network of these 2 experts only",
        ">=", 1, "step", times_as_fast, "static, 2 of 8", TORCH_FIXED,
    ),
    **{
        f"growth {way}": Target(
            f"{way} training, 2 of 64 experts in use: times as long as with 2 of 8",
            "<=", 1.3, "growth", times_as_long, f"{way}, 2 of 64", (f"{way}, 2 of 8",),
        )
        for way in ("eager", "static")
    },
    "inference pruned": Target(
        f"inference, exported and pruned to 2 of 8 experts: times as fast as {PLAIN}",
        ">=", 25, "inference", times_as_fast, "exported pruned", (BASELINE,),
    ),
    **{
        f"rows inference {way}": Target(
            f"{way} inference, per-example gate: {ON_ITS_OWN}",
            ">=", 5, "rows_inference", times_as_fast, f"{way}, rows routed", (f"{way}, all experts",),
        )
        for way in WAYS
    },
    **{
        f"rows training {way}": Target(
            f"{way} training, per-example gate, no batch norm: {ON_ITS_OWN}",
            ">=", 3, "rows_training", times_as_fast, f"{way}, rows routed", (f"{way}, all experts",),
        )
        for way in WAYS
    },
    "table static settled": Target(
        f"static training on a table, 2 of 8 experts in use: times as fast as {PLAIN}",
        ">=", 5, "table_step", times_as_fast, "static, 2 of 8", (BASELINE,),
    ),
    "table static settled torch": Target(
        "static training on a table, 2 of 8 experts in use: times as fast as the fastest dense mixture in PyTorch",
        ">=", 1.3, "table_step", times_as_fast, "static, 2 of 8", TORCH_DENSE,
    ),
    "table inference pruned": Target(
        f"inference on a table, exported and pruned to 2 of 8 experts: times as fast as {PLAIN}",
        ">=", 15, "table_inference", times_as_fast, "exported pruned", (BASELINE,),
    ),
    "table rows training": Target(
        f"static training on a table, per-example gate: {ON_ITS_OWN}",
        ">=", 2, "table_rows_training", times_as_fast, "static, rows routed", ("static, all experts",),
    ),
    "embeddings": Target(
        "eager training on a table with a million ids in a field: times as fast with lazy_adam as with adam",
        ">=", 1.3, "embeddings", times_as_fast, "eager, lazy_adam", ("eager, adam",),
    ),
    "reader": Target(
        "our reader on one core, shuffled", ">=", 200_000, "reader", rate, "engine's Batches", (), " examples/s"
    ),
    **{
        f"long run {way}": Target(
            f"{way} training with 6 skipped experts, last epoch over first: times that of a twin without denormal "
            "numbers",
            "<=", 1.05, "long_run", slowdown, way, (f"{way}, moments of zero",),
        )
        for way in ("eager", "static")
    },
}  # fmt: skip


def rows(tables):
    """The acceptance table.

    Args:
        tables: {name of a table: its rows}; tables may be missing.
    Returns:
        A dict for each target: key, figure, target, measured, kept, and the variants compared as "of". Measured and
        kept are None if a variant was not measured.
    """
    found = []
    for key, target in TARGETS.items():
        measured = {row["variant"]: row for row in tables.get(target.table, ()) if row.keys() - {"variant", "process"}}
        value, kept, compared = None, None, [target.variant]
        if measured.keys() >= {target.variant, *target.bases}:
            base = min((measured[name] for name in target.bases), key=_median_ms, default=None)
            value = target.measure(measured[target.variant], *([base] if base else []))
            kept = value >= target.value if target.sense == ">=" else value <= target.value
            compared += [base["variant"]] if base else []
        goal = f"{target.sense} {target.value}{target.unit}"
        found.append(
            {"key": key, "figure": target.figure, "target": goal, "measured": value, "kept": kept, "of": compared}
        )
    return found


def _median_ms(row):
    return row["ms"][0] if "ms" in row else row["last epoch, ms"][0]
