// Elementary functions in float32, written so that compilers turn loops over them into vector
// code: no branches, no calls, no tables.
#pragma once

#include <cstdint>
#include <cstring>

#include "kernels.h"

// Polynomials are summed by halves: the loops are bound by how long one entry takes.

// Every instruction set compiles these sources once, each copy in a namespace of its own.
#ifndef FASTVAE_ISA
#define FASTVAE_ISA baseline
#endif

namespace fastvae {
namespace FASTVAE_ISA {

constexpr float LN2 = 0.6931471805599453f;
constexpr float LN2_HIGH = 0.693145751953125f;
constexpr float LN2_LOW = 1.428606765330187e-06f;
constexpr float LOG2E = 1.4426950408889634f;
constexpr float ROUND = 12582912.0f;  // 1.5 2^23: adding it rounds to a whole number
constexpr float HALF_LOG_2PI = 0.9189385332046727f;

// Vectors as wide as the widest instruction set's; compilers split them for the others.
typedef float Vector __attribute__((vector_size(64)));
constexpr int64_t LANES = 16;

FASTVAE_INLINE Vector load(const float* from) {
    Vector v;
    std::memcpy(&v, from, sizeof v);
    return v;
}

FASTVAE_INLINE void store(const Vector& v, float* to) { std::memcpy(to, &v, sizeof v); }

// A NaN in b stays, one in a is lost: bounds come first. (One vector instruction each.)
FASTVAE_INLINE float min(float a, float b) { return a < b ? a : b; }
FASTVAE_INLINE float max(float a, float b) { return b < a ? a : b; }
FASTVAE_INLINE float abs(float a) { return __builtin_fabsf(a); }

FASTVAE_INLINE int32_t bits_of(float x) {
    int32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    return bits;
}

FASTVAE_INLINE float float_of(int32_t bits) {
    float x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
}

// Into the exponent's place; unsigned, where overflow is defined.
FASTVAE_INLINE int32_t shift_left(int32_t bits) {
    return static_cast<int32_t>(static_cast<uint32_t>(bits) << 23);
}

// e^x for x <= 88; 0 below -87.7, where the exponent's bits come out as those of zero.
FASTVAE_INLINE float exp(float x) {
    const float y = max(-88.0f, x);
    const float shifted = y * LOG2E + ROUND;
    const float n = shifted - ROUND;
    const float r = (y - n * LN2_HIGH) - n * LN2_LOW;
    const float y2 = r * r;
    const float p = (0.041666206f + 0.00836889818f * r) + 0.00139505044f * y2;
    const float value = (1.0f + r) + y2 * ((0.5f + 0.166665182f * r) + y2 * p);
    const float scale = float_of(shift_left(bits_of(shifted)) + 0x3F800000);
    return value * scale;
}

// log(1 + e) for 0 <= e <= 1.
FASTVAE_INLINE float log1p_unit(float e) {
    const float y = e * e, y2 = y * y;
    const float low = (-0.499996483f + 0.33321321f * e) + y * (-0.248571575f + 0.191536337f * e);
    const float high = (-0.137537554f + 0.0792039856f * e) + y * (-0.0300654508f + 0.00536473887f * e);
    return e + y * (low + y2 * high);
}

// log(1 + e) - e/(1 + e) for 0 <= e <= 1, without cancellation.
FASTVAE_INLINE float log1p_minus_share(float e) {
    const float y = e * e, y2 = y * y;
    const float low = (0.499999732f - 0.666626453f * e) + y * (0.74891746f - 0.788400888f * e);
    const float high = (0.768369377f - 0.63951093f * e) + y * (0.39967227f - 0.157946199f * e);
    return y * (low + y2 * (high + y2 * 0.0286728665f));
}

// log x for normal x > 0; anything finite elsewhere, also for NaN.
FASTVAE_INLINE float log(float x) {
    const int32_t k = (bits_of(x) - 0x3F3504F3) >> 23;
    const float t = float_of(bits_of(x) - shift_left(k)) - 1.0f;  // x / 2^k in [sqrt(1/2), sqrt(2))
    const float y = t * t;
    const float low = (0.333341658f - 0.250016987f * t) + y * (0.199548706f - 0.165644124f * t);
    const float p = low + (y * y) * ((0.149780363f - 0.143791273f * t) + y * 0.0867221281f);
    const float kf = static_cast<float>(k);
    return kf * LN2_HIGH + (t + (kf * LN2_LOW + y * (p * t - 0.5f)));
}

// log(1 + x) for x >= 0.
FASTVAE_INLINE float log1p(float x) {
    return x <= 1.0f ? log1p_unit(min(x, 1.0f)) : log(1.0f + max(1.0f, x));
}

// log(1 + t) - t for |t| <= 1/2, without cancellation: the atanh series.
FASTVAE_INLINE float log1pmx_near(float t) {
    const float s = t / (2.0f + t);
    const float y = s * s;
    float p = y * 0.268514980228f + 0.282366198053f;
    p = p * y + 0.400075606449f;
    p = p * y + 0.666666403367f;
    return s * (y * p - t);
}

// lgamma(z + 1) - [(z + 1/2) log z - z + log(2 pi)/2] for z > 0, given log z.
FASTVAE_INLINE float stirling_error(float z, float log_z) {
    const bool far = z >= 4.0f;
    const float q = 1.0f / (far ? z : z + 4.0f);
    const float y = q * q;
    const float series = q * ((y * 0.0007936507937f - 0.002777777778f) * y + 0.08333333333f);
    const float near = far ? 1.0f : z;
    const float log_shift = log(near + 4.0f) - (far ? 0.0f : log_z);
    const float inverse = 1.0f / (near + 4.0f);
    const float product = (near + 1.0f) * (near + 2.0f) * (near + 3.0f) * inverse;
    const float shifted = (near + 0.5f) * log_shift - 4.0f - log(product * inverse * inverse);
    return far ? series : series + shifted;
}

// z (digamma(z) - log z) for z > 0, given log z.
FASTVAE_INLINE float z_digamma_minus_log(float z, float log_z) {
    const bool far = z >= 4.0f;
    const float q = 1.0f / (far ? z : z + 4.0f);
    const float y = q * q;
    const float w_phi =
        q * ((y * -0.003968253968f + 0.008333333333f) * y - 0.08333333333f) - 0.5f;
    const float near = far ? 1.0f : z;
    const float log_shift = log(near + 4.0f) - (far ? 0.0f : log_z);
    const float harmonic =
        1.0f / (near + 1.0f) + 1.0f / (near + 2.0f) + 1.0f / (near + 3.0f);
    const float shifted = near * (w_phi * q + log_shift) - 1.0f - near * harmonic;
    return far ? w_phi : shifted;
}

}  // namespace FASTVAE_ISA
}  // namespace fastvae
