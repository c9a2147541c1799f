/* cuBLAS, cuBLASLt and cuRAND, as far as candle opens them and never uses them: no product of candle's and no number of its generator is drawn. */
int cublasCreate_v2(void **handle) { *handle = (void *)1; return 0; }
int cublasDestroy_v2(void *handle) { return 0; }
int cublasSetStream_v2(void *handle, void *stream) { return 0; }
int curandCreateGenerator(void **generator, int kind) { *generator = (void *)1; return 0; }
int curandDestroyGenerator(void *generator) { return 0; }
int curandSetStream(void *generator, void *stream) { return 0; }
int curandSetPseudoRandomGeneratorSeed(void *generator, unsigned long long seed) { return 0; }
