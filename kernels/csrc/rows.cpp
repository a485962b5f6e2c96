// The C functions that walk over CSR rows: checks, sums and copies, bound by memory alone.
#include <cstdint>
#include <cstring>

#include "kernels.h"

namespace fastvae {
namespace {

template <class Index>
int32_t check(const FastvaeCounts& x, int64_t n, int64_t g, int64_t stored) {
    const Index* crow = static_cast<const Index*>(x.crow);
    const Index* col = static_cast<const Index*>(x.col);
    if (crow[0] != 0 || crow[n] != stored) return 1;
    for (int64_t i = 0; i < n; ++i)
        if (crow[i + 1] < crow[i] || crow[i + 1] > stored) return 1;
    for (int64_t row = 0; row < n; ++row) {
        int64_t before = -1;
        bool increase = true;
        for (int64_t i = crow[row]; i < crow[row + 1]; ++i) {
            if (col[i] < 0 || col[i] >= g) return 2;
            increase &= col[i] > before;
            before = col[i];
        }
        if (!increase) return 3;
    }
    return 0;
}

void gather(const FastvaeCounts& from, const int64_t* rows, int64_t first, int64_t last,
            const int32_t* crow, int32_t* col, float* values) {
    constexpr int64_t AHEAD = 4;  // rows lie anywhere in memory: their beginnings are asked for early
    for (int64_t i = first; i < last; ++i) {
        if (i + AHEAD < last) {
            const int64_t next = row_start(from, rows[i + AHEAD]);
            const int64_t bytes = from.wide_indices ? 8 : 4;
            __builtin_prefetch(static_cast<const char*>(from.col) + next * bytes);
            __builtin_prefetch(from.values + next);
        }
        const int64_t begin = row_start(from, rows[i]), stored = crow[i + 1] - crow[i];
        if (from.wide_indices)
            for (int64_t j = 0; j < stored; ++j)
                col[crow[i] + j] = static_cast<int32_t>(column(from, begin + j));
        else
            std::memcpy(col + crow[i], static_cast<const int32_t*>(from.col) + begin, 4 * stored);
        std::memcpy(values + crow[i], from.values + begin, 4 * stored);
    }
}

}  // namespace
}  // namespace fastvae

extern "C" {

// 0, or what is wrong: 1 row pointers, 2 a column outside, 3 columns that do not increase.
int32_t fastvae_check_csr(const FastvaeCounts* x, int64_t n, int64_t g, int64_t stored) {
    return x->wide_indices ? fastvae::check<int64_t>(*x, n, g, stored)
                           : fastvae::check<int32_t>(*x, n, g, stored);
}

// Sum of each CSR row, in double.
void fastvae_row_sums(const FastvaeCounts* x, int64_t n, float* out) {
    for (int64_t row = 0; row < n; ++row) {
        constexpr int64_t PARTS = 4;  // one addition waits for the one before
        double part[PARTS] = {};
        const int64_t begin = fastvae::row_start(*x, row), end = fastvae::row_start(*x, row + 1);
        int64_t i = begin;
        for (; i + PARTS <= end; i += PARTS)
            for (int64_t j = 0; j < PARTS; ++j) part[j] += static_cast<double>(x->values[i + j]);
        for (; i < end; ++i) part[0] += static_cast<double>(x->values[i]);
        out[row] = static_cast<float>((part[0] + part[1]) + (part[2] + part[3]));
    }
}

// Copies CSR rows to where crow (n + 1) says; the caller has checked the row numbers.
void fastvae_gather(const FastvaeCounts* from, const int64_t* rows, int64_t n,
                    const int32_t* crow, int32_t* col, float* values, int32_t threads) {
    threads = fastvae::usable_threads(threads);
#ifdef _OPENMP
    if (threads > 1) {
#pragma omp parallel for schedule(static, 1) num_threads(threads)
        for (int32_t part = 0; part < threads; ++part)
            fastvae::gather(*from, rows, n * part / threads, n * (part + 1) / threads, crow, col,
                            values);
        return;
    }
#endif
    fastvae::gather(*from, rows, 0, n, crow, col, values);
}

}  // extern "C"
