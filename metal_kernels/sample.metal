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

// Further words of a position, beside tokens' noise.
inline uint stream_word(uint2 keys, uint stream) {
  return mix(mix(keys.x ^ (stream * 0x9e3779b9u)) + keys.y);
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

// What XTC excludes of a row: keys below `floor`, but for special tokens. Nothing where it is 0.
template <typename T>
struct Excluded {
  uint floor;
  T special;
  int specials;

  inline bool has(uint key, int token) const {
    if (key >= floor) {
      return false;
    }
    for (int i = 0; i < specials; i++) {
      if (special[i] == token) {
        return false;
      }
    }
    return true;
  }
};

// The last token kept of a ranking.
struct Cut {
  uint key;
  int token;

  inline bool keeps(uint other_key, int other) const {
    return other_key < key || (other_key == key && other <= token);
  }
};

inline Cut earlier(Cut one, Cut other) {
  return other.keeps(one.key, one.token) ? one : other;
}

// Tokens of a row up to a key, or those of one key up to an id; this thread's share of them.
template <int THREADS, bool BY_MASS, typename P, typename E>
inline Sums tokens_until(P values, int width, float top, uint last, E without, int thread_index) {
  Sums own = {0u, 0ul};
  for (int t = thread_index; t < width; t += THREADS) {
    const uint key = key_of(static_cast<float>(values[t]), top);
    if (key <= last && !without.has(key, t)) {
      own.count += 1;
      own.mass += BY_MASS ? ulong(mass_of(key >> 8)) : 0ul;
    }
  }
  return own;
}

template <int THREADS, typename P, typename E>
inline Sums equals_until(P values, float top, uint key, int last, E without, int thread_index) {
  Sums own = {0u, 0ul};
  for (int t = thread_index; t <= last; t += THREADS) {
    const bool equal = key_of(static_cast<float>(values[t]), top) == key;
    own.count += equal && !without.has(key, t) ? 1u : 0u;
  }
  return own;
}

// Of the tokens kept by a cut: their mass, and the largest key of one with more than a mass.
template <int THREADS, typename P>
inline ulong mass_kept(P values, int width, float top, Cut cut, int thread_index) {
  ulong mass = 0ul;
  for (int t = thread_index; t < width; t += THREADS) {
    const uint key = key_of(static_cast<float>(values[t]), top);
    mass += cut.keeps(key, t) ? ulong(mass_of(key >> 8)) : 0ul;
  }
  return mass;
}

template <int THREADS, typename P>
inline uint last_choice(P values, int width, float top, Cut cut, ulong limit, int thread_index) {
  uint last = 0u;
  for (int t = thread_index; t < width; t += THREADS) {
    const uint key = key_of(static_cast<float>(values[t]), top);
    if (cut.keeps(key, t) && ulong(mass_of(key >> 8)) > limit) {
      last = max(last, key);
    }
  }
  return last;
}

// A share in units of 2^-31, rounded down; in two parts, or 64 bits overflow.
inline ulong part_of(ulong total, ulong share) {
  return ((total >> 23) * share >> 8) + ((total & 0x7ffffful) * share >> 31);
}

#define GROUP_SUMS(own) \
  group_sums(own, room, lane, simdgroup, THREADS / 32)

// The last token of a ranking before `most` tokens are kept, or a share of all mass.
template <int THREADS, bool BY_MASS, int ID_BITS, typename P, typename E>
inline Cut rank_cut(
    P values, int width, float top, uint most, ulong part, E without, int thread_index,
    threadgroup uint* room, uint lane, uint simdgroup) {
  // The upper half of its key.
  ulong share = 1ul;
  if (BY_MASS) {
    const ulong total = GROUP_SUMS((tokens_until<THREADS, true>(
        values, width, top, LARGEST_KEY, without, thread_index))).mass;
    share = max(part_of(total, part), 1ul);
  }
  uint first = 0u, before = 0u;
  ulong mass = 0ul;
  for (int bit = 15; bit >= 0; bit--) {
    const uint last = first + (1u << bit) - 1u;
    const Sums upto = GROUP_SUMS((tokens_until<THREADS, BY_MASS>(
        values, width, top, (last << 8) | 255u, without, thread_index)));
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
    const uint upto = GROUP_SUMS((tokens_until<THREADS, false>(
        values, width, top, last, without, thread_index))).count;
    if (upto < count) {
      key = last + 1u;
      before = upto;
    }
  }
  key = min(key, LARGEST_KEY);
  int token = 0;
  for (int bit = ID_BITS - 1; bit >= 0; bit--) {
    const int last = min(token + (1 << bit) - 1, width - 1);
    const uint upto =
        GROUP_SUMS((equals_until<THREADS>(values, top, key, last, without, thread_index))).count;
    if (upto < count - before) {
      token = last + 1;
    }
  }
  return Cut{key, token};
}

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
  Excluded<decltype(special + 0)> without = {0u, special + row * SPECIALS, SPECIALS};

  Cut least = {uint(lowest[row]), V};  // what min-p keeps
  if (BY_LEAST) {
    const Cut some = rank_cut<THREADS, false, ID_BITS>(
        values, V, top, uint(fewest[row]), 0ul, without, thread_index, room, lane, simdgroup);
    least = some.key > least.key ? some : least;
  }
  Cut cut = earlier(least, rank_cut<THREADS, BY_MASS, ID_BITS>(
      values, V, top, uint(top_k[row]), ulong(top_p[row]), without, thread_index,
      room, lane, simdgroup));
  if (EXCLUDES) {
    Sums own = {0u, mass_kept<THREADS>(values, V, top, cut, thread_index)};
    const ulong limit = part_of(GROUP_SUMS(own).mass, ulong(share[row]));
    const uint last =
        simd_max(last_choice<THREADS>(values, V, top, cut, limit, thread_index));
    threadgroup_barrier(mem_flags::mem_threadgroup);  // who reads sums still
    if (lane == 0) {
      room[simdgroup] = last;
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    const uint choices = simd_max(int(lane) < THREADS / 32 ? room[lane] : 0u);
    const uint2 keys = row_keys(uint2(seeds[2 * row], seeds[2 * row + 1]), uint(positions[place]));
    without.floor = ulong(stream_word(keys, 1u)) < ulong(chance[row]) ? choices : 0u;
    if (THEN_BY_COUNT) {
      cut = earlier(cut, rank_cut<THREADS, false, ID_BITS>(
          values, V, top, uint(then_k[row]), 0ul, without, thread_index, room, lane, simdgroup));
    }
  }
  if (thread_index == 0) {
    cut_key[unit] = cut.key;
    cut_token[unit] = cut.token;
    floor_key[unit] = without.floor;
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
  const Excluded<decltype(special + 0)> without = {
      EXCLUDES ? floor_key[unit] : 0u, special + row * SPECIALS, SPECIALS};

  float best = -INFINITY;
  int chosen = V - 1;
  for (int t = part * SPLIT + thread_index; t < min((part + 1) * SPLIT, V); t += THREADS) {
    const float value = static_cast<float>(values[t]);
    if (FILTERS) {
      const uint key = key_of(value, top);
      if (key > last_key || (key == last_key && t > last_token)) {
        continue;
      }
      if (EXCLUDES && without.has(key, t)) {
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
