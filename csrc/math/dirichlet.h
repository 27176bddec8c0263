// One log-Gamma variate of a Dirichlet row: y_c = exp(g_c) / sum_k exp(g_k), g_c = log Gamma(alpha_c).
//
// Gamma(a) for a >= 1 is drawn by the method of Marsaglia and Tsang ("A simple method for generating gamma variables",
// ACM TOMS 2000): with n normal, u uniform, d = a - 1/3 and v = (1 + n / sqrt(9 d))^3, the variate d v is accepted if
// log u < n^2/2 + d (1 - v + log v). For alpha < 1, Gamma(alpha) = Gamma(alpha + 1) U^(1/alpha), computed in log space
// because U^(1/alpha) underflows for alpha below about 1e-2.
#pragma once

#include "math/variates.h"

namespace zskd::math {

// The row sum of exponentials, sum_k exp(g_k - max g), is defined as kPartialSums partial sums: partial sum l adds the
// classes l, l + kPartialSums, l + 2 kPartialSums, ... in this order. The partial sums are then added by halves: the
// lower half plus the upper half, again and again. Every backend sums in this order, so that all give the same bits.
constexpr int kPartialSums = 16;

// The smallest valid concentration: a smaller one makes log(U) / alpha overflow.
template <class T>
struct Concentration;
template <>
struct Concentration<float> {
  static constexpr float kLowest = 1e-37f;
};
template <>
struct Concentration<double> {
  static constexpr double kLowest = 1e-305;
};

template <class T>
ZSKD_INLINE bool is_valid_concentration(T alpha) {
  return alpha >= Concentration<T>::kLowest && alpha < infinity<T>();
}

template <class T>
struct GammaAttempt {
  T log_gamma;
  T accepted;  // 1 or 0; as wide as log_gamma, so that a loop over both vectorizes
};

// One attempt, from the words draw(seed, id, class, Purpose::gamma, number of the attempt). `exact` applies the full
// acceptance test. Otherwise only the squeeze test u < 1 - 0.0331 n^4 is applied: it implies the full test, needs no
// logarithm, and accepts nine attempts out of ten.
template <class T, bool exact>
ZSKD_INLINE GammaAttempt<T> attempt_log_gamma(T alpha, PhiloxBlock words) {
  const bool boosted = alpha < T(1);
  const T d = (boosted ? alpha + T(1) : alpha) - T(1.0 / 3);
  const T n = normal<T>(words.w0, words.w1);
  // One division gives both 1 / alpha and 1 / sqrt(9 d).
  const T scale = T(3) * sqrt(d);
  const T inverse = T(1) / (alpha * scale);
  const T root = fma(n, inverse * alpha, T(1));
  const bool positive = root > T(0);
  const T v = positive ? root * root * root : T(1);
  const T u = uniform<T>(words.w2);
  const T n2 = n * n;
  bool accepted;
  if constexpr (exact) {
    accepted = positive & (log_normal(u) < fma(d, T(1) - v + log_normal(v), T(0.5) * n2));
  } else {
    accepted = positive & (u < fma(T(-0.0331) * n2, n2, T(1)));
  }
  const T boost = boosted ? log_uniform<T>(words.w3) * (inverse * scale) : T(0);
  return {log_normal(d * v) + boost, accepted ? T(1) : T(0)};
}

}  // namespace zskd::math
