"""Paddle's executor, relieved of what it repeats at every run. `make bench TABLES=settings` measures it."""

import logging
import os
import weakref

import paddle
from paddle.base import executor as paddles

_texts = weakref.WeakKeyDictionary()  # program that will not change -> hash of its text
LOG = logging.getLogger("engine")
# Paddle has no public way to the key by which its executor looks up what it has prepared for a program.
FUNCTION = "_get_strong_program_cache_key_for_new_exe"
KEEP_FLAG = "FLAGS_eager_delete_tensor_gb"  # gigabytes of dead tensors that a run gathers; below 0: for ever


def keep_tensors(place):
    """Have programs on a CPU keep their tensors from run to run, instead of freeing each after its last use.

    That is faster, and takes less memory too where many threads share glibc's heaps. Only under PIR:
    2.6.2 then fails in a branch's gradient. What the user has set wins.
    """
    if paddle.framework.use_pir_api() and isinstance(place, paddle.CPUPlace) and KEEP_FLAG not in os.environ:
        paddle.set_flags({KEEP_FLAG: -1.0})
        LOG.info("process: %s=-1, programs keep their tensors from run to run", KEEP_FLAG)


def print_once(program):
    """Have the executor take ``program`` for one that will not change.

    Under PIR it prints a program in full at every run, to learn whether it is still the same. Where
    Paddle has no such function, nothing happens.
    """
    original = getattr(paddles, FUNCTION, None)
    if original is None or not paddle.framework.in_pir_mode():
        return
    _texts[program] = hash(str(program))  # the executor takes no more of its key
    if hasattr(original, "is_ours"):
        return

    def key(program, scope, feed, fetch_list):
        if program not in _texts:
            return original(program, scope, feed, fetch_list)
        return f"{_texts[program]} {scope.raw_address()}{paddles._get_program_cache_key(feed, fetch_list)}"

    key.is_ours = True
    setattr(paddles, FUNCTION, key)
