"""tools/engine/checkpoints/manifests.py: a manifest is read as it was written, or refused by name."""

import json

import numpy as np
import pytest

from engine.checkpoints import manifests, weight_files
from engine.errors import UserError
from support.checkpoints import FACTS, change_manifest, write_checkpoint

# As commit 1f82845 wrote it, before metrics had a direction; inside an epoch, with a package's encoding
OLD = {
    "graph": "dynamic", "run": "20261128-234512-3f9a", "epoch": 1, "batch": 2, "schedule": None,
    "so_far": {
        "sums": {"loss": 8.5}, "examples": {"loss": 32}, "newest": {"loss": 0.25, "experts_used": 4}, "seen": 32,
        "counted": [{"sum": 3.0, "count": 32}],
    },
    "config": {"runner.epochs": 2, "hyper_parameters.top_k": 2}, "numbers": {"loss": 0.5}, "validation": {"auc": 0.75},
    "encoding": {"vocabulary.json": "0" * 64}, "parameters": {"w": "float32[2, 3]"}, "format": 1,
    "saved_at": 1795909512.25, "files": {}, "versions": {"tools": "0.1.0", "paddle": "3.3.1", "numpy": "2.2.6"},
}  # fmt: skip


def test_a_manifest_of_before_the_direction_of_metrics_loads(tmp_path):
    (tmp_path / manifests.MANIFEST).write_text(json.dumps(OLD))
    assert manifests.read(str(tmp_path)) == OLD


def test_a_manifest_gives_back_its_facts(tmp_path):
    folder = write_checkpoint(tmp_path, 0, higher_is_better={"auc": True})
    manifest = manifests.read(str(folder))
    assert {name: manifest[name] for name in FACTS} == FACTS and list(manifest["files"]) == ["file"]
    assert manifest["epoch"] == 1 and manifest["higher_is_better"] == {"auc": True}


@pytest.mark.parametrize(
    "change",
    [{"format": 2}, {"epoch": -1}, {"epoch": True}, {"batch": 1.5}, {"config": []}, {"graph": None}, {"schedule": "x"}]
    + [{"files": {"../0/file": "x"}}, {"files": {"gone": "x"}}, {"files": ["file"]}, {"files": {"file": 3}}]
    + [{"validation": value} for value in ([1], "auc", {"auc": "high"}, {"auc": None})]
    + [{"so_far": {**OLD["so_far"], **change}} for change in ({"seen": -1}, {"sums": {}}, {"other": 1})]
    + [{"higher_is_better": value} for value in (None, {"auc": 1}, ["auc"])],
)
def test_a_manifest_with_facts_of_other_types_is_refused(tmp_path, change):
    folder = write_checkpoint(tmp_path, 0, **change)
    with pytest.raises(UserError, match=str(folder)):
        manifests.read(str(folder))
    assert manifests.read_if_sound(str(folder)) is None


@pytest.mark.parametrize("raw", ["", "{", "[" * 100_000, "null", "{}", '{"format": 1}', "\x00"])
def test_a_broken_manifest_is_refused(tmp_path, raw):
    folder = write_checkpoint(tmp_path, 0)
    (folder / "manifest.json").write_text(raw)
    with pytest.raises(UserError, match="manifest.json"):
        manifests.read(str(folder))


def test_weights_that_are_not_those_of_the_manifest_are_refused(tmp_path):
    """With the digest of the changed file in the manifest."""
    import paddle

    paddle.save({"w": np.zeros([2, 2], "float32")}, str(tmp_path / "rec.pdparams"))
    (tmp_path / manifests.MANIFEST).write_text(json.dumps(OLD))
    change_manifest(tmp_path, files={"rec.pdparams": manifests.digest(tmp_path / "rec.pdparams")})
    with pytest.raises(UserError, match=r"rec.pdparams.*w: float32\[2, 2\], not float32\[2, 3\]"):
        weight_files.read_weights(str(tmp_path))
    change_manifest(tmp_path, parameters={"w": "float32[2, 2]"})
    assert weight_files.read_weights(str(tmp_path)).config == OLD["config"]
