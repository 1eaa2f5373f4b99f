// What Python asks a library before it calls its kernels.
//
// Each library has its own copy of this file, compiled with NEED as its instruction set, but without
// the compiler's flags for it, because nobody knows yet whether this CPU has it.

#if defined(__x86_64__)
#include <cpuid.h>
#else
#include <sys/auxv.h>
#endif

#include "kinds.h"

namespace {

// The instructions that a kind needs, and whether this CPU has them.
struct Need {
    const char* instructions;
    bool is_met;
};

#if defined(__x86_64__)

Need avx512(KindNumber kind) {
    __builtin_cpu_init();
    bool has_all = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                   __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                   __builtin_cpu_supports("fma");
    switch (kind) {
        case KindNumber::float32:
        case KindNumber::widened: return {"AVX-512", has_all};
        case KindNumber::bfloat16:
            return {"AVX512-BF16", has_all && __builtin_cpu_supports("avx512bf16")};
        case KindNumber::int8:
            return {"AVX512-VNNI", has_all && __builtin_cpu_supports("avx512vnni")};
    }
    return {nullptr, false};
}

Need avx2(KindNumber kind) {
    __builtin_cpu_init();
    bool has_all = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    if (kind == KindNumber::bfloat16) return {"instruction for bfloat16 beside AVX2", false};
    return {"AVX2 and FMA", has_all};
}

Need avxvnni(KindNumber kind) {
    // GCC 11 compiles for it, and does not yet know its name here.
    unsigned eax = 0, ebx, ecx, edx;
    bool has_it = __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) && eax >> 4 & 1;
    Need need = avx2(kind);
    return {kind == KindNumber::bfloat16 ? need.instructions : "AVX-VNNI", need.is_met && has_it};
}

#else

Need neon(KindNumber kind) {
    bool has_it = kind == KindNumber::float32 || kind == KindNumber::widened;
    return {kind == KindNumber::int8 ? "dot product of bytes" : "such instruction", has_it};
}

// What NEON has, and int8, for CPUs that have the instruction.
Need with_int8(KindNumber kind, bool has_it, const char* name) {
    Need need = neon(kind);
    return {kind == KindNumber::bfloat16 ? need.instructions : name,
            has_it && (need.is_met || kind == KindNumber::int8)};
}

Need neondot(KindNumber kind) {
    constexpr unsigned long DOT_PRODUCT = 1 << 20;  // HWCAP_ASIMDDP of Linux
    return with_int8(kind, getauxval(AT_HWCAP) & DOT_PRODUCT, "dot product of bytes");
}

Need neonmm(KindNumber kind) {
    constexpr unsigned long MATRIX_PRODUCT = 1 << 13;  // HWCAP2_I8MM of Linux
    return with_int8(kind, getauxval(AT_HWCAP2) & MATRIX_PRODUCT, "matrix product of bytes");
}

#endif

}  // namespace

extern "C" {

// build.py looks for this text in the file, so that a library of another source is never loaded.
__attribute__((used)) extern const char e5core_source[] = E5CORE_SOURCE;

// Whether the CPU has the instructions of a kind, and their name for the reader.
int e5core_supports(int kind) { return NEED(KindNumber(kind)).is_met; }
const char* e5core_instructions(int kind) { return NEED(KindNumber(kind)).instructions; }

// Whether BFloat16 is faster than Widened and Float32.
int e5core_prefers_bfloat16() {
#if defined(__x86_64__)
    return e5core_supports(int(KindNumber::bfloat16)) && __builtin_cpu_is("amd");
#else
    return false;
#endif
}

// The name of a kind as Python has it; null if there is no such kind.
const char* e5core_kind_name(int kind) {
    switch (KindNumber(kind)) {
        case KindNumber::float32: return "float32";
        case KindNumber::bfloat16: return "bfloat16";
        case KindNumber::int8: return "int8";
        case KindNumber::widened: return "widened";
    }
    return nullptr;
}
}
