// The C functions: picks the instruction set at run time, and does what needs none in particular.
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <cstring>

#include "kernels.h"

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace fastvae {

#define FASTVAE_TEXT_OF(isa) #isa
#define FASTVAE_TEXT(isa) FASTVAE_TEXT_OF(isa)
#define FASTVAE_DECLARE(isa, bf16)                                      \
    namespace isa {                                                     \
    void nll(const FastvaeNll&);                                        \
    void sample_and_kl(const FastvaeLatent&);                           \
    void sample_and_kl_backward(const FastvaeLatent&);                  \
    void hidden(const FastvaeHidden&);                                  \
    void hidden_backward(const FastvaeHidden&);                         \
    void linear(const FastvaeLinear&);                                  \
    void linear_weight_grad(const FastvaeLinear&);                      \
    void layer(const FastvaeProduct&);                                  \
    void layer_input_grad(const FastvaeProduct&);                       \
    void layer_weight_grad(const FastvaeProduct&);                      \
    void layer_bf16(const FastvaeProduct&);                             \
    void layer_input_grad_bf16(const FastvaeProduct&);                  \
    void layer_weight_grad_bf16(const FastvaeProduct&);                 \
    static const Kernels kernels = {                                    \
        FASTVAE_TEXT(isa), nll, sample_and_kl, sample_and_kl_backward,  \
        hidden, hidden_backward, linear, linear_weight_grad,            \
        layer, layer_input_grad, layer_weight_grad,                     \
        bf16(layer_bf16), bf16(layer_input_grad_bf16),                  \
        bf16(layer_weight_grad_bf16)};                                  \
    }

#define FASTVAE_THERE(function) function
#define FASTVAE_MISSING(function) nullptr
#ifdef FASTVAE_BF16
#define FASTVAE_WIDEST FASTVAE_THERE
#else
#define FASTVAE_WIDEST FASTVAE_MISSING
#endif

#ifdef FASTVAE_X86_LEVELS
FASTVAE_DECLARE(v2, FASTVAE_MISSING)
FASTVAE_DECLARE(v3, FASTVAE_MISSING)
FASTVAE_DECLARE(v4, FASTVAE_WIDEST)
#else
FASTVAE_DECLARE(FASTVAE_ISA, FASTVAE_WIDEST)
#endif

namespace {

#if defined(__x86_64__)
bool has_v3() {
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
           __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2");
}

bool has_bf16() { return __builtin_cpu_supports("avx512bf16"); }

bool has_v4() {
    return has_v3() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vl");
}
#endif

const Kernels* best() {
#ifdef FASTVAE_X86_LEVELS
    if (has_v4()) return &v4::kernels;
    if (has_v3()) return &v3::kernels;
    return &v2::kernels;
#else
    return &FASTVAE_ISA::kernels;
#endif
}

const Kernels* const fastest = best();
std::atomic<const Kernels*> chosen{fastest};

std::atomic<bool> forked{false};

#if defined(__unix__) || defined(__APPLE__)
const int registered = pthread_atfork(nullptr, nullptr, [] { forked = true; });
#endif

const Kernels& kernels() { return *chosen.load(std::memory_order_relaxed); }

struct Memory {
    void* at = nullptr;
    int64_t bytes = 0;
    ~Memory() { std::free(at); }
};

thread_local Memory memory[2];

}  // namespace

void* scratch(Scratch which, int64_t bytes) {
    Memory& held = memory[which];
    if (held.bytes < bytes) {
        constexpr int64_t LINE = 64;
        std::free(held.at);
        held.bytes = (bytes + LINE - 1) / LINE * LINE;
        held.at = std::aligned_alloc(LINE, held.bytes);
        if (!held.at) std::abort();  // as torch's own allocator would fail next
    }
    return held.at;
}

void expect_writes([[maybe_unused]] float* at, [[maybe_unused]] int64_t numbers) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    constexpr uintptr_t PAGE = 2 << 20;
    const uintptr_t begin = (reinterpret_cast<uintptr_t>(at) + PAGE - 1) / PAGE * PAGE;
    const uintptr_t end = reinterpret_cast<uintptr_t>(at + numbers) / PAGE * PAGE;
    if (end >= begin + 4 * PAGE)
        madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

int usable_threads(int64_t asked) {
    if (asked < 1 || forked.load(std::memory_order_relaxed)) return 1;
    return static_cast<int>(asked);
}

}  // namespace fastvae

extern "C" {

int32_t fastvae_abi() { return FASTVAE_ABI; }

// The instruction set in use: "v4", "v3", "v2" (of x86-64), "native" or "baseline".
const char* fastvae_isa() { return fastvae::kernels().name; }

// Whether torch's usual BLAS, MKL, uses half the width of this processor's vectors.
int32_t fastvae_blas_is_held_back() {
#if defined(__x86_64__)
    return fastvae::has_v4() && __builtin_cpu_is("amd");
#else
    return 0;
#endif
}

// Whether the instruction set in use and this processor multiply pairs of bfloat16.
int32_t fastvae_multiplies_bf16() {
#ifdef FASTVAE_BF16
    return fastvae::kernels().layer_bf16 && fastvae::has_bf16();
#else
    return 0;
#endif
}

// Use another one; 0 where this processor lacks it, or it is not known.
int32_t fastvae_use_isa(const char* name) {
    using namespace fastvae;
#ifdef FASTVAE_X86_LEVELS
    const Kernels* const order[] = {&v2::kernels, &v3::kernels, &v4::kernels};
#else
    const Kernels* const order[] = {&FASTVAE_ISA::kernels};
#endif
    for (const Kernels* candidate : order) {
        if (std::strcmp(candidate->name, name) == 0) {
            chosen = candidate;
            return 1;
        }
        if (candidate == fastest) break;
    }
    return 0;
}

void fastvae_nll(const FastvaeNll* call) { fastvae::kernels().nll(*call); }

int32_t fastvae_all_equal(const float* values, int64_t n, float value) {
    bool equal = true;
    for (int64_t i = 0; i < n; ++i) equal &= values[i] == value;
    return equal;
}

void fastvae_sample_and_kl(const FastvaeLatent* call) { fastvae::kernels().sample_and_kl(*call); }

void fastvae_sample_and_kl_backward(const FastvaeLatent* call) {
    fastvae::kernels().sample_and_kl_backward(*call);
}

void fastvae_hidden(const FastvaeHidden* call) { fastvae::kernels().hidden(*call); }

void fastvae_hidden_backward(const FastvaeHidden* call) {
    fastvae::kernels().hidden_backward(*call);
}

void fastvae_linear(const FastvaeLinear* call) { fastvae::kernels().linear(*call); }

void fastvae_linear_weight_grad(const FastvaeLinear* call) {
    fastvae::kernels().linear_weight_grad(*call);
}

void fastvae_layer(const FastvaeProduct* call) { (call->half ? fastvae::kernels().layer_bf16 : fastvae::kernels().layer)(*call); }

void fastvae_layer_input_grad(const FastvaeProduct* call) {
    (call->half ? fastvae::kernels().layer_input_grad_bf16 : fastvae::kernels().layer_input_grad)(*call);
}

void fastvae_layer_weight_grad(const FastvaeProduct* call) {
    (call->half ? fastvae::kernels().layer_weight_grad_bf16 : fastvae::kernels().layer_weight_grad)(*call);
}

}  // extern "C"
