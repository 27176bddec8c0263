#include "cpu/kernels.h"
#include "math/philox.h"
#include "math/variates.h"

namespace zskd::cpu::ZSKD_ISA {
namespace {

constexpr int64_t kBlocks = 64;  // Philox blocks that are computed together
constexpr int64_t kVariates = math::kVariatesPerBlock;

template <class T, Distribution distribution>
void fill_row(T* out, int64_t count, math::Halves seed, math::Halves id, uint32_t stream) {
  alignas(64) T first[kBlocks], second[kBlocks], third[kBlocks], fourth[kBlocks];
  for (int64_t base = 0; base < count; base += kVariates * kBlocks) {
    const uint32_t block = static_cast<uint32_t>(base / kVariates);
    const int64_t here = count - base < kVariates * kBlocks ? count - base : kVariates * kBlocks;
    const int blocks = static_cast<int>((here + kVariates - 1) / kVariates);
#pragma omp simd
    for (int b = 0; b < blocks; ++b) {
      const auto words = math::draw(seed, id, block + static_cast<uint32_t>(b), math::Purpose::stream, stream);
      if constexpr (distribution == Distribution::normal) {
        math::normal_pair(words.w0, words.w1, &first[b], &second[b]);
        math::normal_pair(words.w2, words.w3, &third[b], &fourth[b]);
      } else {
        first[b] = math::uniform<T>(words.w0);
        second[b] = math::uniform<T>(words.w1);
        third[b] = math::uniform<T>(words.w2);
        fourth[b] = math::uniform<T>(words.w3);
      }
    }
    const T* const columns[kVariates] = {first, second, third, fourth};
    for (int64_t i = 0; i < here; ++i) out[base + i] = columns[i % kVariates][i / kVariates];
  }
}

template <class T>
void fill(const PhiloxParams& p, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    T* out = static_cast<T*>(p.out) + row * p.count;
    const math::Halves id = math::halves(p.ids[row * p.ids_stride]);
    if (p.distribution == Distribution::normal) {
      fill_row<T, Distribution::normal>(out, p.count, math::halves(p.seed), id, p.stream);
    } else {
      fill_row<T, Distribution::uniform>(out, p.count, math::halves(p.seed), id, p.stream);
    }
  }
}

}  // namespace

void philox(const PhiloxParams& p, int64_t begin, int64_t end) {
  if (p.dtype == Dtype::f64) return fill<double>(p, begin, end);
  fill<float>(p, begin, end);
}

}  // namespace zskd::cpu::ZSKD_ISA
