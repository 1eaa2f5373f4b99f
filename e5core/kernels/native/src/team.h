// Work for a team of threads: strands of steps, and each step in shares.
//
// A strand waits for no other. Its steps come one after another, and the shares of a step go to
// whoever has time, so a thread that the operating system has put aside delays the others by the
// one share that it holds.

#pragma once

#include <omp.h>
#ifdef __linux__
#include <sched.h>
#endif

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <thread>
#include <vector>

namespace {

// Where a share starts when `total` is shared out as equally as can be.
int64_t share_start(int64_t total, int shares, int share) { return total * share / shares; }

struct alignas(64) Strand {
    std::atomic<int64_t> next{0};  // the step, and in the lower half the share that is next
    std::atomic<int> done{0};      // shares of the step

    int step() const { return int(next.load(std::memory_order_acquire) >> 32); }

    // A share of that step for the caller alone, or -1 if there is none left.
    int take(int step, int shares) {
        int64_t seen = next.load(std::memory_order_acquire);
        while (seen >> 32 == step && int32_t(seen) < shares) {
            if (next.compare_exchange_weak(seen, seen + 1)) return int32_t(seen);
        }
        return -1;
    }

    // `count` more shares of a step are computed; the last ones open the next step.
    void add_done(int step, int shares, int count) {
        if (done.fetch_add(count) + count < shares) return;
        done.store(0, std::memory_order_relaxed);
        next.store(int64_t(step + 1) << 32, std::memory_order_release);
    }
};

// How a thread waits. What is nearly done comes soonest to one that spins; after that the thread
// that is waited for may need this very core.
struct Wait {
    static constexpr int SPINS = 4000;  // 60 to 200 µs
    int turns = 0;
    double slept = 0;  // seconds

    void operator()() {
        if (++turns < SPINS) return spin();
        double start = omp_get_wtime();
        std::this_thread::sleep_for(std::chrono::microseconds(20));
        slept += omp_get_wtime() - start;
    }
};

std::atomic<int> threads_at_work{0};  // of all who call

// The threads of one call. Those that other callers keep busy are left out. So is one more of a
// short call after two that were spent on waiting for late threads: their cores are busy.
struct Team {
    static constexpr int CALLS = 25;  // after which one that was left out is tried again
    static constexpr double LATE = .3;
    inline static thread_local int left_out = 0, calls = 0, late = 0;
    bool is_short;
    int size;
    double start = omp_get_wtime();

    Team(int threads, bool is_short) : is_short(is_short) {
        int others = threads_at_work.load(std::memory_order_relaxed);
        if (is_short && left_out && ++calls % CALLS == 0) left_out--;
        size = std::clamp(threads - std::max(others, is_short ? left_out : 0), 1, threads);
        threads_at_work += size;
    }
    ~Team() { threads_at_work -= size; }

    void note_waiting(double seconds, double total) {
        if (!is_short || size == 1) return;
        late = seconds > LATE * total ? late + 1 : 0;
        // After that one more late call is enough, also when one that was left out is tried again.
        if (late > 1) left_out++, calls = 0, late = 1;
    }
};

// Linux wakes a thread on the core of its caller where all cores are busy, and moves it only many
// milliseconds later. So it leaves that core by itself, and may go anywhere afterwards.
#ifdef __linux__
int current_core() { return sched_getcpu(); }

void leave_core(int core) {
    cpu_set_t allowed, others;
    if (current_core() != core || sched_getaffinity(0, sizeof allowed, &allowed)) return;
    others = allowed;
    CPU_CLR(core, &others);
    if (CPU_COUNT(&others) && !sched_setaffinity(0, sizeof others, &others)) {
        sched_setaffinity(0, sizeof allowed, &allowed);
    }
}
#else
int current_core() { return 0; }
void leave_core(int) {}
#endif

// All steps of all strands. `shares_of(strand, step)` says how many shares a step has, one at least;
// `compute(strand, step, take)` computes a share for each number that take() returns, until it
// is -1.
template <class Shares, class Compute>
void run_by_team(Team&& team, int strands, int steps, Shares shares_of, Compute compute) {
    std::vector<Strand> all(strands);
    double ended = 0, slept = 0;
    std::atomic<int> core{current_core()};  // of the caller
    auto work_on = [&](int i) {
        int step = all[i].step(), taken = 0;
        if (step == steps) return false;
        int shares = shares_of(i, step);
        auto take = [&] {
            int share = all[i].take(step, shares);
            taken += share >= 0;
            return share;
        };
        compute(i, step, take);
        if (taken) all[i].add_done(step, shares, taken);
        return taken > 0;
    };
#pragma omp parallel num_threads(team.size)
    {
        int place = share_start(strands, omp_get_num_threads(), omp_get_thread_num());
        Wait wait;
        for (bool is_done = false; !is_done;) {
            if (omp_get_thread_num()) leave_core(core.load(std::memory_order_relaxed));
            else core.store(current_core(), std::memory_order_relaxed);
            int tried = 0;
            while (tried < strands && !work_on((place + tried) % strands)) tried++;
            if (tried < strands) {
                place = (place + tried) % strands;
                wait.turns = 0;
            } else {
                is_done = std::all_of(all.begin(), all.end(),
                                      [&](Strand& strand) { return strand.step() == steps; });
                if (!is_done) wait();
            }
        }
        if (omp_get_thread_num() == 0) ended = omp_get_wtime(), slept = wait.slept;
    }
    double now = omp_get_wtime();
    team.note_waiting(slept + now - ended, now - team.start);
}

}  // namespace
