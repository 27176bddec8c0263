#include "cpu/kernels.h"
#include "cpu/storage.h"
#include "math/impression_update.h"

namespace zskd::cpu::ZSKD_ISA {
namespace {

template <class T>
struct Update {
  using A = accumulate_t<T>;
  T* x;
  const T* grad;
  A* exp_avg;
  A* exp_avg_sq;
  math::ImpressionUpdate<A> update;

  // The bias corrections are computed in double: in float, 1 - beta2^t loses half of its digits at t = 1.
  explicit Update(const ImpressionUpdateParams& p)
      : x(static_cast<T*>(p.x)),
        grad(static_cast<const T*>(p.grad)),
        exp_avg(static_cast<A*>(p.exp_avg)),
        exp_avg_sq(static_cast<A*>(p.exp_avg_sq)),
        update{static_cast<A>(p.beta2),
               static_cast<A>(p.eps),
               static_cast<A>(p.l1),
               static_cast<A>(p.l2),
               static_cast<A>(1 - p.beta1),
               static_cast<A>(1 - p.beta2),
               static_cast<A>(p.lr / (1 - __builtin_pow(p.beta1, p.step))),
               static_cast<A>(1 / __builtin_sqrt(1 - __builtin_pow(p.beta2, p.step)))} {}

  void run(int64_t begin, int64_t end, A lo, A hi) const {
    const math::ImpressionUpdate<A> u = update;
#pragma omp simd
    for (int64_t i = begin; i < end; ++i) {
      A m = exp_avg[i], v = exp_avg_sq[i];
      store(x + i, math::update_element(load(x + i), load(grad + i), m, v, lo, hi, u));
      exp_avg[i] = m;
      exp_avg_sq[i] = v;
    }
  }
};

template <class T>
void update(const ImpressionUpdateParams& p, int64_t begin, int64_t end) {
  using A = accumulate_t<T>;
  const Update<T> kernel(p);
  while (begin < end) {  // one run of elements with equal bounds after another
    const int64_t stretch = p.channels == 1 ? end : (begin / p.channel_size + 1) * p.channel_size;
    const int64_t stop = stretch < end ? stretch : end;
    const int64_t channel = p.channels == 1 ? 0 : begin / p.channel_size % p.channels;
    kernel.run(begin, stop, static_cast<A>(p.lo[channel]), static_cast<A>(p.hi[channel]));
    begin = stop;
  }
}

}  // namespace

void impression_update(const ImpressionUpdateParams& p, int64_t begin, int64_t end) {
  switch (p.dtype) {
    case Dtype::f32: return update<float>(p, begin, end);
    case Dtype::f64: return update<double>(p, begin, end);
    case Dtype::f16: return update<Half>(p, begin, end);
    case Dtype::bf16: return update<BFloat16>(p, begin, end);
  }
}

}  // namespace zskd::cpu::ZSKD_ISA
