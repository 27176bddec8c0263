// The two row losses (math/row_loss.h) on a device: the choice of the kernel. From short to long rows: a lane per row,
// if the rows are short and no whole vectors (tile_rows); a group of lanes per row (group_rows); a block per row in
// registers (block_rows); and a block per row that is read twice (long_rows).
#pragma once

#include "cuda/row_loss/long_rows.cuh"
#include "cuda/row_loss/register_rows.cuh"
#include "cuda/row_loss/tile_rows.cuh"

namespace zskd::cuda {
namespace {

// The lanes of the smallest group that holds a row; at least two if a row has two vectors, which then fill a sector of
// 32 bytes with each access.
template <class T>
int lanes_for(int64_t classes) {
  int lanes = classes > kVector<T> ? 2 : 1;
  while (int64_t{lanes} * kGroupItems<T> < classes) lanes *= 2;
  return lanes;
}

template <int kWidth, class Op, class T, class U>
void launch_rows(const char* op, RowLoss<Op, T, U> p, cudaStream_t stream) {
  if (p.classes <= kGroupClasses<T>) {
    p.lanes = lanes_for<T>(p.classes);
    return launch(op, group_rows<Op, T, U, kWidth>, p, p.rows, kGroupThreads / p.lanes, kGroupThreads, stream);
  }
  if (p.classes <= kBlockClasses<T>) {
    const int warps = static_cast<int>(ceil_div(p.classes, kWarpClasses<T>));
    return launch(op, block_rows<Op, T, U, kWidth>, p, p.rows, 1, warps * kWarp, stream);
  }
  launch(op, long_rows<Op, T, U, kWidth>, p, p.rows, 1, kLongRowThreads, stream);
}

template <class Op, class T, class U>
void run_typed(const char* op, const RowLossParams& params, cudaStream_t stream) {
  const RowLoss<Op, T, U> p(params);
  const T* const grad = static_cast<const T*>(p.grad);
  constexpr int vector = kVector<T>;
  const bool wide_rows = is_aligned(p.a, p.a_stride, p.classes, vector) &&
                         is_aligned(p.b, p.b_stride, p.classes, vector) &&
                         is_aligned(grad, p.classes, p.classes, vector);
  if (wide_rows) return launch_rows<vector>(op, p, stream);
  if (p.classes > kTileClasses) return launch_rows<1>(op, p, stream);
  const int64_t tile = kWarp * p.classes;
  const bool wide_tiles = p.a_stride == p.classes && p.b_stride == p.classes && is_aligned(p.a, tile, tile, vector) &&
                          is_aligned(p.b, tile, tile, vector) && is_aligned(grad, tile, tile, vector);
  wide_tiles ? launch_tiles<vector>(op, p, stream) : launch_tiles<1>(op, p, stream);
}

template <class Op>
void run_row_loss(const char* op, const RowLossParams& p, cudaStream_t stream) {
  const bool same = p.a_dtype == p.b_dtype;
  switch (p.a_dtype) {
    case Dtype::f32: return run_typed<Op, float, float>(op, p, stream);
    case Dtype::f64: return run_typed<Op, double, double>(op, p, stream);
    case Dtype::f16: return same ? run_typed<Op, Half, Half>(op, p, stream) : run_typed<Op, Half, float>(op, p, stream);
    case Dtype::bf16:
      return same ? run_typed<Op, BFloat16, BFloat16>(op, p, stream) : run_typed<Op, BFloat16, float>(op, p, stream);
  }
}

}  // namespace
}  // namespace zskd::cuda
