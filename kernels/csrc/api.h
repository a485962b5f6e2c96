// What crosses the border to Python: plain structs and C functions, mirrored in native.py.
// All matrices are row-major with unit stride along genes; strides count elements.
#pragma once

#include <cstdint>

// Raised with every change of a struct or function here; native.py compares.
constexpr int32_t FASTVAE_ABI = 7;

#if defined(__GNUC__)
#pragma GCC visibility push(default)
#endif

extern "C" {

// Counts: `dense`, or a CSR matrix whose columns increase strictly within each row.
struct FastvaeCounts {
    const float* dense;
    int64_t dense_stride;
    const void* crow;
    const void* col;
    const float* values;
    int32_t wide_indices;  // crow and col are int64, not int32
};

// Likelihood of N cells of G genes from decoder logits. Rows are visited in blocks: block b holds
// rows order[start[b]] .. order[start[b + 1] - 1] (order NULL: the rows themselves), all of which
// share one row of log theta unless it is given per cell. Matrices of N rows are float, or all of
// them bfloat16; gradients without gaps between their rows may take the place of their logits.
struct FastvaeNll {
    int64_t n, g;
    int32_t family;  // 0 Poisson, 1 NB, 2 ZINB
    int32_t threads;
    int32_t half;  // matrices of N rows are bfloat16
    FastvaeCounts x;
    const void* scale_logits;
    int64_t scale_stride;
    const float* log_library;  // (N)
    const void* log_theta;     // one row, K rows, or N rows
    int64_t theta_stride;
    const int64_t* theta_index;  // (N), NULL unless there are K rows
    int32_t theta_per_cell;
    int32_t want_theta;
    const void* zi_logits;
    int64_t zi_stride;
    const int64_t* order;
    const int64_t* start;
    int64_t blocks;
    const int64_t* groups;  // (K + 1) where the blocks of each row of log theta begin
    int64_t n_groups;
    float* nll;         // (N)
    const float* grad;  // (N), upstream
    void* d_scale;      // (N, G), or NULL where gradients are not asked for
    float* d_library;   // (N)
    void* d_theta;      // as log theta
    void* d_zi;         // (N, G)
};

// Encoder heads to sample and KL, (N, L) each, unit strides; priors with a stride of 0 repeat.
struct FastvaeLatent {
    int64_t n, l;
    int32_t threads;
    int32_t softmax;
    float var_eps;
    const float *mean, *log_var, *noise;  // (N, L) contiguous
    const float *prior_mean, *prior_var;
    int64_t prior_mean_row, prior_mean_col, prior_var_row, prior_var_col;
    float *z, *var, *kl;
    const float *grad_z, *grad_var, *grad_kl;
    float *d_mean, *d_log_var, *d_prior_mean, *d_prior_var;
};

// First layer on CSR x: out = x W^T + bias, or the gradient by W, (H, G).
struct FastvaeLinear {
    int64_t n, g, h;
    int32_t threads;
    FastvaeCounts x;
    const float* weight;
    int64_t weight_stride;
    const float* bias;  // (H), or NULL
    float* out;         // (N, H)
    const float* grad;  // (N, H)
    float* d_weight;    // (H, G)
    int64_t d_weight_stride;
};

// The products of a dense layer: out = x W^T + bias, d_x = grad W, d_weight = grad^T x with
// d_bias, the sums of grad over the cells. All matrices without gaps. With `half`, out and grad are
// bfloat16 and factors are rounded to that (fastvae_multiplies_bf16); everything else is float.
struct FastvaeProduct {
    int64_t n, g, h;
    int32_t threads;
    int32_t add;          // gradients are added to what is there
    int32_t half;
    const float* x;       // (N, H)
    const float* weight;  // (G, H)
    const float* bias;    // (G), or NULL
    void* out;            // (N, G)
    const void* grad;     // (N, G)
    float* d_x;           // (N, H)
    float* d_weight;      // (G, H)
    float* d_bias;        // (G), or NULL
};

// Batch normalisation, ReLU and dropout of z (N, H); all matrices contiguous.
struct FastvaeHidden {
    int64_t n, h;
    int32_t threads;
    float momentum, eps;
    float scale;  // what a kept unit is multiplied by
    const float* z;
    const float *weight, *bias;         // (H)
    float *running_mean, *running_var;  // (H)
    const float* keep;                  // (N, H) of 0 and 1, or NULL where nothing is dropped
    float* out;                         // (N, H)
    float *mean, *inverse_std;          // (H) of the minibatch
    const float* grad;                  // (N, H)
    float *d_z, *d_weight, *d_bias;
};

int32_t fastvae_abi();
const char* fastvae_isa();
int32_t fastvae_blas_is_held_back();
int32_t fastvae_multiplies_bf16();
int32_t fastvae_use_isa(const char* name);
int32_t fastvae_check_csr(const FastvaeCounts* x, int64_t n, int64_t g, int64_t stored);
void fastvae_nll(const FastvaeNll* call);
int32_t fastvae_all_equal(const float* values, int64_t n, float value);
void fastvae_sample_and_kl(const FastvaeLatent* call);
void fastvae_sample_and_kl_backward(const FastvaeLatent* call);
void fastvae_hidden(const FastvaeHidden* call);
void fastvae_hidden_backward(const FastvaeHidden* call);
void fastvae_row_sums(const FastvaeCounts* x, int64_t n, float* out);
void fastvae_gather(const FastvaeCounts* from, const int64_t* rows, int64_t n,
                    const int32_t* crow, int32_t* col, float* values, int32_t threads);
void fastvae_linear(const FastvaeLinear* call);
void fastvae_linear_weight_grad(const FastvaeLinear* call);
void fastvae_layer(const FastvaeProduct* call);
void fastvae_layer_input_grad(const FastvaeProduct* call);
void fastvae_layer_weight_grad(const FastvaeProduct* call);

}  // extern "C"

#if defined(__GNUC__)
#pragma GCC visibility pop
#endif
