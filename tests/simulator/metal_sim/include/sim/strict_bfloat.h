// bfloat as Apple's compiler sees it: float and half do not become one without a cast.
//
// For the syntax pass only; the simulated arithmetic is clang's own __bf16.
#pragma once

template <bool C>
struct sim_condition {};
template <>
struct sim_condition<true> {
  typedef int type;
};
template <bool C>
using sim_if = typename sim_condition<C>::type;

struct bfloat {
  ushort bits;
  bfloat() = default;
  explicit constexpr bfloat(float value)
      : bits(static_cast<ushort>(__builtin_bit_cast(uint, value) >> 16)) {}
  explicit constexpr bfloat(half value) : bfloat(static_cast<float>(value)) {}
  template <typename T, typename = sim_if<__is_integral(T)>>
  constexpr bfloat(T value) : bfloat(static_cast<float>(value)) {}
  constexpr operator float() const {
    return __builtin_bit_cast(float, static_cast<uint>(bits) << 16);
  }
  constexpr bfloat operator-() const { return bfloat(-static_cast<float>(*this)); }
  constexpr bfloat operator+() const { return *this; }
};

// bfloat with bfloat or an integer stays bfloat; with float it becomes float, by conversion.
#define SIM_BFLOAT_OPERATOR(OP)                                                               \
  template <typename A, typename B,                                                           \
            typename = sim_if<(__is_same(A, bfloat) && __is_same(B, bfloat)) ||               \
                              (__is_same(A, bfloat) && __is_integral(B)) ||                   \
                              (__is_integral(A) && __is_same(B, bfloat))>>                    \
  constexpr bfloat operator OP(A x, B y) {                                                    \
    return bfloat(static_cast<float>(x) OP static_cast<float>(y));                            \
  }                                                                                           \
  constexpr bfloat& operator OP##=(bfloat& x, bfloat y) { return x = x OP y; }
SIM_BFLOAT_OPERATOR(+)
SIM_BFLOAT_OPERATOR(-)
SIM_BFLOAT_OPERATOR(*)
SIM_BFLOAT_OPERATOR(/)
constexpr bfloat& operator++(bfloat& x) { return x += 1; }

#define SIM_BFLOAT_COMPARISON(OP)                                                             \
  template <typename A, typename B,                                                           \
            typename = sim_if<(__is_same(A, bfloat) && __is_same(B, bfloat)) ||               \
                              (__is_same(A, bfloat) && __is_integral(B)) ||                   \
                              (__is_integral(A) && __is_same(B, bfloat))>>                    \
  constexpr bool operator OP(A x, B y) {                                                      \
    return static_cast<float>(x) OP static_cast<float>(y);                                    \
  }
SIM_BFLOAT_COMPARISON(<)
SIM_BFLOAT_COMPARISON(>)
SIM_BFLOAT_COMPARISON(<=)
SIM_BFLOAT_COMPARISON(>=)
SIM_BFLOAT_COMPARISON(==)
SIM_BFLOAT_COMPARISON(!=)
