// Fibers: every GPU thread is one, with its own stack; only one runs at a time.
#pragma once
#include <sys/mman.h>

#include "abi.h"

#if !defined(__x86_64__)
#error "the simulator's context switch is written for x86-64"
#endif

enum FiberState : u32 { kReady, kAtSimd, kAtBarrier, kDone };

struct Fiber {
  void* stack_pointer;
  u8* stack;
  u32 state;
  u32 id;         // threadgroup * 1024 + index
  u32 operation;  // what it waits for: which simd operation
  u32 flags;      // mem_flags of the barrier it waits at
  u64 site;       // return address of the call it waits in
  u64 steps;      // branches left
  SimThread info;
};

constexpr u64 kStackBytes = 256 * 1024;
constexpr u64 kGuardBytes = 4096;

// Saves the callee-saved registers of the caller and goes on where `to` was saved.
extern "C" void sim_switch(void** save, void* to);
asm(R"(
.text
.hidden sim_switch
.globl sim_switch
sim_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
)");

static Fiber g_fibers[kMaxThreads];
static Fiber* g_current = nullptr;  // the fiber that runs, nullptr in the scheduler
static void* g_scheduler = nullptr;

static void allocate_stack(Fiber* fiber) {
  if (fiber->stack) return;
  void* memory = mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) __builtin_trap();
  mprotect(memory, kGuardBytes, PROT_NONE);
  fiber->stack = static_cast<u8*>(memory);
}

// Prepares a fiber so that the first switch to it calls `main`.
static void start_fiber(Fiber* fiber, void (*main)()) {
  allocate_stack(fiber);
  void** top = reinterpret_cast<void**>(fiber->stack + kStackBytes);
  *--top = nullptr;  // alignment: the stack is 8 modulo 16 where a function begins
  *--top = reinterpret_cast<void*>(main);
  for (int i = 0; i < 6; i++) *--top = nullptr;
  fiber->stack_pointer = top;
  fiber->state = kReady;
}

static void run_fiber(Fiber* fiber) {
  g_current = fiber;
  sim_switch(&g_scheduler, fiber->stack_pointer);
  g_current = nullptr;
}

// Back to the scheduler; returns when the scheduler picks this fiber again.
static void leave_fiber() {
  Fiber* fiber = g_current;
  sim_switch(&fiber->stack_pointer, g_scheduler);
}
