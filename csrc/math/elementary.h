// exp, log, sin and cos from IEEE add, multiply, divide, fma and integer operations only: no libm, no tables and no
// branches, so that a loop over them compiles to SIMD code, and a CPU and a GPU give the same bits. The coefficients
// are minimax fits of the relative error (Remez exchange with 60 digits), rounded to T. The tests check that the error
// is at most 2 ulp.
#pragma once

#include "math/portable.h"

namespace zskd::math {

template <class T>
struct Binary;  // the layout of an IEEE number, and the constants that depend on it

template <>
struct Binary<float> {
  using Int = int32_t;
  using UInt = uint32_t;
  static constexpr int kMantissaBits = 23;
  static constexpr Int kBias = 127;
  static constexpr float kRoundToInt = 0x1.8p23f;  // x + kRoundToInt has the integer nearest to x in its low bits
  static constexpr float kExpLow = -104.0f;        // exp(x) is 0 for x < kExpLow and infinite for x > kExpHigh
  static constexpr float kExpHigh = 89.0f;
  static constexpr float kLog2E = 0x1.715476p+0f;
  static constexpr float kLn2High = 0x1.62e4p-1f;
  static constexpr float kLn2Low = 0x1.7f7d1cp-20f;
  static constexpr float kSqrtHalf = 0x1.6a09e6p-1f;
};

template <>
struct Binary<double> {
  using Int = int64_t;
  using UInt = uint64_t;
  static constexpr int kMantissaBits = 52;
  static constexpr Int kBias = 1023;
  static constexpr double kRoundToInt = 0x1.8p52;
  static constexpr double kExpLow = -746.0;
  static constexpr double kExpHigh = 710.0;
  static constexpr double kLog2E = 0x1.71547652b82fep+0;
  static constexpr double kLn2High = 0x1.62e42p-1;
  static constexpr double kLn2Low = 0x1.fdf473de6af28p-22;
  static constexpr double kSqrtHalf = 0x1.6a09e667f3bcdp-1;
};

// (exp(r) - 1 - r) / r^2 for |r| <= ln(2)/2
ZSKD_INLINE float exp_tail(float r) {
  constexpr float c[] = {0x1.fffffcp-2f, 0x1.555492p-3f, 0x1.5558f2p-5f, 0x1.123ap-7f, 0x1.6a240cp-10f};
  return polynomial(r, c);
}
ZSKD_INLINE double exp_tail(double r) {
  constexpr double c[] = {0x1.000000000000ap-1,  0x1.55555555554fap-3,  0x1.5555555550860p-5,  0x1.1111111127c73p-7,
                          0x1.6c16c18430d34p-10, 0x1.a01a012a345ebp-13, 0x1.a01999f8ef403p-16, 0x1.71df25832c855p-19,
                          0x1.28ad85b752b3ep-22, 0x1.ad7f52c47ab9bp-26};
  return polynomial(r, c);
}

// (cos(x) - 1 + x^2/2) / x^4 and (sin(x)/x - 1) / x^2 as functions of t = x^2, for |x| <= pi/4
ZSKD_INLINE float cos_tail(float t) {
  constexpr float c[] = {0x1.55554ap-5f, -0x1.6c0c8cp-10f, 0x1.9a0232p-16f};
  return polynomial(t, c);
}
ZSKD_INLINE double cos_tail(double t) {
  constexpr double c[] = {0x1.555555555554cp-5,   -0x1.6c16c16c15181p-10, 0x1.a01a019cb217dp-16,
                          -0x1.27e4f80a34992p-22, 0x1.1ee9ec192f14bp-29,  -0x1.8faeb6333d55dp-37};
  return polynomial(t, c);
}
ZSKD_INLINE float sin_tail(float t) {
  constexpr float c[] = {-0x1.555546p-3f, 0x1.110760p-7f, -0x1.994e86p-13f};
  return polynomial(t, c);
}
ZSKD_INLINE double sin_tail(double t) {
  constexpr double c[] = {-0x1.5555555555549p-3, 0x1.111111110f87dp-7,   -0x1.a01a019c12010p-13,
                          0x1.71de357814d5dp-19, -0x1.ae5e668766e83p-26, 0x1.5d931813649a9p-33};
  return polynomial(t, c);
}

// 2^n for a normal result.
template <class T>
ZSKD_INLINE T power_of_two(typename Binary<T>::Int n) {
  return bit_cast<T>(static_cast<typename Binary<T>::Int>((n + Binary<T>::kBias) << Binary<T>::kMantissaBits));
}

// exp(x) = 2^n exp(r) with r = x - n ln(2). 2^n is split into two factors, so that a subnormal result is rounded only
// once and n may be 128 (float) or 1024 (double). exp(NaN) = NaN, exp(-inf) = 0, exp(inf) = inf.
template <class T>
ZSKD_INLINE T exp(T x) {
  using B = Binary<T>;
  using Int = typename B::Int;
  x = at_most(at_least(x, B::kExpLow), B::kExpHigh);
  const T shifted = fma(x, B::kLog2E, B::kRoundToInt);
  const Int n = bit_cast<Int>(shifted) - bit_cast<Int>(B::kRoundToInt);
  const T whole = shifted - B::kRoundToInt;
  const T r = fma(-whole, B::kLn2Low, fma(-whole, B::kLn2High, x));
  const T p = fma(r * r, exp_tail(r), r) + T(1);
  // n / 2, rounded down. Not n >> 1: before AVX-512, x86 has no SIMD arithmetic shift of 64-bit integers.
  const Int half = static_cast<Int>(static_cast<typename B::UInt>(n + 2048) >> 1) - 1024;
  return p * power_of_two<T>(half) * power_of_two<T>(n - half);
}

// exp(x) for x <= 0. A result below the smallest normal number is flushed to 0: 2^n is one factor, and it is 0 for the
// smallest n, -kBias.
template <class T>
ZSKD_INLINE T exp_nonpositive(T x) {
  using B = Binary<T>;
  using Int = typename B::Int;
  constexpr T lowest = T(-B::kBias) * T(0.693147180559945309417);
  const T clamped = at_least(x, lowest);
  const T shifted = fma(clamped, B::kLog2E, B::kRoundToInt);
  const Int n = bit_cast<Int>(shifted) - bit_cast<Int>(B::kRoundToInt);
  const T whole = shifted - B::kRoundToInt;
  const T r = fma(-whole, B::kLn2Low, fma(-whole, B::kLn2High, clamped));
  const T p = fma(r, fma(r, exp_tail(r), T(1)), T(1));
  return p * power_of_two<T>(n);
}

// (2^r - 1) / r for |r| <= 1/2
ZSKD_INLINE float exp2_quotient(float r) {
  constexpr float c[] = {0x1.62e430p-1f, 0x1.ebfbdcp-3f,  0x1.c6aee8p-5f,
                         0x1.3b2d4cp-7f, 0x1.5f3e52p-10f, 0x1.41fbbcp-13f};
  return polynomial(r, c);
}
ZSKD_INLINE double exp2_quotient(double r) {
  constexpr double c[] = {0x1.62e42fefa39efp-1,  0x1.ebfbdff82c5a4p-3,  0x1.c6b08d7049fe8p-5,  0x1.3b2ab6fba011ap-7,
                          0x1.5d87fe78cd6cfp-10, 0x1.4309130ed8cd5p-13, 0x1.ffcbfba980f96p-17, 0x1.62bfc79d4b59fp-20,
                          0x1.b5267cdfd91eep-24, 0x1.e61b4f9a207f5p-28, 0x1.e79bb6fc55606p-32};
  return polynomial(r, c);
}

// The form in which exp(x / tau) takes the temperature tau: exp(x / tau) = 2^(x * log2_scale), flushed to 0 for
// x <= lowest.
template <class T>
struct ExpScale {
  T log2_scale, lowest;
};

template <class T>
ZSKD_INLINE ExpScale<T> exp_scale_of(double temperature) {
  constexpr double log2_e = 1.44269504088896340736;
  return {static_cast<T>(log2_e / temperature), static_cast<T>(-Binary<T>::kBias * temperature / log2_e)};
}

// exp(x / tau) for x <= 0, flushed to 0 as exp_nonpositive(x) is. The multiplication by log2_scale replaces the one by
// log2(e), so that the temperature costs nothing. The fraction of x * log2_scale is rounded only once.
template <class T>
ZSKD_INLINE T exp_nonpositive(T x, ExpScale<T> exp_scale) {
  using B = Binary<T>;
  using Int = typename B::Int;
  const T clamped = at_least(x, exp_scale.lowest);
  const T shifted = fma(clamped, exp_scale.log2_scale, B::kRoundToInt);
  const Int n = bit_cast<Int>(shifted) - bit_cast<Int>(B::kRoundToInt);
  const T r = fma(clamped, exp_scale.log2_scale, -(shifted - B::kRoundToInt));
  return fma(r, exp2_quotient(r), T(1)) * power_of_two<T>(n);
}

// x = 2^e (1 + f) with 1 + f in [sqrt(1/2), sqrt(2)).
template <class T>
struct LogParts {
  T f, e;
};

// The parts of a positive, finite, normal x.
template <class T>
ZSKD_INLINE LogParts<T> log_parts(T x) {
  using B = Binary<T>;
  using Int = typename B::Int;
  constexpr Int root = bit_cast<Int>(B::kSqrtHalf);
  constexpr Int bias = B::kBias + 1;  // makes `shifted` positive, so that a logical shift is enough (see exp)
  const Int bits = bit_cast<Int>(x);
  const Int shifted = bits - root + (bias << B::kMantissaBits);
  const Int e = static_cast<Int>(static_cast<typename B::UInt>(shifted) >> B::kMantissaBits) - bias;
  const T m = bit_cast<T>(static_cast<Int>(bits - (e << B::kMantissaBits)));
  // e converted to T through the low bits of kRoundToInt: there may be no instruction that converts 64-bit integers.
  const T exponent = bit_cast<T>(static_cast<Int>(e + bit_cast<Int>(B::kRoundToInt))) - B::kRoundToInt;
  return {m - T(1), exponent};
}

// log(x) = e log(2) + f + f^2 q(f).
ZSKD_INLINE float log_of(LogParts<float> x) {
  using B = Binary<float>;
  constexpr float q[] = {-0x1.fffffap-2f, 0x1.555550p-2f,  -0x1.0003ecp-2f, 0x1.99a3cap-3f, -0x1.542eccp-3f,
                         0x1.2277b4p-3f,  -0x1.0f15c2p-3f, 0x1.081ea6p-3f,  -0x1.3829bcp-4f};
  const float small = fma(x.f * x.f, polynomial(x.f, q), fma(x.e, B::kLn2Low, x.f));
  return fma(x.e, B::kLn2High, small);
}

// With s = f / (2 + f) and z = s^2: log(1 + f) = f - f^2/2 + s (f^2/2 + z r(z)). For double the division costs less
// than the polynomial terms that it saves.
ZSKD_INLINE double log_of(LogParts<double> x) {
  using B = Binary<double>;
  constexpr double r[] = {0x1.5555555555593p-1, 0x1.999999997fb34p-2, 0x1.249249421787dp-2, 0x1.c71c51e80442fp-3,
                          0x1.7466462b0f895p-3, 0x1.39a0f51310b77p-3, 0x1.2f0d8e947446fp-3};
  const double s = x.f / (2.0 + x.f);
  const double z = s * s;
  const double half_square = 0.5 * x.f * x.f;
  const double correction = fma(s, fma(z, polynomial(z, r), half_square), x.e * B::kLn2Low);
  return fma(x.e, B::kLn2High, x.f - (half_square - correction));
}

// log(x) of a positive, finite, normal x.
template <class T>
ZSKD_INLINE T log_normal(T x) {
  return log_of(log_parts(x));
}

// log(x) of a positive, normal x. NaN stays NaN, and log(inf) = inf.
template <class T>
ZSKD_INLINE T log_positive(T x) {
  return x < infinity<T>() ? log_normal(x) : x;
}

// The fraction of an angle in turns, in units of 2^-32: these are the low bits of a sum whose last bit is worth that.
ZSKD_INLINE uint32_t turn_of(float radians) {
  constexpr double kTurn = 0x1.45f306dc9c883p-3;  // 1 / (2 pi)
  return static_cast<uint32_t>(bit_cast<uint64_t>(static_cast<double>(radians) * kTurn + 0x1.8p20));
}

// sin and cos of 2 pi k / 2^32. The reduction to [-pi/4, pi/4] is exact, in integers.
template <class T>
ZSKD_INLINE void sincos_turn(uint32_t k, T* sine, T* cosine) {
  const uint32_t quadrant = (k + 0x20000000u) >> 30;
  const int32_t rest = static_cast<int32_t>(k - (quadrant << 30));
  const T x = static_cast<T>(rest) * T(0x1.921fb54442d18p-30);
  const T t = x * x;
  const T s = fma(x * t, sin_tail(t), x);
  const T c = fma(t * t, cos_tail(t), fma(T(-0.5), t, T(1)));
  const T swapped_s = (quadrant & 1u) ? c : s;
  const T swapped_c = (quadrant & 1u) ? s : c;
  *sine = (quadrant & 2u) ? -swapped_s : swapped_s;
  *cosine = ((quadrant + 1u) & 2u) ? -swapped_c : swapped_c;
}

}  // namespace zskd::math
