// Two blocks of 5 x 5 convolution, norm, max-pooling by 2 and ReLU, forward and backward.
//
// A vector holds the same place of LANES images, so every loop is the plain formula, and no lane is idle whatever the
// image's width. "Packed" is [image group][channel][row][column] of such vectors.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "parallel.h"

#if defined(__AVX512F__)
constexpr int LANES = 16, OUT = 10, WIDE = 2;
#else
constexpr int LANES = 8, OUT = 5, WIDE = 2;
#endif
typedef float Vec __attribute__((vector_size(LANES * 4), aligned(4)));  // in tensors, which may begin anywhere
typedef int32_t Mask __attribute__((vector_size(LANES * 4), aligned(4)));
constexpr int K = 5;  // width of the kernel

enum Norm { NONE = 0, BATCH = 1, GROUP = 2 };

struct Sizes {
  int in, high, wide, out;  // channels, and the image's height and width; channels after the convolution
  int h() const { return high - K + 1; }
  int w() const { return wide - K + 1; }
  int inputs() const { return in * high * wide; }
  int outputs() const { return out * h() * w(); }
  int pooled() const { return out * (h() / 2) * (w() / 2); }
  int weights() const { return out * in * K * K; }
};

// weights [out][in][K][K] -> [out / OUT][in][K][K][OUT], which convolve reads; or, for the gradient of the input, that
// of the mirrored kernels with in and out exchanged
inline std::vector<float> arranged(const float* weights, const Sizes& s, bool mirrored) {
  int out = mirrored ? s.in : s.out, in = mirrored ? s.out : s.in;
  int padded = (out + OUT - 1) / OUT * OUT;
  std::vector<float> found(size_t(padded) * in * K * K, 0.f);
  for (int o = 0; o < out; o++)
    for (int c = 0; c < in; c++)
      for (int t = 0; t < K * K; t++)
        found[((size_t(o / OUT) * in + c) * K * K + t) * OUT + o % OUT] =
            mirrored ? weights[(size_t(c) * s.in + o) * K * K + K * K - 1 - t]
                     : weights[(size_t(o) * s.in + c) * K * K + t];
  return found;
}

// y [out][high - 4][wide - 4] = x [in][high][wide] * weights + bias, of one group of images. Rows above `first` and
// from `last` on are zeros in x, and skipped.
inline void convolve(const Vec* x, const float* weights, const float* bias, Vec* y, int in, int high, int wide, int out,
                     int first, int last) {
  const int h = high - K + 1, w = wide - K + 1;
  for (int o0 = 0; o0 < out; o0 += OUT)
    for (int r = 0; r < h; r++)
      for (int q0 = 0; q0 < w; q0 += WIDE) {
        const int q = std::min(q0, w - WIDE), from = std::max(0, first - r), to = std::min(K, last - r);
        Vec sum[OUT][WIDE];
        for (int o = 0; o < OUT; o++)
          for (int j = 0; j < WIDE; j++) sum[o][j] = Vec{} + (bias && o0 + o < out ? bias[o0 + o] : 0.f);
        for (int c = 0; c < in; c++)
          for (int dy = from; dy < to; dy++) {
            const Vec* row = x + (size_t(c) * high + r + dy) * wide + q;
            const float* weight = weights + ((size_t(o0 / OUT) * in + c) * K + dy) * K * OUT;
#pragma GCC unroll 5
            for (int dx = 0; dx < K; dx++)
#pragma GCC unroll 10
              for (int o = 0; o < OUT; o++)
#pragma GCC unroll 2
                for (int j = 0; j < WIDE; j++) sum[o][j] += row[j + dx] * weight[dx * OUT + o];
          }
        for (int o = 0; o < std::min(OUT, out - o0); o++)
          for (int j = 0; j < WIDE; j++) y[(size_t(o0 + o) * h + r) * w + q + j] = sum[o][j];
      }
}

// gradient [out][in][K][K] += sum over places and images of dy [out][h][w], padded on each side, with x
// [in][high][wide]
inline void weight_gradient(const Vec* x, const Vec* dy, int pad, float* gradient, const Sizes& s) {
  const int h = s.h(), w = s.w(), wide = w + 2 * pad;
  constexpr int SOME = 5;  // of 10 or 20
  for (int o0 = 0; o0 < s.out; o0 += SOME)
    for (int c = 0; c < s.in; c++)
      for (int ky = 0; ky < K; ky++) {
        Vec sum[SOME][K];
        for (int o = 0; o < SOME; o++)
          for (int kx = 0; kx < K; kx++) sum[o][kx] = Vec{};
        for (int r = 0; r < h; r++) {
          const Vec* row = x + (size_t(c) * s.high + r + ky) * s.wide;
          for (int q = 0; q < w; q++)
#pragma GCC unroll 5
            for (int o = 0; o < SOME; o++) {
              const Vec d = dy[(size_t(o0 + o) * (h + 2 * pad) + r + pad) * wide + pad + q];
#pragma GCC unroll 5
              for (int kx = 0; kx < K; kx++) sum[o][kx] += d * row[q + kx];
            }
        }
        for (int o = 0; o < SOME; o++)
          for (int kx = 0; kx < K; kx++) {
            float total = 0;
            for (int l = 0; l < LANES; l++) total += sum[o][kx][l];
            gradient[((size_t(o0 + o) * s.in + c) * K + ky) * K + kx] += total;
          }
      }
}

// ------------------------------------------------------------------------------------ norm, pooling, ReLU

constexpr int CHANNELS = 5;  // that group norm takes together
constexpr float EPSILON = 1e-5f;

struct Block {
  Sizes s;
  Norm norm;
  const float *weight, *bias, *scale, *shift;  // the last three may be null
  int groups() const { return s.out / CHANNELS; }
};

inline float lane_sum(const Vec& v) {
  float sum = 0;
  for (int l = 0; l < LANES; l++) sum += v[l];
  return sum;
}

// 1 for the lanes that hold an image, of the group of images g
inline Vec lanes_in_use(int g, int number) {
  Vec found;
  for (int l = 0; l < LANES; l++) found[l] = g * LANES + l < number ? 1.f : 0.f;
  return found;
}

// What a channel's norm makes of y: a y + b; and x^ = (y - mean) inverse.
struct Affine {
  Vec a, b, mean, inverse;
};

// statistics: [2][out] means and inverse deviations of a batch; or, of group norm, of this group of images, [groups][2]
// Vec
inline Affine affine(const Block& k, const float* statistics, int c) {
  if (k.norm == NONE) return {Vec{} + 1.f, Vec{}, Vec{}, Vec{} + 1.f};
  Vec mean, inverse;
  if (k.norm == BATCH) {
    mean = Vec{} + statistics[c], inverse = Vec{} + statistics[k.s.out + c];
  } else {
    const Vec* own = reinterpret_cast<const Vec*>(statistics) + 2 * (c / CHANNELS);
    mean = own[0], inverse = own[1];
  }
  const Vec a = inverse * k.scale[c];
  return {a, k.shift[c] - mean * a, mean, inverse};
}

// Means and inverse deviations of group norm, of one group of images: [groups][2].
inline void group_statistics(const Block& k, const Vec* y, Vec* found) {
  const int size = CHANNELS * k.s.h() * k.s.w();
  for (int i = 0; i < k.groups(); i++, y += size) {
    Vec sum{}, square{};
    for (int j = 0; j < size; j++) sum += y[j];
    const Vec mean = sum / float(size);
    for (int j = 0; j < size; j++) square += (y[j] - mean) * (y[j] - mean);
    const Vec variance = square / float(size) + EPSILON;
    found[2 * i] = mean;
    for (int l = 0; l < LANES; l++) found[2 * i + 1][l] = 1.f / std::sqrt(variance[l]);
  }
}

// Sum of a channel over a group of images, and of the squared distances from its mean there: [out][2].
inline void moments(const Sizes& s, const Vec* y, const Vec& in_use, double* found) {
  const int size = s.h() * s.w();
  const float number = lane_sum(in_use) * size;
  for (int c = 0; c < s.out; c++, y += size) {
    Vec sum{}, square{};
    for (int j = 0; j < size; j++) sum += y[j];
    const double total = lane_sum(sum * in_use);
    const float mean = float(total / number);
    for (int j = 0; j < size; j++) square += (y[j] - mean) * (y[j] - mean);
    found[2 * c] = total, found[2 * c + 1] = lane_sum(square * in_use);
  }
}

// The largest of four places of a window, and which it is. NaN is larger than any number.
struct Largest {
  Vec value;
  Mask place;
};

inline Largest largest(const Vec* y, int wide, const Affine& f) {
  Largest found{y[0] * f.a + f.b, Mask{}};
  for (int i = 1; i < 4; i++) {
    const Vec z = y[i / 2 * wide + i % 2] * f.a + f.b;
    const Mask larger = (z > found.value) | (z != z);
    found.value = larger ? z : found.value;
    found.place = larger ? Mask{} + i : found.place;
  }
  return found;
}

// p [out][h / 2][w / 2] = ReLU of the largest of each window of a y + b
inline void pool(const Block& k, const Vec* y, const float* statistics, Vec* p) {
  const int h = k.s.h(), w = k.s.w();
  for (int c = 0; c < k.s.out; c++, y += h * w) {
    const Affine f = affine(k, statistics, c);
    for (int r = 0; r + 1 < h; r += 2)
      for (int q = 0; q + 1 < w; q += 2, p++) {
        const Vec top = largest(y + r * w + q, w, f).value;
        *p = top <= 0.f ? Vec{} : top;
      }
  }
}

// Of each channel: sum over the windows of d and of d x^ at the window's largest place, where ReLU lets d pass:
// [out][2].
inline void gradient_sums(const Block& k, const Vec* y, const float* statistics, const Vec* d, Vec* found) {
  const int h = k.s.h(), w = k.s.w();
  for (int c = 0; c < k.s.out; c++, y += h * w) {
    const Affine f = affine(k, statistics, c);
    Vec sum{}, product{};
    for (int r = 0; r + 1 < h; r += 2)
      for (int q = 0; q + 1 < w; q += 2, d++) {
        const Vec* at = y + r * w + q;
        const Largest top = largest(at, w, f);
        Vec value = at[0];
        for (int i = 1; i < 4; i++) value = top.place == i ? at[i / 2 * w + i % 2] : value;
        const Vec passed = top.value > 0.f ? *d : Vec{};
        sum += passed, product += passed * (value - f.mean) * f.inverse;
      }
    found[2 * c] = sum, found[2 * c + 1] = product;
  }
}

// dy [out][h][w], padded on each side by `pad` zeros: through ReLU, pooling and norm. `sums` of the channel's own norm
// group, as of gradient_sums; `number` of the values that they are over.
inline void unpool(const Block& k, const Vec* y, const float* statistics, const Vec* d, const std::vector<Vec>& sums,
                   float number, const Vec& in_use, int pad, Vec* dy) {
  const int h = k.s.h(), w = k.s.w(), wide = w + 2 * pad;
  for (int c = 0; c < k.s.out; c++, y += h * w) {
    const Affine f = affine(k, statistics, c);
    // dy = inverse (scale dz - mean(scale dz) - x^ mean(scale dz x^)) = a dz + b y + e
    Vec b{}, e{};
    if (k.norm != NONE) {
      const Vec product = sums[2 * c + 1] * f.inverse * f.inverse / number;
      b = -product;
      e = product * f.mean - sums[2 * c] * f.inverse / number;
    }
    Vec* to = dy + size_t(c) * (h + 2 * pad) * wide + pad * wide + pad;
    for (int r = 0; r < h; r++)
      for (int q = 0; q < w; q++) to[r * wide + q] = (b * y[r * w + q] + e) * in_use;
    for (int r = 0; r + 1 < h; r += 2)
      for (int q = 0; q + 1 < w; q += 2, d++) {
        const Largest top = largest(y + r * w + q, w, f);
        const Vec passed = (top.value > 0.f ? *d : Vec{}) * f.a;
        for (int i = 0; i < 4; i++) to[(r + i / 2) * wide + q + i % 2] += top.place == i ? passed : Vec{};
      }
  }
}
