// A block works on a piece of one row. What the row and the next one draw is computed once a block, into shared memory;
// the pixels of the next row are sampled a second time, so that no block waits for another. Each thread finishes four
// adjacent elements, those of one Philox block of noise.
#include "cuda/backend.h"
#include "cuda/memory.cuh"
#include "cuda/reduce.cuh"
#include "math/augment.h"

namespace zskd::cuda {
namespace {

constexpr const char* kOp = "augment";
constexpr int kThreads = 256;
constexpr int kVariates = math::kVariatesPerBlock;

struct Batch {
  const float* x;
  const int64_t* positions;
  float* out;
  int64_t positions_stride, rows, size, pixels;  // elements of a row, and of one channel of it
  int64_t blocks_per_row;
  int height, width;
  math::Augmentation numbers;

  explicit Batch(const AugmentParams& p)
      : x(p.x),
        positions(p.positions),
        out(p.out),
        positions_stride(p.positions_stride),
        rows(p.rows),
        size(p.channels * p.height * p.width),
        pixels(p.height * p.width),
        blocks_per_row(ceil_div(size, int64_t{kThreads} * kVariates)),
        height(p.numbers.moves ? static_cast<int>(p.height) : 1),
        width(p.numbers.moves ? static_cast<int>(p.width) : 1),
        numbers(p.numbers) {}

  __device__ math::Halves id(int64_t row) const { return math::halves(positions[row * positions_stride]); }
};

// What is drawn once for a row: its map, and the map of the next row.
struct Drawn {
  math::AffineMap maps[2];
  float weight, deviation;
};

// The barriers separate this from the reads before and after it. Threads of different warps draw, side by side.
__device__ __forceinline__ void draw(const Batch& p, int64_t row, int64_t next, Drawn& drawn) {
  const math::Augmentation& a = p.numbers;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  __syncthreads();
  if (threadIdx.x % kWarp == 0) {
    if (warp < 2 && a.moves) drawn.maps[warp] = math::draw_map(a, p.id(warp == 0 ? row : next), p.height, p.width);
    if (warp == 2) drawn.weight = math::draw_weight(a, p.id(row));
    if (warp == 3) drawn.deviation = math::draw_deviation(a, p.id(row));
  }
  __syncthreads();
}

// An element of an image: its pixel, and the plane of its channel.
struct Element {
  int i, j;
  int64_t plane;

  __device__ Element(const Batch& p, int64_t at) {
    const int64_t channel = divide(at, p.pixels), pixel = at - channel * p.pixels;
    i = static_cast<int>(divide(pixel, p.width));
    j = static_cast<int>(pixel - int64_t{i} * p.width);
    plane = channel * p.pixels;
  }

  __device__ void advance(const Batch& p) {
    if (++j < p.width) return;
    j = 0;
    if (++i < p.height) return;
    i = 0;
    plane += p.pixels;
  }
};

__device__ __forceinline__ float pixel_or_background(const Batch& p, const float* plane, int i, int j) {
  float value = p.numbers.background;
  if (i >= 0 && i < p.height && j >= 0 && j < p.width) load<1>(plane + int64_t{i} * p.width + j, &value);
  return value;
}

__device__ __forceinline__ float sample(const Batch& p, const float* x, const math::AffineMap& map, Element element) {
  const math::PlacesOfRow places = math::places_of_row(map, element.i, p.height);
  const math::Place column = math::column_of(places, element.j, p.width);
  const math::Place row = math::row_of(places, element.j, p.height, p.width);
  const float* const plane = x + element.plane;
  const float upper = math::between(pixel_or_background(p, plane, row.pixel, column.pixel),
                                    pixel_or_background(p, plane, row.pixel, column.pixel + 1), column.part);
  const float lower = math::between(pixel_or_background(p, plane, row.pixel + 1, column.pixel),
                                    pixel_or_background(p, plane, row.pixel + 1, column.pixel + 1), column.part);
  return math::between(upper, lower, row.part);
}

// The elements from `first` on, of those that the row has.
template <bool kWide>
__device__ __forceinline__ void read(const Batch& p, int64_t row, int64_t first, const math::AffineMap& map,
                                     float (&to)[kVariates]) {
  const float* const x = p.x + row * p.size;
  if (p.numbers.moves) {
    Element element(p, first);
#pragma unroll
    for (int k = 0; k < kVariates; ++k) {
      if (kWide || first + k < p.size) to[k] = sample(p, x, map, element);
      element.advance(p);
    }
  } else if constexpr (kWide) {
    load<kVariates>(x + first, to);
  } else {
#pragma unroll
    for (int k = 0; k < kVariates; ++k) {
      if (first + k < p.size) load<1>(x + first + k, to + k);
    }
  }
}

__device__ __forceinline__ void add_noise(const math::Augmentation& a, math::Halves id, int64_t first, float deviation,
                                          float (&values)[kVariates]) {
  const math::PhiloxBlock words = math::draw_block(a, id, math::kNoiseStream, static_cast<uint32_t>(first / kVariates));
  float noise[kVariates];
  math::normal_pair(words.w0, words.w1, &noise[0], &noise[1]);
  math::normal_pair(words.w2, words.w3, &noise[2], &noise[3]);
#pragma unroll
  for (int k = 0; k < kVariates; ++k) values[k] = math::fma(deviation, noise[k], values[k]);
}

template <bool kWide>
__device__ __forceinline__ void write(const Batch& p, int64_t row, int64_t first, float (&values)[kVariates]) {
  float* const out = p.out + row * p.size + first;
#pragma unroll
  for (int k = 0; k < kVariates; ++k) values[k] = math::clamped(p.numbers, values[k]);
  if constexpr (kWide) {
    store<kVariates>(out, values);
  } else {
#pragma unroll
    for (int k = 0; k < kVariates; ++k) {
      if (first + k < p.size) store<1>(out + k, values + k);
    }
  }
}

template <bool kWide>
__global__ void __launch_bounds__(kThreads) vary(const Batch p) {
  static __shared__ Drawn drawn;
  for (int64_t block = blockIdx.x; block < p.rows * p.blocks_per_row; block += gridDim.x) {
    const int64_t row = divide(block, p.blocks_per_row), next = row + 1 < p.rows ? row + 1 : 0;
    const int64_t first = ((block - row * p.blocks_per_row) * kThreads + threadIdx.x) * kVariates;
    draw(p, row, next, drawn);
    if (first >= p.size) continue;
    float values[kVariates] = {}, others[kVariates] = {};
    read<kWide>(p, row, first, drawn.maps[0], values);
    if (drawn.weight < 1) {
      read<kWide>(p, next, first, drawn.maps[1], others);
#pragma unroll
      for (int k = 0; k < kVariates; ++k) values[k] = math::between(others[k], values[k], drawn.weight);
    }
    if (drawn.deviation > 0) add_noise(p.numbers, p.id(row), first, drawn.deviation, values);
    write<kWide>(p, row, first, values);
  }
}

}  // namespace

void augment(const AugmentParams& params, Stream stream) {
  const Batch p(params);
  const bool wide = is_aligned(p.x, p.size, p.size, kVariates) && is_aligned(p.out, p.size, p.size, kVariates);
  launch(kOp, wide ? vary<true> : vary<false>, p, p.rows * p.blocks_per_row, 1, kThreads, stream);
}

}  // namespace zskd::cuda
