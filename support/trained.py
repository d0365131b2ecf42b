"""A tiny network in training whose checkpoints are disturbed: by faults as they are written, by other content."""

import hashlib
import json
import os
import pathlib
import shutil

import numpy as np
import paddle

from engine.checkpoints import manifests
from engine.checkpoints.session import Session
from engine.config import load_config
from engine.errors import NotFinite
from engine.graphs import programs
from engine.jobs import GRAPHS
from engine.keys import read_settings
from engine.meter import Meter
from engine.package import Package
from support import ROOT

SMALL = [
    *("runner.epochs=3", "runner.steps_per_epoch=4", "runner.train_batch_size=2", "hyper_parameters.expert_num=2"),
    *("hyper_parameters.top_k=1", "hyper_parameters.expert_size=3", "hyper_parameters.tower_size=3"),
]


class Trained:
    """A tiny network, trained for a step and saved; it resumes from the same checkpoint with other content.

    Args:
        name: "dynamic" or "static".
        folder: for its checkpoints.
        overrides: of the config, after ``SMALL``.
    """

    def __init__(self, name, folder, *overrides):
        self.name, self.folder = name, os.path.join(folder, name)
        self._switch()
        config = load_config(str(ROOT / "config.yaml"), [*SMALL, f"runner.model_save_path={self.folder}", *overrides])
        self.settings = read_settings(config, "train")
        with programs.new_programs():
            place = paddle.set_device("cpu")
            self.graph = GRAPHS[name](Package(str(ROOT)), config, self.settings, "train", place)
        self.meter = Meter(name, "train", 1)
        self.meter.begin()
        self.session = Session(self.graph, config, self.settings, self.meter)
        self.graph.begin_epoch()
        self.step()
        so_far = {**self.meter.state(), "counted": self.graph.counted()}
        self.session._save(0, 0, 1, so_far=so_far)
        self.settings.resume = os.path.join(self.folder, "0")
        self.good = {path.name: path.read_bytes() for path in pathlib.Path(self.settings.resume).iterdir()}

    def _switch(self):
        (paddle.disable_static if self.name == "dynamic" else paddle.enable_static)()

    def step(self):
        """Train a step; a loss that is not finite is an answer too."""
        self._switch()
        rng = np.random.RandomState(0)
        batch = [rng.rand(2, 1, 36, 36).astype("float32"), np.array([1, 2]), np.array([3, 4])]
        try:
            self.graph.train_step([paddle.to_tensor(a) for a in batch] if self.name == "dynamic" else batch)
        except NotFinite:
            pass

    def take(self, file, content):
        """Resume from the good checkpoint with other content of one file. UserError: it is refused."""
        self._switch()
        folder = pathlib.Path(self.settings.resume)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for name, good in {**self.good, file: content}.items():
            (folder / name).write_bytes(good)
        if file != manifests.MANIFEST:
            manifest = json.loads(self.good[manifests.MANIFEST])
            manifest["files"][file] = hashlib.sha256(content).hexdigest()
            (folder / manifests.MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
        self.graph.read(self.settings.resume)
        so_far, counted = self.session.first()[2:]
        self.meter.begin(so_far)
        self.graph.begin_epoch(counted)
        self.step()
