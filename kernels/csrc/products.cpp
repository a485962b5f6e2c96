// The three products of a linear layer: x W^T + bias, and the gradients by x and by W.
//
// All are sums of outer products in registers: a tile of `rows` x WIDTH numbers takes one number
// per row and one row of WIDTH numbers at each step. Weights are read once. What a tile reads again
// and again lies side by side, and what the next piece reads is asked for ahead. Work is cut by
// genes alone, so that the number of threads changes no sum.
#include "pieces.h"
#include "transpose.h"

namespace fastvae {
namespace FASTVAE_ISA {
namespace {

// As many accumulators as the registers hold beside a row and one factor.
#ifdef __AVX512F__
constexpr int COLUMNS = 4;
#else
constexpr int COLUMNS = 1;
#endif
constexpr int TALL = 6;                     // rows of a tile
constexpr int64_t WIDTH = COLUMNS * LANES;  // columns of a tile
constexpr int64_t SLICE = 256;              // steps that are summed in registers
constexpr int64_t STEPS = 128;              // cells in the gradient by W
constexpr int64_t GENES = 8 * TALL;         // genes in one piece of the gradient by W
constexpr int64_t MANY = 16;                // pieces for which x is laid out once
constexpr int64_t SLABS = 16;               // partial sums of the gradient by x, at most
constexpr int64_t SLAB_GENES = 2 * SLICE;   // genes in one, at least

// Factors of a sum over steps: left(i, k) = a[i a_row + k a_step], right(k) = b[k b_step ...].
struct Factors {
    const float* a;
    int64_t a_row, a_step;
    const float* b;
    int64_t b_step, steps;
};

// Where a tile goes: c[i stride ...], `width` columns of it; added to what is there or to `base`.
struct Result {
    float* c;
    int64_t stride, width;
    bool add;
    const float* base;  // WIDTH numbers, or NULL
};

template <int ROWS>
FASTVAE_INLINE void tile(const Factors& f, const Result& result) {
    Vector sum[ROWS][COLUMNS] = {};
    const float *a = f.a, *b = f.b;
    for (int64_t k = 0; k < f.steps; ++k, a += f.a_step, b += f.b_step) {
        Vector row[COLUMNS];
        for (int j = 0; j < COLUMNS; ++j) row[j] = load(b + j * LANES);
        for (int i = 0; i < ROWS; ++i) {
            const float factor = a[i * f.a_row];
            for (int j = 0; j < COLUMNS; ++j) sum[i][j] += factor * row[j];
        }
    }
    if (result.base) {
        Vector base[COLUMNS];
        for (int j = 0; j < COLUMNS; ++j) base[j] = load(result.base + j * LANES);
        EVERY for (int i = 0; i < ROWS; ++i)
            EVERY for (int j = 0; j < COLUMNS; ++j) sum[i][j] += base[j];
    }
    if (result.width == WIDTH && result.add) {
        EVERY for (int i = 0; i < ROWS; ++i)
            EVERY for (int j = 0; j < COLUMNS; ++j)
                store(load(result.c + i * result.stride + j * LANES) + sum[i][j],
                      result.c + i * result.stride + j * LANES);
        return;
    }
    if (result.width == WIDTH) {
        EVERY for (int i = 0; i < ROWS; ++i)
            EVERY for (int j = 0; j < COLUMNS; ++j)
                store(sum[i][j], result.c + i * result.stride + j * LANES);
        return;
    }
    EVERY for (int i = 0; i < ROWS; ++i) {
        float* c = result.c + i * result.stride;
        float whole[WIDTH];
        for (int j = 0; j < COLUMNS; ++j) store(sum[i][j], whole + j * LANES);
        for (int64_t j = 0; j < result.width; ++j) c[j] = result.add ? c[j] + whole[j] : whole[j];
    }
}

// A strip of tiles, one below the other.
void strip(Factors f, Result result, int64_t rows, Soon soon = {}) {
    const int64_t share = pieces_of(pieces_of(TALL, rows), soon.rows);
    for (; rows >= TALL; rows -= TALL) {
        fetch(soon, share);
        tile<TALL>(f, result);
        f.a += TALL * f.a_row;
        result.c += TALL * result.stride;
    }
    switch (rows) {
        case 5: return tile<5>(f, result);
        case 4: return tile<4>(f, result);
        case 3: return tile<3>(f, result);
        case 2: return tile<2>(f, result);
        case 1: return tile<1>(f, result);
        default: return;
    }
}

// Rows of WIDTH numbers, with zeros where the matrix is narrower than that.
const float* padded_rows(const float* from, int64_t stride, int64_t rows, int64_t width,
                         float* to) {
    for (int64_t i = 0; i < rows; ++i, from += stride) {
        float* row = to + i * WIDTH;
        if (width == WIDTH) {
            for (int64_t j = 0; j < WIDTH; j += LANES) store(load(from + j), row + j);
        } else {
            for (int64_t j = 0; j < WIDTH; ++j) row[j] = j < width ? from[j] : 0.0f;
        }
    }
    return to;
}

const float* grad_of(const FastvaeProduct& call) { return static_cast<const float*>(call.grad); }

// Genes g .. g + genes of every row of the upstream gradient from `begin` on, side by side, and
// their sums over the rows.
void gather_genes(const FastvaeProduct& call, int64_t begin, int64_t rows, int64_t g,
                  int64_t genes, float* to, float* sums) {
    Vector sum[GENES / LANES] = {};
    for (int64_t n = 0; n < rows; ++n) {
        const float* from = grad_of(call) + (begin + n) * call.g + g;
        float* row = to + n * GENES;
        if (genes == GENES) {
            for (int64_t j = 0; j < GENES; j += LANES) store(load(from + j), row + j);
        } else {
            for (int64_t j = 0; j < GENES; ++j) row[j] = j < genes ? from[j] : 0.0f;
        }
        for (int64_t j = 0; j < GENES / LANES; ++j) sum[j] += load(row + j * LANES);
    }
    for (int64_t j = 0; j < GENES / LANES; ++j)
        store(load(sums + j * LANES) + sum[j], sums + j * LANES);
}

}  // namespace

void layer(const FastvaeProduct& call) {
    in_runs(pieces_of(WIDTH, call.g), call.threads, [&](int64_t piece, bool more) {
        const int64_t g = piece * WIDTH, width = at_most(WIDTH, g, call.g);
        float* rows = piece_memory((call.h + 1) * WIDTH);
        float* base = rows + call.h * WIDTH;
        if (width < WIDTH)
            for (int64_t i = 0; i < call.h * WIDTH; ++i) rows[i] = 0.0f;
        transpose(call.weight + g * call.h, call.h, rows, WIDTH, width, call.h);
        for (int64_t j = 0; j < WIDTH; ++j) base[j] = call.bias && j < width ? call.bias[g + j] : 0.0f;
        Soon soon;
        if (more)
            soon = soon_rows(call.weight + (g + WIDTH) * call.h, at_most(WIDTH, g + WIDTH, call.g),
                             call.h, call.h);
        for (int64_t h = 0; h < call.h; h += SLICE) {
            const int64_t steps = at_most(SLICE, h, call.h);
            const Factors f = {call.x + h, call.h, 1, rows + h * WIDTH, WIDTH, steps};
            strip(f, {static_cast<float*>(call.out) + g, call.g, width, h > 0, h > 0 ? nullptr : base}, call.n,
                  h > 0 ? Soon{} : soon);
        }
    });
}

void layer_weight_grad(const FastvaeProduct& call) {
    const int64_t panels = pieces_of(WIDTH, call.h), bytes = sizeof(float);
    float* all = nullptr;  // x by panels, laid out once where many pieces read it
    if (call.g >= MANY * GENES) {
        all = static_cast<float*>(scratch(OF_CALL, panels * call.n * WIDTH * bytes));
        for (int64_t p = 0; p < panels; ++p)
            padded_rows(call.x + p * WIDTH, call.h, call.n, at_most(WIDTH, p * WIDTH, call.h),
                        all + p * call.n * WIDTH);
    }
    in_runs(pieces_of(GENES, call.g), call.threads, [&](int64_t piece, bool more) {
        const int64_t g = piece * GENES, genes = at_most(GENES, g, call.g);
        float* by_cell = piece_memory(STEPS * (GENES + WIDTH) + GENES);
        float *panel = by_cell + STEPS * GENES, *sums = panel + STEPS * WIDTH;
        for (int64_t j = 0; j < GENES; ++j) sums[j] = 0.0f;
        for (int64_t begin = 0; begin < call.n; begin += STEPS) {
            const int64_t steps = at_most(STEPS, begin, call.n), next = begin + STEPS;
            gather_genes(call, begin, steps, g, genes, by_cell, sums);
            Soon soon;
            if (next < call.n)
                soon = soon_rows(grad_of(call) + next * call.g + g, at_most(STEPS, next, call.n),
                                 call.g, genes);
            else if (more)
                soon = soon_rows(grad_of(call) + g + GENES, at_most(STEPS, 0, call.n), call.g,
                                 at_most(GENES, g + GENES, call.g));
            for (int64_t p = 0; p < panels; ++p) {
                const int64_t h = p * WIDTH, width = at_most(WIDTH, h, call.h);
                const float* x = call.x + begin * call.h + h;
                x = all ? all + (p * call.n + begin) * WIDTH
                        : padded_rows(x, call.h, steps, width, panel);
                const bool add = call.add || begin > 0;
                strip({by_cell, 1, GENES, x, WIDTH, steps},
                      {call.d_weight + g * call.h + h, call.h, width, add, nullptr}, genes,
                      p > 0 ? Soon{} : soon);
            }
        }
        take_bias_sums(call, g, genes, sums);
    });
}

void layer_input_grad(const FastvaeProduct& call) {
    const int64_t most = pieces_of(SLICE, pieces_of(SLABS, call.g)) * SLICE;
    const int64_t slab = most < SLAB_GENES ? SLAB_GENES : most, slabs = pieces_of(slab, call.g);
    const int64_t size = call.n * call.h;
    float* partial = call.d_x;
    if (slabs > 1)
        partial = static_cast<float*>(scratch(OF_CALL, slabs * size * static_cast<int64_t>(sizeof(float))));
    parallel(slabs, call.threads, [&](int64_t piece) {
        const int64_t end = piece * slab + at_most(slab, piece * slab, call.g);
        float* padded = piece_memory(SLICE * WIDTH);
        for (int64_t g = piece * slab; g < end; g += SLICE) {
            const int64_t steps = at_most(SLICE, g, end);
            const bool add = g > piece * slab || (slabs == 1 && call.add);
            for (int64_t h = 0; h < call.h; h += WIDTH) {
                const int64_t width = at_most(WIDTH, h, call.h);
                const float* rows = call.weight + g * call.h + h;
                const bool narrow = width < WIDTH;
                if (narrow) rows = padded_rows(rows, call.h, steps, width, padded);
                const Factors f = {grad_of(call) + g, call.g, 1, rows, narrow ? WIDTH : call.h, steps};
                strip(f, {partial + piece * size + h, call.h, width, add, nullptr}, call.n);
            }
        }
    });
    if (slabs > 1) take_slabs(call, partial, slabs);
}

}  // namespace FASTVAE_ISA
}  // namespace fastvae
