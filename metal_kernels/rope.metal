// Rotary positions, alone and after the norms of queries and keys. Every row has its own offset.

#define UNROLL _Pragma("clang loop unroll(full)")

// Radians a position by which pair `pair` of `pairs` turns.
template <bool CUSTOM, typename F>
inline float speed(F freqs, int pair, int pairs, float log2_base) {
  if (CUSTOM) {
    return 1.0f / freqs[pair];
  }
  return metal::precise::exp2(-float(pair) / float(pairs) * log2_base);
}

// The two elements of a pair: neighbours, or half of the rotated dims apart.
template <bool TRADITIONAL>
inline int2 pair_at(int pair, int pairs) {
  return TRADITIONAL ? int2(2 * pair, 2 * pair + 1) : int2(pair, pair + pairs);
}

inline float2 turned(float2 value, float cosine, float sine) {
  return float2(value.x * cosine - value.y * sine, value.x * sine + value.y * cosine);
}

//! section rope
  // One thread a pair (or an element past the rotated dims), token and row; it serves all heads
  // of its block, so that angles are computed once.
  const int heads = x_shape[1], tokens = x_shape[2], width = x_shape[3];
  const int column = int(thread_position_in_grid.x);
  const int token = int(thread_position_in_grid.y);
  const int blocks = (heads + HEADS - 1) / HEADS;
  const int row = int(thread_position_in_grid.z) / blocks;
  const int first = int(thread_position_in_grid.z) % blocks * HEADS;

  constexpr int PAIRS = DIMS / 2;
  const bool rotates = column < PAIRS;
  const int2 at = rotates ? pair_at<TRADITIONAL>(column, PAIRS) : int2(column + PAIRS);
  float cosine = 1.0f, sine = 0.0f;
  if (rotates) {
    const float position = scale * float(offsets[row] + token);
    const float angle = position * speed<CUSTOM>(freqs, column, PAIRS, log2_base);
    cosine = metal::precise::cos(angle);
    sine = metal::precise::sin(angle);
  }
  for (int head = first; head < min(first + HEADS, heads); head++) {
    const auto from = x + row * x_strides[0] + head * x_strides[1] + token * x_strides[2];
    const size_t to = ((size_t(row) * heads + head) * tokens + token) * width;
    if (rotates) {
      const float2 pair = float2(
          static_cast<float>(from[at.x * x_strides[3]]),
          static_cast<float>(from[at.y * x_strides[3]]));
      const float2 moved = turned(pair, cosine, sine);
      out[to + at.x] = static_cast<T>(moved.x);
      out[to + at.y] = static_cast<T>(moved.y);
    } else {
      out[to + at.x] = from[at.x * x_strides[3]];
    }
  }

//! section norm_rope
  // One simdgroup a head and token; queries' heads come before keys'. A lane holds whole pairs, so
  // that the rotation needs no other lane.
  const int tokens = queries_shape[2];
  const int query_heads = queries_shape[1], key_heads = keys_shape[1];
  const int lane = int(thread_index_in_simdgroup);
  const int heads = query_heads + key_heads;
  const int unit = int(thread_position_in_grid.x) / 32;
  const int head = unit % heads;
  const int token = unit / heads % tokens;
  const int row = unit / heads / tokens;
  const bool asks = head < query_heads;

  constexpr int PAIRS = DIMS / 2;
  constexpr int PER_LANE = (PAIRS + 31) / 32;
  constexpr int REST = (D - DIMS + 31) / 32;
  const int own = asks ? head : head - query_heads;
  const auto from = asks
      ? queries + row * queries_strides[0] + own * queries_strides[1] + token * queries_strides[2]
      : keys + row * keys_strides[0] + own * keys_strides[1] + token * keys_strides[2];
  const int64_t step = asks ? queries_strides[3] : keys_strides[3];

  float2 pairs[PER_LANE];
  float rest[REST + 1];
  float squares = 0.0f;
  UNROLL for (int i = 0; i < PER_LANE; i++) {
    const int pair = lane + 32 * i;
    const int2 at = pair_at<TRADITIONAL>(pair, PAIRS);
    pairs[i] = float2(0.0f);
    if (pair < PAIRS) {
      pairs[i] = float2(
          static_cast<float>(from[at.x * step]), static_cast<float>(from[at.y * step]));
    }
    squares += pairs[i].x * pairs[i].x + pairs[i].y * pairs[i].y;
  }
  UNROLL for (int i = 0; i < REST; i++) {
    const int d = DIMS + lane + 32 * i;
    rest[i] = d < D ? static_cast<float>(from[d * step]) : 0.0f;
    squares += rest[i] * rest[i];
  }
  const float factor = metal::precise::rsqrt(simd_sum(squares) / float(D) + eps);

  const auto weight = asks ? query_weight : key_weight;
  device T* to = asks
      ? rotated_queries + ((size_t(row) * query_heads + own) * tokens + token) * D
      : rotated_keys + ((size_t(row) * key_heads + own) * tokens + token) * D;
  const float position = scale * float(offsets[row] + token);
  UNROLL for (int i = 0; i < PER_LANE; i++) {
    const int pair = lane + 32 * i;
    if (pair < PAIRS) {
      const int2 at = pair_at<TRADITIONAL>(pair, PAIRS);
      const float angle = position * speed<CUSTOM>(freqs, pair, PAIRS, log2_base);
      const float2 scaled = pairs[i] * factor
          * float2(static_cast<float>(weight[at.x]), static_cast<float>(weight[at.y]));
      const float2 moved =
          turned(scaled, metal::precise::cos(angle), metal::precise::sin(angle));
      to[at.x] = static_cast<T>(moved.x);
      to[at.y] = static_cast<T>(moved.y);
    }
  }
  UNROLL for (int i = 0; i < REST; i++) {
    const int d = DIMS + lane + 32 * i;
    if (d < D) {
      to[d] = static_cast<T>(rest[i] * factor * static_cast<float>(weight[d]));
    }
  }
