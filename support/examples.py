"""Small networks and batches that tests share: three tasks of the three kinds on a table."""

import numpy as np
import paddle

# 16 units a layer: that none of them is on for any example, and nothing is trained, has a chance of some 2^-16
SMALL = {"expert_num": 4, "top_k": 2, "expert_size": 16, "tower_size": 16, "expert_norm": "none"}
TASKS = [
    {"classes": 3, "tower_sizes": [16]},
    {"name": "buys", "kind": "binary", "positive_weight": 2.0, "tower_sizes": [16]},
    {"kind": "regression", "tower_sizes": [16]},
]
TABLE = {"input__dense_size": 5, "input__vocabulary_sizes": [4, 7], "input__embedding_size": 3}


def table_batches(rng, number, size=12, missing=False):
    """Batches of a table: dense, ids, and labels for ``TASKS``, some of which may be missing."""
    batches, dtype = [], paddle.get_default_dtype()
    for _ in range(number):
        labels = [rng.randint(0, 3, size), rng.randint(0, 2, size).astype(dtype), rng.randn(size).astype(dtype)]
        if missing:
            labels[0][:3], labels[1][2:5], labels[2][4:9] = -1, -1, np.nan
        ids = np.stack([rng.randint(0, 4, size), rng.randint(0, 7, size)], axis=1)
        batches.append([rng.randn(size, 5).astype(dtype), ids, *labels])
    return batches
