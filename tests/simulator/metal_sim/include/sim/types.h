// Metal's scalar and vector types, made of clang's own: _Float16, __bf16 and ext_vector_type.
#pragma once

#if defined(SIM_ADDRESS_SPACES)  // the syntax pass: pointers of different memories do not mix
#define device __attribute__((address_space(1)))
#define constant __attribute__((address_space(2)))
#define threadgroup __attribute__((address_space(3)))
#else
#define device
#define constant const
#define threadgroup
#endif
#define thread
#define kernel
#define METAL_FUNC inline __attribute__((always_inline))
#define __METAL_VERSION__ 310
#define __METAL__ 1

// Code of the simulator itself: its loads and stores are not the kernel's.
#define SIM_QUIET __attribute__((no_sanitize("thread"))) __attribute__((no_sanitize("coverage")))
// Without debug lines of its own, so that what it does is seen at the kernel's line.
#define SIM_INLINE inline __attribute__((always_inline)) __attribute__((nodebug))

typedef unsigned char uchar;
typedef unsigned short ushort;
typedef unsigned int uint;
typedef unsigned long ulong;
typedef signed char int8_t;
typedef short int16_t;
typedef int int32_t;
typedef long int64_t;
typedef uchar uint8_t;
typedef ushort uint16_t;
typedef uint uint32_t;
typedef ulong uint64_t;
typedef ulong size_t;
typedef long ptrdiff_t;
typedef ulong uintptr_t;
typedef long intptr_t;

typedef _Float16 half;
#if defined(SIM_STRICT_BFLOAT)
#include "strict_bfloat.h"
#else
typedef __bf16 bfloat;
#endif

namespace metal {
using ::bfloat;
using ::half;
using ::int16_t;
using ::int32_t;
using ::int64_t;
using ::int8_t;
using ::ptrdiff_t;
using ::size_t;
using ::uchar;
using ::uint;
using ::uint16_t;
using ::uint32_t;
using ::uint64_t;
using ::uint8_t;
using ::ulong;
using ::ushort;

template <typename T, int N>
using vec = T __attribute__((ext_vector_type(N)));
}  // namespace metal

#define SIM_VECTORS(T)                                \
  typedef T T##2 __attribute__((ext_vector_type(2))); \
  typedef T T##3 __attribute__((ext_vector_type(3))); \
  typedef T T##4 __attribute__((ext_vector_type(4)));
SIM_VECTORS(char)
SIM_VECTORS(uchar)
SIM_VECTORS(short)
SIM_VECTORS(ushort)
SIM_VECTORS(int)
SIM_VECTORS(uint)
SIM_VECTORS(long)
SIM_VECTORS(ulong)
SIM_VECTORS(half)
SIM_VECTORS(float)
#if !defined(SIM_STRICT_BFLOAT)
SIM_VECTORS(bfloat)
#endif
// A comparison of vectors gives integer lanes (0 or -1) of the same width, as clang has it.
typedef int bool2 __attribute__((ext_vector_type(2)));
typedef int bool3 __attribute__((ext_vector_type(3)));
typedef int bool4 __attribute__((ext_vector_type(4)));

#include "type_traits.h"

// float4(a, b), float4(s), half4(v): the rewriter turns these into sim_make<float4>(...).
template <typename V, int I, typename A>
SIM_INLINE int sim_put(thread V& result, int at, A part) {
  if constexpr (sim_is_vector<A>) {
    for (int i = 0; i < sim_width<A>; i++) result[at + i] = static_cast<sim_element<V>>(part[i]);
    return at + sim_width<A>;
  } else {
    result[at] = static_cast<sim_element<V>>(part);
    return at + 1;
  }
}

template <typename V, typename... A>
SIM_INLINE V sim_make(A... parts) {
  if constexpr (!sim_is_vector<V>) {
    return V(parts...);
  } else {
    constexpr int given = (0 + ... + sim_width<A>);
    V result;
    if constexpr (sizeof...(A) == 1 && given == 1) {
      ((result = V(static_cast<sim_element<V>>(parts))), ...);
    } else {
      static_assert(given == sim_width<V>, "wrong number of components for this vector");
      int at = 0;
      ((at = sim_put<V, 0>(result, at, parts)), ...);
    }
    return result;
  }
}

// (half4)x becomes sim_cast<half4>()->*x, which binds nearly as a cast does.
template <typename V>
struct sim_cast {
  template <typename A>
  friend SIM_INLINE V operator->*(sim_cast, A value) {
    return sim_make<V>(value);
  }
};

template <typename To, typename From>
SIM_INLINE To as_type(From value) {
  static_assert(sizeof(To) == sizeof(From), "as_type wants two types of one size");
  return __builtin_bit_cast(To, value);
}
namespace metal {
using ::as_type;
}

// packed_float3 and its kin: no padding, no alignment beyond the element's.
template <typename T, int N>
struct sim_packed_type {
  typedef T type __attribute__((ext_vector_type(N), aligned(sizeof(T))));
};
#if !defined(SIM_ADDRESS_SPACES)  // where a class could not be read from device memory
template <typename T>
struct sim_packed_three {  // clang's vector of three is as large as one of four
  T x, y, z;
  sim_packed_three() = default;
  SIM_INLINE sim_packed_three(metal::vec<T, 3> from) : x(from.x), y(from.y), z(from.z) {}
  SIM_INLINE operator metal::vec<T, 3>() const { return metal::vec<T, 3>{x, y, z}; }
  SIM_INLINE T& operator[](int i) { return (&x)[i]; }
  SIM_INLINE T operator[](int i) const { return (&x)[i]; }
};
template <typename T>
struct sim_shape<sim_packed_three<T>> {
  typedef T element;
  static constexpr int width = 3;
  static constexpr bool vector = true;
};
template <typename T>
struct sim_packed_type<T, 3> {
  typedef sim_packed_three<T> type;
};
#endif
template <typename T, int N>
using sim_packed = typename sim_packed_type<T, N>::type;
#define SIM_PACKED(T)                    \
  typedef sim_packed<T, 2> packed_##T##2; \
  typedef sim_packed<T, 3> packed_##T##3; \
  typedef sim_packed<T, 4> packed_##T##4;
SIM_PACKED(char)
SIM_PACKED(uchar)
SIM_PACKED(short)
SIM_PACKED(ushort)
SIM_PACKED(int)
SIM_PACKED(uint)
SIM_PACKED(half)
SIM_PACKED(float)

SIM_INLINE constexpr half operator""_h(long double value) { return static_cast<half>(value); }
SIM_INLINE constexpr half operator""h(long double value) { return static_cast<half>(value); }
SIM_INLINE constexpr half operator""h(unsigned long long value) { return static_cast<half>(value); }

#define INFINITY __builtin_inff()
#define NAN __builtin_nanf("")
#define MAXFLOAT 3.402823466e+38f
#define FLT_MAX 3.402823466e+38f
#define FLT_MIN 1.175494351e-38f
#define FLT_EPSILON 1.192092896e-07f
#define HALF_MAX 65504.0h
#define HALF_MIN 6.103515625e-5h
#define HALF_EPSILON 9.765625e-4h
#define INT_MAX 2147483647
#define INT_MIN (-INT_MAX - 1)
#define UINT_MAX 4294967295u
#define M_PI_F 3.14159265358979323846f
#define M_PI_2_F 1.57079632679489661923f
#define M_1_PI_F 0.31830988618379067154f
#define M_2_PI_F 0.63661977236758134308f
#define M_E_F 2.71828182845904523536f
#define M_LOG2E_F 1.44269504088896340736f
#define M_LN2_F 0.69314718055994530942f
#define M_SQRT2_F 1.41421356237309504880f
