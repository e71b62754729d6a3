// Sampling: Gumbel-max with a counter hash, and the cuts of top-p and top-k by bisection.
//
// Scores must be the reference's bit for bit, so nothing may be contracted to a fused multiply-add.
#pragma METAL fp math_mode(safe)
#pragma METAL fp contract(off)
#pragma clang fp contract(off)

#define UNITS 756387.688f        // of a key, in a nat
#define ALMOST_ONE 0.99999994f   // only a distance of zero is truncated to key 0
#define LARGEST_KEY 16777215u
#define BOUND_RISE 110.212f      // 159 log 2, and 0.001 that covers all rounding

inline uint mix(uint x) {
  x = (x ^ (x >> 16)) * 0x7feb352du;
  x = (x ^ (x >> 15)) * 0x846ca68bu;
  return x ^ (x >> 16);
}

// Noise, as in noise.py.
inline uint2 row_keys(uint2 seed, uint position) {
  uint x = (position ^ seed.x) * 0x7feb352du;
  x = (x ^ (x >> 16)) * 0x846ca68bu;
  x = x ^ (x >> 15);
  return uint2(x + seed.y, ((x * 0x7feb352du) ^ seed.y) | 1u);
}

inline uint token_word(uint token) {
  return mix(token + 0x27d4eb2fu);
}

inline uint first_word(uint word, uint2 keys) {
  const uint x = (word ^ keys.x) * 0x7feb352du;
  return (x ^ (x >> 15)) * keys.y;
}

inline uint second_word(uint first, uint2 keys) {
  const uint x = first * 0x846ca68bu + keys.x;
  return (x ^ (x >> 15)) * 0x7feb352du;
}

// -log(-log(1 - w)), w = (first * 2^32 + second + 1/2) / 2^64, by a table of parabolas.
template <typename P>
inline float gumbel(uint first, uint second, P table) {
  const float distance =
      float(as_type<int>(first)) + (float(second) + 0.5f) * 2.3283064365386963e-10f;
  const uint bits = as_type<uint>(distance);
  const uint row = 3u * (bits >> 17);
  const float inside = float(bits & 131071u);
  return (table[row + 2u] * inside + table[row + 1u]) * inside + table[row];
}

// How far a value lies below the largest; see sample_cuts.
inline uint key_of(float value, float top) {
  const float scaled = (top - value) * UNITS + ALMOST_ONE;
  return uint(min(scaled, float(LARGEST_KEY)));
}

// 2^28 times the probability over the largest, by the upper 16 bits of a key; 15 bits count.
inline uint mass_of(uint high) {
  const float fraction = float(high & 2047u);
  float total = fraction * 1.27312647e-11f + -2.02988846e-07f;
  total = total * fraction + 0.00187052302f;
  total = total * fraction + -11.0886137f;
  total = total * fraction + 32767.4358f;
  const int mantissa = as_type<int>(float(uint(total)));
  return uint(as_type<float>(mantissa + (13 - int(high >> 11)) * 8388608));
}

// Sums over a threadgroup; every thread gets them. `room` has three values a simdgroup.
struct Sums {
  uint count;
  ulong mass;
};

inline Sums group_sums(
    Sums own, threadgroup uint* room, uint lane, uint simdgroup, uint simdgroups) {
  // Simd operations know no 64 bits: a thread's mass goes in two parts, whose sums fit 32.
  const uint count = simd_sum(own.count);
  const uint low = simd_sum(uint(own.mass & 0xfffful));
  const uint high = simd_sum(uint(own.mass >> 16));
  threadgroup_barrier(mem_flags::mem_threadgroup);  // whoever still reads the sums before these
  if (lane == 0) {
    room[3 * simdgroup] = count;
    room[3 * simdgroup + 1] = low;
    room[3 * simdgroup + 2] = high;
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  const bool there = lane < simdgroups;
  Sums all;
  all.count = simd_sum(there ? room[3 * lane] : 0u);
  const uint all_low = simd_sum(there ? room[3 * lane + 1] : 0u);
  const uint all_high = simd_sum(there ? room[3 * lane + 2] : 0u);
  all.mass = (ulong(all_high) << 16) + ulong(all_low);
  return all;
}

// Tokens of a row up to a key, or those of one key up to an id; this thread's share of them.
template <int THREADS, bool BY_MASS, typename P>
inline Sums tokens_until(P values, int width, float top, uint last, int thread_index) {
  Sums own = {0u, 0ul};
  for (int t = thread_index; t < width; t += THREADS) {
    const uint key = key_of(static_cast<float>(values[t]), top);
    if (key <= last) {
      own.count += 1;
      own.mass += BY_MASS ? ulong(mass_of(key >> 8)) : 0ul;
    }
  }
  return own;
}

template <int THREADS, typename P>
inline Sums equals_until(P values, float top, uint key, int last, int thread_index) {
  Sums own = {0u, 0ul};
  for (int t = thread_index; t <= last; t += THREADS) {
    own.count += key_of(static_cast<float>(values[t]), top) == key ? 1u : 0u;
  }
  return own;
}

#define GROUP_SUMS(own) \
  group_sums(own, room, lane, simdgroup, THREADS / 32)

//! section cut
  // One threadgroup a row and position.
  threadgroup uint room[3 * THREADS / 32];
  const uint lane = thread_index_in_simdgroup, simdgroup = simdgroup_index_in_threadgroup;
  const int thread_index = int(thread_position_in_threadgroup.x);
  const int unit = int(threadgroup_position_in_grid.x);
  const int row = unit / N;
  const int place = index[row] * N + unit % N;
  const auto values = logits + size_t(place) * V;
  const float top = tops[place];
  const uint most = uint(top_k[row]);

  // The upper half of the key of the last token kept.
  ulong share = 1ul;
  if (BY_MASS) {
    const ulong total =
        GROUP_SUMS((tokens_until<THREADS, true>(values, V, top, LARGEST_KEY, thread_index))).mass;
    const ulong part = ulong(top_p[row]);
    share = max(((total >> 23) * part >> 8) + ((total & 0x7ffffful) * part >> 31), 1ul);
  }
  uint first = 0u, before = 0u;
  ulong mass = 0ul;
  for (int bit = 15; bit >= 0; bit--) {
    const uint last = first + (1u << bit) - 1u;
    const Sums upto = GROUP_SUMS(
        (tokens_until<THREADS, BY_MASS>(values, V, top, (last << 8) | 255u, thread_index)));
    if (!(upto.count >= most || (BY_MASS && upto.mass >= share))) {
      first = last + 1u;
      before = upto.count;
      mass = upto.mass;
    }
  }
  uint count = most;
  if (BY_MASS && first < 65536u) {
    const ulong own = max(ulong(mass_of(first)), 1ul);
    const ulong missing = (share - mass + own - 1ul) / own;
    count = uint(min(ulong(before) + missing, ulong(most)));
  }

  // Its lower half, then its id.
  uint key = min(first, 65535u) << 8;
  for (int bit = 7; bit >= 0; bit--) {
    const uint last = key + (1u << bit) - 1u;
    const uint upto =
        GROUP_SUMS((tokens_until<THREADS, false>(values, V, top, last, thread_index))).count;
    if (upto < count) {
      key = last + 1u;
      before = upto;
    }
  }
  key = min(key, LARGEST_KEY);
  int token = 0;
  for (int bit = ID_BITS - 1; bit >= 0; bit--) {
    const int last = min(token + (1 << bit) - 1, V - 1);
    const uint upto =
        GROUP_SUMS((equals_until<THREADS>(values, top, key, last, thread_index))).count;
    if (upto < count - before) {
      token = last + 1;
    }
  }
  if (thread_index == 0) {
    const bool stricter = uint(lowest[row]) < key;  // what min-p keeps
    cut_key[unit] = stricter ? uint(lowest[row]) : key;
    cut_token[unit] = stricter ? V : token;
  }

//! section race
  // One threadgroup a row, position and part of the vocabulary.
  threadgroup float scores[THREADS / 32];
  threadgroup int tokens[THREADS / 32];
  const int thread_index = int(thread_position_in_threadgroup.x);
  const int unit = int(threadgroup_position_in_grid.y);
  const int part = int(threadgroup_position_in_grid.x);
  const int row = unit / N;
  const int place = index[row] * N + unit % N;
  const auto values = logits + size_t(place) * V;
  const float top = tops[place];
  const uint2 keys = row_keys(uint2(seeds[2 * row], seeds[2 * row + 1]), uint(positions[place]));
  const float scale = inverse_temperature[row];
  const uint last_key = FILTERS ? cut_key[unit] : LARGEST_KEY;
  const int last_token = FILTERS ? cut_token[unit] : V;

  float best = -INFINITY;
  int chosen = V - 1;
  for (int t = part * SPLIT + thread_index; t < min((part + 1) * SPLIT, V); t += THREADS) {
    const float value = static_cast<float>(values[t]);
    if (FILTERS) {
      const uint key = key_of(value, top);
      if (key > last_key || (key == last_key && t > last_token)) {
        continue;
      }
    }
    const uint first = first_word(token_word(uint(t)), keys);
    const float scaled = (value - top) * scale;
    const float bound = scaled - float(as_type<int>(float(first))) * 8.26295832e-08f;
    if (bound + BOUND_RISE >= best) {
      const float score = scaled + gumbel(first, second_word(first, keys), table);
      if (score > best) {
        best = score;
        chosen = t;
      }
    }
  }
  float highest = simd_max(best);
  int lowest_id = simd_min(best == highest ? chosen : V);
  if (thread_index_in_simdgroup == 0) {
    scores[simdgroup_index_in_threadgroup] = highest;
    tokens[simdgroup_index_in_threadgroup] = lowest_id;
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  const bool there = thread_index_in_simdgroup < THREADS / 32;
  best = there ? scores[thread_index_in_simdgroup] : -INFINITY;
  chosen = there ? tokens[thread_index_in_simdgroup] : V;
  highest = simd_max(best);
  lowest_id = simd_min(best == highest ? chosen : V);
  if (thread_index == 0) {
    score[unit * PARTS + part] = highest;
    token[unit * PARTS + part] = min(lowest_id, V - 1);
  }
