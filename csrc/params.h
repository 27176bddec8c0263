// The arguments that a host function (csrc/ops) passes to a backend (csrc/cpu, csrc/cuda): pointers, sizes and scalars,
// already checked. Strides are in elements. The elements of a row are adjacent in memory.
#pragma once

#include <cstdint>

#include "math/augment.h"

namespace zskd {

enum class Dtype : int8_t { f32, f64, f16, bf16 };

// soft_cross_entropy and distillation_loss
struct RowLossParams {
  const void* a;  // [rows, classes] logits
  const void* b;  // [rows, classes] targets, or the teacher's logits
  int64_t a_stride, b_stride;
  Dtype a_dtype, b_dtype, grad_dtype;  // b_dtype and grad_dtype: a_dtype, or f32 where a is a 16-bit float
  void* loss;                          // [rows], float32 (float64 for float64 logits)
  void* grad;                          // [rows, classes] dense, grad_dtype; null if no gradient is wanted
  int64_t rows, classes;
  double temperature;
  double grad_weight;  // weight of one row in the reduced loss; the gradient is multiplied by it
};

// scale_grad, for the CUDA backend only
struct ScaleGradParams {
  void* grad;          // `size` elements, dense
  const void* weight;  // one number, on the device
  Dtype dtype;         // of both: f32 or f64
  int64_t size;
};

struct DirichletParams {
  const void* concentration;     // [rows, classes]
  int64_t concentration_stride;  // 0 if all rows have the same concentration
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
  void* x;  // x, grad, exp_avg and exp_avg_sq: `size` elements each, dense, in the same memory order
  const void* grad;
  void* exp_avg;  // exp_avg and exp_avg_sq: float32 if x is a 16-bit float, otherwise `dtype`
  void* exp_avg_sq;
  Dtype dtype;  // of x and grad
  int64_t size;
  const double* lo;  // [channels] bounds
  const double* hi;
  int64_t channels;      // 1 if all elements have the same bounds
  int64_t channel_size;  // elements of one channel of one impression
  double lr, beta1, beta2, eps, l1, l2;
  double step;
  // For the CUDA backend only. Where device_lr or device_step is not null, the kernel reads the value from this device
  // address and ignores lr or step: each replay of a captured CUDA graph then sees the current value.
  const double* device_lr = nullptr;
  const double* device_step = nullptr;
  bool device_bounds = false;  // lo and hi are device pointers; if false, host pointers to one number each
};

struct TotalVariationGradParams {
  void* grad;  // grad and x: [planes, height, row_length] dense, in the same memory order
  const void* x;
  Dtype dtype;
  int64_t planes, height, row_length;
  int64_t pixel_stride;  // from a pixel to its neighbor in the row: 1, or the number of channels if they are last
  double weight;
};

// dead_leaves: the numbers of a leaf are those of math/dead_leaves.h, then a value per channel
struct DeadLeavesParams {
  const float* numbers;  // [images, leaves, kLeafNumbers + channels] dense
  float* out;            // [images, channels, height, width] dense
  int64_t images, leaves, channels, height, width;
};

// augment: rows that are not moved have one channel of height 1
struct AugmentParams {
  const float* x;            // x and out: [rows, channels, height, width] dense
  const int64_t* positions;  // [rows]
  int64_t positions_stride;
  float* out;
  int64_t rows, channels, height, width;
  math::Augmentation numbers;
};

// max_pool: windows of 2x2 with stride 2
struct MaxPoolParams {
  const float* x;  // [planes, height, width] dense
  float* out;      // [planes, height / 2, width / 2] dense
  int64_t* place;  // like out: index of the maximum in its plane
  int64_t planes, height, width;
};

}  // namespace zskd
