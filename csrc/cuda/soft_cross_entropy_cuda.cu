#include "cuda/backend.h"
#include "cuda/row_loss.cuh"
#include "math/soft_cross_entropy.h"

namespace zskd::cuda {

void soft_cross_entropy(const RowLossParams& p, Stream stream) {
  run_row_loss<math::SoftCrossEntropy>("soft_cross_entropy", p, stream);
}

}  // namespace zskd::cuda
