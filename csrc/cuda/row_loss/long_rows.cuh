// Rows that do not fit into the registers of a block. A block reads such a row twice: once for the sums, whose maxima
// rise during the pass, and once for the gradient.
#pragma once

#include "cuda/row_loss/operands.cuh"

namespace zskd::cuda {
namespace {

constexpr int kLongRowThreads = 256;
constexpr int kLongRowWarps = kLongRowThreads / kWarp;

// Merges the parts of a row that the threads of a block hold: first within each warp, then over the warps in order.
template <class Op, class A>
__device__ __forceinline__ math::RowPart<A> merge_over_block(math::RowPart<A> part, math::ExpScale<A> exp_scale) {
  static __shared__ math::RowPart<A> parts[kLongRowWarps];
  part = math::raised<Op>(part, group_max(part.a_max, kWarp), group_max(part.b_max, kWarp), exp_scale);
  part.sum = group_sums(part.sum, kWarp);
  if (threadIdx.x % kWarp == 0) parts[threadIdx.x / kWarp] = part;
  __syncthreads();
  math::RowPart<A> whole = parts[0];
  for (int i = 1; i < kLongRowWarps; ++i) whole = math::merged<Op>(whole, parts[i], exp_scale);
  __syncthreads();  // all threads have read `parts` before the next row overwrites it
  return whole;
}

template <class Op, class T, class U, int kWidth>
__global__ void __launch_bounds__(kLongRowThreads, kLeastBlocks<T>) long_rows(const RowLoss<Op, T, U> p) {
  using A = accumulate_t<T>;
  A a[kWidth], b[kWidth];
  for (int64_t row = blockIdx.x; row < p.rows; row += gridDim.x) {
    const T* const row_a = p.a + row * p.a_stride;
    const U* const row_b = p.b + row * p.b_stride;
    const int64_t first = int64_t{threadIdx.x} * kWidth, step = int64_t{blockDim.x} * kWidth;

    // Neither loop is unrolled: that takes more registers than some architectures have for this many threads.
    math::RowPart<A> part = math::empty_part<Op, A>();
#pragma unroll 1
    for (int64_t c = first; c < p.classes; c += step) {
      load<kWidth>(row_a + c, a);
      load<kWidth>(row_b + c, b);
#pragma unroll
      for (int j = 0; j < kWidth; ++j) part = math::with_element<Op>(part, a[j], b[j], p.exp_scale);
    }
    part = math::whole_row<Op>(merge_over_block<Op>(part, p.exp_scale));
    if (threadIdx.x == 0) p.write_loss(row, part.sum);
    if (!p.grad) continue;

    const math::RowFactors<A> factor = Op::factors(part.sum, p.grad_scale);
#pragma unroll 1
    for (int64_t c = first; c < p.classes; c += step) {
      load<kWidth>(row_a + c, a);
      load<kWidth>(row_b + c, b);
#pragma unroll
      for (int j = 0; j < kWidth; ++j) {
        const math::RowTerm<A> term = p.term(a[j], b[j], part.a_max, part.b_max);
        a[j] = math::row_gradient(term.e, term.f, factor);
      }
      p.template write_grad<kWidth>(row * p.classes + c, a);
    }
  }
}

}  // namespace
}  // namespace zskd::cuda
