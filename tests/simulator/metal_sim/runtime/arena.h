// Buffers, each alone in the middle of 64 GiB of reserved addresses, and who touched their bytes.
#pragma once
#include <stdlib.h>

#include "report.h"

// One access as a later one needs to know it. `thread` is the fiber's id plus one.
struct Stamp {
  u32 thread, epoch, simd_epoch;
  u8 scope;  // of reads: 0 one thread, 1 several of one simdgroup, 2 several simdgroups
  u8 many_groups;
};
struct Cell {
  Stamp write, read, atomic;
};

struct Region {
  RegionReport report;
  u8* base;
  u64 committed;
  u8* touched;  // a byte per byte: 1 loaded, 2 stored or initialised, 4 stored
  Cell* cells;  // outputs and threadgroup memory only
  u64 touched_capacity, cells_capacity;
};

constexpr u32 kRegions = 96;
constexpr u32 kShift = 36;
static u8* g_arena;
static Region g_regions[kRegions];
static u32 g_region_count;

constexpr u8 kPoison = 0xFF;  // not-a-number in every float format, -1 as an integer

static bool reserve_arena() {
  if (g_arena) return true;
  void* memory = mmap(nullptr, static_cast<u64>(kRegions) << kShift, PROT_NONE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) return false;
  g_arena = static_cast<u8*>(memory);
  return true;
}

static void map_pages(u8* from, u64 size) {
  u64 first = reinterpret_cast<u64>(from) & ~4095ul;
  u64 end = (reinterpret_cast<u64>(from) + size + 4095) & ~4095ul;
  mprotect(reinterpret_cast<void*>(first), end - first, PROT_READ | PROT_WRITE);
}

// At least `count` items in a block that is kept from launch to launch; contents are lost.
template <typename T>
static void ensure(T*& block, u64& capacity, u64 count) {
  if (block && count <= capacity) return;
  free(block);
  capacity = count + 64;
  block = static_cast<T*>(malloc(capacity * sizeof(T)));
}

static Region* add_region(const char* name, u32 kind, u32 element, u64 size, bool initialised) {
  if (!reserve_arena() || g_region_count == kRegions) return nullptr;
  u32 index = g_region_count++;
  Region* region = &g_regions[index];
  region->base = g_arena + (static_cast<u64>(index) << kShift) + (1ul << (kShift - 1));
  memset(&region->report, 0, sizeof region->report);
  strncpy(region->report.name, name, sizeof region->report.name - 1);
  region->report.kind = kind;
  region->report.element = element ? element : 1;
  region->report.size = size;
  if (size > region->committed) {
    map_pages(region->base, size);
    region->committed = size;
  }
  ensure(region->touched, region->touched_capacity, size);
  memset(region->touched, initialised ? 2 : 0, size);
  if (kind != kInput) {
    ensure(region->cells, region->cells_capacity, size);
    memset(region->cells, 0, size * sizeof(Cell));
  }
  if (!initialised) memset(region->base, kPoison, size);
  return region;
}

// The region an address falls in (in bounds or not), nullptr for anything else.
static inline Region* find_region(u64 address) {
  u64 offset = address - reinterpret_cast<u64>(g_arena);
  if (offset >= (static_cast<u64>(kRegions) << kShift)) return nullptr;
  u64 index = offset >> kShift;
  return index < g_region_count ? &g_regions[index] : nullptr;
}

static void count_unique(Region* region) {
  RegionReport& report = region->report;
  report.unique_loaded = report.unique_stored = 0;
  for (u64 i = 0; i < report.size; i++) {
    report.unique_loaded += region->touched[i] & 1;
    report.unique_stored += (region->touched[i] >> 2) & 1;
  }
}
