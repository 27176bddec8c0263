#include "math/variates.h"
#include "ops/allocate.h"
#include "ops/dispatch.h"
#include "ops/ops.h"

namespace zskd::ops {
namespace {

constexpr const char* kOp = "philox";
constexpr int64_t kStreams = int64_t{1} << math::kStepBits;
constexpr int64_t kCounts = int64_t{math::kVariatesPerBlock} << 32;  // the index of a block has 32 bits
constexpr Backends<PhiloxParams> kBackends = ZSKD_BACKENDS(philox);

Distribution parse_distribution(const std::string& distribution) {
  if (distribution == "uniform") return Distribution::uniform;
  ZSKD_CHECK(distribution == "normal", kOp, ": distribution is '", distribution, "', wanted uniform or normal");
  return Distribution::normal;
}

}  // namespace

at::Tensor philox(const at::Tensor& ids, int64_t count, int64_t seed, int64_t stream, const std::string& distribution,
                  at::ScalarType dtype) {
  check_ids(kOp, ids);
  check_backend(kOp, "ids", ids);
  ZSKD_CHECK(count >= 0 && count < kCounts, kOp, ": count is ", count, ", wanted 0 to 2^34 - 1");
  ZSKD_CHECK(seed >= 0, kOp, ": seed is ", seed, ", wanted 0 or more");
  ZSKD_CHECK(stream >= 0 && stream < kStreams, kOp, ": stream is ", stream, ", wanted 0 to 2^28 - 1");
  ZSKD_CHECK_TYPE(dtype == at::kFloat || dtype == at::kDouble, kOp, ": dtype is ", dtype,
                  ", wanted float32 or float64");
  const at::Tensor out = empty_output({ids.size(0), count}, ids.options().dtype(dtype));

  PhiloxParams p;
  p.ids = ids.const_data_ptr<int64_t>();
  p.ids_stride = ids.stride(0);
  p.seed = seed;
  p.stream = static_cast<uint32_t>(stream);
  p.distribution = parse_distribution(distribution);
  p.dtype = dtype == at::kFloat ? Dtype::f32 : Dtype::f64;
  p.out = out.mutable_data_ptr();
  p.rows = ids.size(0);
  p.count = count;
  if (out.numel() > 0) run(kBackends, p, out);
  return out;
}

}  // namespace zskd::ops
