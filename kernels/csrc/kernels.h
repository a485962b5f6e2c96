// The functions each instruction set provides.
#pragma once

#include "api.h"

#define FASTVAE_INLINE static inline __attribute__((always_inline))

namespace fastvae {

struct Kernels {
    const char* name;
    void (*nll)(const FastvaeNll&);
    void (*sample_and_kl)(const FastvaeLatent&);
    void (*sample_and_kl_backward)(const FastvaeLatent&);
    void (*linear)(const FastvaeLinear&);
    void (*linear_weight_grad)(const FastvaeLinear&);
};

constexpr int64_t LINE = 16;  // floats in a cache line
constexpr int64_t rounded_up(int64_t n) { return (n + LINE - 1) / LINE * LINE; }
constexpr int64_t nll_workspace(int64_t g) { return 3 * rounded_up(g); }

constexpr int64_t GENES = 128;       // genes in one block of the first layer's work
constexpr int64_t LINEAR_UNITS = 64;  // hidden units in a tile
constexpr int64_t LINEAR_ROWS = 128;  // cells in one piece of the forward work
constexpr int64_t linear_blocks(int64_t g) { return (g + GENES - 1) / GENES; }
constexpr int64_t linear_tile() { return (GENES + LINEAR_ROWS) * LINEAR_UNITS; }
constexpr int64_t linear_workspace(int64_t n, int64_t g, int64_t threads) {  // in 4 bytes
    return threads * linear_tile() + n * (linear_blocks(g) + 1);
}

// Where a CSR row begins; that of the row after the last is where the last ends.
static inline int64_t row_start(const FastvaeCounts& x, int64_t row) {
    return x.wide_indices ? static_cast<const int64_t*>(x.crow)[row]
                          : static_cast<const int32_t*>(x.crow)[row];
}

static inline int64_t column(const FastvaeCounts& x, int64_t i) {
    return x.wide_indices ? static_cast<const int64_t*>(x.col)[i]
                          : static_cast<const int32_t*>(x.col)[i];
}

// Threads to use: no more than asked for, and none at all in a forked child, whose copy of the
// thread pool has no threads.
int usable_threads(int64_t asked);

}  // namespace fastvae
