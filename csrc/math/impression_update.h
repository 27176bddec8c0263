// One element of an Adam step (Kingma and Ba 2015, algorithm 1) on an impression. The gradient of the pixel priors
// l1 |x| + l2 x^2 is added first; the result is clamped to the valid input range.
#pragma once

#include "math/portable.h"

namespace zskd::math {

template <class A>
struct ImpressionUpdate {
  A beta2, eps, l1, l2;
  A one_minus_beta1, one_minus_beta2;  // from the unrounded beta: 1 - 0.999f has a relative error of 1e-5
  A step_size;                         // lr / (1 - beta1^t)
  A inverse_root_correction;           // 1 / sqrt(1 - beta2^t)
};

// beta^t for an integer t >= 0, by repeated squaring, which takes a GPU a fraction of the time of pow().
ZSKD_INLINE double whole_power(double beta, int64_t t) {
  double power = 1;
  for (; t > 0; t /= 2) {
    if (t % 2 == 1) power *= beta;
    beta *= beta;
  }
  return power;
}

template <class A>
ZSKD_INLINE A sign(A x) {
  return static_cast<A>(x > A(0)) - static_cast<A>(x < A(0));
}

template <class A>
ZSKD_INLINE A update_element(A x, A grad, A& exp_avg, A& exp_avg_sq, A lo, A hi, const ImpressionUpdate<A>& u) {
  const A g = grad + u.l1 * sign(x) + A(2) * u.l2 * x;
  exp_avg = exp_avg + u.one_minus_beta1 * (g - exp_avg);
  exp_avg_sq = u.beta2 * exp_avg_sq + u.one_minus_beta2 * g * g;
  const A denominator = sqrt(exp_avg_sq) * u.inverse_root_correction + u.eps;
  return at_most(at_least(x - u.step_size * (exp_avg / denominator), lo), hi);
}

}  // namespace zskd::math
