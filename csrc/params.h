// What a host function (csrc/ops) hands to a backend (csrc/cpu, csrc/cuda): pointers, sizes and scalars, all checked.
// Strides count elements; within a row elements are adjacent.
#pragma once

#include <cstdint>

namespace zskd {

enum class Dtype : int8_t { f32, f64, f16, bf16 };

// soft_cross_entropy and distillation_loss
struct RowLossParams {
  const void* a;  // [rows, classes] logits
  const void* b;  // [rows, classes] target, or the teacher's logits
  int64_t a_stride, b_stride;
  Dtype a_dtype, b_dtype;  // b: that of a, or float32 beside a 16-bit a
  void* loss;              // [rows], float32 (float64 for float64 logits)
  void* grad;              // [rows, classes] dense, dtype of a; or null
  int64_t rows, classes;
  double temperature;
  double grad_weight;  // of one row in the reduced loss
};

struct DirichletParams {
  const void* concentration;     // [rows, classes]
  int64_t concentration_stride;  // 0 where one row serves all
  Dtype dtype;
  const int64_t* ids;  // [rows]
  int64_t ids_stride;
  int64_t seed;
  void* out;  // [rows, classes] dense
  bool log;
  int64_t rows, classes;
};

enum class Distribution : int8_t { uniform, normal };

struct PhiloxParams {
  const int64_t* ids;  // [rows]
  int64_t ids_stride;
  int64_t seed;
  uint32_t stream;
  Distribution distribution;
  Dtype dtype;  // f32 or f64
  void* out;    // [rows, count] dense
  int64_t rows, count;
};

struct ImpressionUpdateParams {
  void* x;  // `size` elements each, dense in the same order
  const void* grad;
  void* exp_avg;     // float32 beside 16-bit x, else dtype of x
  void* exp_avg_sq;  // the same
  Dtype dtype;
  int64_t size;
  const double* lo;  // one for all, or one for each channel
  const double* hi;
  int64_t channels;      // 1 where the bounds serve all
  int64_t channel_size;  // elements of one channel of one impression
  double lr, beta1, beta2, eps, l1, l2;
  double step;
  // On a GPU these may lie in its memory, so that a captured launch finds new values each time it is replayed; null
  // where the numbers above serve.
  const double* device_lr = nullptr;
  const double* device_step = nullptr;
  bool device_bounds = false;  // lo and hi lie on the device; otherwise there is one of each, in host memory
};

// max_pool: windows of 2x2, side by side
struct MaxPoolParams {
  const float* x;  // [planes, height, width] dense
  float* out;      // [planes, height / 2, width / 2] dense
  int64_t* place;  // of the maximum in its plane, beside out
  int64_t planes, height, width;
};

}  // namespace zskd
