// Torch's kernel processes one window after another, one value at a time. This one processes four windows at once, one
// in each SIMD lane; not more, because the images in small networks are narrow: 14 windows per row in the first layer
// of a LeNet-5, 5 in the second.
#include "cpu/kernels.h"
#include "cpu/transpose.h"
#include "math/max_pool.h"

namespace zskd::cpu::ZSKD_ISA {
namespace {

using Floats = Quad<float>;
using Ints = Quad<int32_t>;
using Longs = Quad<int64_t>;

struct Rows {
  const float *upper, *lower;
  int32_t index;  // index of upper[0] in its plane
  int32_t width;
};

struct Maxima {
  float* value;
  int64_t* place;
};

ZSKD_INLINE void pool_one(Rows rows, Maxima to) {
  math::Found<float, int32_t> found = {rows.upper[0], 0};
  found = math::or_later(found, rows.upper[1], 1);
  found = math::or_later(found, rows.lower[0], rows.width);
  found = math::or_later(found, rows.lower[1], rows.width + 1);
  *to.value = found.value;
  *to.place = rows.index + found.place;
}

ZSKD_INLINE void pool_block(Rows rows, Maxima to) {
  const auto halves = [](const float* row, Floats& even, Floats& odd) {
    Floats left, right;
    load_block(row, left);
    load_block(row + kBlock, right);
    even = ZSKD_SHUFFLE(left, right, 0, 2, 4, 6);
    odd = ZSKD_SHUFFLE(left, right, 1, 3, 5, 7);
  };
  Floats upper_even, upper_odd, lower_even, lower_odd;
  halves(rows.upper, upper_even, upper_odd);
  halves(rows.lower, lower_even, lower_odd);
  math::Found<Floats, Ints> found = {upper_even, Ints{}};
  found = math::or_later(found, upper_odd, Ints{} + 1);
  found = math::or_later(found, lower_even, Ints{} + rows.width);
  found = math::or_later(found, lower_odd, Ints{} + (rows.width + 1));
  store_block(to.value, found.value);
  const Longs place = __builtin_convertvector(found.place + rows.index + Ints{0, 2, 4, 6}, Longs);
  __builtin_memcpy(to.place, &place, sizeof(place));
}

ZSKD_INLINE void pool_row(Rows rows, Maxima to) {
  const int64_t windows = rows.width / 2;
  const int64_t step = windows < kBlock ? 1 : kBlock;
  for (int64_t next = 0; next < windows; next += step) {
    const int64_t i = step == 1 ? next : block_start(next, windows);
    const Rows from = {rows.upper + 2 * i, rows.lower + 2 * i, rows.index + static_cast<int32_t>(2 * i), rows.width};
    if (step == 1) {
      pool_one(from, {to.value + i, to.place + i});
    } else {
      pool_block(from, {to.value + i, to.place + i});
    }
  }
}

}  // namespace

void max_pool(const MaxPoolParams& p, int64_t begin, int64_t end) {
  const int64_t height = p.height / 2, width = p.width / 2;
  for (int64_t plane = begin; plane < end; ++plane) {
    const float* const x = p.x + plane * p.height * p.width;
    for (int64_t i = 0; i < height; ++i) {
      const int64_t from = 2 * i * p.width, to = (plane * height + i) * width;
      pool_row({x + from, x + from + p.width, static_cast<int32_t>(from), static_cast<int32_t>(p.width)},
               {p.out + to, p.place + to});
    }
  }
}

}  // namespace zskd::cpu::ZSKD_ISA
