// The kernels of the two row losses (math/row_loss.h). A row of up to kRegisterClasses classes is held in the registers
// of a group of lanes: logits and target are read once, loss and gradient are written once. A group has as few lanes as
// the row needs, so that a warp can process many short rows. A longer row is processed by a whole block and read twice:
// once for the sums, whose maxima rise during the pass, and once for the gradient.
#pragma once

#include "cuda/memory.cuh"
#include "cuda/reduce.cuh"
#include "math/row_loss.h"
#include "params.h"

namespace zskd::cuda {
namespace {

constexpr int kGroupThreads = 128;
constexpr int kLongRowThreads = 256;
constexpr int kLongRowWarps = kLongRowThreads / kWarp;

// The minimum number of blocks per multiprocessor, for __launch_bounds__; 0 is no minimum. It is set to 1 for double,
// where ptxas would otherwise spill registers to fit more blocks.
template <class T>
constexpr int kLeastBlocks = sizeof(T) == sizeof(double) ? 1 : 0;

// Elements per lane for a short row, at least one vector. As few lanes hold a row as this number allows.
template <class T>
constexpr int kFewItems = kVector<T> > 4 ? kVector<T> : 4;

// Elements per lane for a longer row: as many of both matrices, in float or double, as the registers of a lane hold
// without spilling.
template <class T>
constexpr int kManyItems = 128 / static_cast<int>(sizeof(accumulate_t<T>));
template <class T>
constexpr int64_t kRegisterClasses = int64_t{kManyItems<T>} * kWarp;

template <class Op, class T, class U>
struct RowLoss {
  using A = accumulate_t<T>;

  const T* a;
  const U* b;
  A* loss;
  void* grad;
  bool wide_grad;  // the gradient is stored as A, otherwise as T
  int64_t a_stride, b_stride, rows, classes;
  A temperature, grad_scale;
  math::ExpScale<A> exp_scale;
  int lanes;  // per group

  explicit RowLoss(const RowLossParams& p)
      : a(static_cast<const T*>(p.a)),
        b(static_cast<const U*>(p.b)),
        loss(static_cast<A*>(p.loss)),
        grad(p.grad),
        wide_grad(p.grad_dtype != p.a_dtype),
        a_stride(p.a_stride),
        b_stride(p.b_stride),
        rows(p.rows),
        classes(p.classes),
        temperature(static_cast<A>(p.temperature)),
        grad_scale(Op::scale(temperature) * static_cast<A>(p.grad_weight)),
        exp_scale(math::exp_scale_of<A>(p.temperature)),
        lanes(kWarp) {}

  __device__ math::RowTerm<A> term(A z, A other, A a_max, A b_max) const {
    if constexpr (Op::kOtherIsLogits)
      return Op::term(z - a_max, other - b_max, exp_scale);
    else
      return Op::term(z - a_max, other, exp_scale);
  }

  __device__ void write_loss(int64_t row, math::RowSums<A> sum) const {
    const A value = Op::loss(sum, temperature);
    store<1>(loss + row, &value);
  }

  // The classes from c on. wide_grad is the same for all threads, so the branch costs no divergence.
  template <int kWidth>
  __device__ __forceinline__ void write_grad(int64_t row, int64_t c, const A* values) const {
    const int64_t at = row * classes + c;
    if constexpr (sizeof(T) < sizeof(A)) {
      if (wide_grad) return store<kWidth>(static_cast<A*>(grad) + at, values);
    }
    store<kWidth>(static_cast<T*>(grad) + at, values);
  }

  // The value of b for a class beyond the end of the row; it changes neither the maximum nor the sums.
  __device__ static A missing_other() { return Op::kOtherIsLogits ? -math::infinity<A>() : A(0); }
};

// --- rows in registers ---

// For i = 0, kWidth, 2 kWidth, ...: the items i to i + kWidth - 1 of a lane are the kWidth classes from
// i * lanes + lane * kWidth on.
template <int kItems, int kWidth, class T, class A>
__device__ __forceinline__ void read_row(const T* row, int lane, int lanes, int classes, A missing,
                                         A (&items)[kItems]) {
#pragma unroll
  for (int i = 0; i < kItems; i += kWidth) {
    const int c = i * lanes + lane * kWidth;
    if (c < classes) {
      load<kWidth>(row + c, items + i);
    } else {
#pragma unroll
      for (int j = 0; j < kWidth; ++j) items[i + j] = missing;
    }
  }
}

template <int kItems, class A>
__device__ __forceinline__ A row_max(const A (&items)[kItems], int lanes) {
  A max = -math::infinity<A>();
#pragma unroll
  for (int i = 0; i < kItems; ++i) max = math::at_least(max, items[i]);
  return group_max(max, lanes);
}

template <class A>
__device__ __forceinline__ math::RowSums<A> group_sums(math::RowSums<A> sum, int lanes) {
  return {group_sum(sum.e, lanes), group_sum(sum.f, lanes), group_sum(sum.dot, lanes)};
}

template <class Op, class T, class U, int kItems, int kWidth>
__device__ __forceinline__ void register_row(const RowLoss<Op, T, U>& p, int64_t row, int lane) {
  using A = accumulate_t<T>;
  const bool exists = row < p.rows;  // lanes without a row still have to take part in the shuffles
  const int classes = exists ? static_cast<int>(p.classes) : 0;
  A a[kItems], b[kItems];
  read_row<kItems, kWidth>(p.a + row * p.a_stride, lane, p.lanes, classes, -math::infinity<A>(), a);
  read_row<kItems, kWidth>(p.b + row * p.b_stride, lane, p.lanes, classes, p.missing_other(), b);

  const A a_max = row_max(a, p.lanes);
  const A b_max = Op::kOtherIsLogits ? row_max(b, p.lanes) : A(0);
  math::RowSums<A> sum = {0, 0, 0};
#pragma unroll
  for (int i = 0; i < kItems; ++i) {
    if (i / kWidth * kWidth * p.lanes >= classes) break;  // the end of the row for all lanes of the group
    const math::RowTerm<A> term = p.term(a[i], b[i], a_max, b_max);
    a[i] = term.e;
    b[i] = term.f;
    sum = {sum.e + term.e, sum.f + term.f, sum.dot + term.dot};
  }
  sum = group_sums(sum, p.lanes);
  if (exists && lane == 0) p.write_loss(row, sum);
  if (!p.grad) return;

  const math::RowFactors<A> factor = Op::factors(sum, p.grad_scale);
#pragma unroll
  for (int i = 0; i < kItems; i += kWidth) {
    const int c = i * p.lanes + lane * kWidth;
    if (c >= classes) break;
#pragma unroll
    for (int j = i; j < i + kWidth; ++j) a[j] = math::row_gradient(a[j], b[j], factor);
    p.template write_grad<kWidth>(row, c, a + i);
  }
}

template <class Op, class T, class U, int kItems, int kWidth>
__global__ void __launch_bounds__(kGroupThreads, kLeastBlocks<T>) register_rows(const RowLoss<Op, T, U> p) {
  const int rows_per_warp = kWarp / p.lanes;
  const int lane_of_warp = static_cast<int>(threadIdx.x) % kWarp;
  const int64_t stride = grid_threads() / kWarp * rows_per_warp;
  // `first` is the same for all lanes of a warp, so that no lane leaves the loop while others still shuffle.
  for (int64_t first = grid_thread() / kWarp * rows_per_warp; first < p.rows; first += stride) {
    register_row<Op, T, U, kItems, kWidth>(p, first + lane_of_warp / p.lanes, lane_of_warp % p.lanes);
  }
}

// --- one row per block ---

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

    math::RowPart<A> part = math::empty_part<Op, A>();
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
    for (int64_t c = first; c < p.classes; c += step) {
      load<kWidth>(row_a + c, a);
      load<kWidth>(row_b + c, b);
#pragma unroll
      for (int j = 0; j < kWidth; ++j) {
        const math::RowTerm<A> term = p.term(a[j], b[j], part.a_max, part.b_max);
        a[j] = math::row_gradient(term.e, term.f, factor);
      }
      p.template write_grad<kWidth>(row, c, a);
    }
  }
}

// --- the choice of the kernel ---

// The lanes of the smallest group that holds a row with `items` elements per lane.
inline int lanes_for(int64_t classes, int items) {
  int lanes = 1;
  while (lanes < kWarp && int64_t{lanes} * items < classes) lanes *= 2;
  return lanes;
}

template <int kWidth, class Op, class T, class U>
void launch_rows(const char* op, RowLoss<Op, T, U> p, cudaStream_t stream) {
  if (p.classes > kRegisterClasses<T>) {
    return launch(op, long_rows<Op, T, U, kWidth>, p, p.rows, 1, kLongRowThreads, stream);
  }
  const bool few = p.classes <= kFewItems<T> * kWarp;
  p.lanes = lanes_for(p.classes, few ? kFewItems<T> : kManyItems<T>);
  const auto kernel =
      few ? register_rows<Op, T, U, kFewItems<T>, kWidth> : register_rows<Op, T, U, kManyItems<T>, kWidth>;
  launch(op, kernel, p, p.rows, kGroupThreads / p.lanes, kGroupThreads, stream);
}

template <class Op, class T, class U>
void run_typed(const char* op, const RowLossParams& params, cudaStream_t stream) {
  const RowLoss<Op, T, U> p(params);
  const bool wide = is_aligned(p.a, p.a_stride, p.classes, kVector<T>) &&
                    is_aligned(p.b, p.b_stride, p.classes, kVector<T>) &&
                    is_aligned(static_cast<const T*>(p.grad), p.classes, p.classes, kVector<T>);
  if (wide) return launch_rows<kVector<T>>(op, p, stream);
  launch_rows<1>(op, p, stream);
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
