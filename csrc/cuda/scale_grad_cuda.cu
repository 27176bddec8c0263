// Multiplies by a number that only the device knows. Where it is 1, as in `loss.backward()`, each block reads it and
// returns: the gradient is neither read nor written.
#include "cuda/backend.h"
#include "cuda/memory.cuh"
#include "cuda/reduce.cuh"

namespace zskd::cuda {
namespace {

constexpr const char* kOp = "scale_grad_";
constexpr int kThreads = 256;
constexpr int kPiecesPerThread = 8;  // few blocks, so that blocks that only return cost little

template <class A>
struct Scaled {
  A* grad;
  const A* weight;
  int64_t size;
};

template <class A, int kWidth>
__global__ void __launch_bounds__(kThreads) scale(const Scaled<A> p) {
  A weight;
  load<1>(p.weight, &weight);
  if (weight == A(1)) return;
  for (int64_t i = grid_thread() * kWidth; i < p.size; i += grid_threads() * kWidth) {
    A grad[kWidth];
    load<kWidth>(p.grad + i, grad);
#pragma unroll
    for (int j = 0; j < kWidth; ++j) grad[j] *= weight;
    store<kWidth>(p.grad + i, grad);
  }
}

template <class A>
void run(const ScaleGradParams& params, cudaStream_t stream) {
  const Scaled<A> p = {static_cast<A*>(params.grad), static_cast<const A*>(params.weight), params.size};
  constexpr int wide = kVector<A>;
  constexpr int64_t pieces = int64_t{kThreads} * kPiecesPerThread;
  if (is_aligned(p.grad, p.size, p.size, wide)) {
    return launch(kOp, scale<A, wide>, p, p.size / wide, pieces, kThreads, stream);
  }
  launch(kOp, scale<A, 1>, p, p.size, pieces, kThreads, stream);
}

}  // namespace

void scale_grad(const ScaleGradParams& p, Stream stream) {
  if (p.dtype == Dtype::f64) return run<double>(p, stream);
  run<float>(p, stream);
}

}  // namespace zskd::cuda
