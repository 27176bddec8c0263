// Short rows that are no whole vectors, one row per lane. A warp copies a tile of 32 rows of both matrices into shared
// memory; where the rows are dense, the tile is one piece of memory, which vectors move although no row is a whole
// number of them. Then each lane computes its row alone, without shuffles, and the warp copies the gradient back in
// this way.
#pragma once

#include "cuda/row_loss/operands.cuh"

namespace zskd::cuda {
namespace {

constexpr int kTileThreads = 64;
constexpr int kTileClasses = kWarp;

// An element of both matrices, which one instruction moves. The term e, then the gradient, replace `a`; the term f
// replaces `b`.
template <class A>
struct alignas(2 * sizeof(A)) Both {
  A a, b;
};

// The places of the elements of a tile in shared memory. The rows start an odd number of elements apart, so that the
// lanes of a warp, each in its own row, access different banks: an element is left free after an even row.
struct TileShape {
  int classes;
  int inverse;  // 2^20 / classes, rounded up: i * inverse / 2^20 is i / classes for the at most 2^10 elements of a tile

  explicit TileShape(int64_t row_length)
      : classes(static_cast<int>(row_length)), inverse(((1 << 20) + classes - 1) / classes) {}

  __host__ __device__ int pitch() const { return classes | 1; }
  __device__ int row(int i) const { return i * inverse >> 20; }
  // Elements 2 j and 2 j + 1 are neighbors in the tile, too.
  __device__ int place(int i) const { return i + (i * (classes % 2 == 0 ? inverse : 0) >> 20); }
};

// Copies the elements i to i + kWidth - 1 of the tile whose first row is `first`. More than one are a piece of dense
// rows.
template <int kWidth, class Op, class T, class U, class A>
__device__ __forceinline__ void read_elements(const RowLoss<Op, T, U>& p, TileShape shape, int64_t first, int i,
                                              Both<A>* tile) {
  A a[kWidth], b[kWidth];
  const int row = kWidth > 1 ? 0 : shape.row(i), c = i - row * shape.classes;
  load<kWidth>(p.a + (first + row) * p.a_stride + c, a);
  load<kWidth>(p.b + (first + row) * p.b_stride + c, b);
#pragma unroll
  for (int j = 0; j < kWidth; ++j) tile[shape.place(i + j / 2 * 2) + j % 2] = {a[j], b[j]};
}

template <int kWidth, class Op, class T, class U, class A>
__device__ __forceinline__ void write_elements(const RowLoss<Op, T, U>& p, TileShape shape, int64_t first, int i,
                                               const Both<A>* tile) {
  A grad[kWidth];
#pragma unroll
  for (int j = 0; j < kWidth; ++j) grad[j] = tile[shape.place(i + j / 2 * 2) + j % 2].a;
  p.template write_grad<kWidth>(first * shape.classes + i, grad);
}

// The row of one lane.
template <class Op, class T, class U, class A>
__device__ __forceinline__ void tile_row(const RowLoss<Op, T, U>& p, int classes, int64_t row, Both<A>* elements) {
  A a_max = -math::infinity<A>(), b_max = Op::kOtherIsLogits ? -math::infinity<A>() : A(0);
#pragma unroll 4
  for (int c = 0; c < classes; ++c) {
    const Both<A> element = elements[c];
    a_max = larger(a_max, element.a);
    if constexpr (Op::kOtherIsLogits) b_max = larger(b_max, element.b);
  }
  math::RowSums<A> sum = {0, 0, 0};
#pragma unroll 4
  for (int c = 0; c < classes; ++c) {
    const math::RowTerm<A> term = p.term(elements[c].a, elements[c].b, a_max, b_max);
    elements[c] = {term.e, term.f};
    sum = {sum.e + term.e, sum.f + term.f, sum.dot + term.dot};
  }
  p.write_loss(row, sum);
  if (!p.grad) return;
  const math::RowFactors<A> factor = Op::factors(sum, p.grad_scale);
#pragma unroll 4
  for (int c = 0; c < classes; ++c) {
    const Both<A> term = elements[c];
    elements[c].a = math::row_gradient(term.a, term.b, factor);
  }
}

template <class Op, class T, class U>
struct TileRows {
  RowLoss<Op, T, U> loss;
  TileShape shape;
};

template <class Op, class T, class U, int kWidth>
__global__ void __launch_bounds__(kTileThreads, kLeastBlocks<T>) tile_rows(const TileRows<Op, T, U> arguments) {
  const RowLoss<Op, T, U>& p = arguments.loss;
  const TileShape shape = arguments.shape;
  const int lane = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
  auto* const tile = reinterpret_cast<Both<accumulate_t<T>>*>(dynamic_shared_memory) + warp * kWarp * shape.pitch();

  for (int64_t first = grid_thread() / kWarp * kWarp; first < p.rows; first += grid_threads()) {
    const int rows = static_cast<int>(p.rows - first < kWarp ? p.rows - first : kWarp);
    const int count = rows * shape.classes, whole = count / kWidth * kWidth;
#pragma unroll 1
    for (int i = lane * kWidth; i < whole; i += kWarp * kWidth) read_elements<kWidth>(p, shape, first, i, tile);
#pragma unroll 1
    for (int i = whole + lane; i < count; i += kWarp) read_elements<1>(p, shape, first, i, tile);
    __syncwarp();
    if (lane < rows) tile_row(p, shape.classes, first + lane, tile + lane * shape.pitch());
    __syncwarp();
    if (p.grad) {
#pragma unroll 1
      for (int i = lane * kWidth; i < whole; i += kWarp * kWidth) write_elements<kWidth>(p, shape, first, i, tile);
#pragma unroll 1
      for (int i = whole + lane; i < count; i += kWarp) write_elements<1>(p, shape, first, i, tile);
      __syncwarp();  // all lanes have read the gradient before the next tile overwrites it
    }
  }
}

template <int kWidth, class Op, class T, class U>
void launch_tiles(const char* op, const RowLoss<Op, T, U>& p, cudaStream_t stream) {
  const TileShape shape(p.classes);
  const int bytes = kTileThreads * shape.pitch() * static_cast<int>(sizeof(Both<accumulate_t<T>>));
  launch(op, tile_rows<Op, T, U, kWidth>, TileRows<Op, T, U>{p, shape}, p.rows, kTileThreads, kTileThreads, stream,
         bytes);
}

}  // namespace
}  // namespace zskd::cuda
