// Reparameterised sample, variance and KL divergence from the two heads of an encoder.
#include "parallel.h"
#include "special.h"

namespace fastvae {
namespace FASTVAE_ISA {
namespace {

constexpr float LOG_VAR_MAX = 80.0f;  // exp of the variance head stays finite
constexpr float VARIANCE_MIN = 1e-30f, VARIANCE_MAX = 1e36f;
constexpr float RESULT_MAX = 1e30f;
constexpr int64_t ROWS = 256;         // rows that one thread takes at a time

FASTVAE_INLINE float sqrt(float x) { return __builtin_sqrtf(x); }

// A variance that can be divided by; a negative one gives NaN.
FASTVAE_INLINE float bounded_variance(float v) {
    return v < 0.0f ? __builtin_nanf("") : min(VARIANCE_MAX, max(VARIANCE_MIN, v));
}

FASTVAE_INLINE float saturate(float x) { return min(RESULT_MAX, max(-RESULT_MAX, x)); }

// (q - p)/p of two variances.
FASTVAE_INLINE float relative_excess(float q, float p) { return min(RESULT_MAX, (q - p) / p); }

// log(q/p) + 1 - q/p, without cancellation near q = p.
FASTVAE_INLINE float log_ratio_term(float q, float p) {
    const float t = relative_excess(q, p);
    const float near = log1pmx_near(min(0.5f, max(-0.5f, t)));
    return abs(t) <= 0.5f ? near : (log(q) - log(p)) - t;
}

FASTVAE_INLINE float variance(float log_var, const FastvaeLatent& call) {
    return exp(min(LOG_VAR_MAX, log_var)) + call.var_eps;
}

FASTVAE_INLINE float sample(float mean, float log_var, float noise, const FastvaeLatent& call) {
    return mean + sqrt(variance(log_var, call)) * noise;
}

struct Prior {
    const float *mean, *var;
    int64_t mean_step, var_step;
};

Prior prior_of(const FastvaeLatent& call, int64_t n) {
    return {call.prior_mean + n * call.prior_mean_row, call.prior_var + n * call.prior_var_row,
            call.prior_mean_col, call.prior_var_col};
}

template <class Work>
void rows(const FastvaeLatent& call, const Work& work) {
    parallel((call.n + ROWS - 1) / ROWS, call.threads, [&](int64_t piece) {
        const int64_t end = (piece + 1) * ROWS < call.n ? (piece + 1) * ROWS : call.n;
        for (int64_t n = piece * ROWS; n < end; ++n) work(n);
    });
}

void softmax(float* z, int64_t l) {
    float top = z[0], total = 0.0f;
    for (int64_t d = 1; d < l; ++d) top = max(z[d], top);  // a NaN comes back with the sum
    for (int64_t d = 0; d < l; ++d) total += z[d] = exp(z[d] - top);
    for (int64_t d = 0; d < l; ++d) z[d] /= total;
}

}  // namespace

void sample_and_kl(const FastvaeLatent& call) {
    rows(call, [&](int64_t n) {
        const int64_t l = call.l;
        const float *mean = call.mean + n * l, *log_var = call.log_var + n * l;
        const float* noise = call.noise + n * l;
        float *z = call.z + n * l, *var = call.var + n * l;
        const Prior p = prior_of(call, n);
        float kl = 0.0f;
#pragma omp simd reduction(+ : kl)
        for (int64_t d = 0; d < l; ++d) {
            const float p_var = p.var[d * p.var_step];
            const float shift = mean[d] - p.mean[d * p.mean_step];
            const float v = variance(log_var[d], call);
            var[d] = v;
            z[d] = sample(mean[d], log_var[d], noise[d], call);
            const float q = bounded_variance(v), p_v = bounded_variance(p_var);
            kl += 0.5f * (shift * (shift / p_v) - log_ratio_term(q, p_v));
        }
        if (call.softmax) softmax(z, l);
        call.kl[n] = saturate(kl);
    });
}

void sample_and_kl_backward(const FastvaeLatent& call) {
    rows(call, [&](int64_t n) {
        const int64_t l = call.l;
        const float *mean = call.mean + n * l, *log_var = call.log_var + n * l;
        const float *noise = call.noise + n * l, *grad_z = call.grad_z + n * l;
        const float* grad_var = call.grad_var + n * l;
        const Prior p = prior_of(call, n);
        const float grad_kl = call.grad_kl[n];
        float* z = call.softmax ? call.z + n * l : nullptr;
        float mixed = 0.0f;  // sum of grad_z z, which the softmax spreads over the row
        if (call.softmax) {
            for (int64_t d = 0; d < l; ++d) z[d] = sample(mean[d], log_var[d], noise[d], call);
            softmax(z, l);
            for (int64_t d = 0; d < l; ++d) mixed += grad_z[d] * z[d];
        }
#pragma omp simd
        for (int64_t d = 0; d < l; ++d) {
            const float p_var = bounded_variance(p.var[d * p.var_step]);
            const float difference = mean[d] - p.mean[d * p.mean_step];
            const float shift = difference / p_var;
            const float e = exp(min(LOG_VAR_MAX, log_var[d]));
            const float q = bounded_variance(e + call.var_eps);
            const float excess = relative_excess(q, p_var), share = e / q;
            const float of_z = call.softmax ? z[d] * (grad_z[d] - mixed) : grad_z[d];
            const float of_mean = grad_kl * saturate(shift);
            call.d_mean[n * l + d] = of_mean + of_z;
            call.d_log_var[n * l + d] = grad_kl * (0.5f * share * excess) +
                                        of_z * (0.5f * share * (sqrt(q) * noise[d])) +
                                        grad_var[d] * e;
            if (call.d_prior_mean) call.d_prior_mean[n * l + d] = -of_mean;
            if (call.d_prior_var)
                call.d_prior_var[n * l + d] =
                    grad_kl * saturate(-0.5f * (excess + difference * shift) / p_var);
        }
    });
}

}  // namespace FASTVAE_ISA
}  // namespace fastvae
