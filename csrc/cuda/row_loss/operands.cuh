// The arguments of the row-loss kernels, and what all of them do in the same way.
#pragma once

#include "cuda/memory.cuh"
#include "cuda/reduce.cuh"
#include "math/row_loss.h"
#include "params.h"

namespace zskd::cuda {
namespace {

// The minimum number of blocks per multiprocessor, for __launch_bounds__; 0 is no minimum. It is set to 1 for double,
// where ptxas would otherwise spill registers to fit more blocks.
template <class T>
constexpr int kLeastBlocks = sizeof(T) == sizeof(double) ? 1 : 0;

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
  int lanes = kWarp;  // that hold one row in group_rows

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
        exp_scale(math::exp_scale_of<A>(p.temperature)) {}

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

  // The elements from `at` on; the rows of the gradient are dense. wide_grad is the same for all threads, so the branch
  // costs no divergence.
  template <int kWidth>
  __device__ __forceinline__ void write_grad(int64_t at, const A* values) const {
    if constexpr (sizeof(T) < sizeof(A)) {
      if (wide_grad) return store<kWidth>(static_cast<A*>(grad) + at, values);
    }
    store<kWidth>(static_cast<T*>(grad) + at, values);
  }

  // The value of b for a class beyond the end of the row; it changes neither the maximum nor the sums.
  __device__ static A missing_other() { return Op::kOtherIsLogits ? -math::infinity<A>() : A(0); }
};

template <class A>
__device__ __forceinline__ math::RowSums<A> group_sums(math::RowSums<A> sum, int lanes) {
  for (int distance = lanes / 2; distance > 0; distance /= 2) {
    sum.e += __shfl_xor_sync(kWholeWarp, sum.e, distance);
    sum.f += __shfl_xor_sync(kWholeWarp, sum.f, distance);
    sum.dot += __shfl_xor_sync(kWholeWarp, sum.dot, distance);
  }
  return sum;
}

}  // namespace
}  // namespace zskd::cuda
