// The gradient of the total variation, sum (x_i - x_j)^2 over the neighboring pixels i and j of an image, with respect
// to one pixel: twice the sum of its differences from its neighbors.
#pragma once

#include "math/portable.h"

namespace zskd::math {

// Beyond the edge of the image a neighbor is the pixel itself: its difference is 0. A mirrored image has the mirrored
// result, because the two neighbors of an axis are added first.
template <class A>
ZSKD_INLINE A neighbor_differences(A x, A above, A below, A left, A right) {
  return ((x - above) + (x - below)) + ((x - left) + (x - right));
}

}  // namespace zskd::math
