// Transposes of small matrices in registers.
#pragma once

#include "special.h"

namespace fastvae {
namespace FASTVAE_ISA {

// Tiles are kept in local vectors, because compilers leave arrays in memory.

#ifdef __clang__
#define FASTVAE_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
typedef int32_t Order __attribute__((vector_size(64)));
#define FASTVAE_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, Order{__VA_ARGS__})
#endif

// One stage of a 16 x 16 transpose: exchanges the off-diagonal quarters of every square of side
// 2 K, where LOW and HIGH pick the halves of two rows.
#define FASTVAE_EXCHANGE(K, LOW, HIGH)                        \
    for (int64_t i = 0; i < LANES; ++i)                       \
        if (!(i & K)) {                                       \
            const Vector a = v[i], b = v[i + K];              \
            v[i] = FASTVAE_SHUFFLE(a, b, LOW);                \
            v[i + K] = FASTVAE_SHUFFLE(a, b, HIGH);           \
        }
#define FASTVAE_LOW_8 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23
#define FASTVAE_HIGH_8 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31
#define FASTVAE_LOW_4 0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27
#define FASTVAE_HIGH_4 4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31
#define FASTVAE_LOW_2 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29
#define FASTVAE_HIGH_2 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31
#define FASTVAE_LOW_1 0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30
#define FASTVAE_HIGH_1 1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11, 27, 13, 29, 15, 31

static inline void transpose_square(const float* from, int64_t from_stride, float* to, int64_t to_stride) {
    Vector v[LANES];
    for (int64_t i = 0; i < LANES; ++i) v[i] = load(from + i * from_stride);
    FASTVAE_EXCHANGE(8, FASTVAE_LOW_8, FASTVAE_HIGH_8)
    FASTVAE_EXCHANGE(4, FASTVAE_LOW_4, FASTVAE_HIGH_4)
    FASTVAE_EXCHANGE(2, FASTVAE_LOW_2, FASTVAE_HIGH_2)
    FASTVAE_EXCHANGE(1, FASTVAE_LOW_1, FASTVAE_HIGH_1)
    for (int64_t i = 0; i < LANES; ++i) store(v[i], to + i * to_stride);
}

// (rows, columns) to (columns, rows).
static inline void transpose(const float* from, int64_t from_stride, float* to, int64_t to_stride, int64_t rows,
               int64_t columns) {
    for (int64_t r = 0; r < rows; r += LANES)
        for (int64_t c = 0; c < columns; c += LANES) {
            if (r + LANES <= rows && c + LANES <= columns) {
                transpose_square(from + r * from_stride + c, from_stride, to + c * to_stride + r,
                                 to_stride);
                continue;
            }
            for (int64_t j = c; j < columns && j < c + LANES; ++j)
                for (int64_t i = r; i < rows && i < r + LANES; ++i)
                    to[j * to_stride + i] = from[i * from_stride + j];
        }
}

}  // namespace FASTVAE_ISA
}  // namespace fastvae
