// Prefetching, and stores that bypass the cache. An ordinary store first reads the cache line that it overwrites. For a
// large output that is not read soon, a store that bypasses the cache avoids this read, which saves a quarter of the
// memory traffic of a row loss.
#pragma once

#include "math/portable.h"

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace zskd::cpu {

// More than a last-level cache holds per core. A smaller output stays in the cache, where it is read next.
constexpr int64_t kStreamBytes = int64_t{32} << 20;
constexpr int64_t kLine = 64;  // bytes of a cache line

ZSKD_INLINE bool should_stream(int64_t bytes) {
#if defined(__SSE2__)
  return bytes >= kStreamBytes;
#else
  return bytes < 0;
#endif
}

// Call it after stream_copy, before another thread reads the copy.
ZSKD_INLINE void stream_fence() {
#if defined(__SSE2__)
  _mm_sfence();
#endif
}

// Starts to load `count` elements into the cache. The addresses may lie beyond the end of an array: a prefetch of an
// invalid address has no effect.
template <class T>
ZSKD_INLINE void prefetch(const T* from, int64_t count) {
  for (int64_t i = 0; i < count; i += kLine / static_cast<int64_t>(sizeof(T))) __builtin_prefetch(from + i);
}

// Copies `count` elements with stores that bypass the cache.
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
