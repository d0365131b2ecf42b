"""What makes Paddle fast on this CPU and must be set in the process before Paddle is imported.

`make bench TABLES=settings` leaves out one at a time. Imports no paddle.
"""

import ctypes
import logging
import os
import platform

LOG = logging.getLogger("engine")
MMAP_THRESHOLD, TRIM_THRESHOLD, TOP_PAD = -3, -1, -2  # mallopt's parameters, from glibc's malloc.h
# bytes: the greatest that glibc allows, the greatest there is, and about what a step needs
PARAMETERS = ((MMAP_THRESHOLD, 32 << 20), (TRIM_THRESHOLD, (1 << 31) - 1), (TOP_PAD, 256 << 20))
# The same in the user's environment, as MALLOC_X_ or in GLIBC_TUNABLES, and one that would undo them
BY_USER = ("mmap_threshold", "trim_threshold", "top_pad", "mmap_max")
CPU_INFO = "/proc/cpuinfo"


def tune():
    """Set what applies here and the user has not set, with one line in the log for each."""
    use_fast_path()
    keep_freed_memory()


def use_fast_path():
    """AMD: Paddle's MKL takes a slow path on processors not Intel's, unless ``MKL_DEBUG_CPU_TYPE`` says 5 (AVX2)."""
    if _is_amd_with_avx2() and "MKL_DEBUG_CPU_TYPE" not in os.environ:
        os.environ["MKL_DEBUG_CPU_TYPE"] = "5"
        LOG.info("process: MKL_DEBUG_CPU_TYPE=5, the fast path of Paddle's MKL on AMD")


def keep_freed_memory():
    """Linux with glibc: Paddle gives each large tensor back to the system, and every step pays for fresh pages,
    unless ``mallopt`` tells glibc to keep them.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    if _user_tunes_malloc():
        LOG.info("process: glibc's memory is as MALLOC_..._ or GLIBC_TUNABLES say")
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
