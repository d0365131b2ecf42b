"""The settings of the process: made before Paddle is imported, where they apply, and never over the user's own."""

import logging
import os
import platform
import subprocess
import sys

import pytest
from conftest import ROOT
from toolbox import TIMEOUT_S

from engine.graphs import process_settings

AMD = "vendor_id\t: AuthenticAMD\nflags\t\t: fpu avx avx2 bmi2\n"
INTEL = AMD.replace("AuthenticAMD", "GenuineIntel")
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
print(libc.mallinfo2().hblks - before, "paddle" in sys.modules)
"""


@pytest.fixture(autouse=True)
def as_before(monkeypatch):
    """No setting of the user's, and none left behind."""
    for name in [FAST_PATH, "GLIBC_TUNABLES", *(f"MALLOC_{name.upper()}_" for name in process_settings.BY_USER)]:
        monkeypatch.setenv(name, "")  # so that it is as before afterwards
        monkeypatch.delenv(name)


@pytest.fixture
def said(caplog, monkeypatch):
    monkeypatch.setattr(process_settings.LOG, "propagate", True)
    caplog.set_level(logging.INFO, process_settings.LOG.name)
    return lambda: [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize("cpu,applies", [(AMD, True), (INTEL, False), (AMD.replace(" avx2", ""), False), (None, False)])
def test_the_fast_path_is_for_amd_alone(cpu, applies, tmp_path, monkeypatch, said):
    if cpu is not None:
        (tmp_path / "cpuinfo").write_text(cpu)
    monkeypatch.setattr(process_settings, "CPU_INFO", str(tmp_path / "cpuinfo"))
    process_settings.use_fast_path()
    assert os.environ.get(FAST_PATH) == ("5" if applies else None)
    assert [f"{FAST_PATH}=5" in line for line in said()] == [True] * applies


def test_the_users_path_wins(tmp_path, monkeypatch, said):
    (tmp_path / "cpuinfo").write_text(AMD)
    monkeypatch.setattr(process_settings, "CPU_INFO", str(tmp_path / "cpuinfo"))
    monkeypatch.setenv(FAST_PATH, "4")
    process_settings.use_fast_path()
    assert os.environ[FAST_PATH] == "4" and not said()


def mapped(**environment):
    """(Blocks that malloc maps by themselves after ``keep_freed_memory``, whether Paddle was imported.)"""
    command = [sys.executable, "-c", MAPPED, str(ROOT / "tools")]
    done = subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, text=True, check=True, timeout=TIMEOUT_S
    )
    return done.stdout.split()


@WITH_GLIBC
@pytest.mark.skipif(platform.libc_ver()[1] < "2.33", reason="no mallinfo2 to ask")
def test_glibc_keeps_large_blocks_unless_the_user_has_set_when():
    assert mapped() == ["0", "False"]
    assert mapped(MALLOC_ARENA_MAX="2") == ["0", "False"]  # has nothing to do with it
    assert mapped(MALLOC_MMAP_THRESHOLD_="1000000") == ["1", "False"]
    assert mapped(GLIBC_TUNABLES="glibc.malloc.mmap_threshold=1000000") == ["1", "False"]


@WITH_GLIBC
def test_the_log_says_whose_settings_of_memory_hold(monkeypatch, said):
    monkeypatch.setenv("MALLOC_TOP_PAD_", "1000000")
    process_settings.keep_freed_memory()
    assert len(said()) == 1 and "MALLOC_" in said()[0]


@pytest.mark.parametrize("on", [True, False])
def test_a_tool_sets_its_process_before_it_imports_paddle(on, tmp_path):
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
        "main('dynamic', 'train')\n"
    )
    command = [sys.executable, "-c", script, str(ROOT / "tools"), "-m", str(tmp_path / "config.yaml")]
    command += ["-o", f"runner.tune_process={on}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S)
    assert done.returncode == 7, done.stderr
    assert done.stdout == ("tuned False\n" if on else "")
