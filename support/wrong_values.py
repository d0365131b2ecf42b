"""Values that a declared config key must refuse, for tests."""


def wrong_values(key):
    """Values of other types, and out of range, for a ``config_key.Key``."""
    wrong = {
        bool: ["maybe", 1],
        str: [[]],
        "path": [[]],
        list: ["text", 3],
        "choice": ["nonsense", 3, [True]],
        "name": ["nonsense", [], 3],
        "sizes": ["nonsense", 3, ["x"], [0], [1.5]],
        "seeds": ["nonsense", 3, [], [-1], [1, 1]],
        "weights": ["nonsense", 3, ["x"], [-1], [0.0]],
        "texts": ["text", 3, [1]],
        "classes": ["text", 1, 2.5, [], ["a"], ["a", "a"], ["a", 1], ["a", " "]],
        "mapping": ["nonsense", 3, [1]],
        "mappings": ["nonsense", 3, [1]],
    }
    if key.type not in (int, float):
        return wrong[key.type] + ([[key.high + 1]] if key.type == "sizes" and key.high else [])
    values = ["x", True, [1], float("nan"), float("inf")]
    if key.type is int:
        values.append(1.5)
    if key.low is not None:
        values.append(key.low - 1)
    if key.above is not None:
        values.append(key.above)
    if key.high is not None:
        values.append(key.high + 1)
    return values
