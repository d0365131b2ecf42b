// The operator dselect_k_mlps: a mixture of MLP experts, and the tasks' towers, in training, forward and backward. See
// __init__.py. Its output is [T][B][width of the widest task]; narrower tasks are padded with zeros.
#include "experts.h"
#include "paddle/extension.h"
#include "product.h"

using paddle::Tensor;

namespace {

constexpr int CHUNK = 128;  // rows of the batch that a thread computes at once
constexpr int BLOCK = 64;   // rows of a weight's gradient that a thread computes at once

// Copy [rows][columns] into rows of padded(columns), or its transpose.
std::vector<float> copied(const float* from, int rows, int columns, bool transposed) {
  const int high = transposed ? columns : rows, wide = padded(transposed ? rows : columns);
  std::vector<float> to(size_t(high) * wide);
  for (int r = 0; r < rows; r++)
    for (int c = 0; c < columns; c++)
      to[transposed ? size_t(c) * wide + r : size_t(r) * wide + c] = from[size_t(r) * columns + c];
  return to;
}

// Rows of the batch.
struct Rows {
  int first, number;
};

// An MLP: linear layers with ReLU between them, and after the last one of an expert, not of a tower.
struct Chain {
  const Tensor* tensors;   // of each layer, weight and bias
  std::vector<int> sizes;  // of the input and of each layer
  bool is_expert;
  std::vector<int64_t> outputs;  // where each layer's are among all that is saved: [rows][padded size]
  std::vector<std::vector<float>> matrices, biases;

  int layers() const { return sizes.size() - 1; }
  bool activates(int layer) const { return is_expert || layer + 1 < layers(); }

  // `saved`: the size of what the chains so far save, and then with this one.
  Chain(const Tensor* tensors, int layers, bool is_expert, int rows, int64_t& saved)
      : tensors(tensors), sizes{int(tensors[0].shape()[0])}, is_expert(is_expert), matrices(layers), biases(layers) {
    for (int l = 0; l < layers; l++) {
      sizes.push_back(tensors[2 * l].shape()[1]);
      outputs.push_back(saved);
      saved += int64_t(rows) * padded(sizes[l + 1]);
    }
  }
  void copy_parameters(int l, bool transposed) {
    matrices[l] = copied(tensors[2 * l].data<float>(), sizes[l], sizes[l + 1], transposed);
    biases[l] = copied(tensors[2 * l + 1].data<float>(), 1, sizes[l + 1], false);
  }
  // A layer's outputs in `saved`, or the gradients of them in an array like it.
  Matrix output(float* saved, int layer, int row) const {
    const int wide = padded(sizes[layer + 1]);
    return {saved + outputs[layer] + int64_t(row) * wide, wide, 1};
  }
  void forward(Matrix inputs, Rows rows, float* saved) const {
    for (int l = 0; l < layers(); l++) {
      const Matrix y = output(saved, l, rows.first);
      product(inputs, matrices[l].data(), biases[l].data(), activates(l), false, y.data, rows.number, sizes[l],
              sizes[l + 1]);
      inputs = y;
    }
  }
  // From the gradient of the last layer's outputs those of all others, and of_inputs [number][padded size], to which
  // the input's gradient is added.
  void backward(Rows rows, float* saved, float* gradients, float* of_inputs) const {
    for (int l = layers() - 1; l >= 0; l--) {
      const Matrix y = output(saved, l, rows.first), of_y = output(gradients, l, rows.first);
      for (int64_t i = 0; activates(l) && i < rows.number * y.row; i++) of_y.data[i] = y.data[i] > 0 ? of_y.data[i] : 0;
      product(of_y, matrices[l].data(), nullptr, false, !l, l ? output(gradients, l - 1, rows.first).data : of_inputs,
              rows.number, sizes[l + 1], sizes[l]);
    }
  }
  int blocks(int layer) const { return (sizes[layer] + BLOCK - 1) / BLOCK; }
  // The gradient of some rows of a layer's weight, and with the first of them that of its bias.
  void weight_gradient(int layer, int block, Matrix inputs, int rows, float* saved, float* gradients,
                       Tensor* found) const {
    const Matrix x = layer ? output(saved, layer - 1, 0) : inputs, of_y = output(gradients, layer, 0);
    const int first = block * BLOCK, number = std::min(BLOCK, sizes[layer] - first), columns = sizes[layer + 1];
    std::vector<float> sums(size_t(number) * of_y.row);
    for (int row = 0; row < rows; row += CHUNK) {
      const Matrix transposed{x.data + first + int64_t(row) * x.row, 1, x.row};
      product(transposed, of_y.data + int64_t(row) * of_y.row, nullptr, false, true, sums.data(), number,
              std::min(CHUNK, rows - row), columns);
    }
    float *weight = found[2 * layer].data<float>() + int64_t(first) * columns,
          *bias = found[2 * layer + 1].data<float>();
    for (int r = 0; r < number; r++) std::copy_n(&sums[size_t(r) * of_y.row], columns, weight + int64_t(r) * columns);
    for (int row = 0; row < rows && !block; row++)
      for (int c = 0; c < columns; c++) bias[c] += of_y.data[int64_t(row) * of_y.row + c];
  }
};

// Tensors: x, the gates' weights [T][n], and then of each expert and of each tower, of each layer, weight and bias.
// (One list: an operator's gradient may be a single list, or several tensors, but not both.) x is [B][F], or
// [experts in use][B][F].
struct Mixture {
  float* x;
  const float* gates;
  bool shares_x;
  int rows, inputs, tasks, experts, size;
  int64_t saved = 0;
  std::vector<int> used;              // experts
  std::vector<Chain> chains, towers;  // of the experts in use; of the tasks, or none
  std::vector<int64_t> mixtures;      // where each task's is among all that is saved: [rows][padded size]
  std::vector<int> tower_begins;      // of each tower in the tensors
  Mixture(const std::vector<Tensor>& tensors, int layers, int size, const std::vector<int>& tower_layers)
      : x(const_cast<float*>(tensors[0].data<float>())),
        gates(tensors[1].data<float>()),
        shares_x(tensors[0].shape().size() == 2),
        rows(*(tensors[0].shape().end() - 2)),
        inputs(tensors[0].shape().back()),
        tasks(tensors[1].shape()[0]),
        experts(tensors[1].shape()[1]),
        size(size),
        used(experts_in_use(tensors[1])) {
    for (int i : used) chains.emplace_back(&tensors[2 + 2 * layers * i], layers, true, rows, saved);
    for (int t = 0, at = 2 + 2 * layers * experts; t < tasks; t++) {
      mixtures.push_back(saved), saved += int64_t(rows) * padded(size);
      if (tower_layers.empty()) continue;
      tower_begins.push_back(at);
      towers.emplace_back(&tensors[at], tower_layers[t], false, rows, saved);
      at += 2 * tower_layers[t];
    }
  }
  // What copies the parameters, a part for each layer. The layers are computed from the copies.
  std::vector<std::function<void()>> parameter_copies(bool transposed) {
    std::vector<std::function<void()>> found;
    for (auto* some : {&chains, &towers})
      for (Chain& chain : *some)
        for (int l = 0; l < chain.layers(); l++) found.push_back([=, &chain] { chain.copy_parameters(l, transposed); });
    return found;
  }
  float weight(int t, size_t u) const { return gates[t * experts + used[u]]; }
  int width_of(int t) const { return towers.empty() ? size : towers[t].sizes.back(); }
  int chunks() const { return (rows + CHUNK - 1) / CHUNK; }
  Rows chunk(int i) const { return {i * CHUNK, std::min(CHUNK, rows - i * CHUNK)}; }
  int64_t begin_of_x(size_t u, int row) const { return (int64_t(shares_x ? 0 : u) * rows + row) * inputs; }
  Matrix input(size_t u, int row) const { return {x + begin_of_x(u, row), inputs, 1}; }
  Matrix mixture(float* saved, int t, int row) const {
    return {saved + mixtures[t] + int64_t(row) * padded(size), padded(size), 1};
  }
};

}  // namespace

std::vector<Tensor> MixtureForward(const std::vector<Tensor>& tensors, int layers, int size,
                                   const std::vector<int>& tower_layers, int width, int threads) {
  Mixture m(tensors, layers, size, tower_layers);
  in_parallel(m.parameter_copies(false), threads);
  Tensor outputs = make({m.tasks, m.rows, width}), kept = make({std::max<int64_t>(1, m.saved)});
  float *to = outputs.data<float>(), *saved = kept.data<float>();
  parallel(m.chunks(), threads, [&](int chunk) {
    const Rows rows = m.chunk(chunk);
    for (size_t u = 0; u < m.used.size(); u++) m.chains[u].forward(m.input(u, rows.first), rows, saved);
    for (int t = 0; t < m.tasks; t++) {
      const Matrix mixture = m.mixture(saved, t, rows.first);
      float* sums = mixture.data;
      std::fill(sums, sums + rows.number * mixture.row, 0.f);
      for (size_t u = 0; u < m.used.size(); u++) {
        const float *h = m.chains[u].output(saved, layers - 1, rows.first).data, weight = m.weight(t, u);
        for (int64_t i = 0; i < rows.number * mixture.row; i++) sums[i] += weight * h[i];
      }
      const float* result = sums;
      if (!m.towers.empty()) {
        m.towers[t].forward(mixture, rows, saved);
        result = m.towers[t].output(saved, tower_layers[t] - 1, rows.first).data;
      }
      const int own = m.width_of(t);
      for (int r = 0; r < rows.number; r++) {
        float* row = to + (int64_t(t) * m.rows + rows.first + r) * width;
        std::copy_n(result + int64_t(r) * padded(own), own, row);
        std::fill(row + own, row + width, 0.f);
      }
    }
  });
  return {outputs, kept};
}

std::vector<Tensor> MixtureBackward(const std::vector<Tensor>& tensors, const Tensor& kept, const Tensor& outputs_grad,
                                    int layers, int size, const std::vector<int>& tower_layers, int width,
                                    int threads) {
  Mixture m(tensors, layers, size, tower_layers);
  const int wide = padded(size), pairs = m.tasks * m.used.size();
  in_parallel(m.parameter_copies(true), threads);
  std::vector<Tensor> found = zeros_like(tensors, threads);
  Tensor of_saved = make({std::max<int64_t>(1, m.saved)});
  float *saved = const_cast<float*>(kept.data<float>()), *gradients = of_saved.data<float>();
  float* of_all_x = found[0].data<float>();
  const float* of_all_outputs = outputs_grad.data<float>();
  std::vector<double> of_gates(m.chunks() * pairs);
  parallel(m.chunks(), threads, [&](int chunk) {
    const Rows rows = m.chunk(chunk);
    for (int t = 0; t < m.tasks; t++) {
      const Matrix mixture = m.mixture(gradients, t, rows.first);
      const Matrix end = m.towers.empty() ? mixture : m.towers[t].output(gradients, tower_layers[t] - 1, rows.first);
      std::fill_n(mixture.data, rows.number * mixture.row, 0.f), std::fill_n(end.data, rows.number * end.row, 0.f);
      for (int r = 0; r < rows.number; r++)
        std::copy_n(of_all_outputs + (int64_t(t) * m.rows + rows.first + r) * width, m.width_of(t),
                    end.data + r * end.row);
      if (!m.towers.empty()) m.towers[t].backward(rows, saved, gradients, mixture.data);
    }
    std::vector<float> of_x(size_t(rows.number) * padded(m.inputs));
    for (size_t u = 0; u < m.used.size(); u++) {
      const float* h = m.chains[u].output(saved, layers - 1, rows.first).data;
      float* of_h = m.chains[u].output(gradients, layers - 1, rows.first).data;
      std::fill_n(of_h, int64_t(rows.number) * wide, 0.f);
      for (int t = 0; t < m.tasks; t++) {
        const float weight = m.weight(t, u), *of_mixture = m.mixture(gradients, t, rows.first).data;
        double total = 0;
        for (int r = 0; r < rows.number; r++) {
          Vec sum{};
          for (int i = r * wide; i < (r + 1) * wide; i += LANES) {
            const Vec d = *reinterpret_cast<const Vec*>(of_mixture + i);
            *reinterpret_cast<Vec*>(of_h + i) += weight * d;
            sum += *reinterpret_cast<const Vec*>(h + i) * d;
          }
          total += lane_sum(sum);
        }
        of_gates[chunk * pairs + t * m.used.size() + u] = total;
      }
      m.chains[u].backward(rows, saved, gradients, of_x.data());
      if (m.shares_x && u + 1 < m.used.size()) continue;
      for (int r = 0; r < rows.number; r++)
        std::copy_n(&of_x[size_t(r) * padded(m.inputs)], m.inputs, of_all_x + m.begin_of_x(u, rows.first + r));
      std::fill(of_x.begin(), of_x.end(), 0.f);
    }
  });
  std::vector<std::function<void()>> parts;
  auto add = [&](const Chain& chain, Matrix inputs, Tensor* own) {
    for (int l = 0; l < chain.layers(); l++)
      for (int block = 0; block < chain.blocks(l); block++)
        parts.push_back([=, &chain, &m] { chain.weight_gradient(l, block, inputs, m.rows, saved, gradients, own); });
  };
  for (size_t u = 0; u < m.used.size(); u++) add(m.chains[u], m.input(u, 0), &found[2 + 2 * layers * m.used[u]]);
  for (size_t t = 0; t < m.towers.size(); t++) add(m.towers[t], m.mixture(saved, t, 0), &found[m.tower_begins[t]]);
  in_parallel(parts, threads);
  for (int pair = 0; pair < pairs; pair++) {
    double total = 0;
    for (int chunk = 0; chunk < m.chunks(); chunk++) total += of_gates[chunk * pairs + pair];
    const int t = pair / m.used.size(), u = pair % m.used.size();
    found[1].data<float>()[t * m.experts + m.used[u]] = float(total);
  }
  return found;
}

std::vector<std::vector<int64_t>> MixtureShapes(const std::vector<std::vector<int64_t>>& tensors, int layers, int size,
                                                const std::vector<int>& tower_layers, int width) {
  return {{tensors[1][0], tensors[0][tensors[0].size() - 2], width}, {-1}};
}

std::vector<paddle::DataType> MixtureTypes(const std::vector<paddle::DataType>& tensors) {
  return {paddle::DataType::FLOAT32, paddle::DataType::FLOAT32};
}

PD_BUILD_OP(dselect_k_mlps)
    .Inputs({paddle::Vec("Tensors")})
    .Outputs({"Outputs", "Saved"})
    .Attrs({"layers: int", "size: int", "tower_layers: std::vector<int>", "width: int", "threads: int"})
    .SetKernelFn(PD_KERNEL(MixtureForward))
    .SetInferShapeFn(PD_INFER_SHAPE(MixtureShapes))
    .SetInferDtypeFn(PD_INFER_DTYPE(MixtureTypes));

PD_BUILD_GRAD_OP(dselect_k_mlps)
    .Inputs({paddle::Vec("Tensors"), "Saved", paddle::Grad("Outputs")})
    .Outputs({paddle::Grad(paddle::Vec("Tensors"))})
    .Attrs({"layers: int", "size: int", "tower_layers: std::vector<int>", "width: int", "threads: int"})
    .SetKernelFn(PD_KERNEL(MixtureBackward));
