"""Whatever fails while saving, what was saved loads; whatever a file holds, the tools refuse it or take it.

tests/stress/save_faults.py does the first at every system call of both graphs, fuzz_files.py the second at length.
"""

import builtins
import os
import pathlib
import pickle
import shutil
import signal

import fuzz_files
import numpy as np
import paddle
import pytest
import save_faults
from toolbox import apart, cost_of_reading, opened

from engine.array_files import Unreadable, loads
from engine.errors import UserError
from engine.saves import folders, manifests, weight_files
from engine.serving import export

FACTS = {"graph": "dynamic", "batch": 0, "config": {}, "schedule": None, "numbers": {}, "so_far": None}
SIZE_STEP = 700  # bytes; a save below has some 2600 in its largest file
CALLS = [(os, "rename"), (os, "fsync"), (os, "mkdir"), (os, "open"), (os, "rmdir"), (os, "unlink"), (builtins, "open")]


def save(parent, epoch, version):
    """A small save whose content tells its version."""
    with folders.new_folder(str(parent), epoch) as folder:
        weights = {"w": np.full([600], version, "float32")}
        paddle.save(weights, os.path.join(folder, "rec.pdparams"))
        paddle.save({"m": np.full([300], version, "float32")}, os.path.join(folder, "rec.pdopt"))
        manifests.write(folder, weights, epoch=epoch, **FACTS)


def version(parent, epoch):
    """The version of a save, which must be whole and of one version."""
    folder = os.path.join(str(parent), str(epoch))
    assert manifests.read(folder)["epoch"] == epoch
    weights = weight_files.read_weights(folder).by_structured["w"]
    moments = weight_files.read_optimizer_state(folder, weight_files.DYNAMIC)[1]["m"]
    assert len(weights) == 600 and len(moments) == 300
    found = set(weights.tolist()) | set(moments.tolist())
    assert len(found) == 1, "a mixture of two saves"
    return found.pop()


def older(parent):
    """Two saves of version 1, as each trial begins with them."""
    parent.mkdir()
    for epoch in (0, 1):
        save(parent, epoch, 1)
    return parent


def newer(parent):
    """What the trials disturb: epoch 1 is saved again, and then 2, and 0 is deleted."""
    save(parent, 1, 2)
    save(parent, 2, 2)
    folders.remove(str(parent), 0)


def check(parent):
    """Epoch 1 is there, old or new; 0 and 2 are whole or absent; and then all can be saved again."""
    epochs = folders.saved_epochs(str(parent))
    assert 1 in epochs and version(parent, 1) in (1, 2)
    assert 0 not in epochs or version(parent, 0) == 1
    assert 2 not in epochs or version(parent, 2) == version(parent, 1) == 2
    folders.lock(str(parent)).close()
    newer(parent)
    assert folders.saved_epochs(str(parent)) == [1, 2] and version(parent, 1) == version(parent, 2) == 2
    assert sorted(os.listdir(parent)) == [folders.LOCK, "1", "2"]


class Counted:
    """Does ``act`` at the n-th of the calls that change the disk; 0: at none, and ``number`` has them all."""

    def __init__(self, monkeypatch, n, act):
        self.n, self.act, self.number = n, act, 0
        for module, name in CALLS:
            monkeypatch.setattr(module, name, self._counted(getattr(module, name)))

    def _counted(self, function):
        def call(*args, **kwargs):
            self.number += 1
            if self.number == self.n:
                self.act()
            return function(*args, **kwargs)

        return call


def full():
    raise OSError(28, "No space left on device")


def call_number(tmp_path, monkeypatch):
    parent = older(tmp_path / "counted")
    with monkeypatch.context() as patch:
        counted = Counted(patch, 0, None)
        newer(parent)
    assert counted.number > 40
    return counted.number


def test_a_failure_at_any_call_of_a_save_loses_nothing(tmp_path, monkeypatch):
    refused = 0
    for n in range(1, call_number(tmp_path, monkeypatch) + 1):
        parent = older(tmp_path / str(n))
        with monkeypatch.context() as patch:
            Counted(patch, n, full)
            try:
                newer(parent)
            except UserError as error:
                assert str(parent) in str(error) and "No space left" in str(error)
                refused += 1
        check(parent)
        shutil.rmtree(parent)
    assert refused > 10


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the trials are forks")
def test_a_kill_at_any_call_of_a_save_loses_nothing(tmp_path, monkeypatch):
    for n in range(1, call_number(tmp_path, monkeypatch) + 1):
        parent = older(tmp_path / str(n))
        child = os.fork()
        if child == 0:
            Counted(monkeypatch, n, lambda: os._exit(9))
            newer(parent)
            os._exit(0)
        assert os.WEXITSTATUS(os.waitpid(child, 0)[1]) == 9
        check(parent)
        shutil.rmtree(parent)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the limit is a process's own")
def test_a_disk_that_is_full_at_any_size_loses_nothing(tmp_path):
    """By the system's own limit on a file's size, in a process that has nothing mended."""
    import resource

    codes = set()
    for limit in range(0, 2 * 2600, SIZE_STEP):
        parent = older(tmp_path / str(limit))
        child = os.fork()
        if child == 0:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            try:
                newer(parent)
            except UserError:
                os._exit(2)
            except BaseException:
                os._exit(1)
            os._exit(0)
        code = os.WEXITSTATUS(os.waitpid(child, 0)[1])
        codes.add(code)
        check(parent)
        shutil.rmtree(parent)
    assert codes == {0, 2}


class Disk:
    """What a disk would have if the machine were lost now, at each call that changes a folder.

    Of a file it has what was there at its last fsync, or nothing. Of names it may have all (``renamed``: the
    file system wrote its journal, and not the files) or, in each folder, those of its last fsync (``flushed``).

    Args:
        monkeypatch: its context ends the watch.
        top: folder to watch.
        judge: function (this disk), called before each of the calls.
    """

    CALLS = [(os, name) for name in ("rename", "replace", "mkdir", "rmdir", "unlink", "fsync")]

    def __init__(self, monkeypatch, top, judge):
        self.top, self.judge = str(top), judge
        self.files, self.folders = {}, {}  # inode -> content, or names, at its last fsync
        self.held = []  # open files, so that no inode is given again
        self._flush_all()
        for module, name in self.CALLS:
            monkeypatch.setattr(module, name, self._watched(getattr(module, name)))

    def _watched(self, function):
        def call(*args, **kwargs):
            self._hold()
            self.judge(self)
            result = function(*args, **kwargs)
            if function.__name__ == "fsync":
                self._note(args[0] if isinstance(args[0], int) else args[0].fileno())
            return result

        return call

    def _hold(self):
        known = {os.fstat(handle).st_ino for handle in self.held}
        for root, inner, names in os.walk(self.top):
            for path in [root, *(os.path.join(root, name) for name in inner + names)]:
                if os.stat(path).st_ino not in known:
                    self.held.append(os.open(path, os.O_RDONLY))
                    known.add(os.stat(path).st_ino)

    def _note(self, handle):
        inode, path = os.fstat(handle).st_ino, f"/proc/self/fd/{handle}"
        if os.path.isdir(path):
            self.folders[inode] = {name: os.stat(os.path.join(path, name)).st_ino for name in os.listdir(path)}
        else:
            with open(path, "rb") as file:
                self.files[inode] = file.read()

    def _flush_all(self):
        self._hold()
        for handle in self.held:
            self._note(handle)

    def renamed(self, to):
        """Make ``to`` what is left where all names are on the disk."""
        for root, _, names in os.walk(self.top):
            there = os.path.join(to, os.path.relpath(root, self.top))
            os.makedirs(there, exist_ok=True)
            for name in names:
                pathlib.Path(there, name).write_bytes(self.files.get(os.stat(os.path.join(root, name)).st_ino, b""))

    def flushed(self, to, inode=None):
        """Make ``to`` what is left where each folder has the names of its last fsync."""
        os.makedirs(to, exist_ok=True)
        are_folders = {os.fstat(h).st_ino for h in self.held if os.path.isdir(f"/proc/self/fd/{h}")}
        for name, child in self.folders.get(inode or os.stat(self.top).st_ino, {}).items():
            if child in are_folders:
                self.flushed(os.path.join(to, name), child)
            else:
                pathlib.Path(to, name).write_bytes(self.files.get(child, b""))

    def close(self):
        for handle in self.held:
            os.close(handle)


@pytest.mark.parametrize("graph", fuzz_files.GRAPHS)
def test_a_fault_at_a_system_call_of_a_save_loses_nothing(graph, tmp_path):
    """tests/stress/save_faults.py, which makes every fault outside the suite: the real saves of both graphs."""
    reason = save_faults.why_not()
    if reason is not None:
        pytest.skip(f"NOT CHECKED: faults at the system calls of a save; {reason}")
    with apart(graph):
        calls, outcomes = save_faults.faults(save_faults.Run(graph, str(tmp_path)), resume_every=10, every=19)
    assert {"openat", "write", "fsync", "rename", "unlinkat"} <= set(calls)
    assert min(outcomes[what] for what in ("saved", "refused", "killed")) > 1 and sum(outcomes.values()) > 15, outcomes


needs_proc = pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="open folders are found by Linux's /proc")


@needs_proc
def test_a_machine_lost_at_any_call_of_a_save_loses_nothing(tmp_path, monkeypatch):
    """No process sees a missing fsync: only what is left on the disk does."""
    parent, left, busy = older(tmp_path / "saves"), tmp_path / "left", []

    def judge(disk):
        if busy:
            return  # what the judging itself does
        busy.append(True)
        for make in (disk.renamed, disk.flushed):
            make(str(left))
            check(left)
            shutil.rmtree(left)
        busy.clear()
        judged.append(True)

    judged = []
    with monkeypatch.context() as patch:
        disk = Disk(patch, parent, judge)
        for epoch in (1, 2):
            save(parent, epoch, 2)
            busy.append(True)
            disk.flushed(str(left))  # the log has said by now that it is saved
            assert version(left, epoch) == 2
            shutil.rmtree(left)
            busy.clear()
        folders.remove(str(parent), 0)
    disk.close()
    assert len(judged) > 20


@needs_proc
def test_a_machine_lost_while_a_file_is_written_leaves_the_old_or_the_new(tmp_path, monkeypatch):
    """As predictions are: whole, whenever they are there."""
    path, left, found, busy = tmp_path / "out" / "x.csv", tmp_path / "left", [], []
    path.parent.mkdir()
    path.write_bytes(b"old")

    def judge(disk):
        if not busy:
            busy.append(True)
            disk.renamed(str(left))
            found.append((left / "x.csv").read_bytes())
            shutil.rmtree(left)
            busy.clear()

    with monkeypatch.context() as patch:
        disk = Disk(patch, path.parent, judge)
        folders.write_file(str(path), lambda file: file.write(b"new"))
        judge(disk)
    disk.close()
    assert found[0] == b"old" and found[-1] == b"new" and set(found) == {b"old", b"new"}


@needs_proc
def test_a_new_folder_is_on_the_disk_before_a_file_of_it_is(tmp_path, monkeypatch):
    top = tmp_path / "top"
    top.mkdir()
    with monkeypatch.context() as patch:
        disk = Disk(patch, top, lambda disk: None)
        folders.lock(str(top / "a" / "saves")).close()
        folders.write_file(str(top / "b" / "x.csv"), lambda file: file.write(b"new"))
        disk.flushed(str(tmp_path / "left"))
    disk.close()
    assert (tmp_path / "left" / "a" / "saves").is_dir() and (tmp_path / "left" / "b" / "x.csv").read_bytes() == b"new"


@pytest.mark.skipif(os.name != "posix", reason="a full disk is made by POSIX's limit on the size of files")
@pytest.mark.parametrize(
    "keys,largest",
    [
        (["expert_size=8000"], ("params", ".pdopt")),
        (["input.dense_size=2", "expert=mlp", "expert_size=2", "tower_size=2"], (".json", ".pdmodel")),
    ],
    ids=["weights largest", "program largest"],
)
@pytest.mark.parametrize("what", ["write", "export"])
def test_a_disk_that_fills_up_under_paddles_own_code_is_noticed(what, keys, largest, tmp_path):
    """Each file in turn is the first that does not fit: also those whose writer in C++ says nothing."""
    import resource

    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    # one expert has no branch, so that Paddle can save the program
    overrides = [f"hyper_parameters.{key}" for key in ("gate=shared_bottom", *keys)]
    with opened("static", "train", overrides) as (graph, _, _):
        with folders.new_folder(str(tmp_path), "0") as folder:
            getattr(graph, what)(folder)
        sizes = {path.name: path.stat().st_size for path in (tmp_path / "0").iterdir()}
        assert max(sizes, key=sizes.get).endswith(largest), sizes
        for limit in {*sizes.values(), *(n // 2 for n in sizes.values())} - {0}:
            try:
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit - 1, unlimited[1]))
                with pytest.raises(UserError, match="cannot be saved"):
                    with folders.new_folder(str(tmp_path), "1") as folder:
                        getattr(graph, what)(folder)
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
            assert os.listdir(tmp_path) == ["0"]


def test_exported_weights_without_their_last_byte_are_noticed_whatever_memory_holds(tmp_path):
    """Paddle gives what is missing the value that it finds in memory, which may be the right one."""
    with opened("static", "train", ["hyper_parameters.gate=shared_bottom"]) as (graph, _, _):
        graph.export(str(tmp_path))
        path = str(tmp_path / export.PREFIX)
        source = export.Source(*[None] * 4, graph.executor, parameters={})  # none to compare with
        export.read_back(path, source)
        weights = tmp_path / f"{export.PREFIX}.pdiparams"
        os.truncate(weights, weights.stat().st_size - 1)
        with pytest.raises(ValueError, match="cut short"):
            export.read_back(path, source)


@pytest.mark.parametrize("file", ["rec_static.json", "rec_inference.json", "rec_inference.pdiparams"])
def test_a_file_that_paddles_own_code_cannot_open_is_named(file, tmp_path):
    overrides = ["hyper_parameters.gate=shared_bottom", "runner.use_inference=true"]
    with opened("static", "train", overrides) as (graph, _, _):
        if file.endswith(".json") and not paddle.framework.in_pir_mode():
            file = file.replace(".json", ".pdmodel")
        with pytest.raises(UserError, match="cannot be saved"), folders.new_folder(str(tmp_path), "0") as folder:
            os.symlink("/nowhere/at/all", os.path.join(folder, file))
            graph.write(folder)
    assert os.listdir(tmp_path) == []


def test_a_half_deleted_folder_is_never_taken_for_a_save(tmp_path):
    """A kill in the middle of deleting what a swap replaced, and then the epoch itself is deleted."""
    parent = older(tmp_path / "saves")
    for left in (".0.old", "..0.old.gone", ".0.new"):
        (parent / left).mkdir()
    folders.remove(str(parent), 0)
    assert folders.saved_epochs(str(parent)) == [1]
    folders.lock(str(parent)).close()
    assert sorted(os.listdir(parent)) == [folders.LOCK, "1"]


def test_a_reader_mends_nothing_under_a_training(tmp_path):
    """Between the two renames of a swap another process looks: it must not undo the first."""
    parent = older(tmp_path / "saves")
    held = folders.lock(str(parent))
    os.rename(parent / "0", parent / ".0.old")
    assert folders.saved_epochs(str(parent)) == [1] and (parent / ".0.old").exists()
    held.close()
    assert folders.saved_epochs(str(parent)) == [0, 1] and version(parent, 0) == 1


# ------------------------------------------------------------------------------ what files hold


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    paddle.disable_static()
    yield fuzz_files.Files(str(tmp_path_factory.mktemp("files")))
    paddle.disable_static()


def test_hostile_saves_and_configs_are_refused(files):
    assert fuzz_files.check_hostile(files) > 300


def test_mutated_saves_and_configs_are_taken_or_refused(files):
    fuzz_files.fuzz(60, 1, files)


@pytest.mark.parametrize("graph,file", [("dynamic", "rec.pdopt"), ("static", "rec_static.pdopt")])
@pytest.mark.parametrize(
    "change,word",
    [
        (lambda name, value: {}, "moment1"),
        (lambda name, value: {name.replace("moment1", "velocity"): value}, "velocity"),
        (lambda name, value: {name: np.zeros(np.shape(value) + (2,), "float32")}, "moment1"),
    ],
)
def test_an_optimizer_state_that_does_not_fit_is_refused_before_a_step(files, graph, file, change, word):
    one = files.trained[graph]
    state = pickle.loads(one.good[file])
    name = next(name for name in state if name.endswith("w_0_moment1_0"))
    changed = {**{key: value for key, value in state.items() if key != name}, **change(name, state[name])}
    with pytest.raises(UserError, match=f"{file}.*{word}"):
        one.take(file, pickle.dumps(changed))
    one.take(file, one.good[file])


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_what_paddle_saves_is_read_to_the_bit(tmp_path, rng, protocol):
    content = {
        "w": paddle.to_tensor(rng.rand(3, 4).astype("float32")), "step": paddle.to_tensor([3]),
        "scalar": np.float64(0.1), "none": np.zeros((0, 3), "float32"), "columns": np.asfortranarray(rng.rand(2, 3)),
        "half": np.ones(2, "float16"), "truth": np.array([True]), "LR_Scheduler": {"last_epoch": 3, "last_lr": 0.1},
    }  # fmt: skip
    path = str(tmp_path / "rec.pdopt")
    paddle.save(content, path, protocol=protocol)
    found = weight_files.read_optimizer_state(str(tmp_path), weight_files.DYNAMIC)[1]
    assert found.pop("LR_Scheduler") == content.pop("LR_Scheduler") and set(found) == set(content)
    for name, value in content.items():
        want = np.asarray(value)
        assert found[name].dtype == want.dtype and found[name].shape == want.shape
        assert found[name].tobytes() == want.tobytes()


TEXT = b"X" + (1 << 16).to_bytes(4, "little") + b"x" * (1 << 16) + b"q\x00"
ARRAY = b"cnumpy.core.multiarray\n_reconstruct\n)R(J\x00\x00\x01\x00\x85cnumpy\ndtype\nX\x02\x00\x00\x00%s\x85R\x89%stb"


@pytest.mark.parametrize(
    "content,words",
    [
        (b"\x80\x02cos\nsystem\n.", "asks for os.system"),
        (b"\x80\x02" + TEXT + (ARRAY % (b"u1", b"h\x00")) * 9 + b".", "more memory"),  # each with bytes of its own
        (b"\x80\x02" + ARRAY % (b"O8", b"U\x00") + b".", "not a plain number"),
        (b"\x80\x02" + b"}" * 3_000_000 + b".", "more lists and names"),
        (b"\x80\x02" + b"K\x01" * 5_000_001, "opcodes"),
        (b"\x80\x04\x8f.", "the opcode EMPTY_SET"),
    ],
)
def test_what_no_checkpoint_needs_is_told(content, words):
    with pytest.raises(Unreadable, match=words):
        loads(content)


def test_a_large_checkpoint_is_read_fast_and_in_little_memory(tmp_path):
    """In a process of its own, whose peak is its own: 100 MB in less than 3 times as much."""
    paddle.save({f"w{i}": np.zeros([1 << 18], "float32") for i in range(100)}, str(tmp_path / "rec.pdparams"))
    seconds, grown = cost_of_reading(tmp_path / "rec.pdparams")
    assert seconds < 5 and grown < 3 * 100 * (1 << 20), (seconds, grown)
