// The host functions, one per op: each checks its arguments, allocates the results and calls the backend of the device.
// The arguments are documented in zskd_fast/ops.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <string>
#include <tuple>

namespace zskd::ops {

using LossAndGrad = std::tuple<at::Tensor, at::Tensor>;

// The gradient is written to `grad_out` if that is given. If `with_grad` is false, the returned gradient is empty.
LossAndGrad soft_cross_entropy(const at::Tensor& logits, const at::Tensor& target, double temperature,
                               const std::string& reduction, bool with_grad, std::optional<at::Tensor> grad_out);
LossAndGrad distillation_loss(const at::Tensor& student_logits, const at::Tensor& teacher_logits, double temperature,
                              const std::string& reduction, bool with_grad, std::optional<at::Tensor> grad_out);
// Multiplies the saved gradient of a row loss by its upstream gradient, one number. No device waits for the host.
void scale_grad_(at::Tensor grad, const at::Tensor& weight);
at::Tensor dirichlet(const at::Tensor& concentration, const at::Tensor& ids, int64_t seed, bool log);
at::Tensor philox(const at::Tensor& ids, int64_t count, int64_t seed, int64_t stream, const std::string& distribution,
                  at::ScalarType dtype);
void impression_update_(at::Tensor x, const at::Tensor& grad, at::Tensor exp_avg, at::Tensor exp_avg_sq,
                        const at::Tensor& step, const at::Tensor& lr, double beta1, double beta2, double eps, double l1,
                        double l2, const at::Tensor& lo, const at::Tensor& hi);
void total_variation_grad_(at::Tensor grad, const at::Tensor& x, double weight);
at::Tensor dead_leaves(const at::Tensor& leaves, int64_t height, int64_t width);
at::Tensor augment(const at::Tensor& x, const at::Tensor& positions, int64_t seed, int64_t stream,
                   double rotation_sigma, double scale_sigma, double shift_sigma, double flip_probability,
                   double mix_probability, double noise_max, bool clamp, double low, double high);
// The maxima of the 2x2 windows, and the index of each in its plane. CPU only.
std::tuple<at::Tensor, at::Tensor> max_pool(const at::Tensor& x);

}  // namespace zskd::ops
