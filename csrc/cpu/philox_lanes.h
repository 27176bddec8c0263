// Philox4x32-10 for many counters at once. A compiler also turns a loop over math::philox4x32_10 into SIMD code, but
// that code mostly widens words: C++ has no name for the instruction that multiplies the 32-bit words in the even lanes
// to 64-bit products. Here the even and the odd words are held in two registers, in the lower halves of 64-bit lanes;
// the upper halves are ignored.
#pragma once

#include "math/philox.h"

#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace zskd::cpu {
namespace {

// The arrays below must have room for `count` rounded up to a multiple of kPhiloxStep; the outputs are written up to
// there.
constexpr int64_t kPhiloxStep = 16;

struct PhiloxCounters {
  const uint32_t *id_low, *id_high, *index;
  uint32_t last;
};

struct PhiloxWords {
  uint32_t *w0, *w1, *w2, *w3;
};

#if defined(__SSE2__)

#if defined(__AVX512F__)
constexpr int kWideBytes = 64;
#define ZSKD_MULTIPLY_LOW(a, b) (Wide) _mm512_mul_epu32((__m512i)(a), (__m512i)(b))
#elif defined(__AVX2__)
constexpr int kWideBytes = 32;
#define ZSKD_MULTIPLY_LOW(a, b) (Wide) _mm256_mul_epu32((__m256i)(a), (__m256i)(b))
#else
constexpr int kWideBytes = 16;
#define ZSKD_MULTIPLY_LOW(a, b) (Wide) _mm_mul_epu32((__m128i)(a), (__m128i)(b))
#endif

typedef uint64_t Wide __attribute__((vector_size(kWideBytes)));
typedef uint64_t UnalignedWide __attribute__((vector_size(kWideBytes), aligned(4), may_alias));

struct WideBlock {
  Wide w0, w1, w2, w3;
};

ZSKD_INLINE Wide broadcast(uint64_t value) { return Wide{} + value; }

ZSKD_INLINE WideBlock philox_rounds(WideBlock c, uint32_t key0, uint32_t key1) {
  const Wide m0 = broadcast(math::kPhiloxMultiplier0), m1 = broadcast(math::kPhiloxMultiplier1);
#pragma GCC unroll 10
  for (int round = 0; round < 10; ++round) {
    const Wide a = ZSKD_MULTIPLY_LOW(c.w0, m0);
    const Wide b = ZSKD_MULTIPLY_LOW(c.w2, m1);
    c = {(b >> 32) ^ c.w1 ^ broadcast(key0), b, (a >> 32) ^ c.w3 ^ broadcast(key1), a};
    key0 += math::kPhiloxKeyStep0;
    key1 += math::kPhiloxKeyStep1;
  }
  return c;
}

ZSKD_INLINE void store_words(uint32_t* to, Wide even, Wide odd) {
  *reinterpret_cast<UnalignedWide*>(to) = (even & 0xFFFFFFFFu) | (odd << 32);
}

ZSKD_INLINE void philox_blocks(PhiloxCounters counters, math::Halves key, PhiloxWords words, int64_t count) {
  for (int64_t i = 0; i < count; i += kWideBytes / 4) {
    const Wide c0 = *reinterpret_cast<const UnalignedWide*>(counters.id_low + i);
    const Wide c1 = *reinterpret_cast<const UnalignedWide*>(counters.id_high + i);
    const Wide c2 = *reinterpret_cast<const UnalignedWide*>(counters.index + i);
    const Wide c3 = broadcast(counters.last);
    const WideBlock even = philox_rounds({c0, c1, c2, c3}, key.low, key.high);
    const WideBlock odd = philox_rounds({c0 >> 32, c1 >> 32, c2 >> 32, c3}, key.low, key.high);
    store_words(words.w0 + i, even.w0, odd.w0);
    store_words(words.w1 + i, even.w1, odd.w1);
    store_words(words.w2 + i, even.w2, odd.w2);
    store_words(words.w3 + i, even.w3, odd.w3);
  }
}

#undef ZSKD_MULTIPLY_LOW

#else

ZSKD_INLINE void philox_blocks(PhiloxCounters counters, math::Halves key, PhiloxWords words, int64_t count) {
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) {
    const math::PhiloxBlock block = math::philox4x32_10(
        {counters.id_low[i], counters.id_high[i], counters.index[i], counters.last}, key.low, key.high);
    words.w0[i] = block.w0;
    words.w1[i] = block.w1;
    words.w2[i] = block.w2;
    words.w3[i] = block.w3;
  }
}

#endif

}  // namespace
}  // namespace zskd::cpu
