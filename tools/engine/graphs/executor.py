"""Paddle's executor, relieved of what it repeats at every run. `make bench TABLES=settings` measures it."""

import itertools
import logging
import os
import re

import numpy as np
import paddle

LOG = logging.getLogger("engine")
KEEP_FLAG = "FLAGS_eager_delete_tensor_gb"  # gigabytes of dead tensors that a run gathers; below 0: for ever
TRIED = ((3, 0), (3, 4))  # releases with which what follows was tried: from, and below
CPU_DEVICE = (1, 0)  # DLPack's kind and number


def keep_tensors(place):
    """Have programs on a CPU keep their tensors from run to run, instead of freeing each after its last use.

    That is faster, and takes less memory too where many threads share glibc's heaps. Only under PIR:
    2.6.2 then fails in a branch's gradient. What the user has set wins.
    """
    if paddle.framework.use_pir_api() and isinstance(place, paddle.CPUPlace) and KEEP_FLAG not in os.environ:
        paddle.set_flags({KEEP_FLAG: -1.0})
        LOG.info("process: %s=-1, programs keep their tensors from run to run", KEEP_FLAG)


class Executor(paddle.static.Executor):
    """Under PIR, Paddle's own looks at each state of the optimizer at every run, for it might be fed."""

    def _pir_feed_data(self, program, feed, scope, data_op_infos, *more):
        if _is_tried():
            # (name, ..., whether it is persistable)
            data_op_infos = [info for info in data_op_infos if info[0] in feed or not info[3]]
        return super()._pir_feed_data(program, feed, scope, data_op_infos, *more)


def unchanging(program):
    """``program``, for an executor's run, in a form that says that it will not change any more.

    Under PIR the executor prints a program in full at every run, to learn whether it is still the same,
    and lists its operators, to learn whether there are any. Elsewhere this is the program itself.
    """
    return _Unchanging(program) if _is_tried() and paddle.framework.in_pir_mode() else program


def _is_tried():
    return TRIED[0] <= tuple(int(part) for part in re.findall(r"\d+", paddle.__version__)[:2]) < TRIED[1]


class _Unchanging:
    """What the executor asks of a program: a legacy one's hash, where it would print, and else what it wraps."""

    _numbers = itertools.count()

    def __init__(self, program):
        self._program, self.desc = program, self
        self._hash = f"unchanging program {next(self._numbers)} "

    def cached_hash_str(self):
        return self._hash

    def __getattr__(self, name):
        return getattr(self._program, name)


class ScopeTensor:
    """A tensor of the executor's scope, for a look at its numbers after every run.

    Args:
        tensor: of a dtype that NumPy has; dtype and shape stay as they are.
        place: where it is.
    """

    def __init__(self, tensor, place):
        self.tensor = tensor
        self.can_be_shared = isinstance(place, paddle.CPUPlace) and hasattr(np, "from_dlpack")  # NumPy 1.23
        self.address, self.view = None, None

    def array(self):
        """Its numbers now, in an array that lasts until the next run: on a CPU, not a copy."""
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
