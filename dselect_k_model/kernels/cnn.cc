// The operator dselect_k_cnns: the two blocks of net.py's CNN for each expert in use, in training, forward and
// backward. See __init__.py.
#include "blocks.h"
#include "experts.h"
#include "paddle/extension.h"

using paddle::Tensor;

namespace {

// Number of a block's tensors, by Norm. NONE: weight, bias. BATCH: weight, scale, shift, running mean and variance.
// GROUP: weight, bias, scale, shift.
constexpr int TENSORS[] = {2, 5, 4};

// Groups of images whose gradients are added up at once, whatever the number of threads.
constexpr int CHUNK = 4;

int chunks_of(int groups) { return (groups + CHUNK - 1) / CHUNK; }

// One expert's blocks.
struct Blocks {
  Block first, second;
  const Tensor* tensors;
  int number, groups, threads;
  Blocks(const Tensor& image, const Tensor* tensors, int norm, int threads)
      : tensors(tensors), number(image.shape()[0]), groups((number + LANES - 1) / LANES), threads(threads) {
    const auto shape = image.shape();
    const Tensor *one = tensors, *two = one + TENSORS[norm];
    const Sizes sizes{int(shape[1]), int(shape[2]), int(shape[3]), int(one->shape()[0])};
    first = block(sizes, Norm(norm), one);
    second = block({sizes.out, sizes.h() / 2, sizes.w() / 2, int(two->shape()[0])}, Norm(norm), two);
  }
  static Block block(const Sizes& sizes, Norm norm, const Tensor* own) {
    const float* bias = norm == BATCH ? nullptr : own[1].data<float>();
    const int at = norm == BATCH ? 1 : 2;
    const bool has_norm = norm != NONE;
    return {sizes,
            norm,
            own[0].data<float>(),
            bias,
            has_norm ? own[at].data<float>() : nullptr,
            has_norm ? own[at + 1].data<float>() : nullptr};
  }
  int64_t statistics(const Block& k) const {
    return k.norm == BATCH ? 2 * k.s.out : k.norm == GROUP ? int64_t(groups) * 2 * k.groups() * LANES : 1;
  }
  const float* statistics_of(const Block& k, const float* all, int g) const {
    return k.norm == GROUP ? all + int64_t(g) * 2 * k.groups() * LANES : all;
  }
};

// [B][size] -> [size] Vec, of a group of images; zeros where there is none
void pack(const float* from, int number, int g, int size, Vec* to) {
  for (int i = 0; i < size; i++) to[i] = Vec{};
  for (int l = 0; l < LANES && g * LANES + l < number; l++) {
    const float* image = from + (int64_t(g) * LANES + l) * size;
    for (int i = 0; i < size; i++) to[i][l] = image[i];
  }
}

void unpack(const Vec* from, int number, int g, int size, float* to) {
  for (int l = 0; l < LANES && g * LANES + l < number; l++) {
    float* image = to + (int64_t(g) * LANES + l) * size;
    for (int i = 0; i < size; i++) image[i] = from[i][l];
  }
}

// Means and inverse deviations of the batch, from the sums of each group of images (Chan et al.). Moves the running
// statistics.
void batch_statistics(const Blocks& n, const Block& k, const std::vector<double>& of_groups, float* found, float* mean,
                      float* variance) {
  constexpr float MOMENTUM = 0.9f;  // Paddle's default
  const double size = k.s.h() * k.s.w(), all = size * n.number;
  for (int c = 0; c < k.s.out; c++) {
    double total = 0, square = 0;
    for (int g = 0; g < n.groups; g++) total += of_groups[(g * k.s.out + c) * 2];
    for (int g = 0; g < n.groups; g++) {
      const double images = std::min(LANES, n.number - g * LANES),
                   own = of_groups[(g * k.s.out + c) * 2] / (images * size);
      square += of_groups[(g * k.s.out + c) * 2 + 1] + images * size * (own - total / all) * (own - total / all);
    }
    found[c] = float(total / all), found[k.s.out + c] = float(1 / std::sqrt(square / all + EPSILON));
    mean[c] = mean[c] * MOMENTUM + float(total / all) * (1 - MOMENTUM);
    variance[c] = variance[c] * MOMENTUM + float(square / all) * (1 - MOMENTUM);
  }
}

// What the forward pass of an expert keeps for the backward pass: outputs of the convolutions, the first block's
// output, and the norms' statistics.
struct Kept {
  Vec *y1, *p1, *y2;
  float *t1, *t2;
};

// The tensors of all experts in use.
struct AllKept {
  std::vector<Tensor> tensors;
  AllKept(const Blocks& n, int experts) {
    const int64_t vectors = int64_t(n.groups) * LANES;
    for (int64_t size : {vectors * n.first.s.outputs(), vectors * n.first.s.pooled(), vectors * n.second.s.outputs(),
                         n.statistics(n.first), n.statistics(n.second)})
      tensors.push_back(make({experts, std::max<int64_t>(1, size)}));
  }
  explicit AllKept(std::vector<Tensor> tensors) : tensors(tensors) {}
  Kept of(int expert) {
    auto at = [&](int i) { return tensors[i].data<float>() + expert * tensors[i].shape()[1]; };
    auto vectors = [&](int i) { return reinterpret_cast<Vec*>(at(i)); };
    return {vectors(0), vectors(1), vectors(2), at(3), at(4)};
  }
};

// x: the packed images. features: [B][size].
void forward(const Blocks& n, const Vec* x, const Kept& kept, float* features) {
  const Block &one = n.first, &two = n.second;
  const auto arranged1 = arranged(one.weight, one.s, false), arranged2 = arranged(two.weight, two.s, false);
  std::vector<double> moments1(n.groups * one.s.out * 2), moments2(n.groups * two.s.out * 2);
  auto after = [&](const Block& k, float* t, std::vector<double>& sums, const Vec* y, int g) {
    if (k.norm == GROUP) group_statistics(k, y, reinterpret_cast<Vec*>(t) + int64_t(g) * 2 * k.groups());
    if (k.norm == BATCH) moments(k.s, y, lanes_in_use(g, n.number), &sums[g * k.s.out * 2]);
  };
  // Under batch norm the running statistics move. That is not declared to Paddle: it would make them outputs, to which
  // a gradient belongs.
  auto between = [&](const Block& k, float* t, std::vector<double>& sums, int first) {
    if (k.norm != BATCH) return;
    auto running = [&](int i) { return const_cast<float*>(n.tensors[first + i].data<float>()); };
    batch_statistics(n, k, sums, t, running(3), running(4));
  };
  parallel(n.groups, n.threads, [&](int g) {
    Vec* y = kept.y1 + int64_t(g) * one.s.outputs();
    convolve(x + int64_t(g) * one.s.inputs(), arranged1.data(), one.bias, y, one.s.in, one.s.high, one.s.wide,
             one.s.out, 0, one.s.high);
    after(one, kept.t1, moments1, y, g);
  });
  between(one, kept.t1, moments1, 0);
  parallel(n.groups, n.threads, [&](int g) {
    Vec *p = kept.p1 + int64_t(g) * one.s.pooled(), *y = kept.y2 + int64_t(g) * two.s.outputs();
    pool(one, kept.y1 + int64_t(g) * one.s.outputs(), n.statistics_of(one, kept.t1, g), p);
    convolve(p, arranged2.data(), two.bias, y, two.s.in, two.s.high, two.s.wide, two.s.out, 0, two.s.high);
    after(two, kept.t2, moments2, y, g);
  });
  between(two, kept.t2, moments2, TENSORS[BATCH]);
  parallel(n.groups, n.threads, [&](int g) {
    std::vector<Vec> p(two.s.pooled());
    pool(two, kept.y2 + int64_t(g) * two.s.outputs(), n.statistics_of(two, kept.t2, g), p.data());
    unpack(p.data(), n.number, g, two.s.pooled(), features);
  });
}

// found: the gradients of the expert's tensors, zeros before.
void backward(const Blocks& n, const Vec* x, const Kept& kept, const float* features_grad, Tensor* found) {
  const Block &one = n.first, &two = n.second;
  const int norm = one.norm, own = TENSORS[norm], pad = K - 1;
  std::vector<Vec> sums1(n.groups * one.s.out * 2), sums2(n.groups * two.s.out * 2);
  std::vector<Vec> d1(int64_t(n.groups) * one.s.pooled()), d2(int64_t(n.groups) * two.s.pooled());
  const auto mirrored = arranged(two.weight, two.s, true);

  // The sums that the channels' norm asks for: of all groups of images, or of this one's groups of channels.
  auto norm_sums = [&](const Block& k, const std::vector<Vec>& sums, int g) {
    std::vector<Vec> result(k.s.out * 2, Vec{});
    for (int c = 0; c < k.s.out && k.norm != NONE; c++)
      for (int i = 0; i < 2; i++) {
        if (k.norm == GROUP)
          for (int other = c / CHANNELS * CHANNELS; other < (c / CHANNELS + 1) * CHANNELS; other++)
            result[2 * c + i] += sums[(g * k.s.out + other) * 2 + i] * k.scale[other];
        else {
          double total = 0;
          for (int each = 0; each < n.groups; each++) total += lane_sum(sums[(each * k.s.out + c) * 2 + i]);
          result[2 * c + i] += float(total) * k.scale[c];
        }
      }
    return result;
  };
  auto norm_gradients = [&](const Block& k, const std::vector<Vec>& sums, Tensor& scale, Tensor& shift) {
    for (int c = 0; c < k.s.out; c++)
      for (int g = 0; g < n.groups; g++) {
        shift.data<float>()[c] += lane_sum(sums[(g * k.s.out + c) * 2]);
        scale.data<float>()[c] += lane_sum(sums[(g * k.s.out + c) * 2 + 1]);
      }
  };
  const int chunks = chunks_of(n.groups);
  auto layer = [&](const Block& k, const Vec* inputs, const Vec* outputs, const float* t, const std::vector<Vec>& d,
                   const std::vector<Vec>& sums, int pad, Tensor& weight, Tensor* bias,
                   const std::function<void(int, const Vec*)>& then) {
    const int high = k.s.h() + 2 * pad, wide = k.s.w() + 2 * pad, places = k.s.h() * k.s.w();
    std::vector<float> weights(size_t(chunks) * k.s.weights()), biases(size_t(chunks) * k.s.out);
    const std::vector<Vec> of_batch = k.norm == BATCH ? norm_sums(k, sums, 0) : std::vector<Vec>();
    const float number = k.norm == BATCH ? float(n.number) * places : float(CHANNELS) * places;
    parallel(chunks, n.threads, [&](int chunk) {
      std::vector<Vec> dy(size_t(k.s.out) * high * wide, Vec{});
      for (int g = chunk * CHUNK; g < std::min(n.groups, (chunk + 1) * CHUNK); g++) {
        unpool(k, outputs + int64_t(g) * k.s.outputs(), n.statistics_of(k, t, g), &d[int64_t(g) * k.s.pooled()],
               k.norm == BATCH ? of_batch : norm_sums(k, sums, g), number, lanes_in_use(g, n.number), pad, dy.data());
        weight_gradient(inputs + int64_t(g) * k.s.inputs(), dy.data(), pad, &weights[size_t(chunk) * k.s.weights()],
                        k.s);
        for (int c = 0; c < k.s.out && bias; c++) {
          Vec sum{};
          for (int i = 0; i < high * wide; i++) sum += dy[size_t(c) * high * wide + i];
          biases[chunk * k.s.out + c] += lane_sum(sum);
        }
        then(g, dy.data());
      }
    });
    for (int chunk = 0; chunk < chunks; chunk++) {
      for (int i = 0; i < k.s.weights(); i++) weight.data<float>()[i] += weights[size_t(chunk) * k.s.weights() + i];
      for (int c = 0; c < k.s.out && bias; c++) bias->data<float>()[c] += biases[chunk * k.s.out + c];
    }
  };

  parallel(n.groups, n.threads, [&](int g) {
    Vec* d = &d2[int64_t(g) * two.s.pooled()];
    pack(features_grad, n.number, g, two.s.pooled(), d);
    gradient_sums(two, kept.y2 + int64_t(g) * two.s.outputs(), n.statistics_of(two, kept.t2, g), d,
                  &sums2[g * two.s.out * 2]);
  });
  layer(two, kept.p1, kept.y2, kept.t2, d2, sums2, pad, found[own], two.bias ? &found[own + 1] : nullptr,
        [&](int g, const Vec* dy) {
          Vec* d = &d1[int64_t(g) * one.s.pooled()];
          const int high = two.s.h() + 2 * pad, wide = two.s.w() + 2 * pad;
          convolve(dy, mirrored.data(), nullptr, d, two.s.out, high, wide, two.s.in, pad, pad + two.s.h());
          gradient_sums(one, kept.y1 + int64_t(g) * one.s.outputs(), n.statistics_of(one, kept.t1, g), d,
                        &sums1[g * one.s.out * 2]);
        });
  layer(one, x, kept.y1, kept.t1, d1, sums1, 0, found[0], one.bias ? &found[1] : nullptr, [](int, const Vec*) {});
  if (norm != NONE) {
    const int scale = norm == BATCH ? 1 : 2;
    norm_gradients(one, sums1, found[scale], found[scale + 1]);
    norm_gradients(two, sums2, found[own + scale], found[own + scale + 1]);
  }
}

// Calls work(expert, threads) for each expert. Threads can share an expert's work, but a small batch has few parts. So
// several experts are computed at a time, a thread each; or, if that takes longer, one after another on all threads.
void for_each_expert(int experts, int parts, int threads, const std::function<void(int, int)>& work) {
  auto rounds = [&](int number) { return (number + threads - 1) / threads; };
  if (rounds(experts) * parts <= experts * rounds(parts))
    parallel(experts, threads, [&](int u) { work(u, 1); });
  else
    for (int u = 0; u < experts; u++) work(u, threads);
}

}  // namespace

std::vector<Tensor> BlocksForward(const Tensor& image, const Tensor& weights, const std::vector<Tensor>& parameters,
                                  int norm, int size, int threads) {
  [[maybe_unused]] const FlushDenormals flush;  // in the serial parts as well, so that threads change no bit
  const std::vector<int> used = experts_in_use(weights);
  const Blocks any(image, parameters.data(), norm, threads);
  const int own = 2 * TENSORS[norm], inputs = any.first.s.inputs();
  Tensor features = make({int64_t(used.size()), any.number, size});
  Tensor packed = make({std::max<int64_t>(1, int64_t(any.groups) * LANES * inputs)});
  AllKept kept(any, used.size());
  Vec* x = reinterpret_cast<Vec*>(packed.data<float>());
  parallel(any.groups, threads,
           [&](int g) { pack(image.data<float>(), any.number, g, inputs, x + int64_t(g) * inputs); });
  float* begin = features.data<float>();
  for_each_expert(any.number ? used.size() : 0, any.groups, threads, [&](int u, int its_threads) {
    forward(Blocks(image, &parameters[own * used[u]], norm, its_threads), x, kept.of(u),
            begin + int64_t(u) * any.number * size);
  });
  std::vector<Tensor> found{features, packed};
  found.insert(found.end(), kept.tensors.begin(), kept.tensors.end());
  return found;
}

std::vector<Tensor> BlocksBackward(const Tensor& image, const Tensor& weights, const std::vector<Tensor>& parameters,
                                   const Tensor& packed, const Tensor& y1, const Tensor& p1, const Tensor& y2,
                                   const Tensor& t1, const Tensor& t2, const Tensor& features_grad, int norm, int size,
                                   int threads) {
  [[maybe_unused]] const FlushDenormals flush;  // likewise
  const std::vector<int> used = experts_in_use(weights);
  const Blocks any(image, parameters.data(), norm, threads);
  const int own = 2 * TENSORS[norm];
  std::vector<Tensor> found = zeros_like(parameters, threads);
  AllKept kept({y1, p1, y2, t1, t2});
  const Vec* x = reinterpret_cast<const Vec*>(packed.data<float>());
  const float* begin = features_grad.data<float>();
  for_each_expert(any.number ? used.size() : 0, chunks_of(any.groups), threads, [&](int u, int its_threads) {
    backward(Blocks(image, &parameters[own * used[u]], norm, its_threads), x, kept.of(u),
             begin + int64_t(u) * any.number * size, &found[own * used[u]]);
  });
  return found;
}

std::vector<std::vector<int64_t>> BlocksShapes(const std::vector<int64_t>& image, const std::vector<int64_t>& weights,
                                               const std::vector<std::vector<int64_t>>& parameters, int norm,
                                               int size) {
  return {{-1, image[0], size}, {-1}, {-1, -1}, {-1, -1}, {-1, -1}, {-1, -1}, {-1, -1}};
}

std::vector<paddle::DataType> BlocksTypes(paddle::DataType image, paddle::DataType weights,
                                          const std::vector<paddle::DataType>& parameters) {
  return std::vector<paddle::DataType>(7, paddle::DataType::FLOAT32);
}

PD_BUILD_OP(dselect_k_cnns)
    .Inputs({"Image", "Weights", paddle::Vec("Parameters")})
    .Outputs({"Features", "Packed", "Y1", "P1", "Y2", "T1", "T2"})
    .Attrs({"norm: int", "size: int", "threads: int"})
    .SetKernelFn(PD_KERNEL(BlocksForward))
    .SetInferShapeFn(PD_INFER_SHAPE(BlocksShapes))
    .SetInferDtypeFn(PD_INFER_DTYPE(BlocksTypes));

PD_BUILD_GRAD_OP(dselect_k_cnns)
    .Inputs({"Image", "Weights", paddle::Vec("Parameters"), "Packed", "Y1", "P1", "Y2", "T1", "T2",
             paddle::Grad("Features")})
    .Outputs({paddle::Grad(paddle::Vec("Parameters"))})
    .Attrs({"norm: int", "size: int", "threads: int"})
    .SetKernelFn(PD_KERNEL(BlocksBackward));
