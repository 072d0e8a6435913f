// Ceilings of this machine on a number of threads: memory read bandwidth, and the rates of
// multiply-add from registers in float32 and bfloat16. Prints one line of JSON.
//
// Run: roofline THREADS MEBIBYTES. The memory read should be many times the last-level cache. Built
// as a library, it reads when it is asked to.

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include <sched.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#if defined(__AVX512BF16__) || defined(__AMX_BF16__)
#include <immintrin.h>
#endif

namespace {

constexpr int kRepeats = 7;
constexpr size_t kStep = 256;

// Vectors of the compiler, so that the probe runs on any processor.
typedef uint64_t Words __attribute__((vector_size(64)));
typedef float Floats __attribute__((vector_size(64)));

double now_s() {
    using namespace std::chrono;
    return duration<double>(steady_clock::now().time_since_epoch()).count();
}

// Keeps a thread on one of the processors that it may use: two on one would share its rate.
void stay_on_own_processor(int thread) {
    cpu_set_t allowed, own;
    if (sched_getaffinity(0, sizeof(allowed), &allowed) != 0) return;
    const int count = CPU_COUNT(&allowed);
    int index = thread % (count > 0 ? count : 1);
    for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
        if (!CPU_ISSET(cpu, &allowed) || index-- > 0) continue;
        CPU_ZERO(&own);
        CPU_SET(cpu, &own);
        sched_setaffinity(0, sizeof(own), &own);
        return;
    }
}

// Seconds from the moment that all threads are ready until the last has done its part.
double together(int num_threads, const std::function<void(int)> &part) {
    std::atomic<int> num_ready{0};
    std::atomic<bool> go{false};
    std::vector<std::thread> threads;
    for (int thread = 0; thread < num_threads; ++thread) {
        threads.emplace_back([&, thread] {
            stay_on_own_processor(thread);
            ++num_ready;
            while (!go) std::this_thread::yield();
            part(thread);
        });
    }
    while (num_ready < num_threads) std::this_thread::yield();
    const double start_s = now_s();
    go = true;
    for (auto &thread : threads) thread.join();
    return now_s() - start_s;
}

// What the optimizer must believe to be read and changed here.
template <typename Value>
void keep(Value &value) {
    asm volatile("" : "+m"(value));
}

// Reads memory as several streams, each `ahead` bytes prefetched (0: the hardware alone).
template <int kStreams, int kAhead>
void read_all(const char *memory, size_t num_bytes) {
    const size_t stream = num_bytes / kStreams / kStep * kStep;
    Words sums[kStep / sizeof(Words)] = {};
    for (size_t at = 0; at < stream; at += kStep) {
        for (int number = 0; number < kStreams; ++number) {
            const char *from = memory + number * stream + at;
            for (size_t i = 0; i < kStep / sizeof(Words); ++i) {
                if (kAhead > 0) __builtin_prefetch(from + i * sizeof(Words) + kAhead);
                sums[i] ^= *reinterpret_cast<const Words *>(from + i * sizeof(Words));
            }
        }
    }
    keep(sums);
}

struct Pattern {
    const char *name;
    void (*read)(const char *, size_t);
};

const Pattern kPatterns[] = {
    {"1 stream", read_all<1, 0>},
    {"1 stream, prefetch 2 KiB", read_all<1, 2048>},
    {"1 stream, prefetch 8 KiB", read_all<1, 8192>},
    {"2 streams", read_all<2, 0>},
    {"4 streams", read_all<4, 0>},
    {"4 streams, prefetch 1 KiB", read_all<4, 1024>},
    {"4 streams, prefetch 2 KiB", read_all<4, 2048>},
    {"8 streams", read_all<8, 0>},
    {"8 streams, prefetch 1 KiB", read_all<8, 1024>},
};

struct Bandwidth {
    double bytes_per_s = 0;
    const char *pattern = "";
};

Bandwidth measure_bandwidth(int num_threads, size_t num_bytes) {
    void *mapped = mmap(nullptr, num_bytes, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapped == MAP_FAILED) {
        std::perror("mmap");
        std::exit(1);
    }
    madvise(mapped, num_bytes, MADV_HUGEPAGE);
    char *memory = static_cast<char *>(mapped);
    const size_t share = num_bytes / num_threads / 4096 * 4096;
    together(num_threads,
             [&](int thread) { std::memset(memory + thread * share, 1 + thread, share); });
    Bandwidth best;
    for (const Pattern &pattern : kPatterns) {
        for (int repeat = 0; repeat < kRepeats; ++repeat) {
            const double took_s = together(
                num_threads, [&](int thread) { pattern.read(memory + thread * share, share); });
            const double rate = static_cast<double>(share) * num_threads / took_s;
            if (rate > best.bytes_per_s) best = {rate, pattern.name};
        }
    }
    munmap(mapped, num_bytes);
    return best;
}

constexpr int kChains = 12;  // More than latency times throughput of any multiply-add.
// Milliseconds each: of many short trials, some are not interrupted.
constexpr int kTrials = 40;
constexpr int64_t kRounds = 500'000;

double float_flops() {
    Floats sums[kChains] = {};
    Floats scale, offset;
    for (int i = 0; i < 16; ++i) {
        scale[i] = 0.5f;
        offset[i] = 1.0f + static_cast<float>(i);
    }
    for (auto &sum : sums) keep(sum);  // Equal sums would be computed once.
    for (int64_t round = 0; round < kRounds; ++round) {
#pragma GCC unroll 12
        for (int i = 0; i < kChains; ++i) sums[i] = sums[i] * scale + offset;
    }
    keep(sums);
    return 2.0 * 16 * kChains * kRounds;
}

#if defined(__AVX512BF16__)
double bfloat_flops() {
    __m512 sums[kChains];
    for (auto &sum : sums) {
        sum = _mm512_setzero_ps();
        keep(sum);
    }
    __m512i bits = _mm512_set1_epi16(0x3c00);
    for (int64_t round = 0; round < kRounds; ++round) {
        asm volatile("" : "+v"(bits));
#pragma GCC unroll 12
        for (int i = 0; i < kChains; ++i) {
            sums[i] = _mm512_dpbf16_ps(sums[i], (__m512bh)bits, (__m512bh)bits);
        }
    }
    keep(sums);
    return 2.0 * 32 * kChains * kRounds;
}
#endif

#if defined(__AMX_BF16__)
constexpr int kTileData = 18;
constexpr int kRequestPermission = 0x1023;
constexpr int64_t kTileRounds = 100'000;

struct alignas(64) TileConfig {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {};
    uint8_t rows[16] = {};
};

bool may_use_tiles() { return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0; }

// Four sums of 16 x 16 from two tiles of rows and two of columns, as kernels keep them.
double tile_flops() {
    TileConfig config;
    for (int tile = 0; tile < 8; ++tile) {
        config.row_bytes[tile] = 64;
        config.rows[tile] = 16;
    }
    asm volatile("" : "+m"(config) : : "memory");
    _tile_loadconfig(&config);
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    _tile_zero(4);
    _tile_zero(5);
    _tile_zero(6);
    _tile_zero(7);
    for (int64_t round = 0; round < kTileRounds; ++round) {
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    _tile_release();
    return 4.0 * 2 * 16 * 16 * 32 * kTileRounds;
}
#endif

double measure_rate(int num_threads, double (*flops)()) {
    double best = 0;
    for (int trial = 0; trial < kTrials; ++trial) {
        std::vector<double> done(num_threads);
        const double took_s = together(num_threads, [&](int thread) { done[thread] = flops(); });
        double total = 0;
        for (double one : done) total += one;
        best = std::max(best, total / took_s);
    }
    return best;
}

struct Rate {
    double flop_per_s;
    const char *unit;
};

// The fastest unit for bfloat16; where there is none, kernels compute in float32.
Rate measure_bfloat(int num_threads, double float_rate) {
    (void)num_threads;
    (void)float_rate;
#if defined(__AMX_BF16__)
    if (may_use_tiles()) return {measure_rate(num_threads, tile_flops), "amx"};
#endif
#if defined(__AVX512BF16__)
    return {measure_rate(num_threads, bfloat_flops), "avx512_bf16"};
#else
    return {float_rate, "float32"};
#endif
}

}  // namespace

// Seconds that threads take to read their shares of memory in a pattern of that name; 0 if there is
// none.
extern "C" double read_memory_s(int num_threads, const char *pattern, const char *memory,
                                size_t num_bytes) {
    const size_t share = num_bytes / num_threads / 4096 * 4096;
    for (const Pattern &known : kPatterns) {
        if (std::strcmp(known.name, pattern) != 0) continue;
        return together(num_threads,
                        [&](int thread) { known.read(memory + thread * share, share); });
    }
    return 0;
}

int main(int argc, char **argv) {
    if (argc != 3 || std::atoi(argv[1]) < 1 || std::atoi(argv[2]) < 1) {
        std::fprintf(stderr, "usage: roofline THREADS MEBIBYTES\n");
        return 2;
    }
    const int num_threads = std::atoi(argv[1]);
    const Bandwidth bandwidth =
        measure_bandwidth(num_threads, static_cast<size_t>(std::atoi(argv[2])) << 20);
    const double float_rate = measure_rate(num_threads, float_flops);
    const Rate bfloat = measure_bfloat(num_threads, float_rate);
    std::printf("{\"read_bytes_per_s\": %.6g, \"read_pattern\": \"%s\", "
                "\"float32_flop_per_s\": %.6g, \"bfloat16_flop_per_s\": %.6g, "
                "\"bfloat16_unit\": \"%s\"}\n",
                bandwidth.bytes_per_s, bandwidth.pattern, float_rate, bfloat.flop_per_s,
                bfloat.unit);
    return 0;
}
