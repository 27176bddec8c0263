#include <cmath>

#include "cuda/backend.h"
#include "cuda/memory.cuh"
#include "cuda/reduce.cuh"
#include "math/impression_update.h"

namespace zskd::cuda {
namespace {

constexpr const char* kOp = "impression_update_";
constexpr int kThreads = 256;

// The minimum number of blocks per multiprocessor, for __launch_bounds__; 0 is no minimum. It is set to 1 where ptxas
// would otherwise spill registers to fit more blocks.
template <int kWidth>
constexpr int kLeastBlocks = kWidth == 1 ? 1 : 0;

template <class T>
struct Update {
  using A = accumulate_t<T>;

  T* x;
  const T* grad;
  A* exp_avg;
  A* exp_avg_sq;
  int64_t size, channels, channel_size;
  const double* channel_lo;  // null if lo and hi apply to all elements
  const double* channel_hi;
  A lo, hi;
  double beta1, beta2, lr, step;
  const double* device_lr;
  const double* device_step;
  math::ImpressionUpdate<A> numbers;

  explicit Update(const ImpressionUpdateParams& p)
      : x(static_cast<T*>(p.x)),
        grad(static_cast<const T*>(p.grad)),
        exp_avg(static_cast<A*>(p.exp_avg)),
        exp_avg_sq(static_cast<A*>(p.exp_avg_sq)),
        size(p.size),
        channels(p.channels),
        channel_size(p.channel_size),
        channel_lo(p.device_bounds ? p.lo : nullptr),
        channel_hi(p.device_bounds ? p.hi : nullptr),
        lo(p.device_bounds ? A(0) : static_cast<A>(*p.lo)),
        hi(p.device_bounds ? A(0) : static_cast<A>(*p.hi)),
        beta1(p.beta1),
        beta2(p.beta2),
        lr(p.lr),
        step(p.step),
        device_lr(p.device_lr),
        device_step(p.device_step),
        numbers{static_cast<A>(p.beta2),
                static_cast<A>(p.eps),
                static_cast<A>(p.l1),
                static_cast<A>(p.l2),
                static_cast<A>(1 - p.beta1),
                static_cast<A>(1 - p.beta2),
                static_cast<A>(p.lr / (1 - std::pow(p.beta1, p.step))),
                static_cast<A>(1 / std::sqrt(1 - std::pow(p.beta2, p.step)))} {}

  // `numbers` with lr and step as the device knows them.
  __device__ math::ImpressionUpdate<A> numbers_of_step() const {
    math::ImpressionUpdate<A> now = numbers;
    const int64_t t = static_cast<int64_t>(device_step ? *device_step : step);
    now.step_size = static_cast<A>((device_lr ? *device_lr : lr) / (1 - math::whole_power(beta1, t)));
    now.inverse_root_correction = static_cast<A>(1 / math::sqrt(1 - math::whole_power(beta2, t)));
    return now;
  }
};

template <class T, int kWidth>
__global__ void __launch_bounds__(kThreads, kLeastBlocks<kWidth>) update(const Update<T> p) {
  using A = accumulate_t<T>;
  static __shared__ math::ImpressionUpdate<A> shared;
  if (threadIdx.x == 0) shared = p.device_lr || p.device_step ? p.numbers_of_step() : p.numbers;
  __syncthreads();
  const math::ImpressionUpdate<A> numbers = shared;

#pragma unroll 1  // of the narrow kernel nvcc would take four elements at once, for a third more registers
  for (int64_t i = grid_thread() * kWidth; i < p.size; i += grid_threads() * kWidth) {
    A lo = p.lo, hi = p.hi;
    if (p.channel_lo) {
      const int64_t plane = divide(i, p.channel_size);
      const int64_t channel = plane - divide(plane, p.channels) * p.channels;
      lo = static_cast<A>(p.channel_lo[channel]);
      hi = static_cast<A>(p.channel_hi[channel]);
    }
    A x[kWidth], grad[kWidth], m[kWidth], v[kWidth];
    load<kWidth>(p.x + i, x);
    load<kWidth>(p.grad + i, grad);
    load<kWidth>(p.exp_avg + i, m);
    load<kWidth>(p.exp_avg_sq + i, v);
#pragma unroll
    for (int j = 0; j < kWidth; ++j) x[j] = math::update_element(x[j], grad[j], m[j], v[j], lo, hi, numbers);
    store<kWidth>(p.x + i, x);
    store<kWidth>(p.exp_avg + i, m);
    store<kWidth>(p.exp_avg_sq + i, v);
  }
}

template <class T>
void run(const ImpressionUpdateParams& params, cudaStream_t stream) {
  const Update<T> p(params);
  constexpr int wide = kVector<T>;
  const auto aligned = [&](const auto* pointer) { return is_aligned(pointer, p.size, p.size, wide); };
  const bool one_channel_per_vector = !p.channel_lo || p.channels == 1 || p.channel_size % wide == 0;
  if (one_channel_per_vector && aligned(p.x) && aligned(p.grad) && aligned(p.exp_avg) && aligned(p.exp_avg_sq)) {
    return launch(kOp, update<T, wide>, p, p.size / wide, kThreads, kThreads, stream);
  }
  launch(kOp, update<T, 1>, p, p.size, kThreads, kThreads, stream);
}

}  // namespace

void impression_update(const ImpressionUpdateParams& p, Stream stream) {
  switch (p.dtype) {
    case Dtype::f32: return run<float>(p, stream);
    case Dtype::f64: return run<double>(p, stream);
    case Dtype::f16: return run<Half>(p, stream);
    case Dtype::bf16: return run<BFloat16>(p, stream);
  }
}

}  // namespace zskd::cuda
