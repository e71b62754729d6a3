// simdgroup_matrix: 8 x 8 elements over 32 lanes, two neighbours of a row in each.
#pragma once
#include "simd.h"

// Row and first column of a lane's two elements, as Apple's GPUs lay them out.
SIM_INLINE uint sim_matrix_row(uint lane) { return (lane / 4 & 4) + lane / 2 % 4; }
SIM_INLINE uint sim_matrix_column(uint lane) { return (lane / 4 & 2) * 2 + lane % 2 * 2; }

template <typename T>
struct sim_element_pair {
  T a[2], b[2];
};

// Element (row, column) of the left (b = false) or right factor that the lanes brought.
template <typename T>
SIM_QUIET SIM_INLINE float sim_factor(const SimLanes* lanes, uint row, uint column, bool right) {
  uint lane = (row & 4) * 4 + (column & 4) * 2 + row % 4 * 2 + column % 4 / 2;
  const auto* pair = reinterpret_cast<const sim_element_pair<T>*>(lanes->data[lane]);
  return static_cast<float>((right ? pair->b : pair->a)[column % 2]);
}

namespace metal {
template <typename T, int Cols, int Rows>
struct simdgroup_matrix {
  static_assert(Cols == 8 && Rows == 8, "simdgroup_matrix exists as 8 x 8 only");
  vec<T, 2> held;
  simdgroup_matrix() = default;
  SIM_INLINE explicit simdgroup_matrix(T diagonal) {
    uint lane = sim_lane(), row = sim_matrix_row(lane), column = sim_matrix_column(lane);
    held[0] = row == column ? diagonal : T(0);
    held[1] = row == column + 1 ? diagonal : T(0);
  }
  SIM_INLINE thread vec<T, 2>& thread_elements() { return held; }
  SIM_INLINE const thread vec<T, 2>& thread_elements() const { return held; }
};
typedef simdgroup_matrix<float, 8, 8> simdgroup_float8x8;
typedef simdgroup_matrix<half, 8, 8> simdgroup_half8x8;
typedef simdgroup_matrix<bfloat, 8, 8> simdgroup_bfloat8x8;

template <typename T, int C, int R>
SIM_INLINE simdgroup_matrix<T, C, R> make_filled_simdgroup_matrix(T value) {
  simdgroup_matrix<T, C, R> result;
  result.held = value;
  return result;
}

// All lanes must call these together; the exchange is where the runtime sees that they do.
#define SIM_MATRIX_MEMORY(SPACE)                                                              \
  template <typename T>                                                                       \
  SIM_INLINE void simdgroup_load(thread simdgroup_matrix<T, 8, 8>& to, const SPACE T* from,   \
                                 ulong stride = 8, ulong2 origin = ulong2(0),                 \
                                 bool transposed = false) {                                   \
    sim_bring(sim_op_matrix, 0u);                                                             \
    uint row = sim_matrix_row(sim_lane()), column = sim_matrix_column(sim_lane());            \
    for (uint i = 0; i < 2; i++) {                                                            \
      ulong r = transposed ? column + i : row, c = transposed ? row : column + i;             \
      to.held[i] = from[(origin.y + r) * stride + origin.x + c];                              \
    }                                                                                         \
  }                                                                                           \
  template <typename T>                                                                       \
  SIM_INLINE void simdgroup_store(simdgroup_matrix<T, 8, 8> from, SPACE T* to,                \
                                  ulong stride = 8, ulong2 origin = ulong2(0),                \
                                  bool transposed = false) {                                  \
    sim_bring(sim_op_matrix, 0u);                                                             \
    uint row = sim_matrix_row(sim_lane()), column = sim_matrix_column(sim_lane());            \
    for (uint i = 0; i < 2; i++) {                                                            \
      ulong r = transposed ? column + i : row, c = transposed ? row : column + i;             \
      to[(origin.y + r) * stride + origin.x + c] = from.held[i];                              \
    }                                                                                         \
  }
SIM_MATRIX_MEMORY(device)
#if defined(SIM_ADDRESS_SPACES)
SIM_MATRIX_MEMORY(threadgroup)
#endif

template <typename T>
SIM_QUIET __attribute__((noinline)) float sim_dot_row(const SimLanes* lanes, uint row,
                                                      uint column) {
  float sum = 0.0f;
  for (uint k = 0; k < 8; k++) {
    sum += sim_factor<T>(lanes, row, k, false) * sim_factor<T>(lanes, k, column, true);
  }
  return sum;
}

template <typename D, typename T, typename C>
SIM_INLINE void simdgroup_multiply_accumulate(thread simdgroup_matrix<D, 8, 8>& result,
                                              simdgroup_matrix<T, 8, 8> a,
                                              simdgroup_matrix<T, 8, 8> b,
                                              simdgroup_matrix<C, 8, 8> c) {
  sim_element_pair<T> pair = {{a.held[0], a.held[1]}, {b.held[0], b.held[1]}};
  SimLanes* lanes = sim_bring(sim_op_matrix, pair);
  uint row = sim_matrix_row(sim_lane()), column = sim_matrix_column(sim_lane());
  for (uint i = 0; i < 2; i++) {
    float product = sim_dot_row<T>(lanes, row, column + i);
    result.held[i] = static_cast<D>(product + static_cast<float>(c.held[i]));
  }
}
template <typename D, typename T>
SIM_INLINE void simdgroup_multiply(thread simdgroup_matrix<D, 8, 8>& result,
                                   simdgroup_matrix<T, 8, 8> a, simdgroup_matrix<T, 8, 8> b) {
  simdgroup_matrix<D, 8, 8> zero;
  zero.held = D(0);
  simdgroup_multiply_accumulate(result, a, b, zero);
}
}  // namespace metal
