// The host side of the two row losses, which differ in names and formulas alone.
#pragma once

#include "ops/dispatch.h"
#include "ops/ops.h"

namespace zskd::ops {

struct RowLoss {
  const char* op;
  const char* a;          // name of the logits argument
  const char* b;          // name of the other
  const char* mean_name;  // "mean" or "batchmean"
  Backends<RowLossParams> backends;
};

LossAndGrad row_loss(const RowLoss& names, const at::Tensor& a, const at::Tensor& b, double temperature,
                     const std::string& reduction, bool with_grad, std::optional<at::Tensor> grad_out);

}  // namespace zskd::ops
