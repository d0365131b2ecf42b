"""A config's keys -> ``net.py``'s network."""

import functools
import logging
import math

import paddle

import net
from dselect_k_model import kernels, processes, sharding, sync_norm, training
from dselect_k_model.experts import make_expert
from dselect_k_model.gates import expert_num, make_gate

LOG = logging.getLogger("dselect_k")


def build(hyper):
    """The network that ``hyper`` describes.

    Layers are created in a fixed order, so that both graphs give their parameters the same names.

    Args:
        hyper: HyperParameters.
    Returns:
        net.MultiTaskNetwork.
    """
    inputs = bottom = None
    shape = list(hyper.input_image)
    if hyper.is_table:
        inputs = net.TableInput(
            hyper.input_dense_size,
            hyper.input_vocabulary_sizes,
            hyper.input_embedding_size,
            hyper.sparse_gradients,
            kernels.chosen(hyper.kernels),
            _make_embedding(hyper),
            hyper.input_list_sizes,
            hyper.input_list_pooling,
            hyper.input_shared_embeddings,
        )
        shape = [inputs.out_size]
    if hyper.bottom == "cnn":
        bottom = net.CNN(shape, hyper.expert_norm, kernels.chosen(hyper.kernels))
    elif hyper.bottom == "mlp":
        bottom = net.MLP(math.prod(shape), hyper.bottom_sizes, hyper.expert_norm, activate_output=True)
    if bottom is not None:
        shape = [bottom.out_size]
    tasks = hyper.task_list
    if hyper.kernels == "auto" and kernels.SUPPORTED and not kernels.load():
        LOG.info("hyper_parameters.kernels is auto, and Paddle's layers compute: %s", kernels.why_none())
    if expert_num(hyper) != hyper.expert_num:
        LOG.info("the gate %s has %d experts; expert_num is ignored", hyper.gate, expert_num(hyper))
    network = net.MultiTaskNetwork(
        _experts(hyper, shape),
        [make_gate(hyper, t, math.prod(shape)) for t in range(len(tasks))],
        [net.MLP(hyper.expert_size, [*task.tower_sizes, task.kind.out_size]) for task in tasks],
        hyper.expert_size,
        bottom,
        inputs,
        entropy_ramp=training.entropy_ramp(hyper.entropy_weight, hyper.entropy_schedule, hyper.entropy_ramp_steps),
        penalty_weights={"balance": hyper.balance_weight},
        learned_balance=hyper.task_balance == "uncertainty",
        kernels=kernels.chosen(hyper.kernels),
    )
    if hyper.shard_experts and not all(gate.per_example for gate in network.gates):
        raise ValueError(
            f"hyper_parameters.shard_experts is true, but the gate {hyper.gate} gives every example the same "
            "weights: each process computes the few experts in use by itself. Set it to false, or use another gate."
        )
    if _is_shared_out(hyper.shard_experts):
        network.mix_experts = sharding.ShardedMixture()
    if processes.number() > 1:
        _spread(network, hyper)
    return network


def _is_shared_out(wanted):
    """Whether a key that shares something out is true, and there are processes to share it.

    Raises:
        ValueError: this program cannot reduce over processes.
    """
    if not wanted or processes.number() == 1:
        return False
    if not paddle.in_dynamic_mode() and not paddle.framework.in_pir_mode():
        raise ValueError(
            "hyper_parameters.shard_experts and input.shard_embedding need programs of PIR in the static graph: use "
            "paddlepaddle 3.1.1 or later, without FLAGS_enable_pir_api=0; or the tools of the dynamic graph."
        )
    return True


def _make_embedding(hyper):
    """The class of the layer of all embeddings, or a function like it."""
    if not _is_shared_out(hyper.input_shard_embedding):
        return net.Embedding
    is_lazy = hyper.optimizer_class == "lazy_adam"
    if is_lazy and int(paddle.__version__.split(".")[0]) < 3:
        raise ValueError(
            "hyper_parameters.input.shard_embedding with the optimizer lazy_adam needs paddlepaddle 3: earlier "
            "versions crash where a process has no id of a batch. Use adam, or sgd with the momentum 0."
        )
    return functools.partial(sharding.ShardedEmbedding, counts_steps=is_lazy)


def _experts(hyper, shape):
    """The network's experts; in the place of each that another process holds, one that stands for it."""
    number = expert_num(hyper)
    if not _is_shared_out(hyper.shard_experts):
        return [make_expert(hyper, shape) for _ in range(number)]
    if number < processes.number():
        raise ValueError(
            f"hyper_parameters.expert_num is {number}, but {processes.number()} processes share out the experts "
            "(shard_experts). Start at most as many processes as there are experts."
        )
    begin, end = sharding.share_of(number)
    LOG.info("this process holds the experts %d to %d of %d", begin, end - 1, number)
    return [
        make_expert(hyper, shape) if begin <= i < end else sharding.Elsewhere(lambda: make_expert(hyper, shape))
        for i in range(number)
    ]


def _spread(network, hyper):
    """Have a network that several processes train compute what one process would."""
    for layer in network.gates.sublayers():  # a gate may be within another
        if hasattr(layer, "mean_of_rows"):
            layer.mean_of_rows = processes.mean_of_rows
    with_all_rows = network.experts if hyper.shard_experts else ()
    if not hyper.sync_batch_norm or not sync_norm.convert(network, but=with_all_rows):
        return
    LOG.info(
        "batch norm is over the rows of all %d processes, without kernels (hyper_parameters.sync_batch_norm: false, or "
        "another expert_norm, is faster)",
        processes.number(),
    )
    if network.per_example and not with_all_rows:
        network.agree = processes.greatest  # the experts' norms reduce: all processes must run the same experts


class NetworkFacts:
    """What the tools may know of a network.

    Args:
        network: net.MultiTaskNetwork.
    """

    def __init__(self, network):
        self.per_example = network.per_example  # whether a gate has weights for each example
        self.parameter_labels = network.parameter_labels()  # parameter's name -> what to call it in a message
        # printed values that describe the network, not a batch: an epoch's is the one at its end
        self.values_at_end = () if network.per_example else ("experts_used",)
        self.uses_all_cores = network.suits_kernels()  # whether kernels compute its experts in training
        # of a static program, if there is one: a variable that says which parameters are finite, and their names
        self.finite_parameters = None
        # by expert, its parameters' names, and how needed it is: see ``find_experts_in_use``
        self.expert_parameters = [[p.name for p in e.parameters() if not p.stop_gradient] for e in network.experts]
        self.experts_in_use = None
        self.shards = sharding.Shards.of(network)  # None: every process holds the whole network
        self.shares_out_experts = isinstance(network.mix_experts, sharding.ShardedMixture)
        self.reduces_within = self.shards is not None or any(
            isinstance(layer, sync_norm.SyncBatchNorm) for layer in network.sublayers()
        )

    def find_experts_in_use(self, gate_weights):
        """Keep, for a step of one of several processes, each expert's greatest weight [n]: 0 means no gradient."""
        if processes.number() > 1 and not self.shares_out_experts:
            self.experts_in_use = net.greatest_weights(gate_weights)
