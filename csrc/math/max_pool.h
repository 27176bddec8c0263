// The maximum of a 2x2 window and its place. If several elements are equal, the first one in memory is taken; if
// several are NaN, the last one.
#pragma once

#include "math/portable.h"

namespace zskd::math {

// The maximum of the elements so far: of one window, or of several windows where A and Int are vector types.
template <class A, class Int>
struct Found {
  A value;
  Int place;
};

// `found` or, if it is larger or NaN, an element later in memory.
template <class A, class Int>
ZSKD_INLINE Found<A, Int> or_later(Found<A, Int> found, A value, Int place) {
  const auto replaces = (value > found.value) | (value != value);
  return {replaces ? value : found.value, replaces ? place : found.place};
}

}  // namespace zskd::math
