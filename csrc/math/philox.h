// Philox4x32-10 (Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3", SC 2011): a random
// function of (key, counter). It has no state, so a draw depends on its key and its counter only.
#pragma once

#include "math/portable.h"

namespace zskd::math {

struct PhiloxBlock {
  uint32_t w0, w1, w2, w3;
};

// The multipliers of the rounds, and what each round adds to the key.
constexpr uint32_t kPhiloxMultiplier0 = 0xD2511F53u, kPhiloxMultiplier1 = 0xCD9E8D57u;
constexpr uint32_t kPhiloxKeyStep0 = 0x9E3779B9u, kPhiloxKeyStep1 = 0xBB67AE85u;

ZSKD_INLINE PhiloxBlock philox4x32_10(PhiloxBlock counter, uint32_t key0, uint32_t key1) {
#pragma GCC unroll 10
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = uint64_t{kPhiloxMultiplier0} * counter.w0;
    const uint64_t b = uint64_t{kPhiloxMultiplier1} * counter.w2;
    counter = {static_cast<uint32_t>(b >> 32) ^ counter.w1 ^ key0, static_cast<uint32_t>(b),
               static_cast<uint32_t>(a >> 32) ^ counter.w3 ^ key1, static_cast<uint32_t>(a)};
    key0 += kPhiloxKeyStep0;
    key1 += kPhiloxKeyStep1;
  }
  return counter;
}

// The four words of a counter are (id low, id high, index, purpose << kStepBits | step), so that draws for two purposes
// never come from the same block.
constexpr int kStepBits = 28;

enum class Purpose : uint32_t { gamma = 0, stream = 1 };

// The 32-bit halves of a 64-bit seed or id.
struct Halves {
  uint32_t low, high;
};

ZSKD_INLINE Halves halves(int64_t value) {
  const uint64_t bits = static_cast<uint64_t>(value);
  return {static_cast<uint32_t>(bits), static_cast<uint32_t>(bits >> 32)};
}

ZSKD_INLINE uint32_t last_word(Purpose purpose, uint32_t step) {
  return (static_cast<uint32_t>(purpose) << kStepBits) | step;
}

ZSKD_INLINE PhiloxBlock draw(Halves seed, Halves id, uint32_t index, Purpose purpose, uint32_t step) {
  const PhiloxBlock counter = {id.low, id.high, index, last_word(purpose, step)};
  return philox4x32_10(counter, seed.low, seed.high);
}

}  // namespace zskd::math
