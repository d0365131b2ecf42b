// Products of matrices that are too small for a library's call to pay, by vectors along the columns.
#pragma once
#include "blocks.h"

#if defined(__AVX512F__)
constexpr int ROWS = 8;
#else
constexpr int ROWS = 4;
#endif

inline int padded(int columns) { return (columns + LANES - 1) / LANES * LANES; }

// A matrix whose element (r, c) is data[r * row + c * column].
struct Matrix {
  float* data;
  int64_t row, column;
};

template <int VECTORS>
inline void product_part(Matrix a, const float* b, int64_t b_row, const float* bias, bool relu, bool add, float* c,
                         int64_t c_row, int rows, int inner) {
  for (int r0 = 0; r0 < rows; r0 += ROWS) {
    const float* at[ROWS];
    for (int i = 0; i < ROWS; i++) at[i] = a.data + std::min(r0 + i, rows - 1) * a.row;
    Vec sum[ROWS][VECTORS];
    for (int i = 0; i < ROWS; i++)
      for (int v = 0; v < VECTORS; v++) sum[i][v] = bias ? *reinterpret_cast<const Vec*>(bias + v * LANES) : Vec{};
    for (int k = 0; k < inner; k++) {
      Vec values[VECTORS];
      for (int v = 0; v < VECTORS; v++) values[v] = *reinterpret_cast<const Vec*>(b + k * b_row + v * LANES);
#pragma GCC unroll 8
      for (int i = 0; i < ROWS; i++)
#pragma GCC unroll 2
        for (int v = 0; v < VECTORS; v++) sum[i][v] += values[v] * at[i][k * a.column];
    }
    for (int i = 0; i < std::min(ROWS, rows - r0); i++)
      for (int v = 0; v < VECTORS; v++) {
        Vec* to = reinterpret_cast<Vec*>(c + (r0 + i) * c_row + v * LANES);
        const Vec total = add ? *to + sum[i][v] : sum[i][v];
        *to = relu ? (total <= 0.f ? Vec{} : total) : total;
      }
  }
}

// c [rows][columns] = a [rows][inner] b [inner][columns] + bias [columns], or 0; then ReLU; `add`: to what c holds.
// The columns of b, bias and c are padded to whole vectors.
inline void product(Matrix a, const float* b, const float* bias, bool relu, bool add, float* c, int rows, int inner,
                    int columns) {
  const int wide = padded(columns);
  for (int at = 0; at < wide; at += 2 * LANES) {
    const float* some = bias ? bias + at : nullptr;
    if (wide - at > LANES)
      product_part<2>(a, b + at, wide, some, relu, add, c + at, wide, rows, inner);
    else
      product_part<1>(a, b + at, wide, some, relu, add, c + at, wide, rows, inner);
  }
}
