// What the two row losses have in common. Both take two rows a (logits) and b (target, or the teacher's logits) and
// give
//   gradient_c = e_c * factor_a - f_c * factor_b,   e_c = exp((a_c - max) / tau)
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
ZSKD_INLINE A row_gradient(A e, A f, RowFactors<A> factor) {
  return fma(e, factor.a, -(f * factor.b));
}

// --- a row in parts, for a backend that cannot hold all of it (online softmax, Milakov and Gimelshein 2018) ---

// Sums over some of the elements, relative to the maxima of these elements. An op rescales its sums when maxima rise.
template <class A>
struct RowPart {
  A a_max, b_max;
  RowSums<A> sum;
};

template <class Op, class A>
ZSKD_INLINE RowPart<A> empty_part() {
  return {-infinity<A>(), Op::kOtherIsLogits ? -infinity<A>() : A(0), {0, 0, 0}};
}

// What is subtracted from the logits of a part: not the maximum while that is -inf, since -inf less itself is NaN.
template <class A>
ZSKD_INLINE A origin(A max) {
  return max == -infinity<A>() ? A(0) : max;
}

// How far the origin of the terms moves. A part of -inf logits alone has no terms that feel it.
template <class A>
ZSKD_INLINE A rise(A from, A to) {
  return from == -infinity<A>() ? A(0) : to - from;
}

template <class Op, class A>
ZSKD_INLINE RowPart<A> raised(RowPart<A> part, A a_max, A b_max, Tempered<A> over) {
  return {a_max, b_max, Op::rescaled(part.sum, rise(part.a_max, a_max), rise(part.b_max, b_max), over)};
}

template <class Op, class A>
ZSKD_INLINE RowPart<A> merged(RowPart<A> x, RowPart<A> y, Tempered<A> over) {
  const A a_max = at_least(x.a_max, y.a_max), b_max = at_least(x.b_max, y.b_max);
  x = raised<Op>(x, a_max, b_max, over);
  y = raised<Op>(y, a_max, b_max, over);
  return {a_max, b_max, {x.sum.e + y.sum.e, x.sum.f + y.sum.f, x.sum.dot + y.sum.dot}};
}

template <class Op, class A>
ZSKD_INLINE RowPart<A> with_element(RowPart<A> part, A a, A b, Tempered<A> over) {
  const A a_max = at_least(part.a_max, a), b_max = Op::kOtherIsLogits ? at_least(part.b_max, b) : A(0);
  if (a_max > part.a_max || b_max > part.b_max) part = raised<Op>(part, a_max, b_max, over);
  const A other = Op::kOtherIsLogits ? b - origin(b_max) : b;
  const RowTerm<A> term = Op::term(a - origin(a_max), other, over);
  part.sum = {part.sum.e + term.e, part.sum.f + term.f, part.sum.dot + term.dot};
  return part;
}

// The sums of a finished row. Without a finite logit there is no softmax.
template <class Op, class A>
ZSKD_INLINE RowPart<A> whole_row(RowPart<A> part) {
  if (part.a_max == -infinity<A>()) part.sum.e = infinity<A>() - infinity<A>();
  if (part.b_max == -infinity<A>()) part.sum.f = infinity<A>() - infinity<A>();
  return part;
}

}  // namespace zskd::math
