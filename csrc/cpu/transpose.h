// Transposes short rows, so that each SIMD lane holds one row: blocks of eight rows by four classes are transposed in
// registers, with four rows in each half of a vector. Copying the elements one by one took longer than the arithmetic.
#pragma once

#include "cpu/storage.h"

namespace zskd::cpu {

constexpr int64_t kBlock = 4;               // classes per block
constexpr int64_t kBlockRows = 2 * kBlock;  // rows per block

template <class A>
struct Vectors {
  typedef A Quad __attribute__((vector_size(kBlock * sizeof(A))));
  typedef A Pair __attribute__((vector_size(kBlockRows * sizeof(A))));  // two quads
  typedef A UnalignedPair __attribute__((vector_size(kBlockRows * sizeof(A)), aligned(alignof(A)), may_alias));
};
template <class A>
using Quad = typename Vectors<A>::Quad;
template <class A>
using Pair = typename Vectors<A>::Pair;

#if defined(__clang__)
#define ZSKD_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define ZSKD_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, decltype(a < b){__VA_ARGS__})
#endif

#if !__has_builtin(__builtin_shufflevector)  // GCC 11 and older, where this is slower
template <class A>
ZSKD_INLINE void join(const Quad<A>& upper, const Quad<A>& lower, Pair<A>& q) {
  for (int i = 0; i < kBlock; ++i) q[i] = upper[i], q[kBlock + i] = lower[i];
}
template <class A>
ZSKD_INLINE void split(const Pair<A>& q, Quad<A>& upper, Quad<A>& lower) {
  for (int i = 0; i < kBlock; ++i) upper[i] = q[i], lower[i] = q[kBlock + i];
}
#else
template <class A>
ZSKD_INLINE void join(const Quad<A>& upper, const Quad<A>& lower, Pair<A>& q) {
  q = __builtin_shufflevector(upper, lower, 0, 1, 2, 3, 4, 5, 6, 7);
}
template <class A>
ZSKD_INLINE void split(const Pair<A>& q, Quad<A>& upper, Quad<A>& lower) {
  upper = __builtin_shufflevector(q, q, 0, 1, 2, 3);
  lower = __builtin_shufflevector(q, q, 4, 5, 6, 7);
}
#endif

// Transposes the 4x4 elements in each half of the four vectors.
template <class P>
ZSKD_INLINE void transpose_block(P (&q)[kBlock]) {
  const P low01 = ZSKD_SHUFFLE(q[0], q[1], 0, 8, 1, 9, 4, 12, 5, 13);
  const P high01 = ZSKD_SHUFFLE(q[0], q[1], 2, 10, 3, 11, 6, 14, 7, 15);
  const P low23 = ZSKD_SHUFFLE(q[2], q[3], 0, 8, 1, 9, 4, 12, 5, 13);
  const P high23 = ZSKD_SHUFFLE(q[2], q[3], 2, 10, 3, 11, 6, 14, 7, 15);
  q[0] = ZSKD_SHUFFLE(low01, low23, 0, 1, 8, 9, 4, 5, 12, 13);
  q[1] = ZSKD_SHUFFLE(low01, low23, 2, 3, 10, 11, 6, 7, 14, 15);
  q[2] = ZSKD_SHUFFLE(high01, high23, 0, 1, 8, 9, 4, 5, 12, 13);
  q[3] = ZSKD_SHUFFLE(high01, high23, 2, 3, 10, 11, 6, 7, 14, 15);
}

template <class T>
ZSKD_INLINE void load_block(const T* from, Quad<accumulate_t<T>>& q) {
  if constexpr (sizeof(T) == sizeof(accumulate_t<T>)) {
    __builtin_memcpy(&q, from, sizeof(q));
  } else {
    for (int i = 0; i < kBlock; ++i) q[i] = load(from + i);
  }
}

template <class T>
ZSKD_INLINE void store_block(T* to, const Quad<accumulate_t<T>>& q) {
  if constexpr (sizeof(T) == sizeof(accumulate_t<T>)) {
    __builtin_memcpy(to, &q, sizeof(q));
  } else {
    for (int i = 0; i < kBlock; ++i) store(to + i, q[i]);
  }
}

// The first class of the block that begins at `next`. If kBlock does not divide `classes`, the last block begins
// earlier and overlaps the block before it.
ZSKD_INLINE int64_t block_start(int64_t next, int64_t classes) {
  return next + kBlock <= classes ? next : classes - kBlock;
}

// Copies `count` rows to columns[class * pitch + row], where pitch >= count.
template <class T>
ZSKD_INLINE void rows_to_columns(const T* rows, int64_t stride, int64_t count, int64_t classes, int64_t pitch,
                                 accumulate_t<T>* columns) {
  using A = accumulate_t<T>;
  int64_t r = 0;
  for (; classes >= kBlock && r + kBlockRows <= count; r += kBlockRows) {
    for (int64_t next = 0; next < classes; next += kBlock) {
      const int64_t c = block_start(next, classes);
      Pair<A> q[kBlock];
#pragma GCC unroll 4
      for (int i = 0; i < kBlock; ++i) {
        Quad<A> upper, lower;
        load_block(rows + (r + i) * stride + c, upper);
        load_block(rows + (r + kBlock + i) * stride + c, lower);
        join<A>(upper, lower, q[i]);
      }
      transpose_block(q);
#pragma GCC unroll 4
      for (int i = 0; i < kBlock; ++i) {
        *reinterpret_cast<typename Vectors<A>::UnalignedPair*>(columns + (c + i) * pitch + r) = q[i];
      }
    }
  }
  for (; r < count; ++r) {
    for (int64_t c = 0; c < classes; ++c) columns[c * pitch + r] = load(rows + r * stride + c);
  }
}

// Copies columns[class * pitch + row] back to `count` dense rows.
template <class T>
ZSKD_INLINE void columns_to_rows(const accumulate_t<T>* columns, int64_t pitch, int64_t count, int64_t classes,
                                 T* rows) {
  using A = accumulate_t<T>;
  int64_t r = 0;
  for (; classes >= kBlock && r + kBlockRows <= count; r += kBlockRows) {
    for (int64_t next = 0; next < classes; next += kBlock) {
      const int64_t c = block_start(next, classes);
      Pair<A> q[kBlock];
#pragma GCC unroll 4
      for (int i = 0; i < kBlock; ++i) {
        q[i] = *reinterpret_cast<const typename Vectors<A>::UnalignedPair*>(columns + (c + i) * pitch + r);
      }
      transpose_block(q);
#pragma GCC unroll 4
      for (int i = 0; i < kBlock; ++i) {
        Quad<A> upper, lower;
        split<A>(q[i], upper, lower);
        store_block(rows + (r + i) * classes + c, upper);
        store_block(rows + (r + kBlock + i) * classes + c, lower);
      }
    }
  }
  for (; r < count; ++r) {
    for (int64_t c = 0; c < classes; ++c) store(rows + r * classes + c, columns[c * pitch + r]);
  }
}

}  // namespace zskd::cpu
