// The operator dselect_k_join: dense features and the embeddings of ids side by side, forward and backward. See
// __init__.py.
#include "experts.h"
#include "paddle/extension.h"

using paddle::Tensor;

namespace {

constexpr int CHUNK = 128;  // rows of the batch that a thread joins at once
constexpr int GROUP = 8;    // fields whose gradients a thread adds up at once

typedef float Four __attribute__((vector_size(16), aligned(4)));

// Copy or add a vector that is too short for a call of memcpy to pay.
template <bool add>
inline void put(const float* from, int64_t size, float* to) {
  int64_t i = 0;
  for (; i + 4 <= size; i += 4) {
    const Four value = *reinterpret_cast<const Four*>(from + i);
    Four& goal = *reinterpret_cast<Four*>(to + i);
    goal = add ? goal + value : value;
  }
  for (; i < size; i++) to[i] = add ? to[i] + from[i] : from[i];
}

// What both directions read. Row r of the output has the dense features, and then each field's embedding.
struct Join {
  const int64_t* ids;  // [rows][fields]
  const std::vector<int>& ends;
  int64_t rows, fields, dense, size;
  Join(const Tensor& dense, const Tensor& ids, const Tensor& embedding, const std::vector<int>& ends)
      : ids(ids.data<int64_t>()),
        ends(ends),
        rows(ids.shape()[0]),
        fields(ids.shape()[1]),
        dense(dense.shape()[1]),
        size(embedding.shape()[1]) {
    PD_CHECK(dense.shape()[0] == rows, "there are ", dense.shape()[0], " rows of dense features, but ", rows,
             " rows of ids");
    PD_CHECK(int64_t(ends.size()) == fields, "there are ids of ", fields, " sparse fields, but vocabularies of ",
             ends.size());
    PD_CHECK(embedding.shape()[0] >= ends.back(), "there are embeddings of ", embedding.shape()[0],
             " ids, but the vocabularies have ", ends.back());
  }
  int64_t width() const { return dense + fields * size; }
  int64_t begin(int64_t field) const { return field ? ends[field - 1] : 0; }
  // The row of the embedding table for an id, which counts from its field's first row.
  int64_t row_of(int64_t r, int64_t field) const {
    const int64_t id = ids[r * fields + field];
    PD_CHECK(id >= 0 && id < ends[field] - begin(field), "the id ", id, " of sparse field ", field,
             " is not from 0 to ", ends[field] - begin(field) - 1);
    return begin(field) + id;
  }
};

}  // namespace

// ends: of each field, the number of the embedding table's rows up to its last one. Rows after the last field's are not
// read: they are of lists.
std::vector<Tensor> JoinForward(const Tensor& dense, const Tensor& ids, const Tensor& embedding,
                                const std::vector<int>& ends, int threads) {
  const Join j(dense, ids, embedding, ends);
  Tensor joined = make({j.rows, j.width()});
  const float *features = dense.data<float>(), *vectors = embedding.data<float>();
  float* to = joined.data<float>();
  parallel((j.rows + CHUNK - 1) / CHUNK, threads, [&](int chunk) {
    for (int64_t r = chunk * CHUNK; r < std::min<int64_t>(j.rows, (chunk + 1) * CHUNK); r++) {
      float* at = std::copy_n(features + r * j.dense, j.dense, to + r * j.width());
      for (int64_t f = 0; f < j.fields; f++, at += j.size) put<false>(vectors + j.row_of(r, f) * j.size, j.size, at);
    }
  });
  return {joined};
}

// Only of the embedding table. A field's rows are one thread's, which adds in the batch's order.
std::vector<Tensor> JoinBackward(const Tensor& dense, const Tensor& ids, const Tensor& embedding,
                                 const Tensor& joined_grad, const std::vector<int>& ends, int threads) {
  const Join j(dense, ids, embedding, ends);
  Tensor found = make(embedding.shape());
  const float* from = joined_grad.data<float>();
  float* gradient = found.data<float>();
  parallel((j.fields + GROUP - 1) / GROUP, threads, [&](int group) {
    const int64_t first = group * GROUP, end = std::min<int64_t>(first + GROUP, j.fields);
    const int64_t last = end == j.fields ? embedding.shape()[0] : j.begin(end);
    std::fill(gradient + j.begin(first) * j.size, gradient + last * j.size, 0.f);
    for (int64_t r = 0; r < j.rows; r++) {
      const float* of_vectors = from + r * j.width() + j.dense;
      for (int64_t f = first; f < end; f++)
        put<true>(of_vectors + f * j.size, j.size, gradient + j.row_of(r, f) * j.size);
    }
  });
  return {found};
}

std::vector<std::vector<int64_t>> JoinShapes(const std::vector<int64_t>& dense, const std::vector<int64_t>& ids,
                                             const std::vector<int64_t>& embedding, const std::vector<int>& ends,
                                             int threads) {
  return {{ids[0], dense[1] < 0 ? -1 : dense[1] + int64_t(ends.size()) * embedding[1]}};
}

std::vector<paddle::DataType> JoinTypes(paddle::DataType dense, paddle::DataType ids, paddle::DataType embedding) {
  return {paddle::DataType::FLOAT32};
}

PD_BUILD_OP(dselect_k_join)
    .Inputs({"Dense", "Ids", "Embedding"})
    .Outputs({"Joined"})
    .Attrs({"ends: std::vector<int>", "threads: int"})
    .SetKernelFn(PD_KERNEL(JoinForward))
    .SetInferShapeFn(PD_INFER_SHAPE(JoinShapes))
    .SetInferDtypeFn(PD_INFER_DTYPE(JoinTypes));

PD_BUILD_GRAD_OP(dselect_k_join)
    .Inputs({"Dense", "Ids", "Embedding", paddle::Grad("Joined")})
    .Outputs({paddle::Grad("Embedding")})
    .Attrs({"ends: std::vector<int>", "threads: int"})
    .SetKernelFn(PD_KERNEL(JoinBackward));
