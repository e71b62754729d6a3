// Attention of few queries over slots of keys and values, by length: no mask is read, and nothing
// past a row's length. Each tile of keys and values is read from device memory once.
//
// A threadgroup has ROW_BLOCKS * KEY_GROUPS simdgroups. Each holds ROWS queries ("rows" below are
// the queries of one KV head: query heads times tokens) and takes KEYS keys of every tile.

#define UNROLL _Pragma("clang loop unroll(full)")

// Lower than any score, but finite: differences of two of them are zero, not NaN.
#define LOWEST -3.0e38f

// The pointer moved to a [row, head] of a strided [B, H, N, D].
template <typename P>
inline P at_head(P array, const constant int64_t* strides, int row, int head) {
  return array + row * strides[0] + head * strides[1];
}

// Copies `there` tokens of a strided array into a tile of `tokens`; the rest becomes zero, since
// zero weights do not silence what happens to lie there.
template <typename T, int D, int PITCH, int TOKENS, int THREADS, typename P>
inline void stage(
    threadgroup T* tile, P from, int there, int64_t token_step, int64_t dim_step, uint thread_id) {
  for (int run = int(thread_id); run < TOKENS * D / 4; run += THREADS) {
    const int token = run / (D / 4);
    const int d = run % (D / 4) * 4;
    threadgroup T* to = tile + token * PITCH + d;
    if (token >= there) {
      UNROLL for (int j = 0; j < 4; j++) to[j] = static_cast<T>(0.0f);
    } else if (dim_step == 1) {
      const auto source = from + token * token_step + d;
      UNROLL for (int j = 0; j < 4; j++) to[j] = source[j];
    } else {
      const auto source = from + token * token_step + d * dim_step;
      UNROLL for (int j = 0; j < 4; j++) to[j] = source[j * dim_step];
    }
  }
}

// Keys begin .. end - 1 of a row.
struct Stretch {
  int begin;
  int end;
};

// The keys of one split: those that any query of the row sees, shared out in whole tiles.
template <int SPLITS, int TILE, int WINDOW>
inline Stretch stretch_of(int length, int tokens, int split) {
  const int first = WINDOW > 0 ? max(0, length - tokens - WINDOW + 1) : 0;
  const int tiles = (length - first + TILE - 1) / TILE;
  const int each = (tiles + SPLITS - 1) / SPLITS * TILE;
  const int begin = first + split * each;
  return {begin, min(begin + each, length)};
}

//! section walk
  constexpr int LANES = 32 / KEYS;  // that share the product of one query and one key
  constexpr int PITCH = D + K_PADDING;
  constexpr int TILE = KEY_GROUPS * KEYS;
  constexpr int HELD = ROW_BLOCKS * ROWS;
  constexpr int THREADS = 32 * ROW_BLOCKS * KEY_GROUPS;
  constexpr int DIMS = (D + 31) / 32;  // of an output, a lane

  threadgroup T held_queries[HELD * D];
  threadgroup T key_tile[TILE * PITCH];
  threadgroup T value_tile[TILE * D];

  const uint thread_id = thread_index_in_threadgroup;
  const int lane = int(thread_index_in_simdgroup);
  const int block = int(simdgroup_index_in_threadgroup) % ROW_BLOCKS;
  const int group = int(simdgroup_index_in_threadgroup) / ROW_BLOCKS;

  const int q_heads = q_shape[1], tokens = q_shape[2], kv_heads = k_shape[1];
  const int heads = q_heads / kv_heads;  // query heads a KV head
  const int place = int(threadgroup_position_in_grid.y);
  const int part = place % PARTS;
  const int kv_head = place / PARTS % kv_heads;
  const int row = place / PARTS / kv_heads;
  const int split = int(threadgroup_position_in_grid.z);
  const int length = clamp(int(lengths[row]), 0, int(k_shape[2]));
  const Stretch stretch = stretch_of<SPLITS, TILE, WINDOW>(length, tokens, split);

  // The queries of this part. Places left over repeat the last query and are never written.
  const int last = heads * tokens - 1;
  const int first = part * HELD;
  for (int run = int(thread_id); run < HELD * D; run += THREADS) {
    const int query = min(first + run / D, last);
    const auto from = at_head(q, q_strides, row, kv_head * heads + query / tokens);
    held_queries[run] = from[query % tokens * q_strides[2] + run % D * q_strides[3]];
  }
  int position[ROWS];
  UNROLL for (int r = 0; r < ROWS; r++) {
    const int query = min(first + block * ROWS + r, last);
    position[r] = length - tokens + query % tokens;
  }

  // Online softmax: the largest score so far, the sum of weights relative to it, and the weighted
  // sum of values: lane l holds the dims l, l + 32, ...
  float top[ROWS], total[ROWS], sums[ROWS][DIMS];
  UNROLL for (int r = 0; r < ROWS; r++) {
    top[r] = LOWEST;
    total[r] = 0.0f;
    UNROLL for (int i = 0; i < DIMS; i++) sums[r][i] = 0.0f;
  }

  const auto keys_from = at_head(k, k_strides, row, kv_head);
  const auto values_from = at_head(v, v_strides, row, kv_head);
  for (int start = stretch.begin; start < stretch.end; start += TILE) {
    const int there = stretch.end - start;
    stage<T, D, PITCH, TILE, THREADS>(
        key_tile, keys_from + start * k_strides[2], there, k_strides[2], k_strides[3], thread_id);
    stage<T, D, D, TILE, THREADS>(
        value_tile, values_from + start * v_strides[2], there, v_strides[2], v_strides[3],
        thread_id);
    threadgroup_barrier(mem_flags::mem_threadgroup);

    // Scores: LANES neighbours share a key, each takes every LANES-th run of four dims.
    const int key = group * KEYS + lane / LANES;
    float weight[ROWS];
    UNROLL for (int r = 0; r < ROWS; r++) weight[r] = 0.0f;
    for (int d = lane % LANES * 4; d < D; d += LANES * 4) {
      float run[4];
      UNROLL for (int j = 0; j < 4; j++) {
        run[j] = static_cast<float>(key_tile[key * PITCH + d + j]);
      }
      UNROLL for (int r = 0; r < ROWS; r++) {
        const threadgroup T* query = held_queries + (block * ROWS + r) * D + d;
        UNROLL for (int j = 0; j < 4; j++) weight[r] += static_cast<float>(query[j]) * run[j];
      }
    }
    UNROLL for (int r = 0; r < ROWS; r++) {
      UNROLL for (int other = 1; other < LANES; other *= 2) {
        weight[r] += simd_shuffle_xor(weight[r], ushort(other));
      }
      float score = weight[r] * scale;
      if (CAPPED) {
        score = softcap * metal::precise::tanh(score / softcap);
      }
      const int at = start + key;
      const bool seen = at < stretch.end && at <= position[r]
          && (WINDOW == 0 || at > position[r] - WINDOW);
      const float highest = max(top[r], simd_max(seen ? score : LOWEST));
      const float rescale = metal::fast::exp(top[r] - highest);
      weight[r] = seen ? metal::fast::exp(score - highest) : 0.0f;
      top[r] = highest;
      total[r] = total[r] * rescale + simd_sum(lane % LANES == 0 ? weight[r] : 0.0f);
      UNROLL for (int i = 0; i < DIMS; i++) sums[r][i] *= rescale;
    }

    // Values: each lane its dims of one key after the other.
    for (int j = 0; j < KEYS; j++) {
      float value[DIMS];
      UNROLL for (int i = 0; i < DIMS; i++) {
        const int d = lane + 32 * i;
        value[i] = D % 32 == 0 || d < D
            ? static_cast<float>(value_tile[(group * KEYS + j) * D + d])
            : 0.0f;
      }
      UNROLL for (int r = 0; r < ROWS; r++) {
        const float share = simd_shuffle(weight[r], ushort(j * LANES));
        UNROLL for (int i = 0; i < DIMS; i++) sums[r][i] += share * value[i];
      }
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
  }

//! section merge_groups
  // The simdgroups that took different keys for the same queries; the first of them gets it all.
  threadgroup float group_top[KEY_GROUPS * HELD];
  threadgroup float group_total[KEY_GROUPS * HELD];
  threadgroup float merged[HELD * D];
  if (lane == 0) {
    UNROLL for (int r = 0; r < ROWS; r++) {
      group_top[group * HELD + block * ROWS + r] = top[r];
      group_total[group * HELD + block * ROWS + r] = total[r];
    }
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  UNROLL for (int r = 0; r < ROWS; r++) {
    float highest = LOWEST;
    for (int g = 0; g < KEY_GROUPS; g++) {
      highest = max(highest, group_top[g * HELD + block * ROWS + r]);
    }
    const float rescale = metal::fast::exp(top[r] - highest);
    UNROLL for (int i = 0; i < DIMS; i++) sums[r][i] *= rescale;
    top[r] = highest;
    total[r] = 0.0f;
    for (int g = 0; g < KEY_GROUPS; g++) {
      total[r] += group_total[g * HELD + block * ROWS + r]
          * metal::fast::exp(group_top[g * HELD + block * ROWS + r] - highest);
    }
  }
  for (int g = KEY_GROUPS - 1; g >= 0; g--) {
    if (group == g) {
      UNROLL for (int r = 0; r < ROWS; r++) {
        UNROLL for (int i = 0; i < DIMS; i++) {
          const int d = lane + 32 * i;
          if (D % 32 == 0 || d < D) {
            const int index = (block * ROWS + r) * D + d;
            if (g < KEY_GROUPS - 1) {
              sums[r][i] += merged[index];
            }
            if (g > 0) {
              merged[index] = sums[r][i];
            }
          }
        }
      }
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
  }

//! section write_out
  // [B, N, Hq, D], so that the caller's transpose back to tokens costs nothing.
  if (group == 0) {
    UNROLL for (int r = 0; r < ROWS; r++) {
      const int query = first + block * ROWS + r;
      if (query <= last) {
        const int head = kv_head * heads + query / tokens;
        float rescale = 1.0f;
        if (SINKS) {
          const float sink = static_cast<float>(sinks[head]);
          const float highest = max(top[r], sink);
          rescale = metal::fast::exp(top[r] - highest);
          total[r] = total[r] * rescale + metal::fast::exp(sink - highest);
        }
        // A query that sees no key at all gives zeros.
        const float factor = total[r] > 0.0f ? rescale / total[r] : 0.0f;
        device T* to = out + ((size_t(row) * tokens + query % tokens) * q_heads + head) * D;
        UNROLL for (int i = 0; i < DIMS; i++) {
          const int d = lane + 32 * i;
          if (D % 32 == 0 || d < D) {
            to[d] = static_cast<T>(sums[r][i] * factor);
          }
        }
      }
    }
  }

//! section write_split
  // [B, N, Hq, splits, D], and the largest score and the sum of weights beside.
  if (group == 0) {
    UNROLL for (int r = 0; r < ROWS; r++) {
      const int query = first + block * ROWS + r;
      if (query <= last) {
        const int head = kv_head * heads + query / tokens;
        const size_t to =
            ((size_t(row) * tokens + query % tokens) * q_heads + head) * SPLITS + split;
        UNROLL for (int i = 0; i < DIMS; i++) {
          const int d = lane + 32 * i;
          if (D % 32 == 0 || d < D) {
            partial[to * D + d] = sums[r][i];
          }
        }
        if (lane == 0) {
          stats[2 * to] = top[r];
          stats[2 * to + 1] = total[r];
        }
      }
    }
  }

//! section reduce
  // One simdgroup a query: lane s weighs split s, then each lane sums its dims over the splits.
  constexpr int DIMS = (D + 31) / 32;
  const int lane = int(thread_index_in_simdgroup);
  const size_t query = thread_position_in_grid.x / 32;
  const int head = int(query % size_t(partial_shape[2]));
  float top = LOWEST, total = 0.0f;
  if (lane < SPLITS) {
    top = stats[(query * SPLITS + lane) * 2];
    total = stats[(query * SPLITS + lane) * 2 + 1];
  }
  float highest = simd_max(top);
  if (SINKS) {
    highest = max(highest, static_cast<float>(sinks[head]));
  }
  const float rescale = metal::fast::exp(top - highest);
  total = simd_sum(total * rescale);
  if (SINKS) {
    total += metal::fast::exp(static_cast<float>(sinks[head]) - highest);
  }
  const float factor = total > 0.0f ? 1.0f / total : 0.0f;
  float sums[DIMS];
  UNROLL for (int i = 0; i < DIMS; i++) sums[i] = 0.0f;
  for (int s = 0; s < SPLITS; s++) {
    const float share = simd_shuffle(rescale, ushort(s));
    UNROLL for (int i = 0; i < DIMS; i++) {
      const int d = lane + 32 * i;
      if (D % 32 == 0 || d < D) {
        sums[i] += share * partial[(query * SPLITS + s) * D + d];
      }
    }
  }
  UNROLL for (int i = 0; i < DIMS; i++) {
    const int d = lane + 32 * i;
    if (D % 32 == 0 || d < D) {
      out[query * D + d] = static_cast<T>(sums[i] * factor);
    }
  }
