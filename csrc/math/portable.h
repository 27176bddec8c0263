// What all formulas in this folder share, so that they compile for a CPU and for a CUDA device.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define ZSKD_INLINE static __host__ __device__ __forceinline__
#else
// Internal linkage and always inlined: these headers are compiled once per instruction set. If the linker merged the
// copies of a function, the one that it keeps could execute AVX instructions on a machine without AVX.
#define ZSKD_INLINE static inline __attribute__((always_inline))
#endif

namespace zskd::math {

// The type in which elements of type T are computed and summed: float for 16-bit floats, otherwise T.
template <class T>
struct Accumulate {
  using Type = float;
};
template <>
struct Accumulate<double> {
  using Type = double;
};
template <class T>
using accumulate_t = typename Accumulate<T>::Type;

// a * b + c with a single rounding. On a processor without an FMA instruction this is a slow library call. A source
// file may define ZSKD_FMA_MAY_ROUND_TWICE to avoid it, if its results may differ between processors in the last bits.
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

// max(a, low) and min(a, high). If `a` is NaN the result is NaN, because every comparison with NaN is false.
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
