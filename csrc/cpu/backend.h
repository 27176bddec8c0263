// The interface of the CPU backend: one function per op. It runs on torch's thread pool, with the best instruction set
// of the machine. The bits of a result do not depend on the number of threads, because no two threads share a row.
#pragma once

#include "params.h"

namespace zskd::cpu {

void soft_cross_entropy(const RowLossParams& p);
void distillation_loss(const RowLossParams& p);
int64_t first_invalid_concentration(const DirichletParams& p);  // index of the row; -1 if all rows are valid
void dirichlet(const DirichletParams& p);
void philox(const PhiloxParams& p);
void impression_update(const ImpressionUpdateParams& p);
void total_variation_grad(const TotalVariationGradParams& p);
void dead_leaves(const DeadLeavesParams& p);
void augment(const AugmentParams& p);
void max_pool(const MaxPoolParams& p);

// The order of the additions depends on `count` only.
double sum(const float* values, int64_t count);
double sum(const double* values, int64_t count);

}  // namespace zskd::cpu
