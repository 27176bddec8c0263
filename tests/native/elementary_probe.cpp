// C functions over arrays, through which the tests check the accuracy of csrc/math/elementary.h and variates.h.
#include "math/elementary.h"
#include "math/variates.h"

using namespace zskd::math;

#define PROBE(name, T, expression)                      \
  extern "C" void name(const T* x, T* y, long count) {  \
    for (long i = 0; i < count; ++i) y[i] = expression; \
  }

PROBE(exp_f32, float, zskd::math::exp(x[i]))
PROBE(exp_f64, double, zskd::math::exp(x[i]))
PROBE(exp_nonpositive_f32, float, exp_nonpositive(x[i]))
PROBE(exp_nonpositive_f64, double, exp_nonpositive(x[i]))
PROBE(exp_over_20_f32, float, exp_nonpositive(x[i], exp_scale_of<float>(20.0)))
PROBE(exp_over_20_f64, double, exp_nonpositive(x[i], exp_scale_of<double>(20.0)))
PROBE(log_f32, float, log_positive(x[i]))
PROBE(log_f64, double, log_positive(x[i]))

#define WORD_PROBE(name, T, statement)                        \
  extern "C" void name(const uint32_t* k, T* y, long count) { \
    for (long i = 0; i < count; ++i) {                        \
      T other;                                                \
      statement;                                              \
      (void)other;                                            \
    }                                                         \
  }

WORD_PROBE(sin_turn_f32, float, sincos_turn(k[i], &y[i], &other))
WORD_PROBE(cos_turn_f32, float, sincos_turn(k[i], &other, &y[i]))
WORD_PROBE(sin_turn_f64, double, sincos_turn(k[i], &y[i], &other))
WORD_PROBE(cos_turn_f64, double, sincos_turn(k[i], &other, &y[i]))
WORD_PROBE(log_uniform_f32, float, y[i] = log_uniform<float>(k[i]))
WORD_PROBE(log_uniform_f64, double, y[i] = log_uniform<double>(k[i]))
WORD_PROBE(uniform_f32, float, y[i] = uniform<float>(k[i]))
WORD_PROBE(uniform_f64, double, y[i] = uniform<double>(k[i]))
