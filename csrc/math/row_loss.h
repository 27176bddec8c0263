// What the two row losses have in common. Both take two rows a (logits) and b (target, or the teacher's logits) and
// give
//   gradient_c = (e_c * factor_a - f_c * factor_b) * scale,   e_c = exp(a_c / tau - max)
// after sums over the row of e, f and a third term; a backend brings the loops, an op brings the formulas.
#pragma once

#include "math/elementary.h"

namespace zskd::math {

template <class A>
struct RowTerm {
  A e, f, dot;
};

template <class A>
struct RowSums {
  A e, f, dot;
};

template <class A>
struct RowFactors {
  A a, b;
};

template <class A>
ZSKD_INLINE A row_gradient(A e, A f, RowFactors<A> factor, A scale) {
  return fma(e, factor.a, -(f * factor.b)) * scale;
}

}  // namespace zskd::math
