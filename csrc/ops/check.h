// Checks and conversions that the host functions share. An error message is one line that names the op, the argument,
// what it got and what it wanted. A wrong dtype or device is a TypeError, anything else a ValueError.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/StringUtil.h>

#include <stdexcept>
#include <string>

#include "params.h"

namespace zskd::ops {

// Not c10's exceptions of the same names: which Python exception those become, and whether with a C++ stack trace,
// depends on the version of torch. csrc/bindings.cpp translates these.
struct ValueError : std::invalid_argument {
  using std::invalid_argument::invalid_argument;
};
struct TypeError : std::invalid_argument {
  using std::invalid_argument::invalid_argument;
};

template <class Error, class... Parts>
[[noreturn]] void refuse(const Parts&... parts) {
  throw Error(c10::str(parts...));
}

// The message is only composed if the condition is false.
#define ZSKD_CHECK_AS(Error, condition, ...) \
  do {                                       \
    if (!(condition)) [[unlikely]]           \
      refuse<Error>(__VA_ARGS__);            \
  } while (false)
#define ZSKD_CHECK(condition, ...) ZSKD_CHECK_AS(ValueError, condition, __VA_ARGS__)
#define ZSKD_CHECK_TYPE(condition, ...) ZSKD_CHECK_AS(TypeError, condition, __VA_ARGS__)

inline bool is_16_bit(at::ScalarType type) { return type == at::kHalf || type == at::kBFloat16; }

// The dtype of sums over elements of `type`, as in math::accumulate_t.
inline at::ScalarType accumulate_type(at::ScalarType type) { return is_16_bit(type) ? at::kFloat : type; }

inline Dtype dtype_of(const char* op, const char* argument, const at::Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case at::kFloat: return Dtype::f32;
    case at::kDouble: return Dtype::f64;
    case at::kHalf: return Dtype::f16;
    case at::kBFloat16: return Dtype::bf16;
    default:
      refuse<TypeError>(op, ": ", argument, " is ", tensor.scalar_type(),
                        ", wanted float32, float64, float16 or bfloat16");
  }
}

// A sparse or nested tensor has no strides, and torch's own errors about it do not name the argument. A negated view,
// as the imaginary part of a conjugate, has the memory of its values with the other sign.
inline void check_dense(const char* op, const char* argument, const at::Tensor& tensor) {
  ZSKD_CHECK_TYPE(tensor.layout() == at::kStrided && !tensor.is_nested(), op, ": ", argument, " is ",
                  tensor.is_nested() ? "nested" : "sparse", ", wanted a dense tensor");
  ZSKD_CHECK_TYPE(!tensor.is_neg(), op, ": ", argument, " is a negated view, wanted its values: pass .resolve_neg()");
}

inline void check_same_device(const char* op, const char* argument, const at::Tensor& tensor, const at::Tensor& first,
                              const char* first_argument) {
  ZSKD_CHECK_TYPE(tensor.device() == first.device(), op, ": ", argument, " is on ", tensor.device(), ", wanted ",
                  first.device(), " as ", first_argument);
}

inline void check_same_shape(const char* op, const char* argument, const at::Tensor& tensor, const at::Tensor& first,
                             const char* first_argument) {
  check_dense(op, argument, tensor);
  ZSKD_CHECK(tensor.sizes() == first.sizes(), op, ": ", argument, " has shape ", tensor.sizes(), ", wanted ",
             first.sizes(), " as ", first_argument);
}

inline void check_matrix(const char* op, const char* argument, const at::Tensor& tensor) {
  check_dense(op, argument, tensor);
  ZSKD_CHECK(tensor.dim() == 2, op, ": ", argument, " has shape ", tensor.sizes(), ", wanted [N, K]");
  ZSKD_CHECK(tensor.size(1) > 0, op, ": ", argument, " has shape ", tensor.sizes(), ", wanted at least one class");
}

// ids must be int64 of shape [N] and, if `like` is given, on the device of `like`.
inline void check_ids(const char* op, const at::Tensor& ids, const at::Tensor* like = nullptr) {
  check_dense(op, "ids", ids);
  ZSKD_CHECK_TYPE(ids.scalar_type() == at::kLong, op, ": ids is ", ids.scalar_type(), ", wanted int64");
  ZSKD_CHECK(ids.dim() == 1, op, ": ids has shape ", ids.sizes(), ", wanted [N]");
  if (like) check_same_device(op, "ids", ids, *like, "concentration");
}

// The matrix with adjacent elements in each row. Rows may be any distance apart, so that an expanded or row-sliced
// matrix is not copied.
inline at::Tensor with_dense_rows(const at::Tensor& matrix) {
  return matrix.stride(1) == 1 || matrix.size(1) == 1 ? matrix : matrix.contiguous();
}

}  // namespace zskd::ops
