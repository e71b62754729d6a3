// metal::, metal::fast:: and metal::precise:: mathematics on float, half, bfloat and vectors.
//
// half and bfloat are computed in float and rounded once, as Metal's library does. The fast
// variants are as exact as the precise ones here: a Mac's may differ in their last bits.
#pragma once
#include "types.h"

#define SIM_UNARY_OF(T, NAME, EXPRESSION)       \
  SIM_INLINE T NAME(T value) {                  \
    float x = static_cast<float>(value);        \
    return static_cast<T>(EXPRESSION);          \
  }
#define SIM_UNARY(NAME, EXPRESSION)             \
  SIM_UNARY_OF(float, NAME, EXPRESSION)         \
  SIM_UNARY_OF(half, NAME, EXPRESSION)          \
  SIM_UNARY_OF(bfloat, NAME, EXPRESSION)        \
  template <typename T, int N>                  \
  SIM_INLINE vec<T, N> NAME(vec<T, N> value) {  \
    vec<T, N> result;                           \
    for (int i = 0; i < N; i++) {               \
      T lane = value[i];                        \
      float x = static_cast<float>(lane);       \
      result[i] = static_cast<T>(EXPRESSION);   \
    }                                           \
    return result;                              \
  }
#define SIM_BINARY_OF(T, NAME, EXPRESSION)                          \
  SIM_INLINE T NAME(T first, T second) {                            \
    float x = static_cast<float>(first);                            \
    float y = static_cast<float>(second);                           \
    return static_cast<T>(EXPRESSION);                              \
  }
#define SIM_BINARY(NAME, EXPRESSION)                                \
  SIM_BINARY_OF(float, NAME, EXPRESSION)                            \
  SIM_BINARY_OF(half, NAME, EXPRESSION)                             \
  SIM_BINARY_OF(bfloat, NAME, EXPRESSION)                           \
  template <typename T, int N>                                      \
  SIM_INLINE vec<T, N> NAME(vec<T, N> first, vec<T, N> second) {    \
    vec<T, N> result;                                               \
    for (int i = 0; i < N; i++) {                                   \
      float x = static_cast<float>(first[i]);                       \
      float y = static_cast<float>(second[i]);                      \
      result[i] = static_cast<T>(EXPRESSION);                       \
    }                                                               \
    return result;                                                  \
  }

#define SIM_RELAXABLE                                   \
  SIM_UNARY(exp, __builtin_expf(x))                     \
  SIM_UNARY(exp2, __builtin_exp2f(x))                   \
  SIM_UNARY(exp10, __builtin_powf(10.0f, x))            \
  SIM_UNARY(log, __builtin_logf(x))                     \
  SIM_UNARY(log2, __builtin_log2f(x))                   \
  SIM_UNARY(log10, __builtin_log10f(x))                 \
  SIM_UNARY(sin, __builtin_sinf(x))                     \
  SIM_UNARY(cos, __builtin_cosf(x))                     \
  SIM_UNARY(tan, __builtin_tanf(x))                     \
  SIM_UNARY(asin, __builtin_asinf(x))                   \
  SIM_UNARY(acos, __builtin_acosf(x))                   \
  SIM_UNARY(atan, __builtin_atanf(x))                   \
  SIM_UNARY(sinh, __builtin_sinhf(x))                   \
  SIM_UNARY(cosh, __builtin_coshf(x))                   \
  SIM_UNARY(tanh, __builtin_tanhf(x))                   \
  SIM_UNARY(asinh, __builtin_asinhf(x))                 \
  SIM_UNARY(acosh, __builtin_acoshf(x))                 \
  SIM_UNARY(atanh, __builtin_atanhf(x))                 \
  SIM_UNARY(sinpi, __builtin_sinf(x * M_PI_F))          \
  SIM_UNARY(cospi, __builtin_cosf(x * M_PI_F))          \
  SIM_UNARY(sqrt, __builtin_sqrtf(x))                   \
  SIM_UNARY(rsqrt, 1.0f / __builtin_sqrtf(x))           \
  SIM_UNARY(fabs, __builtin_fabsf(x))                   \
  SIM_UNARY(floor, __builtin_floorf(x))                 \
  SIM_UNARY(ceil, __builtin_ceilf(x))                   \
  SIM_UNARY(trunc, __builtin_truncf(x))                 \
  SIM_UNARY(rint, __builtin_nearbyintf(x))              \
  SIM_UNARY(round, __builtin_roundf(x))                 \
  SIM_UNARY(fract, x - __builtin_floorf(x))             \
  SIM_UNARY(saturate, __builtin_fminf(__builtin_fmaxf(x, 0.0f), 1.0f)) \
  SIM_BINARY(pow, __builtin_powf(x, y))                 \
  SIM_BINARY(powr, __builtin_powf(x, y))                \
  SIM_BINARY(atan2, __builtin_atan2f(x, y))             \
  SIM_BINARY(fmod, __builtin_fmodf(x, y))               \
  SIM_BINARY(divide, x / y)                             \
  SIM_BINARY(fmin, __builtin_fminf(x, y))               \
  SIM_BINARY(fmax, __builtin_fmaxf(x, y))               \
  SIM_BINARY(fdim, __builtin_fdimf(x, y))

namespace metal {
SIM_RELAXABLE
namespace fast {
SIM_RELAXABLE
}
namespace precise {
SIM_RELAXABLE
}
SIM_BINARY(copysign, __builtin_copysignf(x, y))
SIM_BINARY(step, y < x ? 0.0f : 1.0f)
SIM_UNARY(sign, x > 0 ? 1.0f : x < 0 ? -1.0f : x == 0 ? x : 0.0f)

#define SIM_TERNARY_OF(T, NAME, EXPRESSION)                 \
  SIM_INLINE T NAME(T first, T second, T third) {           \
    float x = static_cast<float>(first);                    \
    float y = static_cast<float>(second);                   \
    float z = static_cast<float>(third);                    \
    return static_cast<T>(EXPRESSION);                      \
  }
#define SIM_TERNARY(NAME, EXPRESSION)                                             \
  SIM_TERNARY_OF(float, NAME, EXPRESSION)                                         \
  SIM_TERNARY_OF(half, NAME, EXPRESSION)                                          \
  SIM_TERNARY_OF(bfloat, NAME, EXPRESSION)                                        \
  template <typename T, int N>                                                    \
  SIM_INLINE vec<T, N> NAME(vec<T, N> first, vec<T, N> second, vec<T, N> third) { \
    vec<T, N> result;                                                             \
    for (int i = 0; i < N; i++) {                                                 \
      float x = static_cast<float>(first[i]);                                     \
      float y = static_cast<float>(second[i]);                                    \
      float z = static_cast<float>(third[i]);                                     \
      result[i] = static_cast<T>(EXPRESSION);                                     \
    }                                                                             \
    return result;                                                                \
  }
SIM_TERNARY(fma, __builtin_fmaf(x, y, z))
SIM_TERNARY(mix, x + (y - x) * z)
SIM_INLINE float smoothstep(float low, float high, float x) {
  float t = saturate((x - low) / (high - low));
  return t * t * (3.0f - 2.0f * t);
}

// min, max, clamp, abs: one overload a type, so that mixed types are as ambiguous as in Metal.
#define SIM_ORDERED(T)                                                                     \
  SIM_INLINE constexpr T min(T x, T y) { return y < x ? y : x; }                           \
  SIM_INLINE constexpr T max(T x, T y) { return x < y ? y : x; }                           \
  SIM_INLINE constexpr T min3(T x, T y, T z) { return min(min(x, y), z); }                 \
  SIM_INLINE constexpr T max3(T x, T y, T z) { return max(max(x, y), z); }                 \
  SIM_INLINE constexpr T clamp(T x, T low, T high) { return min(max(x, low), high); }
#define SIM_INTEGER(T)                                                  \
  SIM_ORDERED(T)                                                        \
  SIM_INLINE constexpr T abs(T x) { return x < T(0) ? T(-x) : x; }      \
  SIM_INLINE T popcount(T x) {                                          \
    return T(__builtin_popcountl(static_cast<ulong>(x) & (~0ul >> (64 - 8 * sizeof(T))))); \
  }                                                                     \
  SIM_INLINE T clz(T x) {                                               \
    ulong bits = static_cast<ulong>(x) & (~0ul >> (64 - 8 * sizeof(T))); \
    return T(bits ? __builtin_clzl(bits) - (64 - 8 * sizeof(T)) : 8 * sizeof(T)); \
  }                                                                     \
  SIM_INLINE T ctz(T x) {                                               \
    ulong bits = static_cast<ulong>(x) & (~0ul >> (64 - 8 * sizeof(T))); \
    return T(bits ? __builtin_ctzl(bits) : 8 * sizeof(T));              \
  }
SIM_INTEGER(char)
SIM_INTEGER(int8_t)
SIM_INTEGER(uchar)
SIM_INTEGER(short)
SIM_INTEGER(ushort)
SIM_INTEGER(int)
SIM_INTEGER(uint)
SIM_INTEGER(long)
SIM_INTEGER(ulong)

// As fmin and fmax: of a number and a NaN, the number.
#define SIM_FLOATING(T)                                                                 \
  SIM_INLINE T min(T x, T y) { return fmin(x, y); }                                     \
  SIM_INLINE T max(T x, T y) { return fmax(x, y); }                                     \
  SIM_INLINE T min3(T x, T y, T z) { return fmin(fmin(x, y), z); }                      \
  SIM_INLINE T max3(T x, T y, T z) { return fmax(fmax(x, y), z); }                      \
  SIM_INLINE T clamp(T x, T low, T high) { return fmin(fmax(x, low), high); }           \
  SIM_INLINE T abs(T x) { return fabs(x); }                                             \
  SIM_INLINE bool isnan(T x) { return __builtin_isnan(static_cast<float>(x)); }         \
  SIM_INLINE bool isinf(T x) { return __builtin_isinf(static_cast<float>(x)); }         \
  SIM_INLINE bool isfinite(T x) { return __builtin_isfinite(static_cast<float>(x)); }   \
  SIM_INLINE bool signbit(T x) { return __builtin_signbitf(static_cast<float>(x)); }    \
  SIM_INLINE T ldexp(T x, int k) {                                                      \
    return static_cast<T>(__builtin_ldexpf(static_cast<float>(x), k));                  \
  }                                                                                     \
  SIM_INLINE T frexp(T x, thread int& exponent) {                                       \
    return static_cast<T>(__builtin_frexpf(static_cast<float>(x), &exponent));          \
  }                                                                                     \
  SIM_INLINE T modf(T x, thread T& whole) {                                             \
    whole = trunc(x);                                                                   \
    return static_cast<T>(x - whole);                                                   \
  }                                                                                     \
  SIM_INLINE T sincos(T x, thread T& cosine) {                                          \
    cosine = cos(x);                                                                    \
    return sin(x);                                                                      \
  }
SIM_FLOATING(float)
SIM_FLOATING(half)
SIM_FLOATING(bfloat)

#define SIM_LANEWISE_2(NAME)                                                       \
  template <typename T, int N>                                                     \
  SIM_INLINE vec<T, N> NAME(vec<T, N> x, vec<T, N> y) {                            \
    vec<T, N> result;                                                              \
    for (int i = 0; i < N; i++) result[i] = NAME(T(x[i]), T(y[i]));                \
    return result;                                                                 \
  }                                                                                \
  template <typename T, int N>                                                     \
  SIM_INLINE vec<T, N> NAME(vec<T, N> x, T y) {                                    \
    return NAME(x, vec<T, N>(y));                                                  \
  }
SIM_LANEWISE_2(min)
SIM_LANEWISE_2(max)
template <typename T, int N>
SIM_INLINE vec<T, N> abs(vec<T, N> x) {
  vec<T, N> result;
  for (int i = 0; i < N; i++) result[i] = abs(T(x[i]));
  return result;
}
template <typename T, int N>
SIM_INLINE vec<T, N> clamp(vec<T, N> x, vec<T, N> low, vec<T, N> high) {
  return min(max(x, low), high);
}
template <typename T, int N>
SIM_INLINE vec<T, N> clamp(vec<T, N> x, T low, T high) {
  return min(max(x, low), high);
}

template <typename T>
SIM_INLINE T select(T no, T yes, bool condition) {
  return condition ? yes : no;
}
template <typename T, typename C, int N>
SIM_INLINE vec<T, N> select(vec<T, N> no, vec<T, N> yes, vec<C, N> condition) {
  vec<T, N> result;
  for (int i = 0; i < N; i++) result[i] = condition[i] ? yes[i] : no[i];
  return result;
}
template <typename T, int N>
SIM_INLINE bool any(vec<T, N> x) {
  bool result = false;
  for (int i = 0; i < N; i++) result |= x[i] != 0;
  return result;
}
template <typename T, int N>
SIM_INLINE bool all(vec<T, N> x) {
  bool result = true;
  for (int i = 0; i < N; i++) result &= x[i] != 0;
  return result;
}
SIM_INLINE bool any(bool x) { return x; }
SIM_INLINE bool all(bool x) { return x; }

template <typename T, int N>
SIM_INLINE T dot(vec<T, N> x, vec<T, N> y) {
  T sum = x[0] * y[0];
  for (int i = 1; i < N; i++) sum += x[i] * y[i];
  return sum;
}
template <typename T, int N>
SIM_INLINE T length_squared(vec<T, N> x) {
  return dot(x, x);
}
template <typename T, int N>
SIM_INLINE T length(vec<T, N> x) {
  return sqrt(dot(x, x));
}
template <typename T, int N>
SIM_INLINE vec<T, N> normalize(vec<T, N> x) {
  return x * rsqrt(dot(x, x));
}

SIM_INLINE uint mulhi(uint x, uint y) { return (static_cast<ulong>(x) * y) >> 32; }
SIM_INLINE int mulhi(int x, int y) { return (static_cast<long>(x) * y) >> 32; }
SIM_INLINE uint reverse_bits(uint x) { return __builtin_bitreverse32(x); }
SIM_INLINE uint extract_bits(uint x, uint offset, uint bits) {
  return bits == 0 ? 0 : (x >> offset) & (~0u >> (32 - bits));
}
SIM_INLINE uint rotate(uint x, uint n) { return __builtin_rotateleft32(x, n); }
}  // namespace metal
