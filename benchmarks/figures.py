"""Arithmetic of the benchmarks: medians with spread, ratios, and what the mathematics costs at least. NumPy only."""

import collections
import statistics

IMAGE, KERNEL, CHANNELS, HIDDEN, CLASSES = 36, 5, (1, 10, 20), 50, 10  # of the published expert and tower

# A median with the quartiles around it.
Spread = collections.namedtuple("Spread", "median low high")


def spread(values):
    """Median and quartiles of one number a round."""
    if len(values) == 1:
        return Spread(values[0], values[0], values[0])
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(statistics.median(values), low, high)


def ratio(base, other):
    """How many times ``other`` is faster than ``base``: seconds of both, round by round.

    Quotients are taken within a round, where both ran next to each other, so that a machine that is
    slower for a while does not show as spread.
    """
    return spread([slow / fast for slow, fast in zip(base, other)])


def columns(name, seconds, examples, against):
    """What a table says of a variant beside its name: milliseconds a step, examples a second, and how many times
    faster it is than others.

    Args:
        name: the variant's.
        seconds: {variant: [seconds a step, one number a round]}.
        examples: in a step.
        against: names of variants, or such without their first word: "2 of 8" is, for "eager, 2 of 64" and all that
            begin with "eager,", "eager, 2 of 8".
    """
    own = spread(seconds[name])
    found = {"ms": Spread(*(1e3 * value for value in own)), "examples/s": examples / own.median}
    for other in against:
        base = other if other in seconds else f"{name.split(',')[0]}, {other}"
        if base in seconds:
            found[f"against {other}"] = ratio(seconds[base], seconds[name])
    return found


def multiplications_per_example(expert_num, task_num=2, expert_size=HIDDEN, tower_size=HIDDEN, training=True):
    """Multiplications of the experts in use, their mixture and the towers; no more than one for an addition.

    Backward, each layer multiplies as often again for its weights and once more for its input; the
    first convolution's input is the image and needs no gradient.
    """
    size, first, layers = IMAGE, None, 0
    for channels_in, channels_out in zip(CHANNELS, CHANNELS[1:]):
        size = size - KERNEL + 1
        layer = KERNEL**2 * channels_in * channels_out * size**2
        first = layer if first is None else first
        layers += layer
        size //= 2  # max-pool
    layers += size**2 * CHANNELS[-1] * HIDDEN + HIDDEN * expert_size
    mixture = expert_num * expert_size
    tower = expert_size * tower_size + tower_size**2 + tower_size * CLASSES
    forward = expert_num * layers + task_num * (mixture + tower)
    return 3 * forward - expert_num * first if training else forward
