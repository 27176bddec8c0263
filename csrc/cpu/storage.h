// The storage types of the CPU backend. 16-bit floats are converted to float32 on load and back on store, in integer
// arithmetic that compiles to SIMD code for every instruction set.
#pragma once

#include "math/portable.h"

namespace zskd::cpu {

struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

using math::accumulate_t;

ZSKD_INLINE float load(const float* p) { return *p; }
ZSKD_INLINE double load(const double* p) { return *p; }

ZSKD_INLINE float load(const BFloat16* p) { return math::bit_cast<float>(uint32_t{p->bits} << 16); }

ZSKD_INLINE float load(const Half* p) {
  const uint32_t sign = uint32_t{p->bits & 0x8000u} << 16;
  const uint32_t magnitude = p->bits & 0x7FFFu;
  // A normal number: shift exponent and mantissa into place, then correct the exponent bias by a multiplication.
  // Infinity and NaN: set all bits of the exponent. A subnormal number: an integer times 2^-24.
  const float normal = math::bit_cast<float>((magnitude << 13) + 0x70000000u) * 0x1p-112f;
  const float special = math::bit_cast<float>((magnitude << 13) | 0x7F800000u);
  const float subnormal = static_cast<float>(static_cast<int32_t>(magnitude)) * 0x1p-24f;
  const float value = magnitude >= 0x7C00u ? special : (magnitude < 0x0400u ? subnormal : normal);
  return math::bit_cast<float>(math::bit_cast<uint32_t>(value) | sign);
}

ZSKD_INLINE void store(float* p, float value) { *p = value; }
ZSKD_INLINE void store(double* p, double value) { *p = value; }

// Rounds to nearest, ties to even. NaN stays NaN.
ZSKD_INLINE void store(BFloat16* p, float value) {
  const uint32_t bits = math::bit_cast<uint32_t>(value);
  const uint32_t rounded = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
  const uint32_t result = (bits & 0x7FFFFFFFu) > 0x7F800000u ? 0x7FC0u | (bits >> 16) : rounded;
  p->bits = static_cast<uint16_t>(result);
}

ZSKD_INLINE void store(Half* p, float value) {
  const uint32_t bits = math::bit_cast<uint32_t>(value);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t magnitude = bits & 0x7FFFFFFFu;
  const uint32_t normal = (magnitude - 0x38000000u + 0x0FFFu + ((magnitude >> 13) & 1u)) >> 13;
  // The low bits of value + 1/2 are the value in units of 2^-24, rounded to nearest even.
  const uint32_t subnormal = math::bit_cast<uint32_t>(math::bit_cast<float>(magnitude) + 0.5f) - 0x3F000000u;
  uint32_t result = magnitude < 0x38800000u ? subnormal : normal;
  result = magnitude >= 0x477FF000u ? 0x7C00u : result;  // values that round to infinity
  result = magnitude > 0x7F800000u ? 0x7E00u : result;   // NaN
  p->bits = static_cast<uint16_t>(result | sign);
}

}  // namespace zskd::cpu
