#include <algorithm>
#include <cmath>
#include <initializer_list>

#include "ops/dispatch.h"
#include "ops/ops.h"

namespace zskd::ops {
namespace {

constexpr const char* kOp = "impression_update_";
constexpr Backends<ImpressionUpdateParams> kBackends = ZSKD_BACKENDS(impression_update);

struct Operand {
  const char* name;
  const at::Tensor& tensor;
};

void check_operand(const Operand& operand, const at::Tensor& x, at::ScalarType type) {
  check_same_shape(kOp, operand.name, operand.tensor, x, "x");
  check_same_device(kOp, operand.name, operand.tensor, x, "x");
  ZSKD_CHECK_TYPE(operand.tensor.scalar_type() == type, kOp, ": ", operand.name, " is ", operand.tensor.scalar_type(),
                  ", wanted ", type, " beside x in ", x.scalar_type());
}

// A tensor of one number. If it is on the CUDA device of x, it stays there and the kernel reads it, so that each replay
// of a captured CUDA graph sees its current value.
struct Scalar {
  at::Tensor tensor;
  bool on_device;

  Scalar(const char* name, const at::Tensor& given, const at::Tensor& x)
      : tensor(given), on_device(!x.is_cpu() && given.device() == x.device()) {
    check_dense(kOp, name, given);
    ZSKD_CHECK(given.numel() == 1, kOp, ": ", name, " has shape ", given.sizes(), ", wanted one number");
    if (on_device) tensor = given.to(at::kDouble);
  }
  // The number, or `placeholder` if only the device can read it.
  double value_or(double placeholder) const { return on_device ? placeholder : tensor.item<double>(); }
  const double* pointer() const { return on_device ? tensor.const_data_ptr<double>() : nullptr; }
};

at::Tensor bound(const char* name, const at::Tensor& tensor, const at::Tensor& x) {
  check_dense(kOp, name, tensor);
  const bool per_channel = tensor.dim() == 1 && x.dim() >= 2 && tensor.size(0) == x.size(1);
  ZSKD_CHECK(tensor.dim() == 0 || per_channel, kOp, ": ", name, " has shape ", tensor.sizes(),
             ", wanted one number or one for each channel of x with shape ", x.sizes());
  return tensor.to(at::kDouble).contiguous();
}

void check_scalars(double step, double lr, double beta1, double beta2, double eps, double l1, double l2) {
  ZSKD_CHECK(step >= 1, kOp, ": step is ", step, ", wanted 1 or more (the first update is step 1)");
  ZSKD_CHECK(lr >= 0, kOp, ": lr is ", lr, ", wanted 0 or more");
  ZSKD_CHECK(beta1 >= 0 && beta1 < 1 && beta2 >= 0 && beta2 < 1, kOp, ": betas are (", beta1, ", ", beta2,
             "), wanted two numbers in [0, 1)");
  ZSKD_CHECK(eps >= 0, kOp, ": eps is ", eps, ", wanted 0 or more");
  ZSKD_CHECK(std::isfinite(l1) && std::isfinite(l2), kOp, ": l1 and l2 are ", l1, " and ", l2, ", wanted two numbers");
}

// Whether two tensors of one shape have each element at the same distance from their first one. An axis of size 1 may
// have any stride: if it were compared, two contiguous tensors could differ.
bool have_same_strides(const at::Tensor& x, const at::Tensor& other) {
  if (x.numel() == 0) return true;
  for (int64_t axis = 0; axis < x.dim(); ++axis) {
    if (x.size(axis) > 1 && x.stride(axis) != other.stride(axis)) return false;
  }
  return true;
}

// Whether all tensors are dense in the same memory order. The kernel then ignores shapes and goes through the memory.
// It is true if all are contiguous.
bool have_same_dense_order(const at::Tensor& x, std::initializer_list<at::Tensor> others, bool per_channel) {
  if (per_channel ? !x.is_contiguous() : !x.is_non_overlapping_and_dense()) return false;
  return std::all_of(others.begin(), others.end(), [&](const at::Tensor& t) { return have_same_strides(x, t); });
}

}  // namespace

void impression_update_(at::Tensor x, const at::Tensor& grad, at::Tensor exp_avg, at::Tensor exp_avg_sq,
                        const at::Tensor& step, const at::Tensor& lr, double beta1, double beta2, double eps, double l1,
                        double l2, const at::Tensor& lo, const at::Tensor& hi) {
  check_dense(kOp, "x", x);
  check_backend(kOp, "x", x);
  const at::ScalarType state_type = accumulate_type(x.scalar_type());
  check_operand({"grad", grad}, x, x.scalar_type());
  check_operand({"exp_avg", exp_avg}, x, state_type);
  check_operand({"exp_avg_sq", exp_avg_sq}, x, state_type);
  const at::Tensor low = bound("lo", lo, x), high = bound("hi", hi, x);
  const bool per_channel = low.dim() == 1 || high.dim() == 1;

  if (!have_same_dense_order(x, {grad, exp_avg, exp_avg_sq}, per_channel)) {
    at::Tensor dense_x = x.contiguous(), m = exp_avg.contiguous(), v = exp_avg_sq.contiguous();
    impression_update_(dense_x, grad.contiguous(), m, v, step, lr, beta1, beta2, eps, l1, l2, lo, hi);
    x.copy_(dense_x);
    exp_avg.copy_(m);
    exp_avg_sq.copy_(v);
    return;
  }

  const Scalar step_number("step", step, x), rate("lr", lr, x);
  ImpressionUpdateParams p;
  p.dtype = dtype_of(kOp, "x", x);
  p.step = step_number.value_or(1);
  p.lr = rate.value_or(0);
  p.device_step = step_number.pointer();
  p.device_lr = rate.pointer();
  check_scalars(p.step, p.lr, beta1, beta2, eps, l1, l2);
  p.beta1 = beta1;
  p.beta2 = beta2;
  p.eps = eps;
  p.l1 = l1;
  p.l2 = l2;
  p.channels = per_channel ? x.size(1) : 1;
  p.device_bounds = !x.is_cpu() && (per_channel || !low.is_cpu() || !high.is_cpu());
  const at::Device where = p.device_bounds ? x.device() : at::Device(at::kCPU);
  const at::Tensor all_low = low.to(where).expand({p.channels}).contiguous();
  const at::Tensor all_high = high.to(where).expand({p.channels}).contiguous();
  p.lo = all_low.const_data_ptr<double>();
  p.hi = all_high.const_data_ptr<double>();
  p.size = x.numel();
  if (p.size == 0) return;
  p.channel_size = per_channel ? p.size / (x.size(0) * x.size(1)) : p.size;
  p.x = x.mutable_data_ptr();
  p.grad = grad.const_data_ptr();
  p.exp_avg = exp_avg.mutable_data_ptr();
  p.exp_avg_sq = exp_avg_sq.mutable_data_ptr();
  run(kBackends, p, x);
}

}  // namespace zskd::ops
