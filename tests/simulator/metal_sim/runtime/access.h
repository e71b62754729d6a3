// Every load and store of a kernel: clang's ThreadSanitizer instrumentation calls these.
#pragma once
#include "race.h"

#define CALLER reinterpret_cast<u64>(__builtin_return_address(0))

static void describe(Finding* finding, u64 offset, u32 size, u32 kind, u32 other) {
  if (!finding) return;
  finding->offset = static_cast<i64>(offset);
  finding->size = size;
  finding->write = (kind & kStore) != 0;
  finding->other = other;
}

static void out_of_bounds(Region* region, i64 offset, u32 size, u32 kind, u64 site) {
  int index = static_cast<int>(region - g_regions);
  describe(report(kOutOfBounds, index, site), offset, size, kind, 0);
  // The access itself still follows: give it pages to land on, and stop soon.
  map_pages(region->base + offset, size);
  if (g_total_findings > 256) abort_launch();
}

// Any byte of the access whose mark lacks the bit?
static inline bool lacks(const u8* touched, u32 size, u8 bit) {
  u8 all = bit;
  for (u32 i = 0; i < size; i++) all &= touched[i];
  return !all;
}

static inline void mark(u8* touched, u32 size, u8 bits) {
  for (u32 i = 0; i < size; i++) touched[i] |= bits;
}

static void check_access(u64 address, u32 size, u32 kind, bool aligned, u64 site) {
  Fiber* fiber = g_current;
  if (!fiber) return;
  Region* region = find_region(address);
  if (!region) return;
  int index = static_cast<int>(region - g_regions);
  i64 offset = static_cast<i64>(address - reinterpret_cast<u64>(region->base));
  if (aligned && (address & (size - 1)) && (size & (size - 1)) == 0) {
    describe(report(kMisaligned, index, site), offset, size, kind, 0);
    abort_launch();
  }
  if (offset < 0 || static_cast<u64>(offset) + size > region->report.size) {
    out_of_bounds(region, offset, size, kind, site);
    return;
  }
  u8* touched = region->touched + offset;
  if (kind & kLoad) {
    region->report.loaded += size;
    if (lacks(touched, size, 2)) {
      describe(report(kUninitialised, index, site), offset, size, kind, 0);
    }
    mark(touched, size, 1);
  }
  if (kind & kStore) {
    region->report.stored += size;
    if (region->report.kind == kInput) {
      describe(report(kInputWrite, index, site), offset, size, kind, 0);
    }
    mark(touched, size, 2 | 4);
  }
  if (region->report.kind == kInput) return;
  u32 other = check_race(region, offset, size, kind, fiber);
  if (other) {
    describe(report(kRace, index, site), offset, size, kind, other - 1);
  }
  if (g_total_findings > kTooMany) abort_launch();
}

#define ADDRESS reinterpret_cast<u64>(pointer)
#define INSTRUMENTED(N)                                                                        \
  SIM_EXPORT void __tsan_read##N(void* pointer) {                                              \
    check_access(ADDRESS, N, kLoad, true, CALLER);                                             \
  }                                                                                            \
  SIM_EXPORT void __tsan_write##N(void* pointer) {                                             \
    check_access(ADDRESS, N, kStore, true, CALLER);                                            \
  }                                                                                            \
  SIM_EXPORT void __tsan_unaligned_read##N(void* pointer) {                                    \
    check_access(ADDRESS, N, kLoad, false, CALLER);                                            \
  }                                                                                            \
  SIM_EXPORT void __tsan_unaligned_write##N(void* pointer) {                                   \
    check_access(ADDRESS, N, kStore, false, CALLER);                                           \
  }
INSTRUMENTED(1)
INSTRUMENTED(2)
INSTRUMENTED(4)
INSTRUMENTED(8)
INSTRUMENTED(16)

SIM_EXPORT void __tsan_init() {}
SIM_EXPORT void __tsan_func_entry(void*) {}
SIM_EXPORT void __tsan_func_exit() {}

SIM_EXPORT void* __tsan_memcpy(void* to, const void* from, u64 size) {
  check_access(reinterpret_cast<u64>(from), static_cast<u32>(size), kLoad, false, CALLER);
  check_access(reinterpret_cast<u64>(to), static_cast<u32>(size), kStore, false, CALLER);
  return __builtin_memcpy(to, from, size);
}
SIM_EXPORT void* __tsan_memmove(void* to, const void* from, u64 size) {
  check_access(reinterpret_cast<u64>(from), static_cast<u32>(size), kLoad, false, CALLER);
  check_access(reinterpret_cast<u64>(to), static_cast<u32>(size), kStore, false, CALLER);
  return __builtin_memmove(to, from, size);
}
SIM_EXPORT void* __tsan_memset(void* to, int value, u64 size) {
  check_access(reinterpret_cast<u64>(to), static_cast<u32>(size), kStore, false, CALLER);
  return __builtin_memset(to, value, size);
}

// Atomics are plain accesses here (one fiber runs at a time), announced by the shim.
SIM_EXPORT void sim_atomic(const volatile void* pointer, u32 size, u32 kind, u64 site) {
  g_report.atomics++;
  check_access(ADDRESS, size, kAtomic | kind, true, site);
}

// One branch taken (clang's trace-pc coverage): the way to see endless loops.
SIM_EXPORT void __sanitizer_cov_trace_pc() {
  Fiber* fiber = g_current;
  if (!fiber || --fiber->steps) return;
  report(kEndless, -1, CALLER);
  abort_launch();
}

// Undefined-behaviour checks of clang.
static void undefined_behaviour(u32 kind, u64 site, u64 value) {
  Finding* finding = report(kind, -1, site);
  if (finding) finding->offset = static_cast<i64>(value);
  abort_launch();
}
SIM_EXPORT void __ubsan_handle_divrem_overflow(void*, u64 left, u64) {
  undefined_behaviour(kDivisionByZero, CALLER, left);
}
SIM_EXPORT void __ubsan_handle_out_of_bounds(void*, u64 index) {
  undefined_behaviour(kArrayBounds, CALLER, index);
}
