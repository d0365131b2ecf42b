// The operator dselect_k_gates: the weights of DSelect-k gates that are the same for every example, and the gates'
// penalties, forward and backward. The formulas are those of net.py: smooth_step, single_expert_selectors,
// gate_weights, selector_entropy, selector_reachability.
#include <algorithm>
#include <cmath>
#include <vector>

#include "experts.h"
#include "paddle/extension.h"

using paddle::Tensor;

namespace {

// As in net.py, each operation rounded by itself, so that the same selectors are exactly 0.
#if defined(__GNUC__) && !defined(__clang__)
__attribute__((optimize("fp-contract=off")))
#endif
float position(float t, float inverse) {  // u of smooth_step, for the inverse of gamma
  const float scaled = t * inverse;
  const float u = scaled + 0.5f;
  return u < 0 ? 0 : u > 1 ? 1 : u;  // NaN stays
}

// The gate of a task: selectors r [k][n] and the selectors' weights w [k].
struct Gate {
  int experts, selectors, digits;
  std::vector<float> steps, slopes;  // of the smooth-step: [k][digits][2], for an expert's digit 0 and 1
  std::vector<float> r, w;
  Gate(const Tensor* tensors, int experts, int selectors, float inverse)
      : experts(experts),
        selectors(selectors),
        digits(tensors[0].numel() / selectors),
        r(selectors * experts, 1.f),
        w(selectors) {
    const float *logits = tensors[0].data<float>(), *mixing = tensors[1].data<float>();
    for (int i = 0; i < selectors * digits; i++)
      for (const float sign : {-1.f, 1.f}) {
        const float u = position(sign * logits[i], inverse);
        steps.push_back(u * u * (3 - 2 * u)), slopes.push_back(sign * 6 * u * (1 - u) * inverse);
      }
    float total = 0;
    for (int s = 0; s < selectors; s++) {
      for (int i = 0; i < experts; i++)
        for (int j = 0; j < digits; j++) r[s * experts + i] *= steps[at(s, i, j)];
      total += w[s] = std::exp(mixing[s] - *std::max_element(mixing, mixing + selectors));
    }
    for (float& each : w) each /= total;
  }
  // Of digit j of the expert's number, the most significant first.
  int at(int s, int i, int j) const { return (s * digits + j) * 2 + (i >> (digits - 1 - j) & 1); }
  float slope(int s, int i, int j) const {  // of r [s][i] by the logit of digit j
    float product = slopes[at(s, i, j)];
    for (int other = 0; other < digits; other++) product *= other == j ? 1 : steps[at(s, i, other)];
    return product;
  }
  float reached(int s) const {
    float sum = 0;
    for (int i = 0; i < experts; i++) sum += r[s * experts + i];
    return sum;
  }
};

constexpr float TINY = 1e-6f;  // in the logarithm of selector_entropy

}  // namespace

std::vector<Tensor> GatesForward(const std::vector<Tensor>& tensors, int experts, int selectors, float inverse) {
  const int tasks = tensors.size() / 2;
  Tensor weights = paddle::zeros({tasks, experts}, paddle::DataType::FLOAT32, paddle::CPUPlace());
  Tensor penalties = paddle::zeros({2}, paddle::DataType::FLOAT32, paddle::CPUPlace());
  for (int t = 0; t < tasks; t++) {
    const Gate gate(&tensors[2 * t], experts, selectors, inverse);
    for (int s = 0; s < selectors; s++) {
      for (int i = 0; i < experts; i++) {
        const float r = gate.r[s * experts + i];
        weights.data<float>()[t * experts + i] += gate.w[s] * r;
        penalties.data<float>()[0] -= r * std::log(r + TINY);
      }
      penalties.data<float>()[1] += 1 / gate.reached(s);
    }
  }
  return {weights, penalties};
}

std::vector<Tensor> GatesBackward(const std::vector<Tensor>& tensors, const Tensor& weights_grad,
                                  const Tensor& penalties_grad, int experts, int selectors, float inverse) {
  std::vector<Tensor> found = zeros_like(tensors, 1);
  // Of an output that the loss does not use there is no gradient.
  const bool has_weights = weights_grad.initialized(), has_penalties = penalties_grad.initialized();
  const float of_entropy = has_penalties ? penalties_grad.data<float>()[0] : 0;
  const float of_reach = has_penalties ? penalties_grad.data<float>()[1] : 0;
  const std::vector<float> no_gradient(experts);
  for (size_t t = 0; t < tensors.size() / 2; t++) {
    const Gate gate(&tensors[2 * t], experts, selectors, inverse);
    const float* of_weights = has_weights ? weights_grad.data<float>() + t * experts : no_gradient.data();
    float *of_logits = found[2 * t].data<float>(), *of_mixing = found[2 * t + 1].data<float>(), mean = 0;
    for (int s = 0; s < selectors; s++) {
      const float reached = gate.reached(s);
      for (int i = 0; i < experts; i++) {
        const float r = gate.r[s * experts + i];
        of_mixing[s] += of_weights[i] * r;
        float of_r = gate.w[s] * of_weights[i] - of_entropy * (std::log(r + TINY) + r / (r + TINY));
        if (of_reach != 0) of_r -= of_reach / (reached * reached);
        for (int j = 0; j < gate.digits; j++) of_logits[s * gate.digits + j] += of_r * gate.slope(s, i, j);
      }
      mean += gate.w[s] * of_mixing[s];
    }
    for (int s = 0; s < selectors; s++) of_mixing[s] = gate.w[s] * (of_mixing[s] - mean);
  }
  return found;
}

std::vector<std::vector<int64_t>> GatesShapes(const std::vector<std::vector<int64_t>>& tensors, int experts,
                                              int selectors, float inverse) {
  return {{int64_t(tensors.size() / 2), experts}, {2}};
}

std::vector<paddle::DataType> GatesTypes(const std::vector<paddle::DataType>& tensors) {
  return {paddle::DataType::FLOAT32, paddle::DataType::FLOAT32};
}

PD_BUILD_OP(dselect_k_gates)
    .Inputs({paddle::Vec("Tensors")})
    .Outputs({"Weights", "Penalties"})
    .Attrs({"experts: int", "selectors: int", "inverse: float"})
    .SetKernelFn(PD_KERNEL(GatesForward))
    .SetInferShapeFn(PD_INFER_SHAPE(GatesShapes))
    .SetInferDtypeFn(PD_INFER_DTYPE(GatesTypes));

PD_BUILD_GRAD_OP(dselect_k_gates)
    .Inputs({paddle::Vec("Tensors"), paddle::Grad("Weights"), paddle::Grad("Penalties")})
    .Outputs({paddle::Grad(paddle::Vec("Tensors"))})
    .Attrs({"experts: int", "selectors: int", "inverse: float"})
    .SetKernelFn(PD_KERNEL(GatesBackward));
