// The first layer on CSR counts: weighted sums of rows of W^T, and the gradient by W.
//
// Work is cut by genes where W is read or written, so that no two threads write the same number
// and every sum has one order.
#include "parallel.h"

namespace fastvae {
namespace FASTVAE_ISA {
namespace {

constexpr int64_t UNITS = 64;  // hidden units summed in registers at once
constexpr int64_t ROWS = 8;    // cells that one piece of work holds

int64_t index(const void* at, bool wide, int64_t i) {
    return wide ? static_cast<const int64_t*>(at)[i] : static_cast<const int32_t*>(at)[i];
}

// (rows, columns) to (columns, rows), a tile at a time.
void transpose(const float* from, int64_t from_stride, float* to, int64_t to_stride, int64_t rows,
               int64_t columns) {
    constexpr int64_t TILE = 16;
    for (int64_t r = 0; r < rows; r += TILE)
        for (int64_t c = 0; c < columns; c += TILE) {
            const int64_t r_end = r + TILE < rows ? r + TILE : rows;
            const int64_t c_end = c + TILE < columns ? c + TILE : columns;
            for (int64_t j = c; j < c_end; ++j)
                for (int64_t i = r; i < r_end; ++i)
                    to[j * to_stride + i] = from[i * from_stride + j];
        }
}

// out[0..width) = bias + sum of x[i] W^T[col[i]], for `width` units from unit `first`.
template <class Index, int64_t WIDTH>
void gather_units(const FastvaeLinear& call, const float* by_gene, int64_t n, int64_t first,
                  int64_t width, int64_t from, int64_t until) {
    float total[WIDTH];
    for (int64_t h = 0; h < width; ++h) total[h] = call.bias ? call.bias[first + h] : 0.0f;
    const Index* col = static_cast<const Index*>(call.x.col);
    for (int64_t i = from; i < until; ++i) {
        const float x = call.x.values[i];
        const float* w = by_gene + static_cast<int64_t>(col[i]) * call.h + first;
        if (width == WIDTH) {
#pragma omp simd
            for (int64_t h = 0; h < WIDTH; ++h) total[h] += x * w[h];
        } else {
#pragma omp simd
            for (int64_t h = 0; h < width; ++h) total[h] += x * w[h];
        }
    }
    float* out = call.out + n * call.h + first;
    for (int64_t h = 0; h < width; ++h) out[h] = total[h];
}

template <class Index>
void gather_rows(const FastvaeLinear& call, const float* by_gene) {
    parallel((call.n + ROWS - 1) / ROWS, call.threads, [&](int64_t piece, int) {
        const int64_t end = (piece + 1) * ROWS < call.n ? (piece + 1) * ROWS : call.n;
        const Index* crow = static_cast<const Index*>(call.x.crow);
        for (int64_t n = piece * ROWS; n < end; ++n)
            for (int64_t first = 0; first < call.h; first += UNITS) {
                const int64_t width = first + UNITS < call.h ? UNITS : call.h - first;
                gather_units<Index, UNITS>(call, by_gene, n, first, width, crow[n], crow[n + 1]);
            }
    });
}

}  // namespace

void linear(const FastvaeLinear& call) {
    const float* by_gene = call.weight;
    if (!call.column_major) {
        float* copy = static_cast<float*>(call.workspace);
        parallel(linear_pieces(call.g), call.threads, [&](int64_t piece, int) {
            const int64_t g = piece * GENES;
            const int64_t genes = g + GENES < call.g ? GENES : call.g - g;
            transpose(call.weight + g, call.g, copy + g * call.h, call.h, call.h, genes);
        });
        by_gene = copy;
    }
    if (call.x.wide_indices)
        gather_rows<int64_t>(call, by_gene);
    else
        gather_rows<int32_t>(call, by_gene);
}

void linear_weight_grad(const FastvaeLinear& call) {
    const int64_t pieces = linear_pieces(call.g);
    float* sums = static_cast<float*>(call.workspace);
    // where each piece's entries begin, counted from the row's first: starts[n][piece]
    int32_t* starts = reinterpret_cast<int32_t*>(sums + call.threads * GENES * call.h);
    const bool wide = call.x.wide_indices;
    parallel((call.n + ROWS - 1) / ROWS, call.threads, [&](int64_t block, int) {
        const int64_t end = (block + 1) * ROWS < call.n ? (block + 1) * ROWS : call.n;
        for (int64_t n = block * ROWS; n < end; ++n) {
            int32_t* start = starts + n * (pieces + 1);
            const int64_t from = index(call.x.crow, wide, n);
            const int64_t until = index(call.x.crow, wide, n + 1);
            int64_t i = from;
            for (int64_t piece = 0; piece <= pieces; ++piece) {
                while (i < until && index(call.x.col, wide, i) < piece * GENES) ++i;
                start[piece] = static_cast<int32_t>(i - from);
            }
        }
    });
    parallel(pieces, call.threads, [&](int64_t piece, int thread) {
        const int64_t g = piece * GENES;
        const int64_t genes = g + GENES < call.g ? GENES : call.g - g;
        // W column-major: the piece of the result is one stretch of memory
        float* part = call.column_major ? call.d_weight + g * call.h
                                        : sums + thread * GENES * call.h;
        for (int64_t i = 0; i < genes * call.h; ++i) part[i] = 0.0f;
        for (int64_t n = 0; n < call.n; ++n) {
            const int32_t* start = starts + n * (pieces + 1) + piece;
            const int64_t from = index(call.x.crow, wide, n);
            const float* grad = call.grad + n * call.h;
            for (int64_t i = from + start[0]; i < from + start[1]; ++i) {
                const float x = call.x.values[i];
                float* to = part + (index(call.x.col, wide, i) - g) * call.h;
#pragma omp simd
                for (int64_t h = 0; h < call.h; ++h) to[h] += x * grad[h];
            }
        }
        if (!call.column_major)
            transpose(part, call.h, call.d_weight + g, call.g, genes, call.h);
    });
}

}  // namespace FASTVAE_ISA
}  // namespace fastvae
