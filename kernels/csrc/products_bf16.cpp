// The three products of a linear layer in bfloat16, for processors that multiply pairs of it.
//
// Cut as in products.cpp. x and weights are float and are rounded as they are laid out; what has N
// rows of G numbers is bfloat16 in memory. Two steps of a sum make one instruction: factors lie in
// pairs, one step in the lower half of 32 bits and the next one in the upper half, zeros where
// there is no next one. Sums are float.
#include <immintrin.h>

#include "pieces.h"
#include "transpose.h"

namespace fastvae {
namespace FASTVAE_ISA {
namespace {

constexpr int COLUMNS = 4;
constexpr int TALL = 6;                     // rows of a tile
constexpr int64_t WIDTH = COLUMNS * LANES;  // columns of a tile
constexpr int64_t SLICE = 256;              // genes that are summed in registers
constexpr int64_t STEPS = 128;              // cells in the gradient by W
constexpr int64_t GENES = 8 * TALL;         // genes in one piece of the gradient by W
constexpr int64_t SLABS = 16;               // partial sums of the gradient by x, at most
constexpr int64_t SLAB_GENES = 2 * SLICE;   // genes in one, at least

typedef uint32_t Pair;

int64_t pairs_of(int64_t steps) { return (steps + 1) / 2; }

Pair* pairs_in(Scratch which, int64_t numbers) {
    return static_cast<Pair*>(scratch(which, numbers * static_cast<int64_t>(sizeof(Pair))));
}

// The first `left` of 16 lanes.
__mmask16 lanes(int64_t left) {
    return static_cast<__mmask16>(left >= LANES ? 0xFFFF : left <= 0 ? 0 : (1 << left) - 1);
}

__m512i bf16(__m512 x) {
    return _mm512_cvtepu16_epi32(reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(x)));
}

__m512i paired(__m512i low, __m512i high) { return _mm512_or_si512(low, _mm512_slli_epi32(high, 16)); }

__m512 low_of(__m512i pair) { return _mm512_castsi512_ps(_mm512_slli_epi32(pair, 16)); }

__m512 high_of(__m512i pair) {
    return _mm512_castsi512_ps(_mm512_and_si512(pair, _mm512_set1_epi32(static_cast<int>(0xFFFF0000))));
}

// Two rows of `width` float numbers as pairs, zeros up to `padded`; there may be no second row.
void pair_rows(const float* low, const float* high, int64_t width, int64_t padded, Pair* to) {
    for (int64_t j = 0; j < padded; j += LANES) {
        const __mmask16 some = lanes(width - j);
        const __m512i first = bf16(_mm512_maskz_loadu_ps(some, low + j));
        const __m512i second = bf16(_mm512_maskz_loadu_ps(high ? some : 0, (high ? high : low) + j));
        _mm512_storeu_si512(to + j, paired(first, second));
    }
}

// One row of float numbers, neighbours as pairs.
void pair_neighbours(const float* from, int64_t width, Pair* to) {
    for (int64_t j = 0; j < width; j += LANES) {
        const __m512 numbers = _mm512_maskz_loadu_ps(lanes(width - j), from + j);
        const __mmask8 some = static_cast<__mmask8>(lanes(pairs_of(width - j)));
        _mm256_mask_storeu_epi32(to + j / 2, some, reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(numbers)));
    }
}

// Factors of a sum over pairs of steps, both without gaps: left(i, k) = a[i a_row + k a_step],
// right(k) = b[k WIDTH ...].
struct Factors {
    const Pair* a;
    int64_t a_row, a_step;
    const Pair* b;
    int64_t steps;
};

template <int ROWS>
FASTVAE_INLINE void dots(const Factors& f, __m512 sum[ROWS][COLUMNS]) {
    const Pair *a = f.a, *b = f.b;
    for (int64_t k = 0; k < f.steps; ++k, a += f.a_step, b += WIDTH) {
        __m512bh row[COLUMNS];
        EVERY for (int j = 0; j < COLUMNS; ++j)
            row[j] = reinterpret_cast<__m512bh>(_mm512_loadu_si512(b + j * LANES));
        EVERY for (int i = 0; i < ROWS; ++i) {
            const __m512bh factor = reinterpret_cast<__m512bh>(_mm512_set1_epi32(static_cast<int>(a[i * f.a_row])));
            EVERY for (int j = 0; j < COLUMNS; ++j) sum[i][j] = _mm512_dpbf16_ps(sum[i][j], factor, row[j]);
        }
    }
}

// Where a strip of tiles goes, `width` columns of it: floats, added to what is there with `add`.
struct Sums {
    float* c;
    int64_t stride, width;
    bool add;

    void down(int64_t rows) { c += rows * stride; }
    template <int ROWS>
    __attribute__((always_inline)) void take(const __m512 sum[ROWS][COLUMNS]) const {
        if (width == WIDTH && !add) {  // nothing is loaded: these lines are not in the cache
            EVERY for (int i = 0; i < ROWS; ++i)
                EVERY for (int j = 0; j < COLUMNS; ++j)
                    _mm512_storeu_ps(c + i * stride + j * LANES, sum[i][j]);
            return;
        }
        EVERY for (int i = 0; i < ROWS; ++i)
            EVERY for (int j = 0; j < COLUMNS; ++j) {
                const __mmask16 some = lanes(width - j * LANES);
                float* to = c + i * stride + j * LANES;
                const __m512 before = _mm512_maskz_loadu_ps(add ? some : 0, to);
                _mm512_mask_storeu_ps(to, some, sum[i][j] + before);
            }
    }
};

// The same, rounded to bfloat16, with `base` (WIDTH) added to each row.
struct Rounded {
    uint16_t* c;
    int64_t stride, width;
    const float* base;

    void down(int64_t rows) { c += rows * stride; }
    template <int ROWS>
    __attribute__((always_inline)) void take(const __m512 sum[ROWS][COLUMNS]) const {
        EVERY for (int j = 0; j < COLUMNS; ++j) {
            const __mmask16 some = lanes(width - j * LANES);
            const __m512 more = _mm512_loadu_ps(base + j * LANES);
            EVERY for (int i = 0; i < ROWS; ++i)
                _mm256_mask_storeu_epi16(c + i * stride + j * LANES, some,
                                         reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(sum[i][j] + more)));
        }
    }
};

template <int ROWS, class Result>
FASTVAE_INLINE void tile(const Factors& f, const Result& result) {
    __m512 sum[ROWS][COLUMNS];
    EVERY for (int i = 0; i < ROWS; ++i)
        EVERY for (int j = 0; j < COLUMNS; ++j) sum[i][j] = _mm512_setzero_ps();
    dots<ROWS>(f, sum);
    result.template take<ROWS>(sum);
}

// A strip of tiles, one below the other.
template <class Result>
void strip(Factors f, Result result, int64_t rows, Soon soon = {}) {
    const int64_t share = pieces_of(pieces_of(TALL, rows), soon.rows);
    for (; rows >= TALL; rows -= TALL) {
        fetch(soon, share);
        tile<TALL>(f, result);
        f.a += TALL * f.a_row;
        result.down(TALL);
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

const uint16_t* grad_row(const FastvaeProduct& call, int64_t n) {
    return static_cast<const uint16_t*>(call.grad) + n * call.g;
}

// Genes g .. g + genes of every pair of rows of the upstream gradient, from the row `begin` on, and
// their sums over the rows.
void gather_genes(const FastvaeProduct& call, int64_t begin, int64_t rows, int64_t g, int64_t genes,
                  Pair* to, float* sums) {
    __m512 sum[GENES / LANES];
    for (int64_t j = 0; j < GENES / LANES; ++j) sum[j] = _mm512_loadu_ps(sums + j * LANES);
    for (int64_t n = 0; n < rows; n += 2, to += GENES) {
        const uint16_t* low = grad_row(call, begin + n) + g;
        const uint16_t* high = n + 1 < rows ? low + call.g : low;
        for (int64_t j = 0; j < GENES / LANES; ++j) {
            const __mmask16 some = lanes(genes - j * LANES), second = n + 1 < rows ? some : 0;
            const __m512i pair = paired(
                _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(some, low + j * LANES)),
                _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(second, high + j * LANES)));
            sum[j] += low_of(pair) + high_of(pair);
            _mm512_storeu_si512(to + j * LANES, pair);
        }
    }
    for (int64_t j = 0; j < GENES / LANES; ++j) _mm512_storeu_ps(sums + j * LANES, sum[j]);
}

// Genes g .. g + genes of every row of the upstream gradient, neighbours as pairs.
void gather_rows(const FastvaeProduct& call, int64_t g, int64_t genes, Pair* to) {
    constexpr int64_t PER_LOAD = 2 * LANES;
    for (int64_t n = 0; n < call.n; ++n, to += SLICE / 2) {
        const uint16_t* from = grad_row(call, n) + g;
        for (int64_t j = 0; j < genes; j += PER_LOAD) {
            const int64_t left = genes - j;
            const __mmask32 some = left >= PER_LOAD ? 0xFFFFFFFF : (1u << left) - 1;
            _mm512_storeu_si512(to + j / 2, _mm512_maskz_loadu_epi16(some, from + j));
        }
    }
}

}  // namespace

void layer_bf16(const FastvaeProduct& call) {
    const int64_t steps = pairs_of(call.h);
    Pair* x = pairs_in(OF_CALL, call.n * steps);
    for (int64_t n = 0; n < call.n; ++n) pair_neighbours(call.x + n * call.h, call.h, x + n * steps);
    in_runs(pieces_of(WIDTH, call.g), call.threads, [&](int64_t piece, bool more) {
        const int64_t g = piece * WIDTH, width = at_most(WIDTH, g, call.g);
        Pair *rows = pairs_in(OF_PIECE, 2 * steps * WIDTH + WIDTH), *columns = rows + steps * WIDTH;
        float* base = reinterpret_cast<float*>(columns + steps * WIDTH);
        for (int64_t i = 0; i < width; ++i)
            pair_neighbours(call.weight + (g + i) * call.h, call.h, columns + i * steps);
        for (int64_t i = width * steps; i < WIDTH * steps; ++i) columns[i] = 0;
        transpose(reinterpret_cast<float*>(columns), steps, reinterpret_cast<float*>(rows), WIDTH,
                  WIDTH, steps);
        // the bias is a bfloat16 number too, as autocast has it
        for (int64_t j = 0; j < WIDTH; j += LANES) {
            const __mmask16 some = call.bias ? lanes(width - j) : 0;
            const __m512 bias = _mm512_maskz_loadu_ps(some, call.bias + g + j);
            _mm512_storeu_ps(base + j, low_of(bf16(bias)));
        }
        Soon soon;
        if (more)
            soon = soon_rows(call.weight + (g + WIDTH) * call.h, at_most(WIDTH, g + WIDTH, call.g),
                             call.h, call.h);
        const Rounded to = {static_cast<uint16_t*>(call.out) + g, call.g, width, base};
        strip({x, steps, 1, rows, steps}, to, call.n, soon);
    });
}

void layer_weight_grad_bf16(const FastvaeProduct& call) {
    const int64_t panels = pieces_of(WIDTH, call.h), all_steps = pairs_of(call.n);
    Pair* x = pairs_in(OF_CALL, panels * all_steps * WIDTH);  // by panels
    for (int64_t p = 0; p < panels; ++p)
        for (int64_t n = 0; n < call.n; n += 2) {
            const float* row = call.x + n * call.h + p * WIDTH;
            pair_rows(row, n + 1 < call.n ? row + call.h : nullptr, at_most(WIDTH, p * WIDTH, call.h),
                      WIDTH, x + (p * all_steps + n / 2) * WIDTH);
        }
    in_runs(pieces_of(GENES, call.g), call.threads, [&](int64_t piece, bool more) {
        const int64_t g = piece * GENES, genes = at_most(GENES, g, call.g);
        Pair* by_cell = pairs_in(OF_PIECE, STEPS / 2 * GENES + GENES);
        float* sums = reinterpret_cast<float*>(by_cell + STEPS / 2 * GENES);
        for (int64_t j = 0; j < GENES; ++j) sums[j] = 0.0f;
        for (int64_t begin = 0; begin < call.n; begin += STEPS) {
            const int64_t steps = at_most(STEPS, begin, call.n), next = begin + STEPS;
            gather_genes(call, begin, steps, g, genes, by_cell, sums);
            Soon soon;
            if (next < call.n)
                soon = soon_rows(grad_row(call, next) + g, at_most(STEPS, next, call.n), call.g, genes);
            else if (more)
                soon = soon_rows(grad_row(call, 0) + g + GENES, at_most(STEPS, 0, call.n), call.g,
                                 at_most(GENES, g + GENES, call.g));
            for (int64_t p = 0; p < panels; ++p) {
                const int64_t h = p * WIDTH, width = at_most(WIDTH, h, call.h);
                const Pair* panel = x + (p * all_steps + begin / 2) * WIDTH;
                const Sums to = {call.d_weight + g * call.h + h, call.h, width, call.add || begin > 0};
                strip({by_cell, 1, GENES, panel, pairs_of(steps)}, to, genes, p > 0 ? Soon{} : soon);
            }
        }
        take_bias_sums(call, g, genes, sums);
    });
}

void layer_input_grad_bf16(const FastvaeProduct& call) {
    const int64_t most = pieces_of(SLICE, pieces_of(SLABS, call.g)) * SLICE;
    const int64_t slab = most < SLAB_GENES ? SLAB_GENES : most, slabs = pieces_of(slab, call.g);
    const int64_t size = call.n * call.h;
    float* partial = call.d_x;
    if (slabs > 1) partial = reinterpret_cast<float*>(pairs_in(OF_CALL, slabs * size));
    parallel(slabs, call.threads, [&](int64_t piece) {
        const int64_t end = piece * slab + at_most(slab, piece * slab, call.g);
        Pair* rows = pairs_in(OF_PIECE, SLICE / 2 * (WIDTH + call.n));
        Pair* grad = rows + SLICE / 2 * WIDTH;
        for (int64_t g = piece * slab; g < end; g += SLICE) {
            const int64_t genes = at_most(SLICE, g, end);
            const bool add = g > piece * slab || (slabs == 1 && call.add);
            gather_rows(call, g, genes, grad);
            const int64_t next = g + SLICE, then = next < end ? at_most(SLICE, next, end) : 0;
            for (int64_t h = 0; h < call.h; h += WIDTH) {
                const int64_t width = at_most(WIDTH, h, call.h);
                for (int64_t i = 0; i < genes; i += 2) {
                    const float* row = call.weight + (g + i) * call.h + h;
                    pair_rows(row, i + 1 < genes ? row + call.h : nullptr, width, WIDTH,
                              rows + i / 2 * WIDTH);
                }
                const Sums to = {partial + piece * size + h, call.h, width, add};
                Soon soon;
                if (then > 0 && h == 0)
                    soon = soon_rows(grad_row(call, 0) + next, call.n, call.g, then);
                if (then > 0 && h == WIDTH)
                    soon = soon_rows(call.weight + next * call.h, then, call.h, call.h);
                strip({grad, SLICE / 2, 1, rows, pairs_of(genes)}, to, call.n, soon);
            }
        }
    });
    if (slabs > 1) take_slabs(call, partial, slabs);
}

}  // namespace FASTVAE_ISA
}  // namespace fastvae
