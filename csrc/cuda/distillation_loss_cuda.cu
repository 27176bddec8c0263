#include "cuda/backend.h"
#include "cuda/row_loss.cuh"
#include "math/distillation_loss.h"

namespace zskd::cuda {

void distillation_loss(const RowLossParams& p, Stream stream) {
  run_row_loss<math::DistillationLoss>("distillation_loss", p, stream);
}

}  // namespace zskd::cuda
