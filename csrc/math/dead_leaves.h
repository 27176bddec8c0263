// A leaf of a dead-leaves image: an ellipse or a box that is turned and shifted. Lengths are in halves of the image's
// height and width.
#pragma once

#include "math/elementary.h"

namespace zskd::math {

// In front of the values of a leaf: row and column of its center, its half-axes, and the angle from the columns to the
// first of them.
constexpr int kLeafNumbers = 5;

// The center of pixel i of `count`, between -1 and 1.
ZSKD_INLINE float pixel_center(int64_t i, int64_t count) {
  return static_cast<float>(2 * i + 1) / static_cast<float>(count) - 1.0f;
}

// The coordinates along the two axes, in units of the half-axes, per unit right and per unit down from the center.
struct LeafShape {
  float center_row, center_column, along_right, along_down, across_right, across_down;
};

ZSKD_INLINE LeafShape leaf_shape(const float* leaf) {
  const float first = leaf[2], second = leaf[3], angle = leaf[4];
  float sine, cosine;
  sincos_turn(turn_of(angle), &sine, &cosine);
  sine += angle - angle;  // NaN if the angle is no number: such a leaf covers nothing
  cosine += angle - angle;
  return {leaf[0], leaf[1], cosine / first, sine / first, -sine / second, cosine / second};
}

// A leaf as seen from one row of pixels: the coordinates along its two axes are slope * right + offset, where `right`
// is the distance from its center.
struct LeafRow {
  float center_column, along_slope, along_offset, across_slope, across_offset;
};

ZSKD_INLINE LeafRow leaf_row(const LeafShape& leaf, float row) {
  const float down = row - leaf.center_row;
  return {leaf.center_column, leaf.along_right, leaf.along_down * down, leaf.across_right, leaf.across_down * down};
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
