// Runs one threadgroup: lanes until they wait, simd operations and barriers when all have come.
#pragma once
#include "exchange.h"

static KernelEntry g_entry;
static void* const* g_arguments;
static u32 g_order[kMaxThreads];
static u32 g_order_kind;
static u64 g_random;

static void fiber_main() {
  g_entry(g_arguments, &g_current->info);
  g_current->state = kDone;
  leave_fiber();
}

static u32 next_random(u32 below) {
  g_random = g_random * 6364136223846793005ul + 1442695040888963407ul;
  return static_cast<u32>((g_random >> 33) % below);
}

// Order of `count` things, into `order`.
static void arrange(u32* order, u32 count) {
  for (u32 i = 0; i < count; i++) order[i] = g_order_kind == 1 ? count - 1 - i : i;
  if (g_order_kind != 2) return;
  for (u32 i = count; i > 1; i--) {
    u32 j = next_random(i);
    u32 kept = order[i - 1];
    order[i - 1] = order[j];
    order[j] = kept;
  }
}

// The live fibers of a range, and whether they all wait for the same thing.
struct Gathering {
  u32 live, done, at_barrier, active;
  Fiber *first, *odd;
};

static Gathering gather(u32 from, u32 count) {
  Gathering all = {};
  for (u32 i = 0; i < count; i++) {
    Fiber* fiber = &g_fibers[from + i];
    if (fiber->state == kDone) {
      all.done++;
      continue;
    }
    all.live++;
    all.active |= 1u << (i % kSimdWidth);
    all.at_barrier += fiber->state == kAtBarrier;
    if (!all.first) all.first = fiber;
    Fiber* first = all.first;
    bool same = fiber->state == first->state && fiber->site == first->site &&
                fiber->operation == first->operation && fiber->flags == first->flags;
    if (!same && !all.odd) all.odd = fiber;
  }
  return all;
}

static void diverged(u32 kind, const Fiber* one, const Fiber* other, u32 missing) {
  Finding* finding = report(kind, -1, one->site);
  g_report.aborted = 1;
  if (!finding) return;
  finding->thread = one->id;
  finding->other = other ? other->id : ~0u;
  finding->offset = missing;
}

static void resolve_simd(u32 simdgroup, const Gathering& all) {
  Simdgroup& group = g_simdgroups[simdgroup];
  if (all.first->operation == kSimdBarrier) {
    g_report.simd_barriers++;
    if (all.first->flags & kMemDevice) g_epochs.simd[0][simdgroup]++;
    if (all.first->flags & kMemThreadgroup) g_epochs.simd[1][simdgroup]++;
    return;
  }
  g_report.simd_operations++;
  memcpy(&group.published, &group.staged, sizeof group.published);
  group.published.cached_valid = 0;
  group.published.active = all.active;
}

// Until all its lanes are done or wait at a threadgroup barrier.
static void run_simdgroup(u32 simdgroup, u32 threads) {
  u32 from = simdgroup * kSimdWidth;
  u32 count = threads - from < kSimdWidth ? threads - from : kSimdWidth;
  while (!g_report.aborted) {
    u32 order[kSimdWidth];
    arrange(order, count);
    for (u32 i = 0; i < count && !g_report.aborted; i++) {
      Fiber* fiber = &g_fibers[from + order[i]];
      if (fiber->state == kReady) run_fiber(fiber);
    }
    if (g_report.aborted) return;
    Gathering all = gather(from, count);
    if (!all.live || all.at_barrier == all.live) return;
    if (all.odd) {
      bool barrier = all.first->state == kAtBarrier;
      diverged(kDivergentSimd, barrier ? all.odd : all.first, barrier ? all.first : all.odd, 0);
      return;
    }
    resolve_simd(simdgroup, all);
    for (u32 i = 0; i < count; i++) {
      if (g_fibers[from + i].state == kAtSimd) g_fibers[from + i].state = kReady;
    }
  }
}

static void resolve_barrier(u32 threads, const Gathering& all) {
  if (all.done || all.odd) {
    diverged(kDivergentBarrier, all.first, all.odd, all.done);
    return;
  }
  g_report.barriers++;
  if (all.first->flags & kMemDevice) g_epochs.group[0]++;
  if (all.first->flags & kMemThreadgroup) g_epochs.group[1]++;
  for (u32 i = 0; i < threads; i++) g_fibers[i].state = kReady;
}

// `threads` fibers are set up; runs them to their end.
static void run_threadgroup(u32 threads) {
  u32 simdgroups = (threads + kSimdWidth - 1) / kSimdWidth;
  forget_threadgroup_memory();
  memset(&g_epochs, 0, sizeof g_epochs);
  while (!g_report.aborted) {
    arrange(g_order, simdgroups);
    for (u32 i = 0; i < simdgroups && !g_report.aborted; i++) run_simdgroup(g_order[i], threads);
    if (g_report.aborted) return;
    Gathering all = gather(0, threads);
    if (!all.live) return;
    resolve_barrier(threads, all);
  }
}
