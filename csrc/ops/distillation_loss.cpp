#include "ops/row_loss.h"

namespace zskd::ops {

LossAndGrad distillation_loss(const at::Tensor& student_logits, const at::Tensor& teacher_logits, double temperature,
                              const std::string& reduction, bool with_grad, std::optional<at::Tensor> grad_out) {
  static constexpr RowLoss kNames = {"distillation_loss", "student_logits", "teacher_logits", "batchmean",
                                     ZSKD_BACKENDS(distillation_loss)};
  return row_loss(kNames, student_logits, teacher_logits, temperature, reduction, with_grad, std::move(grad_out));
}

}  // namespace zskd::ops
