// The first layer on CSR counts: weighted sums of rows of W^T, and the gradient by W.
//
// Both walk the genes in blocks, so that what belongs to a block of genes and a tile of hidden
// units stays in the nearest cache. A number is always summed by one thread and in the order of
// the genes or cells: threads change no result.
#include "pieces.h"
#include "transpose.h"

namespace fastvae {
namespace FASTVAE_ISA {
namespace {

constexpr int64_t GENES = 128;  // genes in a block
constexpr int64_t UNITS = 64;   // hidden units in a tile
constexpr int64_t ROWS = 128;   // cells in one piece of the forward work
constexpr int64_t FEW = 16;     // cells whose entries one thread looks through at once

int64_t count_blocks(const FastvaeLinear& call) { return (call.g + GENES - 1) / GENES; }

// Where the entries of each block of genes begin in each row, counted from the row's first:
// starts[n][block], with one block past the last.
const int32_t* find_blocks(const FastvaeLinear& call) {
    const int64_t blocks = count_blocks(call);
    int32_t* starts =
        static_cast<int32_t*>(scratch(OF_CALL, call.n * (blocks + 1) * sizeof(int32_t)));
    parallel((call.n + FEW - 1) / FEW, call.threads, [&](int64_t piece) {
        const int64_t end = (piece + 1) * FEW < call.n ? (piece + 1) * FEW : call.n;
        for (int64_t n = piece * FEW; n < end; ++n) {
            int32_t* start = starts + n * (blocks + 1);
            const int64_t from = row_start(call.x, n), until = row_start(call.x, n + 1);
            int64_t i = from;
            for (int64_t block = 0; block <= blocks; ++block) {
                while (i < until && column(call.x, i) < block * GENES) ++i;
                start[block] = static_cast<int32_t>(i - from);
            }
        }
    });
    return starts;
}

// to[h] += sum over the entries from..until of x * rows[column - first][h].
FASTVAE_INLINE void add_rows(const FastvaeCounts& x, int64_t from, int64_t until, int64_t first,
                             const float* rows, float* to) {
    Vector a = load(to), b = load(to + LANES), c = load(to + 2 * LANES), d = load(to + 3 * LANES);
    for (int64_t i = from; i < until; ++i) {
        const float* row = rows + (column(x, i) - first) * UNITS;
        const float value = x.values[i];
        a += value * load(row);
        b += value * load(row + LANES);
        c += value * load(row + 2 * LANES);
        d += value * load(row + 3 * LANES);
    }
    store(a, to);
    store(b, to + LANES);
    store(c, to + 2 * LANES);
    store(d, to + 3 * LANES);
}

// rows[column - first][h] += x * grad[h] for the entries from..until.
FASTVAE_INLINE void spread(const FastvaeCounts& x, int64_t from, int64_t until, int64_t first,
                           const float* grad, float* rows) {
    const Vector a = load(grad), b = load(grad + LANES);
    const Vector c = load(grad + 2 * LANES), d = load(grad + 3 * LANES);
    for (int64_t i = from; i < until; ++i) {
        float* row = rows + (column(x, i) - first) * UNITS;
        const float value = x.values[i];
        store(load(row) + value * a, row);
        store(load(row + LANES) + value * b, row + LANES);
        store(load(row + 2 * LANES) + value * c, row + 2 * LANES);
        store(load(row + 3 * LANES) + value * d, row + 3 * LANES);
    }
}

}  // namespace

void linear(const FastvaeLinear& call) {
    const int64_t blocks = count_blocks(call), tiles = (call.h + UNITS - 1) / UNITS;
    const int32_t* starts = find_blocks(call);
    parallel(tiles * ((call.n + ROWS - 1) / ROWS), call.threads, [&](int64_t piece) {
        const int64_t h = piece % tiles * UNITS, width = at_most(UNITS, h, call.h);
        const int64_t begin = piece / tiles * ROWS, rows = at_most(ROWS, begin, call.n);
        float* by_gene =
            static_cast<float*>(scratch(OF_PIECE, (GENES + ROWS) * UNITS * sizeof(float)));
        float* sums = by_gene + GENES * UNITS;
        for (int64_t n = 0; n < rows; ++n)
            for (int64_t i = 0; i < UNITS; ++i)
                sums[n * UNITS + i] = call.bias && i < width ? call.bias[h + i] : 0.0f;
        for (int64_t block = 0; block < blocks; ++block) {
            const int64_t g = block * GENES;
            transpose(call.weight + h * call.weight_stride + g, call.weight_stride, by_gene, UNITS,
                      width, at_most(GENES, g, call.g));
            Soon soon;
            if (block + 1 < blocks)
                soon = soon_rows(call.weight + h * call.weight_stride + g + GENES, width,
                                 call.weight_stride, at_most(GENES, g + GENES, call.g));
            for (int64_t n = 0; n < rows; ++n) {
                fetch(soon, 1);
                const int32_t* start = starts + (begin + n) * (blocks + 1) + block;
                const int64_t from = row_start(call.x, begin + n);
                add_rows(call.x, from + start[0], from + start[1], g, by_gene, sums + n * UNITS);
            }
        }
        for (int64_t n = 0; n < rows; ++n)
            for (int64_t i = 0; i < width; ++i)
                call.out[(begin + n) * call.h + h + i] = sums[n * UNITS + i];
    });
}

void linear_weight_grad(const FastvaeLinear& call) {
    const int64_t blocks = count_blocks(call), tiles = (call.h + UNITS - 1) / UNITS;
    const int32_t* starts = find_blocks(call);
    parallel(tiles * blocks, call.threads, [&](int64_t piece) {
        const int64_t h = piece / blocks * UNITS, width = at_most(UNITS, h, call.h);
        const int64_t block = piece % blocks, g = block * GENES;
        const int64_t genes = at_most(GENES, g, call.g);
        float* rows = static_cast<float*>(scratch(OF_PIECE, GENES * UNITS * sizeof(float)));
        for (int64_t i = 0; i < genes * UNITS; ++i) rows[i] = 0.0f;
        float* to = call.d_weight + h * call.d_weight_stride + g;
        Soon soon = soon_rows(to, width, call.d_weight_stride, genes);  // it is written soon
        for (int64_t n = 0; n < call.n; ++n) {
            fetch(soon, 1);
            const int32_t* start = starts + n * (blocks + 1) + block;
            const int64_t from = row_start(call.x, n);
            if (start[0] == start[1]) continue;
            float padded[UNITS] = {};
            const float* grad = call.grad + n * call.h + h;
            if (width < UNITS) {
                for (int64_t i = 0; i < width; ++i) padded[i] = grad[i];
                grad = padded;
            }
            spread(call.x, from + start[0], from + start[1], g, grad, rows);
        }
        transpose(rows, UNITS, to, call.d_weight_stride, genes, width);
    });
}

}  // namespace FASTVAE_ISA
}  // namespace fastvae
