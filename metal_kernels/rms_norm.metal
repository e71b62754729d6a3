// RMS normalisation: one threadgroup a row, the row held in registers between its two uses.

// Consecutive elements that a thread takes at a time.
#define RUN 4
#define UNROLL _Pragma("clang loop unroll(full)")

// The sum of one value a thread over the whole threadgroup, for every thread.
// `partials` has room for one value a simdgroup.
inline float group_sum(
    float value, threadgroup float* partials, uint lane, uint simdgroup, uint simdgroups) {
  value = simd_sum(value);
  if (lane == 0) {
    partials[simdgroup] = value;
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  return simd_sum(lane < simdgroups ? partials[lane] : 0.0f);
}

// The factor that brings a row to a root mean square of one.
inline float inverse_rms(float squares, int width, float eps) {
  return metal::precise::rsqrt(squares / float(width) + eps);
}

//! section rms_norm
  constexpr int RUNS = (H + RUN * THREADS - 1) / (RUN * THREADS);
  constexpr bool EXACT = H % (RUN * THREADS) == 0;  // then no thread needs to look for the end
  threadgroup float partials[32];
  const int thread_index = int(thread_position_in_threadgroup.x);
  const size_t row = size_t(threadgroup_position_in_grid.x) * H;

  float values[RUNS * RUN];
  float squares = 0.0f;
  UNROLL for (int i = 0; i < RUNS * RUN; i++) {
    const int d = (i / RUN * THREADS + thread_index) * RUN + i % RUN;
    values[i] = EXACT || d < H ? static_cast<float>(x[row + d]) : 0.0f;
    squares += values[i] * values[i];
  }
  const float factor = inverse_rms(
      group_sum(squares, partials, thread_index_in_simdgroup, simdgroup_index_in_threadgroup,
                THREADS / 32),
      H, eps);
  UNROLL for (int i = 0; i < RUNS * RUN; i++) {
    const int d = (i / RUN * THREADS + thread_index) * RUN + i % RUN;
    if (EXACT || d < H) {
      float value = values[i] * factor;
      if (WEIGHTED) {
        value *= static_cast<float>(weight[d]);
      }
      normed[row + d] = static_cast<O>(value);
    }
  }

//! section add_rms_norm
  constexpr int RUNS = (H + RUN * THREADS - 1) / (RUN * THREADS);
  constexpr bool EXACT = H % (RUN * THREADS) == 0;  // then no thread needs to look for the end
  threadgroup float partials[32];
  const int thread_index = int(thread_position_in_threadgroup.x);
  const size_t row = size_t(threadgroup_position_in_grid.x) * H;

  float values[RUNS * RUN];
  float squares = 0.0f;
  UNROLL for (int i = 0; i < RUNS * RUN; i++) {
    const int d = (i / RUN * THREADS + thread_index) * RUN + i % RUN;
    values[i] = 0.0f;
    if (EXACT || d < H) {
      // Rounded first, so that what is normed is what the next layer adds to.
      const S sum = static_cast<S>(
          static_cast<float>(x[row + d]) + static_cast<float>(residual[row + d]));
      total[row + d] = sum;
      values[i] = static_cast<float>(sum);
    }
    squares += values[i] * values[i];
  }
  const float factor = inverse_rms(
      group_sum(squares, partials, thread_index_in_simdgroup, simdgroup_index_in_threadgroup,
                THREADS / 32),
      H, eps);
  UNROLL for (int i = 0; i < RUNS * RUN; i++) {
    const int d = (i / RUN * THREADS + thread_index) * RUN + i % RUN;
    if (EXACT || d < H) {
      float value = values[i] * factor;
      if (WEIGHTED) {
        value *= static_cast<float>(weight[d]);
      }
      normed[row + d] = static_cast<O>(value);
    }
  }
