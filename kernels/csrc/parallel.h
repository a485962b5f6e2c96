// Loops over independent pieces of work, on the calling thread alone where one is asked for.
#pragma once

#include "kernels.h"

#ifdef _OPENMP
#include <omp.h>
#endif

namespace fastvae {
namespace FASTVAE_ISA {

// work(piece) for every piece; which thread takes a piece must not change a result.
template <class Work>
static inline void parallel(int64_t pieces, int64_t threads, const Work& work) {
    threads = usable_threads(threads < pieces ? threads : pieces);
#ifdef _OPENMP
    if (threads > 1) {
#pragma omp parallel for schedule(dynamic) num_threads(static_cast <int>(threads))
        for (int64_t piece = 0; piece < pieces; ++piece) work(piece);
        return;
    }
#endif
    for (int64_t piece = 0; piece < pieces; ++piece) work(piece);
}

}  // namespace FASTVAE_ISA
}  // namespace fastvae
