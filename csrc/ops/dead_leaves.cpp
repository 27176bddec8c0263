#include "math/dead_leaves.h"

#include <limits>

#include "ops/allocate.h"
#include "ops/dispatch.h"
#include "ops/ops.h"

namespace zskd::ops {
namespace {

constexpr const char* kOp = "dead_leaves";
constexpr Backends<DeadLeavesParams> kBackends = ZSKD_BACKENDS(dead_leaves);

void check_leaves(const at::Tensor& leaves, int64_t height, int64_t width) {
  check_dense(kOp, "leaves", leaves);
  check_backend(kOp, "leaves", leaves);
  ZSKD_CHECK_TYPE(leaves.scalar_type() == at::kFloat, kOp, ": leaves is ", leaves.scalar_type(), ", wanted float32");
  ZSKD_CHECK(leaves.dim() == 3 && leaves.size(2) > math::kLeafNumbers, kOp, ": leaves has shape ", leaves.sizes(),
             ", wanted [N, L, 5 + C] with C >= 1");
  ZSKD_CHECK(leaves.size(1) <= std::numeric_limits<int32_t>::max(), kOp, ": leaves has shape ", leaves.sizes(),
             ", wanted fewer than 2^31 leaves an image");
  ZSKD_CHECK(height >= 1 && width >= 1, kOp, ": height and width are ", height, " and ", width, ", wanted 1 or more");
}

}  // namespace

at::Tensor dead_leaves(const at::Tensor& leaves, int64_t height, int64_t width) {
  check_leaves(leaves, height, width);
  const at::Tensor dense = leaves.contiguous();
  const int64_t channels = leaves.size(2) - math::kLeafNumbers;
  const at::Tensor out = empty_output({leaves.size(0), channels, height, width}, leaves.options());

  DeadLeavesParams p;
  p.numbers = dense.const_data_ptr<float>();
  p.out = out.mutable_data_ptr<float>();
  p.images = leaves.size(0);
  p.leaves = leaves.size(1);
  p.channels = channels;
  p.height = height;
  p.width = width;
  run(kBackends, p, out);
  return out;
}

}  // namespace zskd::ops
