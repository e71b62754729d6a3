// What kernels call: simd operations, barriers, threadgroup memory.
#pragma once
#include "access.h"

enum MemFlags : u32 { kMemDevice = 1, kMemThreadgroup = 2 };

struct Simdgroup {
  SimLanes staged, published;
};
static Simdgroup g_simdgroups[kMaxThreads / kSimdWidth];

static Simdgroup& own_simdgroup() {
  return g_simdgroups[(g_current->id % kMaxThreads) / kSimdWidth];
}

// Waits until all active lanes stand at this call; then everyone sees what each brought.
SIM_EXPORT SimLanes* sim_exchange(u32 operation, const void* payload, u32 size) {
  Fiber* fiber = g_current;
  Simdgroup& group = own_simdgroup();
  memcpy(group.staged.data[fiber->info.thread_index_in_simdgroup], payload, size);
  fiber->state = kAtSimd;
  fiber->operation = operation;
  fiber->flags = 0;
  fiber->site = CALLER;
  leave_fiber();
  return &group.published;
}

constexpr u32 kSimdBarrier = 1;  // an operation number that no simd function uses

SIM_EXPORT void sim_simdgroup_barrier(u32 flags) {
  g_current->state = kAtSimd;
  g_current->operation = kSimdBarrier;
  g_current->flags = flags;
  g_current->site = CALLER;
  leave_fiber();
}

SIM_EXPORT void sim_threadgroup_barrier(u32 flags) {
  g_current->state = kAtBarrier;
  g_current->operation = 0;
  g_current->flags = flags;
  g_current->site = CALLER;
  leave_fiber();
}

SIM_EXPORT u32 sim_lane() { return g_current->info.thread_index_in_simdgroup; }

// A shuffle asked for a lane that takes no part.
SIM_EXPORT void sim_inactive_lane(u32 lane, u64 site) {
  Finding* finding = report(kInactiveLane, -1, site);
  if (finding) finding->other = lane;
}

// Threadgroup memory: one region per declaration (`key`), shared by the threads of a threadgroup.
struct Shared {
  u32 key;
  Region* region;
  bool fresh;
};
static Shared g_shared[32];
static u32 g_shared_count;

static void forget_threadgroup_memory() {
  for (u32 i = 0; i < g_shared_count; i++) g_shared[i].fresh = false;
}

static void renew(Shared& shared) {
  Region* region = shared.region;
  u64 size = region->report.size;
  memset(region->base, kPoison, size);
  memset(region->cells, 0, size * sizeof(Cell));
  for (u64 i = 0; i < size; i++) region->touched[i] &= 1 | 4;
  shared.fresh = true;
}

SIM_EXPORT void* sim_threadgroup(const char* name, u32 key, u64 size, u32 element) {
  for (u32 i = 0; i < g_shared_count; i++) {
    Shared& shared = g_shared[i];
    if (shared.key != key || shared.region->report.size != size) continue;
    if (!shared.fresh) renew(shared);
    return shared.region->base;
  }
  Region* region = g_shared_count < 32 ? add_region(name, kThreadgroup, element, size, false)
                                       : nullptr;
  if (!region) {
    report(kCrash, -1, CALLER);
    abort_launch();
    return nullptr;
  }
  g_shared[g_shared_count++] = {key, region, true};
  g_report.threadgroup_bytes += (size + 15) & ~15ul;
  if (g_report.threadgroup_bytes > kMaxThreadgroupBytes) {
    Finding* finding = report(kThreadgroupMemory, static_cast<int>(region - g_regions), 0);
    if (finding) finding->offset = static_cast<i64>(g_report.threadgroup_bytes);
  }
  return region->base;
}
