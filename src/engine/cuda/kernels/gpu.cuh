// What the kernels are written in: numbers of three kinds, and the card's collective instructions under plain names.
//
// Everything that only a card can do is in this file's first half; `emulator.h` gives the same names to a C++ compiler, so that
// the kernels' own source runs, instruction for instruction, on a processor without a card.
#pragma once

#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <stdint.h>

#define SHARED_BYTES(name) extern __shared__ __align__(16) unsigned char name[]
#define INLINE __device__ __forceinline__

// The address of shared memory as instructions want it.
INLINE uint32_t shared_address(const void *p) { return (uint32_t)__cvta_generic_to_shared(p); }

// 16 bytes from global to shared memory, in the background; zeros where `there` is false, and then nothing is read.
INLINE void copy_async(void *shared, const void *global, bool there) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(shared_address(shared)), "l"(global), "r"(there ? 16 : 0));
}
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

INLINE float shuffle_xor(float x, int mask) { return __shfl_xor_sync(0xffffffffu, x, mask); }
INLINE void sync_block() { __syncthreads(); }

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
