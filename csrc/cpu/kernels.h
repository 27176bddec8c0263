// The kernels of the CPU backend. A call works on a range of rows (impression_update: of elements, max_pool: of planes,
// dead_leaves: of images) on the calling thread. There is one namespace per instruction set; each is compiled from the
// same sources (see CMakeLists.txt).
#pragma once

#include "params.h"

#define ZSKD_DECLARE_KERNELS(isa)                                                                          \
  namespace zskd::cpu::isa {                                                                               \
  void soft_cross_entropy(const RowLossParams& p, int64_t begin, int64_t end, void* scratch);              \
  void distillation_loss(const RowLossParams& p, int64_t begin, int64_t end, void* scratch);               \
  void dirichlet(const DirichletParams& p, int64_t begin, int64_t end, void* scratch);                     \
  int64_t first_invalid_concentration(const DirichletParams& p, int64_t begin, int64_t end);               \
  void philox(const PhiloxParams& p, int64_t begin, int64_t end);                                          \
  void impression_update(const ImpressionUpdateParams& p, int64_t begin, int64_t end);                     \
  void total_variation_grad(const TotalVariationGradParams& p, int64_t begin, int64_t end, void* scratch); \
  void dead_leaves(const DeadLeavesParams& p, int64_t begin, int64_t end);                                 \
  void augment(const AugmentParams& p, int64_t begin, int64_t end, float* scratch);                        \
  void max_pool(const MaxPoolParams& p, int64_t begin, int64_t end);                                       \
  }

ZSKD_DECLARE_KERNELS(baseline)
#if defined(ZSKD_X86)
ZSKD_DECLARE_KERNELS(avx2)
ZSKD_DECLARE_KERNELS(avx512)
#endif

#undef ZSKD_DECLARE_KERNELS
