// The functions of every element that checkpoints name, computed in f32 and rounded once.
#include "gpu.cuh"

struct Activation {
    const void *x;
    void *y;
    int64_t numbers;
    int function; // the place of one in `activated`
};
static_assert(sizeof(Activation) == 32, "as the host has it");

const int ACTIVATION_THREADS = 256;

INLINE float activated(int function, float x) {
    switch (function) {
    case 0: return silu(x);
    case 1: {                             // Mish (Misra 2019): tanh(ln(1 + e)) is n / (n + 2) with n = e (e + 2)
        const float e = expf(fminf(x, 20.0f)), n = e * (e + 2.0f);
        return x * (n / (n + 2.0f));
    }
    case 2: return gelu(x);
    case 3: return x / (1.0f + expf(-1.5957691216057308f * (x + 0.044715f * x * x * x))); // by its tanh approximation
    case 4: return x / (1.0f + expf(-1.702f * x)); // quick GELU
    default: return x > 0.0f ? x : 0.0f; // ReLU
    }
}

template <class T> INLINE void activation(const Activation &a) {
    const int64_t i = (int64_t)blockIdx.x * ACTIVATION_THREADS + threadIdx.x;
    if (i < a.numbers) ((T *)a.y)[i] = narrow<T>(activated(a.function, wide(((const T *)a.x)[i])));
}

KERNEL(activation_f32, Activation, ACTIVATION_THREADS) { activation<f32>(args); }
KERNEL(activation_f16, Activation, ACTIVATION_THREADS) { activation<f16>(args); }
KERNEL(activation_bf16, Activation, ACTIVATION_THREADS) { activation<bf16>(args); }
