// The distillation loss of a row (Hinton, Vinyals, Dean 2015; paper section 3.4):
//   loss = tau^2 KL(p_t || p_s) = tau^2 [ sum_c p_tc (t_c - s_c) / tau + lse_s - lse_t ]
//   d loss / d student_c = tau (p_sc - p_tc)
// where t_c and s_c are the logits of the teacher and of the student, each minus the maximum of its row.
#pragma once

#include "math/row_loss.h"

namespace zskd::math {

struct DistillationLoss {
  static constexpr bool kOtherIsLogits = true;

  // A class with teacher probability 0 contributes nothing, whatever its student logit is.
  template <class A>
  ZSKD_INLINE RowTerm<A> term(A s, A t, ExpScale<A> exp_scale) {
    const A e_teacher = exp_nonpositive(t, exp_scale);
    return {exp_nonpositive(s, exp_scale), e_teacher, e_teacher == A(0) ? A(0) : e_teacher * (t - s)};
  }

  template <class A>
  ZSKD_INLINE A loss(RowSums<A> sum, A temperature) {
    // Not lse_s - lse_t: the rounding errors of two large logarithms would exceed a small divergence.
    const A divergence = sum.dot / (temperature * sum.f) + log_positive(sum.e / sum.f);
    return temperature * temperature * divergence;
  }

  // The sums after the maximum of s has risen by s_rise and that of t by t_rise. If the teacher's terms underflow to 0,
  // the part contributes nothing, as in term().
  template <class A>
  ZSKD_INLINE RowSums<A> rescaled(RowSums<A> sum, A s_rise, A t_rise, ExpScale<A> exp_scale) {
    const A fall = exp_nonpositive(-t_rise, exp_scale);
    const A dot = fall == A(0) ? A(0) : fall * (sum.dot + sum.f * (s_rise - t_rise));
    return {sum.e * exp_nonpositive(-s_rise, exp_scale), sum.f * fall, dot};
  }

  template <class A>
  ZSKD_INLINE RowFactors<A> factors(RowSums<A> sum, A scale) {
    return {scale / sum.e, scale / sum.f};
  }

  template <class A>
  ZSKD_INLINE A scale(A temperature) {
    return temperature;
  }
};

}  // namespace zskd::math
