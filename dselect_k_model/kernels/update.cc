// The operator dselect_k_update: one step of an optimizer for all parameters at once. See optimizers.py.
#include "paddle/extension.h"
#include "parallel.h"

using paddle::Tensor;

namespace {

enum Method { SGD = 0, MOMENTUM = 1, ADAM = 2, ADAMW = 3 };
constexpr int STATES[] = {0, 1, 4, 4};    // tensors of a parameter's state: velocity; moments, and powers of the betas
constexpr int32_t EXPONENT = 0x7f800000;  // all bits are set in infinity and NaN
constexpr int PART = 1 << 14;             // numbers that a thread updates at once

// A parameter and its state, and the numbers of this step.
struct Parameter {
  float *value, *first, *second;
  const float* gradient;
  int64_t size;
  float rate, decay, step, epsilon;
};

float* changed(const Tensor& tensor) { return const_cast<float*>(tensor.data<float>()); }

// Update the numbers from `begin` to `end`. Whether all of them are finite.
template <Method method>
bool update(const Parameter& p, const std::vector<float>& constants, int64_t begin, int64_t end) {
  int32_t infinite = 0;
  const float one = constants[0], two = constants[1], kept = 1 - p.rate * p.decay;
#pragma GCC ivdep
  for (int64_t i = begin; i < end; i++) {
    float value = p.value[i], gradient = p.gradient[i];
    if constexpr (method == ADAMW)
      value *= kept;
    else
      gradient += p.decay * value;
    if constexpr (method == SGD) {
      value -= p.rate * gradient;
    } else if constexpr (method == MOMENTUM) {
      p.first[i] = one * p.first[i] + gradient;
      value -= p.rate * p.first[i];
    } else {
      p.first[i] = one * p.first[i] + (1 - one) * gradient;
      p.second[i] = two * p.second[i] + (1 - two) * gradient * gradient;
      value -= p.step * (p.first[i] / (std::sqrt(p.second[i]) + p.epsilon));
    }
    p.value[i] = value;
    int32_t bits;
    std::memcpy(&bits, &value, 4);
    infinite |= (bits & EXPONENT) == EXPONENT;
  }
  return !infinite;
}

constexpr bool (*UPDATES[])(const Parameter&, const std::vector<float>&, int64_t, int64_t) = {
    update<SGD>, update<MOMENTUM>, update<ADAM>, update<ADAMW>};

}  // namespace

// Tensors: all parameters, then their gradients, then each parameter's state. They change in place, which is not
// declared to Paddle: a program must read no parameter but for what leads to a gradient. constants: momentum, or beta1,
// beta2 and epsilon. Gives for each parameter 1 if it is finite.
std::vector<Tensor> Update(const std::vector<Tensor>& tensors, const Tensor& rate, int method,
                           const std::vector<float>& constants, const std::vector<float>& factors,
                           const std::vector<float>& decays, int threads) {
  const int number = factors.size(), states = STATES[method];
  const float base = rate.data<float>()[0];
  std::vector<Parameter> parameters;
  std::vector<std::pair<int, int64_t>> parts;
  for (int i = 0; i < number; i++) {
    const Tensor* state = tensors.data() + 2 * number + i * states;
    Parameter p{changed(tensors[i]),
                states ? changed(state[0]) : nullptr,
                states > 1 ? changed(state[1]) : nullptr,
                tensors[number + i].data<float>(),
                tensors[i].numel(),
                base * factors[i],
                decays[i],
                0,
                0};
    if (states > 1) {
      float *power1 = changed(state[2]), *power2 = changed(state[3]);
      p.step = p.rate * std::sqrt(1 - *power2) / (1 - *power1);
      p.epsilon = constants[2] * std::sqrt(1 - *power2);
      *power1 *= constants[0], *power2 *= constants[1];
    }
    parameters.push_back(p);
    for (int64_t begin = 0; begin < p.size; begin += PART) parts.emplace_back(i, begin);
  }
  Tensor finite = paddle::full({number}, 1, paddle::DataType::INT32, paddle::CPUPlace());
  std::vector<char> found(parts.size());
  parallel(parts.size(), parts.size() > 4 ? threads : 1, [&](int i) {
    const Parameter& p = parameters[parts[i].first];
    found[i] = UPDATES[method](p, constants, parts[i].second, std::min(p.size, parts[i].second + PART));
  });
  for (size_t i = 0; i < parts.size(); i++)
    if (!found[i]) finite.data<int32_t>()[parts[i].first] = 0;
  return {finite};
}

std::vector<std::vector<int64_t>> UpdateShapes(const std::vector<std::vector<int64_t>>& tensors,
                                               const std::vector<int64_t>& rate, int method,
                                               const std::vector<float>& constants, const std::vector<float>& factors,
                                               const std::vector<float>& decays, int threads) {
  return {{int64_t(factors.size())}};
}

std::vector<paddle::DataType> UpdateTypes(const std::vector<paddle::DataType>& tensors, paddle::DataType rate) {
  return {paddle::DataType::INT32};
}

PD_BUILD_OP(dselect_k_update)
    .Inputs({paddle::Vec("Tensors"), "Rate"})
    .Outputs({"Finite"})
    .Attrs({"method: int", "constants: std::vector<float>", "factors: std::vector<float>", "decays: std::vector<float>",
            "threads: int"})
    .SetKernelFn(PD_KERNEL(Update))
    .SetInferShapeFn(PD_INFER_SHAPE(UpdateShapes))
    .SetInferDtypeFn(PD_INFER_DTYPE(UpdateTypes));
