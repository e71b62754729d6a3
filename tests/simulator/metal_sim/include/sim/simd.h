// simd_* and quad_* functions: lanes bring a value each, and take what they need of the others'.
#pragma once
#include "math.h"
#include "shared.h"
#include "sync.h"

extern "C" {
SimLanes* sim_exchange(uint operation, const void* payload, uint size)
    __attribute__((convergent));
uint sim_lane();
void sim_inactive_lane(uint lane, ulong site);
}

// One number per function, so that lanes at different functions never exchange.
enum sim_operation : uint {
  sim_op_shuffle = 2, sim_op_down, sim_op_up, sim_op_xor, sim_op_fill_down, sim_op_fill_up,
  sim_op_rotate, sim_op_first, sim_op_sum, sim_op_product, sim_op_min, sim_op_max, sim_op_and,
  sim_op_or, sim_op_xor_all, sim_op_inclusive, sim_op_exclusive, sim_op_vote, sim_op_matrix,
  sim_op_quad,
};

template <typename T>
SIM_INLINE SimLanes* sim_bring(uint operation, T value) {
  static_assert(sizeof(T) <= 64, "a lane brings at most 64 bytes");
  return sim_exchange(operation, &value, sizeof(T));
}

template <typename T>
SIM_QUIET SIM_INLINE T sim_lane_value(const SimLanes* lanes, uint lane) {
  return *reinterpret_cast<const T*>(lanes->data[lane]);
}

// The value of a lane that must take part.
template <typename T>
SIM_QUIET __attribute__((noinline)) T sim_pick(const SimLanes* lanes, uint lane, T otherwise) {
  if (lane < 32 && (lanes->active >> lane & 1)) return sim_lane_value<T>(lanes, lane);
  sim_inactive_lane(lane, reinterpret_cast<ulong>(__builtin_return_address(0)));
  return otherwise;
}

// Pairwise (lane with lane ^ 1, then ^ 2, ...) over the active lanes, computed once for all.
template <typename T, typename F>
SIM_QUIET __attribute__((noinline)) T sim_fold(SimLanes* lanes, F fold) {
  if (lanes->cached_valid) return *reinterpret_cast<T*>(lanes->cached);
  T values[32];
  uint active = lanes->active;
  for (uint i = 0; i < 32; i++) {
    if (active >> i & 1) values[i] = sim_lane_value<T>(lanes, i);
  }
  for (uint step = 1; step < 32; step *= 2) {
    for (uint i = 0; i < 32; i += 2 * step) {
      bool low = active >> i & 1, high = active >> (i + step) & 1;
      if (low && high) values[i] = fold(values[i], values[i + step]);
      if (!low && high) values[i] = values[i + step];
      active |= (active >> (i + step) & 1) << i;
    }
  }
  *reinterpret_cast<T*>(lanes->cached) = values[0];
  lanes->cached_valid = 1;
  return values[0];
}

// Lanes before this one (and this one itself, if inclusive), in order.
template <typename T, typename F>
SIM_QUIET __attribute__((noinline)) T sim_scan(SimLanes* lanes, T start, bool inclusive, F fold) {
  T result = start;
  uint end = sim_lane() + inclusive;
  for (uint i = 0; i < end; i++) {
    if (lanes->active >> i & 1) result = fold(result, sim_lane_value<T>(lanes, i));
  }
  return result;
}

namespace metal {
template <typename T>
SIM_INLINE T simd_shuffle(T value, ushort lane) {
  return sim_pick<T>(sim_bring(sim_op_shuffle, value), lane, value);
}
template <typename T>
SIM_INLINE T simd_broadcast(T value, ushort lane) {
  return sim_pick<T>(sim_bring(sim_op_shuffle, value), lane, value);
}
template <typename T>
SIM_INLINE T simd_shuffle_xor(T value, ushort mask) {
  return sim_pick<T>(sim_bring(sim_op_xor, value), sim_lane() ^ mask, value);
}
template <typename T>
SIM_INLINE T simd_shuffle_down(T value, ushort delta) {
  SimLanes* lanes = sim_bring(sim_op_down, value);
  uint lane = sim_lane() + delta;
  return lane < 32 ? sim_pick<T>(lanes, lane, value) : value;
}
template <typename T>
SIM_INLINE T simd_shuffle_up(T value, ushort delta) {
  SimLanes* lanes = sim_bring(sim_op_up, value);
  return sim_lane() >= delta ? sim_pick<T>(lanes, sim_lane() - delta, value) : value;
}
template <typename T>
SIM_INLINE T simd_shuffle_and_fill_down(T value, T filling, ushort delta) {
  struct { T value, filling; } both = {value, filling};
  SimLanes* lanes = sim_bring(sim_op_fill_down, both);
  uint lane = sim_lane() + delta;
  both = sim_pick(lanes, lane % 32, both);
  return lane < 32 ? both.value : both.filling;
}
template <typename T>
SIM_INLINE T simd_shuffle_and_fill_up(T value, T filling, ushort delta) {
  struct { T value, filling; } both = {value, filling};
  SimLanes* lanes = sim_bring(sim_op_fill_up, both);
  uint lane = sim_lane();
  both = sim_pick(lanes, (lane + 32 - delta) % 32, both);
  return lane >= delta ? both.value : both.filling;
}
template <typename T>
SIM_INLINE T simd_shuffle_rotate_down(T value, ushort delta) {
  return sim_pick<T>(sim_bring(sim_op_rotate, value), (sim_lane() + delta) % 32, value);
}
template <typename T>
SIM_INLINE T simd_shuffle_rotate_up(T value, ushort delta) {
  return sim_pick<T>(sim_bring(sim_op_rotate, value), (sim_lane() + 32 - delta) % 32, value);
}
template <typename T>
SIM_INLINE T simd_broadcast_first(T value) {
  SimLanes* lanes = sim_bring(sim_op_first, value);
  return sim_pick<T>(lanes, __builtin_ctz(lanes->active), value);
}

#define SIM_REDUCTION(NAME, OPERATION, EXPRESSION)                             \
  template <typename T>                                                        \
  SIM_INLINE T NAME(T value) {                                                 \
    return sim_fold<T>(sim_bring(OPERATION, value), [](T x, T y) SIM_QUIET -> T { \
      return EXPRESSION;                                                       \
    });                                                                        \
  }
SIM_REDUCTION(simd_sum, sim_op_sum, x + y)
SIM_REDUCTION(simd_product, sim_op_product, x* y)
SIM_REDUCTION(simd_min, sim_op_min, metal::min(x, y))
SIM_REDUCTION(simd_max, sim_op_max, metal::max(x, y))
SIM_REDUCTION(simd_and, sim_op_and, x& y)
SIM_REDUCTION(simd_or, sim_op_or, x | y)
SIM_REDUCTION(simd_xor, sim_op_xor_all, x ^ y)

#define SIM_PREFIX(NAME, OPERATION, START, INCLUSIVE, EXPRESSION)                           \
  template <typename T>                                                                     \
  SIM_INLINE T NAME(T value) {                                                              \
    return sim_scan<T>(sim_bring(OPERATION, value), T(START), INCLUSIVE,                    \
                       [](T x, T y) SIM_QUIET -> T { return EXPRESSION; });                 \
  }
SIM_PREFIX(simd_prefix_inclusive_sum, sim_op_inclusive, 0, true, x + y)
SIM_PREFIX(simd_prefix_exclusive_sum, sim_op_exclusive, 0, false, x + y)
SIM_PREFIX(simd_prefix_inclusive_product, sim_op_inclusive, 1, true, x* y)
SIM_PREFIX(simd_prefix_exclusive_product, sim_op_exclusive, 1, false, x* y)

struct simd_vote {
  typedef ulong vote_t;
  ulong bits;
  uint active;
  SIM_INLINE bool all() const { return (bits & active) == active; }
  SIM_INLINE bool any() const { return bits != 0; }
  SIM_INLINE explicit operator ulong() const { return bits; }
};
SIM_QUIET __attribute__((noinline)) inline simd_vote sim_count_votes(const SimLanes* lanes) {
  simd_vote vote = {0, lanes->active};
  for (uint i = 0; i < 32; i++) {
    if (lanes->active >> i & 1) vote.bits |= static_cast<ulong>(lanes->data[i][0]) << i;
  }
  return vote;
}
SIM_INLINE simd_vote simd_ballot(bool vote) {
  return sim_count_votes(sim_bring(sim_op_vote, vote));
}
SIM_INLINE bool simd_any(bool vote) { return simd_ballot(vote).any(); }
SIM_INLINE bool simd_all(bool vote) { return simd_ballot(vote).all(); }
SIM_INLINE simd_vote simd_active_threads_mask() { return simd_ballot(true); }
SIM_INLINE bool simd_is_first() {
  return sim_lane() == static_cast<uint>(__builtin_ctz(sim_bring(sim_op_vote, true)->active));
}

// Quads: four neighbouring lanes.
template <typename T>
SIM_INLINE T quad_shuffle(T value, ushort lane) {
  return sim_pick<T>(sim_bring(sim_op_quad, value), (sim_lane() & ~3u) + lane, value);
}
template <typename T>
SIM_INLINE T quad_broadcast(T value, ushort lane) {
  return sim_pick<T>(sim_bring(sim_op_quad, value), (sim_lane() & ~3u) + lane, value);
}
template <typename T>
SIM_INLINE T quad_shuffle_xor(T value, ushort mask) {
  return sim_pick<T>(sim_bring(sim_op_quad, value), sim_lane() ^ (mask & 3), value);
}
template <typename T>
SIM_INLINE T quad_sum(T value) {
  value += quad_shuffle_xor(value, 1);
  return value + quad_shuffle_xor(value, 2);
}
template <typename T>
SIM_INLINE T quad_max(T value) {
  value = metal::max(value, quad_shuffle_xor(value, 1));
  return metal::max(value, quad_shuffle_xor(value, 2));
}
template <typename T>
SIM_INLINE T quad_min(T value) {
  value = metal::min(value, quad_shuffle_xor(value, 1));
  return metal::min(value, quad_shuffle_xor(value, 2));
}
}  // namespace metal
