"""Paddle's executor, relieved of what it repeats at every run. `make bench TABLES=settings` measures it."""

import importlib
import logging
import os

import paddle

LOG = logging.getLogger("engine")
# Paddle has no public way to the key by which its executor looks up what it has prepared for a program.
MODULE, FUNCTION = "paddle.base.executor", "_get_strong_program_cache_key_for_new_exe"
KEEP_FLAG = "FLAGS_eager_delete_tensor_gb"  # gigabytes of dead tensors that a run gathers; below 0: for ever


def keep_tensors(place):
    """Have programs on a CPU keep their tensors from run to run, instead of freeing each after its last use.

    That is faster, and takes less memory too where many threads share glibc's heaps. What the user
    has set wins.
    """
    if isinstance(place, paddle.CPUPlace) and KEEP_FLAG not in os.environ:
        paddle.set_flags({KEEP_FLAG: -1.0})
        LOG.info("process: %s=-1, programs keep their tensors from run to run", KEEP_FLAG)


def print_once(program):
    """Have the executor take ``program`` for one that does not change, until another one is named.

    Under PIR it prints a program in full at every run, to learn whether it is still the same. Where
    Paddle has no such function, nothing happens.
    """
    module = importlib.import_module(MODULE)
    asked = getattr(module, FUNCTION, None)
    if asked is None or not paddle.framework.in_pir_mode():
        return
    original = getattr(asked, "original", asked)
    printed = str(program)

    def key(other, scope, feed, fetch_list):
        if other is not program:
            return original(other, scope, feed, fetch_list)
        return f"{printed}{scope.raw_address()}{module._get_program_cache_key(feed, fetch_list)}"

    key.original = original
    setattr(module, FUNCTION, key)
