// How the products of a dense layer are cut into pieces and joined, and what is asked for ahead.
#pragma once

#include "parallel.h"
#include "special.h"

namespace fastvae {
namespace FASTVAE_ISA {
namespace {

constexpr int64_t RUN = 8;  // pieces that a thread takes at once, at most

// Unrolled, so that sums stay in registers.
#define EVERY _Pragma("GCC unroll 8")

inline int64_t at_most(int64_t step, int64_t begin, int64_t end) {
    return begin + step < end ? step : end - begin;
}

inline int64_t pieces_of(int64_t step, int64_t n) { return (n + step - 1) / step; }

// Rows that are read soon: they are asked for while a strip is computed. In bytes.
struct Soon {
    const char* at = nullptr;
    int64_t rows = 0, stride = 0, width = 0;
};

// `width` numbers of each of some rows.
template <class Number>
Soon soon_rows(const Number* at, int64_t rows, int64_t stride, int64_t width) {
    constexpr int64_t bytes = sizeof(Number);
    return {reinterpret_cast<const char*>(at), rows, stride * bytes, width * bytes};
}

inline void fetch(Soon& soon, int64_t rows) {
    constexpr int64_t LINE = 64;
    for (; rows > 0 && soon.rows > 0; --rows, --soon.rows, soon.at += soon.stride)
        for (int64_t j = 0; j < soon.width; j += LINE) __builtin_prefetch(soon.at + j, 0, 2);
}

// Pieces in runs: a thread may ask for what the next piece of its run reads. Work(piece, whether
// there is a next one).
template <class Work>
void in_runs(int64_t pieces, int64_t threads, const Work& work) {
    const int64_t fair = pieces / (8 * (threads < 1 ? 1 : threads));
    const int64_t run = fair < 1 ? 1 : fair > RUN ? RUN : fair;
    parallel(pieces_of(run, pieces), threads, [&](int64_t number) {
        const int64_t end = number * run + at_most(run, number * run, pieces);
        for (int64_t piece = number * run; piece < end; ++piece) work(piece, piece + 1 < end);
    });
}

inline float* piece_memory(int64_t numbers) {
    return static_cast<float*>(scratch(OF_PIECE, numbers * static_cast<int64_t>(sizeof(float))));
}

// The gradient by the bias of genes g .. g + genes, from their sums over the cells.
inline void take_bias_sums(const FastvaeProduct& call, int64_t g, int64_t genes, const float* sums) {
    if (!call.d_bias) return;
    for (int64_t j = 0; j < genes; ++j)
        call.d_bias[g + j] = call.add ? call.d_bias[g + j] + sums[j] : sums[j];
}

// The gradient by x, from what slabs of genes give, in their order.
inline void take_slabs(const FastvaeProduct& call, const float* partial, int64_t slabs) {
    const int64_t size = call.n * call.h;
    parallel(call.n, call.threads, [&](int64_t n) {
        for (int64_t i = n * call.h; i < (n + 1) * call.h; ++i) {
            float total = call.add ? call.d_x[i] : 0.0f;
            for (int64_t s = 0; s < slabs; ++s) total += partial[s * size + i];
            call.d_x[i] = total;
        }
    });
}

}  // namespace
}  // namespace FASTVAE_ISA
}  // namespace fastvae
