// Cross-entropy of a row of logits with a soft target under a temperature (paper section 3.2, equation 3):
//   loss = sum_c y_c (lse - s_c),   s_c = (z_c - max) / tau,   lse = log sum_c exp(s_c)
//   d loss / d z_c = ((sum_c y_c) p_c - y_c) / tau,            p_c = exp(s_c) / sum_k exp(s_k)
// The loss is taken as (sum_c y_c) lse - sum_c y_c s_c: no log of a probability, so nothing underflows.
#pragma once

#include "math/row_loss.h"

namespace zskd::math {

struct SoftCrossEntropy {
  static constexpr bool kOtherIsLogits = false;

  // A class without target weight contributes nothing, even if its logit is -inf.
  template <class A>
  ZSKD_INLINE RowTerm<A> term(A s, A y) {
    return {exp_nonpositive(s), y, y == A(0) ? A(0) : y * s};
  }

  template <class A>
  ZSKD_INLINE A loss(RowSums<A> sum, A) {
    return fma(sum.f, log_positive(sum.e), -sum.dot);
  }

  // Of s lessened by a_rise: sum y s falls by a_rise sum y.
  template <class A>
  ZSKD_INLINE RowSums<A> rescaled(RowSums<A> sum, A a_rise, A) {
    return {sum.e * exp_nonpositive(-a_rise), sum.f, sum.dot - sum.f * a_rise};
  }

  template <class A>
  ZSKD_INLINE RowFactors<A> factors(RowSums<A> sum) {
    return {sum.f / sum.e, A(1)};
  }

  template <class A>
  ZSKD_INLINE A scale(A temperature) {
    return A(1) / temperature;
  }
};

}  // namespace zskd::math
