"""The direction of a metric: whether higher is better."""

LOWER_IS_BETTER = ("loss", "cost", "error", "mae", "mse", "perplexity")  # within a name such as rmse2


def stated(names, higher_is_better):
    """Name -> bool, for the names whose direction is known: as the mapping says; lower for other names loss….

    Args:
        names: of metrics.
        higher_is_better: metric -> bool.
    """
    known = {name: higher_is_better.get(name, False if name.startswith("loss") else None) for name in names}
    return {name: higher for name, higher in known.items() if higher is not None}


def guessed(name):
    """The direction by the name alone: say so in a warning."""
    return not any(word in name.lower() for word in LOWER_IS_BETTER)


def words(higher):
    """A direction for a message."""
    return f"{'higher' if higher else 'lower'} is better"
