// What the two row losses have in common. Both take two rows, a (logits) and b (the target, or the teacher's logits).
// Each class c gives three terms: e_c = exp((a_c - max a) / tau), f_c and dot_c. The loss follows from the sums of the
// terms over the row, and
//   gradient_c = e_c * factor_a - f_c * factor_b.
// An op (SoftCrossEntropy, DistillationLoss) defines the formulas; a backend runs the loops.
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
ZSKD_INLINE A row_gradient(A e, A f, RowFactors<A> factor) {
  return fma(e, factor.a, -(f * factor.b));
}

// --- a row in parts, for a backend that cannot hold a whole row (online softmax, Milakov and Gimelshein 2018) ---

// Sums over some elements of a row, with the maxima of these elements subtracted. When a maximum rises, the op rescales
// the sums.
template <class A>
struct RowPart {
  A a_max, b_max;
  RowSums<A> sum;
};

template <class Op, class A>
ZSKD_INLINE RowPart<A> empty_part() {
  return {-infinity<A>(), Op::kOtherIsLogits ? -infinity<A>() : A(0), {0, 0, 0}};
}

// What is subtracted from the logits of a part: their maximum, or 0 if that is -inf, because -inf - (-inf) is NaN.
template <class A>
ZSKD_INLINE A origin(A max) {
  return max == -infinity<A>() ? A(0) : max;
}

// By how much the origin rises. 0 if all logits of the part are -inf: its terms do not depend on the origin.
template <class A>
ZSKD_INLINE A rise(A from, A to) {
  return from == -infinity<A>() ? A(0) : to - from;
}

// The same elements, with the sums relative to maxima that are as high or higher.
template <class Op, class A>
ZSKD_INLINE RowPart<A> raised(RowPart<A> part, A a_max, A b_max, ExpScale<A> exp_scale) {
  return {a_max, b_max, Op::rescaled(part.sum, rise(part.a_max, a_max), rise(part.b_max, b_max), exp_scale)};
}

// The elements of both parts.
template <class Op, class A>
ZSKD_INLINE RowPart<A> merged(RowPart<A> x, RowPart<A> y, ExpScale<A> exp_scale) {
  const A a_max = at_least(x.a_max, y.a_max), b_max = at_least(x.b_max, y.b_max);
  x = raised<Op>(x, a_max, b_max, exp_scale);
  y = raised<Op>(y, a_max, b_max, exp_scale);
  return {a_max, b_max, {x.sum.e + y.sum.e, x.sum.f + y.sum.f, x.sum.dot + y.sum.dot}};
}

// The elements of a part and one more.
template <class Op, class A>
ZSKD_INLINE RowPart<A> with_element(RowPart<A> part, A a, A b, ExpScale<A> exp_scale) {
  const A a_max = at_least(part.a_max, a), b_max = Op::kOtherIsLogits ? at_least(part.b_max, b) : A(0);
  if (a_max > part.a_max || b_max > part.b_max) part = raised<Op>(part, a_max, b_max, exp_scale);
  const A other = Op::kOtherIsLogits ? b - origin(b_max) : b;
  const RowTerm<A> term = Op::term(a - origin(a_max), other, exp_scale);
  part.sum = {part.sum.e + term.e, part.sum.f + term.f, part.sum.dot + term.dot};
  return part;
}

// The result for a complete row. If all logits are -inf there is no softmax, and the sum becomes NaN.
template <class Op, class A>
ZSKD_INLINE RowPart<A> whole_row(RowPart<A> part) {
  if (part.a_max == -infinity<A>()) part.sum.e = infinity<A>() - infinity<A>();
  if (part.b_max == -infinity<A>()) part.sum.f = infinity<A>() - infinity<A>();
  return part;
}

}  // namespace zskd::math
