#define ZSKD_FMA_MAY_ROUND_TWICE
#include "cpu/kernels.h"
#include "cpu/row_loss.h"
#include "math/distillation_loss.h"

namespace zskd::cpu::ZSKD_ISA {

void distillation_loss(const RowLossParams& p, int64_t begin, int64_t end, void* scratch) {
  run_row_loss<math::DistillationLoss>(p, begin, end, scratch);
}

}  // namespace zskd::cpu::ZSKD_ISA
