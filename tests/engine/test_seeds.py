"""tools/engine/seeds.py"""

import random

import numpy as np
import paddle

from engine.seeds import random_states_kept, set_seeds


def test_random_states_go_on_as_if_nothing_had_been_drawn():
    def drawn():
        return paddle.rand([1]).item(), np.random.rand(), random.random()

    set_seeds(3)
    drawn()
    with random_states_kept():
        set_seeds(8)
        inside = drawn()
    after = drawn()
    set_seeds(3)
    drawn()
    assert drawn() == after != inside
