// Memory that each thread keeps from call to call.

#pragma once

#include <cstddef>
#include <cstdlib>
#include <new>

namespace {

// What the memory is for. Each purpose has its own, because several are in use at a time.
enum class For {
    converted, unpacked, blocked, quantized, sums, unnormalized, team_unnormalized,
    attention_output, intermediate, attention,
};

// At least `bytes` of memory, aligned for every vector. It grows and never shrinks.
template <For PURPOSE>
void* scratch(size_t bytes) {
    struct Memory {
        void* data = nullptr;
        size_t size = 0;
        ~Memory() { std::free(data); }
    };
    thread_local Memory memory;
    if (memory.size < bytes) {
        std::free(memory.data);
        memory.size = (bytes + 4095) / 4096 * 4096;
        memory.data = std::aligned_alloc(64, memory.size);
        if (!memory.data) throw std::bad_alloc();
    }
    return memory.data;
}

}  // namespace
