// The host function of both row losses, which differ only in their names and formulas.
#pragma once

#include "ops/dispatch.h"
#include "ops/ops.h"

namespace zskd::ops {

struct RowLoss {
  const char* op;
  const char* a;          // name of the logits argument
  const char* b;          // name of the argument with the targets or the teacher's logits
  const char* mean_name;  // name of the reduction to the mean: "mean" or "batchmean"
  Backends<RowLossParams> backends;
};

LossAndGrad row_loss(const RowLoss& names, const at::Tensor& a, const at::Tensor& b, double temperature,
                     const std::string& reduction, bool with_grad, std::optional<at::Tensor> grad_out);

}  // namespace zskd::ops
