// The distillation loss of a row (Hinton, Vinyals, Dean 2015; paper section 3.4):
//   loss = tau^2 KL(p_t || p_s) = tau^2 [ sum_c p_tc (t_c - s_c) / tau + lse_s - lse_t ]
//   d loss / d student_c = tau (p_sc - p_tc)
// with t_c and s_c the teacher's and the student's logits, less their row maximum.
#pragma once

#include "math/row_loss.h"

namespace zskd::math {

struct DistillationLoss {
  static constexpr bool kOtherIsLogits = true;

  // A class that the teacher rules out contributes nothing, whatever the student says of it.
  template <class A>
  ZSKD_INLINE RowTerm<A> term(A s, A t, Tempered<A> over) {
    const A e_teacher = exp_nonpositive(t, over);
    return {exp_nonpositive(s, over), e_teacher, e_teacher == A(0) ? A(0) : e_teacher * (t - s)};
  }

  template <class A>
  ZSKD_INLINE A loss(RowSums<A> sum, A temperature) {
    // Not the difference of two logarithms: they are large beside a small divergence, and so are their roundings.
    const A divergence = sum.dot / (temperature * sum.f) + log_positive(sum.e / sum.f);
    return temperature * temperature * divergence;
  }

  // Of s lessened by s_rise and t by t_rise. A part whose teacher mass vanishes contributes nothing, as in term().
  template <class A>
  ZSKD_INLINE RowSums<A> rescaled(RowSums<A> sum, A s_rise, A t_rise, Tempered<A> over) {
    const A fall = exp_nonpositive(-t_rise, over);
    const A dot = fall == A(0) ? A(0) : fall * (sum.dot + sum.f * (s_rise - t_rise));
    return {sum.e * exp_nonpositive(-s_rise, over), sum.f * fall, dot};
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
