#include "ops/row_loss.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/sum.h>

#include "ops/allocate.h"

namespace zskd::ops {
namespace {

enum class Reduction { none, sum, mean };

Reduction parse_reduction(const RowLoss& names, const std::string& reduction) {
  if (reduction == "none") return Reduction::none;
  if (reduction == "sum") return Reduction::sum;
  ZSKD_CHECK(reduction == names.mean_name, names.op, ": reduction is '", reduction, "', wanted none, sum or ",
             names.mean_name);
  return Reduction::mean;
}

// Within them the temperature, its inverse and its square are float32 numbers.
constexpr double kLeastTemperature = 1e-18, kMostTemperature = 1e18;

void check_arguments(const RowLoss& names, const at::Tensor& a, const at::Tensor& b, double temperature) {
  check_matrix(names.op, names.a, a);
  check_same_shape(names.op, names.b, b, a, names.a);
  check_same_device(names.op, names.b, b, a, names.a);
  check_backend(names.op, names.a, a);
  dtype_of(names.op, names.a, a);
  dtype_of(names.op, names.b, b);
  ZSKD_CHECK(temperature >= kLeastTemperature && temperature <= kMostTemperature, names.op, ": temperature is ",
             temperature, ", wanted a number from 1e-18 to 1e18");
}

void check_grad_out(const RowLoss& names, const at::Tensor& grad, const at::Tensor& a, const at::Tensor& b) {
  check_same_shape(names.op, "out", grad, a, names.a);
  check_same_device(names.op, "out", grad, a, names.a);
  const bool fits = grad.scalar_type() == a.scalar_type() || grad.scalar_type() == accumulate_type(a.scalar_type());
  ZSKD_CHECK_TYPE(fits, names.op, ": out is ", grad.scalar_type(), ", wanted ", a.scalar_type(), " as ", names.a);
  ZSKD_CHECK(grad.is_contiguous(), names.op, ": out has strides ", grad.strides(), ", wanted a contiguous tensor");
  ZSKD_CHECK(!grad.is_alias_of(a), names.op, ": out shares memory with ", names.a, ", wanted memory of its own");
  ZSKD_CHECK(!grad.is_alias_of(b), names.op, ": out shares memory with ", names.b, ", wanted memory of its own");
}

// In the dtype of `a`, or in the caller's float32 buffer, where the gradient of a 16-bit `a` is not yet rounded.
at::Tensor gradient_buffer(const RowLoss& names, const at::Tensor& a, const at::Tensor& b, bool with_grad,
                           const std::optional<at::Tensor>& grad_out) {
  if (!with_grad) return at::empty({0}, a.options());
  if (!grad_out) return empty_output(a.sizes(), a.options());
  check_grad_out(names, *grad_out, a, b);
  return *grad_out;
}

// `b` in a dtype that the kernels accept for logits `a`: that of `a`, or float32 if `a` is a 16-bit float.
at::Tensor readable_beside(const at::Tensor& b, const at::Tensor& a) {
  const bool readable = b.scalar_type() == a.scalar_type() || b.scalar_type() == accumulate_type(a.scalar_type());
  return with_dense_rows(readable ? b : b.to(accumulate_type(a.scalar_type())));
}

// Queued on the stream, without waiting. On a CUDA device at::sum adds in a fixed order.
at::Tensor reduce_on_device(const at::Tensor& losses, Reduction reduction) {
  const at::Tensor sum = at::sum(losses, at::kDouble);
  const at::Tensor value = reduction == Reduction::mean ? sum.div(losses.size(0)) : sum;
  return value.to(losses.scalar_type());
}

at::Tensor reduce(const at::Tensor& losses, Reduction reduction) {
  if (reduction == Reduction::none) return losses;
  if (!losses.is_cpu()) return reduce_on_device(losses, reduction);
  const int64_t rows = losses.size(0);
  const double sum = losses.scalar_type() == at::kDouble ? cpu::sum(losses.const_data_ptr<double>(), rows)
                                                         : cpu::sum(losses.const_data_ptr<float>(), rows);
  const double value = reduction == Reduction::mean ? sum / static_cast<double>(rows) : sum;
  return at::full({}, value, losses.options());
}

}  // namespace

LossAndGrad row_loss(const RowLoss& names, const at::Tensor& a, const at::Tensor& b, double temperature,
                     const std::string& reduction, bool with_grad, std::optional<at::Tensor> grad_out) {
  const Reduction parsed = parse_reduction(names, reduction);
  check_arguments(names, a, b, temperature);
  const at::Tensor dense_a = with_dense_rows(a);
  const at::Tensor dense_b = readable_beside(b, a);
  const at::Tensor losses = at::empty({a.size(0)}, a.options().dtype(accumulate_type(a.scalar_type())));
  const at::Tensor grad = gradient_buffer(names, a, b, with_grad, grad_out);

  RowLossParams p;
  p.a_dtype = dtype_of(names.op, names.a, dense_a);
  p.b_dtype = dtype_of(names.op, names.b, dense_b);
  p.grad_dtype = dtype_of(names.op, "out", grad);
  p.a = dense_a.const_data_ptr();
  p.b = dense_b.const_data_ptr();
  p.a_stride = dense_a.stride(0);
  p.b_stride = dense_b.stride(0);
  p.loss = losses.mutable_data_ptr();
  p.grad = with_grad ? grad.mutable_data_ptr() : nullptr;
  p.rows = a.size(0);
  p.classes = a.size(1);
  p.temperature = temperature;
  // Into a 16-bit gradient the weight is multiplied before the rounding; a loss scale comes later, so a backward pass
  // asks for a float32 gradient (zskd_fast/ops/_row_loss.py).
  p.grad_weight = parsed == Reduction::mean ? 1.0 / static_cast<double>(p.rows) : 1.0;
  if (p.rows > 0) run(names.backends, p, losses);
  return {reduce(losses, parsed), grad};
}

}  // namespace zskd::ops
