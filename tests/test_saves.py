"""tools/engine/saves: an epoch folder is whole or absent, and what does not fit is refused by name."""

import json
import logging
import os

import numpy as np
import pytest

from engine.errors import UserError
from engine.saves import folders, manifests, weight_files


def save(parent, epoch, text):
    with folders.new_folder(str(parent), epoch) as folder:
        with open(os.path.join(folder, "file"), "w", encoding="utf-8") as file:
            file.write(text)


def content(parent, epoch):
    return (parent / str(epoch) / "file").read_text(encoding="utf-8")


def test_an_epoch_replaces_an_earlier_one_as_a_whole(tmp_path):
    save(tmp_path, 0, "old")
    (tmp_path / "0" / "extra").write_text("of the old one")
    save(tmp_path, 0, "new")
    save(tmp_path, 12, "other")
    assert content(tmp_path, 0) == "new" and not (tmp_path / "0" / "extra").exists()
    assert folders.saved_epochs(str(tmp_path)) == [0, 12]
    assert sorted(os.listdir(tmp_path)) == ["0", "12"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError, ValueError])
def test_a_failure_while_writing_leaves_the_old_epoch(tmp_path, error):
    save(tmp_path, 0, "old")
    with pytest.raises(UserError if error is OSError else error):
        with folders.new_folder(str(tmp_path), 0) as folder:
            with open(os.path.join(folder, "file"), "w", encoding="utf-8") as file:
                file.write("half")
            raise error("no space left")
    assert content(tmp_path, 0) == "old" and folders.saved_epochs(str(tmp_path)) == [0]
    save(tmp_path, 0, "new")
    assert content(tmp_path, 0) == "new"


@pytest.mark.parametrize("calls", range(1, 9))
def test_a_crash_at_any_call_of_the_swap_loses_no_epoch(tmp_path, monkeypatch, calls):
    """The process ends before the n-th of the calls that change the folder; the next one finds old or new."""
    save(tmp_path, 0, "old")
    left = [calls]

    def counted(function):
        def call(*args, **kwargs):
            left[0] -= 1
            if left[0] == 0:
                raise KeyboardInterrupt
            return function(*args, **kwargs)

        return call

    with monkeypatch.context() as patch:
        for module, name in ((os, "rename"), (os, "fsync"), (folders.shutil, "rmtree")):
            patch.setattr(module, name, counted(getattr(module, name)))
        try:
            save(tmp_path, 0, "new")
        except KeyboardInterrupt:
            pass
    assert folders.saved_epochs(str(tmp_path)) == [0]
    assert content(tmp_path, 0) in ("old", "new")
    save(tmp_path, 0, "newer")
    assert content(tmp_path, 0) == "newer"


def test_a_swap_cut_short_and_then_another_loses_nothing(tmp_path, monkeypatch):
    """Two crashes in a row, with no reading in between that would mend the first."""
    save(tmp_path, 0, "old")
    os.rename(tmp_path / "0", tmp_path / ".0.old")  # the first swap ended here

    def crash(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", crash)
        with pytest.raises(KeyboardInterrupt):
            save(tmp_path, 0, "new")
    assert folders.saved_epochs(str(tmp_path)) == [0] and content(tmp_path, 0) == "old"


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file"):
        save(tmp_path / "file", 0, "x")


@pytest.mark.parametrize("raw", [b"", b"\x80\x04nonsense", b"<html>", b"\x80\x05K\x01."])
@pytest.mark.parametrize("name", ["rec.pdparams", "rec_static.pdparams"])
def test_a_broken_checkpoint_is_refused_by_name(tmp_path, raw, name):
    (tmp_path / name).write_bytes(raw)
    with pytest.raises(UserError, match=name):
        weight_files.read_weights(str(tmp_path))


def test_a_folder_without_a_checkpoint_is_refused_by_name(tmp_path):
    with pytest.raises(UserError, match=str(tmp_path)):
        weight_files.read_weights(str(tmp_path))


def test_what_does_not_fit_is_named():
    network = {"a": np.zeros([2, 3], "float32"), "b": np.zeros([4], "int64")}
    good = {"a": np.ones([2, 3]), "b": np.ones([4], "int32")}
    chosen = weight_files.fit(network, good, "file")
    assert chosen["a"].dtype == np.float32 and chosen["b"].dtype == np.int64
    for found, words in (
        ({"a": good["a"]}, "no b"),
        ({**good, "a": np.ones([3, 2])}, r"a is \[3, 2\]"),
        ({**good, "b": np.ones([4])}, "b is .* float64"),
    ):
        with pytest.raises(UserError, match=words):
            weight_files.fit(network, found, "file")


def test_a_warm_start_may_be_partial_but_not_empty(caplog):
    logger = logging.getLogger("engine")
    logger.addHandler(caplog.handler)
    network = {"a": np.zeros(2), "b": np.zeros(2)}
    assert list(weight_files.fit(network, {"a": np.ones(2), "c": np.ones(1)}, "file", partly=True)) == ["a"]
    logger.removeHandler(caplog.handler)
    assert "no b" in caplog.text and "not used: c" in caplog.text
    with pytest.raises(UserError):
        weight_files.fit(network, {"c": np.ones(1)}, "file", partly=True)


FACTS = {"graph": "dynamic", "epoch": 1, "batch": 0, "config": {"a": 1}, "schedule": None}
FACTS.update(numbers={"loss": 0.5}, so_far=None)


def saved(tmp_path):
    with folders.new_folder(str(tmp_path), 0) as folder:
        with open(os.path.join(folder, "file"), "w", encoding="utf-8") as file:
            file.write("content")
        manifests.write(folder, {"weight": np.zeros([2, 3], "float32")}, **FACTS)
    return tmp_path / "0"


def test_a_manifest_gives_back_its_facts(tmp_path):
    manifest = manifests.read(str(saved(tmp_path)))
    assert {name: manifest[name] for name in FACTS} == FACTS and list(manifest["files"]) == ["file"]


@pytest.mark.parametrize(
    "change",
    [{"format": 2}, {"epoch": -1}, {"epoch": True}, {"batch": 1.5}, {"config": []}, {"graph": None}, {"schedule": "x"}]
    + [{"files": {"../0/file": "x"}}, {"files": {"gone": "x"}}, {"files": ["file"]}, {"files": {"file": 3}}],
)
def test_a_manifest_of_other_facts_is_refused(tmp_path, change):
    folder = saved(tmp_path)
    path = folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(UserError, match=str(folder)):
        manifests.read(str(folder))


@pytest.mark.parametrize("raw", ["", "{", "[" * 100_000, "null", "{}", '{"format": 1}', "\x00"])
def test_a_broken_manifest_is_refused(tmp_path, raw):
    folder = saved(tmp_path)
    (folder / "manifest.json").write_text(raw)
    with pytest.raises(UserError, match="manifest.json"):
        manifests.read(str(folder))


def test_two_locks_on_a_folder_are_refused(tmp_path):
    held = folders.lock(str(tmp_path / "new"))
    with pytest.raises(UserError, match="another training"):
        folders.lock(str(tmp_path / "new"))
    held.close()
    folders.lock(str(tmp_path / "new")).close()
