// The memory of large outputs.
#pragma once

#include <ATen/ops/empty.h>

#ifdef __linux__
#include <sys/mman.h>

#include <cstdint>
#endif

namespace zskd::ops {

// Fresh memory costs a page fault per page at its first write, which takes longer than the kernels that fill it. Pages
// of 2 MiB instead of 4 KiB are an offer that Linux may decline (it declines where the system's setting is `never`).
// Up to 32 MiB the allocator of glibc keeps what is freed and hands it out again; more it mostly asks of the system
// anew.
inline void advise_huge_pages(const at::Tensor& tensor) {
#ifdef __linux__
  constexpr uintptr_t kHugePage = uintptr_t{1} << 21;
  constexpr size_t kGlibcReuses = size_t{1} << 25;
  if (!tensor.is_cpu() || tensor.nbytes() <= kGlibcReuses) return;
  const auto begin = reinterpret_cast<uintptr_t>(tensor.data_ptr());
  const uintptr_t first = (begin + kHugePage - 1) & ~(kHugePage - 1);
  const uintptr_t last = (begin + tensor.nbytes()) & ~(kHugePage - 1);
  if (first < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#endif
}

inline at::Tensor empty_output(at::IntArrayRef sizes, const at::TensorOptions& options) {
  at::Tensor output = at::empty(sizes, options);
  advise_huge_pages(output);
  return output;
}

}  // namespace zskd::ops
