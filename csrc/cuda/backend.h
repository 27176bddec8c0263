// The interface of the CUDA backend: one function per op. It queues the work on a stream of the current device and
// returns without waiting. A failed launch throws std::runtime_error. There are no atomics: the same arguments give the
// same bits.
#pragma once

#include "params.h"

struct CUstream_st;

namespace zskd::cuda {

using Stream = CUstream_st*;  // cudaStream_t, without the toolkit's headers

void soft_cross_entropy(const RowLossParams& p, Stream stream);
void distillation_loss(const RowLossParams& p, Stream stream);
void scale_grad(const ScaleGradParams& p, Stream stream);
void dirichlet(const DirichletParams& p, Stream stream);  // a row with an invalid concentration becomes NaN
void philox(const PhiloxParams& p, Stream stream);
void impression_update(const ImpressionUpdateParams& p, Stream stream);
void total_variation_grad(const TotalVariationGradParams& p, Stream stream);
void dead_leaves(const DeadLeavesParams& p, Stream stream);
void augment(const AugmentParams& p, Stream stream);

}  // namespace zskd::cuda
