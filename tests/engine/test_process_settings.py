"""tools/engine/graphs/process_settings.py: settings made before Paddle is imported, never over the user's own."""

import os
import platform
import subprocess
import sys

import pytest

from engine.graphs import process_settings
from support import ROOT
from support.toolbox import TIMEOUT_S

AMD = "vendor_id\t: AuthenticAMD\nflags\t\t: fpu avx avx2 bmi2\n"
FAST_PATH = "MKL_DEBUG_CPU_TYPE"
WITH_GLIBC = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt's parameters are glibc's")
# How many blocks of 20 MB the system gives and takes back by themselves. Such a block is above the limit that
# malloc starts with, and below the greatest that may be set.
MAPPED = """
import ctypes, sys
sys.path.insert(0, sys.argv[1])
from engine.graphs import process_settings
process_settings.keep_freed_memory()
libc = ctypes.CDLL(None)
names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
fields = [(name, ctypes.c_size_t) for name in names.split()]
libc.mallinfo2.restype = type("Info", (ctypes.Structure,), {"_fields_": fields})
libc.malloc.restype = ctypes.c_void_p
before = libc.mallinfo2().hblks
libc.malloc(ctypes.c_size_t(20 << 20))
print(libc.mallinfo2().hblks - before)
"""


@pytest.fixture(autouse=True)
def _without_settings_of_the_user(monkeypatch):
    for name in [FAST_PATH, "GLIBC_TUNABLES", *(f"MALLOC_{name.upper()}_" for name in process_settings.BY_USER)]:
        monkeypatch.setenv(name, "")  # so that it is restored afterwards
        monkeypatch.delenv(name)


@pytest.mark.parametrize(
    "cpu,by_user,value",
    [
        (AMD, None, "5"),
        (AMD, "4", "4"),
        (AMD.replace("AuthenticAMD", "GenuineIntel"), None, None),
        (AMD.replace(" avx2", ""), None, None),
        (None, None, None),
    ],
)
def test_the_fast_path_is_for_amd_unless_the_user_chose(cpu, by_user, value, tmp_path, monkeypatch, caplog):
    if cpu is not None:
        (tmp_path / "cpuinfo").write_text(cpu)
    if by_user is not None:
        monkeypatch.setenv(FAST_PATH, by_user)
    monkeypatch.setattr(process_settings, "CPU_INFO", str(tmp_path / "cpuinfo"))
    process_settings.use_fast_path()
    assert os.environ.get(FAST_PATH) == value
    assert [f"{FAST_PATH}=5" in line for line in caplog.messages] == [True] * (value == "5")
    if by_user is None:
        monkeypatch.delenv(FAST_PATH, raising=False)
    with process_settings.fast_path_at_first():
        assert os.environ.get(FAST_PATH) == value
    assert os.environ.get(FAST_PATH) == by_user


@WITH_GLIBC
@pytest.mark.skipif(platform.libc_ver()[1] < "2.33", reason="no mallinfo2 to ask")
@pytest.mark.parametrize(
    "environment,blocks",
    [({"MALLOC_ARENA_MAX": "2"}, "0"), ({"MALLOC_MMAP_THRESHOLD_": "1000000"}, "1"),
     ({"GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=1000000"}, "1")],
)  # fmt: skip
def test_glibc_keeps_large_blocks_unless_the_user_set_when(environment, blocks):
    command = [sys.executable, "-c", MAPPED, str(ROOT / "tools")]
    env = {**os.environ, **environment}
    assert subprocess.run(command, env=env, capture_output=True, text=True, timeout=TIMEOUT_S).stdout.strip() == blocks


@WITH_GLIBC
def test_the_log_says_whose_memory_settings_hold(monkeypatch, caplog):
    monkeypatch.setenv("MALLOC_TOP_PAD_", "1000000")
    process_settings.keep_freed_memory()
    (message,) = caplog.messages
    assert "MALLOC_" in message


@pytest.mark.parametrize("on", [True, False])
def test_a_tool_sets_up_its_process_before_it_imports_paddle(on, tmp_path):
    """A reader that ends the process: the tool ends after its settings, and before there is anything to run."""
    (tmp_path / "config.yaml").write_text(
        "runner: {train_data_dir: ., train_batch_size: 1, epochs: 1, print_interval: 1}\n"
    )
    (tmp_path / "reader.py").write_text("raise SystemExit(7)\n")
    script = (
        "import sys; sys.path.insert(0, sys.argv.pop(1))\n"
        "from engine.graphs import process_settings\n"
        "process_settings.tune = lambda: print('tuned', 'paddle' in sys.modules)\n"
        "from engine.cli import main\n"
        "main('trainer')\n"
    )
    command = [sys.executable, "-c", script, str(ROOT / "tools"), "-m", str(tmp_path / "config.yaml")]
    command += ["-o", f"runner.tune_process={on}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S)
    assert done.returncode == 7, done.stderr
    assert done.stdout == ("tuned False\n" if on else "")
