// Type queries: the simulator's own (sim_*) and the part of metal_type_traits that kernels use.
#pragma once

template <typename T>
struct sim_shape {
  typedef T element;
  static constexpr int width = 1;
  static constexpr bool vector = false;
};
template <typename T, int N>
struct sim_shape<T __attribute__((ext_vector_type(N)))> {
  typedef T element;
  static constexpr int width = N;
  static constexpr bool vector = true;
};
template <typename T>
using sim_element = typename sim_shape<T>::element;
template <typename T>
constexpr int sim_width = sim_shape<T>::width;
template <typename T>
constexpr bool sim_is_vector = sim_shape<T>::vector;

namespace metal {
template <typename T, T V>
struct integral_constant {
  static constexpr constant T value = V;
  typedef T value_type;
  typedef integral_constant type;
  constexpr operator T() const { return V; }
};
template <bool V>
using bool_constant = integral_constant<bool, V>;
typedef bool_constant<true> true_type;
typedef bool_constant<false> false_type;

template <bool C, typename T = void>
struct enable_if {};
template <typename T>
struct enable_if<true, T> {
  typedef T type;
};
template <bool C, typename T = void>
using enable_if_t = typename enable_if<C, T>::type;
template <bool C, typename A, typename B>
struct conditional {
  typedef A type;
};
template <typename A, typename B>
struct conditional<false, A, B> {
  typedef B type;
};
template <bool C, typename A, typename B>
using conditional_t = typename conditional<C, A, B>::type;

template <typename A, typename B>
struct is_same : bool_constant<__is_same(A, B)> {};
template <typename A, typename B>
constexpr constant bool is_same_v = __is_same(A, B);
template <typename A, typename B>
struct is_convertible : bool_constant<__is_convertible(A, B)> {};
template <typename A, typename B>
constexpr constant bool is_convertible_v = __is_convertible(A, B);

template <typename T>
using remove_cv_t = __remove_cv(T);
template <typename T>
using remove_reference_t = __remove_reference_t(T);
template <typename T>
using make_unsigned_t = __make_unsigned(T);
template <typename T>
using make_signed_t = __make_signed(T);
template <typename T>
using make_scalar_t = sim_element<T>;
template <typename T>
struct make_scalar {
  typedef sim_element<T> type;
};

template <typename T>
constexpr constant bool is_integral_v = __is_integral(T);
template <typename T>
struct is_integral : bool_constant<__is_integral(T)> {};
template <typename T>
constexpr constant bool is_floating_point_v =
    __is_same(T, float) || __is_same(T, half) || __is_same(T, bfloat);
template <typename T>
struct is_floating_point : bool_constant<is_floating_point_v<T>> {};
template <typename T>
constexpr constant bool is_unsigned_v = __is_unsigned(T);
template <typename T>
constexpr constant bool is_signed_v = is_floating_point_v<T> || __is_signed(T);
template <typename T>
constexpr constant bool is_arithmetic_v = is_integral_v<T> || is_floating_point_v<T>;

template <typename T>
struct numeric_limits;
#define SIM_INTEGER_LIMITS(T, MIN, MAX)                      \
  template <>                                                \
  struct numeric_limits<T> {                                 \
    static constexpr T min() { return static_cast<T>(MIN); } \
    static constexpr T max() { return static_cast<T>(MAX); } \
    static constexpr T lowest() { return min(); }            \
    static constexpr constant bool is_integer = true;        \
    static constexpr constant int digits = sizeof(T) * 8 - (static_cast<T>(-1) < 0); \
  };
SIM_INTEGER_LIMITS(bool, 0, 1)
SIM_INTEGER_LIMITS(char, -128, 127)
SIM_INTEGER_LIMITS(signed char, -128, 127)
SIM_INTEGER_LIMITS(unsigned char, 0, 255)
SIM_INTEGER_LIMITS(short, -32768, 32767)
SIM_INTEGER_LIMITS(unsigned short, 0, 65535)
SIM_INTEGER_LIMITS(int, -2147483647 - 1, 2147483647)
SIM_INTEGER_LIMITS(unsigned int, 0, 4294967295u)
SIM_INTEGER_LIMITS(long, -9223372036854775807l - 1, 9223372036854775807l)
SIM_INTEGER_LIMITS(unsigned long, 0, 18446744073709551615ul)

#define SIM_FLOAT_LIMITS(T, BITS, MIN, MAX, EPSILON, INF, QNAN)                \
  template <>                                                                  \
  struct numeric_limits<T> {                                                   \
    static constexpr T from(BITS bits) { return __builtin_bit_cast(T, bits); } \
    static constexpr T min() { return from(MIN); }                             \
    static constexpr T max() { return from(MAX); }                             \
    static constexpr T lowest() { return -from(MAX); }                         \
    static constexpr T epsilon() { return from(EPSILON); }                     \
    static constexpr T infinity() { return from(INF); }                        \
    static constexpr T quiet_NaN() { return from(QNAN); }                      \
    static constexpr constant bool is_integer = false;                         \
  };
SIM_FLOAT_LIMITS(float, uint, 0x00800000, 0x7F7FFFFF, 0x34000000, 0x7F800000, 0x7FC00000)
SIM_FLOAT_LIMITS(half, ushort, 0x0400, 0x7BFF, 0x1400, 0x7C00, 0x7E00)
SIM_FLOAT_LIMITS(bfloat, ushort, 0x0080, 0x7F7F, 0x3C00, 0x7F80, 0x7FC0)
}  // namespace metal
