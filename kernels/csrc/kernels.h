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
    void (*hidden)(const FastvaeHidden&);
    void (*hidden_backward)(const FastvaeHidden&);
    void (*linear)(const FastvaeLinear&);
    void (*linear_weight_grad)(const FastvaeLinear&);
    void (*layer)(const FastvaeProduct&);
    void (*layer_input_grad)(const FastvaeProduct&);
    void (*layer_weight_grad)(const FastvaeProduct&);
    // the same in bfloat16, NULL where the compiler or the instruction set has none
    void (*layer_bf16)(const FastvaeProduct&);
    void (*layer_input_grad_bf16)(const FastvaeProduct&);
    void (*layer_weight_grad_bf16)(const FastvaeProduct&);
};

// Memory that a thread keeps from call to call, at least this many bytes of it; what was in it is
// lost. Two of them, since a piece of work needs its own while the whole call holds one.
enum Scratch { OF_CALL = 0, OF_PIECE = 1 };
void* scratch(Scratch which, int64_t bytes);

// Where a CSR row begins; that of the row after the last is where the last ends.
static inline int64_t row_start(const FastvaeCounts& x, int64_t row) {
    return x.wide_indices ? static_cast<const int64_t*>(x.crow)[row]
                          : static_cast<const int32_t*>(x.crow)[row];
}

static inline int64_t column(const FastvaeCounts& x, int64_t i) {
    return x.wide_indices ? static_cast<const int64_t*>(x.col)[i]
                          : static_cast<const int32_t*>(x.col)[i];
}

// Memory just allocated that is about to be written whole: large pages save most of the faults.
void expect_writes(float* at, int64_t numbers);

// Threads to use: no more than asked for, and none at all in a forked child, whose copy of the
// thread pool has no threads.
int usable_threads(int64_t asked);

}  // namespace fastvae
