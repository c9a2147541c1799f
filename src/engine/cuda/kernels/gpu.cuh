// What the kernels are written in: numbers of three kinds, and the card's collective instructions under plain names.
//
// Everything that only a card can do is in this file's first half; `emulator.h` gives the same names to a C++ compiler, so that
// the kernels' own source runs, instruction for instruction, on a processor without a card.
#pragma once

#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <stdint.h>

#define SHARED_BYTES(name) extern __shared__ __align__(1024) unsigned char name[]
#define INLINE __device__ __forceinline__

// The address of shared memory as instructions want it.
INLINE uint32_t shared_address(const void *p) { return (uint32_t)__cvta_generic_to_shared(p); }

// 16 bytes from global memory to an address of shared memory, in the background; zeros where `there` is false, and then nothing is read.
INLINE void copy_async(uint32_t shared, const void *global, bool there) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(shared), "l"(global), "r"(there ? 16 : 0));
}
INLINE void copy_async(void *shared, const void *global, bool there) { copy_async(shared_address(shared), global, there); }
// Closes a group of copies.
INLINE void copy_commit() { asm volatile("cp.async.commit_group;\n"); }
// Waits until at most the N newest groups of this thread are still on their way.
template <int N> INLINE void copy_wait() { asm volatile("cp.async.wait_group %0;\n" ::"n"(N)); }

// Four 8x8 matrices of 16-bit numbers; lanes 8i .. 8i+7 point at the rows of matrix i. Lane l gets of each the numbers
// 2(l % 4) and the next one of row l / 4.
INLINE void load_matrices(uint32_t (&r)[4], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];\n"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row)));
}
// The same of the transposed matrices.
INLINE void load_matrices_transposed(uint32_t (&r)[4], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];\n"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row)));
}

// D += A B for a 16x16 A, a 16x8 B and a 16x8 D in f32 (PTX: mma.m16n8k16). With g = lane / 4 and t = lane % 4, a lane holds
//   a: (g, 2t..), (g+8, 2t..), (g, 2t+8..), (g+8, 2t+8..)    b: (2t.., g), (2t+8.., g)    d: (g, 2t), (g, 2t+1), (g+8, 2t), (g+8, 2t+1)
template <class T> INLINE void multiply_add(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);
template <> INLINE void multiply_add<__half>(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
template <> INLINE void multiply_add<__nv_bfloat16>(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// The products of a group of four warps (Hopper, PTX: wgmma), read from shared memory by the tensor cores themselves, in the background.
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
#define GROUPS
// What was copied or written to shared memory before, by this thread or, behind a barrier, by others, is there for the group's products and for
// copies out too.
INLINE void group_sees_copies() { asm volatile("fence.proxy.async.shared::cta;\n" ::: "memory"); }
// Before the first product, and after the sums were touched otherwise.
INLINE void group_begin() { asm volatile("wgmma.fence.sync.aligned;\n" ::: "memory"); }
// Closes a batch of products.
INLINE void group_commit() { asm volatile("wgmma.commit_group.sync.aligned;\n" ::: "memory"); }
// Waits until at most the N newest batches are under way.
template <int N> INLINE void group_wait() { asm volatile("wgmma.wait_group.sync.aligned %0;\n" ::"n"(N) : "memory"); }

// Registers pass from one group of warps to others: a thread keeps N, or takes so many that it has N.
template <int N> INLINE void keep_registers() { asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;\n" ::"n"(N)); }
template <int N> INLINE void take_registers() { asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;\n" ::"n"(N)); }

// A barrier in shared memory, by its address (PTX: mbarrier): a phase ends when `count` threads have arrived and the bytes that were expected are
// there.
INLINE void barrier_init(uint32_t barrier, int count) { asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;\n" ::"r"(barrier), "r"(count) : "memory"); }
// Makes those that this thread began known to copies too; the block is to meet before it uses them.
INLINE void barriers_ready() { asm volatile("fence.mbarrier_init.release.cluster;\nfence.proxy.async.shared::cta;\n" ::: "memory"); }
INLINE void barrier_arrive(uint32_t barrier) { asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];\n" ::"r"(barrier) : "memory"); }
// Arrives, and expects so many bytes of copies in this phase.
INLINE void barrier_expect(uint32_t barrier, int bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;\n" ::"r"(barrier), "r"(bytes) : "memory");
}
// Waits until the phase of this parity has ended: 0 is the first, 1 the one after it and the one before it.
INLINE void barrier_wait(uint32_t barrier, uint32_t parity) {
    uint32_t done;
    do {
        asm volatile("{ .reg .pred done; mbarrier.try_wait.parity.shared::cta.b64 done, [%1], %2; selp.u32 %0, 1, 0, done; }\n"
                     : "=r"(done)
                     : "r"(barrier), "r"(parity)
                     : "memory");
    } while (!done);
}
// This thread arrives when all its `copy_async` are there, for groups of warps too: the barrier counts what has been written, which no cache
// lies before. (PTX asks for a fence between proxies, which only the threads that wait could make, at each depth; CUTLASS's products by
// cp.async and wgmma do without it as well.)
INLINE void copy_arrives(uint32_t barrier) { asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];\n" ::"r"(barrier) : "memory"); }
// Bytes, a multiple of 16, from global to shared memory in the background, told to the barrier.
INLINE void copy_bulk(uint32_t shared, const void *global, int bytes, uint32_t barrier) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];\n" ::"r"(shared), "l"(global), "r"(bytes), "r"(barrier)
                 : "memory");
}
// The other way. `group_sees_copies` comes before it, for what this thread and others wrote there.
INLINE void copy_bulk_out(void *global, const void *shared, int bytes) {
    asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;\n" ::"l"(global), "r"(shared_address(shared)), "r"(bytes) : "memory");
}
INLINE void bulk_commit() { asm volatile("cp.async.bulk.commit_group;\n" ::: "memory"); }
// Waits until all that this thread copies out has been read.
INLINE void bulk_wait_read() { asm volatile("cp.async.bulk.wait_group.read 0;\n" ::: "memory"); }

// The operands of an instruction: the numbers of D first, each with a place.
#define PLACES_24 "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23"
#define PLACES_32 PLACES_24 ",%24,%25,%26,%27,%28,%29,%30,%31"
#define PLACES_64                                                                                                                              \
    PLACES_32 ",%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"
#define PLACES_80 PLACES_64 ",%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79"
#define PLACES_128                                                                                                                             \
    PLACES_80 ",%80,%81,%82,%83,%84,%85,%86,%87,%88,%89,%90,%91,%92,%93,%94,%95,%96,%97,%98,%99,%100,%101,%102,%103,%104,%105,%106,%107,"          \
              "%108,%109,%110,%111,%112,%113,%114,%115,%116,%117,%118,%119,%120,%121,%122,%123,%124,%125,%126,%127"
#define SUMS_8(i) "+f"(d[i][0]), "+f"(d[i][1]), "+f"(d[i][2]), "+f"(d[i][3]), "+f"(d[i + 1][0]), "+f"(d[i + 1][1]), "+f"(d[i + 1][2]), "+f"(d[i + 1][3])
#define SUMS_24 SUMS_8(0), SUMS_8(2), SUMS_8(4)
#define SUMS_32 SUMS_24, SUMS_8(6)
#define SUMS_64 SUMS_32, SUMS_8(8), SUMS_8(10), SUMS_8(12), SUMS_8(14)
#define SUMS_80 SUMS_64, SUMS_8(16), SUMS_8(18)
#define SUMS_128 SUMS_80, SUMS_8(20), SUMS_8(22), SUMS_8(24), SUMS_8(26), SUMS_8(28), SUMS_8(30)

// D = A B^T, or D += A B^T, for a 64x16 A, a Nx16 B and a 64xN D in f32; of D warp w of the group holds the rows 16w .. 16w + 15, in 16x8
// matrices as multiply_add has them.
template <class T, int N> INLINE void group_multiply_add(float (&d)[N / 8][4], uint64_t a, uint64_t b, bool add);
#define GROUP_MULTIPLY_ADD(T, DTYPE, N, SUMS, A, B, ADD)                                                                               \
    template <> INLINE void group_multiply_add<T, N>(float (&d)[N / 8][4], uint64_t a, uint64_t b, bool add) {                         \
        asm volatile("{ .reg .pred add; setp.ne.b32 add, " ADD ", 0; wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." DTYPE "." DTYPE   \
                     " {" PLACES_##SUMS "}, " A ", " B ", add, 1, 1, 0, 0; }\n"                                                        \
                     : SUMS_##SUMS                                                                                                     \
                     : "l"(a), "l"(b), "r"((int)add));                                                                                 \
    }
GROUP_MULTIPLY_ADD(__half, "f16", 64, 32, "%32", "%33", "%34")
GROUP_MULTIPLY_ADD(__half, "f16", 128, 64, "%64", "%65", "%66")
GROUP_MULTIPLY_ADD(__half, "f16", 160, 80, "%80", "%81", "%82")
GROUP_MULTIPLY_ADD(__half, "f16", 256, 128, "%128", "%129", "%130")
GROUP_MULTIPLY_ADD(__nv_bfloat16, "bf16", 64, 32, "%32", "%33", "%34")
GROUP_MULTIPLY_ADD(__nv_bfloat16, "bf16", 128, 64, "%64", "%65", "%66")
GROUP_MULTIPLY_ADD(__nv_bfloat16, "bf16", 160, 80, "%80", "%81", "%82")
GROUP_MULTIPLY_ADD(__nv_bfloat16, "bf16", 256, 128, "%128", "%129", "%130")

// D += A B for a 64x16 A in registers, each warp's 16 rows as multiply_add has them, and a 16xN B, from `group_columns`.
template <class T, int N> INLINE void group_multiply_add_columns(float (&d)[N / 8][4], const uint32_t (&a)[4], uint64_t b);
#define GROUP_MULTIPLY_ADD_COLUMNS(T, DTYPE, N, SUMS, A, B, ADD)                                                                       \
    template <> INLINE void group_multiply_add_columns<T, N>(float (&d)[N / 8][4], const uint32_t (&a)[4], uint64_t b) {               \
        asm volatile("{ .reg .pred add; setp.ne.b32 add, " ADD ", 0; wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." DTYPE "." DTYPE   \
                     " {" PLACES_##SUMS "}, {" A "}, " B ", add, 1, 1, 1; }\n"                                                         \
                     : SUMS_##SUMS                                                                                                     \
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(1));                                                    \
    }
GROUP_MULTIPLY_ADD_COLUMNS(__half, "f16", 48, 24, "%24,%25,%26,%27", "%28", "%29")
GROUP_MULTIPLY_ADD_COLUMNS(__half, "f16", 64, 32, "%32,%33,%34,%35", "%36", "%37")
GROUP_MULTIPLY_ADD_COLUMNS(__nv_bfloat16, "bf16", 48, 24, "%24,%25,%26,%27", "%28", "%29")
GROUP_MULTIPLY_ADD_COLUMNS(__nv_bfloat16, "bf16", 64, 32, "%32,%33,%34,%35", "%36", "%37")
#endif

// So that the compiler knows it to be one for all lanes.
INLINE int warp_of_block() { return __shfl_sync(0xffffffffu, threadIdx.x / 32, 0); }
INLINE float shuffle_xor(float x, int mask) { return __shfl_xor_sync(0xffffffffu, x, mask); }
// 2^x, to two units in the last place; 0 where it would be less than the smallest normal number.
INLINE float power_of_two(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
// To one unit in the last place.
INLINE float reciprocal(float x) {
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
INLINE void sync_block() { __syncthreads(); }
INLINE void sync_warp() { __syncwarp(); }

INLINE float wide(float x) { return x; }
INLINE float wide(__half x) { return __half2float(x); }
INLINE float wide(__nv_bfloat16 x) { return __bfloat162float(x); }
template <class T> INLINE T narrow(float x);
template <> INLINE float narrow<float>(float x) { return x; }
template <> INLINE __half narrow<__half>(float x) { return __float2half_rn(x); }
template <> INLINE __nv_bfloat16 narrow<__nv_bfloat16>(float x) { return __float2bfloat16_rn(x); }

using f16 = __half;
using bf16 = __nv_bfloat16;

// A kernel takes one structure by value, which the host has under the same name. Of its blocks of at most so many threads, so many (one,
// if nothing is said) are to fit on a multiprocessor at once.
#define KERNEL(name, Args, ...) extern "C" __global__ void __launch_bounds__(__VA_ARGS__) name(const Args args)
#else
#include "emulator.h"
#endif

using f32 = float;

// Two numbers of 16 bits in one register, the first in its lower half.
template <class T> INLINE uint32_t pack(float low, float high) {
    T pair[2] = {narrow<T>(low), narrow<T>(high)};
    uint32_t bits;
    memcpy(&bits, pair, 4);
    return bits;
}

// N numbers that lie together, read or written at once; N times their size is a power of two up to 16 bytes.
template <class T, int N> struct alignas(sizeof(T) * N) Vector {
    T at[N];
};

// Tiles in shared memory have lines of 64 numbers of 16 bits, eight chunks of 16 bytes: chunks are swapped so that those of eight lines, read
// at once, lie in eight places. Where chunk `chunk` of a line lies:
const int LINE = 64;
INLINE int chunk_at(int line, int chunk) { return line * LINE + ((chunk ^ line % 8) * 8); }

// For the products of groups of warps: a matrix of rows of 64 numbers, 128 bytes each, from a place of whole 1024 bytes on, their chunks of
// 16 bytes swapped by the row; of it the 16 columns of a step. (PTX, matrix descriptor: address, 1024 bytes from eight rows to the next,
// swizzle of 128 bytes.) The next step lies 2 on.
INLINE uint64_t group_matrix_at(uint32_t rows) {
    return (uint64_t)((rows & 0x3ffff) >> 4) | (uint64_t)1 << 16 | (uint64_t)(1024 >> 4) << 32 | (uint64_t)1 << 62;
}
INLINE uint64_t group_matrix(const void *rows, int step) { return group_matrix_at(shared_address(rows)) + 2 * step; }

// The same of a matrix whose rows are multiplied as columns, 64 of them (or fewer): of it the 16 rows of a step.
INLINE uint64_t group_columns(const void *rows, int step) { return group_matrix(rows, 64 * step); }

INLINE float silu(float x) { return x / (1.0f + expf(-x)); }
INLINE float gelu(float x) { return 0.5f * x * (1.0f + erff(x * 0.70710678118654752f)); }

// The same, to some 1e-6 of it, enough for 16 bits: erfc(z) = t exp(-z^2 + a polynomial of t), t = 1 / (1 + z / 2) (Press et al., Numerical Recipes,
// 6.2.2: a fraction of 1.2e-7).
INLINE float gelu_16(float x) {
    const float z = fabsf(x) * 0.70710678118654752f, t = reciprocal(1.0f + 0.5f * z);
    float p = 0.17087277f;
    p = p * t - 0.82215223f;
    p = p * t + 1.48851587f;
    p = p * t - 1.13520398f;
    p = p * t + 0.27886807f;
    p = p * t - 0.18628806f;
    p = p * t + 0.09678418f;
    p = p * t + 0.37409196f;
    p = p * t + 1.00002368f;
    p = p * t - 1.26551223f;
    const float half = 0.5f * t * power_of_two((p - z * z) * 1.4426950408889634f);
    return x * (x < 0 ? half : 1.0f - half);
}

INLINE int ceiling(int a, int b) { return (a + b - 1) / b; }
INLINE int smaller(int a, int b) { return a < b ? a : b; }

// A map of which the first channels lie in one place and the rest, if any, in another.
template <class T> struct Joined {
    const T *first, *rest;
    int first_channels, rest_channels;

    // Where the numbers of a pixel from channel `c` on lie.
    INLINE const T *at(int64_t pixel, int c) const {
        return c < first_channels ? first + pixel * first_channels + c : rest + pixel * rest_channels + (c - first_channels);
    }
    INLINE int channels() const { return first_channels + rest_channels; }
};
