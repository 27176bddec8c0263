// The augmentation of a row: its pixels are moved by an affine map, then it is mixed with the next row, noise is added
// and the result is clamped. Lengths are in pixels; `right` and `down` are distances from the center of the image.
#pragma once

#include "math/variates.h"

namespace zskd::math {

// What a row draws. Each purpose has a stream of its own, counted from the first one of the op.
constexpr uint32_t kAffineStream = 0, kFlipStream = 1, kMixStream = 2, kDeviationStream = 3, kNoiseStream = 4;
constexpr int64_t kAugmentStreams = 5;

struct Augmentation {
  Halves seed;
  uint32_t stream;  // the first one
  bool moves;       // whether pixels are moved
  float rotation_sigma, scale_sigma, shift_sigma, flip_probability;
  float mix_probability;
  float largest_deviation;  // of the noise
  float background;         // the value outside of the image
  float lowest, highest;    // of the result; infinite without a clamp
};

ZSKD_INLINE PhiloxBlock draw_block(const Augmentation& a, Halves id, uint32_t purpose, uint32_t index) {
  return draw(a.seed, id, index, Purpose::stream, a.stream + purpose);
}

// Where an output pixel is sampled: column = right_to_column * right + down_to_column * down + center_column, and the
// row likewise.
struct AffineMap {
  float right_to_column, down_to_column, center_column;
  float right_to_row, down_to_row, center_row;
};

ZSKD_INLINE float center_of(int32_t count) { return 0.5f * static_cast<float>(count - 1); }

ZSKD_INLINE AffineMap draw_map(const Augmentation& a, Halves id, int32_t height, int32_t width) {
  const PhiloxBlock words = draw_block(a, id, kAffineStream, 0);
  float angle, log_scale, shift_right, shift_down;
  normal_pair(words.w0, words.w1, &angle, &log_scale);
  normal_pair(words.w2, words.w3, &shift_right, &shift_down);
  float sine, cosine;
  sincos_turn(turn_of(angle * a.rotation_sigma), &sine, &cosine);
  // The logarithm keeps every scale positive, and zooming in as likely as zooming out.
  const float zoom = exp(log_scale * -a.scale_sigma);
  sine *= zoom;
  cosine *= zoom;
  const float drawn = a.flip_probability > 0 ? uniform<float>(draw_block(a, id, kFlipStream, 0).w0) : 1.0f;
  const float flip = drawn < a.flip_probability ? -1.0f : 1.0f;
  // Shifts are fractions of half the width and half the height.
  const float half_width = 0.5f * static_cast<float>(width), half_height = 0.5f * static_cast<float>(height);
  return {flip * cosine, flip * -sine, fma(shift_right * a.shift_sigma, half_width, center_of(width)),
          sine,          cosine,       fma(shift_down * a.shift_sigma, half_height, center_of(height))};
}

// The places of a row of output pixels: those of its middle, to which each pixel adds its part.
struct PlacesOfRow {
  float column, row, right_to_column, right_to_row;
};

ZSKD_INLINE PlacesOfRow places_of_row(AffineMap map, int32_t i, int32_t height) {
  const float down = static_cast<float>(i) - center_of(height);
  return {fma(map.down_to_column, down, map.center_column), fma(map.down_to_row, down, map.center_row),
          map.right_to_column, map.right_to_row};
}

// The pixel before a place along one axis, and how far the place lies on the way to the pixel after it.
struct Place {
  int32_t pixel;
  float part;
};

// Both pixels of a place this far outside are background, so a place further outside may be moved here: the pixels of
// places are then -kOutside to count + kOutside - 1.
constexpr int32_t kOutside = 2;

// The pixel is rounded down. A NaN is outside, too.
ZSKD_INLINE Place place_of(float at, int32_t count) {
  const float size = static_cast<float>(count);
  at = at > -kOutside ? at : -kOutside;
  at = at < size ? at : size;
  const int32_t toward_zero = static_cast<int32_t>(at);
  const int32_t pixel = toward_zero - (static_cast<float>(toward_zero) > at);
  return {pixel, at - static_cast<float>(pixel)};
}

ZSKD_INLINE Place column_of(PlacesOfRow places, int32_t j, int32_t width) {
  return place_of(fma(places.right_to_column, static_cast<float>(j) - center_of(width), places.column), width);
}

ZSKD_INLINE Place row_of(PlacesOfRow places, int32_t j, int32_t height, int32_t width) {
  return place_of(fma(places.right_to_row, static_cast<float>(j) - center_of(width), places.row), height);
}

// The point that is `part` of the way from one value to the other.
ZSKD_INLINE float between(float from, float to, float part) { return fma(part, to - from, from); }

// The weight of a row in its mixture with the next one; exactly 1 if it is not mixed.
ZSKD_INLINE float draw_weight(const Augmentation& a, Halves id) {
  if (!(a.mix_probability > 0)) return 1.0f;
  const PhiloxBlock words = draw_block(a, id, kMixStream, 0);
  return uniform<float>(words.w0) < a.mix_probability ? uniform<float>(words.w1) : 1.0f;
}

ZSKD_INLINE float draw_deviation(const Augmentation& a, Halves id) {
  if (!(a.largest_deviation > 0)) return 0.0f;
  return uniform<float>(draw_block(a, id, kDeviationStream, 0).w0) * a.largest_deviation;
}

ZSKD_INLINE float clamped(const Augmentation& a, float value) { return at_most(at_least(value, a.lowest), a.highest); }

}  // namespace zskd::math
