// Atomics. One fiber runs at a time, so a plain access is atomic; the runtime is told of it.
#pragma once
#include "math.h"

enum sim_atomic_kind : uint { sim_atomic_load = 1, sim_atomic_store = 2, sim_atomic_both = 3 };
extern "C" void sim_atomic(const volatile void* pointer, uint size, uint kind, ulong site);

// Takes part in no deduction: atomic_fetch_add_explicit(&a_float, 1, ...) adds 1.0f.
template <typename T>
struct sim_same_type {
  typedef T type;
};
template <typename T>
using sim_same = typename sim_same_type<T>::type;

namespace metal {
enum memory_order : int { memory_order_relaxed = 0 };
enum thread_scope : int { thread_scope_thread, thread_scope_simdgroup, thread_scope_threadgroup,
                          thread_scope_device };

template <typename T>
struct atomic {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8, "Metal has atomics of 4 and 8 bytes");
  T value;
};
}  // namespace metal

#define SIM_SITE reinterpret_cast<ulong>(__builtin_return_address(0))

template <typename T, typename F>
SIM_QUIET __attribute__((noinline)) T sim_update(volatile T* place, uint kind, F change) {
  sim_atomic(place, sizeof(T), kind, SIM_SITE);
  T old = *place;
  *place = change(old);
  return old;
}

template <typename T>
SIM_QUIET __attribute__((noinline)) bool sim_compare_exchange(volatile T* place, T* expected,
                                                              T desired) {
  sim_atomic(place, sizeof(T), sim_atomic_both, SIM_SITE);
  T old = *place;
  bool same = __builtin_memcmp(&old, expected, sizeof(T)) == 0;
  if (same) *place = desired;
  *expected = old;
  return same;
}

namespace metal {
#define SIM_FETCH(SPACE, NAME, EXPRESSION)                                                    \
  template <typename T>                                                                       \
  SIM_INLINE T NAME(volatile SPACE atomic<T>* object, sim_same<T> y, memory_order) {          \
    return sim_update((volatile T*)&object->value, sim_atomic_both,                           \
                      [=](T x) SIM_QUIET -> T { return EXPRESSION; });                        \
  }
#define SIM_ATOMICS(SPACE)                                                                    \
  SIM_FETCH(SPACE, atomic_exchange_explicit, (static_cast<void>(x), y))                       \
  SIM_FETCH(SPACE, atomic_fetch_add_explicit, x + y)                                          \
  SIM_FETCH(SPACE, atomic_fetch_sub_explicit, x - y)                                          \
  SIM_FETCH(SPACE, atomic_fetch_min_explicit, metal::min(x, y))                               \
  SIM_FETCH(SPACE, atomic_fetch_max_explicit, metal::max(x, y))                               \
  SIM_FETCH(SPACE, atomic_fetch_and_explicit, x & y)                                          \
  SIM_FETCH(SPACE, atomic_fetch_or_explicit, x | y)                                           \
  SIM_FETCH(SPACE, atomic_fetch_xor_explicit, x ^ y)                                          \
  template <typename T>                                                                       \
  SIM_INLINE T atomic_load_explicit(const volatile SPACE atomic<T>* object, memory_order) {   \
    return sim_update((volatile T*)&object->value, sim_atomic_load,                           \
                      [](T x) SIM_QUIET -> T { return x; });                                  \
  }                                                                                           \
  template <typename T>                                                                       \
  SIM_INLINE void atomic_store_explicit(volatile SPACE atomic<T>* object,                     \
                                        sim_same<T> y, memory_order) {                        \
    sim_update((volatile T*)&object->value, sim_atomic_store,                                 \
               [=](T) SIM_QUIET -> T { return y; });                                          \
  }                                                                                           \
  template <typename T>                                                                       \
  SIM_INLINE bool atomic_compare_exchange_weak_explicit(                                      \
      volatile SPACE atomic<T>* object, thread T* expected, sim_same<T> desired,              \
      memory_order, memory_order) {                                                           \
    return sim_compare_exchange((volatile T*)&object->value, expected, T(desired));           \
  }

SIM_ATOMICS(device)
#if defined(SIM_ADDRESS_SPACES)
SIM_ATOMICS(threadgroup)
#endif

typedef atomic<int> atomic_int;
typedef atomic<uint> atomic_uint;
typedef atomic<ulong> atomic_ulong;
typedef atomic<float> atomic_float;
}  // namespace metal
