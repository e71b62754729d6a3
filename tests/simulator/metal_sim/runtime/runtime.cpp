// The simulator's runtime: a shared library, loaded once; compiled kernels find it there.
#include <math.h>
#include <signal.h>

#include "schedule.h"

// ---- What the compiler calls for conversions that the processor lacks -------------------------

SIM_EXPORT __bf16 __truncsfbf2(float value) {
  u32 bits = __builtin_bit_cast(u32, value);
  bool nan = (bits & 0x7FFFFFFF) > 0x7F800000;
  u32 rounded = nan ? bits | 0x400000 : bits + 0x7FFF + ((bits >> 16) & 1);  // to nearest even
  return __builtin_bit_cast(__bf16, static_cast<unsigned short>(rounded >> 16));
}

// ---- Accidents that no check saw coming -------------------------------------------------------

static const int kSignals[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL};
static struct sigaction g_previous[4];
static stack_t g_previous_stack;
static u8 g_signal_stack[64 * 1024] __attribute__((aligned(16)));

static void on_signal(int number, siginfo_t* info, void*) {
  if (!g_current) {
    signal(number, SIG_DFL);
    return;
  }
  u64 address = reinterpret_cast<u64>(info->si_addr);
  Region* region = number == SIGFPE ? nullptr : find_region(address);
  int index = region ? static_cast<int>(region - g_regions) : -1;
  Finding* finding = report(number == SIGFPE ? kDivisionByZero : kCrash, index, 0);
  if (finding) {
    finding->other = static_cast<u32>(number);
    finding->offset = static_cast<i64>(address);
    if (region) finding->offset -= reinterpret_cast<i64>(region->base);
  }
  abort_launch();
}

static void catch_signals() {
  stack_t stack = {};
  stack.ss_sp = g_signal_stack;
  stack.ss_size = sizeof g_signal_stack;
  sigaltstack(&stack, &g_previous_stack);
  struct sigaction action = {};
  action.sa_sigaction = on_signal;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
  for (int i = 0; i < 4; i++) sigaction(kSignals[i], &action, &g_previous[i]);
}

static void release_signals() {
  for (int i = 0; i < 4; i++) sigaction(kSignals[i], &g_previous[i], nullptr);
  sigaltstack(&g_previous_stack, nullptr);
}

// ---- What Python calls ------------------------------------------------------------------------

SIM_EXPORT void sim_reset() {
  g_region_count = 0;
  g_shared_count = 0;
  memset(&g_report, 0, sizeof g_report);
  g_total_findings = 0;
}

// The address where Python puts the bytes of an input, or of an output that has an initial value.
SIM_EXPORT void* sim_add_buffer(const char* name, u32 kind, u32 element, u64 size, u32 filled) {
  Region* region = add_region(name, kind, element, size, filled != 0);
  return region ? region->base : nullptr;
}

static void set_up(Fiber* fiber, u32 index, const LaunchSpec& spec, const u32* group,
                   const u32* groups, u32 number, const u32* size) {
  SimThread& info = fiber->info;
  u32 position[3] = {index % size[0], index / size[0] % size[1], index / (size[0] * size[1])};
  u32 threads = size[0] * size[1] * size[2];
  u32 dispatched = spec.threadgroup[0] * spec.threadgroup[1] * spec.threadgroup[2];
  for (u32 i = 0; i < 3; i++) {
    info.thread_position_in_threadgroup[i] = position[i];
    info.threadgroup_position_in_grid[i] = group[i];
    info.thread_position_in_grid[i] = group[i] * spec.threadgroup[i] + position[i];
    info.threads_per_grid[i] = info.grid_size[i] = spec.grid[i];
    info.grid_origin[i] = 0;
    info.threads_per_threadgroup[i] = size[i];
    info.threadgroups_per_grid[i] = groups[i];
    info.dispatch_threads_per_threadgroup[i] = spec.threadgroup[i];
  }
  info.thread_index_in_threadgroup = index;
  info.thread_index_in_simdgroup = index % kSimdWidth;
  info.simdgroup_index_in_threadgroup = index / kSimdWidth;
  info.simdgroups_per_threadgroup = (threads + kSimdWidth - 1) / kSimdWidth;
  info.dispatch_simdgroups_per_threadgroup = (dispatched + kSimdWidth - 1) / kSimdWidth;
  info.thread_index_in_quadgroup = index % 4;
  info.quadgroup_index_in_threadgroup = index / 4;
  info.quadgroups_per_threadgroup = (threads + 3) / 4;
  info.dispatch_quadgroups_per_threadgroup = (dispatched + 3) / 4;
  info.thread_execution_width = info.threads_per_simdgroup = kSimdWidth;
  fiber->id = number * kMaxThreads + index;
  fiber->steps = spec.max_steps;
  start_fiber(fiber, fiber_main);
}

static void run_group(const LaunchSpec& spec, const u32* groups, u32 number) {
  u32 group[3] = {number % groups[0], number / groups[0] % groups[1],
                  number / (groups[0] * groups[1])};
  u32 size[3];
  for (u32 i = 0; i < 3; i++) {
    u32 left = spec.grid[i] - group[i] * spec.threadgroup[i];
    size[i] = left < spec.threadgroup[i] ? left : spec.threadgroup[i];
  }
  u32 threads = size[0] * size[1] * size[2];
  for (u32 i = 0; i < threads; i++) set_up(&g_fibers[i], i, spec, group, groups, number, size);
  g_report.threads += threads;
  g_report.threadgroups++;
  run_threadgroup(threads);
}

static void find_unwritten() {
  for (u32 i = 0; i < g_region_count; i++) {
    Region& region = g_regions[i];
    count_unique(&region);
    if (region.report.kind != kOutput || g_report.aborted) continue;
    u64 missing = 0, first = 0;
    for (u64 byte = region.report.size; byte-- > 0;) {
      if (region.touched[byte] & 2) continue;
      missing++;
      first = byte;
    }
    Finding* finding = missing ? report(kUnwritten, static_cast<int>(i), 0) : nullptr;
    if (!finding) continue;
    finding->offset = static_cast<i64>(first);
    finding->size = static_cast<u32>(missing);
  }
}

SIM_EXPORT void sim_launch(KernelEntry entry, void* const* arguments, const LaunchSpec* spec,
                           LaunchReport* out) {
  u32 groups[3], count = 1;
  for (u32 i = 0; i < 3; i++) {
    groups[i] = (spec->grid[i] + spec->threadgroup[i] - 1) / spec->threadgroup[i];
    count *= groups[i];
  }
  g_entry = entry;
  g_arguments = arguments;
  g_order_kind = spec->order;
  g_random = spec->seed * 2654435761ul + 88172645463325252ul;
  catch_signals();
  bool backwards = g_order_kind == 1 || (g_order_kind == 2 && spec->seed % 2);
  for (u32 i = 0; i < count && !g_report.aborted; i++) {
    run_group(*spec, groups, backwards ? count - 1 - i : i);
  }
  release_signals();
  find_unwritten();
  *out = g_report;
}

SIM_EXPORT const Finding* sim_findings() { return g_findings; }
SIM_EXPORT u32 sim_regions() { return g_region_count; }
SIM_EXPORT const RegionReport* sim_region(u32 index) { return &g_regions[index].report; }
