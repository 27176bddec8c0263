// The maximum of a window of 2x2 and where it lies: the first of equal values in the order of memory, but the last NaN.
#pragma once

#include "math/portable.h"

namespace zskd::math {

// Of one window, or of a vector of windows.
template <class A, class Int>
struct Found {
  A value;
  Int place;
};

template <class A, class Int>
ZSKD_INLINE Found<A, Int> or_later(Found<A, Int> found, A value, Int place) {
  const auto replaces = (value > found.value) | (value != value);
  return {replaces ? value : found.value, replaces ? place : found.place};
}

}  // namespace zskd::math
