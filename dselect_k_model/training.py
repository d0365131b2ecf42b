"""The course of the rates and weights over a training, and the optimizers."""

import logging

import numpy as np
import paddle
from paddle import nn

import net
from dselect_k_model import kernels, sharding
from dselect_k_model.kernels import optimizers

LOG = logging.getLogger("dselect_k")


def entropy_ramp(entropy_weight, schedule, ramp_steps):
    """The entropy weight at step 0, 1, ..., the last entry being that of all later steps.

    Linear: weight x t / ramp_steps. Cosine: weight x (1 - cos(pi t / ramp_steps)) / 2.

    Returns:
        NumPy array, float64, [1] (constant) or [ramp_steps + 1].
    Raises:
        ValueError: the schedule is unknown.
    """
    if schedule == "constant":
        return np.full([1], float(entropy_weight))
    progress = np.arange(ramp_steps + 1) / ramp_steps
    if schedule == "cosine":
        progress = (1 - np.cos(np.pi * progress)) / 2
    elif schedule != "linear":
        raise ValueError(f"schedule is {schedule!r}, but must be constant, linear or cosine")
    return entropy_weight * progress


class TrainingSchedule(paddle.optimizer.lr.LRScheduler):
    """A learning rate for every training step, moved on by ``step()`` *before* each of them.

    PaddleRec's tools never move a schedule on, so the wrappers do. Its position is the number of
    training steps begun, minus one; ``state_dict()`` holds it.

    Args:
        schedule: one of Paddle's schedulers, asked for the rate at a position.
        total_steps: the position at which the schedule ends and the rate stays; None: never.
    """

    def __init__(self, schedule, total_steps=None):
        self.schedule, self.total_steps = schedule, total_steps
        super().__init__(schedule.base_lr)
        self.last_epoch = -1  # Paddle counts "epochs" whatever they are; no step has begun

    def get_lr(self):
        position = self.last_epoch if self.total_steps is None else min(self.last_epoch, self.total_steps)
        self.schedule.step(position)
        return self.schedule()


LEAST_RATE = 1e-4  # at the end of a cycle, as Paddle's; or a tenth of the greatest rate, if that is less
CYCLES = (1, 2, 4)  # how long the cycles of the schedule ``restarts`` are, beside each other


class Restarts:
    """Cycles of a rate, each one Paddle's OneCycleLR: warm restarts (Loshchilov and Hutter, ICLR 2017, 1608.03983).

    At the end of each cycle the rate has come down, so that a network is at its best there: of a short training, and
    of longer ones.

    Args:
        rate: the greatest rate of each cycle.
        ends: the positions at which the cycles end, rising.
    """

    def __init__(self, rate, ends):
        self.begins = [0, *ends[:-1]]
        # + 1: Paddle refuses to be asked for the rate at the very end
        self.cycles = [
            paddle.optimizer.lr.OneCycleLR(
                max_learning_rate=rate, total_steps=end - begin + 1, end_learning_rate=min(LEAST_RATE, rate / 10)
            )
            for begin, end in zip(self.begins, ends)
        ]
        self.base_lr = self.cycles[0].base_lr
        self.step(0)

    def step(self, position):
        number = max(np.searchsorted(self.begins, position, side="right") - 1, 0)
        self.now = self.cycles[number]
        self.now.step(position - self.begins[number])

    def __call__(self):
        return self.now()


def learning_rate_schedule(hyper, total_steps, epochs=1):
    """The course of the learning rate over the training.

    Args:
        hyper: HyperParameters.
        total_steps: training steps in all, or None if they are not known: then the cosine, one_cycle and restarts
            schedules are not followed, and one line in the log says so.
        epochs: of the training; the cycles of restarts end with an epoch.
    Returns:
        TrainingSchedule, or a number if the rate is constant.
    """
    rate, name, warmup = hyper.optimizer_learning_rate, hyper.optimizer_schedule, hyper.optimizer_warmup_steps
    if name != "constant" and total_steps is None:
        LOG.warning(
            "the %s schedule of the learning rate is not followed: the number of steps is unknown. "
            "Set runner.steps_per_epoch.",
            name,
        )
        name = "constant"
    schedule = rate
    if name == "one_cycle":
        schedule = Restarts(rate, [total_steps])
    elif name == "restarts":
        shares = np.cumsum(CYCLES) / sum(CYCLES)
        ends = {max(1, round(share * epochs)) * total_steps // epochs for share in shares}
        schedule = Restarts(rate, sorted(ends))
    elif name == "cosine":
        schedule = paddle.optimizer.lr.CosineAnnealingDecay(rate, T_max=max(total_steps - warmup, 1))
    if warmup:
        schedule = paddle.optimizer.lr.LinearWarmup(schedule, warmup, start_lr=0.0, end_lr=rate)
    if schedule is rate:
        return rate
    return TrainingSchedule(schedule, None if name == "constant" else total_steps)


def learning_rate(hyper, config):
    """``learning_rate_schedule`` over the training that a flat config describes.

    Its length is epochs x ``runner.steps_per_epoch``, which our tools count.

    Raises:
        ValueError: ``runner.lr_step`` asks the tool to move on the schedule, which the model does itself.
    """
    steps, epochs = config.get("runner.steps_per_epoch"), config.get("runner.epochs")
    # no step at all: too few data for a batch, which the tool is about to say
    total = max(int(steps), 1) * int(epochs) if steps is not None and epochs else None
    rate = learning_rate_schedule(hyper, total, int(epochs or 1))
    if config.get("runner.patience") and hyper.optimizer_schedule != "constant":
        raise ValueError(
            f"runner.patience is {config['runner.patience']!r}, but with the {hyper.optimizer_schedule} schedule the "
            "rate comes down at set times only: a training that ends before is not at its best. Remove "
            "patience (keep_best still finds the best epoch), or set hyper_parameters.optimizer.schedule to constant."
        )
    keeps_some = [task.title for task in hyper.task_list if task.kind.negatives_kept < 1]
    if keeps_some and config.get("runner.train_reader_path") != "tabular.reader":
        raise ValueError(
            f"hyper_parameters.tasks: {keeps_some[0]} has negatives_kept, but only the reader tabular.reader draws the "
            "negatives (runner.train_reader_path). Set it to 1."
        )
    if isinstance(rate, TrainingSchedule) and config.get("runner.lr_step", "none") != "none":
        raise ValueError(
            f"runner.lr_step is {config['runner.lr_step']!r}, but this model moves its schedule itself. Set it to none."
        )
    return rate


def build_optimizer(network, hyper, learning_rate, parameters=None, shards=None):
    """The optimizer that ``hyper`` asks for.

    Args:
        network: net.MultiTaskNetwork; its gates are spared from weight decay.
        hyper: HyperParameters.
        learning_rate: a number or a scheduler.
        parameters: what to train, in the dynamic graph; None in a static program.
        shards: sharding.Shards of the network, or None.
    Raises:
        ValueError: clipping by norm in a legacy program of Paddle 3.x, which cannot build it; lazy Adam in a program.
    """
    if hyper.optimizer_class == "lazy_adam" and not net.runs_line_by_line(network):
        raise ValueError(
            "hyper_parameters.optimizer.class is lazy_adam, which needs a network that runs line by line. Use "
            "tools/trainer.py with runner.to_static: false; or the class adam."
        )
    if hyper.optimizer_clip_norm and not net.clip_norm_builds():
        raise ValueError(
            "hyper_parameters.optimizer.clip_norm cannot be used in the legacy program mode of "
            "Paddle 3.x (FLAGS_enable_pir_api=0). Set it to 0, or leave the flag alone."
        )
    clip = None
    if hyper.optimizer_clip_norm and shards is not None:
        clip = sharding.ClipGradByGlobalNorm(hyper.optimizer_clip_norm, shards)
    elif hyper.optimizer_clip_norm:
        clip = nn.ClipGradByGlobalNorm(hyper.optimizer_clip_norm)
    common = {"learning_rate": learning_rate, "parameters": parameters, "grad_clip": clip}
    decay = hyper.optimizer_weight_decay
    kinds = _optimizers(hyper)
    needs_tensors = paddle.framework.in_pir_mode() or (
        not paddle.in_dynamic_mode() and paddle.get_default_dtype() == "float64"
    )
    if hyper.optimizer_class != "sgd" and needs_tensors and kinds is paddle.optimizer:
        # Paddle's defaults. As numbers, PIR programs would make them again for each parameter at each step, and legacy
        # ones would keep them in float32, which in float64 is 1e-5 off
        common.update({name: paddle.full([1], x) for name, x in (("beta1", 0.9), ("beta2", 0.999), ("epsilon", 1e-8))})
    if hyper.optimizer_class == "adamw":
        spared = {p.name for p in network.gates.parameters()}
        return kinds.AdamW(weight_decay=decay, apply_decay_param_fun=lambda name: name not in spared, **common)
    if hyper.optimizer_class == "sgd" and not hyper.optimizer_momentum:
        return kinds.SGD(weight_decay=decay or None, **common)
    if hyper.optimizer_class == "sgd":
        return kinds.Momentum(momentum=hyper.optimizer_momentum, weight_decay=decay or None, **common)
    lazy = hyper.optimizer_class == "lazy_adam"
    adam = sharding.LazyAdam if lazy and shards is not None else kinds.Adam
    return adam(weight_decay=decay or None, lazy_mode=lazy, **common)


def _optimizers(hyper):
    """The module with the optimizers' classes: Paddle's, or the kernels', which update all parameters at once."""
    if hyper.optimizer_class == "lazy_adam" or not net.kernels_compute():
        return paddle.optimizer
    return optimizers if kernels.chosen(hyper.kernels) else paddle.optimizer
