// A row of pixels at a time, with all channels in the first cache: each leaf in turn is painted over the ones before.
#include "cpu/kernels.h"
#include "math/dead_leaves.h"

namespace zskd::cpu::ZSKD_ISA {
namespace {

constexpr int64_t kPixels = 64;  // of a row, painted together

template <bool kBox>
void paint(const DeadLeavesParams& p, const float* leaf, float row, const float* columns, int64_t pixels, float* out) {
  const math::LeafRow from = math::leaf_row(leaf, row);
  alignas(64) int32_t covered[kPixels];
#pragma omp simd
  for (int64_t j = 0; j < pixels; ++j) covered[j] = math::leaf_covers<kBox>(from, columns[j]);
  for (int64_t c = 0; c < p.channels; ++c) {
    const float value = leaf[math::kLeafNumbers + c];
    float* const to = out + c * p.height * p.width;
#pragma omp simd
    for (int64_t j = 0; j < pixels; ++j) to[j] = covered[j] ? value : to[j];
  }
}

void paint_row(const DeadLeavesParams& p, const float* leaves, int64_t i, float* image) {
  const float row = math::pixel_center(i, p.height);
  alignas(64) float columns[kPixels];
  for (int64_t first = 0; first < p.width; first += kPixels) {
    const int64_t pixels = p.width - first < kPixels ? p.width - first : kPixels;
    float* const out = image + i * p.width + first;
    for (int64_t j = 0; j < pixels; ++j) columns[j] = math::pixel_center(first + j, p.width);
    for (int64_t c = 0; c < p.channels; ++c) {
      for (int64_t j = 0; j < pixels; ++j) out[c * p.height * p.width + j] = 0.0f;
    }
    for (int64_t l = 0; l < p.leaves; ++l) {
      const float* const leaf = leaves + l * (math::kLeafNumbers + p.channels);
      if (l % 2 == 0) {
        paint<false>(p, leaf, row, columns, pixels, out);
      } else {
        paint<true>(p, leaf, row, columns, pixels, out);
      }
    }
  }
}

}  // namespace

void dead_leaves(const DeadLeavesParams& p, int64_t begin, int64_t end) {
  for (int64_t n = begin; n < end; ++n) {
    const float* const leaves = p.numbers + n * p.leaves * (math::kLeafNumbers + p.channels);
    for (int64_t i = 0; i < p.height; ++i) paint_row(p, leaves, i, p.out + n * p.channels * p.height * p.width);
  }
}

}  // namespace zskd::cpu::ZSKD_ISA
