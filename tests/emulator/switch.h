// A fiber: a stack of its own and the place where it continues. ucontext starts it; after that, GCC's builtin setjmp
// and longjmp switch between fibers, because swapcontext enters the kernel and makes AddressSanitizer forget the frames
// of the fiber. AddressSanitizer is told of every switch.
#pragma once

#include <ucontext.h>

#include <cstddef>
#include <memory>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace emulator {

constexpr size_t kStackBytes = size_t{128} << 10;

struct Fiber {
  ucontext_t context;
  bool started = true;
  void* place[5];
  std::unique_ptr<unsigned char[]> stack;
  const void* stack_bottom = nullptr;
  size_t stack_bytes = 0;
  void* fake_stack = nullptr;  // used by AddressSanitizer
};

#if defined(__SANITIZE_ADDRESS__)
inline Fiber* departed = nullptr;

inline void before_switch(Fiber* from, Fiber& to) {
  departed = from;
  __sanitizer_start_switch_fiber(from ? &from->fake_stack : nullptr, to.stack_bottom, to.stack_bytes);
}
// The stack of the scheduler becomes known at the first switch away from it.
inline void after_switch(Fiber& own) {
  const void* bottom = nullptr;
  size_t bytes = 0;
  __sanitizer_finish_switch_fiber(own.fake_stack, &bottom, &bytes);
  if (departed && !departed->stack) {
    departed->stack_bottom = bottom;
    departed->stack_bytes = bytes;
  }
}
// After a failed launch, the frames of its fibers are still marked as in use.
inline void forget_frames(Fiber& fiber) { ASAN_UNPOISON_MEMORY_REGION(fiber.stack.get(), kStackBytes); }
inline void guard_beyond(unsigned char* memory, size_t used, size_t capacity) {
  ASAN_UNPOISON_MEMORY_REGION(memory, capacity);
  ASAN_POISON_MEMORY_REGION(memory + used, capacity - used);
}
#else
inline void before_switch(Fiber*, Fiber&) {}
inline void after_switch(Fiber&) {}
inline void forget_frames(Fiber&) {}
inline void guard_beyond(unsigned char*, size_t, size_t) {}
#endif

[[noreturn, gnu::noinline, gnu::no_sanitize("address")]] inline void resume(Fiber& fiber) {
  if (fiber.started) __builtin_longjmp(fiber.place, 1);
  fiber.started = true;
  setcontext(&fiber.context);
  __builtin_unreachable();
}

// Leaves `from`, which later continues here, and continues `to`.
[[gnu::noinline, gnu::no_sanitize("address")]] inline void switch_fiber(Fiber& from, Fiber& to) {
  before_switch(&from, to);
  if (__builtin_setjmp(from.place) == 0) resume(to);
  after_switch(from);
}

// The first call in a fiber.
inline void enter_fiber(Fiber& own) { after_switch(own); }

// Leaves the current fiber, which does not run again.
[[noreturn, gnu::no_sanitize("address")]] inline void leave_fiber(Fiber& to) {
  before_switch(nullptr, to);
  resume(to);
}

inline void start_fiber(Fiber& fiber, void (*run)()) {
  if (!fiber.stack) {
    fiber.stack = std::make_unique<unsigned char[]>(kStackBytes);
    fiber.stack_bottom = fiber.stack.get();
    fiber.stack_bytes = kStackBytes;
  }
  fiber.started = false;
  fiber.fake_stack = nullptr;
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = fiber.stack.get();
  fiber.context.uc_stack.ss_size = kStackBytes;
  fiber.context.uc_link = nullptr;
  makecontext(&fiber.context, run, 0);
}

}  // namespace emulator
