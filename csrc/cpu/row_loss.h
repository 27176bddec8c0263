// The loops of the two row losses (math/row_loss.h). Long rows are processed one after another, with the SIMD lanes
// along the classes. Short rows are packed: sixteen at a time, one in each lane, so that all lanes work even if K = 10.
#pragma once

#include <type_traits>

#include "cpu/storage.h"
#include "cpu/stream.h"
#include "cpu/transpose.h"
#include "math/row_loss.h"
#include "params.h"

// The unnamed namespace keeps the linker from merging the copies that are compiled for different instruction sets.
namespace zskd::cpu {
namespace {

constexpr int kLanes = 16;
constexpr int64_t kAhead = 256;          // elements of the next row that are prefetched at a time
constexpr int64_t kPackedClasses = 128;  // rows with at most this many classes are packed

template <class Op, class T, class U>
struct RowLossKernel {
  using A = accumulate_t<T>;

  const T* a;
  const U* b;
  A* loss;
  void* grad;
  bool wide_grad;  // the gradient is stored as A, otherwise as T
  int64_t a_stride, b_stride, classes;
  A temperature, grad_scale;
  math::ExpScale<A> exp_scale;
  bool stream;

  explicit RowLossKernel(const RowLossParams& p)
      : a(static_cast<const T*>(p.a)),
        b(static_cast<const U*>(p.b)),
        loss(static_cast<A*>(p.loss)),
        grad(p.grad),
        wide_grad(p.grad_dtype != p.a_dtype),
        a_stride(p.a_stride),
        b_stride(p.b_stride),
        classes(p.classes),
        temperature(static_cast<A>(p.temperature)),
        grad_scale(Op::scale(temperature) * static_cast<A>(p.grad_weight)),
        exp_scale(math::exp_scale_of<A>(p.temperature)),
        stream(should_stream(p.rows * p.classes * static_cast<int64_t>(wide_grad ? sizeof(A) : sizeof(T)))) {}

  // `scratch` holds 2 * classes values of A.
  void run(int64_t begin, int64_t end, A* scratch) const {
    if (classes > kPackedClasses) {
      for (int64_t row = begin; row < end; ++row) long_row(row, scratch);
      stream_fence();
    } else {
      for (int64_t row = begin; row < end; row += kLanes) {
        packed_rows(row, end - row < kLanes ? end - row : kLanes);
      }
    }
  }

 private:
  void long_row(int64_t row, A* scratch) const {
    const T* az = a + row * a_stride;
    const U* bz = b + row * b_stride;
    A a_max = -math::infinity<A>();
    A b_max = Op::kOtherIsLogits ? -math::infinity<A>() : A(0);
#pragma omp simd reduction(max : a_max)
    for (int64_t c = 0; c < classes; ++c) a_max = math::at_least(a_max, load(az + c));
    if constexpr (Op::kOtherIsLogits) {
#pragma omp simd reduction(max : b_max)
      for (int64_t c = 0; c < classes; ++c) b_max = math::at_least(b_max, load(bz + c));
    }

    A* e = scratch;
    A* f = scratch + classes;
    // Partial sums, which are added in a tree at the end: the error of a float32 sum in sequence grows with its length.
    alignas(64) A sums_e[kLanes] = {}, sums_f[kLanes] = {}, sums_dot[kLanes] = {};
    const auto add = [&](int64_t c, int l) {
      const math::RowTerm<A> term = this->term(load(az + c), load(bz + c), a_max, b_max);
      e[c] = term.e;
      f[c] = term.f;
      sums_e[l] += term.e;
      sums_f[l] += term.f;
      sums_dot[l] += term.dot;
    };
    for (int64_t first = 0; first < classes; first += kAhead) {
      const int64_t end = classes - first < kAhead ? classes : first + kAhead;
      prefetch(az + a_stride + first, end - first);
      prefetch(bz + b_stride + first, end - first);
      int64_t c = first;
      for (; c + kLanes <= end; c += kLanes) {
#pragma omp simd
        for (int l = 0; l < kLanes; ++l) add(c + l, l);
      }
      for (int l = 0; c + l < end; ++l) add(c + l, l);
    }
    for (int width = kLanes / 2; width > 0; width /= 2) {
      for (int l = 0; l < width; ++l) {
        sums_e[l] += sums_e[l + width];
        sums_f[l] += sums_f[l + width];
        sums_dot[l] += sums_dot[l + width];
      }
    }
    const A sum_e = sums_e[0], sum_f = sums_f[0], sum_dot = sums_dot[0];
    const math::RowSums<A> sum = {sum_e, sum_f, sum_dot};
    loss[row] = Op::loss(sum, temperature);
    if (!grad) return;

    const math::RowFactors<A> factor = Op::factors(sum, grad_scale);
    if (wide_grad) {
      long_gradient(static_cast<A*>(grad) + row * classes, e, f, factor);
    } else {
      long_gradient(static_cast<T*>(grad) + row * classes, e, f, factor);
    }
  }

  template <class G>
  void long_gradient(G* g, A* e, const A* f, math::RowFactors<A> factor) const {
    if constexpr (sizeof(G) == sizeof(A)) {
      if (stream) {
#pragma omp simd
        for (int64_t c = 0; c < classes; ++c) e[c] = math::row_gradient(e[c], f[c], factor);
        stream_copy(g, e, classes);
        return;
      }
    }
#pragma omp simd
    for (int64_t c = 0; c < classes; ++c) store(g + c, math::row_gradient(e[c], f[c], factor));
  }

  // Rows [row, row + count), count <= kLanes, of at most kPackedClasses classes.
  void packed_rows(int64_t row, int64_t count) const {
    alignas(64) A az[kPackedClasses * kLanes], bz[kPackedClasses * kLanes];
    if (count < kLanes) {  // lanes without a row compute with zeros
      for (int64_t i = 0; i < classes * kLanes; ++i) az[i] = bz[i] = 0;
    }
    rows_to_columns(a + row * a_stride, a_stride, count, classes, kLanes, az);
    rows_to_columns(b + row * b_stride, b_stride, count, classes, kLanes, bz);

    alignas(64) A a_max[kLanes], b_max[kLanes], sum_e[kLanes], sum_f[kLanes], sum_dot[kLanes];
#pragma omp simd
    for (int l = 0; l < kLanes; ++l) {
      a_max[l] = -math::infinity<A>();
      b_max[l] = Op::kOtherIsLogits ? -math::infinity<A>() : A(0);
      sum_e[l] = sum_f[l] = sum_dot[l] = 0;
    }
    for (int64_t c = 0; c < classes; ++c) {
#pragma omp simd
      for (int l = 0; l < kLanes; ++l) {
        a_max[l] = math::at_least(a_max[l], az[c * kLanes + l]);
        if constexpr (Op::kOtherIsLogits) b_max[l] = math::at_least(b_max[l], bz[c * kLanes + l]);
      }
    }
    for (int64_t c = 0; c < classes; ++c) {
      prefetch(a + (row + kLanes) * a_stride + c * kLanes, kLanes);
      prefetch(b + (row + kLanes) * b_stride + c * kLanes, kLanes);
#pragma omp simd
      for (int l = 0; l < kLanes; ++l) {
        const math::RowTerm<A> term = this->term(az[c * kLanes + l], bz[c * kLanes + l], a_max[l], b_max[l]);
        az[c * kLanes + l] = term.e;
        bz[c * kLanes + l] = term.f;
        sum_e[l] += term.e;
        sum_f[l] += term.f;
        sum_dot[l] += term.dot;
      }
    }
    alignas(64) A row_loss[kLanes], factor_a[kLanes], factor_b[kLanes];
#pragma omp simd
    for (int l = 0; l < kLanes; ++l) {
      row_loss[l] = Op::loss({sum_e[l], sum_f[l], sum_dot[l]}, temperature);
      factor_a[l] = Op::factors(math::RowSums<A>{sum_e[l], sum_f[l], sum_dot[l]}, grad_scale).a;
      factor_b[l] = Op::factors(math::RowSums<A>{sum_e[l], sum_f[l], sum_dot[l]}, grad_scale).b;
    }
    for (int64_t l = 0; l < count; ++l) loss[row + l] = row_loss[l];
    if (!grad) return;
    for (int64_t c = 0; c < classes; ++c) {
#pragma omp simd
      for (int l = 0; l < kLanes; ++l) {
        az[c * kLanes + l] = math::row_gradient(az[c * kLanes + l], bz[c * kLanes + l], {factor_a[l], factor_b[l]});
      }
    }
    if (wide_grad) {
      columns_to_rows(az, kLanes, count, classes, static_cast<A*>(grad) + row * classes);
    } else {
      columns_to_rows(az, kLanes, count, classes, static_cast<T*>(grad) + row * classes);
    }
  }

  __attribute__((always_inline)) math::RowTerm<A> term(A z, A other, A a_max, A b_max) const {
    if constexpr (Op::kOtherIsLogits)
      return Op::term(z - a_max, other - b_max, exp_scale);
    else
      return Op::term(z - a_max, other, exp_scale);
  }
};

template <class Op>
void run_row_loss(const RowLossParams& p, int64_t begin, int64_t end, void* scratch) {
  const auto run = [&](const auto& kernel) {
    kernel.run(begin, end, static_cast<typename std::decay_t<decltype(kernel)>::A*>(scratch));
  };
  const bool narrow_b = p.a_dtype == p.b_dtype;
  switch (p.a_dtype) {
    case Dtype::f32: return run(RowLossKernel<Op, float, float>(p));
    case Dtype::f64: return run(RowLossKernel<Op, double, double>(p));
    case Dtype::f16: return narrow_b ? run(RowLossKernel<Op, Half, Half>(p)) : run(RowLossKernel<Op, Half, float>(p));
    case Dtype::bf16:
      return narrow_b ? run(RowLossKernel<Op, BFloat16, BFloat16>(p)) : run(RowLossKernel<Op, BFloat16, float>(p));
  }
}

}  // namespace
}  // namespace zskd::cpu
