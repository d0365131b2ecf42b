"""Where a training step's time goes, by Linux's ``perf``: python benchmarks/perf_profile.py

For the dynamic and the static graph, with 8, 4, 2 and 1 of 8 experts in use: a line for each kind of work. Needs the
command ``perf`` (Debian's linux-perf) and the right to use it on a process of one's own.
"""

import collections
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time

sys.path[:0] = [str(pathlib.Path(__file__).resolve().parent.parent / folder) for folder in ("", "tests", "tools")]
STEPS, WARM_UP, START_S = 40, 8, 1.0
# kind of work: what its symbols or libraries are called, the first that fits
KINDS = {
    "matrix products": r"mkl_|mklml|libiomp",
    "patches": r"im2col|Col2Im",
    "copies": r"memmove|memcpy|memset",
    "batch norm": r"BatchNorm",
    "pooling": r"Pool",
    "Adam": r"Adam|\[JIT\]|perf-\d+\.map",  # its code is generated at run time
    "Python, NumPy": r"libpython|_multiarray",
    "the system": r"\[kernel|\[k\]",
    "other kernels": r"libphi",
    "scheduling, allocation": r"libpaddle|libcommon|libstdc|libc\.so",
    "rest": r"",
}


def main():
    if shutil.which("perf") is None:
        sys.exit("there is no command perf (Debian: apt install linux-perf)")
    for active in (8, 4, 2, 1):
        for way in ("eager", "static"):
            command = [sys.executable, __file__, way, str(active)]  # a process for each, as the tools are
            subprocess.run(command, check=True, stderr=subprocess.DEVNULL)


def profile(way, active):
    """Print the shares of one way."""
    from engine.graphs import process_settings

    process_settings.tune()
    import ours
    import tables

    with tempfile.TemporaryDirectory() as folder:
        case, data = os.path.join(folder, "case.npz"), os.path.join(folder, "perf.data")
        hyper = {"expert_num": 8, "top_k": 2}
        ours.write_reference({"hyper": hyper, "batch": 256, "settled": tables.SETTLED[active]}, case)
        variant = ours.Ours(case, way)
        for _ in range(WARM_UP):
            variant.step()
        recorder = subprocess.Popen(["perf", "record", "-q", "-F", "999", "-o", data, "-p", str(os.getpid())])
        time.sleep(START_S)
        began = time.perf_counter()
        for _ in range(STEPS):
            variant.step()
        step_ms = 1e3 * (time.perf_counter() - began) / STEPS
        recorder.send_signal(signal.SIGINT)
        recorder.wait()
        script = ["perf", "script", "-i", data, "-F", "ip,sym,dso"]
        samples = subprocess.run(script, check=True, capture_output=True, text=True).stdout.splitlines()
    counts = collections.Counter(map(_kind, filter(str.strip, samples)))
    shares = ", ".join(f"{kind} {100 * count / sum(counts.values()):.0f} %" for kind, count in counts.most_common())
    print(f"{way}, {active} of 8: {step_ms:.1f} ms; {shares}", flush=True)


def _kind(sample):
    return next(kind for kind, pattern in KINDS.items() if re.search(pattern, sample))


if __name__ == "__main__":
    profile(sys.argv[1], int(sys.argv[2])) if sys.argv[1:] else main()
