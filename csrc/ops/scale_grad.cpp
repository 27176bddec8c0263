#include "ops/dispatch.h"
#include "ops/ops.h"

namespace zskd::ops {
namespace {

constexpr const char* kOp = "scale_grad_";

void check_arguments(const at::Tensor& grad, const at::Tensor& weight) {
  check_dense(kOp, "grad", grad);
  check_dense(kOp, "weight", weight);
  check_backend(kOp, "grad", grad);
  check_same_device(kOp, "weight", weight, grad, "grad");
  ZSKD_CHECK_TYPE(grad.scalar_type() == at::kFloat || grad.scalar_type() == at::kDouble, kOp, ": grad is ",
                  grad.scalar_type(), ", wanted float32 or float64");
  ZSKD_CHECK_TYPE(weight.scalar_type() == grad.scalar_type(), kOp, ": weight is ", weight.scalar_type(), ", wanted ",
                  grad.scalar_type(), " as grad");
  ZSKD_CHECK(weight.numel() == 1, kOp, ": weight has shape ", weight.sizes(), ", wanted one number");
  ZSKD_CHECK(grad.is_contiguous(), kOp, ": grad has strides ", grad.strides(), ", wanted a contiguous tensor");
}

}  // namespace

void scale_grad_(at::Tensor grad, const at::Tensor& weight) {
  check_arguments(grad, weight);
  if (grad.is_cpu()) {
    if (weight.item<double>() != 1.0) grad.mul_(weight);
    return;
  }
#if defined(ZSKD_WITH_CUDA)
  ScaleGradParams p;
  p.grad = grad.mutable_data_ptr();
  p.weight = weight.const_data_ptr();
  p.dtype = dtype_of(kOp, "grad", grad);
  p.size = grad.numel();
  run(Backends<ScaleGradParams>{nullptr, cuda::scale_grad}, p, grad);
#endif
}

}  // namespace zskd::ops
