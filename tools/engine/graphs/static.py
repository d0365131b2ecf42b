"""The static graph: a package's ``StaticModel``, built once and run by Paddle's executor."""

import contextlib
import copy
import itertools
import json
import logging
import os

import numpy as np
import paddle
from paddle.base.data_feeder import convert_dtype

from engine.checkpoints import compatibility, folders, manifests, weight_files
from engine.errors import NotFinite, UserError, user_errors
from engine.graphs import executor, finite, programs
from engine.graphs.averaging import ELSEWHERE, ProgramAverage, check_programs
from engine.graphs.graph import Graph, Step
from engine.interface import offered
from engine.seeds import random_states_kept
from engine.spread import Copy

LOG = logging.getLogger("engine")


class StaticGraph(Graph):
    """A package's ``StaticModel``. For the arguments and methods see ``Graph``."""

    name, module, wrapper = "static", "static_model", "StaticModel"

    def __init__(self, package, config, settings, job, place):
        paddle.enable_static()
        super().__init__(package, config, settings, job, place)
        self._build()
        self.scope = paddle.static.global_scope()
        self.executor = paddle.static.Executor(place)
        paddle.seed(settings.seed)  # again, for the building may have drawn
        executor.run_start_up(paddle.static.default_startup_program(), place)
        self.scope.erase(list(self.shards.elsewhere))
        self.program = paddle.static.default_main_program()
        self.to_run = executor.unchanging(self.program) if settings.tune_process else self.program
        self.auc_states = _auc_states(self.program)
        self.saved_data = []
        self.in_order, self.finite, self.finite_now = False, None, ()  # names of parameters known to be finite
        self.is_wrong_elsewhere = False  # another process has a value that is not finite
        if self.shards.exist:
            self._check_keys()
        if job == "train":
            self._start_from_files()
            self.trained = self._trained()
            self.in_order = settings.tune_process and getattr(self.facts(), "uses_all_cores", False)
            self.finite = getattr(self.facts(), "finite_parameters", None)

    def _build(self):
        if self.job == "train" and self.processes.number > 1:
            check_programs()
        with user_errors(self.config["yaml_path"]):
            self.model = self.find_wrapper(self.package)(self.config)
            trains = self.job == "train"
            self.feeds = list(self.model.create_feeds() if trains else self.model.create_feeds(is_infer=True))
            if offered(self.model, "build"):
                self.fetches, self.observed, _ = self.model.build(self.feeds, is_infer=not trains)
            else:
                self.fetches = self.model.net(self.feeds) if trains else self.model.infer_net(self.feeds)
                self.observed = {}
            self.average = None
            if trains and self.processes.number > 1:
                self.average = ProgramAverage(self.processes, self.facts, self.feeds, self.fetches)
            if trains:
                with self.average.in_optimizers() if self.average else contextlib.nullcontext():
                    self.model.create_optimizer()
        self.feed_names = [variable.name for variable in self.feeds]
        self.feed_dtypes = [convert_dtype(variable.dtype) for variable in self.feeds]

    def for_evaluation(self, config, settings):
        with programs.apart():
            return StaticGraph(self.package, config, settings, "infer", self.place)

    def take(self, parameters):
        mine = self._weights()
        found = {name: parameters[name] for name in mine if name in parameters}
        self._set(weight_files.fit(mine, found, "the network in training"))

    def _check_keys(self):
        """Raise UserError for keys that need all of a network which the processes share out."""
        settings = self.settings
        if settings.use_inference and self.job == "train":
            raise UserError(
                "runner.use_inference is true, but the processes share out the network, and an exported model needs "
                "all of it. Set it to false; tools/export.py exports a checkpoint afterwards."
            )
        if settings.use_save_data:
            raise UserError(
                "runner.use_save_data is true, but the processes share out the network: each has only a part of a "
                "batch."
            )
        if settings.use_out_vec and self.shards.is_own(settings.emb_weight_name):
            raise UserError(
                f"runner.use_out_vec is true, but each process holds only a part of {settings.emb_weight_name}. Start "
                "from a checkpoint by runner.model_init_path."
            )

    def _start_from_files(self):
        settings = self.settings
        if settings.model_init_path is not None:
            self.read(settings.model_init_path, partly=True)
            self._start_optimizer(settings.model_init_path)
        if settings.use_out_vec:
            self._set(_vectors(settings, self._state("param")))

    def facts(self):
        describe = offered(self.model, "network_facts")
        return None if describe is None else describe()

    def values_at_end(self):
        return [*super().values_at_end(), *_accumulated_aucs(self.program, self.fetches)]

    def begin_epoch(self, counted=None):
        if self.settings.use_auc and counted is None:
            self._reset_auc()
        self._new_metrics(counted, manifests.MANIFEST)
        self.saved_data = []

    def _create_metrics(self):
        # without observed the package keeps no metrics, and what it prints is fetched
        return super()._create_metrics() if self.observed else ([], [])

    def higher_is_better(self):
        aucs = dict.fromkeys(_accumulated_aucs(self.program, self.fetches), True)
        return {**aucs, **super().higher_is_better()}

    def begin_evaluation(self):
        self._reset_auc()
        self._new_metrics()
        self.saved_data = []

    def _reset_auc(self):
        self._set({name: np.zeros_like(value) for name, value in self._values(self.auc_states).items()})

    def train_step(self, batch):
        step, examples, count = self._execute(batch)
        finite.check_scalars(step.tensors)
        if self.is_wrong_elsewhere:
            shards = self.shards
            self._check_updated(name for name, *_ in self.trained if shards.is_own(name))  # no other process names it
            raise NotFinite(ELSEWHERE)
        self._check_updated(name for name, *_ in self.trained if name not in self.finite_now)
        self._advance_schedule("batch")
        count()
        return step, examples

    def _check_updated(self, names):
        names = set(names)
        updated = ((label, watched.array()) for name, label, watched in self.trained if name in names)
        finite.check(updated, "after the step, {names} {are} not finite: a gradient was not")

    def _trained(self):
        """The parameters of floats: triples (name, what to call it in a message, its ``ScopeTensor`` tensor)."""
        labels = self.parameter_labels()
        return [
            (name, labels.get(name, name), executor.ScopeTensor(self.scope.find_var(name).get_tensor(), self.place))
            for name, value in self._state("param").items()
            if value.dtype.kind == "f"
        ]

    def snapshot(self):
        return {name: value.copy() for name, value in self._state("all").items()}, self.schedule_state()

    def restore(self, snapshot):
        values, position = snapshot
        self._set(values)
        if position is not None:
            self.program.lr_scheduler.set_state_dict(position)

    def infer_step(self, batch):
        step, examples, count = self._execute(batch)
        count()
        return step, examples

    def _execute(self, batch):
        """(Step, number of examples, function that counts the batch for the epoch)."""
        feed = self._feed(batch)
        sent_bytes = 0
        if self.average:
            feed["told_to_stop"] = np.asarray([self.processes.is_told_to_stop], "float32")
        fetches = [*self.fetches.values(), *self.observed.values(), *([self.finite[0]] if self.finite else [])]
        fetches += [self.average.known] if self.average else []
        with executor.in_order(self.in_order):
            values = self.executor.run(self.to_run, feed=feed, fetch_list=fetches, scope=self.scope)
        values = [np.asarray(value) for value in values]
        if self.average:
            stop, wrong, sent_bytes = values.pop().tolist()
            self.processes.must_stop, self.is_wrong_elsewhere = stop > 0, wrong > 0
        if self.finite:
            self.finite_now = {name for name, is_finite in zip(self.finite[1], values.pop()) if is_finite}
        fetched, observed = values[: len(self.fetches)], dict(zip(self.observed, values[len(self.fetches) :]))

        examples = 0 if isinstance(batch, Copy) else len(feed[self.feed_names[0]])

        def count():
            if self.observed:
                with self._counted_once(batch):
                    self.model.update_metrics(self.metrics_list, observed, batch)
            if self.settings.use_save_data:
                self.saved_data.append(fetched)

        return Step(dict(zip(self.fetches, fetched)), self.metrics, self.status, int(sent_bytes)), examples, count

    def _feed(self, batch):
        if isinstance(batch, (list, tuple)) and len(batch) == 1 and isinstance(batch[0], dict):
            batch = batch[0]  # as Paddle's from_generator loaders give it
        if isinstance(batch, dict):
            return {name: np.asarray(value) for name, value in batch.items()}
        if len(batch) < len(self.feed_names):
            raise UserError(
                f"an example has {len(batch)} items, but create_feeds asks for "
                f"{len(self.feed_names)}: {', '.join(self.feed_names)}."
            )
        if offered(self.model, "check_batch"):
            with self._errors_of_the_package():
                self.model.check_batch(batch)
        return {
            name: _converted(name, np.asarray(value), dtype, len(variable.shape))
            for name, value, dtype, variable in zip(self.feed_names, batch, self.feed_dtypes, self.feeds)
        }

    def _schedule(self):
        return getattr(self.program, "lr_scheduler", None)

    def status(self):
        with random_states_kept():  # it may build layers, whose initial values are drawn
            return self._describe(self._state("param"))

    def parameters(self):
        return {**self._state("param"), **self.fetched_weights}

    def _optimizer_state(self):
        return self._state("opt")

    def state_of_all(self):
        shards = self.shards
        return {name: value for name, value in self._state("all").items() if not shards.is_own(name)}

    def set_state(self, state):
        self._set(state)

    def write(self, folder):
        """Write weights, all other state, and the program; an exported model too if the config asks for it."""
        prefix = os.path.join(folder, weight_files.STATIC)
        if _has_branch(self.program) or self.shards.exist:
            # Paddle 3.3.1 aborts the process when it writes a program with a branch's gradient
            # ("Destroyed a op_result that is still in use"); no tool reads that file back. And a process that
            # holds a part of the network has a part of the program.
            paddle.save(self.parameters(), prefix + ".pdparams")
            paddle.save({**self._optimizer_state(), **self.fetched_optimizer}, prefix + ".pdopt")
        else:
            with folders.written_by_paddle(prefix, lambda: _check_program(prefix + ".json")):
                paddle.static.save(self.program, prefix)
        if self.settings.use_inference:
            self.exporter(self, folder)

    def write_data(self, parent):
        if self.settings.use_save_data:
            by_process = self.processes.gather(self.saved_data)
            in_turn = itertools.chain.from_iterable(itertools.zip_longest(*by_process))
            saved = [values for values in in_turn if values is not None]
            rows = np.empty([len(saved), len(self.fetches)], object)
            for i, values in enumerate(saved):
                rows[i] = values
            if self.processes.is_first:
                folders.write_file(result_path(parent), lambda file: np.save(file, rows))

    def read(self, folder, partly=False):
        self._take(weight_files.read_weights(folder), partly)

    def _take(self, weights, partly=False):
        compatibility.check(weights, self.model, self.config, self.package.encoding)
        found = self.shards.keep_own(weights.by_name, weights.path)
        self._set(weight_files.fit(self._weights(), found, weights.path, partly))

    def _weights(self):
        return _without_rates(self.parameters())  # under PIR, that of a schedule counts as one

    def _start_optimizer(self, folder):
        """Take the optimizer state, as PaddleRec's static tools do, if it is one of this optimizer."""
        path, found = weight_files.read_optimizer_state(folder, weight_files.STATIC, needed=False)
        found = found and self.shards.keep_own(found, path)
        mine = _without_rates(self._state("opt"))  # the learning rate is the config's
        if found and mine.keys() & found.keys():
            self._set(weight_files.fit(mine, found, path, partly=True))
        elif found:
            LOG.warning("%s: not used, it is the state of another optimizer; this run's optimizer starts anew", path)

    def resume(self, folder, schedule_state):
        weights = weight_files.read_weights(folder)
        self._take(weights)
        path, found = weight_files.read_optimizer_state(folder, weight_files.STATIC)
        found = self.shards.keep_own(found, path)
        self._set(weight_files.fit_optimizer(self._state("opt"), found, path))
        # A schedule's rate is set at the next run; if none is left, the epoch is saved with this one.
        saved = weights.by_name
        self._set({n: saved[n] for n in self._state("param") if weight_files.is_learning_rate(n) and n in saved})
        schedule = self._schedule()
        if schedule is not None:
            path = os.path.join(folder, manifests.MANIFEST)
            schedule.set_state_dict(weight_files.fit_schedule(schedule.state_dict(), schedule_state, path))

    def schedule_state(self):
        schedule = self._schedule()
        return None if schedule is None else copy.deepcopy(schedule.state_dict())

    def _state(self, kind):
        state = self.program.state_dict(kind, self.scope)
        return {name: np.asarray(value) for name, value in state.items()}

    def _values(self, names):
        return {name: np.asarray(self.scope.find_var(name).get_tensor()) for name in names}

    def _set(self, values):
        for name, value in values.items():
            self.scope.find_var(name).get_tensor().set(value, self.place)


def _without_rates(state):
    return {name: value for name, value in state.items() if not weight_files.is_learning_rate(name)}


def result_path(parent):
    """Where ``use_save_data`` writes the fetches, in the folder of the epoch folders."""
    return os.path.join(parent, "result.npy")


def _converted(name, array, dtype, rank):
    """What Paddle's executor takes: floats for a feed of floats, integers for one of those; [B, 1] as [B] (2.6.2)."""
    if rank == 1 and array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.dtype.kind in "iub" and dtype.startswith("float"):
        return array.astype(dtype)
    if array.dtype.kind == "f" and dtype.startswith("int"):
        with np.errstate(invalid="ignore"):
            whole = array.astype(dtype)
        if not np.array_equal(whole, array):
            raise UserError(f"the reader gives numbers for {name} that are not whole, but the network takes {dtype}.")
        return whole
    return array


def _has_branch(program):
    return paddle.framework.in_pir_mode() and any(
        op.name() in ("pd_op.if", "pd_op.while") for op in program.global_block().ops
    )


def _check_program(path):
    """Raise a ValueError where PIR's file of a program is cut short; other programs Python writes, and says so."""
    if paddle.framework.in_pir_mode():
        with open(path, encoding="utf-8") as file:
            json.load(file)


def _auc_states(program):
    """Names of the variables that the program's auc ops accumulate in; none under PIR, where AUC is per batch."""
    if paddle.framework.in_pir_mode():
        if any(op.name() == "pd_op.auc" for op in program.global_block().ops):
            LOG.warning(
                "paddle.static.auc is per batch in this Paddle's static graph, and the line of an epoch has the mean "
                "over its batches; the dynamic graph's is over all examples"
            )
        return []
    return [
        name
        for op in program.global_block().ops
        if op.type == "auc"
        for slot in ("StatPos", "StatNeg")
        for name in op.input(slot)
    ]


def _accumulated_aucs(program, fetches):
    """Names of the fetches that are an AUC over all batches so far; none under PIR."""
    if paddle.framework.in_pir_mode():
        return []
    aucs = [op for op in program.global_block().ops if op.type == "auc" and op.attr("slide_steps") == 0]
    variables = {name for op in aucs for name in op.output("AUC")}
    return [name for name, variable in fetches.items() if variable.name in variables]


def _vectors(settings, parameters):
    """The parameter that ``use_out_vec`` sets: name -> array."""
    name, path = settings.emb_weight_name, settings.out_vec_path
    if name not in parameters:
        raise UserError(f"runner.emb_weight_name is {name!r}, but the parameters are: {', '.join(sorted(parameters))}.")
    with user_errors(f"runner.out_vec_path: {path}"):
        values = np.load(path or "", allow_pickle=False)
    return weight_files.fit({name: parameters[name]}, {name: values}, path)
