// What several operators share: new tensors, and the experts that gates need.
#pragma once
#include <algorithm>
#include <vector>

#include "paddle/extension.h"
#include "parallel.h"

inline paddle::Tensor make(const std::vector<int64_t>& shape) {
  return paddle::empty(shape, paddle::DataType::FLOAT32, paddle::CPUPlace());
}

// A gradient of zeros for each tensor. (paddle::zeros would run a kernel of Paddle's for each.)
inline std::vector<paddle::Tensor> zeros_like(const std::vector<paddle::Tensor>& tensors, int threads) {
  std::vector<paddle::Tensor> found;
  std::vector<float*> begins;
  for (const paddle::Tensor& each : tensors) {
    found.push_back(make(each.shape()));
    begins.push_back(found.back().data<float>());
  }
  parallel(tensors.size(), threads, [&](int i) { std::fill_n(begins[i], tensors[i].numel(), 0.f); });
  return found;
}

// weights: the gates', [T][n]. The experts with a weight > 0 for any gate.
inline std::vector<int> experts_in_use(const paddle::Tensor& weights) {
  std::vector<int> found;
  const int tasks = weights.shape()[0], experts = weights.shape()[1];
  for (int i = 0; i < experts; i++)
    for (int t = 0; t < tasks; t++)
      if (weights.data<float>()[t * experts + i] > 0) {
        found.push_back(i);
        break;
      }
  return found;
}
