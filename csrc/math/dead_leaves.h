// A leaf of a dead-leaves image: an ellipse or a box that is turned and shifted. Lengths are in halves of the image's
// height and width.
#pragma once

#include "math/portable.h"

namespace zskd::math {

constexpr int kLeafNumbers = 6;  // in front of the gray values of a leaf

// The center of pixel i of `count`, between -1 and 1.
ZSKD_INLINE float pixel_center(int64_t i, int64_t count) {
  return static_cast<float>(2 * i + 1) / static_cast<float>(count) - 1.0f;
}

// A leaf as seen from one row of pixels: the coordinates along its two axes, in units of its half-axes, are
// slope * right + offset, where `right` is the distance from its center.
struct LeafRow {
  float center_column, along_slope, along_offset, across_slope, across_offset;
};

// `leaf`: center row, center column, then the coordinate along the first axis per unit right and down, and across it.
ZSKD_INLINE LeafRow leaf_row(const float* leaf, float row) {
  const float down = row - leaf[0];
  return {leaf[1], leaf[2], leaf[3] * down, leaf[4], leaf[5] * down};
}

template <bool kBox>
ZSKD_INLINE bool leaf_covers(LeafRow leaf, float column) {
  const float right = column - leaf.center_column;
  const float along = leaf.along_slope * right + leaf.along_offset;
  const float across = leaf.across_slope * right + leaf.across_offset;
  if constexpr (kBox) return (__builtin_fabsf(along) < 1.0f) & (__builtin_fabsf(across) < 1.0f);
  return along * along + across * across < 1.0f;
}

}  // namespace zskd::math
