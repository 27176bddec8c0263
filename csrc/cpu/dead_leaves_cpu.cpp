// Each leaf in turn is painted over the ones before, on a row of pixels at a time, with all channels in the first
// cache.
#include "cpu/kernels.h"
#include "math/dead_leaves.h"

namespace zskd::cpu::ZSKD_ISA {
namespace {

constexpr int64_t kPixels = 64;  // of a row, painted together
constexpr int64_t kChunk = 64;   // leaves whose shapes are computed together

template <bool kBox>
void paint(const DeadLeavesParams& p, const math::LeafShape& shape, const float* values, float row,
           const float* columns, int64_t pixels, float* out) {
  const math::LeafRow from = math::leaf_row(shape, row);
  alignas(64) int32_t covered[kPixels];
#pragma omp simd
  for (int64_t j = 0; j < pixels; ++j) covered[j] = math::leaf_covers<kBox>(from, columns[j]);
  for (int64_t c = 0; c < p.channels; ++c) {
    const float value = values[c];
    float* const to = out + c * p.height * p.width;
#pragma omp simd
    for (int64_t j = 0; j < pixels; ++j) to[j] = covered[j] ? value : to[j];
  }
}

// Some of an image's leaves, from an even one on.
struct Chunk {
  const float* numbers;
  int64_t count, stride;  // from one leaf's numbers to the next one's
  math::LeafShape shapes[kChunk];

  Chunk(const DeadLeavesParams& p, int64_t image, int64_t first)
      : count(p.leaves - first < kChunk ? p.leaves - first : kChunk), stride(math::kLeafNumbers + p.channels) {
    numbers = p.numbers + (image * p.leaves + first) * stride;
    for (int64_t l = 0; l < count; ++l) shapes[l] = math::leaf_shape(numbers + l * stride);
  }
};

void paint_row(const DeadLeavesParams& p, const Chunk& leaves, int64_t i, float* image) {
  const float row = math::pixel_center(i, p.height);
  alignas(64) float columns[kPixels];
  for (int64_t first = 0; first < p.width; first += kPixels) {
    const int64_t pixels = p.width - first < kPixels ? p.width - first : kPixels;
    float* const out = image + i * p.width + first;
    for (int64_t j = 0; j < pixels; ++j) columns[j] = math::pixel_center(first + j, p.width);
    for (int64_t l = 0; l < leaves.count; ++l) {
      const float* const values = leaves.numbers + l * leaves.stride + math::kLeafNumbers;
      if (l % 2 == 0) {
        paint<false>(p, leaves.shapes[l], values, row, columns, pixels, out);
      } else {
        paint<true>(p, leaves.shapes[l], values, row, columns, pixels, out);
      }
    }
  }
}

}  // namespace

void dead_leaves(const DeadLeavesParams& p, int64_t begin, int64_t end) {
  const int64_t size = p.channels * p.height * p.width;
  for (int64_t n = begin; n < end; ++n) {
    float* const image = p.out + n * size;
    for (int64_t i = 0; i < size; ++i) image[i] = 0.0f;
    for (int64_t first = 0; first < p.leaves; first += kChunk) {
      const Chunk leaves(p, n, first);
      for (int64_t i = 0; i < p.height; ++i) paint_row(p, leaves, i, image);
    }
  }
}

}  // namespace zskd::cpu::ZSKD_ISA
