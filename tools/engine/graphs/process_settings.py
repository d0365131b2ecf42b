"""Settings of the process that make Paddle faster on a CPU, to be made before Paddle is imported.

`make bench TABLES=settings` measures the tools without each of them. This module does not import paddle.
"""

import contextlib
import ctypes
import logging
import os
import platform

LOG = logging.getLogger("engine")
MMAP_THRESHOLD, TRIM_THRESHOLD, TOP_PAD = -3, -1, -2  # mallopt's parameters, from glibc's malloc.h
# bytes: the most that glibc allows, the most that the type holds, and about what a step needs
PARAMETERS = ((MMAP_THRESHOLD, 32 << 20), (TRIM_THRESHOLD, (1 << 31) - 1), (TOP_PAD, 256 << 20))
# their names in the user's environment, as MALLOC_X_ or in GLIBC_TUNABLES, and a fourth that would undo them
BY_USER = ("mmap_threshold", "trim_threshold", "top_pad", "mmap_max")
FAST_PATH = "MKL_DEBUG_CPU_TYPE"
CPU_INFO = "/proc/cpuinfo"


def tune():
    """Make the settings that apply here and that the user has not made; the log has a line for each."""
    use_fast_path()
    keep_freed_memory()


def use_fast_path():
    """Have Paddle's MKL use AVX2 on AMD, where it takes a slow path unless ``FAST_PATH`` is 5."""
    if _is_amd_with_avx2() and FAST_PATH not in os.environ:
        os.environ[FAST_PATH] = "5"
        LOG.info("process: MKL_DEBUG_CPU_TYPE=5, the fast path of Paddle's MKL on AMD")


@contextlib.contextmanager
def fast_path_at_first():
    """``use_fast_path`` for a process's first computation, when MKL chooses; the environment is restored."""
    was_set = FAST_PATH in os.environ
    use_fast_path()
    try:
        yield
    finally:
        if not was_set:
            os.environ.pop(FAST_PATH, None)


def keep_freed_memory():
    """Have glibc keep freed memory; otherwise large tensors go back to the system, and each step pays for new pages."""
    if platform.libc_ver()[0] != "glibc":
        return
    if _user_tunes_malloc():
        LOG.info("process: glibc's malloc is left as MALLOC_..._ or GLIBC_TUNABLES set it")
        return
    mallopt = ctypes.CDLL(None).mallopt
    refused = [parameter for parameter, value in PARAMETERS if not mallopt(parameter, value)]
    if refused:
        LOG.warning("process: glibc refused mallopt's parameters %s", refused)
    else:
        LOG.info("process: glibc keeps freed memory (mallopt), up to the most that a step has needed")


def _is_amd_with_avx2():
    try:
        with open(CPU_INFO, encoding="utf-8", errors="replace") as file:
            text = file.read(10_000)
    except OSError:
        return False
    return "AuthenticAMD" in text and " avx2 " in text


def _user_tunes_malloc():
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    return any(f"MALLOC_{name.upper()}_" in os.environ or f"malloc.{name}=" in tunables for name in BY_USER)
