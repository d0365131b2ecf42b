"""Paddle's optimizers with one operator for all parameters, in place of several for each.

State, names and files stay Paddle's. What they compute is the same, to rounding.
"""

import contextlib

import paddle

import net
from dselect_k_model import kernels


class _AllAtOnce:
    """A mixin in front of one of Paddle's optimizers, which updates all parameters at the end of its own step.

    Parameters that are not float32, and sparse gradients, are left to Paddle's optimizer.

    Attributes:
        method: its number in update.cc.
        finite_parameters: after a step, int32 [parameters], 0 for one that is not finite any more, and their names.
    """

    _known = ([], [], [])  # parameters, their names and their states, which are looked up once for many steps

    def backward(self, *args, **kwargs):
        with _linear_pruning():
            return super().backward(*args, **kwargs)

    def append_regularization_ops(self, parameters_and_grads, regularization=None):
        """Add to the gradients what the operator does not: the terms of a parameter's own regularizer, if not L2."""
        return [
            (
                p,
                g
                if self._is_taken(p, g) and self._adds_decay(p)
                else self._create_regularization_of_grad(p, g, regularization),
            )
            for p, g in parameters_and_grads
        ]

    def _is_taken(self, parameter, gradient):
        if gradient is None or parameter.stop_gradient or (paddle.in_dynamic_mode() and gradient.is_selected_rows()):
            return False
        return net.is_float32(parameter)

    def _adds_decay(self, parameter):
        return isinstance(parameter.regularizer, (type(None), paddle.regularizer.L2Decay))

    def _append_optimize_op(self, block, param_and_grad):
        return None if self._is_taken(*param_and_grad) else super()._append_optimize_op(block, param_and_grad)

    def _finish_update(self, block, parameters_and_grads):
        pairs = [(p, g) for p, g in parameters_and_grads if self._is_taken(p, g)]
        if not pairs:
            return
        parameters, (known, names, states) = [p for p, _ in pairs], self._known
        if len(known) != len(parameters) or any(a is not b for a, b in zip(known, parameters)):
            names, states = [p.name for p in parameters], [state for p in parameters for state in self._states(p)]
            self._known = (parameters, names, states)
        tensors = [*parameters, *(g for _, g in pairs), *states]
        factors = [p.optimize_attr["learning_rate"] for p in parameters]
        decays = [self._decay(p) for p in parameters]
        rate = self._global_learning_rate()
        finite = kernels.update(tensors, rate, self.method, self._constants(), factors, decays)
        self.finite_parameters = finite, names

    def _states(self, parameter):
        return []

    def _constants(self):
        return [0.0, 0.0]

    def _decay(self, parameter):
        """The weight of L2: the parameter's own, or the optimizer's."""
        own = parameter.regularizer or self.regularization
        return own._coeff if own is not None and self._adds_decay(parameter) else 0.0


@contextlib.contextmanager
def _linear_pruning():
    """Within this context, Paddle's pruning of gradients lists the inputs of an operator once.

    Paddle lists all of them once for each: 5 s where one operator takes the parameters of 128 experts.
    """
    try:
        from paddle.autograd import backward_utils, ir_backward

        theirs = ir_backward.prepare_backward_prune_set
    except (ImportError, AttributeError):  # another release
        yield
        return

    def prune_set(inputs, outputs):
        users = {operator.id(): operator for value in inputs for operator in value.all_used_ops()}
        used = [value for operator in users.values() for value in backward_utils.get_real_op_inputs(operator)]
        _, ends = theirs([value for value in inputs if value.use_empty()], outputs)  # it warns of what nothing uses
        return backward_utils.ValueSet(used), ends

    ir_backward.prepare_backward_prune_set = prune_set
    try:
        yield
    finally:
        ir_backward.prepare_backward_prune_set = theirs


class SGD(_AllAtOnce, paddle.optimizer.SGD):
    method = 0


class Momentum(_AllAtOnce, paddle.optimizer.Momentum):
    method = 1

    def _states(self, parameter):
        return [self._get_accumulator_master(self._velocity_acc_str, parameter)]

    def _constants(self):
        return [self._momentum, 0.0]

    def _decay(self, parameter):
        if parameter.regularizer is None:
            return self._regularization_coeff  # where this class keeps the optimizer's
        return super()._decay(parameter)


class _WithMoments(_AllAtOnce):
    def _states(self, parameter):
        names = (self._moment1_acc_str, self._moment2_acc_str, self._beta1_pow_acc_str, self._beta2_pow_acc_str)
        return [self._get_accumulator_master(name, parameter) for name in names]

    def _constants(self):
        return [self._beta1, self._beta2, self._epsilon]


class Adam(_WithMoments, paddle.optimizer.Adam):
    method = 2


class AdamW(_WithMoments, paddle.optimizer.AdamW):
    method = 3

    def _adds_decay(self, parameter):
        return parameter.regularizer is None or getattr(parameter.regularizer, "_coeff", None) == 0  # it is not L2

    def _decay(self, parameter):
        spared = self._apply_decay_param_fun is not None and not self._apply_decay_param_fun(parameter.name)
        return 0.0 if spared else self._weight_decay
