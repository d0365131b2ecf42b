"""Spares Paddle's executor work that it repeats at every run. `make bench TABLES=settings` measures it."""

import contextlib
import itertools
import logging
import os
import re

import numpy as np
import paddle

LOG = logging.getLogger("engine")
KEEP_FLAG = "FLAGS_eager_delete_tensor_gb"  # gigabytes of dead tensors before a run frees them; negative: never
IN_ORDER_FLAG = "FLAGS_new_executor_serial_run"
TRIED = ((3, 0), (3, 4))  # ``unchanging`` was tried with releases from the first to below the second
PIECE = 2000  # operators of a start-up program that run at once
CPU_DEVICE = (1, 0)  # DLPack's kind and number


def keep_tensors(place):
    """Have programs on a CPU keep their tensors from run to run instead of freeing each after its last use.

    This is faster, and also takes less memory where many threads share glibc's heaps. Only under PIR: without it,
    2.6.2 fails in a branch's gradient. A setting of the user's wins.
    """
    if paddle.framework.use_pir_api() and isinstance(place, paddle.CPUPlace) and KEEP_FLAG not in os.environ:
        paddle.set_flags({KEEP_FLAG: -1.0})
        LOG.info("process: %s=-1, programs keep their tensors from run to run", KEEP_FLAG)


@contextlib.contextmanager
def in_order(wanted):
    """Within this context a program's operators run one after another, in the calling thread.

    Otherwise the executor's threads look for operators that could run side by side, and take the cores from one that
    uses them all. A setting of the user's wins.
    """
    if not wanted or IN_ORDER_FLAG in os.environ:
        yield
        return
    paddle.set_flags({IN_ORDER_FLAG: True})
    try:
        yield
    finally:
        paddle.set_flags({IN_ORDER_FLAG: False})


def keep_program_order():
    """From now on programs run their operators in their order.

    Where a program's blocks have reductions over processes, Paddle may otherwise run them in another order on another
    process, and add up what does not belong together, without a word. To be set before the first program runs.
    """
    paddle.set_flags({"FLAGS_new_executor_sequential_run": True})


def run_start_up(program, place):
    """Run a start-up program, under PIR in pieces: to prepare one takes Paddle the square of its length."""
    run = paddle.static.Executor(place).run  # one of its own, because an executor keeps each program that it has run
    for piece in _pieces(program) if paddle.framework.in_pir_mode() else [program]:
        run(piece)


def _pieces(program):
    """Programs that together are this one, in its order: of at most ``PIECE`` operators, where it can be cut."""
    operators = program.global_block().ops
    length = len(operators)
    cuts = _cuts(operators) if length > PIECE else []
    if not cuts:
        return [program]
    middle = min(cuts, key=lambda cut: abs(cut - length / 2))
    parts = _part(program, range(middle)), _part(program, range(middle, length))
    return [piece for part in parts for piece in _pieces(part)]


def _cuts(operators):
    """Where a program can be cut, as numbers of operators before the cut: none after it uses a value made before it."""
    if any(operator.num_regions() for operator in operators):  # what a branch uses is not among its inputs
        return []
    numbers = {operator.id(): i for i, operator in enumerate(operators)}
    last_use = list(range(len(operators)))
    for i, operator in enumerate(operators):
        for maker in (value.get_defining_op() for value in operator.operands_source()):
            if maker is not None:  # None: an optional input that is not given
                last_use[numbers[maker.id()]] = i
    reached = itertools.accumulate(last_use, max)
    return [i + 1 for i, last in enumerate(reached) if last == i][:-1]


def _part(program, kept):
    """A copy of the program with the operators of these numbers alone."""
    part = program.clone()
    block = part.global_block()
    for i, operator in reversed(list(enumerate(block.ops))):
        if i not in kept:
            block.remove_op(operator)
    return part


def unchanging(program):
    """Wrap a program for ``Executor.run`` that will not change any more.

    Under PIR the executor otherwise prints the whole program at every run to find out whether it has changed.
    Elsewhere, and with releases not tried, this returns the program itself.
    """
    return _Unchanging(program) if _is_tried() and paddle.framework.in_pir_mode() else program


def _is_tried():
    return TRIED[0] <= tuple(int(part) for part in re.findall(r"\d+", paddle.__version__)[:2]) < TRIED[1]


class _Unchanging:
    """A program with a hash of its own, which the executor takes, as for legacy programs, instead of the text."""

    _numbers = itertools.count()

    def __init__(self, program):
        self._program, self.desc = program, self
        self._hash = f"unchanging program {next(self._numbers)} "

    def cached_hash_str(self):
        return self._hash

    def __getattr__(self, name):
        return getattr(self._program, name)


class ScopeTensor:
    """A tensor of the executor's scope, to be looked at after every run.

    Args:
        tensor: its dtype is one of NumPy's; dtype and shape do not change.
        place: Paddle's place of the tensor.
    """

    def __init__(self, tensor, place):
        self.tensor = tensor
        self.can_be_shared = isinstance(place, paddle.CPUPlace) and hasattr(np, "from_dlpack")  # NumPy 1.23
        self.address, self.view = None, None

    def array(self):
        """Its present value, valid until the next run; on a CPU it is not a copy."""
        if not self.can_be_shared:
            return np.asarray(self.tensor)
        address = self.tensor._ptr()
        if address != self.address:  # Paddle has moved it
            self.address, self.view = address, np.from_dlpack(self)
        return self.view

    def __dlpack__(self, **_):
        return self.tensor._to_dlpack()

    def __dlpack_device__(self):
        return CPU_DEVICE
