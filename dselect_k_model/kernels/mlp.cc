// The operator dselect_k_mlps: a mixture of MLP experts in training, forward and backward. See __init__.py.
#include "paddle/extension.h"
#include "product.h"

using paddle::Tensor;

namespace {

constexpr int CHUNK = 128;  // rows whose gradients are added up at once, whatever the number of threads

// Copy [rows][columns] into rows of padded(columns), or its transpose.
std::vector<float> copied(const float* from, int rows, int columns, bool transposed) {
  const int high = transposed ? columns : rows, wide = padded(transposed ? rows : columns);
  std::vector<float> to(size_t(high) * wide);
  for (int r = 0; r < rows; r++)
    for (int c = 0; c < columns; c++)
      to[transposed ? size_t(c) * wide + r : size_t(r) * wide + c] = from[size_t(r) * columns + c];
  return to;
}

// The experts in use, and the sizes of all. Tensors: x [B][F], the gates' weights [T][n], and of each expert, of each
// layer, weight and bias. (One list: an operator's gradient may be a single list, or several tensors, but not both.)
struct Mixture {
  int rows, tasks, experts, layers;
  std::vector<int> sizes;  // of the input and of each layer
  std::vector<int> used;
  std::vector<int64_t> begins;  // of each layer's outputs, of an expert in use, within `saved`; then the size of all
  const float* weights;
  const std::vector<Tensor>& tensors;
  Mixture(const std::vector<Tensor>& tensors, int layers)
      : rows(tensors[0].shape()[0]),
        tasks(tensors[1].shape()[0]),
        experts(tensors[1].shape()[1]),
        layers(layers),
        sizes{int(tensors[0].shape()[1])},
        begins{0},
        weights(tensors[1].data<float>()),
        tensors(tensors) {
    for (int l = 0; l < layers; l++) {
      sizes.push_back(tensors[2 + 2 * l].shape()[1]);
      begins.push_back(begins[l] + int64_t(rows) * padded(sizes[l + 1]));
    }
    for (int i = 0; i < experts; i++)
      if (needed(i)) used.push_back(i);
  }
  float weight(int t, int i) const { return weights[t * experts + i]; }
  bool needed(int i) const {
    for (int t = 0; t < tasks; t++)
      if (weight(t, i) > 0) return true;
    return false;
  }
  int chunks() const { return (rows + CHUNK - 1) / CHUNK; }
  const float* parameter(int i, int layer, int which) const {
    return tensors[2 + (i * layers + layer) * 2 + which].data<float>();
  }
  int64_t saved() const { return begins.back() * used.size(); }
};

Tensor make(std::vector<int64_t> shape) { return paddle::empty(shape, paddle::DataType::FLOAT32, paddle::CPUPlace()); }

}  // namespace

std::vector<Tensor> MixtureForward(const std::vector<Tensor>& tensors, int layers, int size, int threads) {
  const Mixture m(tensors, layers);
  const Tensor& x = tensors[0];
  const int wide = padded(size);
  Tensor mixtures = make({m.tasks, m.rows, size}), saved = make({std::max<int64_t>(1, m.saved())});
  float *to = mixtures.data<float>(), *kept = saved.data<float>();
  std::vector<std::vector<float>> matrices, biases;
  for (int i : m.used)
    for (int l = 0; l < layers; l++) {
      matrices.push_back(copied(m.parameter(i, l, 0), m.sizes[l], m.sizes[l + 1], false));
      biases.push_back(copied(m.parameter(i, l, 1), 1, m.sizes[l + 1], false));
    }
  parallel(m.chunks(), threads, [&](int chunk) {
    const int first = chunk * CHUNK, number = std::min(CHUNK, m.rows - first);
    for (size_t u = 0; u < m.used.size(); u++) {
      Matrix inputs{x.data<float>() + int64_t(first) * m.sizes[0], m.sizes[0], 1};
      for (int l = 0; l < layers; l++) {
        const int outputs = padded(m.sizes[l + 1]);
        float* y = kept + m.begins.back() * u + m.begins[l] + int64_t(first) * outputs;
        product(inputs, matrices[u * layers + l].data(), biases[u * layers + l].data(), true, false, y, number,
                m.sizes[l], m.sizes[l + 1]);
        inputs = {y, outputs, 1};
      }
    }
    for (int t = 0; t < m.tasks; t++)
      for (int r = first; r < first + number; r++) {
        float* row = to + (int64_t(t) * m.rows + r) * size;
        std::fill(row, row + size, 0.f);
        for (size_t u = 0; u < m.used.size(); u++) {
          const float* h = kept + m.begins.back() * u + m.begins[layers - 1] + int64_t(r) * wide;
          const float weight = m.weight(t, m.used[u]);
          for (int c = 0; c < size; c++) row[c] += weight * h[c];
        }
      }
  });
  return {mixtures, saved};
}

std::vector<Tensor> MixtureBackward(const std::vector<Tensor>& tensors, const Tensor& saved,
                                    const Tensor& mixtures_grad, int layers, int size, int threads) {
  const Mixture m(tensors, layers);
  const Tensor& x = tensors[0];
  const int wide = padded(size);
  std::vector<Tensor> found;
  for (const Tensor& each : tensors) found.push_back(paddle::zeros(each.shape(), each.dtype(), paddle::CPUPlace()));
  const float *kept = saved.data<float>(), *d = mixtures_grad.data<float>();
  std::vector<std::vector<float>> transposed;
  for (int i : m.used)
    for (int l = 0; l < layers; l++)
      transposed.push_back(copied(m.parameter(i, l, 0), m.sizes[l], m.sizes[l + 1], true));

  std::vector<int64_t> begins{
      0};  // of each layer's gradients: weight, then bias, their rows padded; then the size of all
  for (int l = 0; l < layers; l++) begins.push_back(begins[l] + int64_t(m.sizes[l] + 1) * padded(m.sizes[l + 1]));
  const int64_t of_chunk = begins.back() * m.used.size();
  std::vector<float> sums(of_chunk * m.chunks());
  std::vector<double> gate_sums(m.chunks() * m.tasks * m.used.size());
  parallel(m.chunks(), threads, [&](int chunk) {
    const int first = chunk * CHUNK, number = std::min(CHUNK, m.rows - first), in = padded(m.sizes[0]);
    std::vector<float> of_x(size_t(number) * in), of_outputs, of_inputs;
    for (size_t u = 0; u < m.used.size(); u++) {
      const float* expert = kept + m.begins.back() * u;
      const float* h = expert + m.begins[layers - 1] + int64_t(first) * wide;
      of_outputs.assign(size_t(number) * wide, 0.f);
      for (int t = 0; t < m.tasks; t++) {
        double total = 0;
        for (int r = 0; r < number; r++) {
          const float* row = d + (int64_t(t) * m.rows + first + r) * size;
          float sum = 0;
          for (int c = 0; c < size; c++) {
            of_outputs[size_t(r) * wide + c] += m.weight(t, m.used[u]) * row[c];
            sum += h[size_t(r) * wide + c] * row[c];
          }
          total += sum;
        }
        gate_sums[(chunk * m.tasks + t) * m.used.size() + u] = total;
      }
      for (int l = layers - 1; l >= 0; l--) {
        const int outputs = padded(m.sizes[l + 1]), inputs = padded(m.sizes[l]);
        const float* y = expert + m.begins[l] + int64_t(first) * outputs;
        for (size_t j = 0; j < of_outputs.size(); j++)
          if (!(y[j] > 0)) of_outputs[j] = 0;  // ReLU
        float* gradient = &sums[of_chunk * chunk + begins.back() * u + begins[l]];
        const Matrix transposed_inputs = l ? Matrix{expert + m.begins[l - 1] + int64_t(first) * inputs, 1, inputs}
                                           : Matrix{x.data<float>() + int64_t(first) * m.sizes[0], 1, m.sizes[0]};
        product(transposed_inputs, of_outputs.data(), nullptr, false, false, gradient, m.sizes[l], number,
                m.sizes[l + 1]);
        float* bias = gradient + int64_t(m.sizes[l]) * outputs;
        for (int r = 0; r < number; r++)
          for (int c = 0; c < outputs; c++) bias[c] += of_outputs[size_t(r) * outputs + c];
        if (l) of_inputs.assign(size_t(number) * inputs, 0.f);
        product({of_outputs.data(), outputs, 1}, transposed[u * layers + l].data(), nullptr, false, !l,
                l ? of_inputs.data() : of_x.data(), number, m.sizes[l + 1], m.sizes[l]);
        std::swap(of_outputs, of_inputs);
      }
    }
    float* to = found[0].data<float>() + int64_t(first) * m.sizes[0];
    for (int r = 0; r < number; r++) std::copy_n(&of_x[size_t(r) * in], m.sizes[0], to + int64_t(r) * m.sizes[0]);
  });
  for (size_t u = 0; u < m.used.size(); u++) {
    for (int t = 0; t < m.tasks; t++) {
      double total = 0;
      for (int chunk = 0; chunk < m.chunks(); chunk++) total += gate_sums[(chunk * m.tasks + t) * m.used.size() + u];
      found[1].data<float>()[t * m.experts + m.used[u]] = float(total);
    }
    for (int l = 0; l < layers; l++) {
      const int outputs = m.sizes[l + 1], inputs = m.sizes[l], rows = inputs + 1;
      float* weight = found[2 + (m.used[u] * layers + l) * 2].data<float>();
      float* bias = found[3 + (m.used[u] * layers + l) * 2].data<float>();
      parallel(rows, rows * outputs * m.chunks() > 1 << 18 ? threads : 1, [&](int r) {
        float* to = r < inputs ? weight + int64_t(r) * outputs : bias;
        for (int chunk = 0; chunk < m.chunks(); chunk++) {
          const float* from = &sums[of_chunk * chunk + begins.back() * u + begins[l] + int64_t(r) * padded(outputs)];
          for (int c = 0; c < outputs; c++) to[c] += from[c];
        }
      });
    }
  }
  return found;
}

std::vector<std::vector<int64_t>> MixtureShapes(const std::vector<std::vector<int64_t>>& tensors, int layers,
                                                int size) {
  return {{tensors[1][0], tensors[0][0], size}, {-1}};
}

std::vector<paddle::DataType> MixtureTypes(const std::vector<paddle::DataType>& tensors) {
  return {paddle::DataType::FLOAT32, paddle::DataType::FLOAT32};
}

PD_BUILD_OP(dselect_k_mlps)
    .Inputs({paddle::Vec("Tensors")})
    .Outputs({"Mixtures", "Saved"})
    .Attrs({"layers: int", "size: int", "threads: int"})
    .SetKernelFn(PD_KERNEL(MixtureForward))
    .SetInferShapeFn(PD_INFER_SHAPE(MixtureShapes))
    .SetInferDtypeFn(PD_INFER_DTYPE(MixtureTypes));

PD_BUILD_GRAD_OP(dselect_k_mlps)
    .Inputs({paddle::Vec("Tensors"), "Saved", paddle::Grad("Mixtures")})
    .Outputs({paddle::Grad(paddle::Vec("Tensors"))})
    .Attrs({"layers: int", "size: int", "threads: int"})
    .SetKernelFn(PD_KERNEL(MixtureBackward));
