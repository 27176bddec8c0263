#include "cpu/backend.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <vector>

#include "cpu/isa.h"
#include "cpu/kernels.h"

// Calls the copy of a kernel that is compiled for the instruction set in use.
#if defined(ZSKD_X86)
#define ZSKD_ON_ISA(kernel, ...)                            \
  [&] {                                                     \
    switch (isa()) {                                        \
      case Isa::avx512: return avx512::kernel(__VA_ARGS__); \
      case Isa::avx2: return avx2::kernel(__VA_ARGS__);     \
      case Isa::baseline: break;                            \
    }                                                       \
    return baseline::kernel(__VA_ARGS__);                   \
  }()
#else
#define ZSKD_ON_ISA(kernel, ...) baseline::kernel(__VA_ARGS__)
#endif

namespace zskd::cpu {
namespace {

// With fewer elements per thread, starting a thread costs more than it saves: an element takes a few nanoseconds.
constexpr int64_t kGrain = 8192;

int64_t row_grain(int64_t elements_per_row) {
  return std::max<int64_t>(1, kGrain / std::max<int64_t>(1, elements_per_row));
}

// Calls kernel(begin, end, scratch) for ranges of rows, in parallel. `scratch` has room for two rows of double.
template <class Kernel>
void parallel_rows(int64_t rows, int64_t classes, const Kernel& kernel) {
  at::parallel_for(0, rows, row_grain(classes), [&](int64_t begin, int64_t end) {
    std::vector<double> scratch(static_cast<size_t>(2 * classes));
    kernel(begin, end, scratch.data());
  });
}

template <class T>
double lane_sum(const T* values, int64_t count) {
  double lanes[8] = {};  // independent sums, so that the additions do not wait for each other
  for (int64_t i = 0; i < count; ++i) lanes[i % 8] += static_cast<double>(values[i]);
  return ((lanes[0] + lanes[4]) + (lanes[2] + lanes[6])) + ((lanes[1] + lanes[5]) + (lanes[3] + lanes[7]));
}

}  // namespace

double sum(const float* values, int64_t count) { return lane_sum(values, count); }
double sum(const double* values, int64_t count) { return lane_sum(values, count); }

void soft_cross_entropy(const RowLossParams& p) {
  parallel_rows(p.rows, p.classes, [&](int64_t begin, int64_t end, void* scratch) {
    ZSKD_ON_ISA(soft_cross_entropy, p, begin, end, scratch);
  });
}

void distillation_loss(const RowLossParams& p) {
  parallel_rows(p.rows, p.classes, [&](int64_t begin, int64_t end, void* scratch) {
    ZSKD_ON_ISA(distillation_loss, p, begin, end, scratch);
  });
}

int64_t first_invalid_concentration(const DirichletParams& p) {
  const int64_t rows = p.concentration_stride == 0 ? std::min<int64_t>(p.rows, 1) : p.rows;
  const auto find = [&](int64_t begin, int64_t end, int64_t found) {
    const int64_t row = ZSKD_ON_ISA(first_invalid_concentration, p, begin, end);
    return row < 0 ? found : std::min(row, found);
  };
  const auto first = [](int64_t a, int64_t b) { return std::min(a, b); };
  const int64_t row = at::parallel_reduce(0, rows, row_grain(p.classes), rows, find, first);
  return row == rows ? -1 : row;
}

void dirichlet(const DirichletParams& p) {
  parallel_rows(p.rows, p.classes,
                [&](int64_t begin, int64_t end, void* scratch) { ZSKD_ON_ISA(dirichlet, p, begin, end, scratch); });
}

void philox(const PhiloxParams& p) {
  at::parallel_for(0, p.rows, row_grain(p.count),
                   [&](int64_t begin, int64_t end) { ZSKD_ON_ISA(philox, p, begin, end); });
}

void impression_update(const ImpressionUpdateParams& p) {
  at::parallel_for(0, p.size, kGrain,
                   [&](int64_t begin, int64_t end) { ZSKD_ON_ISA(impression_update, p, begin, end); });
}

void total_variation_grad(const TotalVariationGradParams& p) {
  at::parallel_for(0, p.planes * p.height, row_grain(p.row_length), [&](int64_t begin, int64_t end) {
    std::vector<double> scratch(static_cast<size_t>(3 * (p.row_length + 2 * p.pixel_stride)));
    ZSKD_ON_ISA(total_variation_grad, p, begin, end, scratch.data());
  });
}

void dead_leaves(const DeadLeavesParams& p) {
  at::parallel_for(0, p.images, row_grain(p.leaves * p.height * p.width),
                   [&](int64_t begin, int64_t end) { ZSKD_ON_ISA(dead_leaves, p, begin, end); });
}

void augment(const AugmentParams& p) {
  constexpr int64_t frame = 2 * math::kOutside;
  const int64_t size = p.channels * p.height * p.width;
  const int64_t framed = p.numbers.moves ? p.channels * (p.height + frame) * (p.width + frame) : 0;
  at::parallel_for(0, p.rows, row_grain(size), [&](int64_t begin, int64_t end) {
    std::vector<float> scratch(static_cast<size_t>(size + framed));
    ZSKD_ON_ISA(augment, p, begin, end, scratch.data());
  });
}

void max_pool(const MaxPoolParams& p) {
  at::parallel_for(0, p.planes, row_grain(p.height * p.width),
                   [&](int64_t begin, int64_t end) { ZSKD_ON_ISA(max_pool, p, begin, end); });
}

}  // namespace zskd::cpu
