// Uniform and normal variates from 32-bit random words.
#pragma once

#include "math/elementary.h"
#include "math/philox.h"

namespace zskd::math {

// The number of uniform or normal variates that one Philox block gives.
constexpr int kVariatesPerBlock = 4;

// The midpoint of one of 2^23 (float) or 2^32 (double) equal cells of (0, 1): exact, never 0 and never 1.
template <class T>
ZSKD_INLINE T uniform(uint32_t word) {
  if constexpr (sizeof(T) == sizeof(float)) {
    return fma(static_cast<float>(static_cast<int32_t>(word >> 9)), 0x1p-23f, 0x1p-24f);
  } else {
    // Converts word - 2^31, a signed integer: before AVX-512, x86 has no instruction for the unsigned conversion.
    return fma(static_cast<double>(static_cast<int32_t>(word ^ 0x80000000u)), 0x1p-32, 0x1.00000001p-1);
  }
}

// log(U) with U = (word + 1/2) / 2^32. Near U = 1 it is computed from 1 - U, which is exact, while U itself is rounded.
// The difference matters, because a concentration of 1e-6 divides this logarithm by 1e-6.
template <class T>
ZSKD_INLINE T log_uniform(uint32_t word) {
  const bool near_one = word >= 0xB6000000u;  // U > sqrt(1/2): log_parts would give e = 0
  const T below_one = (static_cast<T>(static_cast<int32_t>(~word & 0x7FFFFFFFu)) + T(0.5)) * T(0x1p-32);
  // Two halves of 16 bits: each conversion is exact, and the sum is rounded once.
  const T u = (static_cast<T>(static_cast<int32_t>(word >> 16)) * T(65536) +
               (static_cast<T>(static_cast<int32_t>(word & 0xFFFFu)) + T(0.5))) *
              T(0x1p-32);
  const LogParts<T> parts = log_parts(u);
  return log_of(LogParts<T>{near_one ? -below_one : parts.f, near_one ? T(0) : parts.e});
}

// Two independent standard normal variates (Box and Muller 1958).
template <class T>
ZSKD_INLINE void normal_pair(uint32_t word0, uint32_t word1, T* first, T* second) {
  const T radius = sqrt(T(-2) * log_uniform<T>(word0));
  T sine, cosine;
  sincos_turn(word1, &sine, &cosine);
  *first = radius * cosine;
  *second = radius * sine;
}

// The first variate of the pair.
template <class T>
ZSKD_INLINE T normal(uint32_t word0, uint32_t word1) {
  T first, second;
  normal_pair(word0, word1, &first, &second);
  return first;
}

}  // namespace zskd::math
