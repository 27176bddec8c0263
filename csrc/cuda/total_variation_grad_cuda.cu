// A thread adds the gradient of a few adjacent elements of a row. Global memory is read once: the neighbors of an
// element are elements of other threads of its block, or of a block nearby, and come from the cache.
#include "cuda/backend.h"
#include "cuda/memory.cuh"
#include "cuda/reduce.cuh"
#include "math/total_variation_grad.h"

namespace zskd::cuda {
namespace {

constexpr const char* kOp = "total_variation_grad_";
constexpr int kThreads = 256;

template <class T>
struct Prior {
  T* grad;
  const T* x;
  int64_t size, height, row_length, pixel_stride;
  accumulate_t<T> scale;

  explicit Prior(const TotalVariationGradParams& p)
      : grad(static_cast<T*>(p.grad)),
        x(static_cast<const T*>(p.x)),
        size(p.planes * p.height * p.row_length),
        height(p.height),
        row_length(p.row_length),
        pixel_stride(p.pixel_stride),
        scale(static_cast<accumulate_t<T>>(2 * p.weight)) {}
};

template <class T, int kWidth>
__global__ void __launch_bounds__(kThreads) add(const Prior<T> p) {
  using A = accumulate_t<T>;
  for (int64_t i = grid_thread() * kWidth; i < p.size; i += grid_threads() * kWidth) {
    const int64_t row = divide(i, p.row_length);
    const int64_t j = i - row * p.row_length, row_of_plane = row - divide(row, p.height) * p.height;
    const T* const x = p.x + i;
    A grad[kWidth], own[kWidth], above[kWidth], below[kWidth];
    load<kWidth>(p.grad + i, grad);
    load<kWidth>(x, own);
    load<kWidth>(row_of_plane > 0 ? x - p.row_length : x, above);
    load<kWidth>(row_of_plane < p.height - 1 ? x + p.row_length : x, below);
#pragma unroll
    for (int k = 0; k < kWidth; ++k) {
      A left = own[k], right = own[k];
      if (j + k >= p.pixel_stride) load<1>(x + k - p.pixel_stride, &left);
      if (j + k < p.row_length - p.pixel_stride) load<1>(x + k + p.pixel_stride, &right);
      grad[k] += p.scale * math::neighbor_differences(own[k], above[k], below[k], left, right);
    }
    store<kWidth>(p.grad + i, grad);
  }
}

template <class T>
void run(const TotalVariationGradParams& params, cudaStream_t stream) {
  const Prior<T> p(params);
  constexpr int wide = kVector<T>;
  const auto aligned = [&](const T* pointer) { return is_aligned(pointer, p.row_length, p.row_length, wide); };
  if (aligned(p.grad) && aligned(p.x)) {
    return launch(kOp, add<T, wide>, p, p.size / wide, kThreads, kThreads, stream);
  }
  launch(kOp, add<T, 1>, p, p.size, kThreads, kThreads, stream);
}

}  // namespace

void total_variation_grad(const TotalVariationGradParams& p, Stream stream) {
  switch (p.dtype) {
    case Dtype::f32: return run<float>(p, stream);
    case Dtype::f64: return run<double>(p, stream);
    case Dtype::f16: return run<Half>(p, stream);
    case Dtype::bf16: return run<BFloat16>(p, stream);
  }
}

}  // namespace zskd::cuda
