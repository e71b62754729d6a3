// Which two accesses to the same byte are ordered, and which are a race.
//
// Threads of different threadgroups are never ordered. Inside one, a threadgroup_barrier orders
// what lies before it against what lies after it, for the memory its flags name; so does a
// simdgroup_barrier inside one simdgroup. Each barrier begins a new epoch of that memory.
#pragma once
#include "arena.h"

struct Epochs {
  u32 group[2];                             // by memory: 0 device, 1 threadgroup
  u32 simd[2][kMaxThreads / kSimdWidth];
};
static Epochs g_epochs;

static inline u32 group_of(u32 id) { return id / kMaxThreads; }
static inline u32 simd_of(u32 id) { return id / kSimdWidth; }

struct Now {
  u32 id, epoch, simd_epoch;
};

static inline Now now_for(const Region* region, const Fiber* fiber) {
  u32 memory = region->report.kind == kThreadgroup;
  u32 simd = (fiber->id % kMaxThreads) / kSimdWidth;
  return {fiber->id, g_epochs.group[memory], g_epochs.simd[memory][simd]};
}

// Is the stamped access neither by this thread nor ordered before it?
static inline bool collides(const Stamp& stamp, const Now& now) {
  if (!stamp.thread) return false;
  u32 id = stamp.thread - 1;
  if (stamp.many_groups || group_of(id) != group_of(now.id)) return true;
  if (stamp.epoch != now.epoch) return false;
  if (stamp.scope == 2) return true;
  if (simd_of(id) == simd_of(now.id)) {
    if (stamp.simd_epoch < now.simd_epoch) return false;
    return stamp.scope == 1 || id != now.id;
  }
  return true;
}

static inline void put(Stamp& stamp, const Now& now) {
  stamp = {now.id + 1, now.epoch, now.simd_epoch, 0, 0};
}

// Adds a reader (or an atomic access): several may be current at once.
static inline void add(Stamp& stamp, const Now& now) {
  if (!stamp.thread) return put(stamp, now);
  u32 id = stamp.thread - 1;
  u8 many = stamp.many_groups | (group_of(id) != group_of(now.id));
  bool same_epoch = group_of(id) == group_of(now.id) && stamp.epoch == now.epoch;
  u8 scope = 0;
  if (same_epoch) {
    if (simd_of(id) != simd_of(now.id)) {
      scope = 2;
    } else if (stamp.scope == 2) {
      scope = 2;
    } else if (stamp.simd_epoch == now.simd_epoch) {
      scope = stamp.scope | (id != now.id);
    }
  }
  stamp = {now.id + 1, now.epoch, now.simd_epoch, scope, many};
}

enum AccessKind : u32 { kLoad = 1, kStore = 2, kAtomic = 4 };  // bits: an atomic may do both

// The thread (plus one) this access races with at some byte, 0 for none; records the access.
static u32 check_race(Region* region, u64 offset, u32 size, u32 kind, const Fiber* fiber) {
  Now now = now_for(region, fiber);
  u32 other = 0;
  for (u64 i = offset; i < offset + size; i++) {
    Cell& cell = region->cells[i];
    if (collides(cell.write, now)) other = cell.write.thread;
    if (!(kind & kAtomic) && collides(cell.atomic, now)) other = cell.atomic.thread;
    if ((kind & kStore) && collides(cell.read, now)) other = cell.read.thread;
    if (kind & kAtomic) {
      add(cell.atomic, now);
    } else if (kind & kStore) {
      put(cell.write, now);
    } else {
      add(cell.read, now);
    }
  }
  return other;
}
