// What the runtime, the compiled kernels and Python (bindings.py) agree on.
#pragma once
#include "../include/sim/shared.h"

typedef unsigned char u8;
typedef unsigned int u32;
typedef unsigned long u64;
typedef long i64;

#define SIM_EXPORT extern "C" __attribute__((visibility("default")))

constexpr u32 kSimdWidth = 32;
constexpr u32 kMaxThreads = 1024;            // per threadgroup
constexpr u32 kMaxThreadgroupBytes = 32768;  // threadgroup memory
constexpr u32 kMaxFindings = 64;             // different ones kept per launch
constexpr u32 kMaxPayload = 64;              // bytes a lane brings to a simd operation

// Numbers are shared with findings.py.
enum FindingKind : u32 {
  kOutOfBounds = 1,
  kRace,
  kUninitialised,
  kUnwritten,
  kDivergentBarrier,
  kDivergentSimd,
  kInactiveLane,
  kMisaligned,
  kThreadgroupMemory,
  kInputWrite,
  kDivisionByZero,
  kEndless,
  kArrayBounds,
  kCrash,
};

struct Finding {
  u32 kind;
  int region;       // index of the buffer, -1 where none is involved
  i64 offset;       // bytes from its start
  u32 size;         // bytes of the access
  u32 write;        // 1 for a store
  u32 thread;       // linear number of the thread: threadgroup * 1024 + index in it
  u32 other;        // the thread it collides with, or a lane or count (see findings.py)
  u64 site;         // return address in the kernel
  u32 count;        // how often this kind was seen at this site
};

enum RegionKind : u32 { kInput = 0, kOutput = 1, kThreadgroup = 2 };

struct RegionReport {
  u32 kind;
  u32 element;  // bytes
  u64 size;
  u64 loaded, stored;                // bytes, with repetition
  u64 unique_loaded, unique_stored;  // bytes, each once
  char name[64];
};

struct LaunchSpec {
  u32 grid[3];
  u32 threadgroup[3];  // at most the grid's
  u32 dispatched[3];   // as asked for
  u32 order;           // 0 forward, 1 reverse, 2 shuffled by seed
  u32 seed;
  u64 max_steps;  // branches a thread may take before it counts as endless
};

struct LaunchReport {
  u64 threads, threadgroups, barriers, simd_operations, simd_barriers, atomics;
  u64 threadgroup_bytes;
  u32 aborted, findings;
};

typedef void (*KernelEntry)(void* const* arguments, const SimThread* thread);
