"""Where the tools and scripts write: file systems without locks or flushing, and paths that are no place for a file."""

import errno
import json
import os

import plot
import pytest
import show

import make_data
import make_multi_mnist
from engine.checkpoints import folders
from engine.errors import UserError
from support import ROOT
from support.toolbox import assert_refused, run_here, run_script, small_data

pytestmark = pytest.mark.skipif(os.name != "posix", reason="POSIX's calls and kinds of files")


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Overrides for a run of a few steps."""
    keys = ["runner.epochs=1", "runner.train_batch_size=16", "hyper_parameters.expert_num=2", "runner.to_static=false"]
    return [*keys, "hyper_parameters.expert_size=8", *small_data(tmp_path_factory.mktemp("data"))]


# --------------------------------------------------- file systems that cannot be mounted in a test


def failing(function, number, when=lambda *_: True):
    """``function``, but with an OSError of this number if ``when`` is true of its arguments."""

    def call(*args, **kwargs):
        if when(*args):
            raise OSError(number, os.strerror(number))
        return function(*args, **kwargs)

    return call


def save(parent):
    with folders.new_folder(str(parent), 0) as folder:
        with open(os.path.join(folder, "file"), "w", encoding="utf-8") as file:
            file.write("content")


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.EIO])
def test_a_file_system_without_locks_is_used_with_a_warning(number, tmp_path, monkeypatch, caplog):
    """As NFS and Lustre without their lock daemons. A reader repairs nothing there: a run may be writing."""
    import fcntl

    save(tmp_path)
    os.rename(tmp_path / "0", tmp_path / ".0.old")
    (tmp_path / ".0.new").mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "flock", failing(fcntl.flock, number))
        assert folders.saved_epochs(str(tmp_path)) == [] and (tmp_path / ".0.new").exists()
        patch.setattr(folders.LOG, "propagate", True)
        folders.lock(str(tmp_path / "other")).close()
    assert caplog.text.count("its file system has no locks") == 1
    assert folders.saved_epochs(str(tmp_path)) == [0] and not (tmp_path / ".0.new").exists()


@pytest.mark.parametrize("number", [errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES])
def test_only_a_lock_that_is_held_means_another_run(number, tmp_path, monkeypatch):
    import fcntl

    monkeypatch.setattr(fcntl, "flock", failing(fcntl.flock, number))
    with pytest.raises(UserError, match="another (run|training)"):
        folders.lock(str(tmp_path))


def is_folder(handle, *_):
    return os.path.isdir(f"/proc/self/fd/{handle}") if isinstance(handle, int) else os.path.isdir(handle)


@pytest.mark.skipif(not os.path.exists("/proc/self/fd"), reason="a handle's file is looked up in /proc")
@pytest.mark.parametrize("call", ["fsync", "open"])
@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EBADF, errno.EACCES, errno.EPERM])
def test_a_folder_that_cannot_be_flushed_is_saved_all_the_same(call, number, tmp_path, monkeypatch):
    """As on CIFS, shared folders of VirtualBox and some of FUSE."""
    monkeypatch.setattr(os, call, failing(getattr(os, call), number, is_folder))
    save(tmp_path / "saves")
    folders.write_file(str(tmp_path / "x" / "file.csv"), lambda file: file.write(b"content"))
    assert (tmp_path / "saves" / "0" / "file").read_text() == "content"
    assert (tmp_path / "x" / "file.csv").read_bytes() == b"content"


@pytest.mark.skipif(not os.path.exists("/proc/self/fd"), reason="a handle's file is looked up in /proc")
def test_a_file_system_without_flushing_is_used_and_a_broken_disk_is_not(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", failing(os.fsync, errno.ENOSYS))
        save(tmp_path / "saves")
        folders.check_room(str(tmp_path), {})
    for when in (is_folder, lambda handle: not is_folder(handle)):
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", failing(os.fsync, errno.EIO, when))
            with pytest.raises(UserError, match="cannot be saved.*Input/output error"):
                save(tmp_path / "saves")


# ---------------------------------------------------------------------- what is at the output's path


def put(kind, path):
    """Put something that is not a file at ``path``; a device, and a folder with a file, are linked to."""
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/null")
    else:
        (path.parent / "existing").mkdir()
        (path.parent / "existing" / "mine").touch()
        path.symlink_to(path.parent / "existing")


def tree(folder):
    return sorted((str(path), os.readlink(path) if path.is_symlink() else "") for path in folder.rglob("*"))


@pytest.mark.parametrize(
    "tool,key,kind",
    [
        ("predict", "runner.predict_path", "folder"),
        ("predict", "runner.predict_path", "pipe"),
        ("trainer", "runner.log_json", "device"),
        ("static_trainer", "runner.use_save_data", "pipe"),
        ("trainer", "runner.model_save_path", "device"),
        ("export", "runner.export_path", "pipe"),
    ],
)
def test_a_path_that_cannot_be_written_to_is_refused_and_left_alone(tool, key, kind, small, tmp_path):
    path = tmp_path / ("saves/result.npy" if key == "runner.use_save_data" else "place.csv")
    path.parent.mkdir(exist_ok=True)
    put(kind, path)
    value, before = "true" if key == "runner.use_save_data" else path, tree(tmp_path)
    overrides = [*small, f"runner.export_path={ROOT}/data/model", "runner.model_save_path=saves", f"{key}={value}"]
    run = run_here(tool, ROOT / "config.yaml", *overrides, cwd=tmp_path)
    assert_refused(run, key, f"{path.name} is a {kind}, but ", "Give another path")
    assert tree(tmp_path) == before


def test_outputs_are_written_through_links_and_under_home(small, tmp_path, monkeypatch):
    disk = tmp_path / "disk"
    monkeypatch.setenv("HOME", str(disk))
    (disk / "deep").mkdir(parents=True)
    (disk / "p.csv").write_text("old")  # the other links dangle
    for name, target in (("p.csv", "disk/p.csv"), ("saves", "disk/deep/saves"), ("out", "disk/m")):
        (tmp_path / name).symlink_to(target)
    where = [*small, "runner.model_save_path=saves", "runner.infer_load_path=~/deep/saves", "runner.export_path=out"]
    where += ["runner.predict_path=p.csv", "runner.log_json=~/log", "runner.use_save_data=true"]
    for tool in ("static_trainer", "static_infer", "export", "predict"):
        if tool == "static_infer":
            (disk / "result.npy").write_text("old")
            (disk / "deep" / "saves" / "result.npy").unlink()
            (disk / "deep" / "saves" / "result.npy").symlink_to(disk / "result.npy")
        run = run_here(tool, ROOT / "config.yaml", *where, cwd=tmp_path)
        assert run.returncode == 0, run.stderr
    assert all((tmp_path / name).is_symlink() for name in ("p.csv", "saves", "out", "saves/result.npy"))
    assert (disk / "p.csv").read_text().startswith("index,")
    assert (disk / "result.npy").read_bytes().startswith(b"\x93NUMPY")
    assert (disk / "log").read_text().count('"event": "start"') == 4
    assert (disk / "deep" / "saves" / "0").is_dir() and (disk / "m" / "signature.json").exists()
    assert not list(tmp_path.rglob("*.new")) and not (tmp_path / "~").exists()


# script -> (its arguments, a file that it writes in --out; None: --out itself)
SCRIPTS = {
    show: ([ROOT / "data" / "test"], None), plot: (["gates", "log"], None),
    make_data: (["--test", "rows"], "vocabulary.json"), make_multi_mnist: ([], "train/train.pickle"),
}  # fmt: skip


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.__name__)
def test_the_scripts_refuse_a_pipe_before_they_read_anything(script, tmp_path):
    arguments, name = SCRIPTS[script]
    path = tmp_path / (name or "out.png")
    path.parent.mkdir(exist_ok=True)
    os.mkfifo(path)
    run = run_script(script, *arguments, "--out", path if name is None else tmp_path)
    message = f"error: --out: {path} is a pipe, but a file is to be written there. Give another path.\n"
    assert (run.returncode, run.stderr) == (2, message) and path.is_fifo()


def test_the_scripts_write_through_a_link(tmp_path):
    pytest.importorskip("matplotlib")
    lines = [{"event": "start", "run": "a"}]
    for batch in (0, 1):
        place = {"epoch": 0, "batch": batch, "epoch_examples": 5 * batch + 5}
        lines.append({"event": "interval", **place, "status": {"task 1 experts": {"2": 1.0}}})
    (tmp_path / "log").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for script, arguments in ((show, [ROOT / "data" / "test"]), (plot, ["gates", tmp_path / "log"])):
        target, link = tmp_path / f"{script.__name__}.png", tmp_path / f"link_to_{script.__name__}.png"
        link.symlink_to(target)
        assert run_script(script, *arguments, "--out", link).returncode == 0
        assert link.is_symlink() and target.read_bytes().startswith(b"\x89PNG")
    link.unlink()
    link.symlink_to(target)
    make_multi_mnist.write(str(link), "images", "labels")
    assert link.is_symlink() and target.read_bytes().startswith(b"\x80\x03")
