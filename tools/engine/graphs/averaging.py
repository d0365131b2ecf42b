"""Gradients averaged over the processes of a job, each weighted by its rows, in one reduction a step.

A gradient that is zero on all processes needs no traffic. The package may say which are: its experts that no gate
needs (``network_facts``: ``experts_in_use`` and ``expert_parameters``). Statistics that no gradient moves, such as a
batch norm's, are averaged likewise, so that all processes hold the same network after each step.
"""

import contextlib

import numpy as np
import paddle

from engine.checkpoints.weight_files import is_learning_rate
from engine.errors import NotFinite, UserError
from engine.graphs import finite
from engine.graphs.shards import Shards
from engine.shared import load

reductions = load("processes")
STOP, WRONG = 0, 1  # places in what the processes tell each other at each step
ELSEWHERE = "a value is not finite on another process, whose log names it"


# ---------------------------------------------------------------------------------- dynamic graph


class EagerAverage:
    """Averages the gradients of an eager network.

    Args:
        processes: engine.processes.Several.
        network: its ``parameters()`` and ``state_dict()``.
        facts: what ``network_facts`` gives, or None.
    """

    def __init__(self, processes, network, facts):
        self.processes, self.facts = processes, facts
        shards, trained = Shards(facts), [p for p in network.parameters() if not p.stop_gradient]
        self.own = [p for p in trained if shards.is_own(p.name)]
        self.parameters = [p for p in trained if not shards.is_own(p.name)]
        statistics = [t for t in network.state_dict().values() if t.stop_gradient and is_float(t)]
        self.statistics = [t for t in statistics if not shards.is_own(t.name)]
        self.expert_of = _expert_of(facts)
        self.labels = getattr(facts, "parameter_labels", {})
        self.sent_bytes = 0  # what this process gave for the last reduction

    @paddle.no_grad()
    def __call__(self, rows, wrong=None):
        """Average after a backward pass, before the optimizer's step.

        Args:
            rows: of this process.
            wrong: NotFinite of this process's forward pass; or None.
        Raises:
            NotFinite: ``wrong``, or that another process has one.
        """
        wrong = wrong or self._wrong_in_own()
        exchanged = self._exchange(wrong)
        if wrong is not None:
            raise wrong
        if exchanged["wrong"]:
            raise NotFinite(ELSEWHERE)
        dense, sparse = [], [p for p, is_sparse in zip(self.parameters, exchanged["is_sparse"]) if is_sparse]
        for parameter, has_gradient in zip(self.parameters, exchanged["has_gradient"]):
            expert = self.expert_of.get(parameter.name)
            is_used = expert is None or exchanged["in_use"] is None or exchanged["in_use"][expert]
            if has_gradient and is_used and not any(parameter is p for p in sparse):
                if parameter.grad is None:
                    parameter.grad = paddle.zeros_like(parameter)
                dense.append(parameter)
        self._average(dense, rows)
        for parameter in sparse:
            _average_rows(parameter, rows, self.processes)

    def _wrong_in_own(self):
        """NotFinite of a gradient that no other process sees, or None."""
        try:
            gradients = ((self.labels.get(p.name, p.name), p.grad) for p in self.own if p.grad is not None)
            finite.check(gradients, finite.GRADIENT)
        except NotFinite as error:
            return error
        return None

    def _exchange(self, wrong):
        """What the processes must agree on: may they go on, and which gradients are there, whole or by rows."""
        gradients = [p.grad for p in self.parameters]
        told = [self.processes.is_told_to_stop, wrong is not None, *(g is not None for g in gradients)]
        told += [g is not None and g.is_selected_rows() for g in gradients]
        in_use = getattr(self.facts, "experts_in_use", None)
        if in_use is not None:
            told += (in_use.numpy() > 0).tolist()
        told = reductions.greatest(paddle.to_tensor(np.asarray(told, "int32"))).numpy() > 0
        self.processes.must_stop = bool(told[STOP])
        begin, end = 2 + len(gradients), 2 + 2 * len(gradients)
        return {
            "wrong": told[WRONG], "has_gradient": told[2:begin], "is_sparse": told[begin:end],
            "in_use": None if in_use is None else told[end:],
        }  # fmt: skip

    def _average(self, parameters, rows):
        self.sent_bytes = 0
        for dtype in sorted({str(t.dtype) for t in [*parameters, *self.statistics]}):
            chosen = [p for p in parameters if str(p.dtype) == dtype]
            fixed = [t for t in self.statistics if str(t.dtype) == dtype]
            flat = paddle.concat([paddle.flatten(t) for t in [*(p.grad for p in chosen), *fixed]])
            flat = _averaged(paddle.cast(flat, _sum_dtype(flat)), paddle.to_tensor([rows]))
            self.sent_bytes += flat.size * flat.element_size()
            flat = paddle.cast(flat, dtype.rpartition(".")[-1])
            shapes = [t.shape for t in [*chosen, *fixed]]
            parts = paddle.split(flat, [int(np.prod(shape)) for shape in shapes])
            averaged = [paddle.reshape(part, shape) for part, shape in zip(parts, shapes)]
            for parameter, gradient in zip(chosen, averaged):
                parameter.grad = gradient
            for tensor, value in zip(fixed, averaged[len(chosen) :]):
                tensor.set_value(value)


def _averaged(flat, rows):
    """The mean over the processes of a vector, weighted by ``rows`` [1]."""
    rows = paddle.cast(rows, flat.dtype)
    sums = reductions.total(paddle.concat([rows, flat * rows]))
    return sums[1:] / sums[:1]


def _average_rows(parameter, rows, processes):
    """Average a sparse gradient: all processes get the rows of all."""
    own = np.zeros(0, "int64"), np.zeros([0, *parameter.shape[1:]], "float32")  # of a process without a gradient
    if parameter.grad is not None:
        gradient = parameter.grad.get_selected_rows()
        own = np.asarray(gradient.rows()), np.array(gradient.get_tensor())
    found = processes.gather((*own, rows))
    total = sum(of_one for *_, of_one in found)
    numbers = np.concatenate([numbers for numbers, *_ in found])
    dtype = np.result_type(*(values for _, values, _ in found))
    values = np.concatenate([values * dtype.type(of_one / total) for _, values, of_one in found])
    parameter.clear_gradient(set_to_zero=False)
    with paddle.enable_grad():  # Paddle makes sparse gradients in no other way
        vectors = paddle.nn.functional.embedding(paddle.to_tensor(numbers), parameter, sparse=True)
        paddle.sum(vectors * paddle.to_tensor(values)).backward()


def _sum_dtype(tensor):
    """float32 for a half-precision tensor, whose sum gloo gets wrong."""
    name = str(tensor.dtype).rpartition(".")[-1]
    return "float32" if name in ("float16", "bfloat16") else name


def is_float(tensor):
    return "float" in str(tensor.dtype).lower()


def _expert_of(facts):
    """Parameter's name -> number of its expert."""
    return {name: i for i, names in enumerate(getattr(facts, "expert_parameters", ())) for name in names}


# ----------------------------------------------------------------------------------- static graph


def check_programs():
    """Raise UserError if the programs of this Paddle cannot reduce over processes."""
    if not paddle.framework.use_pir_api():
        raise UserError(
            "several processes need programs of PIR for the static graph and for runner.to_static: use paddlepaddle "
            "3.1.1 or later, without FLAGS_enable_pir_api=0; or tools/trainer.py with runner.to_static: false."
        )


class ProgramAverage:
    """Puts the averaging into a training program, between its backward pass and the optimizer's update.

    Args:
        processes: engine.processes.Several.
        find_facts: function () -> what ``network_facts`` gives, or None.
        feeds: the program's variables; the first has a row for each example.
        printed: the variables to fetch, name -> Variable.

    Attributes:
        told: a feed, [1]: 1 if this process has been told to stop.
        known: a variable, [3]: above 0 if a process has been told to stop; above 0 if one has a value that is not
            finite; the bytes of what a process gives for the reduction.
    """

    def __init__(self, processes, find_facts, feeds, printed):
        self.processes, self.find_facts, self.feeds, self.printed = processes, find_facts, feeds, printed
        self.told = self.known = None

    @contextlib.contextmanager
    def in_optimizers(self):
        """Within this context, every optimizer of Paddle that is built into a program averages first.

        Paddle has no place for it between ``backward`` and ``apply_gradients``, which ``minimize`` calls, and a
        package calls ``minimize``. (Its own way, ``fleet.distributed_optimizer``, does not run on CPUs: 3.3.1.)
        """
        names = ("_apply_optimize", "apply_gradients")
        theirs = {name: getattr(paddle.optimizer.Optimizer, name) for name in names}

        def _apply_optimize(optimizer, loss, startup_program, params_grads, *rest):
            return theirs["_apply_optimize"](optimizer, loss, startup_program, self(params_grads), *rest)

        def apply_gradients(optimizer, params_grads):
            return theirs["apply_gradients"](optimizer, self(params_grads))

        for name, function in (("_apply_optimize", _apply_optimize), ("apply_gradients", apply_gradients)):
            setattr(paddle.optimizer.Optimizer, name, function)
        try:
            yield
        finally:
            for name, function in theirs.items():
                setattr(paddle.optimizer.Optimizer, name, function)
        if self.known is None:
            raise UserError(
                "create_optimizer of this package builds no optimizer of Paddle's, so its gradients cannot be averaged "
                "over several processes. Train it in one process."
            )

    def __call__(self, params_grads):
        """Pairs (parameter, gradient) with the gradients averaged."""
        if self.known is not None:
            raise UserError("this package builds two optimizers, which several processes cannot train with.")
        shards = Shards(self.find_facts())
        own = {p.name: g for p, g in params_grads if g is not None and shards.is_own(p.name)}
        pairs = [(p, g) for p, g in params_grads if g is not None and p.name not in own]
        dtype = "float64" if any("float64" in str(g.dtype).lower() for _, g in pairs) else "float32"
        experts, others = _Experts.of(self.find_facts()), pairs
        if experts is not None and experts.take({p.name: g for p, g in pairs}):
            others = [(p, g) for p, g in pairs if p.name not in experts.names]
        else:
            experts = None
        self.told = paddle.static.data("told_to_stop", [1], "float32")
        statistics = [p for p in _statistics() if not shards.is_own(p.name)]
        parts = [self.told, self._wrong(own.values()), *statistics, *(g for _, g in others)]
        sizes = [int(np.prod(part.shape)) for part in parts]
        parts += [] if experts is None else [experts.packed()]
        flat = paddle.concat([paddle.cast(paddle.reshape(part, [-1]), dtype) for part in parts])
        sent = paddle.cast(paddle.shape(flat), dtype) * float(np.dtype(dtype).itemsize)
        flat = _averaged(flat, paddle.shape(self.feeds[0])[:1])
        ends = np.cumsum(sizes).tolist()
        means = [flat[begin:end] for begin, end in zip([0, *ends], ends)]
        self.known = paddle.concat([*means[:2], sent])
        averaged = own if experts is None else {**own, **experts.unpack(flat[ends[-1] :])}
        for tensor, mean in zip(statistics, means[2:]):
            paddle.assign(_like(mean, tensor), output=tensor)
        averaged.update((p.name, _like(mean, g)) for (p, g), mean in zip(others, means[2 + len(statistics) :]))
        return [(p, averaged.get(p.name)) for p, _ in params_grads]

    def _wrong(self, gradients):
        """[1]: 1 if a printed scalar is not finite, or a gradient of those that no other process sees."""
        scalars = [v for v in self.printed.values() if is_float(v) and all(size == 1 for size in v.shape)]
        scalars += [paddle.sum(gradient) for gradient in gradients]
        wrong = [1.0 - paddle.cast(paddle.isfinite(paddle.reshape(v, [1])), "float32") for v in scalars]
        return paddle.max(paddle.concat([paddle.zeros([1], "float32"), *wrong]), axis=0, keepdim=True)


def _like(flat, tensor):
    return paddle.reshape(paddle.cast(flat, tensor.dtype), tensor.shape)


def _statistics():
    """The program's parameters of floats that no gradient moves."""
    parameters = paddle.static.default_main_program().global_block().all_parameters()
    return [p for p in parameters if p.stop_gradient and is_float(p) and not is_learning_rate(p.name)]


class _Experts:
    """The gradients of experts that are alike, of which those in use are sent.

    Args:
        parameters: by expert, its parameters' names.
        in_use: variable [n], > 0 if this process needs an expert.
    """

    def __init__(self, parameters, in_use):
        self.parameters, self.names = parameters, {name for names in parameters for name in names}
        in_use = reductions.greatest(paddle.cast(in_use > 0, "int32"))
        self.index = paddle.reshape(paddle.nonzero(in_use), [-1])  # [experts in use]

    @classmethod
    def of(cls, facts):
        """What the package says; None if it says nothing."""
        in_use = getattr(facts, "experts_in_use", None)
        return None if in_use is None else cls(facts.expert_parameters, in_use)

    def take(self, gradients):
        """Take those of the experts; False if they are not alike: then all gradients are sent."""
        columns = list(zip(*self.parameters))
        if not columns or any(name not in gradients for name in self.names):
            return False
        if len({len(names) for names in self.parameters}) > 1:
            return False
        if any(len({(*gradients[name].shape, str(gradients[name].dtype)) for name in names}) > 1 for names in columns):
            return False
        self.columns = columns
        stacked = [paddle.stack([gradients[name] for name in names]) for names in columns]
        self.stacked = [paddle.reshape(each, [len(self.parameters), -1]) for each in stacked]
        self.like = [gradients[names[0]] for names in columns]
        return True

    def packed(self):
        """A vector of the gradients of the experts in use."""
        return paddle.concat([paddle.gather(stacked, self.index) for stacked in self.stacked], axis=1)

    def unpack(self, flat):
        """Name -> gradient, from such a vector; zeros for the others."""
        widths = [stacked.shape[1] for stacked in self.stacked]
        parts = paddle.split(paddle.reshape(flat, [-1, sum(widths)]), widths, axis=1)
        found = {}
        for names, stacked, part, like in zip(self.columns, self.stacked, parts, self.like):
            whole = paddle.scatter(paddle.zeros_like(stacked), self.index, paddle.cast(part, stacked.dtype))
            found.update(zip(names, paddle.unbind(paddle.reshape(whole, [len(names), *like.shape]))))
        return found
