// Negative log-likelihood of cells from decoder logits, and its gradients.
//
// Each row is walked in chunks that stay in the nearest cache: every entry is first computed as a
// zero count, in one branch-free pass; the nonzero ones are then written over it. The gradient by
// log theta is summed over the rows of a block; how rows fall into blocks is the caller's choice
// and does not depend on the number of threads, so neither does any sum. Gradients of a chunk are
// written when its logits have been read for the last time, so that they may take their place.
#include <cmath>

#include "entry.h"
#include "parallel.h"

namespace fastvae {
namespace FASTVAE_ISA {
namespace {

constexpr int64_t CHUNK = 1024;
constexpr int64_t PARTIAL = 256;  // float sums run this far before they are added in double

struct Positives {
    int64_t count;
    alignas(64) int32_t at[CHUNK];
    alignas(64) float x[CHUNK];
};

struct Buffers {
    alignas(64) float nll[CHUNK];
    alignas(64) float d_mu[CHUNK], d_theta[CHUNK], d_zi[CHUNK];
    Positives positives;
    alignas(64) float of_nll[CHUNK], of_mu[CHUNK], of_theta[CHUNK], of_zi[CHUNK];
    alignas(64) int32_t large[CHUNK];
    alignas(64) float large_nll[CHUNK], large_mu[CHUNK], large_theta[CHUNK];
};

// One cell: where its inputs are and where its results go.
struct Row {
    const float *scale, *zi, *r, *theta;
    float shift, offset;  // log mu = min(LOG_MU_MAX, (scale - shift) + offset)
    float *d_mu, *d_zi;

    float log_mu(int64_t g) const { return min(LOG_MU_MAX, (scale[g] - shift) + offset); }
};

// In 16 sums whatever the instruction set, each of at most PARTIAL / 16 numbers.
double sum(const float* values, int64_t n) {
    double total = 0.0;
    for (int64_t begin = 0; begin < n; begin += PARTIAL) {
        const int64_t end = begin + PARTIAL < n ? begin + PARTIAL : n;
        Vector lanes = {};
        int64_t g = begin;
        for (; g + LANES <= end; g += LANES) lanes += load(values + g);
        for (int64_t i = 0; i < LANES; ++i) total += static_cast<double>(lanes[i]);
        for (; g < end; ++g) total += static_cast<double>(values[g]);
    }
    return total;
}

// Whether NaN are among them is not asked: they come back with the exponentials.
float largest(const float* values, int64_t n) {
    float top = -__builtin_inff();
#pragma omp simd reduction(max : top)
    for (int64_t g = 0; g < n; ++g) top = values[g] > top ? values[g] : top;
    return top;
}

// exp(scale - shift) of a row into `out`, and their sum.
double exponentials(const float* scale, float shift, int64_t n, float* out) {
#pragma omp simd
    for (int64_t g = 0; g < n; ++g) out[g] = exp(scale[g] - shift);
    return sum(out, n);
}

// log theta within its bounds, and theta.
void dispersion(const float* log_theta, int64_t n, float* r, float* theta) {
#pragma omp simd
    for (int64_t g = 0; g < n; ++g) {
        r[g] = min(LOG_THETA_MAX, max(-LOG_THETA_MAX, log_theta[g]));
        theta[g] = exp(r[g]);
    }
}

// Nonzero entries of genes begin..end, counted from begin; a NaN is one of them.
void find_positives(const float* x, int64_t begin, int64_t end, Positives& found) {
    int64_t count = 0;
    for (int64_t g = begin; g < end; ++g) {  // without a branch: which ones cannot be foreseen
        found.at[count] = static_cast<int32_t>(g - begin);
        count += !(x[g] <= 0.0f);
    }
    for (int64_t i = 0; i < count; ++i) found.x[i] = bounded_count(x[begin + found.at[i]]);
    found.count = count;
}

template <class Index>
int64_t take_positives(const FastvaeCounts& counts, int64_t from, int64_t until, int64_t begin,
                       int64_t end, Positives& found) {
    const Index* col = static_cast<const Index*>(counts.col);
    int64_t count = 0;
    while (from < until && static_cast<int64_t>(col[from]) < end) {
        found.at[count] = static_cast<int32_t>(static_cast<int64_t>(col[from]) - begin);
        found.x[count] = bounded_count(counts.values[from]);
        count += !(counts.values[from] <= 0.0f);
        ++from;
    }
    found.count = count;
    return from;
}

template <int FAMILY, bool GRAD, bool THETA>
void zeros(const Row& row, int64_t begin, int64_t n, Buffers& out) {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) {
        const int64_t g = begin + i;
        const float r = FAMILY == POISSON ? 0.0f : row.r[g];
        const float theta = FAMILY == POISSON ? 0.0f : row.theta[g];
        const Entry entry = zero_entry<FAMILY>(row.log_mu(g), r, theta);
        out.nll[i] = entry.nll;
        if (GRAD) out.d_mu[i] = entry.d_mu;
        if (GRAD && THETA) out.d_theta[i] = entry.d_theta;
    }
    if (FAMILY != ZINB) return;
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) {
        const int64_t g = begin + i;
        const float d_mu = GRAD ? out.d_mu[i] : 0.0f;
        const float d_theta = GRAD && THETA ? out.d_theta[i] : 0.0f;
        const Entry entry = inflated_zero(out.nll[i], d_mu, d_theta, row.zi[g]);
        out.nll[i] = entry.nll;
        if (GRAD) out.d_mu[i] = entry.d_mu;
        if (GRAD && THETA) out.d_theta[i] = entry.d_theta;
        if (GRAD) out.d_zi[i] = entry.d_zi;
    }
}

template <int FAMILY, bool LARGE>
FASTVAE_INLINE Entry positive_entry(const Row& row, int64_t g, float x) {
    const float r = FAMILY == POISSON ? 0.0f : row.r[g];
    const float theta = FAMILY == POISSON ? 0.0f : row.theta[g];
    const float pi = FAMILY == ZINB ? row.zi[g] : 0.0f;
    return LARGE ? large_entry<FAMILY>(x, row.log_mu(g), r, theta, pi)
                 : small_entry<FAMILY>(x, row.log_mu(g), r, theta, pi);
}

template <int FAMILY, bool GRAD, bool THETA>
void positives(const Row& row, int64_t begin, Buffers& b) {
    const Positives& p = b.positives;
#pragma omp simd
    for (int64_t i = 0; i < p.count; ++i) {
        const Entry entry = positive_entry<FAMILY, false>(row, begin + p.at[i], p.x[i]);
        b.of_nll[i] = entry.nll;
        b.of_mu[i] = entry.d_mu;
        b.of_theta[i] = entry.d_theta;
        b.of_zi[i] = entry.d_zi;
    }
    int64_t n_large = 0;
    for (int64_t i = 0; i < p.count; ++i) {
        b.large[n_large] = static_cast<int32_t>(i);
        n_large += is_large(p.x[i]);
    }
#pragma omp simd
    for (int64_t j = 0; j < n_large; ++j) {
        const int32_t i = b.large[j];
        const Entry entry = positive_entry<FAMILY, true>(row, begin + p.at[i], p.x[i]);
        b.large_nll[j] = entry.nll;
        b.large_mu[j] = entry.d_mu;
        b.large_theta[j] = entry.d_theta;
    }
    for (int64_t j = 0; j < n_large; ++j) {
        const int32_t i = b.large[j];
        b.of_nll[i] = b.large_nll[j];
        b.of_mu[i] = b.large_mu[j];
        b.of_theta[i] = b.large_theta[j];
    }
    for (int64_t i = 0; i < p.count; ++i) {
        const int32_t at = p.at[i];
        b.nll[at] = b.of_nll[i];
        if (GRAD) b.d_mu[at] = b.of_mu[i];
        if (GRAD && THETA) b.d_theta[at] = b.of_theta[i];
        if (GRAD && FAMILY == ZINB) b.d_zi[at] = b.of_zi[i];
    }
}

// Memory of a thread for the rows at hand, `width` numbers each.
struct RowMemory {
    float *exponential, *r, *theta;
    float *scale, *zi, *d_theta;  // of bfloat16 rows only

    RowMemory(int64_t width, bool half) {
        const int64_t bytes = sizeof(float);
        exponential = static_cast<float*>(scratch(OF_PIECE, (half ? 6 : 3) * width * bytes));
        r = exponential + width, theta = r + width;
        scale = theta + width, zi = scale + width, d_theta = zi + width;
    }
};

// Row n of a matrix in float: where it is, or in `to` where its numbers are bfloat16.
const float* row_of(const void* matrix, int64_t at, int32_t half, int64_t width, float* to) {
    if (!half) return static_cast<const float*>(matrix) + at;
    const uint16_t* from = static_cast<const uint16_t*>(matrix) + at;
#pragma omp simd
    for (int64_t g = 0; g < width; ++g) to[g] = float_of(static_cast<int32_t>(static_cast<uint32_t>(from[g]) << 16));
    return to;
}

// To bfloat16, to the nearest and to even in between.
void round_row(const float* from, int64_t width, uint16_t* to) {
#pragma omp simd
    for (int64_t g = 0; g < width; ++g) {
        const uint32_t bits = static_cast<uint32_t>(bits_of(from[g]));
        const uint32_t rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16;
        to[g] = static_cast<uint16_t>(from[g] == from[g] ? rounded : 0x7FC0);
    }
}

template <int FAMILY, bool GRAD, bool THETA>
void one_row(const FastvaeNll& call, int64_t n, const RowMemory& memory, float* d_theta,
             Buffers& b) {
    Row row = {};
    float* const exponential = memory.exponential;
    row.r = memory.r, row.theta = memory.theta;
    row.scale = row_of(call.scale_logits, n * call.scale_stride, call.half, call.g, memory.scale);
    row.shift = largest(row.scale, call.g);
    const double total = exponentials(row.scale, row.shift, call.g, exponential);
    row.offset = static_cast<float>(call.log_library[n] - std::log(total));
    const float grad = GRAD ? call.grad[n] : 0.0f;
    if (FAMILY == ZINB) row.zi = row_of(call.zi_logits, n * call.zi_stride, call.half, call.g, memory.zi);
    if (GRAD) row.d_mu = call.half ? memory.scale : static_cast<float*>(call.d_scale) + n * call.g;
    if (GRAD && FAMILY == ZINB)
        row.d_zi = call.half ? memory.zi : static_cast<float*>(call.d_zi) + n * call.g;

    int64_t next = 0, stop = 0;
    if (!call.x.dense) {
        next = row_start(call.x, n);
        stop = row_start(call.x, n + 1);
    }
    double nll = 0.0, d_mu = 0.0;
    for (int64_t begin = 0; begin < call.g; begin += CHUNK) {
        const int64_t end = begin + CHUNK < call.g ? begin + CHUNK : call.g;
        zeros<FAMILY, GRAD, THETA>(row, begin, end - begin, b);
        if (call.x.dense)
            find_positives(call.x.dense + n * call.x.dense_stride, begin, end, b.positives);
        else if (call.x.wide_indices)
            next = take_positives<int64_t>(call.x, next, stop, begin, end, b.positives);
        else
            next = take_positives<int32_t>(call.x, next, stop, begin, end, b.positives);
        positives<FAMILY, GRAD, THETA>(row, begin, b);
        nll += sum(b.nll, end - begin);
        if (GRAD) {
            d_mu += sum(b.d_mu, end - begin);
#pragma omp simd
            for (int64_t i = 0; i < end - begin; ++i) row.d_mu[begin + i] = b.d_mu[i];
        }
        if (GRAD && FAMILY == ZINB) {
#pragma omp simd
            for (int64_t i = 0; i < end - begin; ++i) row.d_zi[begin + i] = b.d_zi[i] * grad;
        }
        if (GRAD && THETA) {
#pragma omp simd
            for (int64_t i = 0; i < end - begin; ++i) d_theta[begin + i] += b.d_theta[i] * grad;
        }
    }
    call.nll[n] = static_cast<float>(nll > RESULT_MAX ? RESULT_MAX : nll);  // NaN stays
    if (GRAD) {
        const float by_softmax = static_cast<float>(d_mu / total);
#pragma omp simd
        for (int64_t g = 0; g < call.g; ++g)
            row.d_mu[g] = (row.d_mu[g] - exponential[g] * by_softmax) * grad;
        call.d_library[n] = static_cast<float>(d_mu) * grad;
        if (!call.half) return;
        round_row(row.d_mu, call.g, static_cast<uint16_t*>(call.d_scale) + n * call.g);
        if (FAMILY == ZINB) round_row(row.d_zi, call.g, static_cast<uint16_t*>(call.d_zi) + n * call.g);
    }
}

// Sums of blocks to sums of groups, in double.
void sum_blocks(const FastvaeNll& call, const float* blocks) {
    const int64_t pieces = (call.g + PARTIAL - 1) / PARTIAL;
    float* const d_theta = static_cast<float*>(call.d_theta);
    parallel(pieces, call.threads, [&](int64_t piece) {
        const int64_t begin = piece * PARTIAL;
        const int64_t width = begin + PARTIAL < call.g ? PARTIAL : call.g - begin;
        for (int64_t k = 0; k < call.n_groups; ++k) {
            double total[PARTIAL] = {};
            for (int64_t b = call.groups[k]; b < call.groups[k + 1]; ++b) {
#pragma omp simd
                for (int64_t i = 0; i < width; ++i)
                    total[i] += static_cast<double>(blocks[b * call.g + begin + i]);
            }
            for (int64_t i = 0; i < width; ++i)
                d_theta[k * call.g + begin + i] = static_cast<float>(total[i]);
        }
    });
}

template <int FAMILY, bool GRAD, bool THETA>
void every_row(const FastvaeNll& call) {
    const int64_t width = (call.g + LANES - 1) / LANES * LANES, bytes = sizeof(float);
    const bool by_block = GRAD && THETA && !call.theta_per_cell;
    float* blocks = nullptr;
    if (by_block) blocks = static_cast<float*>(scratch(OF_CALL, call.blocks * call.g * bytes));
    parallel(call.blocks, call.threads, [&](int64_t block) {
        Buffers buffers;
        const RowMemory memory(width, call.half);
        for (int64_t i = call.start[block]; i < call.start[block + 1]; ++i) {
            const int64_t n = call.order ? call.order[i] : i;
            const bool first = i == call.start[block], of_row = call.theta_per_cell;
            const bool half = call.half && of_row;
            if (FAMILY != POISSON && (first || of_row)) {
                const int64_t k = of_row ? n : call.theta_index ? call.theta_index[n] : 0;
                const float* log_theta = row_of(call.log_theta, k * call.theta_stride, half,
                                                call.g, memory.exponential);
                dispersion(log_theta, call.g, memory.r, memory.theta);
            }
            float* d_theta = nullptr;
            if (GRAD && THETA) {
                d_theta = by_block ? blocks + block * call.g
                          : half   ? memory.d_theta
                                   : static_cast<float*>(call.d_theta) + n * call.g;
                if (first || of_row)
                    for (int64_t g = 0; g < call.g; ++g) d_theta[g] = 0.0f;
            }
            one_row<FAMILY, GRAD, THETA>(call, n, memory, d_theta, buffers);
            if (GRAD && THETA && half)
                round_row(d_theta, call.g, static_cast<uint16_t*>(call.d_theta) + n * call.g);
        }
    });
    if (by_block) sum_blocks(call, blocks);
}

template <int FAMILY>
void family(const FastvaeNll& call) {
    if (!call.d_scale) return every_row<FAMILY, false, false>(call);
    if (FAMILY == POISSON || !call.want_theta) return every_row<FAMILY, true, false>(call);
    every_row<FAMILY, true, true>(call);
}

}  // namespace

void nll(const FastvaeNll& call) {
    const bool fresh = !call.half && call.d_scale != call.scale_logits;
    if (call.d_scale && fresh) expect_writes(static_cast<float*>(call.d_scale), call.n * call.g);
    if (call.d_zi && fresh) expect_writes(static_cast<float*>(call.d_zi), call.n * call.g);
    if (call.family == POISSON) return family<POISSON>(call);
    if (call.family == NB) return family<NB>(call);
    family<ZINB>(call);
}

}  // namespace FASTVAE_ISA
}  // namespace fastvae
