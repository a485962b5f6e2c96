// A hidden layer after its product: batch normalisation, ReLU and dropout, forward and backward.
//
// Columns are taken 16 at a time, all rows of them by one thread and in order: they stay in the
// nearest cache between the passes, and threads change no result. Sums run over PARTIAL rows in
// float and are then added in double.
#include <cmath>

#include "parallel.h"
#include "special.h"

namespace fastvae {
namespace FASTVAE_ISA {
namespace {

constexpr int64_t PARTIAL = 64;

// Sixteen columns of a row-major matrix of h columns, or fewer at its right edge.
struct Columns {
    int64_t h, first, width;

    Vector at(const float* matrix, int64_t row) const {
        const float* from = matrix + row * h + first;
        if (width == LANES) return load(from);
        Vector v = {};
        for (int64_t i = 0; i < width; ++i) v[i] = from[i];
        return v;
    }
    void put(const Vector& v, float* matrix, int64_t row) const {
        float* to = matrix + row * h + first;
        if (width == LANES) return store(v, to);
        for (int64_t i = 0; i < width; ++i) to[i] = v[i];
    }
};

// Sum of term(row) over n rows.
template <class Term>
FASTVAE_INLINE void sum_rows(int64_t n, double* total, const Term& term) {
    for (int64_t i = 0; i < LANES; ++i) total[i] = 0.0;
    for (int64_t begin = 0; begin < n; begin += PARTIAL) {
        const int64_t end = begin + PARTIAL < n ? begin + PARTIAL : n;
        Vector part = {};
        for (int64_t row = begin; row < end; ++row) part += term(row);
        for (int64_t i = 0; i < LANES; ++i) total[i] += static_cast<double>(part[i]);
    }
}

template <class Work>
void column_blocks(const FastvaeHidden& call, const Work& work) {
    parallel((call.h + LANES - 1) / LANES, call.threads, [&](int64_t piece) {
        const int64_t first = piece * LANES;
        work(Columns{call.h, first, first + LANES < call.h ? LANES : call.h - first});
    });
}

}  // namespace

void hidden(const FastvaeHidden& call) {
    column_blocks(call, [&](const Columns c) {
        const int64_t n = call.n;
        const double rows = static_cast<double>(n);
        double total[LANES];
        sum_rows(n, total, [&](int64_t row) { return c.at(call.z, row); });
        Vector mean = {};
        for (int64_t i = 0; i < LANES; ++i) mean[i] = static_cast<float>(total[i] / rows);
        sum_rows(n, total, [&](int64_t row) {
            const Vector d = c.at(call.z, row) - mean;
            return d * d;
        });
        Vector inverse = {};
        const Vector weight = c.at(call.weight, 0), bias = c.at(call.bias, 0);
        for (int64_t i = 0; i < c.width; ++i) {
            const int64_t column = c.first + i;
            inverse[i] = static_cast<float>(1.0 / std::sqrt(total[i] / rows + call.eps));
            const float var = static_cast<float>(total[i] / (n > 1 ? rows - 1.0 : 1.0));
            float &kept_mean = call.running_mean[column], &kept_var = call.running_var[column];
            kept_mean = call.momentum * mean[i] + (1.0f - call.momentum) * kept_mean;
            kept_var = call.momentum * var + (1.0f - call.momentum) * kept_var;
        }
        c.put(mean, call.mean, 0);
        c.put(inverse, call.inverse_std, 0);
        const Vector slope = inverse * weight, zero = {};
        for (int64_t row = 0; row < n; ++row) {
            Vector out = (c.at(call.z, row) - mean) * slope + bias;
            out = out <= zero ? zero : out;  // a NaN stays
            if (call.keep) out = out * (c.at(call.keep, row) * call.scale);
            c.put(out, call.out, row);
        }
    });
}

void hidden_backward(const FastvaeHidden& call) {
    column_blocks(call, [&](const Columns c) {
        const int64_t n = call.n;
        const double rows = static_cast<double>(n);
        const Vector mean = c.at(call.mean, 0), inverse = c.at(call.inverse_std, 0), zero = {};
        const auto upstream = [&](int64_t row) {
            const Vector g = c.at(call.grad, row) * call.scale;
            return c.at(call.out, row) <= zero ? zero : g;
        };
        double by_bias[LANES], by_weight[LANES];
        sum_rows(n, by_bias, upstream);
        sum_rows(n, by_weight, [&](int64_t row) {
            return upstream(row) * ((c.at(call.z, row) - mean) * inverse);
        });
        Vector d_bias = {}, d_weight = {}, bias_share = {}, weight_share = {};
        for (int64_t i = 0; i < LANES; ++i) {
            d_bias[i] = static_cast<float>(by_bias[i]);
            d_weight[i] = static_cast<float>(by_weight[i]);
            bias_share[i] = static_cast<float>(by_bias[i] / rows);
            weight_share[i] = static_cast<float>(by_weight[i] / rows);
        }
        c.put(d_bias, call.d_bias, 0);
        c.put(d_weight, call.d_weight, 0);
        const Vector slope = inverse * c.at(call.weight, 0);
        for (int64_t row = 0; row < n; ++row) {
            const Vector xhat = (c.at(call.z, row) - mean) * inverse;
            c.put(slope * (upstream(row) - bias_share - xhat * weight_share), call.d_z, row);
        }
    });
}

}  // namespace FASTVAE_ISA
}  // namespace fastvae
