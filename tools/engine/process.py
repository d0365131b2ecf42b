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


def tune():
    """Set what applies here and the user has not set, with one line in the log for each.

    - AMD: Paddle's MKL takes a slow path on processors that are not Intel's, unless
      ``MKL_DEBUG_CPU_TYPE`` says 5 (AVX2).
    - Linux with glibc: Paddle gives each large tensor back to the system, and every step pays for
      fresh pages, unless ``mallopt`` tells glibc to keep them.
    """
    if _is_amd_with_avx2() and "MKL_DEBUG_CPU_TYPE" not in os.environ:
        os.environ["MKL_DEBUG_CPU_TYPE"] = "5"
        LOG.info("process: MKL_DEBUG_CPU_TYPE=5, the fast path of Paddle's MKL on AMD")
    if platform.libc_ver()[0] == "glibc" and not _user_tunes_malloc():
        mallopt = ctypes.CDLL(None).mallopt
        if all([mallopt(parameter, value) for parameter, value in PARAMETERS]):
            LOG.info("process: glibc keeps freed memory (mallopt), up to the most that a step has needed")


def _is_amd_with_avx2():
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            text = file.read(10_000)
    except OSError:
        return False
    return "AuthenticAMD" in text and " avx2 " in text


def _user_tunes_malloc():
    return any(name.startswith("MALLOC_") for name in os.environ) or "malloc" in os.environ.get("GLIBC_TUNABLES", "")
