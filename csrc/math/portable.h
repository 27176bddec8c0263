// What every formula in this folder needs to compile for a CPU and for a CUDA device alike.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define ZSKD_INLINE static __host__ __device__ __forceinline__
#else
// Internal linkage, and always inlined: the same header is compiled once per instruction set, and a copy that the
// linker merged across translation units could carry AVX instructions onto a machine that has none.
#define ZSKD_INLINE static inline __attribute__((always_inline))
#endif

namespace zskd::math {

// One rounding. Where a processor has no such instruction it is a slow library call: a source that promises an accuracy
// but no particular bits defines ZSKD_FMA_MAY_ROUND_TWICE.
#if defined(ZSKD_FMA_MAY_ROUND_TWICE) && defined(__x86_64__) && !defined(__FMA__)
ZSKD_INLINE float fma(float a, float b, float c) { return a * b + c; }
ZSKD_INLINE double fma(double a, double b, double c) { return a * b + c; }
#else
ZSKD_INLINE float fma(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
ZSKD_INLINE double fma(double a, double b, double c) { return __builtin_fma(a, b, c); }
#endif

ZSKD_INLINE float sqrt(float a) { return __builtin_sqrtf(a); }
ZSKD_INLINE double sqrt(double a) { return __builtin_sqrt(a); }

template <class To, class From>
ZSKD_INLINE constexpr To bit_cast(From from) {
  return __builtin_bit_cast(To, from);
}

template <class T>
ZSKD_INLINE T infinity() {
  return static_cast<T>(__builtin_inf());
}

// A NaN in `a` is kept: every comparison with it is false.
template <class T>
ZSKD_INLINE T at_least(T a, T low) {
  return a < low ? low : a;
}

template <class T>
ZSKD_INLINE T at_most(T a, T high) {
  return a > high ? high : a;
}

// c[0] + c[1] x + ... + c[N-1] x^(N-1), by Horner's rule.
template <class T, int N>
ZSKD_INLINE T polynomial(T x, const T (&c)[N]) {
  T sum = c[N - 1];
#pragma GCC unroll 16
  for (int i = N - 2; i >= 0; --i) sum = fma(sum, x, c[i]);
  return sum;
}

}  // namespace zskd::math
