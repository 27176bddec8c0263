// The CPU backend as csrc/ops sees it: one call an op, run by torch's thread pool on the best instruction set. The bits
// of a result do not depend on the number of threads, since no two of them share a row.
#pragma once

#include "params.h"

namespace zskd::cpu {

void soft_cross_entropy(const RowLossParams& p);
void distillation_loss(const RowLossParams& p);
int64_t first_invalid_concentration(const DirichletParams& p);  // the row, or -1
void dirichlet(const DirichletParams& p);
void philox(const PhiloxParams& p);
void impression_update(const ImpressionUpdateParams& p);
void max_pool(const MaxPoolParams& p);

// In one order that does not depend on the number of threads.
double sum(const float* values, int64_t count);
double sum(const double* values, int64_t count);

}  // namespace zskd::cpu
