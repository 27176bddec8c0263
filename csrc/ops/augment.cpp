#include "math/augment.h"

#include <limits>

#include "ops/allocate.h"
#include "ops/dispatch.h"
#include "ops/ops.h"

namespace zskd::ops {
namespace {

constexpr const char* kOp = "augment";
constexpr Backends<AugmentParams> kBackends = ZSKD_BACKENDS(augment);
constexpr int64_t kStreams = (int64_t{1} << math::kStepBits) - math::kAugmentStreams + 1;
constexpr int64_t kCounts = int64_t{math::kVariatesPerBlock} << 32;  // the index of a block has 32 bits
constexpr double kLargest = std::numeric_limits<float>::max();

void check_tensors(const at::Tensor& x, const at::Tensor& positions) {
  check_dense(kOp, "x", x);
  check_backend(kOp, "x", x);
  ZSKD_CHECK_TYPE(x.scalar_type() == at::kFloat, kOp, ": x is ", x.scalar_type(), ", wanted float32");
  ZSKD_CHECK(x.dim() >= 1, kOp, ": x is one number, wanted [N, ...]");
  check_dense(kOp, "positions", positions);
  ZSKD_CHECK_TYPE(positions.scalar_type() == at::kLong, kOp, ": positions is ", positions.scalar_type(),
                  ", wanted int64");
  ZSKD_CHECK(positions.dim() == 1 && positions.size(0) == x.size(0), kOp, ": positions has shape ", positions.sizes(),
             ", wanted [", x.size(0), "], one for each row of x");
  check_same_device(kOp, "positions", positions, x, "x");
}

void check_size(const char* name, double value) {
  ZSKD_CHECK(value >= 0 && value <= kLargest, kOp, ": ", name, " is ", value, ", wanted a finite number of 0 or more");
}

void check_probability(const char* name, double value) {
  ZSKD_CHECK(value >= 0 && value <= 1, kOp, ": ", name, " is ", value, ", wanted 0 to 1");
}

void check_numbers(double low, double high, int64_t seed, int64_t stream) {
  ZSKD_CHECK(low >= -kLargest && low < high && high <= kLargest, kOp, ": low and high are ", low, " and ", high,
             ", wanted two finite numbers, the lower one first");
  ZSKD_CHECK(seed >= 0, kOp, ": seed is ", seed, ", wanted 0 or more");
  ZSKD_CHECK(stream >= 0 && stream < kStreams, kOp, ": stream is ", stream, ", wanted 0 to 2^28 - 5");
}

// The place of a pixel in its channel with a frame has 32 bits, and its places in both directions are exact as float.
void check_images(const at::Tensor& x) {
  ZSKD_CHECK(x.dim() == 4, kOp, ": x has shape ", x.sizes(), ", wanted images [N, C, H, W] whose pixels can be moved");
  constexpr int64_t most = int64_t{1} << 31, most_in_line = int64_t{1} << 24;
  const int64_t height = x.size(2) + 2 * math::kOutside, width = x.size(3) + 2 * math::kOutside;
  ZSKD_CHECK(height < most / width, kOp, ": x has shape ", x.sizes(), ", wanted fewer than 2^31 pixels in a channel");
  ZSKD_CHECK(height < most_in_line && width < most_in_line, kOp, ": x has shape ", x.sizes(),
             ", wanted fewer than 2^24 pixels in a row or column");
}

}  // namespace

at::Tensor augment(const at::Tensor& x, const at::Tensor& positions, int64_t seed, int64_t stream,
                   double rotation_sigma, double scale_sigma, double shift_sigma, double flip_probability,
                   double mix_probability, double noise_max, bool clamp, double low, double high) {
  check_tensors(x, positions);
  check_size("rotation_sigma", rotation_sigma);
  check_size("scale_sigma", scale_sigma);
  check_size("shift_sigma", shift_sigma);
  check_probability("flip_probability", flip_probability);
  check_probability("mix_probability", mix_probability);
  check_size("noise_max", noise_max);
  check_numbers(low, high, seed, stream);
  const bool moves = rotation_sigma > 0 || scale_sigma > 0 || shift_sigma > 0 || flip_probability > 0;
  if (moves) check_images(x);
  const at::Tensor dense = x.contiguous();
  const at::Tensor out = empty_output(x.sizes(), dense.options());
  if (out.numel() == 0) return out;

  AugmentParams p;
  p.x = dense.const_data_ptr<float>();
  p.positions = positions.const_data_ptr<int64_t>();
  p.positions_stride = positions.stride(0);
  p.out = out.mutable_data_ptr<float>();
  p.rows = x.size(0);
  // A row that stays in place may have any shape.
  p.channels = moves ? x.size(1) : 1;
  p.height = moves ? x.size(2) : 1;
  p.width = moves ? x.size(3) : x.numel() / x.size(0);
  ZSKD_CHECK(p.channels * p.height * p.width < kCounts, kOp, ": x has shape ", x.sizes(),
             ", wanted fewer than 2^34 elements in a row");
  constexpr double infinity = std::numeric_limits<double>::infinity();
  p.numbers = {math::halves(seed),
               static_cast<uint32_t>(stream),
               moves,
               static_cast<float>(rotation_sigma),
               static_cast<float>(scale_sigma),
               static_cast<float>(shift_sigma),
               static_cast<float>(flip_probability),
               static_cast<float>(mix_probability),
               static_cast<float>(noise_max * (high - low)),
               static_cast<float>(low),
               static_cast<float>(clamp ? low : -infinity),
               static_cast<float>(clamp ? high : infinity)};
  run(kBackends, p, out);
  return out;
}

}  // namespace zskd::ops
