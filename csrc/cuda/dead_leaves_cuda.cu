// A thread finds the leaf that covers each of its pixels, from the last leaf to the first, and stops at the first that
// does: the result of painting the leaves in order, without painting what is painted over. The shapes of the leaves are
// in shared memory. Their values are read through the cache, because a thread knows its leaves only at the end.
#include "cuda/backend.h"
#include "cuda/memory.cuh"
#include "cuda/reduce.cuh"
#include "math/dead_leaves.h"

namespace zskd::cuda {
namespace {

constexpr const char* kOp = "dead_leaves";
constexpr int kThreads = 128;
constexpr int kChunk = kThreads;  // leaves in shared memory: each thread computes the shape of one
constexpr int kGround = -1;
using math::kLeafNumbers;

struct Painting {
  const float* numbers;
  float* out;
  int64_t images, channels, height, width;
  int leaves;
  int64_t pixels;       // of one channel of an image
  int64_t leaf_stride;  // floats from one leaf to the next
  int64_t blocks_per_image;

  Painting(const DeadLeavesParams& p, int pixels_per_thread)
      : numbers(p.numbers),
        out(p.out),
        images(p.images),
        channels(p.channels),
        height(p.height),
        width(p.width),
        leaves(static_cast<int>(p.leaves)),
        pixels(p.height * p.width),
        leaf_stride(kLeafNumbers + p.channels),
        blocks_per_image(ceil_div(pixels, int64_t{kThreads} * pixels_per_thread)) {}
};

// Computes the shapes of `count` leaves. The barriers separate this from the reads before and after it.
__device__ __forceinline__ void find_shapes(const Painting& p, const float* leaves, int count,
                                            math::LeafShape* shapes) {
  __syncthreads();
  if (const int leaf = threadIdx.x; leaf < count) {
    float numbers[kLeafNumbers];
#pragma unroll
    for (int k = 0; k < kLeafNumbers; ++k) load<1>(leaves + leaf * p.leaf_stride + k, numbers + k);
    shapes[leaf] = math::leaf_shape(numbers);
  }
  __syncthreads();
}

// kWidth adjacent pixels of one row, and the leaf on top of each.
template <int kWidth>
struct Pixels {
  float row, column[kWidth];
  int top[kWidth];

  __device__ Pixels(const Painting& p, int64_t first) {
    const int64_t i = divide(first, p.width), j = first - i * p.width;
    row = math::pixel_center(i, p.height);
#pragma unroll
    for (int k = 0; k < kWidth; ++k) {
      column[k] = math::pixel_center(j + k, p.width);
      top[k] = kGround;
    }
  }

  __device__ bool is_open() const {
    bool open = false;
#pragma unroll
    for (int k = 0; k < kWidth; ++k) open |= top[k] == kGround;
    return open;
  }

  template <bool kBox>
  __device__ void cover(const math::LeafShape& shape, int leaf) {
    const math::LeafRow from = math::leaf_row(shape, row);
#pragma unroll
    for (int k = 0; k < kWidth; ++k) {
      if (top[k] == kGround && math::leaf_covers<kBox>(from, column[k])) top[k] = leaf;
    }
  }

  // Tries the leaves of a chunk that begins with leaf `begin`.
  __device__ void cover_from_last(const math::LeafShape* shapes, int begin, int count) {
    for (int l = count - 1; l >= 0 && is_open(); --l) {
      if ((begin + l) % 2 == 0) {
        cover<false>(shapes[l], begin + l);
      } else {
        cover<true>(shapes[l], begin + l);
      }
    }
  }
};

template <int kWidth>
__device__ __forceinline__ void write(const Painting& p, const float* leaves, const Pixels<kWidth>& pixels,
                                      float* out) {
#pragma unroll 1  // images have one or three channels: an unrolled loop would only cost registers
  for (int64_t c = 0; c < p.channels; ++c) {
    float values[kWidth];
#pragma unroll
    for (int k = 0; k < kWidth; ++k) {
      values[k] = 0.0f;
      if (pixels.top[k] != kGround) load<1>(leaves + pixels.top[k] * p.leaf_stride + kLeafNumbers + c, values + k);
    }
    store<kWidth>(out + c * p.pixels, values);
  }
}

template <int kWidth>
__global__ void __launch_bounds__(kThreads) paint(const Painting p) {
  static __shared__ math::LeafShape shapes[kChunk];
  for (int64_t block = blockIdx.x; block < p.images * p.blocks_per_image; block += gridDim.x) {
    const int64_t image = divide(block, p.blocks_per_image);
    const int64_t first = ((block - image * p.blocks_per_image) * kThreads + threadIdx.x) * kWidth;
    const float* const leaves = p.numbers + image * p.leaves * p.leaf_stride;
    Pixels<kWidth> pixels(p, first);  // may lie beyond the image: all threads have to reach the barriers
    for (int end = p.leaves; end > 0; end -= kChunk) {
      const int begin = end > kChunk ? end - kChunk : 0;
      find_shapes(p, leaves + begin * p.leaf_stride, end - begin, shapes);
      pixels.cover_from_last(shapes, begin, end - begin);
    }
    if (first < p.pixels) write(p, leaves, pixels, p.out + image * p.channels * p.pixels + first);
  }
}

template <int kWidth>
void run(const DeadLeavesParams& params, cudaStream_t stream) {
  const Painting p(params, kWidth);
  launch(kOp, paint<kWidth>, p, p.images * p.blocks_per_image, 1, kThreads, stream);
}

}  // namespace

void dead_leaves(const DeadLeavesParams& p, Stream stream) {
  constexpr int wide = kVector<float>;
  if (is_aligned(p.out, p.width, p.width, wide)) return run<wide>(p, stream);
  run<1>(p, stream);
}

}  // namespace zskd::cuda
