#include <limits>

#include "cpu/backend.h"
#include "ops/allocate.h"
#include "ops/check.h"
#include "ops/ops.h"

namespace zskd::ops {
namespace {

constexpr const char* kOp = "max_pool";

void check_image(const at::Tensor& x) {
  check_dense(kOp, "x", x);
  ZSKD_CHECK_TYPE(x.is_cpu() && x.scalar_type() == at::kFloat, kOp, ": x is ", x.scalar_type(), " on ", x.device(),
                  ", wanted float32 on cpu");
  ZSKD_CHECK(x.dim() == 4 && x.is_contiguous(), kOp, ": x has shape ", x.sizes(), " and strides ", x.strides(),
             ", wanted contiguous [N, C, H, W]");
  ZSKD_CHECK(x.size(2) >= 2 && x.size(3) >= 2 && x.size(2) <= std::numeric_limits<int32_t>::max() / x.size(3), kOp,
             ": x has shape ", x.sizes(), ", wanted images of at least 2x2 and fewer than 2^31 elements a plane");
}

}  // namespace

std::tuple<at::Tensor, at::Tensor> max_pool(const at::Tensor& x) {
  check_image(x);
  const int64_t height = x.size(2), width = x.size(3);
  const at::Tensor out = empty_output({x.size(0), x.size(1), height / 2, width / 2}, x.options());
  const at::Tensor place = empty_output(out.sizes(), out.options().dtype(at::kLong));

  MaxPoolParams p;
  p.x = x.const_data_ptr<float>();
  p.out = out.mutable_data_ptr<float>();
  p.place = place.mutable_data_ptr<int64_t>();
  p.planes = x.size(0) * x.size(1);
  p.height = height;
  p.width = width;
  cpu::max_pool(p);
  return {out, place};
}

}  // namespace zskd::ops
