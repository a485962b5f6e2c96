// -log p of one count and its gradients by log mu, log theta (r) and the zero-inflation logit
// (pi). kernels/README.md derives the forms; symbols are those used there.
#pragma once

#include "special.h"

namespace fastvae {
namespace FASTVAE_ISA {

enum Family { POISSON = 0, NB = 1, ZINB = 2 };

constexpr float LOG_THETA_MAX = 60.0f;
constexpr float LOG_MU_MAX = 60.0f;
constexpr float COUNT_MAX = 1e30f, COUNT_MIN = 1e-30f;
constexpr float RESULT_MAX = 1e30f;
constexpr int SMALL_COUNT = 7;  // whole counts up to here take a product

struct Entry {
    float nll, d_mu, d_theta, d_zi;
};

// A count of zero without inflation: no gamma function.
template <int FAMILY>
FASTVAE_INLINE Entry zero_entry(float log_mu, float r, float theta) {
    if (FAMILY == POISSON) {
        const float mu = exp(log_mu);
        return {mu, mu, 0.0f, 0.0f};
    }
    const float u = log_mu - r;
    const float e = exp(-abs(u));
    const float softplus = max(0.0f, u) + log1p_unit(e);
    const float v = (u > 0.0f ? 1.0f : e) / (1.0f + e);
    const float d_theta = theta * (u > 0.0f ? softplus - v : log1p_minus_share(e));
    return {theta * softplus, theta * v, d_theta, 0.0f};
}

// The same with inflation. A loop of its own: the two together would hold more numbers than there
// are registers.
FASTVAE_INLINE Entry inflated_zero(float nb_nll, float d_mu, float d_theta, float pi) {
    const float c = nb_nll + pi;
    const float ec = exp(-abs(c));
    const float ep = exp(-abs(pi));
    // one quotient serves both sigmoids: either factor lies between 1 and 2
    const float b = 1.0f + ec, p = 1.0f + ep;
    const float quotient = 1.0f / (b * p);
    const float w = (c < 0.0f ? 1.0f : ec) * (quotient * p);  // P(the zero is the NB's)
    const float no = (pi > 0.0f ? ep : 1.0f) * (quotient * b);
    const float linear = min(max(0.0f, -pi), nb_nll);  // nb_nll where c < 0
    const float nll = linear + (log1p_unit(ep) - log1p_unit(ec));
    return {nll, w * d_mu, w * d_theta, w - no};
}

// A positive count within its bound; an infinite one is none and gives NaN.
FASTVAE_INLINE float bounded_count(float x) {
    return min(COUNT_MAX, x) + (x - x);
}

FASTVAE_INLINE bool is_large(float x) {
    return x > static_cast<float>(SMALL_COUNT) || x != (x + ROUND) - ROUND;  // also for NaN
}

// What softplus(pi) and sigmoid(pi) add to a positive count.
FASTVAE_INLINE void inflate(Entry& entry, float pi) {
    const float ep = exp(-abs(pi));
    entry.nll += min(RESULT_MAX, max(0.0f, pi)) + log1p_unit(ep);
    entry.d_zi = (pi > 0.0f ? 1.0f : ep) / (1.0f + ep);
}

// A whole count between 1 and SMALL_COUNT; anything elsewhere.
template <int FAMILY>
FASTVAE_INLINE Entry small_entry(float x, float log_mu, float r, float theta, float pi) {
    const float start = FAMILY == POISSON ? 1.0f : min(1.0f, theta);
    const float step = FAMILY == POISSON ? 0.0f : 1.0f / max(1.0f, theta);
    const float rest = start - step;
    float product = 1.0f, harmonic = 0.0f;
    for (int i = 1; i < SMALL_COUNT; ++i) {
        const bool counts = x > static_cast<float>(i);
        product *= counts ? rest * (1.0f / static_cast<float>(i + 1)) + step : 1.0f;
        if (FAMILY != POISSON)
            harmonic += counts ? static_cast<float>(i) / (theta + static_cast<float>(i)) : 0.0f;
    }
    if (FAMILY == POISSON) {
        const float mu = exp(log_mu);
        return {mu - (x * log_mu + log(product)), mu - x, 0.0f, 0.0f};
    }
    const float u = log_mu - r;
    const float e = exp(-abs(u));
    const float tail = log1p_unit(e);
    const float inverse = 1.0f / (1.0f + e);
    const float v = (u > 0.0f ? 1.0f : e) * inverse;
    const float rho = (u > 0.0f ? e : 1.0f) * inverse;
    const float softplus = max(0.0f, u) + tail;
    // theta >= 1 and theta < 1 leave different parts of theta^-x in the product
    const float shared =
        x * (min(0.0f, u) + max(0.0f, r) - tail) + min(0.0f, r);
    const float at_zero = theta * (u > 0.0f ? softplus - v : log1p_minus_share(e));
    Entry entry = {theta * softplus - (shared + log(product)), theta * v - rho * x,
                   at_zero + (harmonic - x * v), 0.0f};
    if (FAMILY == ZINB) inflate(entry, pi);
    return entry;
}

// x [log(1 + fit) - fit] where fit = excess/x and 1 + fit = ratio mu/x, the fitted mean over x;
// `excess` is the fitted mean less x.
FASTVAE_INLINE float saddle_fit(float x, float excess, float log_mu, float mu, float ratio,
                                float log_x, float log_ratio) {
    const float fit = excess / x;  // infinite where x is tiny
    const float one_plus = mu / x * ratio;
    const bool safe = mu > 1e-30f * x && one_plus > 1e-30f && one_plus < 1e30f && ratio < 1e30f;
    const float quotient = log(safe ? one_plus : 1.0f);
    const float log_fit = safe ? quotient : log_mu - log_x + log_ratio;
    const float near = log1pmx_near(min(0.5f, max(-0.5f, fit)));
    return abs(fit) <= 0.5f ? x * near : x * log_fit - excess;
}

// Any x > 0, by Loader's saddle-point form.
template <int FAMILY>
FASTVAE_INLINE Entry large_entry(float x, float log_mu, float r, float theta, float pi) {
    x = max(COUNT_MIN, x);
    const float mu = exp(log_mu);
    const float log_x = log(x);
    const float half = -0.5f * log_x - HALF_LOG_2PI - stirling_error(x, log_x);
    if (FAMILY == POISSON) {
        const float fitted = saddle_fit(x, mu - x, log_mu, mu, 1.0f, log_x, 0.0f);
        return {-(half + fitted), mu - x, 0.0f, 0.0f};
    }
    const float total = theta + mu, n = x + theta;
    const float log_n = log(n);
    const float d = (x - mu) / total, ratio = n / total;
    const bool in_range = ratio > 1e-30f && ratio < 1e30f;
    // 1 + d loses digits near d = -1, the quotient does not
    const float log_ratio =
        in_range ? log(d > -0.5f ? 1.0f + d : ratio) : log_n - log(total);
    const float far = theta * log_ratio - theta / total * (x - mu);
    const float near = theta * log1pmx_near(min(0.5f, max(-0.5f, d)));
    const float theta_term = abs(d) <= 0.5f ? near : far;
    const float rho = theta / total;
    const float fitted = saddle_fit(x, rho * (mu - x), log_mu, mu, ratio, log_x, log_ratio);
    const bool more = theta > x;
    const float quotient = more ? x / max(1e-30f, theta) : 0.0f;
    const float log_n_over_theta = more ? log1p_unit(quotient) : log_n - r;
    const float stirling = stirling_error(n, log_n) - stirling_error(theta, r);
    const float log_p = half - 0.5f * log_n_over_theta + stirling + theta_term + fitted;
    const float d_theta = z_digamma_minus_log(theta, r) -
                          theta / n * z_digamma_minus_log(n, log_n) - theta_term;
    Entry entry = {-log_p, rho * (mu - x), d_theta, 0.0f};
    if (FAMILY == ZINB) inflate(entry, pi);
    return entry;
}

}  // namespace FASTVAE_ISA
}  // namespace fastvae
