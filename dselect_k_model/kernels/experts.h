// The experts that gates need.
#pragma once
#include <vector>

#include "paddle/extension.h"

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
