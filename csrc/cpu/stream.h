// Memory traffic beside the arithmetic: lines asked for ahead, and stores past the cache. A large output that nothing
// reads soon need not be fetched into the cache before it is overwritten, which saves a quarter of the memory traffic
// of a row loss.
#pragma once

#include "math/portable.h"

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace zskd::cpu {

// Beyond what a last-level cache keeps for one core, so that a small output stays where its reader finds it.
constexpr int64_t kStreamBytes = int64_t{32} << 20;
constexpr int64_t kLine = 64;  // bytes of a cache line

ZSKD_INLINE bool should_stream(int64_t bytes) {
#if defined(__SSE2__)
  return bytes >= kStreamBytes;
#else
  return bytes < 0;
#endif
}

// Before another thread reads what stream_copy wrote.
ZSKD_INLINE void stream_fence() {
#if defined(__SSE2__)
  _mm_sfence();
#endif
}

// Asks for `count` elements from memory while something else is computed. They may lie beyond an array: nothing is
// read.
template <class T>
ZSKD_INLINE void prefetch(const T* from, int64_t count) {
  for (int64_t i = 0; i < count; i += kLine / static_cast<int64_t>(sizeof(T))) __builtin_prefetch(from + i);
}

template <class T>
ZSKD_INLINE void stream_copy(T* to, const T* from, int64_t count) {
  int64_t i = 0;
#if defined(__SSE2__)
  constexpr int64_t kStep = 16 / static_cast<int64_t>(sizeof(T));
  for (; i < count && reinterpret_cast<uintptr_t>(to + i) % 16 != 0; ++i) to[i] = from[i];
  for (; i + kStep <= count; i += kStep) {
    _mm_stream_si128(reinterpret_cast<__m128i*>(to + i), _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i)));
  }
#endif
  for (; i < count; ++i) to[i] = from[i];
}

}  // namespace zskd::cpu
