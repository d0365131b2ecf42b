// The operator dselect_k_cnn: the two blocks of net.py's CNN in training, forward and backward. See __init__.py.
#include "blocks.h"
#include "paddle/extension.h"

using paddle::Tensor;

namespace {

// Number of a block's tensors, by Norm. NONE: weight, bias. BATCH: weight, scale, shift, running mean and variance.
// GROUP: weight, bias, scale, shift.
constexpr int TENSORS[] = {2, 5, 4};

struct Blocks {
  Block first, second;
  int number, groups, threads;
  Blocks(const Tensor& image, const std::vector<Tensor>& parameters, int norm, int threads)
      : number(image.shape()[0]), groups((number + LANES - 1) / LANES), threads(threads) {
    const auto shape = image.shape();
    const Tensor *one = &parameters[0], *two = one + TENSORS[norm];
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

}  // namespace

// Under batch norm the running statistics move. That is not declared to Paddle: it would make them outputs, to which a
// gradient belongs.
std::vector<Tensor> Forward(const Tensor& image, const std::vector<Tensor>& parameters, int norm, int size,
                            int threads) {
  const Blocks n(image, parameters, norm, threads);
  const Block &one = n.first, &two = n.second;
  auto make = [](int64_t size) { return paddle::empty({size}, paddle::DataType::FLOAT32, paddle::CPUPlace()); };
  Tensor features = paddle::empty({n.number, two.s.pooled()}, paddle::DataType::FLOAT32, paddle::CPUPlace());
  const int64_t vectors = int64_t(n.groups) * LANES;
  Tensor x = make(std::max<int64_t>(1, vectors * one.s.inputs())),
         y1 = make(std::max<int64_t>(1, vectors * one.s.outputs()));
  Tensor p1 = make(std::max<int64_t>(1, vectors * one.s.pooled())),
         y2 = make(std::max<int64_t>(1, vectors * two.s.outputs()));
  Tensor t1 = make(n.statistics(one)), t2 = make(n.statistics(two));
  std::vector<Tensor> found{features, x, y1, p1, y2, t1, t2};
  if (!n.number) return found;
  auto at = [](Tensor& tensor, int64_t g, int size) { return reinterpret_cast<Vec*>(tensor.data<float>()) + g * size; };
  const auto arranged1 = arranged(one.weight, one.s, false), arranged2 = arranged(two.weight, two.s, false);
  std::vector<double> moments1(n.groups * one.s.out * 2), moments2(n.groups * two.s.out * 2);
  auto after = [&](const Block& k, Tensor& t, std::vector<double>& sums, const Vec* y, int g) {
    if (k.norm == GROUP) group_statistics(k, y, at(t, g, 2 * k.groups()));
    if (k.norm == BATCH) moments(k.s, y, lanes_in_use(g, n.number), &sums[g * k.s.out * 2]);
  };
  auto between = [&](const Block& k, Tensor& t, std::vector<double>& sums, int first) {
    if (k.norm != BATCH) return;
    auto running = [&](int i) { return const_cast<float*>(parameters[first + i].data<float>()); };
    batch_statistics(n, k, sums, t.data<float>(), running(3), running(4));
  };
  parallel(n.groups, threads, [&](int g) {
    pack(image.data<float>(), n.number, g, one.s.inputs(), at(x, g, one.s.inputs()));
    Vec* y = at(y1, g, one.s.outputs());
    convolve(at(x, g, one.s.inputs()), arranged1.data(), one.bias, y, one.s.in, one.s.high, one.s.wide, one.s.out, 0,
             one.s.high);
    after(one, t1, moments1, y, g);
  });
  between(one, t1, moments1, 0);
  parallel(n.groups, threads, [&](int g) {
    Vec *p = at(p1, g, one.s.pooled()), *y = at(y2, g, two.s.outputs());
    pool(one, at(y1, g, one.s.outputs()), n.statistics_of(one, t1.data<float>(), g), p);
    convolve(p, arranged2.data(), two.bias, y, two.s.in, two.s.high, two.s.wide, two.s.out, 0, two.s.high);
    after(two, t2, moments2, y, g);
  });
  between(two, t2, moments2, TENSORS[BATCH]);
  parallel(n.groups, threads, [&](int g) {
    std::vector<Vec> p(two.s.pooled());
    pool(two, at(y2, g, two.s.outputs()), n.statistics_of(two, t2.data<float>(), g), p.data());
    unpack(p.data(), n.number, g, two.s.pooled(), features.data<float>());
  });
  return found;
}

std::vector<Tensor> Backward(const Tensor& image, const std::vector<Tensor>& parameters, const Tensor& x,
                             const Tensor& y1, const Tensor& p1, const Tensor& y2, const Tensor& t1, const Tensor& t2,
                             const Tensor& features_grad, int norm, int size, int threads) {
  const Blocks n(image, parameters, norm, threads);
  const Block &one = n.first, &two = n.second;
  std::vector<Tensor> found;
  for (const Tensor& each : parameters) found.push_back(paddle::zeros(each.shape(), each.dtype(), paddle::CPUPlace()));
  if (!n.number) return found;
  const int own = TENSORS[norm], pad = K - 1;
  auto at = [](const Tensor& tensor, int64_t g, int size) {
    return reinterpret_cast<const Vec*>(tensor.data<float>()) + g * size;
  };
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
  constexpr int SOME = 4;  // groups of images whose gradients are added up at once, whatever the number of threads
  const int chunks = (n.groups + SOME - 1) / SOME;
  auto layer = [&](const Block& k, const Tensor& inputs, const Tensor& outputs, const Tensor& t,
                   const std::vector<Vec>& d, const std::vector<Vec>& sums, int pad, Tensor& weight, Tensor* bias,
                   const std::function<void(int, const Vec*)>& then) {
    const int high = k.s.h() + 2 * pad, wide = k.s.w() + 2 * pad, places = k.s.h() * k.s.w();
    std::vector<float> weights(size_t(chunks) * k.s.weights()), biases(size_t(chunks) * k.s.out);
    const std::vector<Vec> of_batch = k.norm == BATCH ? norm_sums(k, sums, 0) : std::vector<Vec>();
    const float number = k.norm == BATCH ? float(n.number) * places : float(CHANNELS) * places;
    parallel(chunks, n.threads, [&](int chunk) {
      std::vector<Vec> dy(size_t(k.s.out) * high * wide, Vec{});
      for (int g = chunk * SOME; g < std::min(n.groups, (chunk + 1) * SOME); g++) {
        unpool(k, at(outputs, g, k.s.outputs()), n.statistics_of(k, t.data<float>(), g), &d[int64_t(g) * k.s.pooled()],
               k.norm == BATCH ? of_batch : norm_sums(k, sums, g), number, lanes_in_use(g, n.number), pad, dy.data());
        weight_gradient(at(inputs, g, k.s.inputs()), dy.data(), pad, &weights[size_t(chunk) * k.s.weights()], k.s);
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

  parallel(n.groups, threads, [&](int g) {
    Vec* d = &d2[int64_t(g) * two.s.pooled()];
    pack(features_grad.data<float>(), n.number, g, two.s.pooled(), d);
    gradient_sums(two, at(y2, g, two.s.outputs()), n.statistics_of(two, t2.data<float>(), g), d,
                  &sums2[g * two.s.out * 2]);
  });
  layer(two, p1, y2, t2, d2, sums2, pad, found[own], two.bias ? &found[own + 1] : nullptr, [&](int g, const Vec* dy) {
    Vec* d = &d1[int64_t(g) * one.s.pooled()];
    const int high = two.s.h() + 2 * pad, wide = two.s.w() + 2 * pad;
    convolve(dy, mirrored.data(), nullptr, d, two.s.out, high, wide, two.s.in, pad, pad + two.s.h());
    gradient_sums(one, at(y1, g, one.s.outputs()), n.statistics_of(one, t1.data<float>(), g), d,
                  &sums1[g * one.s.out * 2]);
  });
  layer(one, x, y1, t1, d1, sums1, 0, found[0], one.bias ? &found[1] : nullptr, [](int, const Vec*) {});
  if (norm != NONE) {
    const int scale = norm == BATCH ? 1 : 2;
    norm_gradients(one, sums1, found[scale], found[scale + 1]);
    norm_gradients(two, sums2, found[own + scale], found[own + scale + 1]);
  }
  return found;
}

std::vector<std::vector<int64_t>> Shapes(const std::vector<int64_t>& image,
                                         const std::vector<std::vector<int64_t>>& parameters, int norm, int size) {
  return {{image[0], size}, {-1}, {-1}, {-1}, {-1}, {-1}, {-1}};
}

std::vector<paddle::DataType> Types(paddle::DataType image, const std::vector<paddle::DataType>& parameters) {
  return std::vector<paddle::DataType>(7, paddle::DataType::FLOAT32);
}

PD_BUILD_OP(dselect_k_cnn)
    .Inputs({"Image", paddle::Vec("Parameters")})
    .Outputs({"Features", "X", "Y1", "P1", "Y2", "T1", "T2"})
    .Attrs({"norm: int", "size: int", "threads: int"})
    .SetKernelFn(PD_KERNEL(Forward))
    .SetInferShapeFn(PD_INFER_SHAPE(Shapes))
    .SetInferDtypeFn(PD_INFER_DTYPE(Types));

PD_BUILD_GRAD_OP(dselect_k_cnn)
    .Inputs({"Image", paddle::Vec("Parameters"), "X", "Y1", "P1", "Y2", "T1", "T2", paddle::Grad("Features")})
    .Outputs({paddle::Grad(paddle::Vec("Parameters"))})
    .Attrs({"norm: int", "size: int", "threads: int"})
    .SetKernelFn(PD_KERNEL(Backward));
