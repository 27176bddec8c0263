// A row is moved into its place in the output and finished there. If it is mixed, the next row is moved first: into its
// own place, where its turn then finds it, or into scratch if that place belongs to another thread.
#include "cpu/kernels.h"
#include "cpu/philox_lanes.h"
#include "math/augment.h"

namespace zskd::cpu::ZSKD_ISA {
namespace {

constexpr int64_t kBlocks = 64;  // Philox blocks that are computed together
constexpr int64_t kVariates = math::kVariatesPerBlock;
constexpr int64_t kPixels = 64;  // of a row, sampled together
constexpr int64_t kBorder = math::kOutside;

// Normal variates of one row, a chunk at a time.
struct Noise {
  alignas(64) uint32_t id_low[kBlocks], id_high[kBlocks], index[kBlocks];
  alignas(64) uint32_t w0[kBlocks], w1[kBlocks], w2[kBlocks], w3[kBlocks];
  alignas(64) float values[kBlocks * kVariates];

  // The `blocks` blocks from the `first` on.
  void draw(const math::Augmentation& a, math::Halves id, int64_t first, int64_t blocks) {
    for (int64_t b = 0; b < kBlocks; ++b) {
      id_low[b] = id.low;
      id_high[b] = id.high;
      index[b] = static_cast<uint32_t>(first + b);
    }
    const uint32_t last = math::last_word(math::Purpose::stream, a.stream + math::kNoiseStream);
    philox_blocks({id_low, id_high, index, last}, a.seed, {w0, w1, w2, w3}, blocks);
    alignas(64) float n0[kBlocks], n1[kBlocks], n2[kBlocks], n3[kBlocks];
#pragma omp simd
    for (int64_t b = 0; b < blocks; ++b) {
      math::normal_pair(w0[b], w1[b], &n0[b], &n1[b]);
      math::normal_pair(w2[b], w3[b], &n2[b], &n3[b]);
    }
    for (int64_t b = 0; b < blocks; ++b) {
      values[kVariates * b] = n0[b];
      values[kVariates * b + 1] = n1[b];
      values[kVariates * b + 2] = n2[b];
      values[kVariates * b + 3] = n3[b];
    }
  }
};

class Rows {
 public:
  Rows(const AugmentParams& params, float* scratch)
      : p_(params),
        a_(params.numbers),
        size_(params.channels * params.height * params.width),
        stride_(params.width + 2 * kBorder),
        plane_((params.height + 2 * kBorder) * stride_),
        spare_(scratch),
        framed_(scratch + size_) {
    if (!a_.moves) return;
    for (int64_t i = 0; i < p_.channels * plane_; ++i) framed_[i] = a_.background;
  }

  void run(int64_t begin, int64_t end) {
    const float* own = nullptr;  // this row, moved, if the row before was mixed with it
    for (int64_t row = begin; row < end; ++row) {
      float* const out = p_.out + row * size_;
      if (own == nullptr) own = moved(row, out);
      const float weight = math::draw_weight(a_, id(row));
      const float* next = nullptr;
      if (weight < 1) next = moved(row + 1 < p_.rows ? row + 1 : 0, row + 1 < end ? out + size_ : spare_);
      mix(own, next, weight, out);
      add_noise(row, out);
      for (int64_t i = 0; i < size_; ++i) out[i] = math::clamped(a_, out[i]);
      own = next;
    }
  }

 private:
  math::Halves id(int64_t row) const { return math::halves(p_.positions[row * p_.positions_stride]); }

  // The row with its pixels moved, in `to`; the row itself if none are.
  const float* moved(int64_t row, float* to) {
    const float* const x = p_.x + row * size_;
    if (!a_.moves) return x;
    frame(x);
    const auto height = static_cast<int32_t>(p_.height), width = static_cast<int32_t>(p_.width);
    const math::AffineMap map = math::draw_map(a_, id(row), height, width);
    for (int32_t i = 0; i < height; ++i) {
      const math::PlacesOfRow places = math::places_of_row(map, i, height);
      for (int64_t first = 0; first < width; first += kPixels) {
        const int64_t pixels = width - first < kPixels ? width - first : kPixels;
        sample(places, static_cast<int32_t>(first), pixels, to + i * p_.width + first);
      }
    }
    return to;
  }

  // Copies an image into a frame of background, so that a pixel outside needs no special case.
  void frame(const float* x) {
    for (int64_t c = 0; c < p_.channels; ++c) {
      for (int64_t i = 0; i < p_.height; ++i) {
        float* const to = inside(c) + i * stride_;
        for (int64_t j = 0; j < p_.width; ++j) to[j] = x[j];
        x += p_.width;
      }
    }
  }

  float* inside(int64_t channel) const { return framed_ + channel * plane_ + kBorder * stride_ + kBorder; }

  void sample(math::PlacesOfRow places, int32_t first, int64_t pixels, float* to) const {
    const auto height = static_cast<int32_t>(p_.height), width = static_cast<int32_t>(p_.width);
    const auto stride = static_cast<int32_t>(stride_);
    alignas(64) int32_t at[kPixels];
    alignas(64) float right[kPixels], down[kPixels];
#pragma omp simd
    for (int32_t j = 0; j < pixels; ++j) {
      const math::Place column = math::column_of(places, first + j, width);
      const math::Place row = math::row_of(places, first + j, height, width);
      at[j] = row.pixel * stride + column.pixel;
      right[j] = column.part;
      down[j] = row.part;
    }
    for (int64_t c = 0; c < p_.channels; ++c) {
      const float* const pixel = inside(c);
      const float* const below = pixel + stride_;
      float* const out = to + c * p_.height * p_.width;
#pragma omp simd
      for (int64_t j = 0; j < pixels; ++j) {
        const float upper = math::between(pixel[at[j]], pixel[at[j] + 1], right[j]);
        const float lower = math::between(below[at[j]], below[at[j] + 1], right[j]);
        out[j] = math::between(upper, lower, down[j]);
      }
    }
  }

  // `next` is null if the row is not mixed.
  void mix(const float* own, const float* next, float weight, float* out) const {
    if (next != nullptr) {
#pragma omp simd
      for (int64_t i = 0; i < size_; ++i) out[i] = math::between(next[i], own[i], weight);
    } else if (own != out) {
      for (int64_t i = 0; i < size_; ++i) out[i] = own[i];
    }
  }

  void add_noise(int64_t row, float* out) {
    const float deviation = math::draw_deviation(a_, id(row));
    if (deviation == 0) return;
    constexpr int64_t together = kBlocks * kVariates;
    for (int64_t first = 0; first < size_; first += together) {
      const int64_t count = size_ - first < together ? size_ - first : together;
      noise_.draw(a_, id(row), first / kVariates, (count + kVariates - 1) / kVariates);
#pragma omp simd
      for (int64_t i = 0; i < count; ++i) out[first + i] = math::fma(deviation, noise_.values[i], out[first + i]);
    }
  }

  const AugmentParams& p_;
  const math::Augmentation a_;
  const int64_t size_, stride_, plane_;
  float* const spare_;   // room for a row
  float* const framed_;  // room for an image in its frame
  Noise noise_;
};

}  // namespace

void augment(const AugmentParams& p, int64_t begin, int64_t end, float* scratch) { Rows(p, scratch).run(begin, end); }

}  // namespace zskd::cpu::ZSKD_ISA
