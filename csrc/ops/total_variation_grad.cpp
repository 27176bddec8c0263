#include "ops/dispatch.h"
#include "ops/ops.h"

namespace zskd::ops {
namespace {

constexpr const char* kOp = "total_variation_grad_";
constexpr Backends<TotalVariationGradParams> kBackends = ZSKD_BACKENDS(total_variation_grad);

void check_arguments(const at::Tensor& grad, const at::Tensor& x) {
  check_dense(kOp, "x", x);
  check_backend(kOp, "x", x);
  dtype_of(kOp, "x", x);
  ZSKD_CHECK(x.dim() == 4, kOp, ": x has shape ", x.sizes(), ", wanted [N, C, H, W]");
  check_same_shape(kOp, "grad", grad, x, "x");
  check_same_device(kOp, "grad", grad, x, "x");
  ZSKD_CHECK_TYPE(grad.scalar_type() == x.scalar_type(), kOp, ": grad is ", grad.scalar_type(), ", wanted ",
                  x.scalar_type(), " as x");
}

}  // namespace

void total_variation_grad_(at::Tensor grad, const at::Tensor& x, double weight) {
  check_arguments(grad, x);
  const bool last = !grad.is_contiguous() && grad.is_contiguous(at::MemoryFormat::ChannelsLast);
  if (!last && !grad.is_contiguous()) {
    at::Tensor dense = grad.contiguous();
    total_variation_grad_(dense, x, weight);
    grad.copy_(dense);
    return;
  }
  if (x.numel() == 0) return;
  const at::MemoryFormat format = last ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::Contiguous;
  // A change of grad must not change x during the pass.
  const at::Tensor pixels = x.is_alias_of(grad) ? x.clone(format) : x.contiguous(format);

  TotalVariationGradParams p;
  p.grad = grad.mutable_data_ptr();
  p.x = pixels.const_data_ptr();
  p.dtype = dtype_of(kOp, "x", x);
  p.planes = last ? x.size(0) : x.size(0) * x.size(1);
  p.height = x.size(2);
  p.pixel_stride = last ? x.size(1) : 1;
  p.row_length = x.size(3) * p.pixel_stride;
  p.weight = weight;
  run(kBackends, p, grad);
}

}  // namespace zskd::ops
