// The functions each instruction set provides.
#pragma once

#include "api.h"

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

constexpr int64_t GENES = 64;  // genes in one piece of the first layer's work
constexpr int64_t linear_pieces(int64_t g) { return (g + GENES - 1) / GENES; }

// Threads to use: no more than asked for, and none at all in a forked child, whose copy of the
// thread pool has no threads.
int usable_threads(int64_t asked);

}  // namespace fastvae
