// Cross-entropy of a row of logits with a soft target under a temperature (paper section 3.2, equation 3):
//   loss = sum_c y_c (lse - s_c / tau),   s_c = z_c - max z,   lse = log sum_c exp(s_c / tau)
//   d loss / d z_c = ((sum_c y_c) p_c - y_c) / tau,          p_c = exp(s_c / tau) / sum_k exp(s_k / tau)
// The loss is computed as (sum_c y_c) lse - (sum_c y_c s_c) / tau. No logarithm of a probability is taken, so nothing
// underflows.
#pragma once

#include "math/row_loss.h"

namespace zskd::math {

struct SoftCrossEntropy {
  static constexpr bool kOtherIsLogits = false;

  // A class whose target is 0 contributes nothing, even if its logit is -inf.
  template <class A>
  ZSKD_INLINE RowTerm<A> term(A s, A y, ExpScale<A> exp_scale) {
    return {exp_nonpositive(s, exp_scale), y, y == A(0) ? A(0) : y * s};
  }

  template <class A>
  ZSKD_INLINE A loss(RowSums<A> sum, A temperature) {
    return fma(sum.f, log_positive(sum.e), -(sum.dot / temperature));
  }

  // The sums after max z has risen by a_rise: every s_c falls by a_rise, so sum y s falls by a_rise sum y.
  template <class A>
  ZSKD_INLINE RowSums<A> rescaled(RowSums<A> sum, A a_rise, A, ExpScale<A> exp_scale) {
    return {sum.e * exp_nonpositive(-a_rise, exp_scale), sum.f, sum.dot - sum.f * a_rise};
  }

  template <class A>
  ZSKD_INLINE RowFactors<A> factors(RowSums<A> sum, A scale) {
    return {sum.f / sum.e * scale, scale};
  }

  template <class A>
  ZSKD_INLINE A scale(A temperature) {
    return A(1) / temperature;
  }
};

}  // namespace zskd::math
