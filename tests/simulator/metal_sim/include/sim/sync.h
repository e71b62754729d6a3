// Barriers and the declaration of threadgroup memory.
#pragma once
#include "types.h"

extern "C" {
void sim_threadgroup_barrier(uint flags) __attribute__((convergent));
void sim_simdgroup_barrier(uint flags) __attribute__((convergent));
void* sim_threadgroup(const char* name, uint key, ulong size, uint element);
}

namespace metal {
enum class mem_flags : uint {
  mem_none = 0,
  mem_device = 1,
  mem_threadgroup = 2,
  mem_texture = 4,
  mem_threadgroup_imageblock = 8,
  mem_object_data = 16,
};
constexpr mem_flags operator|(mem_flags x, mem_flags y) {
  return static_cast<mem_flags>(static_cast<uint>(x) | static_cast<uint>(y));
}
SIM_INLINE void threadgroup_barrier(mem_flags flags) {
  sim_threadgroup_barrier(static_cast<uint>(flags));
}
SIM_INLINE void simdgroup_barrier(mem_flags flags) {
  sim_simdgroup_barrier(static_cast<uint>(flags));
}
}  // namespace metal

// The rewriter turns `threadgroup float sums[32];` into
// SIM_THREADGROUP(1, sums, [32], float);
#define SIM_THREADGROUP(KEY, NAME, EXTENT, ...)                                         \
  typedef __VA_ARGS__ sim_type_##NAME EXTENT;                                           \
  threadgroup sim_type_##NAME& NAME = *(threadgroup sim_type_##NAME*)sim_threadgroup(   \
      #NAME, KEY, sizeof(sim_type_##NAME), sizeof(__VA_ARGS__))
