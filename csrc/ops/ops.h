// The host functions, one an op: check, allocate, pick the backend. Signatures and semantics are documented where users
// meet them, in zskd_fast/ops.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <string>
#include <tuple>

namespace zskd::ops {

using LossAndGrad = std::tuple<at::Tensor, at::Tensor>;

// Writes into `grad_out` where it is given; an empty gradient comes back where `with_grad` is false.
LossAndGrad soft_cross_entropy(const at::Tensor& logits, const at::Tensor& target, double temperature,
                               const std::string& reduction, bool with_grad, std::optional<at::Tensor> grad_out);
LossAndGrad distillation_loss(const at::Tensor& student_logits, const at::Tensor& teacher_logits, double temperature,
                              const std::string& reduction, bool with_grad, std::optional<at::Tensor> grad_out);
at::Tensor dirichlet(const at::Tensor& concentration, const at::Tensor& ids, int64_t seed, bool log);
at::Tensor philox(const at::Tensor& ids, int64_t count, int64_t seed, int64_t stream, const std::string& distribution,
                  at::ScalarType dtype);
void impression_update_(at::Tensor x, const at::Tensor& grad, at::Tensor exp_avg, at::Tensor exp_avg_sq,
                        const at::Tensor& step, const at::Tensor& lr, double beta1, double beta2, double eps, double l1,
                        double l2, const at::Tensor& lo, const at::Tensor& hi);
// The maxima of the windows of 2x2, and where in its plane each lies. On a CPU alone.
std::tuple<at::Tensor, at::Tensor> max_pool(const at::Tensor& x);

}  // namespace zskd::ops
