// Stands before MLX's header of this name, whose constructors differ by address space only.
#pragma once
#include <metal_stdlib>

template <typename T>
struct complex_t {
  typedef T value_type;
  T real, imag;
  constexpr complex_t() : real(0), imag(0) {}
  constexpr complex_t(T re, T im) : real(re), imag(im) {}
  template <typename U, typename = metal::enable_if_t<metal::is_convertible_v<U, T>>>
  constexpr complex_t(U re) : real(static_cast<T>(re)), imag(0) {}
  constexpr complex_t operator-() const { return {-real, -imag}; }
  constexpr complex_t operator+(complex_t b) const { return {real + b.real, imag + b.imag}; }
  constexpr complex_t operator-(complex_t b) const { return {real - b.real, imag - b.imag}; }
  constexpr complex_t operator*(complex_t b) const {
    return {real * b.real - imag * b.imag, real * b.imag + imag * b.real};
  }
  constexpr bool operator==(complex_t b) const { return real == b.real && imag == b.imag; }
};
typedef complex_t<float> complex64_t;
