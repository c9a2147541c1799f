// The names of gpu.cuh for a C++ compiler: a block's threads are fibers that take turns, one block after another.
//
// Exact in what matters: the roundings of the 16-bit types; what each lane of a warp holds before and after the collective instructions; the
// products of the tensor cores, summed in f32 (a card sums in an order and with a rounding of its own); copies in the background, which arrive
// at the wait and not before, so that a missing wait shows. Shared memory begins as NaN.
// Not seen: races between threads that both orders of taking turns happen to win; speed.
#pragma once
#include <algorithm>
#include <functional>
#include <map>
#include <math.h>
#include <setjmp.h>
#include <stdint.h>
#include <string.h>
#include <ucontext.h>
#include <vector>

#define INLINE inline

struct Dim3 {
    unsigned x, y, z;
};

struct f16 {
    uint16_t bits;
};
struct bf16 {
    uint16_t bits;
};

inline uint32_t bits_of(float x) {
    uint32_t u;
    memcpy(&u, &x, 4);
    return u;
}
inline float of_bits(uint32_t u) {
    float x;
    memcpy(&x, &u, 4);
    return x;
}

inline float wide(float x) { return x; }
inline float wide(bf16 x) { return of_bits((uint32_t)x.bits << 16); }
inline float wide(f16 x) {
    const uint32_t sign = (uint32_t)(x.bits & 0x8000) << 16, rest = x.bits & 0x7fff;
    if (rest >= 0x7c00) return of_bits(sign | 0x7f800000 | (rest & 0x3ff) << 13);
    const float magnitude = rest >= 0x400 ? of_bits((rest << 13) + (112u << 23)) : ldexpf((float)rest, -24);
    return of_bits(bits_of(magnitude) | sign);
}
// To the nearest, ties to even.
template <class T> T narrow(float x);
template <> inline float narrow<float>(float x) { return x; }
template <> inline bf16 narrow<bf16>(float x) {
    const uint32_t u = bits_of(x);
    if (isnan(x)) return {0x7fff};
    return {(uint16_t)((u + 0x7fff + (u >> 16 & 1)) >> 16)};
}
template <> inline f16 narrow<f16>(float x) {
    const uint16_t sign = (uint16_t)(bits_of(x) >> 16 & 0x8000);
    const float magnitude = fabsf(x);
    if (isnan(x)) return {0x7fff};
    if (magnitude >= 65520.0f) return {(uint16_t)(sign | 0x7c00)};
    // A number of eleven bits, or fewer below the smallest normal one; rint rounds ties to even.
    int exponent;
    frexpf(magnitude, &exponent);
    const int unit = exponent - 11 > -24 ? exponent - 11 : -24;
    const float rounded = ldexpf(rintf(ldexpf(magnitude, -unit)), unit);
    if (rounded < 6.103515625e-5f) return {(uint16_t)(sign | (uint16_t)ldexpf(rounded, 24))};
    return {(uint16_t)(sign | (uint16_t)((bits_of(rounded) - (112u << 23)) >> 13))};
}

namespace emulator {

struct Copy {
    void *to;
    const void *from; // null: zeros
    size_t bytes = 16;

    void land() const {
        if (from) memcpy(to, from, bytes);
        else memset(to, 0, bytes);
    }
};

// A barrier in shared memory, by its place.
struct Barrier {
    int count = 0, missing = 0;
    long bytes = 0; // that are expected and not there
    unsigned phase = 0;
    // What is on its way to it: of threads, each with an arrival, and bulk.
    std::vector<Copy> copies, bulk;
    int arrivals = 0;
};

// A product of a group of warps, of which a lane makes its own numbers.
struct Product {
    float *to;                // (N / 8, 4)
    bool add;
    std::vector<float> begun; // what it was when it was asked for
    std::function<std::vector<float>()> now;
};

struct Fiber {
    ucontext_t begin;  // the first turn comes with a stack of its own,
    jmp_buf go_on;     // every other is a jump, which asks nothing of the system
    std::vector<char> stack;
    bool started = false, done = false;
    std::vector<std::vector<Copy>> groups; // those on their way, oldest first
    std::vector<Copy> open;
    std::vector<void *> arrived; // copies that a group of warps does not see yet
    std::vector<std::vector<Product>> batches;
    std::vector<Product> open_batch;
    std::vector<Copy> out; // of copies out, those that have not read
};

struct Warp {
    int arrived = 0;
    unsigned turn = 0;
    // What the lanes bring to a collective, by its number's parity: one may be read while the next is filled.
    uint32_t brought[2][32][8];
    const void *rows[2][32];
};

inline Dim3 grid, block_index, thread_index;
inline jmp_buf scheduler;
inline std::vector<Fiber> fibers;
inline std::vector<Warp> warps;
inline unsigned char *shared, *seen; // the second as groups of warps see it
inline std::map<uint32_t, Barrier> barriers; // by the address
inline bool early; // copies land when they are asked for, else when they are waited for
inline int self, waiting, threads;
inline unsigned generation;
inline long moves; // a round without any is a deadlock
inline void (*entry)(const void *);
inline const void *arguments;

// Where groups of warps see it.
inline unsigned char *seen_at(void *place) { return seen + ((unsigned char *)place - shared); }

inline void yield() {
    if (!_setjmp(fibers[self].go_on)) _longjmp(scheduler, 1);
}

inline void run_fiber() {
    entry(arguments);
    // Copies out whose numbers nobody waited for are not written.
    fibers[self].done = true;
    moves++;
    _longjmp(scheduler, 1);
}

// One turn of the thread `self`: until it waits or ends.
inline void turn() {
    Fiber &fiber = fibers[self];
    thread_index = {(unsigned)self, 0, 0};
    if (_setjmp(scheduler)) return;
    if (fiber.started) _longjmp(fiber.go_on, 1);
    fiber.started = true;
    setcontext(&fiber.begin);
}

// All threads of the block that are still running.
inline void barrier() {
    const unsigned mine = generation;
    int running = 0;
    for (const Fiber &fiber : fibers) running += !fiber.done;
    moves++;
    if (++waiting == running) {
        waiting = 0;
        generation++;
        return;
    }
    while (generation == mine) yield();
}

// All lanes of the warp; gives the parity under which they brought their numbers.
inline int meet(Warp &warp) {
    const unsigned mine = warp.turn;
    moves++;
    if (++warp.arrived == 32) {
        warp.arrived = 0;
        warp.turn++;
    } else {
        while (warp.turn == mine) yield();
    }
    return mine % 2;
}

inline Warp &warp() { return warps[self / 32]; }

// Runs one block after another. False if threads wait for each other without end.
inline bool launch(void (*kernel)(const void *), const void *args, Dim3 g, Dim3 b, size_t shared_bytes) {
    std::vector<uint32_t> memory(shared_bytes / 4 + 256), seen_memory(memory.size());
    shared = (unsigned char *)(((uintptr_t)memory.data() + 1023) & ~(uintptr_t)1023);
    seen = (unsigned char *)seen_memory.data();
    grid = g, entry = kernel, arguments = args, threads = b.x;
    fibers.resize(threads);
    for (unsigned z = 0; z < g.z; z++)
        for (unsigned y = 0; y < g.y; y++)
            for (unsigned x = 0; x < g.x; x++) {
                block_index = {x, y, z};
                // Blocks differ in what the card leaves open: what is missing, a wait or a barrier, shows in one or another.
                const bool backward = (x + y + z) % 2;
                early = (x + y + z) / 2 % 2;
                memset(memory.data(), 0xff, memory.size() * 4);
                memset(seen_memory.data(), 0xff, memory.size() * 4);
                waiting = 0, warps.assign((threads + 31) / 32, Warp());
                barriers.clear();
                for (Fiber &fiber : fibers) {
                    fiber.stack.resize(1 << 16);
                    fiber.started = fiber.done = false;
                    fiber.groups.clear(), fiber.open.clear(), fiber.arrived.clear();
                    fiber.batches.clear(), fiber.open_batch.clear(), fiber.out.clear();
                    getcontext(&fiber.begin);
                    fiber.begin.uc_stack.ss_sp = fiber.stack.data();
                    fiber.begin.uc_stack.ss_size = fiber.stack.size();
                    fiber.begin.uc_link = nullptr;
                    makecontext(&fiber.begin, run_fiber, 0);
                }
                for (bool running = true; running;) {
                    running = false;
                    const long before = moves;
                    // A warp goes as far as it can before the next one has its turn.
                    for (int first = 0; first < threads; first += 32)
                        for (long last = -1; last != moves;) {
                            last = moves;
                            for (int i = first; i < std::min(first + 32, threads); i++) {
                                self = backward ? threads - 1 - i : i;
                                if (fibers[self].done) continue;
                                running = true;
                                turn();
                            }
                        }
                    if (running && moves == before) return false;
                }
            }
    return true;
}

} // namespace emulator

#define gridDim emulator::grid
#define blockIdx emulator::block_index
#define threadIdx emulator::thread_index
#define SHARED_BYTES(name) unsigned char *name = emulator::shared

// As a descriptor of a matrix counts.
inline uint32_t shared_address(const void *p) { return (uint32_t)((const unsigned char *)p - emulator::shared); }
inline float reciprocal(float x) { return 1 / x; }
inline float power_of_two(float x) { return x < -126 ? 0 : exp2f(x); }
inline void sync_block() { emulator::barrier(); }
inline void sync_warp() { emulator::meet(emulator::warp()); }

inline float shuffle_xor(float x, int mask) {
    emulator::Warp &warp = emulator::warp();
    const int lane = emulator::self % 32;
    warp.brought[warp.turn % 2][lane][0] = bits_of(x);
    const int parity = emulator::meet(warp);
    return of_bits(warp.brought[parity][lane ^ mask][0]);
}

inline void copy_async(void *to, const void *from, bool there) {
    emulator::Fiber &fiber = emulator::fibers[emulator::self];
    const emulator::Copy copy = {to, there ? from : nullptr};
    if (!emulator::early) {
        fiber.open.push_back(copy);
        return;
    }
    // What others still read there is gone at once, for groups of warps too.
    copy.land();
    memcpy(emulator::seen_at(to), to, 16);
}
inline void copy_async(uint32_t to, const void *from, bool there) { copy_async(emulator::shared + to, from, there); }
inline void copy_commit() {
    emulator::Fiber &fiber = emulator::fibers[emulator::self];
    fiber.groups.push_back(std::move(fiber.open));
    fiber.open.clear();
}
template <int N> void copy_wait() {
    emulator::Fiber &fiber = emulator::fibers[emulator::self];
    while (fiber.groups.size() > (size_t)N) {
        for (const emulator::Copy &copy : fiber.groups.front()) {
            copy.land();
            fiber.arrived.push_back(copy.to);
        }
        fiber.groups.erase(fiber.groups.begin());
    }
}

namespace emulator {

// Ends the phase if nothing is missing.
inline void settle(Barrier &barrier) {
    if (barrier.missing > 0 || barrier.bytes > 0) return;
    barrier.missing = barrier.count;
    barrier.phase++;
    moves++;
}
// All that is on its way.
inline void land(Barrier &barrier) {
    // All of them are seen by groups of warps at once.
    for (const std::vector<Copy> *copies : {&barrier.copies, &barrier.bulk})
        for (const Copy &copy : *copies) {
            copy.land();
            memcpy(seen_at(copy.to), copy.to, copy.bytes);
        }
    for (const Copy &copy : barrier.bulk) barrier.bytes -= copy.bytes;
    barrier.missing -= barrier.arrivals;
    moves += barrier.arrivals;
    barrier.copies.clear(), barrier.bulk.clear(), barrier.arrivals = 0;
    settle(barrier);
}
// Something more is.
inline void asked(Barrier &barrier) {
    moves++;
    if (early) land(barrier);
}

} // namespace emulator

inline int warp_of_block() { return emulator::self / 32; }
template <int N> void keep_registers() {}
template <int N> void take_registers() {}
inline void barrier_init(uint32_t place, int count) {
    emulator::Barrier &barrier = emulator::barriers[place];
    barrier = emulator::Barrier();
    barrier.count = barrier.missing = count;
}
inline void barriers_ready() {}
inline void barrier_arrive(uint32_t place) {
    emulator::Barrier &barrier = emulator::barriers[place];
    barrier.missing--;
    emulator::moves++;
    emulator::settle(barrier);
}
inline void barrier_expect(uint32_t place, int bytes) {
    emulator::barriers[place].bytes += bytes;
    barrier_arrive(place);
}
inline void barrier_wait(uint32_t place, uint32_t parity) {
    emulator::Barrier &barrier = emulator::barriers[place];
    while (barrier.phase % 2 == parity) {
        // The latest moment for what is on its way.
        emulator::land(barrier);
        if (barrier.phase % 2 == parity) emulator::yield();
    }
}
inline void copy_arrives(uint32_t place) {
    emulator::Barrier &barrier = emulator::barriers[place];
    std::vector<emulator::Copy> &open = emulator::fibers[emulator::self].open;
    barrier.copies.insert(barrier.copies.end(), open.begin(), open.end());
    barrier.arrivals++;
    open.clear();
    emulator::asked(barrier);
}
inline void copy_bulk(uint32_t to, const void *from, int bytes, uint32_t place) {
    emulator::Barrier &barrier = emulator::barriers[place];
    barrier.bulk.push_back({emulator::shared + to, from, (size_t)bytes});
    emulator::asked(barrier);
}
inline void copy_bulk_out(void *to, const void *from, int bytes) {
    const emulator::Copy copy = {to, from, (size_t)bytes};
    if (emulator::early) copy.land();
    else emulator::fibers[emulator::self].out.push_back(copy);
}
inline void bulk_commit() {}
inline void bulk_wait_read() {
    emulator::Fiber &fiber = emulator::fibers[emulator::self];
    for (const emulator::Copy &copy : fiber.out) copy.land();
    fiber.out.clear();
}

inline uint32_t two(const void *row, int first, int second) {
    const uint16_t *numbers = (const uint16_t *)row;
    return numbers[first] | (uint32_t)numbers[second] << 16;
}
inline void load_matrices(uint32_t (&r)[4], const void *row) {
    emulator::Warp &warp = emulator::warp();
    const int lane = emulator::self % 32;
    warp.rows[warp.turn % 2][lane] = row;
    const int parity = emulator::meet(warp);
    for (int i = 0; i < 4; i++) r[i] = two(warp.rows[parity][8 * i + lane / 4], lane % 4 * 2, lane % 4 * 2 + 1);
}
inline void load_matrices_transposed(uint32_t (&r)[4], const void *row) {
    emulator::Warp &warp = emulator::warp();
    const int lane = emulator::self % 32;
    warp.rows[warp.turn % 2][lane] = row;
    const int parity = emulator::meet(warp);
    for (int i = 0; i < 4; i++) {
        const uint16_t *first = (const uint16_t *)warp.rows[parity][8 * i + lane % 4 * 2];
        const uint16_t *second = (const uint16_t *)warp.rows[parity][8 * i + lane % 4 * 2 + 1];
        r[i] = first[lane / 4] | (uint32_t)second[lane / 4] << 16;
    }
}

template <class T> float number(uint32_t pair, int which) {
    T x;
    x.bits = (uint16_t)(pair >> 16 * which);
    return wide(x);
}
#define GROUPS
inline void group_sees_copies() {
    emulator::Fiber &fiber = emulator::fibers[emulator::self];
    for (void *place : fiber.arrived) memcpy(emulator::seen_at(place), place, 16);
    fiber.arrived.clear();
}
inline void group_begin() {}

namespace emulator {

// A number of the matrix that a descriptor tells of: of a row of 64, some eights of rows on.
template <class T> float number_of(uint64_t matrix, int row, int column) {
    const uint64_t begin = (matrix & 0x3fff) << 4, eight_rows = (matrix >> 32 & 0x3fff) << 4;
    const uint64_t logical = begin + row / 8 * eight_rows + row % 8 * 128 + column * 2;
    T x;
    memcpy(&x, seen + (logical ^ (logical >> 7 & 7) << 4), 2);
    return wide(x);
}

// This lane's numbers of A B, by rows of A and what B has at (k, n).
template <int N, class B> std::vector<float> group_product(const float (&left)[2][16], B b) {
    std::vector<float> d(N / 2);
    for (int j = 0; j < N / 8; j++)
        for (int e = 0; e < 2; e++) {
            float right[16];
            for (int k = 0; k < 16; k++) right[k] = b(k, j * 8 + self % 4 * 2 + e);
            for (int half = 0; half < 2; half++) {
                float sum = 0;
                for (int k = 0; k < 16; k++) sum += left[half][k] * right[k];
                d[j * 4 + half * 2 + e] = sum;
            }
        }
    return d;
}

inline void open_product(float *to, bool add, std::function<std::vector<float>()> now) {
    fibers[self].open_batch.push_back({to, add, now(), now});
}

} // namespace emulator

// It may read at any time until it is waited for: numbers that change meanwhile make it NaN.
template <class T, int N> void group_multiply_add(float (&d)[N / 8][4], uint64_t a, uint64_t b, bool add) {
    emulator::open_product(&d[0][0], add, [a, b]() {
        float left[2][16];
        const int row = emulator::self / 32 % 4 * 16 + emulator::self % 32 / 4;
        for (int k = 0; k < 16; k++)
            for (int half = 0; half < 2; half++) left[half][k] = emulator::number_of<T>(a, row + 8 * half, k);
        return emulator::group_product<N>(left, [b](int k, int n) { return emulator::number_of<T>(b, n, k); });
    });
}
template <class T, int N> void group_multiply_add_columns(float (&d)[N / 8][4], const uint32_t (&a)[4], uint64_t b) {
    emulator::Warp &warp = emulator::warp();
    const int lane = emulator::self % 32;
    memcpy(warp.brought[warp.turn % 2][lane], a, 16);
    const int parity = emulator::meet(warp);
    std::vector<float> rows(32);
    for (int k = 0; k < 16; k++)
        for (int half = 0; half < 2; half++)
            rows[half * 16 + k] = number<T>(warp.brought[parity][lane / 4 * 4 + k % 8 / 2][half + k / 8 * 2], k % 2);
    emulator::open_product(&d[0][0], true, [rows, b]() {
        float left[2][16];
        memcpy(left, rows.data(), sizeof(left));
        return emulator::group_product<N>(left, [b](int k, int n) { return emulator::number_of<T>(b, k, n); });
    });
}
inline void group_commit() {
    emulator::Fiber &fiber = emulator::fibers[emulator::self];
    fiber.batches.push_back(std::move(fiber.open_batch));
    fiber.open_batch.clear();
}
template <int N> void group_wait() {
    emulator::Fiber &fiber = emulator::fibers[emulator::self];
    while (fiber.batches.size() > (size_t)N) {
        for (const emulator::Product &product : fiber.batches.front()) {
            const std::vector<float> now = product.now();
            for (size_t i = 0; i < now.size(); i++) {
                const float number = now[i] == product.begun[i] ? now[i] : NAN;
                product.to[i] = product.add ? product.to[i] + number : number;
            }
        }
        fiber.batches.erase(fiber.batches.begin());
    }
}

template <class T> void multiply_add(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    emulator::Warp &warp = emulator::warp();
    const int lane = emulator::self % 32, g = lane / 4, t = lane % 4;
    uint32_t *mine = warp.brought[warp.turn % 2][lane];
    memcpy(mine, a, 16);
    mine[4] = b0, mine[5] = b1;
    const int parity = emulator::meet(warp);
    for (int e = 0; e < 4; e++) {
        const int row = g + e / 2 * 8, column = t * 2 + e % 2;
        float sum = 0;
        for (int k = 0; k < 16; k++) {
            const uint32_t *left = warp.brought[parity][row % 8 * 4 + k % 8 / 2];
            const uint32_t *right = warp.brought[parity][column * 4 + k % 8 / 2];
            sum += number<T>(left[row / 8 + k / 8 * 2], k % 2) * number<T>(right[4 + k / 8], k % 2);
        }
        d[e] += sum;
    }
}

namespace emulator {

// A kernel by its name, and how it is started.
struct Kernel {
    const char *name;
    size_t args_bytes;
    void (*run)(const void *);
    unsigned most_threads;
    const Kernel *next;

    static inline const Kernel *all;

    Kernel(const char *name, size_t args_bytes, void (*run)(const void *), unsigned most_threads)
        : name(name), args_bytes(args_bytes), run(run), most_threads(most_threads), next(all) {
        all = this;
    }
    static const Kernel *find(const char *name) {
        const Kernel *kernel = all;
        while (kernel && strcmp(kernel->name, name)) kernel = kernel->next;
        return kernel;
    }
    // 0 if all threads came to their end, 1 if they wait for each other, 2 if there are more than the kernel is made for.
    int start(const void *args, Dim3 grid, Dim3 block, size_t shared_bytes) const {
        if (block.x > most_threads) return 2;
        return launch(run, args, grid, block, shared_bytes) ? 0 : 1;
    }
};

inline unsigned first_of(unsigned threads, int = 1) { return threads; }

} // namespace emulator

// `Kernel::start` of the kernel of this name, or 3 if there is none.
extern "C" __attribute__((used)) inline int emulate(const char *name, const void *args, const Dim3 *grid, const Dim3 *block, size_t shared_bytes) {
    const emulator::Kernel *kernel = emulator::Kernel::find(name);
    return kernel ? kernel->start(args, *grid, *block, shared_bytes) : 3;
}

#define KERNEL(name, Args, ...)                                                                      \
    static void name(const Args args);                                                               \
    static const emulator::Kernel name##_entry(                                                      \
        #name, sizeof(Args), [](const void *args) { name(*(const Args *)args); }, emulator::first_of(__VA_ARGS__)); \
    static void name(const Args args)
