// Rows in registers: logits and target are read once, loss and gradient are written once. A group of lanes of a warp
// holds a row of up to a few hundred classes, so that a warp computes several rows at a time. The warps of a block hold
// a longer row.
#pragma once

#include "cuda/row_loss/operands.cuh"

namespace zskd::cuda {
namespace {

constexpr int kGroupThreads = 128;
template <class T>
constexpr int kMostRowWarps = sizeof(T) == sizeof(double) ? 8 : 16;  // as many as the registers of a block allow

// Elements of each matrix per lane. A group keeps few, so that many warps fit on a multiprocessor; a block keeps as
// many as a lane holds without spilling.
template <class T>
constexpr int kGroupItems = 64 / static_cast<int>(sizeof(accumulate_t<T>));
template <class T>
constexpr int kBlockItems = 128 / static_cast<int>(sizeof(accumulate_t<T>));

template <class T>
constexpr int64_t kGroupClasses = int64_t{kGroupItems<T>} * kWarp;
template <class T>
constexpr int64_t kWarpClasses = int64_t{kBlockItems<T>} * kWarp;
template <class T>
constexpr int64_t kBlockClasses = kWarpClasses<T> * kMostRowWarps<T>;

template <class A>
struct Maxima {
  A a, b;
};

// The lanes of a warp that hold a row.
struct Group {
  int lanes;

  template <class A>
  __device__ __forceinline__ Maxima<A> maxima(Maxima<A> own, bool both) const {
    return {group_max(own.a, lanes), both ? group_max(own.b, lanes) : own.b};
  }
  template <class A>
  __device__ __forceinline__ math::RowSums<A> sums(math::RowSums<A> own) const {
    return group_sums(own, lanes);
  }
};

// The warps of a block that hold a row. Each warp reduces its part, then all warps reduce the results of the warps in
// the same order. The barrier in one function lies between two calls of the other, so that no warp overwrites a result
// that another warp has yet to read.
struct Block {
  static constexpr int lanes = kWarp;

  template <class A>
  __device__ __forceinline__ Maxima<A> maxima(Maxima<A> own, bool both) const {
    static __shared__ Maxima<A> of_warp[kMostRowWarps<A>];
    const Group warp = {kWarp};
    own = warp.maxima(own, both);
    if (blockDim.x == kWarp) return own;
    if (lane() == 0) of_warp[threadIdx.x / kWarp] = own;
    __syncthreads();
    return warp.maxima(of_warp[lane() < warps() ? lane() : 0], both);
  }
  template <class A>
  __device__ __forceinline__ math::RowSums<A> sums(math::RowSums<A> own) const {
    static __shared__ math::RowSums<A> of_warp[kMostRowWarps<A>];
    own = group_sums(own, kWarp);
    if (blockDim.x == kWarp) return own;
    if (lane() == 0) of_warp[threadIdx.x / kWarp] = own;
    __syncthreads();
    return group_sums(lane() < warps() ? of_warp[lane()] : math::RowSums<A>{0, 0, 0}, kWarp);
  }

 private:
  __device__ static int lane() { return static_cast<int>(threadIdx.x) % kWarp; }
  __device__ static int warps() { return static_cast<int>(blockDim.x) / kWarp; }
};

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
__device__ __forceinline__ A largest(const A (&items)[kItems]) {
  A max = -math::infinity<A>();
#pragma unroll
  for (int i = 0; i < kItems; ++i) max = larger(max, items[i]);
  return max;
}

// The classes of a row that a lane and the others of its warp or group hold.
struct Held {
  int64_t row;
  int from, count, lane;
  bool writes_loss;
};

// `team` is the group or the block that holds the row. A lane without a class still takes part in the shuffles.
template <int kItems, int kWidth, class Op, class T, class U, class Team>
__device__ __forceinline__ void register_row(const RowLoss<Op, T, U>& p, Held held, const Team& team) {
  using A = accumulate_t<T>;
  const int lanes = team.lanes;
  A a[kItems], b[kItems];
  read_row<kItems, kWidth>(p.a + held.row * p.a_stride + held.from, held.lane, lanes, held.count, -math::infinity<A>(),
                           a);
  read_row<kItems, kWidth>(p.b + held.row * p.b_stride + held.from, held.lane, lanes, held.count, p.missing_other(), b);

  constexpr bool both = Op::kOtherIsLogits;
  const Maxima<A> max = team.maxima(Maxima<A>{largest(a), both ? largest(b) : A(0)}, both);
  math::RowSums<A> sum = {0, 0, 0};
#pragma unroll
  for (int i = 0; i < kItems; ++i) {
    if (i / kWidth * kWidth * lanes >= held.count) break;  // the end for all lanes of the warp or group
    const math::RowTerm<A> term = p.term(a[i], b[i], max.a, max.b);
    a[i] = term.e;
    b[i] = term.f;
    sum = {sum.e + term.e, sum.f + term.f, sum.dot + term.dot};
  }
  sum = team.sums(sum);
  if (held.writes_loss) p.write_loss(held.row, sum);
  if (!p.grad) return;

  const math::RowFactors<A> factor = Op::factors(sum, p.grad_scale);
#pragma unroll
  for (int i = 0; i < kItems; i += kWidth) {
    const int c = i * lanes + held.lane * kWidth;
    if (c >= held.count) break;
#pragma unroll
    for (int j = i; j < i + kWidth; ++j) a[j] = math::row_gradient(a[j], b[j], factor);
    p.template write_grad<kWidth>(held.row * p.classes + held.from + c, a + i);
  }
}

template <class Op, class T, class U, int kWidth>
__global__ void __launch_bounds__(kGroupThreads, kLeastBlocks<T>) group_rows(const RowLoss<Op, T, U> p) {
  const int rows_per_warp = kWarp / p.lanes;
  const int group = static_cast<int>(threadIdx.x) % kWarp / p.lanes;
  const int lane = static_cast<int>(threadIdx.x) % p.lanes;
  const int64_t stride = grid_threads() / kWarp * rows_per_warp;
  // `first` is the same for all lanes of a warp, so that no lane leaves the loop while others still shuffle.
  for (int64_t first = grid_thread() / kWarp * rows_per_warp; first < p.rows; first += stride) {
    const bool exists = first + group < p.rows;
    const Held held = {first + group, 0, exists ? static_cast<int>(p.classes) : 0, lane, exists && lane == 0};
    register_row<kGroupItems<T>, kWidth>(p, held, Group{p.lanes});
  }
}

template <class Op, class T, class U, int kWidth>
__global__ void __launch_bounds__(kMostRowWarps<T>* kWarp, kLeastBlocks<T>) block_rows(const RowLoss<Op, T, U> p) {
  // Each warp holds as many classes as the others, in whole vectors of all lanes; the last warp may hold fewer.
  constexpr int unit = kWarp * kWidth;
  const int thread = static_cast<int>(threadIdx.x), warps = static_cast<int>(blockDim.x) / kWarp;
  const int classes = static_cast<int>(p.classes);
  const int part = (classes + warps * unit - 1) / (warps * unit) * unit;
  const int from = thread / kWarp * part, rest = classes - from;
  for (int64_t row = blockIdx.x; row < p.rows; row += gridDim.x) {
    const Held held = {row, from, rest < part ? rest : part, thread % kWarp, thread == 0};
    register_row<kBlockItems<T>, kWidth>(p, held, Block{});
  }
}

}  // namespace
}  // namespace zskd::cuda
