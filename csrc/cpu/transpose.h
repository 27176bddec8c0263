// Between rows in memory and classes in lanes: blocks of four rows by four classes turn over in registers. One element
// at a time, moving the data of a short row took longer than the arithmetic on it.
#pragma once

#include "cpu/storage.h"

namespace zskd::cpu {

constexpr int64_t kBlock = 4;

template <class A>
struct Quad {
  typedef A Type __attribute__((vector_size(kBlock * sizeof(A))));
};

#if defined(__clang__)
#define ZSKD_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define ZSKD_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, decltype(a < b){__VA_ARGS__})
#endif

template <class Q>
ZSKD_INLINE void transpose_block(Q (&q)[kBlock]) {
  const Q low01 = ZSKD_SHUFFLE(q[0], q[1], 0, 4, 1, 5), high01 = ZSKD_SHUFFLE(q[0], q[1], 2, 6, 3, 7);
  const Q low23 = ZSKD_SHUFFLE(q[2], q[3], 0, 4, 1, 5), high23 = ZSKD_SHUFFLE(q[2], q[3], 2, 6, 3, 7);
  q[0] = ZSKD_SHUFFLE(low01, low23, 0, 1, 4, 5);
  q[1] = ZSKD_SHUFFLE(low01, low23, 2, 3, 6, 7);
  q[2] = ZSKD_SHUFFLE(high01, high23, 0, 1, 4, 5);
  q[3] = ZSKD_SHUFFLE(high01, high23, 2, 3, 6, 7);
}

template <class T>
ZSKD_INLINE void load_block(const T* from, typename Quad<accumulate_t<T>>::Type& q) {
  if constexpr (sizeof(T) == sizeof(accumulate_t<T>)) {
    __builtin_memcpy(&q, from, sizeof(q));
  } else {
    for (int i = 0; i < kBlock; ++i) q[i] = load(from + i);
  }
}

template <class T>
ZSKD_INLINE void store_block(T* to, const typename Quad<accumulate_t<T>>::Type& q) {
  if constexpr (sizeof(T) == sizeof(accumulate_t<T>)) {
    __builtin_memcpy(to, &q, sizeof(q));
  } else {
    for (int i = 0; i < kBlock; ++i) store(to + i, q[i]);
  }
}

// The first class of the block that is due at `next`: the last block of a row overlaps the one before it where kBlock
// does not divide the number of classes.
ZSKD_INLINE int64_t block_start(int64_t next, int64_t classes) {
  return next + kBlock <= classes ? next : classes - kBlock;
}

// `count` rows to columns[class * pitch + row], pitch >= count.
template <class T>
ZSKD_INLINE void rows_to_columns(const T* rows, int64_t stride, int64_t count, int64_t classes, int64_t pitch,
                                 accumulate_t<T>* columns) {
  int64_t r = 0;
  for (; classes >= kBlock && r + kBlock <= count; r += kBlock) {
    for (int64_t next = 0; next < classes; next += kBlock) {
      const int64_t c = block_start(next, classes);
      typename Quad<accumulate_t<T>>::Type q[kBlock];
      for (int i = 0; i < kBlock; ++i) load_block(rows + (r + i) * stride + c, q[i]);
      transpose_block(q);
      for (int i = 0; i < kBlock; ++i) store_block(columns + (c + i) * pitch + r, q[i]);
    }
  }
  for (; r < count; ++r) {
    for (int64_t c = 0; c < classes; ++c) columns[c * pitch + r] = load(rows + r * stride + c);
  }
}

// The way back, to rows that lie one after another.
template <class T>
ZSKD_INLINE void columns_to_rows(const accumulate_t<T>* columns, int64_t pitch, int64_t count, int64_t classes,
                                 T* rows) {
  int64_t r = 0;
  for (; classes >= kBlock && r + kBlock <= count; r += kBlock) {
    for (int64_t next = 0; next < classes; next += kBlock) {
      const int64_t c = block_start(next, classes);
      typename Quad<accumulate_t<T>>::Type q[kBlock];
      for (int i = 0; i < kBlock; ++i) load_block(columns + (c + i) * pitch + r, q[i]);
      transpose_block(q);
      for (int i = 0; i < kBlock; ++i) store_block(rows + (r + i) * classes + c, q[i]);
    }
  }
  for (; r < count; ++r) {
    for (int64_t c = 0; c < classes; ++c) store(rows + r * classes + c, columns[c * pitch + r]);
  }
}

}  // namespace zskd::cpu
