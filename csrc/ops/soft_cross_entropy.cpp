#include "ops/row_loss.h"

namespace zskd::ops {

LossAndGrad soft_cross_entropy(const at::Tensor& logits, const at::Tensor& target, double temperature,
                               const std::string& reduction, bool with_grad, std::optional<at::Tensor> grad_out) {
  static constexpr RowLoss kNames = {"soft_cross_entropy", "logits", "target", "mean",
                                     ZSKD_BACKENDS(soft_cross_entropy)};
  return row_loss(kNames, logits, target, temperature, reduction, with_grad, std::move(grad_out));
}

}  // namespace zskd::ops
