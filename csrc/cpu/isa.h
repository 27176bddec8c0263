// Which of the compiled instruction sets the kernels run on: the best that this machine has, or the one that the
// environment variable ZSKD_FAST_ISA names (baseline, avx2 or avx512), read once.
#pragma once

namespace zskd::cpu {

enum class Isa { baseline, avx2, avx512 };

Isa isa();  // throws std::runtime_error where ZSKD_FAST_ISA names none, or one that this machine lacks
const char* name(Isa isa);

}  // namespace zskd::cpu
